"""What a fleet on Ray Serve loses where its parts die: requests beside a replica that is killed again and again.

Clients ask photo after photo, each once more where it is not answered, as a client of any service does; what comes is
compared with what the classifier says by itself.
"""

import argparse
import dataclasses
import random
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path

import psutil

from demo.scale.settings import Settings
from lab.load.clients import CLASSIFY
from lab.torture import tiny
from lab.torture.honest import Honest, photos
from runtime.benchmark.rows import Row
from runtime.command_line import require_extra

CLIENTS, PATIENCE = 4, 60
EVERY = 8.0  # seconds between two kills
AGAIN = 0.5  # seconds after which a client asks again
READY_SECONDS = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many requests, of which fleet."""
    parser.add_argument("--requests", type=int, default=10_000, help="that are asked in all (10,000)")
    parser.add_argument("--replicas", type=int, default=2, help="engines (2)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row: replicas killed, requests answered at once, after one retry, lost and wrong, seconds to full capacity."""
    require_extra("scale", "ray")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        tiny.train_and_export(out)
        yield {"experiment": "scale", "ray": version("ray"), **killed(out, arguments.requests, arguments.replicas)}


@dataclass
class Came:
    """What came of the requests."""

    first: Counter[str] = field(default_factory=Counter)  # statuses of first tries, "none" where the connection broke
    lost: int = 0
    wrong: int = 0
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def killed(out: Path, requests: int, replicas: int) -> Row:
    """A fleet of the deployment in `out`, one of whose replicas is killed every EVERY seconds."""
    from demo.scale import rollout

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    values = dataclasses.asdict(Settings(str(out / "deployment.json"), replicas=(replicas,)))
    started = time.monotonic()
    with rollout.fleet(values, port):
        up = time.monotonic() - started
        came, back = _under_kills(port, photos(out / "deployment.json"), requests, replicas)
    return {
        "replicas": replicas,
        "requests": came.asked,
        "kills": len(back),
        "first_tries": dict(sorted(came.first.items())),
        "lost_after_one_retry": came.lost,
        "wrong": came.wrong,
        "seconds_to_start": round(up, 1),
        "seconds_to_full_capacity": [round(seconds, 1) for seconds in back],
    }


def _under_kills(port: int, asked: list[Honest], requests: int, replicas: int) -> tuple[Came, list[float]]:
    came, back, chance = Came(), list[float](), random.Random(0)

    def client(number: int) -> None:
        mine = random.Random(number)
        while True:
            with came.lock:
                if came.asked >= requests:
                    return
                came.asked += 1
            _ask_twice(port, mine.choice(asked), came)

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        while not all(each.done() for each in clients):
            time.sleep(EVERY)
            chance.choice(_engines()).kill()
            died = time.monotonic()
            while _answering(port) <= replicas and time.monotonic() < died + READY_SECONDS:
                time.sleep(0.1)
            back.append(time.monotonic() - died)
        for each in clients:
            each.result()
    return came, back


def _engines() -> list[psutil.Process]:
    title = "ray::ServeReplica:engines:Engine"
    return [each for each in psutil.process_iter(["cmdline"]) if title in " ".join(each.info["cmdline"] or ())]


def _answering(port: int) -> int:
    """How many replicas tell what they count; the page is one of them."""
    status, body = _ask(port, b"", "GET", "/metrics/replicas")
    return len(set(re.findall(r'replica="([^"]+)"', body.decode()))) if status == "200" else 0


def _ask_twice(port: int, honest: Honest, came: Came) -> None:
    for again in range(2):
        status, body = _ask(port, honest.photo)
        if not again:
            with came.lock:
                came.first[status] += 1
        if status == "200":
            if honest.wrong(body):
                with came.lock:
                    came.wrong += 1
            return
        time.sleep(AGAIN)
    with came.lock:
        came.lost += 1


def _ask(port: int, photo: bytes, method: str = "POST", path: str = CLASSIFY) -> tuple[str, bytes]:
    connection = HTTPConnection("127.0.0.1", port, PATIENCE)
    try:
        connection.request(method, path, photo, {"content-type": "image/jpeg"})
        answer = connection.getresponse()
        return str(answer.status), answer.read()
    except (OSError, HTTPException):
        return "none", b""
    finally:
        connection.close()
