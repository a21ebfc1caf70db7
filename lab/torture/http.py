"""Bursts of hostility at the HTTP surface beside honest clients, who are to notice none of it.

An attempt is one burst of some seconds, from an address of loopback that the service takes for a stranger's.
The row says how these fared: no error, no wrong answer, and the 99th percentile within SLOWER times that of the calm
before.
"""

import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lab.load.clients import CLASSIFY
from lab.load.server import Server, serving
from lab.torture import far_away, honest
from lab.torture.campaign import Attempt, Found
from lab.torture.odd_pictures import OF_BYTES, OddPictures
from lab.torture.pictures import TELLS_TOO_MUCH
from runtime.speed_ratio import percentile

ATTEMPTS = 340  # ten minutes
CALM, SLOWER = 400, 3.0  # honest answers before the first burst, of which a 99th percentile can be told
SECONDS, WARM_SECONDS = 1.0, 5.0  # of a burst; of requests that are not counted
MORE_MIB = 128  # that the service may come to hold beyond what it held in the calm
CROWD, FLOOD = 40, 300  # connections of a burst, and of a flood: more than the service has by default
ALLOWED = (*range(200, 500), 501, 503, 505)  # 503: for the moment it is full

Connect = Callable[[], socket.socket]
Burst = Callable[[random.Random, Connect], list[bytes]]


@contextmanager
def prepared(folder: Path) -> Iterator[Attempt]:
    """A service of a tiny network and its honest clients, watched in the calm first."""
    from lab.torture import tiny

    tiny.train_and_export(folder)
    with (
        serving(far_away.__name__, f"--out={folder}", "--port=0", f"--trusted-proxy={far_away.NOBODY}") as server,
        honest.clients(server.address, honest.photos(folder / "deployment.json")) as since,
    ):
        time.sleep(WARM_SECONDS)
        since()
        yield _Beside(server, since)


class _Beside:
    """An attempt: a burst, after which nothing is to have gone wrong."""

    def __init__(self, server: Server, since: Callable[[], honest.Answers]) -> None:
        self._server, self._since = server, since
        host, port = server.address.removeprefix("http://").split(":")
        self._place = host, int(port)
        self._calm, self._milliseconds = list[float](), list[float]()
        while len(self._calm) < CALM:
            time.sleep(SECONDS)
            self._calm += self._since().milliseconds
        self._most = server.memory_mib() + MORE_MIB

    def __call__(self, chance: random.Random) -> str:
        burst = chance.choice(BURSTS)
        answers = burst(chance, self._connect)
        came = self._since()
        self._milliseconds += came.milliseconds
        name, evidence = burst.__name__, b"\n---\n".join(answers)
        for answer in answers:
            status = _status_of(answer)
            if answer and (status not in ALLOWED or (status >= 400 and TELLS_TOO_MUCH.search(_body_of(answer)))):
                raise Found(f"{name} was answered {answer[:200]!r}", answer)
        if came.faults:
            raise Found(f"beside {name}, of {len(came.milliseconds)} honest answers: {came.faults[0]}", evidence)
        if (held := self._server.memory_mib()) > self._most:
            self._most = held + MORE_MIB
            raise Found(f"after {name} the service held {held} MiB", evidence)
        return name

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._place, 5, source_address=(far_away.ADDRESS, 0))

    def told(self) -> dict[str, Any]:
        """How the honest clients fared. Raises Found where they were slowed down too much."""
        calm, beside = (percentile(values, 99) for values in (self._calm, self._milliseconds))
        if calm and beside and beside > SLOWER * calm:
            raise Found(f"honest clients' p99 was {beside:.1f} ms, in the calm {calm:.1f}")
        figures = {"calm_answers": len(self._calm), "answers": len(self._milliseconds)}
        return {"honest": {**figures, "calm_p99_ms": calm and round(calm, 2), "p99_ms": beside and round(beside, 2)}}


def _status_of(answer: bytes) -> int:
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")  # what comes before the answer, to who expects it
    words = answer.split(b" ", 2)
    return int(words[1]) if len(words) > 2 and words[0].startswith(b"HTTP/1.") and words[1].isdigit() else 0


