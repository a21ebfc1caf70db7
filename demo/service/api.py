"""The HTTP API: photos in, labels out, and what an operator asks for. The page is mounted behind it."""

import asyncio
import logging
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from demo.service.connections import bounded
from demo.service.guard import Guard, Hosts
from demo.service.limits import Limits
from demo.service.problem import PROBLEM_TYPE, Problem, failed, problem_response, without_folders
from demo.service.proxies import LOOPBACK, Network, networks_of
from demo.service.queue import Result, Serving
from demo.service.shares import visitor_of
from runtime.environment import saji_version
from runtime.spec import Answer

RAW = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
FORM = "multipart/form-data"
COMPRESSED = {"gzip", "x-gzip", "compress", "x-compress", "deflate", "br", "zstd"}  # RFC 9110, 8.4.1, and since


class PhotoAnswer(BaseModel):
    """What one photo shows."""

    label: str
    probability: float
    sure: bool
    answer: Answer
    probabilities: dict[str, float]
    milliseconds: dict[str, float]


class Answers(BaseModel):
    """What the photos of a request show, in their order."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "answers": [
                    {
                        "label": "rendang",
                        "probability": 0.93,
                        "sure": True,
                        "answer": "named",
                        "probabilities": {"rendang": 0.93, "gado_gado": 0.04},
                        "milliseconds": {"decode": 9.1, "geometry": 0.9, "inference": 3.9},
                    }
                ],
                "served_by": "resnet34 · openvino · int8",
            }
        }
    )
    answers: list[PhotoAnswer]
    served_by: str

    @classmethod
    def of(cls, result: Result, top: int | None = None) -> "Answers":
        """What every API answers; `top` bounds the classes that are listed of a photo, the most likely first."""
        answers = [
            PhotoAnswer(
                label=prediction.label,
                probability=prediction.probability,
                sure=prediction.sure,
                answer=prediction.answer,
                probabilities=dict(list(prediction.probabilities.items())[:top]),
                milliseconds=prediction.milliseconds,
            )
            for prediction in result.predictions
        ]
        return cls(answers=answers, served_by=result.classifier.candidate.name)


class Model(BaseModel):
    """What serves now, and why."""

    served_by: str
    architecture: str
    backend: str
    precision: str
    verdict: str
    accuracy: float | None
    reason: str
    passed_over: list[str]
    classes: list[str]
    image_size: int
    signed_by: str
    deployment_sha256: str
    since: str
    limits: dict[str, int]


class ProblemDocument(BaseModel):
    """RFC 9457; `detail` is one sentence, `cause` the word for programs."""

    type: str
    title: str
    status: int
    detail: str
    cause: str
    request_id: str


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": ProblemDocument.model_json_schema()}
    return {status: {"description": "Refused", "content": {PROBLEM_TYPE: schema}} for status in statuses}


_BINARY = {"type": "string", "format": "binary"}
_BINARIES = {"type": "array", "items": _BINARY, "minItems": 1}
_PHOTOS_BODY = {
    "required": True,
    "content": {
        FORM: {"schema": {"type": "object", "required": ["photo"], "properties": {"photo": _BINARIES}}},
        **{kind: {"schema": _BINARY} for kind in RAW},
    },
}

router = APIRouter()


@router.post(
    "/v1/classify",
    summary="Name the dish on each photo",
    openapi_extra={"requestBody": _PHOTOS_BODY},
    responses=_problems(400, 401, 408, 413, 415, 422, 429, 503),
)
async def classify(
    request: Request,
    top: Annotated[int | None, Query(ge=1, description="How many of the most likely classes are listed")] = None,
) -> Answers:
    """Send a photo as the body, or one or several as the files of a form: `curl -F photo=@photo.jpg`."""
    serving: Serving = request.app.state.serving
    photos = await photos_of(request, serving.limits.photos)  # before it takes a place: a slow sender would hold it
    with serving.place(visitor_of(request.client)):
        result = await serving.classify(photos)
    return Answers.of(result, top or request.app.state.top)


@router.get("/v1/model", summary="What serves now, and why", responses=_problems(401))
async def model(request: Request) -> Model:
    """Changes when another deployment is taken into service."""
    serving: Serving = request.app.state.serving
    engine = serving.engine
    classifier, candidate = engine.classifier, engine.classifier.candidate
    return Model(
        served_by=candidate.name,
        architecture=candidate.architecture,
        backend=candidate.backend,
        precision=candidate.precision,
        verdict=candidate.verdict,
        accuracy=candidate.figures.accuracy if candidate.figures and not classifier.spec.published else None,
        reason=classifier.reason,
        passed_over=[without_folders(reason) for reason in classifier.passed_over],
        classes=list(classifier.spec.classes),
        image_size=classifier.spec.geometry.size,
        signed_by=classifier.signer,
        deployment_sha256=engine.sha256,
        since=engine.since.isoformat(timespec="seconds"),
        limits=vars(serving.limits),
    )


@router.head("/healthz", include_in_schema=False)  # as some supervisors ask
@router.get("/healthz", summary="The process answers")
async def healthz() -> dict[str, str]:
    """For a supervisor that restarts what hangs; needs no token."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="A model is loaded, warm, and answers", responses=_problems(503))
