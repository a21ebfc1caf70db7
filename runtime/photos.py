"""Photo sets on disk: a folder per class, or a CSV with `filename,label[,split]`."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import SajiError

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_JUNK = {"thumbs.db", "desktop.ini", "labels.csv", "sample.json"}


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
        found = _read_csv(source)
    elif (source / "labels.csv").is_file():
        found = _read_csv(source / "labels.csv")
    else:
        found = _read_folders(source)
    if not found.photos:
        reason = f" ({found.problems[0]})" if found.problems else ""
        raise SajiError(f"{source} holds no labelled photo{reason}; it needs CLASS/photo.jpg or filename,label rows")
    labels = {photo.label for photo in found.photos}
    by_folded: dict[str, str] = {}
    for label in sorted(labels):
        other = by_folded.setdefault(label.casefold(), label)
        if other != label:
            raise SajiError(f"{source} has the classes {other!r} and {label!r}, which differ only by case; merge them")
    return found


def _read_folders(root: Path) -> PhotoSet:
    photos, problems = [], []
    splits = {child: _SPLITS[child.name.lower()] for child in _folders(root) if child.name.lower() in _SPLITS}
    roots: dict[Path, str | None] = {**splits} if splits else {root: None}
    for folder, split in roots.items():
        for class_folder in _folders(folder):
            files = [file for file in sorted(class_folder.rglob("*")) if file.is_file() and not _is_junk(file)]
            photos += [Photo(file, class_folder.name, split) for file in files]
            if not files:
                problems.append(f"class folder {class_folder.name} is empty")
        stray = sum(file.is_file() and not _is_junk(file) for file in folder.iterdir())
        if stray:
            problems.append(f"{stray} files directly in {folder.name}/ belong to no class and are ignored")
    if splits:
        ignored = [child.name for child in _folders(root) if child not in splits]
        problems += [f"folder {name} stands beside train/ and val/ and is ignored" for name in ignored]
    return PhotoSet(root, tuple(photos), tuple(problems))


def _folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not _is_junk(child))


def _is_junk(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _JUNK or path.name == "__MACOSX"


def _read_csv(path: Path) -> PhotoSet:
    reader = csv.reader(io.StringIO(_text(path)))
    header = [name.strip().lower() for name in next(reader, [])]
    if "filename" not in header or "label" not in header:
        raise SajiError(f"{path} has the columns {', '.join(header) or 'none'}; it needs filename,label[,split]")
    photos, problems = [], []
    root = path.parent.resolve()
    for row in reader:
        line = f"{path.name} line {reader.line_num}"
        if not any(cell.strip() for cell in row):
            problems.append(f"{line} is blank")
            continue
        values = {name: cell.strip() for name, cell in zip(header, row, strict=False)}
        file, label = values.get("filename", ""), values.get("label", "")
        split = values.get("split", "").lower()
        target = root / file
        if not file or not label:
            problems.append(f"{line} has no {'label' if file else 'filename'}")
        elif not target.resolve().is_relative_to(root):
            raise SajiError(f"{line} points outside its folder ({file}); keep the photos beside the CSV")
        elif split and split not in _SPLITS:
            raise SajiError(f"{line} has the split {split!r}; use train, val or test")
        elif not target.is_file():
            problems.append(f"{line}: {file} does not exist")
        else:
            photos.append(Photo(path.parent / file, label, _SPLITS.get(split)))
    return PhotoSet(path, tuple(photos), tuple(problems))


def _text(path: Path) -> str:
    raw = path.read_bytes()
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        raise SajiError(f"{path} is not a UTF-8 text file; save the CSV as UTF-8") from None
