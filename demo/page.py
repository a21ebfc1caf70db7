"""The page: a photo in; the dish, the measured time, what serves and why out. Mount it on any FastAPI app."""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from runtime.classifier import Classifier, Prediction
from runtime.deployment import Deployment
from runtime.errors import BadPhoto

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
# Gradio's example buttons hold a picture alone: a screen reader would call each one "button"
NAME_EXAMPLES = "() => document.querySelectorAll('.gallery-item').forEach((b, i) => b.ariaLabel = `Example ${i + 1}`)"


def web_app(page: gr.Blocks) -> FastAPI:
    """The page mounted on a new web application, in our look and without Gradio's footer."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # those pages load their scripts from a CDN
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=gr.themes.Default(primary_hue="emerald", neutral_hue="stone", font=FONT, font_mono=FONT),
        css=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size="64mb",  # a 43-megapixel JPEG has about 30
    )


def build_page(
    classifier: Classifier, examples: Sequence[Path] = (), top: int = 5, deployment: Deployment | None = None
) -> gr.Blocks:
    """The page of one classifier: `examples` are pictures to click, `top` is how many classes an answer shows.

    `deployment` adds the rejected candidates and the machine to "Why this one?".
    """

    shown = {name: name.replace("_", " ") for name in classifier.spec.classes}
    if len(set(shown.values())) < len(shown):  # two would be one on the page
        shown = {name: name for name in shown}

    def show(upload: dict[str, Any] | None) -> Any:
        if upload is None:  # emptied, by the visitor (see `clear`) or below
            return gr.skip()
        try:
            prediction = classifier(upload["path"])
        except BadPhoto as error:  # an empty box rather than the browser's broken picture
            return None, {}, f'<p class="problem" role="alert">{escape(str(error))}.</p>'
        probabilities = {shown[name]: value for name, value in prediction.probabilities.items()}
        return gr.skip(), probabilities, note_on(prediction)

    def classify(photo: gr.FileData) -> dict[str, Any]:
        """Name the dish on a photo; the probabilities of all classes by label, most likely first."""
        try:
            prediction = classifier(photo["path"])  # type: ignore[index]  # the annotation is for clients; a dict comes
        except BadPhoto as error:
            raise gr.Error(f"{error}.", print_exception=False) from None
        return {
            "label": prediction.label,
            "probabilities": prediction.probabilities,
            "sure": prediction.sure,
            "milliseconds": prediction.milliseconds,
            "served_by": classifier.candidate.name,
        }

    # Uploads are somebody's photos: Gradio forgets them after an hour (examples stay)
    with gr.Blocks(title="saji", delete_cache=(600, 3600)) as page:
        gr.HTML(f"<h1>Which dish is this?</h1>{_knows(list(shown.values()))}{_chips(classifier)}")
        if classifier.spec.data.get("drawn"):
            gr.HTML(DRAWN)
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
                answer = gr.Label(label="Dish", num_top_classes=top)
                note = gr.HTML(HINT)
        if examples:
            gr.Examples([[str(path)] for path in examples], photo, label="Examples", api_visibility="private")
            page.load(js=NAME_EXAMPLES)
        with gr.Accordion("Why this one?", open=False):
            gr.HTML(_why(classifier, deployment))
        # Without Gradio's preprocessing, which would decode, turn and convert the photo and write it anew: the file
        # comes as it was sent, and runtime.preprocess alone decides about pixels and says what is no picture.
        # One photo at a time through page and endpoint together, or the latencies would measure each other.
        one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "classifier"}
        outputs = [photo, answer, note]
        photo.change(show, photo, outputs, preprocess=False, show_progress_on=answer, api_visibility="private", **one)
        # In the browser: pasting clears first, and a clearing that came back late would wipe the answer to the paste
        photo.clear(None, None, [answer, note], js=f"() => [{{}}, {json.dumps(HINT)}]")
        gr.api(classify, api_name="classify", **one)
    # Gradio checks only in a launched page that a path is an upload: a mounted one (6.31) would open any file here
    page.has_launched = True
    return page


def note_on(prediction: Prediction) -> str:
    """What stands below an answer: the measured time with its parts, and the model's own doubt."""
    parts = " + ".join(f"{part}&nbsp;{milliseconds:.1f}" for part, milliseconds in prediction.milliseconds.items())
    total = sum(prediction.milliseconds.values())
    time = f'<p class="time"><b>{total:.1f} ms</b><span class="quiet">= {parts}</span></p>'
    if prediction.sure:
        return time
    return f'<p class="notice">Not sure: this may be none of the {len(prediction.probabilities)} dishes.</p>{time}'


def _knows(dishes: Sequence[str]) -> str:
    named = f": {', '.join(dishes)}" if len(dishes) <= 20 else ""
    return f"<p>saji knows {len(dishes)} dishes{escape(named)}.</p>"


def _chips(classifier: Classifier) -> str:
    candidate = classifier.candidate
    facts = [*candidate.name.split(" · "), f"parity: {candidate.verdict}"]
    if "accuracy" in candidate.figures:
        facts.append(f"accuracy {candidate.figures['accuracy']:.2f}")
    return f'<p class="chips"><b>served by</b>{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p>'


def _why(classifier: Classifier, deployment: Deployment | None) -> str:
    lines = [f"{classifier.candidate.name}: {classifier.reason or 'no reason is recorded'}."]
    lines += [f"Passed over, {reason}." for reason in classifier.passed_over]
    table = ""
    if deployment:
        lines.append(f"Measured on {_machine(deployment.machine)}.")
        rows = "".join(
            f"<tr><td>{escape(row['candidate'])}</td><td>{escape(row['reason'])}</td></tr>"
            for row in deployment.rejected
            if row["candidate"] != classifier.candidate.name  # a fallback that serves
        )
        if rows:
            table = f"<div><table><tr><th>Not chosen</th><th>Because</th></tr>{rows}</table></div>"
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
