"""Does anything grow? The service under moderate load for half an hour, and every engine opened and closed 50 times.

Memory, threads and open files are looked at now and then; each row has their slopes with 95 % intervals, from the means
of ten parts, so that neighbouring samples do not count as independent.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from lab.load.server import serving
from lab.torture.commands import NETWORK, World
from lab.torture.served import answers_of, asking, until
from runtime.backends import BACKENDS, unavailable_because
from runtime.benchmark.rows import Row
from runtime.classifier import load
from runtime.errors import SajiError

PARTS, T_OF_PARTS = 10, 2.306  # Student's t for 95 % with two degrees of freedom less
EACH_SECONDS = 2.0  # between two looks at the service
PAUSE = 0.1  # seconds between two requests of a client
WARM = 0.1  # of the time, at the beginning, is left out: caches fill
LEAST_LOADS = 12
BUSY = 2000  # requests without a pause, before anything is looked at
TIDIED = 630  # seconds until Gradio has tidied uploads once, in a thread that stays (see demo/page/frame.py)
FIGURES = ("memory_mib", "threads", "descriptors")

Look = tuple[float, float, float]  # a value for each of FIGURES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, and how often."""
    parser.add_argument("--minutes", type=float, default=30, help="of load (30)")
    parser.add_argument("--loads", type=int, default=50, help="times that each engine is opened and closed (50)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each engine that runs here, and one for the service. Raises SajiError for too few loads."""
    if arguments.loads < LEAST_LOADS:
        raise SajiError(f"--loads {arguments.loads} are too few to tell a slope by; give {LEAST_LOADS} or more")
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), ())
        for backend in BACKENDS:
            if not unavailable_because(backend):
                # Memory that one engine leaves behind is not the next one's
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    looks = pool.submit(loads, Path(folder) / "out" / "models" / NETWORK, backend, arguments.loads)
                    yield {"experiment": "soak", "what": backend, "loads": arguments.loads, **slopes(looks.result())}
        yield {"experiment": "soak", "what": "service", **under_load(world.folder, 60 * arguments.minutes)}


def loads(folder: Path, backend: str, times: int) -> list[Look]:
    """What this process has after each time that a model is opened, asked and closed."""
    looks = []
    for _ in range(times):
        with load(folder, backend, "fp32") as classifier:
            classifier(folder / "golden.png")
        looks.append(look(psutil.Process()))
    return looks


def under_load(folder: Path, seconds: float) -> Row:
    """The service of `folder`, with its page, and a few clients, looked at for so many seconds once all of it has run.

    Its decoders count as its own.
    """
    answers, looks = answers_of(folder), list[Look]()
    with serving("demo", f"--out={folder / 'out'}", "--port=0") as server, ExitStack() as asked:
        with asking(server.address, answers, random.Random(1), 0) as clients:  # all threads and decoders start
            until(lambda: clients.came[200] >= BUSY, "the service answers nobody")
        clients = asked.enter_context(asking(server.address, answers, random.Random(0), PAUSE))
        until(lambda: clients.came[200], "the service answers nobody")
        time.sleep(min(TIDIED, seconds))
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            time.sleep(min(EACH_SECONDS, seconds / (2 * PARTS)))
            family = [look(each) for each in (server.process, *server.process.children())]
            looks.append(tuple(map(sum, zip(*family, strict=True))))  # type: ignore[arg-type]
        took = time.monotonic() - started
    if clients.wrong:
        raise clients.wrong
    facts = {"seconds": round(took, 1), "came": {str(status): n for status, n in sorted(clients.came.items())}}
    return {**facts, "unit_seconds": 3600, **slopes(looks, 3600 * len(looks) / took)}


def look(process: psutil.Process) -> Look:
    """Resident memory in MiB, threads, and open files of a process now."""
    return process.memory_info().rss / 2**20, process.num_threads(), process.num_fds()


def slopes(looks: Sequence[Look], unit: float = 1.0) -> dict[str, Any]:
    """Of each figure the first and last value, and its growth in `unit` looks: lower bound, slope, upper bound."""
    settled = np.array(looks[int(WARM * len(looks)) :])
    facts = {}
    for name, values in zip(FIGURES, settled.T, strict=True):
        parts = np.array([part.mean() for part in np.array_split(values, PARTS)])
        at = (np.arange(PARTS) + 0.5) * len(values) / PARTS
        apart = at - at.mean()
        slope = float(apart @ parts / (apart @ apart))
        left = parts - parts.mean() - slope * apart
        error = T_OF_PARTS * float(np.sqrt(left @ left / (PARTS - 2) / (apart @ apart)))
        growth = [round(unit * value, 4) for value in (slope - error, slope, slope + error)]
        facts[name] = {"first": round(float(values[0]), 1), "last": round(float(values[-1]), 1), "growth": growth}
    return facts
