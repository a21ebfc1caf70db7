"""A list of photos: a CSV with `filename,label[,split]`, in whatever encoding and delimiter programs write it."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import SajiError, some_of

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test"}
_COLUMNS = ("filename", "label", "split")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

Row = tuple[Path, str, str | None]  # where a photo is, its label, and its split: "train", "val", "test" or None


def read_list(path: Path) -> tuple[list[Row], list[str]]:
    """What a CSV lists, and in a sentence each what is wrong with it. Raises SajiError where it cannot be used."""
    text, problems = _text(path)
    root = path.parent.resolve()
    photos, bad_rows, padded = [], [], 0
    longest = csv.field_size_limit(2**31 - 1)  # a column that is not used may hold anything
    try:
        ahead = any(re.match(' +"', cell) for row in _rows(text) for cell in row)
        rows = _rows(text, skipinitialspace=ahead)
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
                padded += photo[1] not in row
    except csv.Error as error:
        raise SajiError(f"{path} is no CSV that can be read ({error}); look for an unclosed quote") from None
    finally:
        csv.field_size_limit(longest)
    if unknown := [name for name in header if name and name not in _COLUMNS]:
        problems.append(f"{path.name} has columns that are not used: {_named(unknown)}")
    if padded:
        problems.append(f"{path.name} has {padded} labels with spaces around them, which are dropped")
    if spaced := sorted({label for _, label, _ in photos if " " in label}):
        names = some_of([*map(repr, spaced)])
        problems.append(f"{path.name} has {len(spaced)} labels with spaces in them, which stay: {names}")
    return photos, [*problems, *bad_rows]


def _rows(text: str, skipinitialspace: bool = False) -> Any:
    """A CSV reader. A space ahead of quotes makes them a part of a cell, unless it is skipped, as it is in any cell."""
    # newline="": old spreadsheets end lines with a lone CR, which elsewhere may be a part of a name
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=_delimiter(text), skipinitialspace=skipinitialspace)


def _header(rows: Iterable[Sequence[str]]) -> list[str]:
    """The names in the first row that is not blank, but for Excel's own, which says the delimiter."""
    named = ([name.strip().lower() for name in row] for row in rows)
    return next((names for names in named if any(names) and not names[0].startswith("sep=")), [])


def _named(cells: Sequence[str], most: int = 200) -> str:
    """Cells in a sentence: on one line and not all of them, for behind an unclosed quote a cell is the whole file."""
    return " ".join(", ".join(cells).split())[:most]


def _read_row(folder: Path, root: Path, line: str, header: list[str], row: list[str]) -> Row | str:
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
        return f"{line} has no label{' and no comma' if len(row) == 1 else ''} ({_named([file])})"
    if split and split not in SPLITS:
        raise SajiError(f"{line} has the split {_named([split])!r}; use train, val or test")
    if exists:
        return folder / file, label, SPLITS.get(split)
    there = os.path.isdir(root / file)  # noqa: PTH112  never raises
    return f"{line}: {_named([file], 400)} {'is a folder; a row is for one photo' if there else 'does not exist'}"


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


def unicode_text(raw: bytes) -> str | None:
    """What UTF-8 or, where its first bytes say so, UTF-16 says, as PowerShell writes it; None where it is neither."""
    text = raw.decode("utf-16" if raw[:2] in _UTF_16 else "utf-8", "replace")
    text = text.lstrip("\ufeff")  # some programs write the mark twice
    text = text.replace("\r\r\n", "\r\n")  # of Python on Windows, where nobody typed newline=""
    return None if "\0" in text or "\N{REPLACEMENT CHARACTER}" in text else text


def _text(path: Path) -> tuple[str, list[str]]:
    raw = path.read_bytes()
    text = unicode_text(raw)
    if text is None:
        raise SajiError(f"{path} is no UTF-8 text; DATA is a folder with one folder per class, or a CSV saved as UTF-8")
    if raw[:2] in _UTF_16:
        return text, [f"{path.name} is UTF-16; save it as UTF-8 for other programs"]
    if raw.startswith(b"\xef\xbb\xbf"):
        return text, [f"{path.name} begins with a byte order mark, which other programs read as a part of 'filename'"]
    return text, []
