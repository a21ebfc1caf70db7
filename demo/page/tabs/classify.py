"""Classify: a photo in; the dish, the measured time and why this candidate serves out."""

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from demo.page import uploads
from demo.page.heat import Seen, look
from demo.page.markup import machine, rejected
from demo.page.texts import label, language_of, refusal, say, script
from demo.service.api import PhotoAnswer
from demo.service.metrics import ERRORS
from demo.service.problem import Problem
from demo.service.queue import Serving
from demo.service.reading import Photo
from runtime.classifier import Classifier, Prediction
from runtime.deployment import Deployment

# Gradio's example buttons hold a picture alone: a screen reader would call each one "button"
NAME_EXAMPLES = (
    "() => document.querySelectorAll('.gallery-item').forEach("
    f"(button, i) => button.ariaLabel = `${{{script('example')}}} ${{i + 1}}`)"
)


def build(serving: Serving, opened: Callable[..., Any], top: int, examples: Sequence[Path]) -> None:
    """The first tab, and the API of Gradio's clients; an answer shows `top` classes, `examples` are there to click."""
    photo, answer, note, asked, seen = _photo_and_answer(top)
    if examples:
        pictures = [[str(path)] for path in examples]
        gr.Examples(pictures, photo, label=label("examples"), api_visibility="private")
        opened(js=NAME_EXAMPLES)
    with gr.Accordion(label("why"), open=False):
        why = gr.HTML()

    def reasons(request: gr.Request) -> str:
        return why_of(serving.engine.classifier, serving.engine.deployment, language_of(request))

    opened(reasons, None, why, show_progress="hidden", api_visibility="private")
    _connect(serving, photo, answer, note)
    _connect_heat(serving, photo, asked, seen)


def _photo_and_answer(top: int) -> tuple[gr.Image, gr.Label, gr.HTML, gr.Button, gr.HTML]:
    with gr.Row():
        with gr.Column():
            photo = gr.Image(
                label=label("photo"),
                placeholder=str(label("drop")),
                alt_text="the photo to name",
                height=340,
                buttons=["fullscreen"],
            )
        with gr.Column():
            answer = gr.Label(label=label("dish"), num_top_classes=top)
            note = gr.HTML(_hint(str(label("hint"))))
            asked = gr.Button(label("look"), size="sm")
            seen = gr.HTML()
    return photo, answer, note, asked, seen


def _hint(text: str) -> str:
    return f'<p class="quiet">{text}</p>'


def _refused(problem: Problem, language: str) -> str:
    return f'<p class="problem" role="alert">{escape(refusal(language, problem))}</p>'


def _connect(serving: Serving, photo: gr.Image, answer: gr.Label, note: gr.HTML) -> None:
    async def show(upload: dict[str, Any] | None, request: gr.Request) -> Any:
        """The answer to a photo as components: photo, probabilities by label, note."""
        if upload is None:  # emptied, by the visitor (see below) or by a refusal
            return gr.skip()
        language = language_of(request)
        try:
            with uploads.opened(upload) as opened:
                prediction, classifier = await ask(serving, opened)
        except Problem as problem:  # an empty box rather than the browser's broken picture
            return None, {}, _refused(problem, language)
        names = shown(classifier)
        probabilities = {names[name]: value for name, value in prediction.probabilities.items()}
        return gr.skip(), probabilities, note_on(prediction, language)

    async def classify(photo: gr.FileData) -> dict[str, Any]:
        """Name the dish on a photo; the probabilities of all classes by label, most likely first."""
        try:
            with uploads.opened(photo) as opened:  # the annotation is for clients; a dict comes
                prediction, classifier = await ask(serving, opened)
        except Problem as problem:
            raise gr.Error(f"{problem.detail}.", print_exception=False) from None
        return {**PhotoAnswer.of(prediction).model_dump(), "served_by": classifier.candidate.name}

    # Without Gradio's preprocessing, which would decode, turn and convert the photo and write it anew: the file
    # comes as it was sent, and runtime.preprocess alone decides about pixels and says what is no picture.
    # Without Gradio's own limit of one at a time: `serving` has the queue.
    photo.change(
        show,
        photo,
        [photo, answer, note],
        preprocess=False,
        show_progress_on=answer,
        api_visibility="private",
        concurrency_limit=None,
    )
    # In the browser: pasting clears first, and a clearing that came back late would wipe the answer to the paste
    hint = _hint(f"${{{script('hint')}}}")  # filled in there
    photo.clear(None, None, [answer, note], js=f"() => [{{}}, `{hint}`]")
    gr.api(classify, api_name="classify", concurrency_limit=None)


