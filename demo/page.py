"""The page: a photo in; the dish, the measured time, what serves and why out."""

import json
import os
import re
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from demo.limits import Limits
from demo.metrics import ERRORS
from demo.problem import Problem
from demo.serving import Serving
from runtime.classifier import Classifier, Prediction
from runtime.deployment import Deployment

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which otherwise looks up remote hosts
import gradio as gr

CSS = """
.gradio-container > main, .gradio-container .fillable { max-width: 64rem !important; margin: 0 auto; }
.html-container { padding: 0 !important; }
.chips { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem; margin: 0; }
.chips b { font-weight: 400; }
.chips span { padding: .1rem .6rem; border-radius: 1rem; font-size: .85rem; white-space: nowrap;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); }
.quiet, .chips b { color: color-mix(in srgb, var(--body-text-color) 72%, transparent); }
.notice, .problem { padding: .6rem .8rem; border-radius: .5rem; margin: 0 0 .5rem; overflow-wrap: anywhere;
  background: color-mix(in srgb, orange 14%, transparent); border-left: .25rem solid orange; }
.problem { background: color-mix(in srgb, red 12%, transparent); border-color: red; }
.time b { font-size: 1.25rem; margin-right: .4rem; }
.time span { display: inline-block; }
.why p { margin: 0 0 .6rem; }
.why table { border: 0; border-collapse: collapse; width: 100%; font-size: .9rem; }
.why tr { border: 0; }
.why th, .why td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0;
  border: 0; border-top: 1px solid var(--border-color-primary); overflow-wrap: anywhere; }
.why td:first-child { width: 34%; min-width: 7rem; }
"""
FONT = ["system-ui", "sans-serif"]  # what the visitor's system has: no font is fetched
DRAWN = (
    '<p class="notice">This model was trained on <b>drawn pictures, not photos</b>: it knows drawings like the '
    "examples, and its answers on real photos mean nothing.</p>"
)
HINT = '<p class="quiet">Upload, take or paste a photo, or click an example.</p>'
# Below /v1 is the API, found or not; and Gradio would fetch any address of the internet for whoever asks
NOT_OF_THE_PAGE = re.compile(r"/v1/|/gradio_api/(file|proxy)[=/]+https?:", re.IGNORECASE)
# Gradio's example buttons hold a picture alone: a screen reader would call each one "button"
NAME_EXAMPLES = "() => document.querySelectorAll('.gallery-item').forEach((b, i) => b.ariaLabel = `Example ${i + 1}`)"


def mount(page: gr.Blocks, app: FastAPI, limits: Limits) -> None:
    """Let `page` answer all paths of `app` that are not its own, in our look and without Gradio's footer."""
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=gr.themes.Default(primary_hue="emerald", neutral_hue="stone", font=FONT, font_mono=FONT),
        css=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size=limits.bytes,
    )
    gradio = app.router.routes.pop().app  # type: ignore[attr-defined]
    not_found = app.router.default

    async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
        await (not_found if NOT_OF_THE_PAGE.match(scope["path"]) else gradio)(scope, receive, send)
        if scope["path"] == "/gradio_api/upload":
            _forget_broken_uploads(Path(gradio.uploaded_file_dir), limits.seconds)

    # As the last resort instead of a mount, which would match our own paths, too, when the method is a wrong one
    app.router.default = elsewhere
    gradio.stop_event = app.state.stopping  # ends the connection that each open page holds
    # Gradio checks only in a launched page that a path is an upload: a mounted one (6.31) would open any file here
    page.has_launched = True


def _forget_broken_uploads(folder: Path, seconds: float) -> None:
    """Delete what is left of uploads that broke off, which Gradio (6.31) forgets; none takes longer than `seconds`."""
    for file in folder.glob("tmp*"):
        if file.is_file() and time.time() - file.stat().st_mtime > seconds:
            file.unlink(missing_ok=True)


