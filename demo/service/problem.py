"""A request that is refused is answered with one sentence, in a problem document (RFC 9457)."""

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

PROBLEM_TYPE = "application/problem+json"


class Problem(HTTPException):
    """A request that is refused. `detail` is one sentence, `cause` the word that logs, metrics and programs go by.

    An HTTPException, because Gradio's own application then answers with the status, too.
    """

    def __init__(self, status: int, cause: str, detail: str, **headers: str) -> None:
        super().__init__(status, detail, {name.replace("_", "-"): value for name, value in headers.items()})
        self.cause = cause


def busy(status: int, cause: str, detail: str) -> Problem:
    """A refusal of now: whoever tries again a little later may be let in."""
    return Problem(status, cause, detail, retry_after="1")


def document_of(error: HTTPException, request_id: str = "") -> dict[str, str | int]:
    """The problem document of `error`."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(error.status_code).phrase,
        "status": error.status_code,
        "detail": error.detail,
        "cause": _cause_of(error),
        "request_id": request_id,
    }


def _cause_of(error: HTTPException) -> str:
    return getattr(error, "cause", HTTPStatus(error.status_code).name.lower().replace("_", "-"))


def problem_response(error: HTTPException, scope: Scope) -> JSONResponse:
    """The problem document of `error`; leaves its cause in `scope` for the log and the metrics."""
    scope["saji.cause"] = _cause_of(error)
    document = document_of(error, scope.get("saji.request_id", ""))
    return JSONResponse(document, error.status_code, dict(error.headers or {}), media_type=PROBLEM_TYPE)