def _connect_heat(serving: Serving, photo: gr.Image, asked: gr.Button, seen: gr.HTML) -> None:
    async def show(upload: dict[str, Any] | None, request: gr.Request) -> str:
        """Photo and heat map, or why there is none, as HTML."""
        language = language_of(request)
        if upload is None:
            return _hint(say(language, "hint"))
        try:
            with _counted_place(serving), uploads.opened(upload) as opened:
                found = await look(serving, opened)
        except Problem as problem:
            return _refused(problem, language)
        return heat_of(found, shown(serving.engine.classifier).get(found.label, found.label), language)

    clicked = asked.click(
        show, photo, seen, preprocess=False, show_progress_on=seen, api_visibility="private", concurrency_limit=None
    )
    # The map of another photo, and one that is still on its way, would be misread
    photo.change(None, None, seen, js="() => ''", cancels=[clicked])


@contextmanager
def _counted_place(serving: Serving) -> Iterator[None]:
    """A place of the queue; a Problem within it is counted."""
    try:
        with serving.place():
            yield
    except Problem as problem:
        ERRORS.labels(problem.cause).inc()
        raise


async def ask(serving: Serving, photo: Photo) -> tuple[Prediction, Classifier]:
    """Classify a photo within a place of the queue. Raises Problem, which is counted."""
    with _counted_place(serving):
        answer = await serving.classify([photo])
    return answer.predictions[0], answer.classifier


def heat_of(seen: Seen, dish: str, language: str) -> str:
    """A heat map of `dish` over its photo, as HTML; the picture is in the page itself, and in no file of ours."""
    source = f"data:image/jpeg;base64,{base64.b64encode(seen.jpeg).decode()}"
    alt, caption = (escape(say(language, key, dish=dish)) for key in ("heat_alt", "heat"))
    below = f'<figcaption class="quiet">{caption}</figcaption>'
    return f'<figure class="heat"><img src="{source}" alt="{alt}">{below}</figure>'


def shown(classifier: Classifier) -> dict[str, str]:
    """How each class is written on the page."""
    names = {name: name.replace("_", " ") for name in classifier.spec.classes}
    # two would be one on the page
    return names if len(set(names.values())) == len(names) else {name: name for name in names}


def note_on(prediction: Prediction, language: str) -> str:
    """What stands below an answer, as HTML: the measured time with its parts, and the model's own doubt."""
    parts = " + ".join(f"{say(language, part)}&nbsp;{spent:.1f}" for part, spent in prediction.milliseconds.items())
    total = sum(prediction.milliseconds.values())
    time = f'<p class="time"><b>{total:.1f} ms</b><span class="quiet">= {parts}</span></p>'
    if prediction.sure:
        return time
    return f'<p class="notice">{say(language, "not_sure", count=len(prediction.probabilities))}</p>{time}'


def why_of(classifier: Classifier, deployment: Deployment, language: str) -> str:
    """Why this candidate serves and each other does not, as HTML."""
    lines = [f"{classifier.candidate.name}: {classifier.reason or say(language, 'no_reason')}."]
    lines += [say(language, "passed_over", reason=reason) for reason in classifier.passed_over]
    lines.append(say(language, "measured_on", machine=machine(deployment.machine, language)))
    told = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="why">{told}{rejected(classifier, deployment, language)}</div>'
