"""Photo sets on disk: a folder per class, or a CSV with `filename,label[,split]`."""

import csv
import io
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runtime.errors import SajiError
from runtime.files import left_by_programs, walk_once
from runtime.markdown import is_printable
from runtime.preprocess import SUFFIXES

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLITS |= {"testing": "test"}
_COLUMNS = ("filename", "label", "split")
_LISTS = {"labels.csv", "sample.json"}


@dataclass(frozen=True)
class Photo:
    """One photo of a set; `split` is "train", "val", "test" or None when the set does not say."""

    path: Path
    label: str
    split: str | None = None


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
    if not source.exists():
        raise SajiError(f"{source} does not exist; DATA is a folder with one folder per class, or a CSV")
    if source.is_file():
        photo_set = _read_csv(source)
    elif not source.is_dir():
        raise SajiError(f"{source} is no file and no folder; DATA is a folder with one folder per class, or a CSV")
    elif (source / "labels.csv").is_file():
        photo_set = _read_csv(source / "labels.csv")
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
                "hyphens or the encoding of a letter; merge them"
            )
    return photo_set


def spoken(label: str) -> str:
    """A label as it is said aloud: two labels are the same class when only case, or what stands between words (spaces,
    _ or a dash) tell them apart. A dash before a number or behind a letter may mean something: -1, A-."""
    text = unicodedata.normalize("NFKC", label).casefold().replace("_", " ")
    return " ".join(re.sub(r"(?<=[^\W\d])[\u2010-\u2015-]+(?=[^\W\d])", " ", text).split())


def _read_folders(root: Path) -> PhotoSet:
    photos, problems, walk, by_class = [], [], _Walk(), dict[Path, list[Path]]()
    splits = _splits(folders := walk.folders(root))
    classes: dict[Path, str | None] = {each: split for top, split in splits.items() for each in walk.folders(top)}
    classes = classes if splits else dict.fromkeys(folders, None)
    for folder in walk.once(classes):
        files = by_class[folder] = sorted(walk.photos(folder))
        photos += [Photo(file, folder.name, classes[folder]) for file in files]
        if not files:
            problems.append(f"class folder {folder.name} is empty")
    for top in splits or [root]:
        inside = {folder: files for folder, files in by_class.items() if folder.parent == top}
        if not splits or all(folder.name.lower() in _SPLITS for folder in inside):
            _require_classes(top, inside)
    for folder in splits or [root]:
        stray = sum(walk.is_photo(file) for file in folder.iterdir() if not file.is_dir())
        if stray:
            problems.append(f"{stray} files directly in {folder.resolve().name}/ belong to no class and are ignored")
    if "train" in splits.values() and "val" not in splits.values():
        problems.append(f"there is no val/ in {root.resolve().name}: a part of train/ is kept to validate by")
    if splits:
        ignored = [folder.name for folder in folders if folder not in splits]
        problems += [f"folder {name} stands beside train/ and val/ and is ignored" for name in ignored]
    elif taken := [folder.name for folder in folders if folder.name.lower() in _SPLITS]:
        problems.append(f"{', '.join(taken)} is taken for a class: a split has train/ with a folder for each class")
    return PhotoSet(root, tuple(photos), (*problems, *walk.problems), walk.notes())


def _splits(folders: Sequence[Path]) -> dict[Path, str]:
    """The folders that are a split's; none where one is only called so, such as a class `train` beside `plane`."""
    found = {folder: _SPLITS[folder.name.lower()] for folder in folders if folder.name.lower() in _SPLITS}
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
        places = {file.parent for file in files if file.suffix.lower() in SUFFIXES}
        if folder in places:
            return
        if places:
            inner = Path(os.path.commonpath(places))
            inner = inner.parent if inner in places else inner
            parts[inner] = {place.relative_to(inner).parts[0] for place in places}
    counts = Counter(name for names in parts.values() for name in names)
    shared = sorted(name for name, count in counts.items() if count > 1 or len(parts) == 1)
    kinds = [{_SPLITS[word] for word in _words(folder) if word in _SPLITS} for folder in given]
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
        """The photos at any depth of a folder; links are followed, but not to what was `read` or leads back here."""
        for _, files in walk_once(folder, self.read.copy(), self._passed_over, self._tell, _fail):
            yield from filter(self.is_photo, files)

    def is_photo(self, file: Path) -> bool:
        """Whether a file is a photo, or is to be called a broken one."""
        if left_by_programs(file.name) or file.name.lower() in _LISTS:
            return False
        if file.is_symlink() and not file.exists():
            self.problems.append(f"{file} is a link to nothing")
        return file.is_file()

    def notes(self) -> tuple[str, ...]:
        """What was left out, in a sentence."""
        names = ", ".join(sorted(self.left_out))
        files = sum(self.left_out.values())
        return (f"{files} files in folders of other programs are left out: {names}",) if files else ()

    def _tell(self, link: Path) -> None:
        self.problems.append(f"{link} is a link to a folder that is read already, and is ignored")

    def _passed_over(self, folder: Path) -> bool:
        ours = any((folder / "cache").glob("*.duplicates.json"))  # OUT among the photos
        if passed := ours or left_by_programs(folder.name):
            self.left_out[folder.name] += sum(len(files) for _, _, files in os.walk(folder))
        return passed


def _fail(error: OSError) -> NoReturn:
    raise error


