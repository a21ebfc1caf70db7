"""Photo sets on disk: a folder for each class, as people have them, or a list (`training.photos.listing`)."""

import hashlib
import io
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runtime.errors import SajiError
from runtime.files import exists, is_file, left_by_programs, walk_once
from runtime.markdown import is_printable
from runtime.preprocess import SUFFIXES
from training.photos.listing import SPLITS, read_list

_LISTS = {"labels.csv", "sample.json"}


@dataclass(frozen=True)
class Photo:
    """One photo of a set; `split` is "train", "val", "test" or None when the set does not say.

    `sha256` is that of its file, once this was examined, and "" before.
    """

    path: Path
    label: str
    split: str | None = None
    sha256: str = ""

    def source(self) -> Path | io.BytesIO:
        """What to decode: where the file was examined, the very bytes that were. Raises SajiError as `unchanged`."""
        return unchanged(self.path, self.sha256) if self.sha256 else self.path


@dataclass(frozen=True)
class PhotoSet:
    """The photos that a source lists; in a sentence each, what is wrong with it, and what is only to be known."""

    source: Path
    photos: tuple[Photo, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_photo_set(source: Path) -> PhotoSet:
    """List a photo set: a CSV file, a folder with a `labels.csv`, or a folder of class folders.

    Class folders may stand in `train/` and `val/`. Nothing is decoded here. Raises SajiError when the source is
    neither, or holds no labelled photo.
    """
    source = Path(source)
    if not exists(source):
        raise SajiError(f"{source} does not exist; DATA is a folder with one folder per class, or a CSV")
    if source.is_file():
        photo_set = _listed(source)
    elif not source.is_dir():
        raise SajiError(f"{source} is no file and no folder; DATA is a folder with one folder per class, or a CSV")
    elif is_file(source / "labels.csv"):
        photo_set = _listed(source / "labels.csv")
    else:
        photo_set = _read_folders(source)
    if not photo_set.photos:
        reason = f" ({photo_set.problems[0]}; {len(photo_set.problems)} faults in all)" if photo_set.problems else ""
        raise SajiError(f"{source} holds no labelled photo{reason}; it needs CLASS/photo.jpg or filename,label rows")
    labels = {photo.label for photo in photo_set.photos}
    by_spoken: dict[str, str] = {}
    for label in sorted(labels):
        if not is_printable(label):
            encoding = sys.getfilesystemencoding()
            how = f", or set PYTHONUTF8=1: names are read as {encoding} here" if encoding != "utf-8" else ""
            raise SajiError(f"{source} has the class {label!r}, whose name cannot be printed; rename it{how}")
        other = by_spoken.setdefault(spoken(label), label)
        if other != label:
            raise SajiError(
                f"{source} has the classes {other!r} and {label!r}, which differ only by case, spaces, underscores, "
                "hyphens, the encoding of a letter or signs that nobody sees; merge them"
            )
    return photo_set


def unchanged(path: Path, sha256: str) -> io.BytesIO:
    """A photo's file, read once, into memory, and named by its path.

    Raises SajiError where it is no longer the file of this SHA-256: a photo may change in the minutes between its
    examination and its decoding, and what is kept by its hash would hold another one's pixels for good.
    """
    try:
        file = io.BytesIO(path.read_bytes())
    except OSError as error:
        why = error.strerror or error
        raise SajiError(f"{path} can no longer be read ({why}); check its disk, and type the same again") from None
    if hashlib.sha256(file.getbuffer()).hexdigest() != sha256:
        raise SajiError(f"{path} has changed since it was first read; leave the photos alone, and type the same again")
    file.name = str(path)
    return file


def spoken(label: str) -> str:
    """A label as it is said aloud: two labels are the same class when only case, or what stands between words (spaces,
    _ or a dash), or characters that nobody sees, tell them apart. A dash before a number or behind a letter may mean
    something: -1, A-."""
    text = unicodedata.normalize("NFKC", label).casefold().replace("_", " ")
    text = "".join(sign for sign in text if not _is_unseen(sign))
    return " ".join(re.sub(r"(?<=[^\W\d])[\u2010-\u2015-]+(?=[^\W\d])", " ", text).split())


def _is_unseen(sign: str) -> bool:
    """Whether a character shows nothing by itself, as what pages and spreadsheets leave in a cell; flags have some."""
    return (unicodedata.category(sign) == "Cf" and sign < "\U000e0000") or "\ufe00" <= sign <= "\ufe0f"


def _listed(file: Path) -> PhotoSet:
    rows, problems = read_list(file)
    return PhotoSet(file, tuple(Photo(*row) for row in rows), tuple(problems))


def _read_folders(root: Path) -> PhotoSet:
    photos, problems, walk, by_class = [], [], _Walk(), dict[Path, list[Path]]()
    splits = _splits(folders := walk.folders(root))
    classes: dict[Path, str | None] = {each: split for top, split in splits.items() for each in walk.folders(top)}
    classes = classes if splits else dict.fromkeys(folders, None)
    for folder in walk.once(classes):
        files = by_class[folder] = sorted(walk.photos(folder))
        photos += [Photo(file, folder.name, classes[folder]) for file in files]
        if not files:
            problems.append(f"class folder {folder.relative_to(root)} is empty")
    for top in splits or [root]:
        inside = {folder: files for folder, files in by_class.items() if folder.parent == top}
        if not splits or all(folder.name.lower() in SPLITS for folder in inside):
            _require_classes(top, inside)
    for folder in splits or [root]:
        stray = sum(walk.is_photo(file) for file in folder.iterdir() if not file.is_dir())
        if stray:
            problems.append(f"{stray} files directly in {folder.resolve().name}/ belong to no class and are ignored")
    if "train" in splits.values() and not any(photo.split == "val" for photo in photos):
        empty = "no photo in val/" if "val" in splits.values() else "no val/"
        problems.append(f"there is {empty} in {root.resolve().name}: a part of train/ is kept to validate by")
    if splits:
        ignored = [folder.name for folder in folders if folder not in splits]
        problems += [f"folder {name} stands beside train/ and val/ and is ignored" for name in ignored]
    elif taken := [folder.name for folder in folders if folder.name.lower() in SPLITS]:
        problems.append(f"{', '.join(taken)} is taken for a class: a split has train/ with a folder for each class")
    return PhotoSet(root, tuple(photos), (*problems, *walk.problems), walk.notes())


def _splits(folders: Sequence[Path]) -> dict[Path, str]:
    """The folders that are a split's; none where one is only called so, such as a class `train` beside `plane`."""
    found = {folder: SPLITS[folder.name.lower()] for folder in folders if folder.name.lower() in SPLITS}
    trains = any(split == "train" and _Walk().folders(folder) for folder, split in found.items())
    return found if trains or len(found) == len(folders) else {}


def _words(folder: Path) -> list[str]:
    return re.split(r"[\W_]+", folder.name.lower())


def _require_classes(top: Path, given: dict[Path, list[Path]]) -> None:
    """Raise SajiError where folders that are taken for classes are parts of a set, with the classes' folders in them.

    Such are folders of the same names in several classes, none of which has a photo of its own: one is enough where
    the classes are called like splits, else several that are most of them and not numbered, as people number shots.
    """
    parts: dict[Path, set[str]] = {}
    for folder, files in given.items():
        places = {file.parent for file in files if _is_called_photo(file)}
        if folder in places:
            return
        if places:
            inner = Path(os.path.commonpath(places))
            inner = inner.parent if inner in places else inner
            parts[inner] = {place.relative_to(inner).parts[0] for place in places}
    counts = Counter(name for names in parts.values() for name in names)
    shared = sorted(name for name, count in counts.items() if count > 1 or len(parts) == 1)
    kinds = [{SPLITS[word] for word in _words(folder) if word in SPLITS} for folder in given]
    are_splits = all(kinds) and len(set().union(*kinds)) > 1
    most = 1 < len(shared) >= len(counts) / 2 and not all(re.search(r"\d", name) for name in shared)
    if (len(parts) > 1 and not (are_splits or most)) or (len(parts) == 1 and not all(given.values())):
        return
    holders = [inner for inner, names in parts.items() if not names.isdisjoint(shared)]
    named = ", ".join(shared[:3]) + (" …" if len(shared) > 3 else "")
    if len(parts) == 1:
        raise SajiError(
            f"{top} has photos only in folders ({named}) of {holders[0]}; give {holders[0]} as DATA, or, if "
            f"{holders[0].name} is a class, move it into {top / 'train'}"
        )
    if shared:
        several = ", ".join(str(inner.relative_to(top)) for inner in holders[:3])
        raise SajiError(
            f"{top} has the same folders ({named}) in {several}; if these are splits, call them train, val and test in "
            f"{top}, if they are classes, move them into {top / 'train'}, or give one of them as DATA"
        )


class _Walk:
    """Files and folders as a photo set has them; what was passed over is counted, and told at the end."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()
        self.problems: list[str] = []
        self.read: set[Path] = set()

    def folders(self, root: Path) -> list[Path]:
        """The folders in one, but those of other programs."""
        return sorted(path for path in root.iterdir() if path.is_dir() and not self._passed_over(path))

    def once(self, classes: Collection[Path]) -> list[Path]:
        """The folders of classes, but no link to one of them or to what they lie in; none is then read as a part."""
        taken = {above.resolve() for folder in classes for above in folder.absolute().parents}
        self.read = taken | {folder.resolve() for folder in classes if not folder.is_symlink()}
        again = set()
        for folder in sorted(classes, key=lambda folder: (folder.parent.is_symlink(), folder.is_symlink())):
            if (place := folder.resolve()) in taken:
                self._tell(folder)
                again.add(folder)
            taken.add(place)
        return [folder for folder in classes if folder not in again]

    def photos(self, folder: Path) -> Iterator[Path]:
        """The photos at any depth of a folder; links are followed, but not to what was `read` or leads back here.

        What is called like a photo beside it tells of that photo, or is it once more: `IMG_1.AAE`, `IMG_1.jpg.json`.
        """
        for _, files in walk_once(folder, self.read.copy(), self._passed_over, self._tell, _fail):
            found = [file for file in files if self.is_photo(file)]
            photos = {name for file in found if _is_called_photo(file) for name in (file.name, file.stem)}
            for file in found:
                parts = file.name.split(".")
                if _is_called_photo(file) or photos.isdisjoint(".".join(parts[:end]) for end in range(1, len(parts))):
                    yield file
                else:
                    self.beside[f".{parts[-1].lower()}"] += 1

    def is_photo(self, file: Path) -> bool:
        """Whether a file is a photo, or is to be called a broken one."""
        if left_by_programs(file.name) or file.name.lower() in _LISTS:
            return False
        if not (there := exists(file)) and file.is_symlink():
            self.problems.append(f"{file} is a link to nothing")
        return there and file.is_file()

    def notes(self) -> tuple[str, ...]:
        """What was left out, in a sentence each."""
        counts = {"in folders of other programs": self.left_out, "called like the photo beside them": self.beside}
        return tuple(
            f"{sum(files.values())} files {which} are left out: {', '.join(sorted(files))}"
            for which, files in counts.items()
            if any(files.values())
        )

    def _tell(self, link: Path) -> None:
        self.problems.append(f"{link} is a link to a folder that is read already, and is ignored")

    def _passed_over(self, folder: Path) -> bool:
        ours = False
        with suppress(OSError):  # one that cannot be read is told when its photos are listed
            ours = any((folder / "cache").glob("*.duplicates.json"))  # OUT among the photos
        if passed := ours or left_by_programs(folder.name):
            self.left_out[folder.name] += sum(len(files) for _, _, files in os.walk(folder))
        return passed


def _is_called_photo(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _fail(error: OSError) -> NoReturn:
    raise error