def _body_of(answer: bytes) -> str:
    """The body of the first answer; what follows is to another request."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return rest[: int(length[1]) if length else None].decode(errors="replace")


def _rest_of(connection: socket.socket, seconds: float = 0.3) -> bytes:
    """What still comes out of a connection; closes it."""
    came = b""
    connection.settimeout(seconds)
    with contextlib.suppress(OSError), connection:
        while len(came) < 100_000 and (piece := connection.recv(65536)):
            came += piece
    return came


def _exchanged(connect: Connect, request: bytes) -> bytes:
    with contextlib.suppress(OSError):  # it may be refused while we still send
        connection = connect()
        with contextlib.suppress(OSError):
            connection.sendall(request)
        return _rest_of(connection)
    return b""


# The bursts; each gives the answers that came


def _request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


# fmt: off
ODD_LINES = [b"Content-Length: -1", b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 1e3", b"Host: a"]
ODD_LINES += [b"Transfer-Encoding: chunked", b"Transfer-Encoding: xchunked", b"Content-Length: 99999999999999999999"]
ODD_LINES += [b"Host: 127.0.0.1\r\nHost: evil", b" folded: line", b"No colon", b": empty", b"Nul: a\0b", b"\xff\xfe: x"]
ODD_LINES += [b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings", b"Upgrade: websocket\r\nConnection: Upgrade"]
ODD_LINES += [b"X: " + b"y" * 70_000, b"Accept-Encoding: " + b"gzip," * 2000, b"Connection: keep-alive, close"]
ODD_LINES += [b"Expect: 100-continue", b"Range: bytes=0-0,-1", b"Origin: null", b"Cookie: saji_token=\x7f"]
ODD_LINES += [b"X-Request-Id: \r\n\r\nGET / HTTP/1.1", b"Content-Type: multipart/form-data; boundary=" + b"b" * 9000]
ODD_STARTS = [b"GET / HTTP/0.9", b"GET / HTTP/2.0", b"PRI * HTTP/2.0", b"GET http://other/ HTTP/1.1", b"GET", b""]
ODD_STARTS += [b"G\0ET / HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"TRACE / HTTP/1.1"]
ODD_STARTS += [b"GET /" + b"a" * 70_000 + b" HTTP/1.1", b"POST /v1/classify?top=" + b"9" * 5000 + b" HTTP/1.1"]
ODD_STARTS += [b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1", b"GET /%00 HTTP/1.1", b"GET  / HTTP/1.1", b"\x16\3\1\2"]
CHUNKS = [b"5\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n", b"-1\r\n\r\n", b"zz\r\n", b"f" * 16]
PATHS = [CLASSIFY, "/healthz", "/readyz", "/metrics", "/", "/openapi.json", "/v1/model", "/gradio_api/info", "/config"]
PATHS += ["/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/call/classify", "/live", "/nothing"]
# fmt: on


def malformed(chance: random.Random, connect: Connect) -> list[bytes]:
    """Requests that HTTP/1.1 does not know, or that two programs would read as two different ones."""
    answers = []
    for _ in range(20):
        request = _request(chance.choice(("GET", "POST", "HEAD", "PUT")), chance.choice(PATHS), b"x" * 9)
        start, _, rest = request.partition(b"\r\n")
        start = chance.choice(ODD_STARTS) if chance.random() < 0.4 else start
        lines = [chance.choice(ODD_LINES) for _ in range(chance.choice((0, 1, 1, 2)))]
        request = b"\r\n".join([start, *lines, rest]) + (chance.choice(CHUNKS) if chance.random() < 0.4 else b"")
        if chance.random() < 0.4:
            request = chance.choice(OF_BYTES)(chance, request)
        answers.append(_exchanged(connect, request))
    return answers


def forms(chance: random.Random, connect: Connect) -> list[bytes]:
    """Forms that are damaged, nested, without an end, with parts of every name."""
    answers = []
    for _ in range(20):
        part = (
            b'--b\r\ncontent-disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
            + b"\xff\xd8" * 40
            + b"\r\n"
        )
        body = part * chance.choice((1, 2, 17, 200)) + chance.choice((b"--b--\r\n", b"--b", b"--b--\r\n--b\r\n", b""))
        for _ in range(chance.choice((0, 1, 3))):
            body = chance.choice(OF_BYTES)(chance, body)
        boundary = chance.choice(("b", "b", "b", '"b"', "", "c", "b; boundary=c", "\xe4"))
        kind = f"Content-Type: multipart/form-data; boundary={boundary}"
        answers.append(
            _exchanged(connect, _request("POST", chance.choice((CLASSIFY, "/gradio_api/upload")), body, kind))
        )
    return answers


def pictures(chance: random.Random, connect: Connect) -> list[bytes]:
    """Odd pictures, five at a time."""
    odd = _odd_pictures()
    requests = [_request("POST", CLASSIFY, odd(chance), "Content-Type: image/png") for _ in range(20)]
    answers = list[bytes]()

    def one_after_the_other(mine: list[bytes]) -> None:
        answers.extend(_exchanged(connect, request) for request in mine)

    threads = [threading.Thread(target=one_after_the_other, args=(requests[i::5],)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@cache
def _odd_pictures() -> OddPictures:
    return OddPictures()


def generated(chance: random.Random, connect: Connect) -> list[bytes]:
    """What schemathesis makes of the service's own description, right and wrong requests."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    with connect() as connection:
        host, port = connection.getpeername()
    operation = chance.choice([found.ok() for found in _described(f"http://{host}:{port}").get_all_operations()])
    wrong = operation.path == CLASSIFY and chance.random() < 0.5  # the others take nothing that could be wrong
    mode = schemathesis.GenerationMode.NEGATIVE if wrong else schemathesis.GenerationMode.POSITIVE

    @seed(chance.getrandbits(32))
    @settings(max_examples=10, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        # Bytes that are no photo are right by the schema, and are refused
        case.call_and_validate(timeout=honest.PATIENCE, excluded_checks=[positive_data_acceptance])

    try:
        ask()
    except Exception as error:  # of its own kinds
        raise Found(f"to what is generated: {str(error)[:250]}") from None
    return []


@cache
def _described(address: str) -> Any:
    import schemathesis

    return schemathesis.openapi.from_url(f"{address}/openapi.json")


def slow(chance: random.Random, connect: Connect) -> list[bytes]:
    """Heads and bodies that come byte by byte."""
    return _held(chance, connect, CROWD, pieces=20)


def half_open(chance: random.Random, connect: Connect) -> list[bytes]:
    """Requests that are broken off: by silence, by the end of what is sent, by a reset."""
    return _held(chance, connect, CROWD, pieces=1)


def flood(chance: random.Random, connect: Connect) -> list[bytes]:
    """More connections than the service has, most without a word."""
    return _held(chance, connect, FLOOD, pieces=chance.choice((0, 1)))


def _held(chance: random.Random, connect: Connect, count: int, pieces: int) -> list[bytes]:
    """Connections that stay open for a burst, on which some pieces of a request are sent."""
    request = _request("POST", chance.choice(PATHS), b"x" * 5000)
    start, connections = chance.randrange(1, 200), list[socket.socket]()
    for _ in range(count):
        with contextlib.suppress(OSError):
            connections.append(connect())
    for piece in range(max(1, pieces)):
        for connection in connections if pieces else ():
            with contextlib.suppress(OSError):
                connection.sendall(request[start * bool(piece) + piece : start + piece + 1])
        time.sleep(SECONDS / max(1, pieces))
    how = chance.choice(("close", "reset", "finish"))
    answers = []
    for connection in connections:
        with contextlib.suppress(OSError):
            if how == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "finish":
                connection.shutdown(socket.SHUT_WR)
                answers.append(_rest_of(connection, 0.01))
        connection.close()
    return answers


def pipelined(chance: random.Random, connect: Connect) -> list[bytes]:
    """Many requests in one piece, and answers that nobody reads."""
    request = _request(chance.choice(("GET", "POST")), chance.choice(PATHS[:9]), chance.choice((b"", b"x" * 50)))
    answers = [_exchanged(connect, request * chance.choice((2, 50)))]
    connection = connect()
    with contextlib.suppress(OSError), connection:
        connection.settimeout(SECONDS)
        connection.sendall(_request("GET", "/openapi.json") * 300)
        time.sleep(SECONDS)
    return answers


BURSTS: tuple[Burst, ...] = (malformed, forms, pictures, slow, half_open, flood, pipelined, generated)
