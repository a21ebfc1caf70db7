"""Classify: a photo in; out come the dish, the measured time, why this candidate serves, and what it looked at."""

import base64
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from demo.page import camera, uploads
from demo.page.markup import dish_names, headline, machine, refused, rejected
from demo.page.texts import label, language_of, say, script
from demo.page.work import AS_SENT, QUIET, ask, counted
from demo.service.api import Answers
from demo.service.decoders import Decoders, Photo
from demo.service.engine import Engine
from demo.service.problem import Problem, without_folders
from demo.service.queue import Serving
from demo.service.shares import visitor_of
from runtime.classifier import Classifier, Prediction
from runtime.deployment import Deployment
from runtime.errors import BadModel, SajiError
from runtime.heatmap import Heatmap
from runtime.spec import ABSENT

SIDE = 720  # pixels of the longer side of a heat map's picture
# Gradio's example buttons hold a picture alone: a screen reader would call each one "button"
NAME_EXAMPLES = (
    "() => document.querySelectorAll('.gallery-item').forEach("
    f"(button, i) => button.ariaLabel = `${{{script('example')}}} ${{i + 1}}`)"
)
# HEIC is decoded here, but few browsers show it: the photo's box would be empty beside its answer
TELL_UNSHOWN = (
    "() => ['error', 'load'].forEach(kind => document.addEventListener(kind, ({ target }) => {"
    "const frame = target.closest?.('#photo .image-frame'); "
    f"if (frame) kind == 'error' ? frame.dataset.unshown = {script('unshown')} : delete frame.dataset.unshown "
    "}, true))"
)

log = logging.getLogger("saji.heat")


def build(serving: Serving, opened: Callable[..., Any], top: int, examples: Sequence[Path]) -> None:
    """The first tab, and the API of Gradio's clients; an answer shows `top` classes, `examples` are there to click."""
    photo, answer, note, look_button, heat = _photo_and_answer(top)
    if examples:
        pictures = [[str(path)] for path in examples]
        gr.Examples(pictures, photo, label=label("examples"), api_visibility="private")
        opened(js=NAME_EXAMPLES)
    camera.view(opened)
    opened(js=TELL_UNSHOWN)
    with gr.Accordion(label("why"), open=False):
        why = gr.HTML()

    def reasons(request: gr.Request) -> str:
        return why_of(serving.engine.classifier, serving.engine.deployment, language_of(request))

    opened(reasons, None, why, **QUIET)
    _connect(serving, photo, answer, note)
    _connect_heat(serving, photo, look_button, heat)


def _photo_and_answer(top: int) -> tuple[gr.Image, gr.Label, gr.HTML, gr.Button, gr.HTML]:
    with gr.Row():
        with gr.Column():
            photo = gr.Image(
                label=label("photo"),
                placeholder=str(label("drop")),
                alt_text="the photo to name",
                height=340,
                buttons=["fullscreen"],
                sources=["upload", "clipboard"],
                elem_id="photo",
            )
            camera.buttons()
        with gr.Column():
            answer = gr.Label(label=label("dish"), num_top_classes=top)
            note = gr.HTML(_hint(str(label("hint"))))
            look_button = gr.Button(label("look"), size="sm")
            heat = gr.HTML()
    return photo, answer, note, look_button, heat


def _hint(text: str) -> str:
    return f'<p class="quiet">{text}</p>'


def _connect(serving: Serving, photo: gr.Image, answer: gr.Label, note: gr.HTML) -> None:
    async def show(upload: dict[str, Any] | None, request: gr.Request) -> Any:
        """The answer to a photo as components: photo, probabilities by label, note."""
        if upload is None:  # emptied, by the visitor (see below) or by a refusal
            return gr.skip()
        language = language_of(request)
        try:
            with counted(), uploads.opened(upload) as file:
                result = await ask(serving, file, visitor_of(request.client))
        except Problem as problem:  # an empty box rather than the browser's broken picture
            return None, {}, refused(problem, language)
        [prediction], names = result.predictions, dish_names(result.classifier, language)
        said: Any = {names[name]: value for name, value in prediction.probabilities.items()}
        if result.classifier.spec.guard and not prediction.sure:  # the likeliest class is not what is answered
            said = headline(result.classifier, prediction, language)
        return gr.skip(), said, note_on(prediction, result.classifier, language)

    async def classify(photo: gr.FileData, request: gr.Request) -> dict[str, Any]:
        """Name the dish on a photo; the probabilities of all classes by label, most likely first."""
        try:
            with counted(), uploads.opened(photo) as file:  # the annotation is for clients; a dict comes
                answers = Answers.of(await ask(serving, file, visitor_of(request.client)))
        except Problem as problem:
            raise gr.Error(f"{problem.detail}.", print_exception=False) from None
        return answers.answers[0].model_dump() | answers.model_dump(exclude={"answers"})

    photo.change(show, photo, [photo, answer, note], show_progress_on=answer, **AS_SENT)
    # In the browser: pasting clears first, and a clearing that came back late would wipe the answer to the paste
    hint = _hint(f"${{{script('hint')}}}")  # filled in there
    photo.clear(None, None, [answer, note], js=f"() => [{{}}, `{hint}`]")
    gr.api(classify, api_name="classify", concurrency_limit=None)


