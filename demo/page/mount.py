"""The page behind the API, and what of Gradio is reachable there: what the page and Gradio's clients use, no more."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from fastapi import FastAPI
from gradio import route_utils
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.page.camera import add_live
from demo.page.texts import label
from demo.page.uploads import Room, opened
from demo.service.api import Whole
from demo.service.guard import UPLOAD
from demo.service.limits import Limits
from demo.service.problem import Problem
from demo.service.shares import visitor_of

FONT = ["system-ui", "sans-serif"]  # what the visitor's system has: no font is fetched
PAGES = r"/|/config/?|/theme\.css|/gradio_api/theme\.css|/(assets|static|svelte)/.+|/favicon\.ico|/manifest\.json"
# Gradio serves below file= what lies in its upload folder, and would fetch any address for whoever asks
READS = r"/gradio_api/(info/?|startup-events|upload_progress|queue/data|heartbeat/\w+|file=(?!\w+:)[^?]+)"
CALL = "/gradio_api/call/classify"
NUMBERED = ("/gradio_api/queue/join", "/gradio_api/run/predict")  # they name a function by its number
ROUTES = {
    "GET": re.compile(rf"{PAGES}|{READS}|{CALL}/\w+"),
    "HEAD": re.compile("/"),
    "POST": re.compile(rf"{UPLOAD}|{CALL}/?|/gradio_api/(queue/join|run/predict|cancel|reset)/?"),
}
SESSIONS = 64  # that wait for somebody to listen, who comes within moments; and whose state Gradio keeps, of 60 KB each
DEEP = 16  # levels of the page's JSON; it uses 6
SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)


class _Upload(Whole, route_utils.GradioMultiPartParser):
    pass


def mount(page: gr.Blocks, app: FastAPI, limits: Limits, root_path: str = "") -> None:
    """Let `page` answer all paths of `app` that are not its own, in our look and without Gradio's footer.

    Visitors reach it below `root_path`, which a proxy takes away before it asks here.
    """
    add_live(app)
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
        root_path=root_path or None,
    )
    gradio = app.router.routes.pop().app  # type: ignore[attr-defined]
    door = Door(gradio, page)
    room = Room(limits)

    async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
        if (scope["method"], scope["path"]) != ("POST", UPLOAD):
            return await door(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "")
        if not declared.isdigit():
            raise Problem(411, "no-length", "an upload has to say how long it is; send it with Content-Length")
        with room.taken(int(declared), visitor_of(scope.get("client"))):
            await door(scope, receive, send)
        _forget_broken_uploads(Path(gradio.uploaded_file_dir), limits.upload_seconds)

    gradio.state_holder.capacity = SESSIONS  # of 10,000; what has gone is made anew, as the page keeps nothing in it
    # As the last resort instead of a mount, which would match our own paths, too, when the method is a wrong one
    app.router.default = elsewhere
    route_utils.GradioMultiPartParser = _Upload  # type: ignore[misc]  # which Gradio (6.31) looks up at each upload
    gradio.exception_handlers[Exception] = app.exception_handlers[Exception]  # it would answer before ours could
    gradio.stop_event = app.state.stopping  # ends the connection that each open page holds
    # Gradio checks only in a launched page that a path is an upload: a mounted one (6.31) would open any file here
    page.has_launched = True


def _forget_broken_uploads(folder: Path, seconds: float) -> None:
    """Delete what is left of uploads that broke off, which Gradio (6.31) forgets; none takes longer than `seconds`."""
    for file in folder.glob("tmp*"):
        if file.is_file() and time.time() - file.stat().st_mtime > seconds:
            file.unlink(missing_ok=True)


class Door:
    """ASGI application in front of Gradio's `page`."""

    def __init__(self, gradio: ASGIApp, page: gr.Blocks) -> None:
        self._gradio = gradio
        self._inputs = {number: function.inputs for number, function in page.fns.items() if function.fn}
        [self._called] = [number for number in self._inputs if CALL.endswith(f"/{page.fns[number].api_name}")]
        self._calls = Calls(page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through. Raises Problem, or HTTPException 404 for what the page does not use."""
        method, path = scope["method"], scope["path"]
        if method not in ROUTES or not ROUTES[method].fullmatch(path):
            raise HTTPException(404, "Not Found")
        if method != "POST" or path == UPLOAD:
            with self._calls.heard(Request(scope).query_params.get("session_hash")):
                return await self._gradio(scope, receive, send)
        body = await Request(scope, receive).body()
        self._check(path, _parsed(body))
        await self._gradio(scope, _replayed(body, receive), send)
        self._calls.forget()

    def _check(self, path: str, call: Any) -> None:
        if not isinstance(call, dict):
            raise Problem(400, "json", "the body is to be a JSON object")
        session = call.get("session_hash")
        if session is not None and not (isinstance(session, str) and SESSION.fullmatch(session)):
            raise Problem(400, "session", "session_hash is to be at most 64 letters and digits")
        if not path.startswith((CALL, *NUMBERED)):
            return
        number = self._called if path.startswith(CALL) else call.get("fn_index")
        if not (_is_whole(number) and number in self._inputs):
            raise Problem(404, "function", "the page has no such function; see /gradio_api/info for what there is")
        inputs, data = self._inputs[number], call.get("data", [])
        if not isinstance(data, list) or len(data) != len(inputs) or not all(map(_fits, inputs, data)):
            raise Problem(422, "data", "data is not what this function takes; see /gradio_api/info for what that is")


class Calls:
    """Whose answers somebody listens to. Gradio (6.31) keeps those of 2,000 others, which may be pictures."""

    def __init__(self, page: gr.Blocks) -> None:
        self._queue = page._queue
        self._listening: Counter[str] = Counter()

    @contextmanager
    def heard(self, session: str | None) -> Iterator[None]:
        """While somebody listens to a session, if it is one."""
        self._listening[session or ""] += 1
        try:
            yield
        finally:
            self._listening[session or ""] -= 1
            self._listening += Counter()  # without those at 0

    def forget(self) -> None:
        """Drop the oldest sessions that nobody listens to, where they are more than SESSIONS."""
        answers = self._queue.pending_messages_per_session
        alone = [session for session in answers if session not in self._listening]
        for session in alone[: max(0, len(alone) - SESSIONS)]:
            del answers[session]
            for name in self._queue.pending_event_ids_session.pop(session, ()):
                if call := self._queue.event_ids_to_events.pop(name, None):
                    call.alive = False  # Gradio then sends it nothing more


def _fits(block: Any, value: Any) -> bool:
    """Whether a value is one that a component of the page takes: Gradio (6.31) logs others, with what they hold."""
    if isinstance(block, gr.Dataset):  # of examples, by their numbers
        return _is_whole(value) and 0 <= value < len(block.raw_samples or ())
    if value is None:
        return True
    if not block.data_model:
        return isinstance(value, str if isinstance(block, gr.Dropdown) else dict)
    try:
        block.data_model.model_validate(value, context={"validate_meta": True})
    except ValidationError:
        return False
    return True


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parsed(body: bytes) -> Any:
    """The JSON of a body that Gradio can cope with: no deeper than DEEP, and naming no file that was not uploaded."""
    try:
        value = json.loads(body, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be answered
    except (ValueError, RecursionError):
        raise Problem(400, "json", "the body is no JSON that can be read") from None
    _check_value(value, DEEP)
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _check_value(value: Any, deep: int) -> None:
    if not deep:
        raise Problem(400, "json", f"the JSON is nested deeper than {DEEP} levels")
    if isinstance(value, dict) and ("path" in value or "url" in value):
        with opened(value):  # what Gradio would say of another file tells more of it than we do
            pass
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_value(inner, deep - 1)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body that has been read, once more; then whatever comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again
