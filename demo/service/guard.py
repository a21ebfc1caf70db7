"""What stands before page and API alike: names, the token, the bounds of a body, headers, request ids, the log."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.service.limits import Limits
from demo.service.monitoring import ERRORS, REQUEST_SECONDS, REQUESTS
from demo.service.network import address_of
from demo.service.problem import Problem, busy, cause_of, failed, problem_response
from demo.service.shares import Holdings, visitor_of
from demo.service.tokens import Token
from runtime.errors import SajiError

OPEN_TO_ALL = ("/healthz", "/readyz")  # a supervisor has no token, and asks by whatever name
LINGER_SECONDS = 2.0
GRACE_SECONDS = 5.0  # until a body has to come at its least rate
CLIENT_GONE = 499  # nginx's number for the log: nobody is there to be answered
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")
ANY = "*"
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
# Gradio writes its configuration and styles into the page itself (unsafe-inline) and evaluates the JavaScript of an
# event (unsafe-eval); photos are blobs. Nothing is fetched from elsewhere, and no other page may frame this one
CONTENT_SECURITY_POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in CONTENT_SECURITY_POLICY.items()),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}

OF_GRADIO = "/gradio_api/"
UPLOAD = f"{OF_GRADIO}upload"

log = logging.getLogger("saji.access")


class Hosts:
    """Which names the service answers to, and which pages may ask it: our visitor's browser runs other people's pages.

    Such a page cannot read our answers as long as it is of another origin; by DNS rebinding, a name of its own that
    comes to mean our address, it would be of ours. So we answer to the loopback names, the address that is listened on,
    and the `names` that were allowed; ANY lets every one in. Who listens on all addresses (0.0.0.0 or ::) has many, and
    answers to each that is written in numbers: those cannot be rebound. Raises SajiError for a name that is none.
    """

    def __init__(self, listening: str = "127.0.0.1", names: Iterable[str] = ()) -> None:
        self._allowed = {_as_sent(name, "--allow-host") for name in names}
        self._own = self._allowed | {_as_sent(listening, "--host"), "localhost"}
        address = address_of(listening)
        self._numbers = address is not None and address.is_unspecified
        self.loopback_only = listening == "localhost" or (address is not None and address.is_loopback)

    def serves(self, host: str) -> bool:
        """Whether a Host header, in any case and with any port, names this service."""
        name = _name_of(host)
        address = address_of(name)
        by_number = address is not None and (address.is_loopback or self._numbers)
        return ANY in self._allowed or name in self._own or by_number

    def trusts(self, origin: str, host: str) -> bool:
        """Whether an Origin header is that of our own page: served under `host`, or under a name that was allowed."""
        site = origin.lower().partition("://")[2]
        name = _name_of(site)
        if ANY in self._allowed and name == _name_of(host):  # a proxy may leave the port out of one of them
            return bool(name)
        return bool(site) and (site == host.lower() or name in self._allowed)


def _as_sent(name: str, flag: str) -> str:
    """A name that was typed behind `flag` as the headers of browsers have it. Raises SajiError."""
    address = address_of(name)
    sent = str(address) if address else name if name == ANY else _name_of(name)
    if not sent:
        like = "give one like food.example, and xn--caf-dma.example for café.example"
        raise SajiError(f"{flag} {name} is no name as browsers send it; {like}")
    return sent


def _name_of(host: str) -> str:
    match = HOST.fullmatch(host.lower())
    return match[1].strip("[]").removesuffix(".") if match else ""  # a full name may end with the dot of the root


class Guard:
    """ASGI middleware around the whole application; with a `token`, only who knows it comes in.

    It answers to the names of `hosts`, and to no page of another origin.
    """

    def __init__(self, app: ASGIApp, limits: Limits, token: str = "", hosts: Hosts | None = None) -> None:
        self.app, self.limits, self.token, self.hosts = app, limits, Token(token), hosts or Hosts()
        self.held = Holdings("bytes of photos on their way", limits.share_of(limits.held, limits.bytes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it with a problem document."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":  # of websockets, which nothing here speaks, none gets past the token
            await self._exchange(scope, receive, send)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, headers = time.perf_counter(), Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        scope["saji.request_id"] = request_id if REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        body = _Body(self, scope, headers, receive)
        reply = _Reply(scope, body, send)
        try:
            answer = self._admit(scope, headers)
            body.check_declared()
            await (answer or self.app)(scope, body.receive, reply.send)
        except ClientDisconnect:
            reply.status = CLIENT_GONE
        except Exception as error:
            problem = body.problem or (error if isinstance(error, Problem) else None)
            # Gradio refuses within an answer that has begun, as to a session that is none; it has told why
            if problem is None and not isinstance(error.__cause__, HTTPException):
                log.exception("request failed", extra={"facts": {"request_id": scope["saji.request_id"]}})
                problem = failed()
            if problem and not reply.status:
                await problem_response(problem, scope)(scope, receive, reply.send)
        finally:
            body.release()
            _record(scope, reply.status or CLIENT_GONE, body.taken, time.perf_counter() - started)

    def _admit(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to who came by a link with the token; None for all others that may come in."""
        if scope["path"] in OPEN_TO_ALL:
            return None
        host = headers.get("host", "")
        if not self.hosts.serves(host):
            detail = "this service has another name; let this one in with: python -m demo --allow-host NAME"
            raise Problem(421, "foreign-host", detail)
        if not all(self.hosts.trusts(origin, host) for origin in headers.getlist("origin")):
            raise Problem(403, "foreign-origin", "a page of another site may not ask this service; open its own page")
        return self.token.check(scope, headers)


