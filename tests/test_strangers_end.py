"""The service ends when it is told to, whoever holds on to it."""

import json
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from conftest import PATIENCE
from strangers import command, parts_of
from test_service import photo, wait_until

from demo.app import LEAVE_SECONDS

SECONDS = 2  # that a request may take; twice that is the time until the last one is answered or given up
HANGING_ENGINE = """
import threading
import test_demo
def hang(self, images, calls=[]):
    calls.append(1)
    if len(calls) > 6:  # the warm-up, alone and in a crowd
        threading.Event().wait()
    return images.mean(axis=(1, 2), dtype="float32")
test_demo.MeanColour.run = hang
"""
HANGING_DECODER = """
import os
from demo.service import decoders
os.environ["PYTHONPATH"] = {folder!r}
decoders.decoding.__name__ = "hangs"
"""
HANGING_LOOP = """
import time
from demo import app
from demo.service.queue import Serving
app.LEAVE_SECONDS = 0.5
async def hang(self):
    time.sleep(600)
Serving.metrics = hang
"""
SLOW = pytest.mark.slow
posix_only = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="signals as POSIX has them")


def hold(client: httpx.Client, stack: ExitStack) -> None:
    """Connections that never come to an end: half a head, half a body, an open page that listens for an answer."""
    host = b"Host: 127.0.0.1\r\n"
    for beginning in (
        b"",
        b"GET / HTTP/1.1\r\nX-A: ",
        b"POST /v1/classify HTTP/1.1\r\n" + host + b"Content-Type: image/jpeg\r\nContent-Length: 900\r\n\r\nabc",
        b"GET /gradio_api/heartbeat/a HTTP/1.1\r\n" + host + b"\r\n",
        b"GET /gradio_api/queue/data?session_hash=a HTTP/1.1\r\n" + host + b"\r\n",
    ):
        connection = stack.enter_context(socket.create_connection(parts_of(client), timeout=PATIENCE))
        connection.sendall(beginning)


@posix_only
@pytest.mark.parametrize("hanging", ["engine", *(pytest.param(what, marks=SLOW) for what in ("clients", "decoder"))])
def test_sigterm_ends_a_service_that_is_held(hanging: str, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)\n")
    before = {
        "clients": "",
        "decoder": HANGING_DECODER.format(folder=str(tmp_path)),
        "engine": HANGING_ENGINE,
    }[hanging]
    flags = ("--max-seconds", str(SECONDS), "--max-decoders", "1")
    with (
        command(tmp_path, *flags, before=before, TMPDIR=str(tmp_path)) as service,
        httpx.Client(base_url=service.address, timeout=PATIENCE) as client,
        ExitStack() as stack,
    ):
        sent = client.post("/gradio_api/upload", files={"files": ("a.png", photo(kind="PNG"))}).json()
        hold(client, stack)
        if hanging != "clients":
            answer = client.post("/v1/classify", content=photo())
            assert (answer.status_code, answer.json()["cause"]) == (503, "too-slow")
        wait_until(lambda: "saji_queue_depth 0.0" in client.get("/metrics").text)
        stopped = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        status = service.process.wait(PATIENCE)
        assert status == 143 and time.monotonic() - stopped < 2 * SECONDS + LEAVE_SECONDS + 2
        assert not Path(sent[0]).exists(), "what was uploaded stays"
        said = [line for line in service.said[1:] if line.startswith("{")]
        assert not [line for line in said if "traceback" in json.loads(line)]


@posix_only
def test_sigterm_ends_a_service_whose_loop_hangs(tmp_path: Path) -> None:
    """Where nothing is answered any more, and nothing of what follows the last answer comes."""
    with (
        command(tmp_path, "--max-seconds", "1", before=HANGING_LOOP, TMPDIR=str(tmp_path)) as service,
        httpx.Client(base_url=service.address, timeout=1) as client,
    ):
        sent = client.post("/gradio_api/upload", files={"files": ("a.png", photo(kind="PNG"))}, timeout=PATIENCE).json()
        with pytest.raises(httpx.ReadTimeout):
            client.get("/metrics")
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE) == 143
        assert not Path(sent[0]).exists(), "what was uploaded stays"
