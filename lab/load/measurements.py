"""What is measured of the service, a function each; `lab.claims.comparison.in_process` runs one in its own process."""

import asyncio
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from demo.service.limits import Limits
from lab.load import clients
from lab.load.clients import ask_gradio, ask_service
from lab.load.server import Server, serving
from runtime.benchmark.scenarios import settle, timed
from runtime.classifier import Classifier
from runtime.classifier import load as load_classifier
from runtime.deployment import Deployment

WARM_UP_SHARE, WITNESSES, OVERLOAD = 0.1, 16, 10
LONE_BEFORE, PATIENCE = 100, 20.0  # lone requests that show what is ordinary; seconds to wait for the ordinary
POINTS = 60  # at which memory is read, in all

Figures = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """How the service is asked, and what it is started with."""

    out: str = "artifacts"
    """Folder of all artefacts."""
    photos: str = ""
    """Folder of photos to ask about; by default they are made of the golden photo."""
    seconds: float = 60
    """Length of each load."""
    clients: int = 32
    """Connections that ask without pause."""
    workers: int = 0
    """Of the service, see python -m demo --help."""
    threads: int = 0
    """Of the service."""
    batch: int = 1
    """Of the service."""

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

    def open(self, path: Path, **others: Any) -> Classifier:
        """The classifier as the service opens it."""
        return load_classifier(path, **{"threads": self.threads, "streams": max(1, self.workers), **others})


def by_wrk(load: Load) -> Figures:
    """Photos a second that the service answers to wrk, latencies, errors, memory and processor seconds."""
    with serving(*load.service()) as server:
        _warm_up(load, server)
        return _asked_by_wrk(load, server, load.clients)


def by_threads(load: Load) -> Figures:
    """The same, asked by threads of this process, as `plain` is."""
    return _by_threads(load, load.service(), ask_service)


def plain(load: Load) -> Figures:
    """The same of the plain demo of the same network: `lab.load.plain_demo`."""
    folder = load.path.parent / Deployment.read(load.path).choice.folder
    return _by_threads(load, ["lab.load.plain_demo", str(folder)], ask_gradio)


def _by_threads(load: Load, module: list[str], ask: clients.Ask) -> Figures:
    with serving(*module) as server:

        def work(seconds: float) -> Figures:
            return clients.threads(server.address, load.files, load.clients, seconds, ask)

        work(load.seconds * WARM_UP_SHARE)
        figures = _measured(server, lambda: work(load.seconds))
    figures["statuses"] = clients.statuses(figures.pop("samples"))
    return figures


def http(load: Load) -> Figures:
    """Latency of one client that asks the service for one photo after another, on one connection."""
    with serving(*load.service()) as server:
        connection, photo = clients.connect(server.address), load.files[0].read_bytes()
        return _lone(lambda: ask_service(connection, photo), load.seconds)


def queue(load: Load) -> Figures:
    """The same without HTTP, through the service's queue, threads and micro-batches."""
    from demo.service.queue import Serving

    with Serving(load.path, load.open, Limits(), load.workers, load.batch) as through, asyncio.Runner() as runner:
        photo = load.files[0].read_bytes()

        async def classify() -> str:
            with through.place():
                return (await through.classify([photo])).predictions[0].label

        return _lone(lambda: runner.run(classify()), load.seconds)


def direct(load: Load) -> Figures:
    """The same by the classifier alone, from bytes to label, as it is opened without any setting."""
    with load_classifier(load.path) as classifier:
        photo = load.files[0].read_bytes()
        return _lone(lambda: classifier(photo).label, load.seconds)


def _lone(call: Callable[[], object], seconds: float) -> Figures:
    settle(call)
    samples = timed(call, seconds)
    return {"calls": len(samples), "median_ms": statistics.median(samples), **clients.latencies(samples)}


def overload(load: Load) -> Figures:
    """OVERLOAD times the clients, who ask again as soon as they are refused, and how the service recovers.

    wrk tells no latencies by status, so WITNESSES of the clients are threads of this process.
    """
    with serving(*load.service()) as server, ThreadPoolExecutor() as pool:
        _warm_up(load, server)
        before = [_lone_sample(load, server)[1] for _ in range(LONE_BEFORE)]
        ordinary = float(np.quantile(before, 0.95))
        crowd = OVERLOAD * load.clients
        witness = pool.submit(clients.threads, server.address, load.files, WITNESSES, load.seconds, ask_service)
        figures = _asked_by_wrk(load, server, crowd - WITNESSES)
        samples = witness.result()["samples"]
        return {
            **figures,
            "clients": crowd,
            "recovered_seconds": _recovery(load, server, ordinary),
            "ordinary_ms": round(ordinary, 3),
            "witnessed": clients.statuses(samples),
            "accepted": clients.latencies([ms for status, ms in samples if status == "200"]),
            "refusals": clients.latencies([ms for status, ms in samples if status == "429"]),
            "bound_seconds": Limits().seconds,
        }


def _recovery(load: Load, server: Server, ordinary: float) -> float | None:
    """Seconds until a lone request is answered within `ordinary` milliseconds; None if not within PATIENCE."""
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < PATIENCE:
        status, milliseconds = _lone_sample(load, server)
        if status == "200" and milliseconds <= ordinary:
            return round(spent + milliseconds / 1000, 3)
    return None


def _lone_sample(load: Load, server: Server) -> clients.Sample:
    connection = clients.connect(server.address)
    sample = clients.timed(ask_service, connection, load.files[0].read_bytes())
    connection.close()
    return sample


def memory(load: Load) -> Figures:
    """The service's resident memory at POINTS points of a long load."""
    with serving(*load.service()) as server, ThreadPoolExecutor() as pool:
        _warm_up(load, server)
        asking = pool.submit(_asked_by_wrk, load, server, load.clients)
        points = []
        while not asking.done():
            points.append(server.memory_mib())
            time.sleep(load.seconds / POINTS)
        return {**asking.result(), **flatness(points, load.seconds / POINTS)}


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


def _warm_up(load: Load, server: Server) -> None:
    clients.wrk(server.address, load.files, load.clients, load.seconds * WARM_UP_SHARE)
    _lone_sample(load, server)  # is answered after those that wrk left behind


def _asked_by_wrk(load: Load, server: Server, connections: int) -> Figures:
    """What wrk found, with how the service itself counted its answers."""
    counted = server.answers()
    figures = _measured(server, lambda: clients.wrk(server.address, load.files, connections, load.seconds))
    return {**figures, "answered": dict(server.answers() - counted)}


def _measured(server: Server, work: Callable[[], Figures]) -> Figures:
    """What `work` figures, with photos a second and what the server took for it."""
    spent = server.cpu_seconds()
    figures = work()
    return {
        **figures,
        "per_second": (figures["answers"] - figures["refused"]) / figures["seconds"],
        "server_cpu_seconds": server.cpu_seconds() - spent,
        "memory_mib": server.memory_mib(),
        "peak_memory_mib": server.peak_memory_mib(),
    }