def _connect_heat(serving: Serving, photo: gr.Image, look_button: gr.Button, heat: gr.HTML) -> None:
    async def show(upload: dict[str, Any] | None, request: gr.Request) -> str:
        """Photo and heat map, or why there is none, as HTML."""
        language = language_of(request)
        names = dish_names(serving.engine.classifier, language)  # of the engine that is asked, not of a later one
        if upload is None:
            return _hint(say(language, "hint"))
        try:
            with counted(), serving.place(visitor_of(request.client)), uploads.opened(upload) as file:
                picture = await look(serving, file)
        except Problem as problem:
            return refused(problem, language)
        return heat_of(picture, names.get(picture.label, picture.label), language)

    click = look_button.click(show, photo, heat, show_progress_on=heat, **AS_SENT)
    # The map of another photo, and one that is still on its way, would be misread
    photo.change(None, None, heat, js="() => ''", cancels=[click])


@dataclass(frozen=True)
class HeatPicture:
    """The class that the map is of, by its name in the model, and photo and map as one JPEG."""

    label: str
    jpeg: bytes


async def look(serving: Serving, photo: Photo) -> HeatPicture:
    """The heat map of a photo by the model that serves, within a `place` of `serving`.

    Raises Problem: 404 when the model has none, and as `serving.classify` for the photo and the waiting.
    """
    engine = serving.engine
    work = partial(_look, engine, serving.path.parent, photo, serving.decoders)
    (result,) = await serving.outcomes(engine, [work])
    if isinstance(result, BaseException):
        raise result
    return result


def _look(engine: Engine, out: Path, photo: Photo, decoders: Decoders) -> HeatPicture:
    heatmap = _heatmap(engine, out)
    heat = heatmap.of(decoders.pixels(photo, heatmap.spec.geometry)[0])
    jpeg = io.BytesIO()
    heat.over(decoders.picture(photo, SIDE)).save(jpeg, "JPEG", quality=85)
    return HeatPicture(heat.label, jpeg.getvalue())


@lru_cache(maxsize=1)  # of this very engine, also where its folder is exported again while it serves
def _heatmap(engine: Engine, out: Path) -> Heatmap:
    try:
        return Heatmap.of_model(*engine.exported(out))
    except SajiError as error:
        log.warning("no heat map", extra={"facts": {"reason": str(error)}})
        # What is wrong with a file names its folder, which is nobody's business
        detail = "this model's heat map cannot be opened" if isinstance(error, BadModel) else str(error)
        raise Problem(404, "no-heat-map", detail) from None


def heat_of(picture: HeatPicture, dish: str, language: str) -> str:
    """A heat map of `dish` over its photo, as HTML; the picture is in the page itself, and in no file of ours."""
    source = f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}"
    alt, caption = (escape(say(language, key, dish=dish)) for key in ("heat_alt", "heat"))
    below = f'<figcaption class="quiet">{caption}</figcaption>'
    return f'<figure class="heat"><img src="{source}" alt="{alt}">{below}</figure>'


def note_on(prediction: Prediction, classifier: Classifier, language: str) -> str:
    """What stands below an answer, as HTML: the measured time with its parts, and the model's own doubt."""
    parts = " + ".join(f"{say(language, part)}&nbsp;{spent:.1f}" for part, spent in prediction.milliseconds.items())
    total = sum(prediction.milliseconds.values())
    time = f'<p class="time"><b>{total:.1f} ms</b><span class="quiet">= {parts}</span></p>'
    if prediction.answer == ABSENT:
        return time
    if classifier.spec.guard:
        dish = dish_names(classifier, language)[prediction.label]
        return f'<p class="notice">{say(language, f"guarded_{prediction.answer}", dish=escape(dish))}</p>{time}'
    if prediction.sure:
        return time
    return f'<p class="notice">{say(language, "not_sure", count=len(prediction.probabilities))}</p>{time}'


def why_of(classifier: Classifier, deployment: Deployment, language: str) -> str:
    """Why this candidate serves and each other does not, as HTML."""
    lines = [f"{classifier.candidate.name}: {classifier.reason or say(language, 'no_reason')}."]
    lines += [say(language, "passed_over", reason=without_folders(reason)) for reason in classifier.passed_over]
    lines.append(say(language, "measured_on", machine=machine(deployment.machine, language)))
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="why">{paragraphs}{rejected(classifier, deployment, language)}</div>'
