"""What the tests of strangers share: the page's functions, calls as a browser makes them, and bytes no client sends."""

import json
import os
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from conftest import PATIENCE
from test_demo import GREEN, ROOT, SERVE, deployment, exported, picture, start
from test_service import wait_until

from runtime.spec import Geometry, ModelSpec

META = {"_type": "gradio.FileData"}  # what Gradio's own clients send beside a path
JSON = {"content-type": "application/json"}
CALL = "/gradio_api/call/classify"


@dataclass(frozen=True)
class Function:
    """A function of the page by what it takes and gives, and by what starts it."""

    index: int
    event: str
    started_by: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]


def functions_of(client: httpx.Client) -> list[Function]:
    """What the page can have done by the server, as `/config` lists it."""
    told = client.get("/config").json()
    parts = {part["id"]: part for part in told["components"]}

    def kinds(numbers: Sequence[int]) -> tuple[str, ...]:
        return tuple(parts[number]["type"] for number in numbers)

    def starter(number: int | None) -> str:
        part = parts.get(number, {"type": ""})
        return part.get("props", {}).get("variant", "") + part["type"]

    return [
        Function(call["id"], event, starter(by), kinds(call["inputs"]), kinds(call["outputs"]))
        for call in told["dependencies"]
        if call["backend_fn"]
        for by, event in call["targets"] or [(None, "")]
    ]


def the_function(client: httpx.Client, way: str) -> Function:
    """The function behind one of the page's ways to name a photo, or behind a click on an example."""

    def fits(one: Function) -> bool:
        if way == "example":
            return one.takes == ("dataset",)
        if way == "batch":
            return one.event == "click" and one.takes == ("file",)
        if one.takes != ("image",):
            return False
        if way == "classify tab":
            return one.event == "change" and "label" in one.gives
        return one.event == "click" and (one.started_by == "primarybutton") is (way == "compare")

    [found] = [one for one in functions_of(client) if fits(one)]
    return found


def answer_of_page(client: httpx.Client, function: int, data: Any) -> str:
    """The last word to a call as the page makes it: what is shown, why it failed, or the refusal of the call."""
    session = secrets.token_hex(6)
    joined = joining(client, {"data": data, "fn_index": function, "session_hash": session})
    if joined.status_code != 200:
        return told(joined)
    last = ""
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {"msg": ""}
            if message["msg"] == "process_completed":
                output = message["output"]
                last = json.dumps(output["data"]) if message["success"] else f"failed: {output['error']}"
            if message["msg"] == "unexpected_error":
                last = f"failed: {message['message']}"
            if message["msg"] in ("process_completed", "unexpected_error", "close_stream"):
                break
    return last


def joining(client: httpx.Client, body: Any) -> httpx.Response:
    """The answer to a call of the page, before anything is done. JSON by hand: httpx refuses odd characters."""
    return client.post("/gradio_api/queue/join", content=json.dumps(body), headers=JSON)


def answer_of_api(client: httpx.Client, data: Any) -> str:
    """The last word of `/classify`, which is what Gradio's clients call."""
    joined = client.post(CALL, content=json.dumps({"data": data}), headers=JSON)
    if joined.status_code != 200:
        return told(joined)
    event, said = client.get(f"{CALL}/{joined.json()['event_id']}").text.strip().split("\n", 1)
    words = json.loads(said.removeprefix("data:"))
    return f"failed: {words and words['error']}" if event == "event: error" else json.dumps(words)


def show_heat() -> None:
    """Let a heat map be drawn without a network: for `command(before=...)`."""
    from runtime import heatmap

    class Stub:
        spec = ModelSpec("stub", "none", ("green_lalap",), Geometry.for_size(32))

        def of(self, image: np.ndarray) -> heatmap.Heat:
            return heatmap.Heat("green_lalap", np.eye(4, dtype=np.float32), Geometry.for_size(32))

    heatmap.Heatmap.of_model = lambda *_: Stub()  # type: ignore[assignment, method-assign, return-value]


def told(answer: httpx.Response) -> str:
    """A refusal without what differs from one to the next."""
    body = answer.text
    if answer.headers.get("content-type") == "application/problem+json":
        body = json.dumps({name: value for name, value in answer.json().items() if name != "request_id"})
    return f"{answer.status_code} {body}"


def parts_of(client: httpx.Client) -> tuple[str, int]:
    """Host and port of the service."""
    return client.base_url.host, client.base_url.port or 80


def raw(client: httpx.Client, request: bytes, seconds: float = 5) -> bytes:
    """What comes back for these bytes until the service closes, or has been silent for `seconds`."""
    with socket.create_connection(parts_of(client), timeout=seconds) as connection:
        with suppress(OSError):  # refused while we still sent
            connection.sendall(request)
        return rest_of(connection)


def rest_of(connection: socket.socket) -> bytes:
    """All that still comes out of a connection, within its timeout."""
    came = b""
    with suppress(OSError):
        while len(came) < 100_000 and (piece := connection.recv(65536)):
            came += piece
    return came


def asked(client: httpx.Client, target: str, *headers: str, method: str = "GET", seconds: float = 5) -> bytes:
    """What comes back for a request written by hand, whose other headers are right."""
    host, port = parts_of(client)
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {f'[{host}]' if ':' in host else host}:{port}",
        *headers,
        "Connection: close",
        "",
        "",
    ]
    return raw(client, "\r\n".join(lines).encode("latin-1"), seconds)


def status_of(answer: bytes) -> int:
    """The status of an answer as it came; 0 where there is none."""
    words = answer.split(b"\r\n", 1)[0].split()
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") else 0


# A service in a process of its own: one that can be killed, has its own memory, and its own bound of open files


@dataclass
class Service:
    """A running `python -m demo` with a classifier that needs no network."""

    address: str
    process: subprocess.Popen[str]
    said: list[str]  # its lines on stderr so far

    def megabytes(self) -> float:
        """The memory that it holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def logged(self, client: httpx.Client) -> list[str]:
        """The lines of its log up to now: a line comes a moment after the answer that it tells of."""
        last = f"last-{secrets.token_hex(8)}"
        client.get("/healthz", headers={"x-request-id": last})
        wait_until(lambda: any(last in line for line in self.said))
        served = next(number for number, line in enumerate(self.said) if line.startswith("serving "))
        return self.said[served + 1 :]


@contextmanager
def command(folder: Path, *flags: str, before: str = "", **environment: str) -> Iterator[Service]:
    """`python -m demo FLAGS`, with `before` run first in its process; killed in the end, whatever it does."""
    deployment().write(folder / "deployment.json")
    picture(exported(folder / "models" / "resnet34") / "examples" / "000_green.png", GREEN)
    script = f"import sys; sys.path.append({str(ROOT / 'tests')!r})\n{before}\n{SERVE}"
    was = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        process = start("-c", script, "--out", str(folder), "--port", "0", *flags, cwd=folder)
    finally:
        for name, value in was.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    service = Service("", process, [])
    too_long = threading.Timer(PATIENCE, process.kill)
    too_long.start()
    listener = threading.Thread(target=lambda: None)
    try:
        for line in process.stderr or ():
            service.said.append(line.rstrip("\n"))
            if line.startswith("serving "):
                break
        assert service.said and service.said[-1].startswith("serving "), service.said
        service.address = service.said[-1].split()[-1]
        # A full pipe would stop the service
        listener = threading.Thread(target=lambda: service.said.extend(s.rstrip("\n") for s in process.stderr or ()))
        listener.start()
        yield service
    finally:
        too_long.cancel()
        process.send_signal(signal.SIGKILL)
        process.wait()
        if listener.ident:
            listener.join()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
