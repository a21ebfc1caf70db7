"""What a fleet on Ray Serve loses where its parts fail: requests beside faults that come again and again.

Clients ask photo after photo, each once more where it is not answered, as a client of any service does; what comes is
compared with what the classifier says by itself. The fleet's engines are on nodes of their own (see `lab.nodes`).
"""

import argparse
import dataclasses
import random
import re
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path

import psutil

from demo.scale.settings import Settings
from lab.load.clients import CLASSIFY
from lab.nodes import HEAD, PORT, Node, nodes
from lab.torture import tiny
from lab.torture.honest import Honest, photos
from runtime.benchmark.rows import Row
from runtime.command_line import require_extra

ENGINES, CLIENTS, PATIENCE = 2, 4, 60
EVERY = 8.0  # seconds between two faults
AGAIN = 0.5  # seconds after which a client asks again
READY_SECONDS = 120
GONE_SECONDS = 10  # that a node is gone, or its disk full

Strike = Callable[[Node], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many requests beside which faults."""
    parser.add_argument("--requests", type=int, default=10_000, help="that are asked beside each fault (10,000)")
    parser.add_argument("--faults", nargs="+", choices=[*FAULTS], default=[*FAULTS], help="(all)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row a fault: requests answered at once, after one retry, lost and wrong, seconds until all is well again."""
    require_extra("scale", "ray")
    with tempfile.TemporaryDirectory() as folder, nodes(ENGINES) as machines:
        out = Path(folder)
        tiny.train_and_export(out)
        values = dataclasses.asdict(Settings(str(out / "deployment.json"), replicas=(ENGINES,)))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        from demo.scale import rollout

        started = time.monotonic()
        with rollout.fleet(values, port, f"{HEAD}:{PORT}"):
            about = {
                "engines": ENGINES,
                "ray": version("ray"),
                "seconds_to_start": round(time.monotonic() - started, 1),
            }
            asked = photos(out / "deployment.json")
            for fault in arguments.faults:
                facts = _beside(FAULTS[fault], machines, port, asked, arguments.requests)
                yield {"experiment": "scale", "fault": fault, **about, **facts}


@dataclass
class Came:
    """What came of the requests."""

    first: Counter[str] = field(default_factory=Counter)  # statuses of first tries, "none" where the connection broke
    lost: int = 0
    wrong: int = 0
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def _beside(strike: Strike, machines: list[Node], port: int, asked: list[Honest], requests: int) -> Row:
    """What came of so many requests while one of the machines, or what is on it, is struck every EVERY seconds."""
    came, back, chance = Came(), list[float](), random.Random(0)
    proxy = _proxy(machines)
    started, busy = time.monotonic(), sum(proxy.cpu_times()[:2])

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
            struck = time.monotonic()
            strike(chance.choice(machines))
            while _answering(port) <= ENGINES and time.monotonic() < struck + READY_SECONDS:
                time.sleep(0.1)
            back.append(time.monotonic() - struck)
        for each in clients:
            each.result()
    seconds, busy = time.monotonic() - started, sum(proxy.cpu_times()[:2]) - busy
    return {
        "requests": came.asked,
        "requests_per_second": round(came.asked / seconds, 1),
        "proxy_milliseconds": round(1000 * busy / came.asked, 3),
        "times": len(back),
        "first_tries": dict(sorted(came.first.items())),
        "lost_after_one_retry": came.lost,
        "wrong": came.wrong,
        "seconds_to_full_capacity": [round(seconds, 1) for seconds in back],
    }


def _proxy(machines: list[Node]) -> psutil.Process:
    """Ray's proxy that clients ask, which is none of the machines'."""
    theirs = {pid for node in machines for pid in node.processes()}
    found = (
        each for each in psutil.process_iter(["cmdline"]) if "ray::ProxyActor" in " ".join(each.info["cmdline"] or ())
    )
    return next(each for each in found if each.pid not in theirs)


def _signal(node: Node, number: int) -> None:
    """Send it to the engine on a node."""
    title = "ray::ServeReplica:engines:Engine"
    for pid in node.processes():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if title in " ".join(process.cmdline()):
                process.send_signal(number)


def _lose(node: Node) -> None:
    node.kill()
    time.sleep(GONE_SECONDS)
    node.start()


def _fill(node: Node) -> None:
    node.fill()
    time.sleep(GONE_SECONDS)
    node.free()


FAULTS: dict[str, Strike] = {
    "none": lambda node: None,
    "engine killed": lambda node: _signal(node, signal.SIGKILL),
    "engine stopped": lambda node: _signal(node, signal.SIGSTOP),
    "node killed": _lose,
    "disk of a node full": _fill,
}


def _answering(port: int) -> int:
    """How many replicas tell what they count; the page is one of them."""
    status, body = _ask(port, b"", "GET", "/metrics")
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
