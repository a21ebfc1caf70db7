"""A file of rows that is appended to as they come, and taken up again after a stop or a kill."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from runtime.errors import SajiError
from runtime.files import alone, as_text, make_folder


class RowFile:
    """JSON lines or CSV, each row about the photo that its first field names. Use it as a context manager.

    `photo in rows` says whether the file holds a row of that photo. Each row is handed to the system before the next
    is made; of a file whose writer was killed, the half-written last row is dropped. Without a `path` it holds nothing.
    Raises SajiError when the file holds something else, or a row whose column `served_by` is not this one: answers of
    two models are never mixed. The file is then left as it is.
    """

    def __init__(self, path: Path | None, form: str, columns: tuple[str, ...], served_by: str) -> None:
        self.path, self.form, self.columns, self.served_by = path, form, columns, served_by
        self.header = ",".join(columns).encode() + b"\n"
        self.photos: set[str] = set()
        self.file: BinaryIO | None = None
        self.opened = ExitStack()

    def __enter__(self) -> "RowFile":
        if self.path:
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
        assert self.file
        self.file.write(as_text(row).encode())
        self.file.flush()

    def _read(self, file: BinaryIO) -> int:
        """Note the photos of all complete rows; the bytes that these take."""
        file.seek(0)
        whole = 0
        for record in _records(file, self.form):
            start = b'{"photo": ' if self.form == "json" else b"" if whole else self.header
            try:
                if not record.startswith(start[: len(record)]):
                    raise ValueError
                if not record.endswith(b"\n"):
                    break
                if record != self.header:
                    row = self._fields(record.decode())
                    self._require_same_model(row["served_by"])
                    self.photos.add(as_text(row["photo"]))
            except (ValueError, KeyError, csv.Error):
                raise SajiError(
                    f"{self.path} holds something else than {self.form.upper()} rows of photos; name another file"
                ) from None
            whole += len(record)
        return whole

    def _fields(self, record: str) -> dict[str, str]:
        if self.form == "json":
            fields: dict[str, str] = json.loads(record)
            return fields
        return dict(zip(self.columns, next(csv.reader(io.StringIO(record, newline=""))), strict=True))

    def _require_same_model(self, served_by: str) -> None:
        if served_by != self.served_by:
            raise SajiError(
                f"{self.path} holds answers of {served_by}, which this model ({self.served_by}) would go on with; "
                "name another file for --output, or that model with --model"
            )


def _records(file: BinaryIO, form: str) -> Iterator[bytes]:
    """A file's records, the last perhaps torn (then it ends without a line end); in CSV, quotes may hold line ends."""
    record, quotes = b"", 0
    for line in file:
        record, quotes = record + line, quotes + line.count(b'"')
        if form == "json" or quotes % 2 == 0:
            yield record
            record, quotes = b"", 0
    if record:
        yield record.rstrip(b"\n")