async def readyz(request: Request) -> dict[str, str]:
    """For a load balancer; refused while the engine answers nobody, and when stopping. Needs no token."""
    if request.app.state.stopping.is_set():
        raise Problem(503, "stopping", "the service is stopping; ask another instance")
    if request.app.state.serving.stuck:
        raise Problem(503, "stuck", "no photo has been answered for too long; ask another instance")
    return {"status": "ready"}


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=_problems(401))
async def metrics(request: Request) -> Response:
    """Requests, errors by cause, latencies by part, queue depth, batch sizes, and what serves."""
    return Response(await request.app.state.serving.metrics(), headers={"content-type": CONTENT_TYPE_LATEST})


class Whole:
    """What is added to Starlette's parser of forms, and to Gradio's copy: both leave out a part that is cut."""

    ended = False

    def on_end(self) -> None:
        """The closing line is in."""
        self.ended = True

    async def parse(self) -> FormData:
        """The form. Raises MultiPartException for one that is not whole, or has a charset of no text."""
        try:
            form: FormData = await super().parse()  # type: ignore[misc]
        except (UnicodeError, LookupError):
            raise MultiPartException("its charset is not that of a text") from None
        if not self.ended:
            raise MultiPartException("it ends before its last part does")
        return form


class _InMemory(Whole, MultiPartParser):
    spool_max_size = 0  # SpooledTemporaryFile then never goes to disk: a photo is gone when its answer is sent

    def on_headers_finished(self) -> None:
        """A photo may come without a name, and by older clients with `filename*` alone: its type tells, too."""
        part = self._current_part
        told = part.content_disposition or b""
        kind = dict(part.item_headers).get(b"content-type", b"").decode("latin-1").strip().lower()
        if b"filename=" not in told.lower() and (_is_photo(kind) or b"filename*" in told.lower()):
            part.content_disposition = told + b'; filename="photo"'
        super().on_headers_finished()


def _is_photo(kind: str) -> bool:
    return kind in RAW or kind.startswith("image/")


