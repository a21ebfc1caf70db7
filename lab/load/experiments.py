"""The parts of the measurement, each a few rows."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from lab.claims.ratio import compare
from lab.load import sides
from lab.load.sides import Load
from runtime import environment
from runtime.benchmark.rows import Row
from runtime.deployment import Deployment

EXPERIMENT = "load"
OFFLINE_SHARE, OVER_PLAIN, LONE_SHARE = 0.7, 3.0, 1 / 1.1
SETTINGS = [(workers, threads, batch) for workers, threads in ((1, 0), (1, 1), (2, 0), (2, 1)) for batch in (1, 4, 8)]
MILLISECONDS = "median_ms"


@dataclass(frozen=True)
class Plan:
    """What is asked of the command line: the load, counted rounds by turns, seconds of the long part."""

    load: Load
    rounds: int
    memory_seconds: float

    @property
    def conditions(self) -> Row:
        """What was measured, without where and when."""
        choice = Deployment.read(self.load.path).choice
        settings = {name: value for name, value in asdict(self.load).items() if name not in ("out", "photos")}
        return {"experiment": EXPERIMENT, "candidate": choice.name, "folder": choice.folder, **settings}


def clients(plan: Plan) -> Iterator[Row]:
    """Photos a second of many clients against the same engine's without a service, from bytes to label."""
    choice = Deployment.read(plan.load.path).choice
    folder = str(plan.load.path.parent / choice.folder)
    offline = ["-m", "lab.claims.loops", "folder", folder, choice.candidate.name, plan.load.photos]
    text = f"{plan.load.clients} clients of the service, against the same engine offline, bytes to label"
    yield _compared(plan, "clients", text, OFFLINE_SHARE, plan.load.side("by_wrk"), offline)


def plain(plan: Plan) -> Iterator[Row]:
    """Photos a second against a plain demo's, both asked by threads of one process."""
    text = f"{plan.load.clients} clients of the service, against a plain Gradio demo in eager PyTorch"
    yield _compared(plan, "plain", text, OVER_PLAIN, plan.load.side("by_threads"), plan.load.side("plain"))


def lone(plan: Plan) -> Iterator[Row]:
    """What queue, threads and micro-batches add to a lone request, and what HTTP adds."""
    queue, direct, http = (plan.load.side(name) for name in ("queue", "direct", "http"))
    text = "a lone photo through the queue, against the classifier alone"
    yield _compared(plan, "queue", text, LONE_SHARE, queue, direct, MILLISECONDS)
    text = "a lone photo over HTTP, against the queue alone"
    yield _compared(plan, "http", text, 0, http, queue, MILLISECONDS)


def _compared(
    plan: Plan, part: str, text: str, target: float, ours: list[str], theirs: list[str], measure: str = "per_second"
) -> Row:
    row = compare(text, ours, theirs, target, plan.rounds, measure, less_is_better=measure == MILLISECONDS)
    return {**row, **plan.conditions, "part": part}


def settings(plan: Plan) -> Iterator[Row]:
    """Photos a second for each of the service's settings, by turns."""
    loads = [replace(plan.load, workers=w, threads=t, batch=b) for w, t, b in SETTINGS]
    rounds = [[sides.by_wrk(load) for load in loads] for _ in range(plan.rounds)]
    for load, found in zip(loads, zip(*rounds, strict=True), strict=True):
        rates = [figures["per_second"] for figures in found]
        conditions = replace(plan, load=load).conditions
        figures = {"per_second": statistics.median(rates), "rounds": plan.rounds, "said": found}
        yield {**conditions, "part": "settings", **figures, **environment.stamp()}


def overload(plan: Plan) -> Iterator[Row]:
    """Ten times the clients: refusals, those that are let in, recovery."""
    yield {**plan.conditions, "part": "overload", **sides.overload(plan.load), **environment.stamp()}


def memory(plan: Plan) -> Iterator[Row]:
    """Resident memory over a long load."""
    plan = replace(plan, load=replace(plan.load, seconds=plan.memory_seconds))
    yield {**plan.conditions, "part": "memory", **sides.memory(plan.load), **environment.stamp()}


PARTS: dict[str, Callable[[Plan], Iterator[dict[str, Any]]]] = {
    part.__name__: part for part in (clients, plain, lone, settings, overload, memory)
}
