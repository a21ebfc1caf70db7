"""How long a newcomer waits: the README's commands in a fresh clone of the last commit, each typed once, in this order.

Set-up takes its wheels from where pip finds them, so its seconds are those of that place. The page is there once it
answers. With --data photos of one's own are trained and exported as well.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from runtime.benchmark.rows import Row
from runtime.errors import SajiError
from runtime.preprocess import SUFFIXES
from runtime.terminal import say

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 3600.0  # seconds of each step
CHANGED = {"export": "export/parity.py", "benchmark": "runtime/benchmark/scenarios.py"}  # a line is added to them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is typed beside `make demo` and `make`."""
    parser.add_argument("--data", type=Path, help="photos of one's own, for make train DATA= and make export DATA=")
    parser.add_argument("--tests", action="store_true", help="make test, too")
    parser.add_argument("--only", default="", metavar="TEXT", help="steps with this in their name; set-up always")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each step."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "saji"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for number, (name, action) in enumerate(_steps(clone, arguments)):
            if number == 0 or arguments.only in name:
                yield _step(name, action)


def _steps(clone: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "make setup", lambda: _make(clone, "setup")
    yield "make demo, until the page is there", lambda: _page(clone)
    yield "make demo again", lambda: _page(clone)
    yield "make", lambda: _make(clone)
    yield "make again, nothing changed", lambda: _make(clone)
    for what, file in CHANGED.items():
        yield f"make, the code of the {what} changed", partial(_changed, clone, file)
    if arguments.data:
        data = arguments.data.resolve()
        count = sum(path.suffix.lower() in SUFFIXES for path in data.rglob("*"))
        for stage in ("train", "export"):
            words = [stage, f"DATA={data}", "RECIPE=transfer", "RUN=own"]
            yield f"make {stage} DATA= RECIPE=transfer, {count} photos", partial(_make, clone, *words)
    if arguments.tests:
        yield "make test", lambda: _make(clone, "test")


def _changed(clone: Path, file: str) -> None:
    with (clone / file).open("a") as code:
        code.write("# changed\n")
    _make(clone)


def _step(name: str, action: Callable[[], None]) -> Row:
    started = time.perf_counter()
    action()
    seconds = time.perf_counter() - started
    say(f"{name}: {seconds:.0f} s")
    return {"experiment": "first use", "step": name, "seconds": round(seconds, 1)}


def _make(clone: Path, *words: str) -> None:
    """Run make there. Raises SajiError with the last line that it printed where it fails."""
    done = subprocess.run(["make", *words], cwd=clone, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SajiError(f"make {' '.join(words)} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


def _page(clone: Path) -> None:
    """Start `make demo`, wait for its page, end it."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    line = ["make", "demo", f"ARGS=--port {port}"]
    with tempfile.TemporaryFile() as said:
        demo = subprocess.Popen(line, cwd=clone, stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + LIMIT
            while not _answers(port):
                if demo.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise SajiError(f"make demo gave no page: {said.read().decode(errors='replace')[-300:]}")
                time.sleep(0.05)
        finally:
            os.killpg(demo.pid, signal.SIGTERM)
            demo.wait(60)


def _answers(port: int) -> bool:
    with contextlib.suppress(urllib.error.URLError, OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).status == 200)
    return False
