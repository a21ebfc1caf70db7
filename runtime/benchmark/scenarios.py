"""What is timed, by MLPerf Inference's names for it: single stream, offline, server; and bytes to label, end to end.

A scenario is one entry of SCENARIOS, at the end of this file: its flags, its rows and its table follow from that.
"""

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.benchmark.watch import Disturbance
from runtime.classifier import Classifier
from runtime.ranges import Positive, require_right
from runtime.speed_ratio import samples_needed

WARM_UP_SECONDS, SETTLED = 3.0, 0.05
LEAST_CALLS = 3  # of a measurement
DEVICE_CALLS = 10  # of a measurement, where the backend tells the time on the device
ON_DEVICE = (
    "inference without transfers: between CUDA events before and after what runs on the engine's stream; the calls "
    "timed with transfers are others, copy from and to memory of the host and end when their stream is synchronised"
)
SERVER_PERCENTILE = 99  # MLPerf's server scenario bounds p99 of ResNet-50
SERVER_QUERIES = max(500, samples_needed(SERVER_PERCENTILE))  # at each rate that is tried
LONGEST_SECONDS = 180  # that one rate of the server scenario is tried for

Row = dict[str, Any]  # see runtime.benchmark.rows
Column = tuple[str, Callable[[Row], str]]  # of a table: its head, and what it says of a row


@dataclass(frozen=True)
class Bench:
    """An opened candidate and what it is fed: preprocessed photos uint8 `[N, S, S, 3]`, one photo's encoded bytes.

    `streams` are the calls side by side that it was opened for, `seed` decides what is random.
    """

    classifier: Classifier
    images: np.ndarray
    photo: bytes
    streams: int = 1
    seed: int = 0

    def batch(self, size: int) -> np.ndarray:
        """`size` of the photos, over again where there are fewer; uint8 `[size, S, S, 3]`."""
        return np.ascontiguousarray(self.images[np.arange(size) % len(self.images)])


@dataclass(frozen=True)
class Measurement:
    """What was measured of a candidate in one round.

    `samples` are the milliseconds of each call, `device` those of some further calls on the device alone, `parts` the
    median of each part of a call that is more than inference. A scenario that measures something else than calls gives
    the `figures` that its row has. The rest is the worker's: seconds of opening, MiB at the peak so far and held of the
    GPU's memory, and what else the machine did.
    """

    samples: tuple[float, ...] = ()
    device: tuple[float, ...] = ()
    parts: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    load_seconds: float = 0.0
    peak_memory_mib: float | None = None
    gpu_memory_mib: float | None = None
    disturbance: Disturbance | None = None


def timed(call: Callable[[], object], seconds: float, at_least: int = LEAST_CALLS) -> list[float]:
    """Milliseconds of each call, for about `seconds`."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < at_least or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        samples.append(1000 * (time.perf_counter() - started))
    return samples


def settle(call: Callable[[], object], group: int = 6) -> None:
    """Call until the last `group` are as fast as the group before, within SETTLED, or WARM_UP_SECONDS are over."""
    end, samples = time.perf_counter() + WARM_UP_SECONDS, timed(call, 0, group)
    while time.perf_counter() < end:
        before, samples = statistics.median(samples), timed(call, 0, group)
        if abs(statistics.median(samples) - before) <= SETTLED * before:
            return


def single_stream(bench: Bench, batch: int, seconds: float) -> Measurement:
    """One call after another, each a batch in host memory to logits in host memory.

    Some calls more tell the time on the device, from backends that have a `device_milliseconds`.
    """
    photos = bench.batch(batch)
    samples = timed(lambda: bench.classifier.logits(photos), seconds)
    on_device = getattr(bench.classifier.backend, "device_milliseconds", None)
    device = [on_device(photos) for _ in range(DEVICE_CALLS)] if on_device else []
    return Measurement(tuple(samples), tuple(device))


def offline(bench: Bench, batch: int, seconds: float) -> Measurement:
    """As many callers as streams work on photos that are all there; the sample is wall clock over calls done."""
    photos = bench.batch(batch)
    end = time.perf_counter() + seconds

    def call_until_the_end(_: int) -> int:
        calls = 0
        while calls < LEAST_CALLS or time.perf_counter() < end:
            bench.classifier.logits(photos)
            calls += 1
        return calls

    started = time.perf_counter()
    with ThreadPoolExecutor(bench.streams) as callers:
        calls = sum(callers.map(call_until_the_end, range(bench.streams)))
    return Measurement((1000 * (time.perf_counter() - started) / calls,))


def end_to_end(bench: Bench, batch: int, seconds: float) -> Measurement:
    """The encoded bytes of a photo to its label, `batch` of them in a call, with the time of each part."""
    parts: list[dict[str, float]] = []
    photos = [bench.photo] * batch
    samples = timed(lambda: parts.append(bench.classifier.classify(photos)[0].milliseconds), seconds)
    medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    return Measurement(tuple(samples), parts=medians)


@dataclass(frozen=True)
class ServerFlags:
    """The server scenario's own flags."""

    latency_bound: Positive = 50
    """of the server scenario, milliseconds"""

    def __post_init__(self) -> None:
        require_right(self, flags=True)