async def photos_of(request: Request, most: int) -> list[bytes]:
    """The encoded photos of a request. Raises Problem 400 for none, 413 above `most`, 415 for another type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if COMPRESSED & set(re.split(r"[,\s]+", request.headers.get("content-encoding", "").lower())):
        raise Problem(415, "content-encoding", "the body is compressed; send it without Content-Encoding")
    if kind == FORM:
        photos = await _photos_of_form(request, most)
    elif not kind or _is_photo(kind):
        photos = [await request.body()]
    else:
        raise Problem(415, "content-type", f"a body of this type is no photo; send {', '.join(RAW)} or {FORM}")
    if not any(photos):
        raise Problem(400, "no-photo", "the request has no photo; send one as the body, or as a file of a form")
    return photos


async def _photos_of_form(request: Request, most: int) -> list[bytes]:
    try:
        form = await _InMemory(request.headers, request.stream(), max_files=most).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            detail = f"the form has more photos than {most}; send the others in another request"
            raise Problem(413, "too-many-photos", detail) from None
        if error.message.startswith("Part exceeded"):  # a field: what has a file name is bounded elsewhere
            detail = (
                "the form has more than 1 MB in a part without a file name; send photos like curl -F photo=@photo.jpg"
            )
            raise Problem(413, "field-too-large", detail) from None
        reason = error.message.rstrip(".")
        raise Problem(
            400, "form", f"the form cannot be read ({reason}); send it like curl -F photo=@photo.jpg"
        ) from None
    parts = [part for _, part in form.multi_items()]
    files = [part for part in parts if isinstance(part, UploadFile)]
    if (parts and not files) or any("\0" in part for part in parts if isinstance(part, str)):  # which no text has
        which = "a photo in the form has no file name" if files else "no part of the form has a file name"
        raise Problem(400, "no-photo", f"{which}; send it like curl -F photo=@photo.jpg")
    # A browser sends a file without a name where none was chosen
    return [await file.read() for file in files if file.size or file.filename]


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        error = Problem(422, "parameter", f"{first['loc'][-1]}: {first['msg']}; see /openapi.json")
    elif not isinstance(error, HTTPException):
        error = failed()
    elif not isinstance(error, Problem):
        error = HTTPException(error.status_code, f"{error.detail}; see /openapi.json for what there is", error.headers)
    return problem_response(error, request.scope)


def build_api(serving: Serving, top: int = 5, root_path: str = "") -> FastAPI:
    """The application without its page: classify, model, health and metrics.

    `top` is how many classes an answer lists unless it is asked for another number, `root_path` the path that programs
    put before ours, as a proxy takes it away. `state.stopping` is set when the server is asked to stop.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(serving.watch())
        yield
        watching.cancel()

    app = FastAPI(
        title="saji",
        version=saji_version(),
        lifespan=lifespan,
        servers=[{"url": root_path}] if root_path else None,
        docs_url=None,  # those pages load their scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,  # to an address that knows nothing of root_path
        exception_handlers={HTTPException: _refuse, RequestValidationError: _refuse, Exception: _refuse},
    )
    app.state.serving, app.state.top, app.state.stopping = serving, top, asyncio.Event()
    app.include_router(router)
    return app


class Server(uvicorn.Server):
    """Serves `app` until a signal, then answers what it has accepted, however many pages are open."""

    def __init__(
        self,
        app: FastAPI,
        limits: Limits,
        token: str = "",
        hosts: Hosts | None = None,
        pem: Path | None = None,
        proxies: Sequence[Network] = networks_of(LOOPBACK),
        at_sigterm: Callable[[float], object] | None = None,
    ) -> None:
        """With `pem`, a file with key and certificate, it serves over HTTPS.

        `proxies` are believed about who asks, and by which scheme. `at_sigterm` is told within how many seconds the
        requests should be done.
        """
        self._stopping, self._head_seconds, self._at_sigterm = app.state.stopping, limits.header_seconds, at_sigterm
        super().__init__(
            uvicorn.Config(
                Guard(app, limits, token, hosts),
                loop="asyncio",  # also where Ray has brought uvloop along
                http=bounded(limits, proxies),  # type: ignore[arg-type]  # called as the class that it stands for
                log_config=None,  # ours: JSON lines
                access_log=False,
                server_header=False,
                ws="none",
                workers=1,  # or it would go by WEB_CONCURRENCY
                forwarded_allow_ips=[str(network) for network in proxies],
                ssl_certfile=pem,
                timeout_graceful_shutdown=2 * limits.seconds,  # what a request may take: to be sent, and to be answered
            )
        )

        # Whatever handlers others add: its lines hold the query, and with it the token of a link
        logging.getLogger("uvicorn.access").disabled = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; who waits for the end is told here and not in `shutdown`, which a loop that hangs never comes to."""
        if self._at_sigterm and sig == signal.SIGTERM:
            self._at_sigterm(self.config.timeout_graceful_shutdown or 0)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait no longer for a visitor's part of TLS than for the head of a request; uvicorn has no setting for it."""
        if self.config.is_ssl:
            loop = asyncio.get_running_loop()
            listening = partial(loop.create_server, ssl_handshake_timeout=self._head_seconds)
            loop.create_server = listening  # type: ignore[method-assign, assignment]
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let go of the open pages first, each of which holds a connection for as long as it is open."""
        self._stopping.set()
        await super().shutdown(sockets)
        if self.force_exit:  # by a second Ctrl-C: uvicorn leaves it out, and Starlette a traceback in the log
            await self.lifespan.shutdown()
