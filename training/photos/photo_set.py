"""Photo sets on disk: a folder per class, or a CSV with `filename,label[,split]`."""

import csv
import io
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import SajiError
from runtime.files import left_by_programs

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
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
    """The photos that a source lists, and what was wrong with it, one sentence an item."""

    source: Path
    photos: tuple[Photo, ...]
    problems: tuple[str, ...] = ()


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
        if not label.isprintable():
            raise SajiError(f"{source} has the class {label!r}, whose name cannot be printed; rename it")
        other = by_spoken.setdefault(spoken(label), label)
        if other != label:
            raise SajiError(
                f"{source} has the classes {other!r} and {label!r}, which differ only by case, spaces, underscores, "
                "hyphens or the encoding of a letter; merge them"
            )
    return photo_set


def spoken(label: str) -> str:
    """A label as it is said aloud: two labels are the same class when only case, spaces, _ or - tell them apart."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", label)).casefold()


def _read_folders(root: Path) -> PhotoSet:
    photos, problems = [], []
    splits = {child: _SPLITS[child.name.lower()] for child in _folders(root) if child.name.lower() in _SPLITS}
    roots: dict[Path, str | None] = {**splits} if splits else {root: None}
    for folder, split in roots.items():
        for class_folder in _folders(folder):
            files = [file for file in sorted(class_folder.rglob("*")) if _is_photo(file, class_folder)]
            photos += [Photo(file, class_folder.name, split) for file in files]
            if not files:
                problems.append(f"class folder {class_folder.name} is empty")
        stray = sum(_is_photo(file, folder) for file in folder.iterdir())
        if stray:
            problems.append(f"{stray} files directly in {folder.name}/ belong to no class and are ignored")
    if splits:
        ignored = [child.name for child in _folders(root) if child not in splits]
        if "val" not in splits.values():
            problems.append(f"there is no val/ in {root.name}: a part of train/ is kept to validate by")
        problems += [f"folder {name} stands beside train/ and val/ and is ignored" for name in ignored]
    return PhotoSet(root, tuple(photos), tuple(problems))


def _folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not left_by_programs(child.name))


def _is_photo(file: Path, folder: Path) -> bool:
    """Whether a file at any depth of a folder is a photo, or is to be called a broken one."""
    passed_over = any(map(left_by_programs, file.relative_to(folder).parts)) or file.name.lower() in _LISTS
    return file.is_file() and not passed_over


def _read_csv(path: Path) -> PhotoSet:
    text, problems = _text(path)
    root = path.parent.resolve()
    photos, bad_rows, padded = [], [], 0
    try:
        # newline=None: old spreadsheets end lines with a lone CR, which csv refuses
        rows = csv.reader(io.StringIO(text, newline=None))
        header = [name.strip().lower() for name in next(rows, [])]
        if "filename" not in header or "label" not in header:
            raise SajiError(f"{path} has the columns {', '.join(header) or 'none'}; it needs filename,label[,split]")
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
        problems.append(f"{path.name} has columns that are not used: {', '.join(unknown)}")
    if padded:
        problems.append(f"{path.name} has {padded} labels with spaces around them, which are dropped")
    if spaced := [photo.label for photo in photos if " " in photo.label]:
        names = ", ".join(map(repr, sorted(set(spaced))))
        problems.append(f"{path.name} has {len(spaced)} labels with spaces in them, which stay: {names}")
    return PhotoSet(path, tuple(photos), (*problems, *bad_rows))


def _read_row(folder: Path, root: Path, line: str, header: list[str], row: list[str]) -> Photo | str:
    """The row's photo, or what is wrong with the row. Raises SajiError when the whole file must not be used."""
    if not any(cell.strip() for cell in row):
        return f"{line} is blank"
    if any(cell.strip() for cell in row[len(header) :]) or any("\n" in cell for cell in row):
        return f"{line} has more cells than the header, or a line break in one; look for an unquoted comma or a quote"
    values = {name: cell.strip() for name, cell in zip(header, row, strict=False)}
    file, label = values.get("filename", ""), values.get("label", "")
    split = values.get("split", "").lower()
    if not file:
        return f"{line} has no filename"
    if "\\" in file and not (root / file).exists():  # as Windows writes paths
        file = file.replace("\\", "/")
    # By its letters: a photo that is a link into a cache stands where the link does
    if not Path(os.path.normpath(root / file)).is_relative_to(root):
        raise SajiError(f"{line} points outside its folder ({file}); keep the photos beside the CSV")
    if not label:
        return f"{line} has no label{' and no comma' if len(row) == 1 else ''} ({file})"
    if split and split not in _SPLITS:
        raise SajiError(f"{line} has the split {split!r}; use train, val or test")
    try:
        exists = (root / file).is_file()
    except OSError:  # such as a name that is longer than the file system allows
        exists = False
    return Photo(folder / file, label, _SPLITS.get(split)) if exists else f"{line}: {file} does not exist"


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
