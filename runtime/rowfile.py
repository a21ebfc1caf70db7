"""A file of rows that is appended to as they come, and taken up again after a stop or a kill."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from runtime.errors import SajiError
from runtime.files import DAMAGE, alone, as_text, make_folder, naming, parse_json, require_regular

_TIME = re.compile(r"\d+\.\d{3}")  # the last cell of a row: one that is cut within it has fewer decimals
_LONGEST = 2**17  # bytes of a record of CSV: more than any name takes
# What a spreadsheet runs, also as East Asian keyboards write it, and what would be taken for one that is guarded
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


class RowFile:
    """JSON lines or CSV, each row about the photo that its first field names. Use it as a context manager.

    `photo in rows` says whether the file holds a row of that photo. Each row is handed to the system before the next
    is made; of a file whose writer was killed, the half-written last row is dropped, and nothing else ever is. Without
    a `path` it holds nothing. Raises SajiError when the file holds something else, or a row whose column `served_by` is
    not this one: answers of two models are never mixed. The file is then left as it is.
    """

    def __init__(self, path: Path | None, form: str, columns: tuple[str, ...], served_by: str) -> None:
        self.path, self.form, self.columns, self.served_by = path, form, columns, served_by
        self.header = ",".join(columns).encode() + b"\n"
        self.photos: set[str] = set()
        self.file: BinaryIO | None = None
        self.opened = ExitStack()

    def __enter__(self) -> "RowFile":
        if self.path:
            require_regular(self.path)
            make_folder(self.path.parent)
            with ExitStack() as opening:
                self.file = opening.enter_context(open(self.path, "a+b"))
                opening.enter_context(alone(self.path, "writing rows into"))
                whole = self._read(self.file)
                self.file.truncate(whole)
                if self.form == "csv" and not whole:
                    self.append(self.header.decode())
                self.opened = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def __contains__(self, photo: object) -> bool:
        return isinstance(photo, str) and as_text(photo) in self.photos

    def append(self, row: str) -> None:
        """Write a row, which ends with a line end, and flush it."""
        assert self.file and self.path
        with naming(self.path):
            self.file.write(as_text(row).encode())
            self.file.flush()

    def _read(self, file: BinaryIO) -> int:
        """Note the photos of all rows, and end the last one where it is whole but for its line end; their bytes."""
        file.seek(0)
        whole = 0
        for record in _records(file, self.form):
            start = b'{"photo": ' if self.form == "json" else b"" if whole else self.header
            try:
                if not record.startswith(start):
                    raise ValueError
                if record != self.header:
                    row = self._fields(record)
                    self._require_same_model(row["served_by"])
                    self.photos.add(as_text(row["photo"]))
            except (*DAMAGE, csv.Error):
                if self._half_written(record) and record.startswith(start[: len(record)]):
                    break
                raise SajiError(
                    f"{self.path} holds something else than {self.form.upper()} rows of photos; name another file"
                ) from None
            whole += len(record)
            if not record.endswith(b"\n"):
                self.append("\n")
                whole += 1
        return whole

    def _fields(self, record: bytes) -> dict[str, str]:
        if self.form == "json":
            fields: dict[str, str] = parse_json(record)
            return fields
        [cells] = csv.reader(io.StringIO(record.decode(), newline=""), strict=True)
        # A file of an earlier version has no apostrophes before formulas
        texts = (cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell for cell in cells)
        row = dict(zip(self.columns, texts, strict=True))
        if not (record.endswith(b"\n") or _TIME.fullmatch(cells[-1])) or not cells[-1]:
            raise ValueError
        return row

    def _half_written(self, record: bytes) -> bool:
        """Whether a record that is no row may be the beginning of one, and is not whole rows that a stray quote joined.

        Only the names in a row hold line ends: none stands behind its last comma.
        """
        if self.form == "json":
            with suppress(ValueError):
                return not parse_json(record)  # whole, but somebody else's
            return not record.endswith(b"\n")
        commas = len(self.columns) - 1
        behind = b"".join(record.split(b",", commas)[commas:])
        joined = b"\n" in behind or b"\r" in behind or len(record) > _LONGEST
        return not joined and (record.count(b'"') % 2 == 1 or not record.endswith(b"\n"))

    def _require_same_model(self, served_by: str) -> None:
        if served_by != self.served_by:
            raise SajiError(
                f"{self.path} holds answers of {served_by}, which this model ({self.served_by}) would go on with; "
                "name another file for --output, or that model with --model"
            )


def csv_line(cells: Iterable[object]) -> str:
    """One record of a CSV; text that a spreadsheet would run as a formula has an apostrophe before it."""
    text = io.StringIO()
    safe = (f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell for cell in cells)
    csv.writer(text).writerow(safe)  # with its own line end, for which it quotes a name with either half of that
    return f"{text.getvalue()[:-2]}\n"


def _records(file: BinaryIO, form: str) -> Iterator[bytes]:
    """A file's records, the last perhaps cut off, none much longer than _LONGEST; in CSV, quotes may hold line ends."""
    record, quotes = b"", 0
    for line in file:
        record, quotes = record + line, quotes + line.count(b'"')
        if form == "json" or quotes % 2 == 0 or len(record) > _LONGEST:
            yield record
            record, quotes = b"", 0
    if record:
        yield record