def _read_csv(path: Path) -> PhotoSet:
    text, problems = _text(path)
    root = path.parent.resolve()
    photos, bad_rows, padded = [], [], 0
    try:
        # newline="": old spreadsheets end lines with a lone CR, which elsewhere may be a part of a name
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        header = _header(rows)
        if "filename" not in header or "label" not in header:
            raise SajiError(f"{path} has the columns {_named(header) or 'none'}; it needs filename,label[,split]")
        if twice := [name for name in _COLUMNS if header.count(name) > 1]:
            raise SajiError(f"{path} has the column {twice[0]} twice; leave one")
        for row in rows:
            photo = _read_row(path.parent, root, f"{path.name} line {rows.line_num}", header, row)
            if isinstance(photo, str):
                bad_rows.append(photo)
            else:
                photos.append(photo)
                padded += photo.label not in row
    except csv.Error as error:
        raise SajiError(f"{path} is no CSV that can be read ({error}); look for an unclosed quote") from None
    if unknown := [name for name in header if name and name not in _COLUMNS]:
        problems.append(f"{path.name} has columns that are not used: {_named(unknown)}")
    if padded:
        problems.append(f"{path.name} has {padded} labels with spaces around them, which are dropped")
    if spaced := [photo.label for photo in photos if " " in photo.label]:
        names = ", ".join(map(repr, sorted(set(spaced))))
        problems.append(f"{path.name} has {len(spaced)} labels with spaces in them, which stay: {names}")
    return PhotoSet(path, tuple(photos), (*problems, *bad_rows))


def _header(rows: Iterable[Sequence[str]]) -> list[str]:
    """The names in the first row that is not blank, but for Excel's own, which says the delimiter."""
    named = ([name.strip().lower() for name in row] for row in rows)
    return next((names for names in named if any(names) and not names[0].startswith("sep=")), [])


def _named(cells: Sequence[str]) -> str:
    """Cells in a sentence: on one line and not all of them, for behind an unclosed quote a cell is the whole file."""
    return " ".join(", ".join(cells).split())[:200]


def _read_row(folder: Path, root: Path, line: str, header: list[str], row: list[str]) -> Photo | str:
    """The row's photo, or what is wrong with the row. Raises SajiError when the whole file must not be used."""
    if not any(cell.strip() for cell in row):
        return f"{line} is blank"
    cells = dict(zip(header, row, strict=False))
    label, split = cells.get("label", "").strip(), cells.get("split", "").strip().lower()
    file = _spelled_as_there(root, cells.get("filename", ""))
    exists = os.path.isfile(root / file)  # noqa: PTH113  also where the name is longer than the file system allows
    if any(cell.strip() for cell in row[len(header) :]) or (re.search(r"[\r\n]", "".join(row)) and not exists):
        return f"{line} has more cells than the header, or a line break in one; look for an unquoted comma or a quote"
    if not file:
        return f"{line} has no filename"
    # By its letters, as the folder is given or truly called: a photo that is a link into a cache stands where the link
    # does. Or by where its folder truly is, which an absolute path may reach through another link
    given, spelled = (Path(os.path.normpath(path)) for path in (folder.absolute(), root / file))
    place = Path(os.path.realpath((root / file).parent))
    if not (spelled.is_relative_to(root) or spelled.is_relative_to(given) or place.is_relative_to(root)):
        raise SajiError(f"{line} points outside its folder ({_named([file])}); keep the photos beside the CSV")
    if not label:
        return f"{line} has no label{' and no comma' if len(row) == 1 else ''} ({file})"
    if split and split not in _SPLITS:
        raise SajiError(f"{line} has the split {split!r}; use train, val or test")
    if exists:
        return Photo(folder / file, label, _SPLITS.get(split))
    there = os.path.isdir(root / file)  # noqa: PTH112  never raises
    return f"{line}: {file} is a folder; a row is for one photo" if there else f"{line}: {file} does not exist"


def _spelled_as_there(root: Path, cell: str) -> str:
    """A file's name as the folder has it: with spaces around, Windows' backslashes, accents apart from letters."""
    cells = [cell, cell.strip()]
    cells += [each.replace("\\", "/") for each in cells]
    cells += [each.replace("\r\n", "\n") for each in cells]
    cells += [unicodedata.normalize(form, each) for each in cells for form in ("NFC", "NFD")]
    there = (each for each in cells if each.strip() and os.path.isfile(root / each))  # noqa: PTH113  never raises
    return next(there, cells[3])


def _delimiter(text: str) -> str:
    """What parts the columns: what stands most often in the first line of comma, semicolon, tab and bar."""
    first = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0].lower()
    return first[4:5] if first.startswith("sep=") and len(first) > 4 else max(",;\t|", key=first.count)


def _text(path: Path) -> tuple[str, list[str]]:
    raw = path.read_bytes()
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = raw.decode(encoding, "replace")
    if "\0" in text or "\N{REPLACEMENT CHARACTER}" in text:
        raise SajiError(f"{path} is no UTF-8 text; DATA is a folder with one folder per class, or a CSV saved as UTF-8")
    if encoding == "utf-16":
        return text, [f"{path.name} is UTF-16; save it as UTF-8 for other programs"]
    if raw.startswith(b"\xef\xbb\xbf"):
        return text, [f"{path.name} begins with a byte order mark, which other programs read as a part of 'filename'"]
    return text, []
