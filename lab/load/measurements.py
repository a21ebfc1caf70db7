"""What is measured, one side of a comparison each: `python -m lab.load.sides NAME LOAD`, LOAD being JSON.

The last line of stdout is JSON, for `lab.claims.ratio`.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from demo.service.limits import Limits
from lab.load import clients
from lab.load.clients import ask_gradio, ask_service
from lab.load.server import Server, serving
from runtime.benchmark.scenarios import settle, timed
from runtime.classifier import Classifier, load
from runtime.command_line import exit_with_one_sentence
from runtime.deployment import Deployment

WARM_UP_SHARE, WITNESSES, OVERLOAD = 0.1, 16, 10
LONE_BEFORE, PATIENCE = 100, 20.0  # lone requests that show what is ordinary; seconds to wait for the ordinary
POINTS = 60  # at which memory is read, in all

Figures = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """The deployment in `out`, a folder of `photos`, how long and how many clients; the service's own settings."""

    out: str
    photos: str
    seconds: float = 60
    clients: int = 32
    workers: int = 1
    threads: int = 0
    batch: int = 1

    def side(self, name: str) -> list[str]:
        """The arguments of Python that measure this in another process."""
        return ["-m", "lab.load.sides", name, json.dumps(asdict(self))]

    def service(self) -> list[str]:
        """The arguments of Python's -m that start the service."""
        settings = {"out": self.out, "port": 0, "max-queue": max(self.clients, Limits().queue)}
        settings |= {"max-connections": OVERLOAD * self.clients + 100}  # what is measured is the queue
        settings |= {"workers": self.workers, "threads": self.threads, "batch": self.batch}
        return ["demo", *(f"--{name}={value}" for name, value in settings.items())]

    @property
    def path(self) -> Path:
        """Of the deployment."""
        return Path(self.out) / "deployment.json"

    @cached_property
    def files(self) -> list[Path]:
        """The photos."""
        return sorted(Path(self.photos).iterdir())

    def open(self, path: Path) -> Classifier:
        """The classifier as the service opens it."""
        return load(path, threads=self.threads, streams=self.workers)


def by_wrk(asked: Load) -> Figures:
    """Photos a second that the service answers to wrk, latencies, errors, memory and processor seconds."""
    with serving(*asked.service()) as server:
        _warm_up(asked, server)
        return _asked_by_wrk(asked, server, asked.clients)


def by_threads(asked: Load) -> Figures:
    """The same, asked by threads of this process, as `plain` is."""
    return _by_threads(asked, asked.service(), ask_service)


def plain(asked: Load) -> Figures:
    """The same of the plain demo of the same network: `lab.load.plain`."""
    folder = asked.path.parent / Deployment.read(asked.path).choice.folder
    return _by_threads(asked, ["lab.load.plain", str(folder)], ask_gradio)


def _by_threads(asked: Load, module: list[str], ask: clients.Ask) -> Figures:
    with serving(*module) as server:

        def work(seconds: float) -> Figures:
            return clients.threads(server.address, asked.files, asked.clients, seconds, ask)

        work(asked.seconds * WARM_UP_SHARE)
        found = _measured(server, lambda: work(asked.seconds))
    statuses = clients.statuses(found.pop("samples"))
    return {**found, "statuses": statuses}


def http(asked: Load) -> Figures:
    """Latency of one client that asks the service for one photo after another, on one connection."""
    with serving(*asked.service()) as server:
        connection, photo = clients.connect(server.address), asked.files[0].read_bytes()
        return _lone(lambda: ask_service(connection, photo), asked.seconds)


def queue(asked: Load) -> Figures:
    """The same without HTTP, through the service's queue, threads and micro-batches."""
    from demo.service.queue import Serving

    with Serving(asked.path, asked.open, Limits(), asked.workers, asked.batch) as through, asyncio.Runner() as runner:
        photo = asked.files[0].read_bytes()

        async def classify() -> str:
            with through.place():
                return (await through.classify([photo])).predictions[0].label

        return _lone(lambda: runner.run(classify()), asked.seconds)


def direct(asked: Load) -> Figures:
    """The same by the classifier alone, from bytes to label, as it is opened without any setting."""
    with load(asked.path) as classifier:
        photo = asked.files[0].read_bytes()
        return _lone(lambda: classifier(photo).label, asked.seconds)


