"""The camera of the page: a photo by the phone's own app, which needs no HTTPS, and live answers to what it sees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse

from demo.page.markup import headline
from demo.page.texts import label, language_of, refusal, script
from demo.page.work import ask
from demo.service.api import photos_of
from demo.service.problem import Problem, problem_response
from demo.service.queue import Serving
from demo.service.shares import visitor_of

LIVE = "/live"
# Gradio fills in one of a text
WORDS = ("live", "keep", "stop", "needs_https", "no_camera", "no_camera_there", "in_use", "hidden", "interrupted")


def buttons() -> None:
    """The two buttons, within one thumb's reach on a phone."""
    with gr.Row(elem_classes="thumb"):
        gr.Button(label("take"), variant="primary", elem_id="take", min_width=120)
        gr.Button(label("live"), elem_id="live-start", min_width=120)


def view(opened: Callable[..., Any]) -> None:
    """What becomes of a photo, in a sentence; and, closed at first, what the live camera sees."""
    gr.HTML(
        f'<p class="quiet">{label("private")}</p>'
        '<dialog id="live"><video playsinline muted></video><output></output>'
        '<div><button class="keep"></button><button class="stop"></button></div></dialog>'
    )
    words = ", ".join(f"{word}: {script(word)}" for word in WORDS)
    wired = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    opened(js=f"() => ({wired.rstrip()})({{{words}}})")


def add_live(app: FastAPI) -> None:
    """Let the live camera of the page ask `app`, by the same queue and within the same limits as everybody."""
    app.add_api_route(LIVE, _live, methods=["POST"], include_in_schema=False)


async def _live(request: Request) -> JSONResponse:
    """One frame, an encoded photo as the body, in; what it shows as a sentence in the visitor's language out."""
    serving: Serving = request.app.state.serving
    language = language_of(request)  # type: ignore[arg-type]  # it has headers
    try:
        [photo] = await photos_of(request, 1)
        result = await ask(serving, photo, visitor_of(request.client))
    except Problem as problem:
        refused = problem_response(problem, request.scope)
        return JSONResponse({"says": refusal(language, problem)}, refused.status_code, dict(problem.headers or {}))
    return JSONResponse({"says": headline(result.classifier, result.predictions[0], language)})
