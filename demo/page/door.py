"""What of Gradio is reachable: the routes and functions that the page and Gradio's clients use, asked in sound JSON."""

import json
import re
from collections.abc import Collection
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.page.uploads import opened
from demo.service.guard import UPLOAD
from demo.service.problem import Problem

PAGES = r"/|/config/?|/theme\.css|/gradio_api/theme\.css|/(assets|static|svelte)/.+|/favicon\.ico|/manifest\.json"
# Gradio serves below file= what lies in its upload folder, and would fetch any address for whoever asks
READS = r"/gradio_api/(info/?|startup-events|upload_progress|queue/data|heartbeat/\w+|file=(?!\w+:)[^?]+)"
CALL = "/gradio_api/call/classify"
EXAMPLE = "/gradio_api/run/predict"  # what a click on one asks, past the queue
NUMBERED = ("/gradio_api/queue/join", EXAMPLE)  # they name a function by its number
ROUTES = {
    "GET": re.compile(rf"{PAGES}|{READS}|{CALL}/\w+"),
    "HEAD": re.compile("/"),
    "POST": re.compile(rf"{UPLOAD}|{CALL}/?|/gradio_api/(queue/join|run/predict|cancel|reset)/?"),
}
DEEP = 16  # levels of the page's JSON; it uses 6
SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)


class Door:
    """ASGI application in front of Gradio's.

    `functions` are the numbers of those that the page calls, `examples` says how many pictures there are to click.
    """

    def __init__(self, gradio: ASGIApp, functions: Collection[int], examples: int) -> None:
        self._gradio, self._functions, self._examples = gradio, frozenset(functions), examples

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through. Raises Problem, or HTTPException 404 for what the page does not use."""
        method, path = scope["method"], scope["path"]
        if method not in ROUTES or not ROUTES[method].fullmatch(path):
            raise HTTPException(404, "Not Found")
        if method == "POST" and path != UPLOAD:
            body = await Request(scope, receive).body()
            self._check(path, _parsed(body))
            receive = _replayed(body, receive)
        await self._gradio(scope, receive, send)

    def _check(self, path: str, asked: Any) -> None:
        if not isinstance(asked, dict):
            raise Problem(400, "json", "the body is to be a JSON object")
        session = asked.get("session_hash")
        if session is not None and not (isinstance(session, str) and SESSION.fullmatch(session)):
            raise Problem(400, "session", "session_hash is to be at most 64 letters and digits")
        number = asked.get("fn_index")
        if path.startswith(NUMBERED) and not (_is_whole(number) and number in self._functions):
            raise Problem(404, "function", "the page has no such function; see /gradio_api/info for what there is")
        data = asked.get("data", [])
        if not isinstance(data, list):
            raise Problem(400, "json", "data is to be a list")
        if path.startswith(EXAMPLE) and not (len(data) == 1 and _is_whole(data[0]) and 0 <= data[0] < self._examples):
            raise Problem(404, "example", f"there are {self._examples} examples, numbered from 0")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parsed(body: bytes) -> Any:
    """The JSON of a body that is as Gradio can bear it: no deeper than DEEP, and with files of the upload folder."""
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
