"""Clients of the service: wrk, which takes least of the processor, and threads of this process where it does not do."""

import json
import resource
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from itertools import cycle
from pathlib import Path
from typing import Any

from runtime.errors import Unavailable
from runtime.speed_ratio import percentile

CLASSIFY = "/v1/classify"
PATIENCE = 60  # seconds that a client waits for an answer
NO_ANSWER = "none"  # stands for the status when the connection broke
MOST_PHOTOS = 64  # that wrk holds in its memory
_BOUNDARY = "photo-boundary"

Sample = tuple[str, float]  # status, milliseconds
Ask = Callable[[HTTPConnection, bytes], str]  # sends a photo, returns the status


def wrk(address: str, photos: Sequence[Path], connections: int, seconds: float) -> dict[str, Any]:
    """What wrk found by so many connections that ask without pause, and the processor seconds that it took itself."""
    if not shutil.which("wrk"):
        raise Unavailable("wrk, which makes the load, is not here; install it with: sudo apt-get install wrk")
    script = str(Path(__file__).with_name("photos.lua"))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", f"--timeout={PATIENCE}s"]
    command += [f"--script={script}", address + CLASSIFY, "--", *map(str, photos[:MOST_PHOTOS])]
    before = _cpu_seconds(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"wrk failed with status {done.returncode}: {(done.stderr or done.stdout).strip()[-200:]}")
    return {**summary(done.stdout), "client_cpu_seconds": _cpu_seconds(resource.RUSAGE_CHILDREN) - before}


def summary(text: str) -> dict[str, Any]:
    """The JSON that our script makes wrk print, among its own lines. Raises Unavailable where there is none."""
    for line in text.splitlines():
        if line.startswith("{"):
            figures: dict[str, Any] = json.loads(line)
            return figures
    raise Unavailable("wrk printed no summary; it has to be built with Lua, as Debian's is: sudo apt-get install wrk")


def threads(address: str, photos: Sequence[Path], clients: int, seconds: float, ask: Ask) -> dict[str, Any]:
    """The same figures by threads of this process, each with a connection that stays open.

    `samples` are the statuses and latencies of all.
    """
    before, started = _cpu_seconds(resource.RUSAGE_SELF), time.perf_counter()
    bodies = [path.read_bytes() for path in photos[:MOST_PHOTOS]]

    def client(number: int) -> list[Sample]:
        mine = cycle(bodies[number % len(bodies) :] + bodies[: number % len(bodies)])
        connection = connect(address)
        samples = []
        while time.perf_counter() < started + seconds:
            samples.append(timed(ask, connection, next(mine)))
        connection.close()
        return samples

    with ThreadPoolExecutor(clients) as pool:
        samples = [sample for of_one in pool.map(client, range(clients)) for sample in of_one]
    return {
        "seconds": time.perf_counter() - started,
        "answers": sum(status != NO_ANSWER for status, _ in samples),
        "refused": sum(status not in ("200", NO_ANSWER) for status, _ in samples),
        "broken": sum(status == NO_ANSWER for status, _ in samples),
        **latencies([ms for status, ms in samples if status == "200"]),
        "client_cpu_seconds": _cpu_seconds(resource.RUSAGE_SELF) - before,
        "samples": samples,
    }


def latencies(milliseconds: Sequence[float]) -> dict[str, float | None]:
    """Percentiles and maximum; None where there are too few samples for one."""
    figures = {f"p{percent}_ms": percentile(milliseconds, percent) for percent in (50, 95, 99)}
    figures["max_ms"] = max(milliseconds, default=None)
    return {name: value and round(value, 3) for name, value in figures.items()}


def statuses(samples: Sequence[Sample]) -> dict[str, int]:
    """How many answers there are of each status."""
    return dict(Counter(status for status, _ in samples))


def connect(address: str) -> HTTPConnection:
    """A connection that is opened by the first request, and anew by the next one after it broke."""
    return HTTPConnection(address.removeprefix("http://"), timeout=PATIENCE)


def timed(ask: Ask, connection: HTTPConnection, photo: bytes) -> Sample:
    """The status of one answer and the milliseconds it took."""
    started = time.perf_counter()
    try:
        status = ask(connection, photo)
    except (HTTPException, OSError):
        connection.close()
        status = NO_ANSWER
    return status, 1000 * (time.perf_counter() - started)


def ask_service(connection: HTTPConnection, photo: bytes) -> str:
    """A photo as the body of a request."""
    connection.request("POST", CLASSIFY, photo, {"content-type": "image/jpeg"})
    answer = connection.getresponse()
    answer.read()
    return str(answer.status)


def ask_gradio(connection: HTTPConnection, photo: bytes) -> str:
    """A photo as Gradio's clients send it: upload the file, name it in a call, wait for the call's last event."""
    head = f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="files"; filename="photo.jpg"\r\n\r\n'
    form = head.encode() + photo + f"\r\n--{_BOUNDARY}--\r\n".encode()
    [path] = _json(connection, "upload", form, f"multipart/form-data; boundary={_BOUNDARY}")
    call = json.dumps({"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}).encode()
    event = _json(connection, "call/predict", call, "application/json")["event_id"]
    connection.request("GET", f"/gradio_api/call/predict/{event}")
    return "200" if b"event: complete" in connection.getresponse().read() else "500"


def _json(connection: HTTPConnection, path: str, body: bytes, kind: str) -> Any:
    connection.request("POST", f"/gradio_api/{path}", body, {"content-type": kind})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise HTTPException(f"{path} was answered with {answer.status}")
    return json.loads(content)


def _cpu_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime
