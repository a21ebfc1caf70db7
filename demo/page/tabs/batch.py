"""Batch: many photos or a zip; a table as it fills, the unsure ones as pictures, CSV and JSON to take along."""

import asyncio
import base64
import io
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from zipfile import ZipInfo

import gradio as gr
from markupsafe import Markup, escape

from demo.page import uploads
from demo.page.markup import dish_names, headline, progress, table
from demo.page.texts import label, refusal, say
from demo.page.work import Turns, ask, counted
from demo.service.decoders import Decoders, Photo
from demo.service.limits import Limits
from demo.service.problem import Problem
from demo.service.queue import Result, Serving
from demo.service.shares import OWN
from runtime.classifier import Classifier, Prediction
from runtime.classify import COLUMNS, csv_row, json_row
from runtime.rowfile import csv_line
from runtime.spec import ABSENT, UNKNOWN
from runtime.terminal import printable

HEADS = ("file", "answer", "probability", "sure")
TICK = 0.3  # seconds between two states of the page
PATIENCE = 0.5  # seconds until a full queue is tried again
THUMBNAIL = 160  # pixels of the longer side


def build(serving: Serving) -> None:
    """Files, a button, and what they show."""
    with gr.Row():
        with gr.Column():
            files = gr.File(label=label("files"), file_count="multiple", height=200)
        with gr.Column():
            gr.HTML(f"<p>{label('batch_note')}</p>")
            start = gr.Button(label("batch_start"), variant="primary")

    async def states(upload: Any, language: str, visitor: str) -> AsyncGenerator[str, None]:
        """What the page shows, as HTML, every TICK and in the end. Raises Problem for a batch that is not begun."""
        rows: list[Row] = []
        shown_at = 0.0
        with await asyncio.to_thread(Batch, upload, serving.limits) as batch:
            async with aclosing(batch.rows(serving, visitor)) as fresh:
                async for row in fresh:
                    rows.append(row)
                    if time.monotonic() - shown_at > TICK:
                        shown_at = time.monotonic()
                        sentence = say(language, "batch_progress", done=len(rows), count=len(batch))
                        above = progress(len(rows), len(batch), sentence)
                        yield _stacked(above, table_of(rows, language))
        above = summary_of(rows, language) + downloads_of(rows, language)
        yield _stacked(above, table_of(rows, language), unsure_of(rows, language))

    Turns("batches", serving.limits).on_click(start, files, gr.HTML(), states)


@dataclass(frozen=True)
class Row:
    """What a file shows, or why it cannot be read; `thumbnail` is a small JPEG of a photo that got no name.

    `classifier` is the one that answered: another may serve by the end of a batch.
    """

    name: str
    prediction: Prediction | None = None
    classifier: Classifier | None = None
    problem: Problem | None = None
    thumbnail: bytes = b""


@dataclass(frozen=True)
class _Source:
    """A photo's name, and how to open it for a while, which may raise Problem."""

    name: str
    open: Callable[[], AbstractContextManager[Photo]]


class Batch(AbstractContextManager["Batch"]):
    """The photos of some uploads, Gradio's dicts with `path` and `orig_name`; a zip counts as its files.

    Use it as a context manager. Raises Problem when a zip cannot be opened, or there are more than `limits.batch`.
    """

    def __init__(self, files: Sequence[Any], limits: Limits) -> None:
        self._open = ExitStack()
        try:
            self._sources = [source for file in files for source in self._of(file, limits)]
            if len(self._sources) > limits.batch:
                detail = f"{len(self._sources):,} photos are more than {limits.batch}; send the others in another batch"
                raise Problem(413, "too-many-photos", detail)
        except BaseException:
            self._open.close()
            raise

    def __len__(self) -> int:
        return len(self._sources)

    def _of(self, file: Any, limits: Limits) -> Iterator[_Source]:
        name = uploads.name_of(file)
        if not name.lower().endswith(".zip"):
            yield _Source(name, partial(uploads.opened, file))
            return
        zipped = self._open.enter_context(uploads.opened(file))
        archive = self._open.enter_context(uploads.Archive(zipped, name, limits))
        for entry in archive.entries:
            yield _Source(f"{name}/{entry.filename}", partial(_unpacked, archive, entry))

    async def rows(self, serving: Serving, visitor: str = OWN) -> AsyncGenerator[Row, None]:
        """A row for each photo as soon as it is there. One at a time is in the queue, so that others come between."""
        for source in self._sources:
            try:
                with counted(), await asyncio.to_thread(source.open) as photo:
                    row = await _row(serving, source.name, photo, visitor)
            except Problem as problem:
                row = Row(source.name, problem=problem)
            yield row

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _unpacked(archive: uploads.Archive, entry: ZipInfo) -> AbstractContextManager[Photo]:
    return nullcontext(archive.read(entry))


async def _row(serving: Serving, name: str, photo: Photo, visitor: str) -> Row:
    result = await _ask_patiently(serving, photo, visitor)
    [prediction] = result.predictions
    if prediction.answer != UNKNOWN:
        return Row(name, prediction, result.classifier)
    return Row(
        name, prediction, result.classifier, thumbnail=await asyncio.to_thread(thumbnail, photo, serving.decoders)
    )


