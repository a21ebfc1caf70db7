"""What is timed, by MLPerf Inference's names for it: single stream, offline, server; and bytes to label, end to end."""

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.classifier import Classifier

WARM_UP_SECONDS, SETTLED = 3.0, 0.05
LEAST_CALLS = 3  # of a turn


@dataclass(frozen=True)
class Bench:
    """An opened candidate and what it is fed: preprocessed photos uint8 `[N, S, S, 3]`, one photo's encoded bytes."""

    classifier: Classifier
    images: np.ndarray
    photo: bytes
    streams: int = 1

    def batch(self, size: int) -> np.ndarray:
        """`size` of the photos, over again where there are fewer; uint8 `[size, S, S, 3]`."""
        return np.ascontiguousarray(self.images[np.arange(size) % len(self.images)])


# "samples": milliseconds of each call; "parts": where a call is more than inference; "device": where a GPU tells it
Turn = dict[str, Any]
ON_DEVICE = (
    "inference without transfers: between CUDA events before and after what runs on the engine's stream, of which each "
    "calling thread has one; the calls timed with transfers are others, copy from and to pageable memory and end when "
    "their stream is synchronised"
)
DEVICE_CALLS = 10  # a turn


def single_stream(bench: Bench, batch: int, seconds: float) -> Turn:
    """One call after another, each a batch in host memory to logits in host memory.

    Some calls more tell the time on the device, from backends that have a `device_milliseconds`.
    """
    photos = bench.batch(batch)
    turn: Turn = {"samples": timed(lambda: bench.classifier.logits(photos), seconds)}
    on_device = getattr(bench.classifier.backend, "device_milliseconds", None)
    return turn | ({"device": [on_device(photos) for _ in range(DEVICE_CALLS)]} if on_device else {})


def offline(bench: Bench, batch: int, seconds: float) -> Turn:
    """All photos are there: as many callers as streams work on them; the sample is wall clock over calls done."""
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
    return {"samples": [1000 * (time.perf_counter() - started) / calls]}


def end_to_end(bench: Bench, batch: int, seconds: float) -> Turn:
    """The encoded bytes of a photo to its label, `batch` of them in a call, with the time of each part."""
    parts: list[dict[str, float]] = []
    photos = [bench.photo] * batch
    samples = timed(lambda: parts.append(bench.classifier.classify(photos)[0].milliseconds), seconds)
    names = parts[0]
    return {"samples": samples, "parts": {name: statistics.median(part[name] for part in parts) for name in names}}


@dataclass(frozen=True)
class Scenario:
    """`timed` says what is inside the time; `turn` takes one turn of about some seconds with batches of a size."""

    timed: str
    turn: Callable[[Bench, int, float], Turn]


SCENARIOS = {
    "single-stream": Scenario(
        "inference only: uint8 batch in host memory to float32 logits in host memory, one call after another",
        single_stream,
    ),
    "offline": Scenario("inference only, all photos there at once: wall clock of all streams over calls", offline),
    "end-to-end": Scenario("a photo's encoded bytes to its label: decode, geometry, inference, answer", end_to_end),
}


def settle(call: Callable[[], object], group: int = 6) -> None:
    """Call until the last `group` are as fast as the group before, within SETTLED, or WARM_UP_SECONDS are over."""
    end, samples = time.perf_counter() + WARM_UP_SECONDS, timed(call, 0, group)
    while time.perf_counter() < end:
        before, samples = statistics.median(samples), timed(call, 0, group)
        if abs(statistics.median(samples) - before) <= SETTLED * before:
            return


def timed(call: Callable[[], object], seconds: float, at_least: int = LEAST_CALLS) -> list[float]:
    """Milliseconds of each call, for about `seconds`."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < at_least or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        samples.append(1000 * (time.perf_counter() - started))
    return samples


def server(bench: Bench, rate: float, queries: int, seed: int) -> list[float]:
    """Milliseconds from each query's arrival to its answer, at `rate` queries of one photo a second.

    Arrivals are a Poisson process, as in MLPerf's server scenario: a query waits while every stream is busy, and its
    wait counts. Arrival times do not depend on how fast the answers are.
    """
    photo = bench.batch(1)
    with ThreadPoolExecutor(bench.streams) as callers:
        answers = []
        started = time.perf_counter()
        for arrival in _arrivals(rate, queries, seed):
            time.sleep(max(0.0, started + arrival - time.perf_counter()))
            answers.append((arrival, callers.submit(lambda: (bench.classifier.logits(photo), time.perf_counter())[1])))
        return [1000 * (answered.result() - started - arrival) for arrival, answered in answers]


def _arrivals(rate: float, queries: int, seed: int) -> Iterator[float]:
    return iter(np.cumsum(np.random.default_rng(seed).exponential(1 / rate, queries)))


def highest_rate(ask: Callable[[float], list[float]], bound: float, percent: float, capacity: float) -> dict[str, Any]:
    """The highest rate whose latency keeps the bound, found by halving between none and `capacity` queries a second.

    `ask(rate)` gives the latencies of enough queries, in milliseconds; held is a rate whose `percent` percentile of
    them is at most `bound`. Returns the rate, queries a second, 0 where none was held, and every rate that was tried.
    """
    low, high, tried = 0.0, capacity, []
    for _ in range(6):
        rate = (low + high) / 2
        latency = float(np.quantile(ask(rate), percent / 100))
        tried.append({"rate": round(rate, 2), "milliseconds": round(latency, 3), "held": latency <= bound})
        low, high = (rate, high) if latency <= bound else (low, rate)
    return {"rate": round(low, 2), "bound_ms": bound, "percentile": percent, "tried": tried}
