"""A request that is refused is answered with one sentence, in a problem document (RFC 9457)."""

import re
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

PROBLEM_TYPE = "application/problem+json"
_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\\/:;,()'\"\n]+[\\/])+")


class Problem(HTTPException):
    """A request that is refused. `detail` is one sentence, `cause` the word that logs, metrics and programs go by.

    An HTTPException, because Gradio's own application then answers with the status, too.
    """

    def __init__(self, status: int, cause: str, detail: str, **headers: str) -> None:
        super().__init__(status, detail, {name.replace("_", "-"): value for name, value in headers.items()})
        self.cause = cause


def busy(status: int, cause: str, detail: str) -> Problem:
    """A refusal for the moment: the same request may be let in a little later."""
    return Problem(status, cause, detail, retry_after="1")


def too_large(name: str, most: int) -> Problem:
    """The refusal of a photo with more than `most` bytes."""
    return Problem(413, "too-large", f"{name} has more than {most:,} bytes; send a smaller photo")


def failed() -> Problem:
    """The answer where the fault is ours."""
    return Problem(500, "failed", "the service failed at this request; its log says why")


def document_of(error: HTTPException, request_id: str = "") -> dict[str, str | int]:
    """The problem document of `error`."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(error.status_code).phrase,
        "status": error.status_code,
        "detail": error.detail,
        "cause": cause_of(error),
        "request_id": request_id,
    }


def cause_of(error: HTTPException) -> str:
    """The word for programs, of what is no Problem that of its status: "not-found"."""
    return getattr(error, "cause", HTTPStatus(error.status_code).name.lower().replace("_", "-"))


def problem_response(error: HTTPException, scope: Scope) -> JSONResponse:
    """The problem document of `error`; leaves its cause in `scope` for the log and the metrics."""
    scope["saji.cause"] = cause_of(error)
    document = document_of(error, scope.get("saji.request_id", ""))
    return JSONResponse(document, error.status_code, dict(error.headers or {}), media_type=PROBLEM_TYPE)


def without_folders(text: str) -> str:
    """What visitors are told of the reason for something: of a path on this machine the last part alone."""
    return _FOLDERS.sub("", text)
