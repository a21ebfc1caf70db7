"""What connections may cost: how many there are, and how long the head of a request is, in bytes and in seconds."""

import asyncio
import json
import sys
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from demo.service.limits import Limits
from demo.service.monitoring import ERRORS
from demo.service.problem import PROBLEM_TYPE, Problem, busy, document_of
from demo.service.proxies import Network, is_in
from demo.service.shares import OWN, visitor_of

HEAD_BYTES = 64 * 2**10  # of request line and headers: eight times what nginx takes


class _Parser(HttpRequestParser):
    """Goes on with a request that offers another protocol as if it did not (RFC 9110, 7.8).

    Java's client and `curl --http2` offer HTTP/2 so; httptools takes the rest for that protocol's and loses the photo.
    """

    def __init__(self, connection: "Connection") -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._connection = connection

    def offers(self) -> bool:
        """Whether the request at hand is to be read again without its offer; a tunnel (CONNECT) is none."""
        return self.should_upgrade() and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # uvicorn gives nothing else
        """Takes what has come."""
        while True:
            try:
                super().feed_data(data)
                return
            except HttpParserUpgrade as offer:
                if not self.offers():
                    raise
                data = self._head() + data[offer.args[0] :]

    def _head(self) -> bytes:
        """The request's head once more, without its offer."""
        lines = [b"%b %b HTTP/%b" % (self.get_method(), self._connection.url, self.get_http_version().encode())]
        for name, value in self._connection.headers:
            if name == b"connection":
                value = b",".join(word for word in value.split(b",") if word.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])


class Connection(HttpToolsProtocol):
    """A connection of uvicorn's that is refused when the head of its request is too long, or too long on its way.

    Above `most` connections the one that has waited longest for a head is closed; where none waits, the newest is. Of
    those of one visitor, as many are a share; the `proxies` have none, for they bring others.
    """

    def __init__(self, limits: Limits, most: int, proxies: Sequence[Network], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser: _Parser = _Parser(self)
        self._limits, self._most, self._share, self._proxies = limits, most, limits.share_of(most), proxies
        self._head_bytes, self._late = 0, None  # type: tuple[int, asyncio.TimerHandle | None]
        self.visitor = OWN

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.visitor = OWN if is_in(self._proxies, self.client) else visitor_of(self.client)
        self._await_head()
        everybody = [other for other in self.connections if isinstance(other, Connection)]
        his = [other for other in everybody if other.visitor == self.visitor and not other.transport.is_closing()]
        if self.visitor != OWN and len(his) > self._share:
            detail = f"one address may hold {self._share} connections at a time; close others, or try again soon"
            _longest(his).refuse(busy(429, "your-share", detail))
        elif len(self.connections) > self._most:
            _longest(everybody).refuse(busy(503, "connections-full", "all connections are taken; try again soon"))

    @property
    def waits_since(self) -> float:
        """The loop's time at which it will have waited too long for a head; 0 while a request is answered."""
        return self._late.when() if self._late else 0

    def _await_head(self) -> None:
        if self._late is None:
            seconds = self._limits.header_seconds
            problem = Problem(408, "headers-too-slow", f"no headers of a request came within {seconds} s")
            self._head_bytes, self._late = 0, self.loop.call_later(seconds, self.refuse, problem)

    def _head_is_in(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._late:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.refuse(Problem(431, "headers-too-large", f"the headers are larger than {HEAD_BYTES:,} bytes"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        if not self.parser.offers():
            self._head_is_in()
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.offers():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """The answer to what is no HTTP: uvicorn's is no problem document, and is not counted."""
        self._head_bytes += 1  # something came
        self.refuse(Problem(400, "no-http", "this is no HTTP request that can be read; send it by an HTTP client"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_in()
        super().connection_lost(exc)

    def refuse(self, problem: Problem) -> None:
        """Answer with a problem document and close.

        A kept connection on which nothing has come since the last answer is closed without a word, which its client
        would take for the answer to a request that is on its way.
        """
        self._head_is_in()
        ERRORS.labels(problem.cause).inc()
        if self.cycle is None or self._head_bytes:
            body = json.dumps(document_of(problem)).encode()
            headers = {"content-type": PROBLEM_TYPE, "content-length": len(body), "connection": "close"}
            lines = [f"HTTP/1.1 {problem.status_code} {HTTPStatus(problem.status_code).phrase}"]
            lines += [f"{name}: {value}" for name, value in (headers | dict(problem.headers or {})).items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()


def _longest(connections: Sequence[Connection]) -> Connection:
    return min((each for each in connections if each.waits_since), key=lambda each: each.waits_since)


def bounded(limits: Limits, proxies: Sequence[Network] = ()) -> partial[Connection]:
    """What makes a Connection for uvicorn: at most `limits.connections`, and half of the files that may be open."""
    return partial(Connection, limits, min(limits.connections, _open_files() // 2), proxies)


def _open_files() -> int:
    try:
        import resource
    except ImportError:  # not POSIX
        return sys.maxsize
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