class _Body:
    """A request's body as it comes in: cut when it is too large, takes too long, or comes too slowly."""

    def __init__(self, guard: Guard, scope: Scope, headers: Headers, receive: Receive) -> None:
        limits, path = guard.limits, scope["path"]
        self._guard, self._receive, self._is_upload = guard, receive, path == UPLOAD
        self._visitor = visitor_of(scope.get("client"))
        self._most, self._seconds = limits.bytes, limits.seconds
        if self._is_upload:
            self._most, self._seconds = limits.upload, limits.upload_seconds
        elif path.startswith(OF_GRADIO):
            self._most = limits.json
        self._declared = headers.get("content-length", "0")
        self._started = asyncio.get_running_loop().time()
        self.taken = 0
        self.unread = self._declared != "0" or "transfer-encoding" in headers
        self.problem: Problem | None = None  # kept, for an application may answer its own way to our exception

    def check_declared(self) -> None:
        """Raise Problem 413 before a byte is read, when the headers announce too many."""
        if self._declared.isdigit() and int(self._declared) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next part. Raises Problem 413 or 408; once the body is in, waits as long as the application likes."""
        if not self.unread:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._due()):
                message = await self._receive()
        except TimeoutError:
            slow = f"within {self._seconds} s, or at {self._guard.limits.rate:,} bytes a second"
            self.problem = Problem(408, "upload-too-slow", f"the request did not come {slow}; send a smaller photo")
            raise self.problem from None
        self._count(len(message.get("body", b"")))
        self.unread = message["type"] == "http.request" and message.get("more_body", False)
        if self.problem:
            raise self.problem
        return message

    def _due(self) -> float:
        """When the next part has to be here."""
        at_least = GRACE_SECONDS + self.taken / self._guard.limits.rate
        return self._started + min(self._seconds, at_least)

    def _count(self, came: int) -> None:
        self.taken += came
        if not self._is_upload:  # which goes to the disk as it comes
            self._guard.held.add(self._visitor, came)
        if self.taken > self._most:
            self.problem = self._too_large()
        elif self._guard.held.all > self._guard.limits.held:
            self.problem = busy(503, "memory-full", "too many photos are on their way; try again soon")
        else:
            self.problem = self._guard.held.refusal(self._visitor)

    def release(self) -> None:
        """The request is over: its bytes are held no longer."""
        if not self._is_upload:
            self._guard.held.add(self._visitor, -self.taken)

    async def discard(self) -> None:
        """Read on for a moment: closed at once, a connection takes our answer with it while the client still sends."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while (await self._receive()).get("more_body"):
                    pass
        except TimeoutError:
            pass
        self.unread = False

    def _too_large(self) -> Problem:
        detail = f"the request is larger than {self._most:,} bytes; send a smaller photo, or fewer at a time"
        return Problem(413, "too-large", detail)


class _Reply:
    """A response on its way out: with our headers, and patient with a client that is still sending."""

    def __init__(self, scope: Scope, body: _Body, send: Send) -> None:
        self._scope, self._body, self._send = scope, body, send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:  # Gradio's, to any origin
                del headers[name]
            headers.update({**HEADERS, "x-request-id": self._scope["saji.request_id"]})
            if self._refused_early:
                headers["connection"] = "close"
        elif self._refused_early and not message.get("more_body"):
            await self._send({**message, "more_body": True})
            await self._body.discard()
            message = {"type": "http.response.body"}
        await self._send(message)

    @property
    def _refused_early(self) -> bool:
        return self._body.unread and self.status >= 400


def _record(scope: Scope, status: int, taken: int, seconds: float) -> None:
    # The template, for a path as it was sent may hold the name of a file
    route = getattr(scope.get("route"), "path", "unknown")
    REQUESTS.labels(route, status).inc()
    REQUEST_SECONDS.labels(route).observe(seconds)
    facts = {
        "request_id": scope["saji.request_id"],
        "method": scope["method"],
        "route": route,
        "status": status,
        "bytes": taken,
        "milliseconds": round(1000 * seconds, 2),
    }
    if status >= 400 and status != CLIENT_GONE:  # Gradio's own refusals leave no cause
        facts["cause"] = scope.get("saji.cause") or cause_of(HTTPException(status))
        ERRORS.labels(facts["cause"]).inc()
    log.info("request", extra={"facts": facts})
