"""Batch: many photos or a zip; a table as it fills, the unsure ones as pictures, CSV and JSON to take along."""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr
from markupsafe import Markup, escape

from demo.page.batch import Batch, Row, as_csv, as_json, counts
from demo.page.markup import progress, table
from demo.page.tabs.classify import shown
from demo.page.texts import label, language_of, refusal, say
from demo.page.turns import Turns
from demo.service.problem import Problem
from demo.service.queue import Serving
from runtime.classifier import Classifier
from runtime.classify import printable

HEADS = ("file", "answer", "probability", "sure")
TICK = 0.3  # seconds between two states of the page

State = tuple[Any, Any, Any]  # of the components: above the table, the table, the unsure ones


def build(serving: Serving) -> None:
    """Files, a button, and what was found."""
    turns = Turns("batches")
    with gr.Row():
        with gr.Column():
            files = gr.File(label=label("files"), file_count="multiple", height=200)
        with gr.Column():
            gr.HTML(f"<p>{label('batch_note')}</p>")
            start = gr.Button(label("batch_start"), variant="primary")
    outputs = [gr.HTML(), gr.HTML(), gr.HTML()]

    async def show(uploads: list[dict[str, Any]] | None, request: gr.Request) -> AsyncGenerator[State, None]:
        language = language_of(request)
        if not uploads:
            yield f'<p class="notice">{say(language, "no_photo")}</p>', "", ""
            return
        if turns.there:
            yield f'<p class="quiet" role="status">{say(language, "waiting", count=turns.there)}</p>', "", ""
        try:
            async with turns.take(), aclosing(_states(serving, uploads, language)) as states:
                async for state in states:
                    yield state
        except Problem as problem:
            yield f'<p class="problem" role="alert">{escape(refusal(language, problem))}</p>', "", ""

    start.click(
        show,
        files,
        outputs,
        preprocess=False,
        show_progress="hidden",
        api_visibility="private",
        concurrency_limit=None,
    )


async def _states(serving: Serving, uploads: list[dict[str, Any]], language: str) -> AsyncGenerator[State, None]:
    """What the page shows, every TICK and in the end. Raises Problem for a batch that is not begun."""
    rows: list[Row] = []
    shown_at = 0.0
    with await asyncio.to_thread(Batch, uploads, serving.limits) as batch:
        async with aclosing(batch.rows(serving)) as found:
            async for one in found:
                rows.append(one)
                if time.monotonic() - shown_at > TICK:
                    shown_at = time.monotonic()
                    sentence = say(language, "batch_progress", done=len(rows), count=len(batch))
                    above = progress(len(rows), len(batch), sentence)
                    yield above, table_of(rows, serving.engine.classifier, language), ""
    classifier = serving.engine.classifier
    above = summary_of(rows, classifier, language) + downloads_of(rows, classifier, language)
    yield above, table_of(rows, classifier, language), unsure_of(rows, classifier, language)


def table_of(rows: Sequence[Row], classifier: Classifier, language: str) -> str:
    """A line for each photo, as HTML."""
    names = shown(classifier)
    return table([say(language, head) for head in HEADS], [_cells(one, names, language) for one in rows], cards=True)


def _cells(one: Row, names: dict[str, str], language: str) -> Sequence[object]:
    name = printable(one.name)
    if one.problem:
        return name, Markup('<span class="unread">{}</span>').format(refusal(language, one.problem))
    assert one.prediction
    answer = names.get(one.prediction.label, one.prediction.label)
    doubt = (
        say(language, "yes")
        if one.prediction.sure
        else Markup('<span class="otherwise">{}</span>').format(say(language, "no"))
    )
    return name, answer, f"{one.prediction.probability:.1%}", doubt


def summary_of(rows: Sequence[Row], classifier: Classifier, language: str) -> str:
    """How many photos there are of each class, unsure and unreadable, as HTML."""
    names = shown(classifier)
    facts = [f"{names.get(name, name)} {count}" for name, count in counts(rows).most_common()]
    unsure = sum(bool(one.prediction and not one.prediction.sure) for one in rows)
    unread = sum(one.problem is not None for one in rows)
    facts += [f"{say(language, 'unsure')} {unsure}"] * bool(unsure)
    facts += [f"{say(language, 'unreadable')} {unread}"] * bool(unread)
    total = say(language, "batch_done", count=len(rows))
    return (
        f'<p class="chips" role="status"><b>{total}</b>{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p>'
    )


def downloads_of(rows: Sequence[Row], classifier: Classifier, language: str) -> str:
    """Links that hold the files themselves, so that none lies on the disk, as HTML."""
    served_by = classifier.served_by
    files = {"csv": ("text/csv", as_csv(rows, served_by)), "json": ("application/json", as_json(rows, served_by))}
    links = [
        f'<a download="saji.{form}" href="data:{kind};base64,{base64.b64encode(text.encode()).decode()}">'
        f"{say(language, 'download', form=form.upper())}</a>"
        for form, (kind, text) in files.items()
    ]
    return f'<p class="downloads">{"".join(links)}</p>'


def unsure_of(rows: Sequence[Row], classifier: Classifier, language: str) -> str:
    """The photos that the model is not sure of, small, as HTML; empty where there are none."""
    figures = "".join(_figure(one, shown(classifier), language) for one in rows if one.thumbnail)
    return f'<h2>{say(language, "unsure_ones")}</h2><div class="thumbnails">{figures}</div>' if figures else ""


def _figure(one: Row, names: dict[str, str], language: str) -> str:
    assert one.prediction
    name, label = escape(printable(one.name)), names.get(one.prediction.label, one.prediction.label)
    perhaps = say(language, "perhaps", label=escape(label), probability=one.prediction.probability)
    picture = f'<img alt="{name}" src="data:image/jpeg;base64,{base64.b64encode(one.thumbnail).decode()}">'
    return f"<figure>{picture}<figcaption>{name}<br>{perhaps}</figcaption></figure>"