def _lone(call: Callable[[], object], seconds: float) -> Figures:
    settle(call)
    samples = timed(call, seconds)
    return {"calls": len(samples), "median_ms": statistics.median(samples), **clients.latencies(samples)}


def overload(asked: Load) -> Figures:
    """OVERLOAD times the clients, who ask again as soon as they are refused, and how the service recovers.

    wrk tells no latencies by status, so WITNESSES of the clients are threads of this process.
    """
    with serving(*asked.service()) as server, ThreadPoolExecutor() as pool:
        _warm_up(asked, server)
        before = [_lone_sample(asked, server)[1] for _ in range(LONE_BEFORE)]
        ordinary = float(np.quantile(before, 0.95))
        crowd = OVERLOAD * asked.clients
        witness = pool.submit(clients.threads, server.address, asked.files, WITNESSES, asked.seconds, ask_service)
        found = _asked_by_wrk(asked, server, crowd - WITNESSES)
        samples = witness.result()["samples"]
        return {
            **found,
            "clients": crowd,
            "recovered_seconds": _recovery(asked, server, ordinary),
            "ordinary_ms": round(ordinary, 3),
            "witnessed": clients.statuses(samples),
            "accepted": clients.latencies([ms for status, ms in samples if status == "200"]),
            "refusals": clients.latencies([ms for status, ms in samples if status == "429"]),
            "bound_seconds": Limits().seconds,
        }


def _recovery(asked: Load, server: Server, ordinary: float) -> float | None:
    """Seconds until a lone request is answered within `ordinary` milliseconds; None if not within PATIENCE."""
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < PATIENCE:
        status, milliseconds = _lone_sample(asked, server)
        if status == "200" and milliseconds <= ordinary:
            return round(spent + milliseconds / 1000, 3)
    return None


def _lone_sample(asked: Load, server: Server) -> clients.Sample:
    connection = clients.connect(server.address)
    sample = clients.timed(ask_service, connection, asked.files[0].read_bytes())
    connection.close()
    return sample


def memory(asked: Load) -> Figures:
    """The service's resident memory at POINTS points of a long load."""
    with serving(*asked.service()) as server, ThreadPoolExecutor() as pool:
        _warm_up(asked, server)
        load = pool.submit(_asked_by_wrk, asked, server, asked.clients)
        points = []
        while not load.done():
            points.append(server.memory_mib())
            time.sleep(asked.seconds / POINTS)
        return {**load.result(), **flatness(points, asked.seconds / POINTS)}


def flatness(points: list[float], interval: float) -> Figures:
    """How memory grew over points that are `interval` seconds apart: the medians of the first and last tenth."""
    tenth = max(1, len(points) // 10)
    first, last = statistics.median(points[:tenth]), statistics.median(points[-tenth:])
    return {
        "points_mib": points,
        "interval_seconds": round(interval, 3),
        "first_mib": round(first, 1),
        "last_mib": round(last, 1),
        "growth": round(last / first - 1, 4),
        "slope_mib_per_hour": round(3600 * float(np.polyfit(interval * np.arange(len(points)), points, 1)[0]), 1),
    }


def _warm_up(asked: Load, server: Server) -> None:
    clients.wrk(server.address, asked.files, asked.clients, asked.seconds * WARM_UP_SHARE)
    _lone_sample(asked, server)  # is answered after those that wrk left behind


def _asked_by_wrk(asked: Load, server: Server, connections: int) -> Figures:
    """What wrk found, with how the service itself counted its answers."""
    counted = server.answers()
    found = _measured(server, lambda: clients.wrk(server.address, asked.files, connections, asked.seconds))
    return {**found, "answered": dict(server.answers() - counted)}


def _measured(server: Server, work: Callable[[], Figures]) -> Figures:
    """What `work` found, with photos a second and what the server took for it."""
    spent = server.cpu_seconds()
    found = work()
    return {
        **found,
        "per_second": (found["answers"] - found["refused"]) / found["seconds"],
        "server_cpu_seconds": server.cpu_seconds() - spent,
        "memory_mib": server.memory_mib(),
        "peak_memory_mib": server.peak_memory_mib(),
    }


SIDES: dict[str, Callable[[Load], Figures]] = {
    side.__name__: side for side in (by_wrk, by_threads, plain, http, queue, direct, overload, memory)
}


def main() -> None:
    """Measure one side."""
    print(json.dumps(SIDES[sys.argv[1]](Load(**json.loads(sys.argv[2])))))


if __name__ == "__main__":
    exit_with_one_sentence(main)