async def _ask_patiently(serving: Serving, photo: Photo, visitor: str) -> Result:
    """As `Serving.classify`, but waiting while the queue or a share of it is full: a batch has time."""
    end = time.monotonic() + serving.limits.seconds
    while True:
        try:
            return await ask(serving, photo, visitor)
        except Problem as problem:
            if problem.cause not in ("queue-full", "your-share") or time.monotonic() > end:
                raise
        await asyncio.sleep(PATIENCE)


def thumbnail(photo: Photo, decoders: Decoders) -> bytes:
    """A small JPEG of a photo, upright."""
    encoded = io.BytesIO()
    decoders.picture(photo, THUMBNAIL).save(encoded, "JPEG")
    return encoded.getvalue()


def as_csv(rows: Sequence[Row]) -> str:
    """As `python -m runtime classify` writes it; a photo that was not read has empty cells."""
    lines = [csv_line(COLUMNS)]
    for row in rows:
        if row.prediction and row.classifier:
            lines.append(csv_row(row.name, row.prediction, row.classifier.served_by))
        else:
            lines.append(csv_line((row.name, *[""] * (len(COLUMNS) - 1))))
    return "".join(lines)


def as_json(rows: Sequence[Row]) -> str:
    """One object: the photos as `json_row` of `runtime.classify` has them, and the unreadable ones."""
    photos = [
        json.loads(json_row(row.name, row.prediction, row.classifier.served_by))
        for row in rows
        if row.prediction and row.classifier
    ]
    unreadable = [{"photo": row.name, "reason": row.problem.detail} for row in rows if row.problem]
    return json.dumps({"photos": photos, "unreadable": unreadable}, indent=1)


def counts(rows: Sequence[Row]) -> Counter[str]:
    """How many photos of each class there are, of those that the model is sure of."""
    return Counter(row.prediction.label for row in rows if row.prediction and row.prediction.sure)


def _stacked(*parts: str) -> str:
    return f'<div class="stack">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def table_of(rows: Sequence[Row], language: str) -> str:
    """A line for each photo, as HTML."""
    cells = [_cells(row, language) for row in rows]
    return table([say(language, head) for head in HEADS], cells, cards=True)


def _cells(row: Row, language: str) -> Sequence[object]:
    name, prediction, classifier = printable(row.name), row.prediction, row.classifier
    if row.problem:
        return name, Markup('<span class="unread">{}</span>').format(refusal(language, row.problem))
    assert prediction and classifier
    dish = dish_names(classifier, language)[prediction.label]
    if classifier.spec.guard and not prediction.sure:
        dish = headline(classifier, prediction, language)
    sure: object = say(language, "yes")
    if prediction.answer == UNKNOWN:
        sure = Markup('<span class="otherwise">{}</span>').format(say(language, "no"))
    return name, dish, f"{prediction.probability:.1%}", sure


def summary_of(rows: Sequence[Row], language: str) -> str:
    """How many photos there are of each class, the most frequent first, unsure and unreadable, as HTML."""
    names = {
        name: dish
        for each in dict.fromkeys(row.classifier for row in rows if row.classifier)
        for name, dish in dish_names(each, language).items()
    }
    facts = [f"{names[name]} {count}" for name, count in counts(rows).most_common()]
    answers = Counter(row.prediction.answer for row in rows if row.prediction)
    unread = sum(row.problem is not None for row in rows)
    others = {"briefly_absent": answers[ABSENT], "unsure": answers[UNKNOWN], "unreadable": unread}
    facts += [f"{say(language, key)} {count}" for key, count in others.items() if count]
    chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return f'<p class="chips" role="status"><b>{say(language, "batch_done", count=len(rows))}</b>{chips}</p>'


def downloads_of(rows: Sequence[Row], language: str) -> str:
    """Links that hold the files themselves, so that none lies on the disk, as HTML."""
    files = {"csv": ("text/csv", as_csv(rows)), "json": ("application/json", as_json(rows))}
    links = [
        f'<a download="saji.{form}" href="data:{kind};base64,{base64.b64encode(text.encode()).decode()}">'
        f"{say(language, 'download', form=form.upper())}</a>"
        for form, (kind, text) in files.items()
    ]
    return f'<p class="downloads">{"".join(links)}</p>'


def unsure_of(rows: Sequence[Row], language: str) -> str:
    """The photos that the model is not sure of, small, as HTML; empty where there are none."""
    figures = "".join(_figure(row, language) for row in rows if row.thumbnail)
    return f'<h2>{say(language, "unsure_ones")}</h2><div class="thumbnails">{figures}</div>' if figures else ""


def _figure(row: Row, language: str) -> str:
    assert row.prediction and row.classifier
    name, perhaps = escape(printable(row.name)), escape(headline(row.classifier, row.prediction, language))
    picture = f'<img alt="{name}" src="data:image/jpeg;base64,{base64.b64encode(row.thumbnail).decode()}">'
    return f"<figure>{picture}<figcaption>{name}<br>{perhaps}</figcaption></figure>"