def server(bench: Bench, _batch: int, _seconds: float, latency_bound: float) -> Measurement:
    """The highest Poisson rate of single photos at which the candidate keeps `latency_bound` milliseconds."""
    photo = bench.batch(1)
    alone = statistics.median(timed(lambda: bench.classifier.logits(photo), 1))
    latencies_at = lambda rate: poisson(bench, rate, SERVER_QUERIES, latency_bound)  # noqa: E731
    capacity = 1000 * bench.streams / alone
    return Measurement(figures=highest_rate(latencies_at, latency_bound, SERVER_PERCENTILE, capacity))


def poisson(bench: Bench, rate: float, queries: int, bound: float = math.inf) -> list[float]:
    """Milliseconds from each query's arrival to its answer, at `rate` queries of one photo a second.

    Arrivals are a Poisson process, as in MLPerf's server scenario: a query waits while every stream is busy, and its
    wait counts. Arrival times do not depend on how fast the answers are. Ends early once so many answers took more
    than `bound` milliseconds that SERVER_PERCENTILE of all cannot keep it any more.
    """
    most_late = queries * (1 - SERVER_PERCENTILE / 100)
    latencies: list[float] = []
    photo = bench.batch(1)
    arrivals = np.cumsum(np.random.default_rng(bench.seed).exponential(1 / rate, queries))

    def answer(due: float) -> None:
        bench.classifier.logits(photo)
        latencies.append(1000 * (time.perf_counter() - due))

    with ThreadPoolExecutor(bench.streams) as callers:
        started, answers = time.perf_counter(), []
        for arrival in arrivals:
            time.sleep(max(0.0, started + arrival - time.perf_counter()))
            if sum(latency > bound for latency in latencies) > most_late:
                break
            answers.append(callers.submit(answer, started + float(arrival)))
        for answered in answers:
            answered.result()  # raises what the engine raised
    return latencies


def highest_rate(
    latencies_at: Callable[[float], list[float]], bound: float, percent: float, capacity: float
) -> dict[str, Any]:
    """The highest rate whose latency keeps the bound, found by halving between none and `capacity` queries a second.

    `latencies_at(rate)` gives the latencies of enough queries, in milliseconds; held is a rate whose `percent`
    percentile of them is at most `bound`. Rates at which the queries would take more than LONGEST_SECONDS are not
    tried. Returns the rate, queries a second, 0 where none was held, and every rate that was tried.
    """
    low, high, tried = 0.0, capacity, []
    for _ in range(6):
        rate = (low + high) / 2
        if SERVER_QUERIES / rate > LONGEST_SECONDS:
            break
        latency = float(np.quantile(latencies_at(rate), percent / 100))
        tried.append({"rate": round(rate, 2), "milliseconds": round(latency, 3), "held": latency <= bound})
        low, high = (rate, high) if latency <= bound else (low, rate)
    return {"rate": round(low, 2), "bound_ms": bound, "percentile": percent, "tried": tried}


def _rate_column(rows: list[Row]) -> list[Column]:
    bound = f"p{rows[0]['percentile']:g} ≤ {rows[0]['bound_ms']:g} ms"
    return [(f"queries/s held at {bound}", lambda row: f"{row['rate']:.0f}")]


@dataclass(frozen=True)
class Scenario:
    """One way to load a candidate.

    `timed` says what is inside the time. `measure(bench, batch, seconds)` measures for about so long with batches of
    that size; a dataclass instance `flags` gives it flags of its own (see `runtime.command_line.add_flags`), which it
    takes by name. One that is measured `alone` takes no part in the rounds: it is measured once after them, photo by
    photo. One with `figures` of its own has `columns` for them, and `slowness`, by which its table is sorted.
    """

    timed: str
    measure: Callable[..., Measurement]
    flags: Any = None
    alone: bool = False
    columns: Callable[[list[Row]], list[Column]] | None = None
    slowness: Callable[[Row], float] = lambda row: float(row["milliseconds"])


SCENARIOS = {
    "single-stream": Scenario(
        "inference only: uint8 batch in host memory to float32 logits in host memory, one call after another",
        single_stream,
    ),
    "offline": Scenario("inference only, all photos there at once: wall clock of all streams over calls", offline),
    "end-to-end": Scenario("a photo's encoded bytes to its label: decode, geometry, inference, answer", end_to_end),
    "server": Scenario(
        "inference only, Poisson arrivals: from a query's arrival to its logits, waiting included",
        server,
        flags=ServerFlags(),
        alone=True,
        columns=_rate_column,
        slowness=lambda row: -float(row["rate"]),
    ),
}
