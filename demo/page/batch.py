"""Many photos, loose or zipped, through the queue one at a time; what was found as CSV and JSON."""

import asyncio
import io
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from zipfile import ZipInfo

from demo.page import uploads
from demo.page.archive import Archive
from demo.service.limits import Limits
from demo.service.problem import Problem
from demo.service.queue import Answer, Serving
from demo.service.reading import Photo
from runtime.classifier import Prediction
from runtime.classify import COLUMNS, csv_line, csv_row, json_row
from runtime.preprocess import decode

PATIENCE = 0.5  # seconds until a full queue is tried again
THUMBNAIL = 160  # pixels of the longer side
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes a cell for that begins so


@dataclass(frozen=True)
class Row:
    """What a photo shows, or the refusal of what is none; `thumbnail` is a small JPEG of one that is not sure."""

    name: str
    prediction: Prediction | None = None
    problem: Problem | None = None
    thumbnail: bytes = b""


@dataclass(frozen=True)
class _Source:
    """A photo's name, and how to open it for a while, which may raise Problem."""

    name: str
    opened: Callable[[], AbstractContextManager[Photo]]


class Batch:
    """The photos of some uploads, Gradio's dicts with `path` and `orig_name`; a zip counts as its files.

    Use it as a context manager. Raises Problem when a zip cannot be opened, or there are more than `limits.batch`.
    """

    def __init__(self, given: Sequence[Any], limits: Limits) -> None:
        self._open = ExitStack()
        try:
            self._sources = [source for upload in given for source in self._of(upload, limits)]
            if len(self._sources) > limits.batch:
                detail = f"{len(self._sources):,} photos are more than {limits.batch}; send the others in another batch"
                raise Problem(413, "too-many-photos", detail)
        except BaseException:
            self._open.close()
            raise

    def __len__(self) -> int:
        return len(self._sources)

    def _of(self, upload: Any, limits: Limits) -> Iterator[_Source]:
        name = uploads.name_of(upload)
        if not name.lower().endswith(".zip"):
            yield _Source(name, lambda: uploads.opened(upload))
            return
        archive = self._open.enter_context(Archive(self._open.enter_context(uploads.opened(upload)), name, limits))
        for entry in archive.entries:
            yield _Source(f"{name}/{entry.filename}", partial(_unpacked, archive, entry))

    async def rows(self, serving: Serving) -> AsyncGenerator[Row, None]:
        """A row for each photo as soon as it is there. One at a time is in the queue, so that others come between."""
        for source in self._sources:
            try:
                with await asyncio.to_thread(source.opened) as photo:
                    row = await _row(serving, source.name, photo)
            except Problem as problem:
                row = Row(source.name, problem=problem)
            yield row

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _unpacked(archive: Archive, entry: ZipInfo) -> AbstractContextManager[Photo]:
    return nullcontext(archive.read(entry))


async def _row(serving: Serving, name: str, photo: Photo) -> Row:
    answer = await _answer(serving, photo)
    [prediction] = answer.predictions
    unsure = not prediction.sure
    return Row(name, prediction, None, await asyncio.to_thread(thumbnail, photo, serving.limits) if unsure else b"")


async def _answer(serving: Serving, photo: Photo) -> Answer:
    """As `Serving.classify`, but patient while the queue is full: a batch has time."""
    end = time.monotonic() + serving.limits.seconds
    while True:
        try:
            with serving.place():
                return await serving.classify([photo])
        except Problem as problem:
            if problem.cause != "queue-full" or time.monotonic() > end:
                raise
        await asyncio.sleep(PATIENCE)


def thumbnail(photo: Photo, limits: Limits) -> bytes:
    """A small JPEG of a photo, upright."""
    small, encoded = decode(photo, THUMBNAIL, bounds=limits.photo), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(encoded, "JPEG")
    return encoded.getvalue()


def as_csv(rows: Sequence[Row], served_by: str) -> str:
    """As `python -m runtime classify` writes it; a photo that was not read has empty cells.

    A name that a spreadsheet would run as a formula has an apostrophe before it.
    """
    lines = [csv_line(COLUMNS)]
    for row in rows:
        name = f"'{row.name}" if row.name.startswith(FORMULA) else row.name
        empty = csv_line((name, *[""] * (len(COLUMNS) - 1)))
        lines.append(csv_row(name, row.prediction, served_by) if row.prediction else empty)
    return "".join(lines)


def as_json(rows: Sequence[Row], served_by: str) -> str:
    """One object: the photos as `json_row` of `runtime.classify` has them, and the unreadable ones."""
    photos = [json.loads(json_row(row.name, row.prediction, served_by)) for row in rows if row.prediction]
    unreadable = [{"photo": row.name, "reason": row.problem.detail} for row in rows if row.problem]
    return json.dumps({"photos": photos, "unreadable": unreadable}, indent=1)


def counts(rows: Sequence[Row]) -> Counter[str]:
    """How many photos of each class there are, those that the model is sure of, the most frequent first."""
    return Counter(row.prediction.label for row in rows if row.prediction and row.prediction.sure)