class Page:
    """What the page shows of `serving`, and what it answers; `top` is how many classes an answer shows."""

    def __init__(self, serving: Serving, top: int = 5) -> None:
        self.serving, self.top = serving, top

    def facts(self) -> tuple[str, str]:
        """The head of the page and "Why this one?", as HTML, of what serves now."""
        engine = self.serving.engine
        classifier = engine.classifier
        drawn = DRAWN if classifier.spec.data.get("drawn") else ""
        head = f"<h1>Which dish is this?</h1>{_knows(list(_shown(classifier).values()))}{_chips(classifier)}{drawn}"
        return head, _why(classifier, engine.deployment)

    async def show(self, upload: dict[str, Any] | None) -> Any:
        """The answer to a photo as components: photo, probabilities by label, note."""
        if upload is None:  # emptied, by the visitor (see `build`) or below
            return gr.skip()
        try:
            prediction, classifier = await self._ask(upload["path"])
        except Problem as problem:  # an empty box rather than the browser's broken picture
            return None, {}, f'<p class="problem" role="alert">{escape(problem.detail)}.</p>'
        shown = _shown(classifier)
        probabilities = {shown[name]: value for name, value in prediction.probabilities.items()}
        return gr.skip(), probabilities, note_on(prediction)

    async def classify(self, photo: gr.FileData) -> dict[str, Any]:
        """Name the dish on a photo; the probabilities of all classes by label, most likely first."""
        try:
            # the annotation is for clients; a dict comes
            prediction, classifier = await self._ask(photo["path"])  # type: ignore[index]
        except Problem as problem:
            raise gr.Error(f"{problem.detail}.", print_exception=False) from None
        return {
            "label": prediction.label,
            "probabilities": prediction.probabilities,
            "sure": prediction.sure,
            "milliseconds": prediction.milliseconds,
            "served_by": classifier.candidate.name,
        }

    async def _ask(self, path: str) -> tuple[Prediction, Classifier]:
        try:
            with self.serving.place():
                answer = await self.serving.classify([path])
        except Problem as problem:
            ERRORS.labels(problem.cause).inc()
            raise
        return answer.predictions[0], answer.classifier

    def build(self, examples: Sequence[Path] = ()) -> gr.Blocks:
        """The page itself; `examples` are pictures to click."""
        head, why = self.facts()
        # Uploads are somebody's photos: Gradio forgets them after an hour (examples stay)
        with gr.Blocks(title="saji", delete_cache=(600, 3600)) as page:
            top = gr.HTML(head)
            photo, answer, note = self._photo_and_answer()
            if examples:
                gr.Examples([[str(path)] for path in examples], photo, label="Examples", api_visibility="private")
                page.load(js=NAME_EXAMPLES)
            with gr.Accordion("Why this one?", open=False):
                bottom = gr.HTML(why)
            # The page is built once, but another deployment may serve by the time it is opened
            page.load(self.facts, None, [top, bottom], show_progress="hidden", api_visibility="private")
            self._connect(photo, answer, note)
        return page

    def _photo_and_answer(self) -> tuple[gr.Image, gr.Label, gr.HTML]:
        with gr.Row():
            with gr.Column():
                photo = gr.Image(
                    label="Photo",
                    placeholder="Drop a photo here\nor click to choose one",
                    alt_text="the photo to name",
                    height=340,
                    buttons=["fullscreen"],
                )
            with gr.Column():
                answer = gr.Label(label="Dish", num_top_classes=self.top)
                note = gr.HTML(HINT)
        return photo, answer, note

    def _connect(self, photo: gr.Image, answer: gr.Label, note: gr.HTML) -> None:
        # Without Gradio's preprocessing, which would decode, turn and convert the photo and write it anew: the file
        # comes as it was sent, and runtime.preprocess alone decides about pixels and says what is no picture.
        # Without Gradio's own limit of one at a time: `serving` has the queue.
        outputs = [photo, answer, note]
        photo.change(
            self.show,
            photo,
            outputs,
            preprocess=False,
            show_progress_on=answer,
            api_visibility="private",
            concurrency_limit=None,
        )
        # In the browser: pasting clears first, and a clearing that came back late would wipe the answer to the paste
        photo.clear(None, None, [answer, note], js=f"() => [{{}}, {json.dumps(HINT)}]")
        gr.api(self.classify, api_name="classify", concurrency_limit=None)


def note_on(prediction: Prediction) -> str:
    """What stands below an answer: the measured time with its parts, and the model's own doubt."""
    parts = " + ".join(f"{part}&nbsp;{milliseconds:.1f}" for part, milliseconds in prediction.milliseconds.items())
    total = sum(prediction.milliseconds.values())
    time = f'<p class="time"><b>{total:.1f} ms</b><span class="quiet">= {parts}</span></p>'
    if prediction.sure:
        return time
    return f'<p class="notice">Not sure: this may be none of the {len(prediction.probabilities)} dishes.</p>{time}'


def _shown(classifier: Classifier) -> dict[str, str]:
    """How each class is written on the page."""
    shown = {name: name.replace("_", " ") for name in classifier.spec.classes}
    # two would be one on the page
    return shown if len(set(shown.values())) == len(shown) else {name: name for name in shown}


def _knows(dishes: Sequence[str]) -> str:
    named = f": {', '.join(dishes)}" if len(dishes) <= 20 else ""
    return f"<p>saji knows {len(dishes)} dishes{escape(named)}.</p>"


def _chips(classifier: Classifier) -> str:
    candidate = classifier.candidate
    facts = [*candidate.name.split(" · "), f"parity: {candidate.verdict}"]
    if "accuracy" in candidate.figures:
        facts.append(f"accuracy {candidate.figures['accuracy']:.2f}")
    return f'<p class="chips"><b>served by</b>{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p>'


def _why(classifier: Classifier, deployment: Deployment) -> str:
    lines = [f"{classifier.candidate.name}: {classifier.reason or 'no reason is recorded'}."]
    lines += [f"Passed over, {reason}." for reason in classifier.passed_over]
    lines.append(f"Measured on {_machine(deployment.machine)}.")
    rows = "".join(
        f"<tr><td>{escape(row['candidate'])}</td><td>{escape(row['reason'])}</td></tr>"
        for row in deployment.rejected
        if row["candidate"] != classifier.candidate.name  # a fallback that serves
    )
    table = f"<div><table><tr><th>Not chosen</th><th>Because</th></tr>{rows}</table></div>" if rows else ""
    return f'<div class="why">{"".join(f"<p>{escape(line)}</p>" for line in lines)}{table}</div>'


def _machine(facts: dict[str, Any]) -> str:
    known = [
        facts.get("cpu"),
        facts.get("cores") and f"{facts['cores']} cores",
        " ".join(facts.get("cpu_features") or ()),
        facts.get("memory_gib") and f"{facts['memory_gib']} GiB",
        facts.get("gpu") or "no GPU",
        facts.get("system"),
    ]
    return ", ".join(str(fact) for fact in known if fact)
