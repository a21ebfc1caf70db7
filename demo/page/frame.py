"""The frame of the page: what serves now above the tabs, and the mount behind the API."""

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from demo.page.door import Door
from demo.page.tabs import about, batch, benchmark, classify, compare
from demo.page.texts import label, language_of, say
from demo.service.guard import UPLOAD
from demo.service.limits import Limits
from demo.service.queue import Serving
from runtime.classifier import Classifier

FONT = ["system-ui", "sans-serif"]  # what the visitor's system has: no font is fetched


def mount(page: gr.Blocks, app: FastAPI, limits: Limits) -> None:
    """Let `page` answer all paths of `app` that are not its own, in our look and without Gradio's footer."""
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=gr.themes.Default(primary_hue="emerald", neutral_hue="stone", font=FONT, font_mono=FONT),
        css_paths=Path(__file__).with_name("page.css"),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size=limits.upload,
        i18n=label,
    )
    gradio = app.router.routes.pop().app  # type: ignore[attr-defined]
    examples = sum(len(block.raw_samples or ()) for block in page.blocks.values() if isinstance(block, gr.Dataset))
    door = Door(gradio, [number for number, function in page.fns.items() if function.fn], examples)

    async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
        await door(scope, receive, send)
        if scope["path"] == UPLOAD:
            _forget_broken_uploads(Path(gradio.uploaded_file_dir), limits.upload_seconds)

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


def build(serving: Serving, top: int = 5, examples: Sequence[Path] = ()) -> gr.Blocks:
    """The page of `serving`; an answer shows `top` classes, `examples` are pictures to click."""
    # Uploads are somebody's photos: Gradio forgets them after an hour (examples stay)
    with gr.Blocks(title="saji", delete_cache=(600, 3600)) as page:
        head = gr.HTML(head_of(serving.engine.classifier, "en"))
        with gr.Tab(label("classify")):
            classify.build(serving, page.load, top, examples)
        with gr.Tab(label("compare")):
            compare.build(serving)
        with gr.Tab(label("batch")):
            batch.build(serving)
        with gr.Tab(label("benchmark")) as tab:
            benchmark.build(serving, tab.select)
        with gr.Tab(label("about")) as tab:
            about.build(serving, tab.select)

        def now(request: gr.Request) -> str:
            return head_of(serving.engine.classifier, language_of(request))

        page.load(now, None, head, show_progress="hidden", api_visibility="private")
    return page


def head_of(classifier: Classifier, language: str) -> str:
    """What stands above the tabs, as HTML: the dishes, what serves, and a warning where it never saw a photo."""
    dishes = list(classify.shown(classifier).values())
    named = escape(f": {', '.join(dishes)}") if len(dishes) <= 20 else ""
    knows = say(language, "knows", count=len(dishes), named=named)
    drawn = f'<p class="notice">{say(language, "drawn")}</p>' if classifier.spec.data.get("drawn") else ""
    return f"<h1>{say(language, 'title')}</h1><p>{knows}</p>{_chips(classifier, language)}{drawn}"


def _chips(classifier: Classifier, language: str) -> str:
    candidate = classifier.candidate
    facts = [*candidate.name.split(" · "), say(language, "parity", verdict=candidate.verdict)]
    if candidate.figures:
        facts.append(say(language, "accuracy", value=candidate.figures.accuracy))
    chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return f'<p class="chips"><b>{say(language, "served_by")}</b>{chips}</p>'
