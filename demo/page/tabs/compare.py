"""Compare: one photo through every candidate that passed here, a row each as soon as it is there."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, BinaryIO

import gradio as gr
from markupsafe import Markup, escape

from demo.page import uploads
from demo.page.comparison import Row, compare, contenders
from demo.page.markup import progress, table
from demo.page.tabs.classify import ask, shown
from demo.page.texts import label, language_of, refusal, say
from demo.page.turns import Turns
from demo.service.problem import Problem
from demo.service.queue import Serving
from runtime.classifier import Classifier

HEADS = ("candidate", "answer", "probability", "inference_time", "difference")


def build(serving: Serving) -> None:
    """A photo, a button, and the rows."""
    turns = Turns("comparisons")
    with gr.Row():
        with gr.Column():
            photo = gr.Image(label=label("photo"), placeholder=str(label("drop")), height=260, buttons=["fullscreen"])
        with gr.Column():
            gr.HTML(f"<p>{label('compare_note')}</p>")
            start = gr.Button(label("compare_start"), variant="primary")
    found = gr.HTML()

    async def show(upload: dict[str, Any] | None, request: gr.Request) -> AsyncGenerator[str, None]:
        language = language_of(request)
        if upload is None:
            yield f'<p class="notice">{say(language, "no_photo")}</p>'
            return
        if turns.there:
            yield f'<p class="quiet" role="status">{say(language, "waiting", count=turns.there)}</p>'
        try:
            with uploads.opened(upload) as opened:
                async with turns.take(), aclosing(_compared(serving, opened, language)) as states:
                    async for state in states:
                        yield state
        except Problem as problem:
            yield f'<p class="problem" role="alert">{escape(refusal(language, problem))}</p>'

    # As in classify: the file comes as it was sent. Without Gradio's own queue: `turns` says when it is full
    start.click(
        show,
        photo,
        found,
        preprocess=False,
        show_progress="hidden",
        api_visibility="private",
        concurrency_limit=None,
    )


async def _compared(serving: Serving, photo: BinaryIO, language: str) -> AsyncGenerator[str, None]:
    """The state after each row, as HTML. Raises Problem for what is no photo."""
    prediction, classifier = await ask(serving, photo)
    photo.seek(0)
    encoded = await asyncio.to_thread(photo.read)
    entrants = contenders(serving.path, serving.engine.deployment)
    rows: list[Row] = []
    yield state_of(rows, len(entrants), prediction.label, classifier, language)
    async with aclosing(compare(encoded, entrants, serving.limits.seconds)) as found:
        async for one in found:
            rows.append(one)
            yield state_of(rows, len(entrants), prediction.label, classifier, language)


def state_of(rows: Sequence[Row], count: int, answer: str, classifier: Classifier, language: str) -> str:
    """The rows so far of `count`, and what they come to beside the `answer` of what serves, as HTML."""
    names = shown(classifier)
    if len(rows) < count:
        above = progress(len(rows), count, say(language, "compare_progress", done=len(rows), count=count))
    else:
        above = _summary(rows, answer, names.get(answer, answer), language)
    heads = [say(language, head) for head in HEADS]
    return above + table(heads, [_cells(one, answer, classifier, language) for one in rows], cards=True)


def _summary(rows: Sequence[Row], answer: str, shown_answer: str, language: str) -> str:
    answered = [one for one in rows if not one.problem]
    differing = sum(one.label != answer for one in answered)
    values = {"count": len(answered), "differing": differing, "label": escape(shown_answer)}
    sentences = [say(language, "compare_differ" if differing else "compare_agree", **values)]
    if len(answered) < len(rows):
        sentences.append(say(language, "compare_failed", count=len(rows) - len(answered)))
    return f'<p class="{"notice" if differing else "quiet"}" role="status">{" ".join(sentences)}</p>'


def _cells(one: Row, answer: str, classifier: Classifier, language: str) -> Sequence[object]:
    serves = one.candidate.key() == classifier.candidate.key()
    name = Markup("<b>{}</b>").format(one.name) if serves else one.name
    if one.problem:
        return name, Markup('<span class="unread">{}.</span>').format(one.problem)
    said = shown(classifier).get(one.label, one.label)
    said = said if one.label == answer else Markup('<span class="otherwise">≠ {}</span>').format(said)
    difference = "–" if one.difference is None else f"{one.difference:.4f}"
    if one.is_reference:
        difference = say(language, "reference")
    return name, said, f"{one.probabilities[one.label]:.1%}", f"{one.milliseconds:.2f} ms", difference
