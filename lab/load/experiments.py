"""The service under load, on loopback; wrk makes the load. Each experiment gives a row or a few."""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lab.claims import workloads
from lab.claims.comparison import Claim, compare, in_process
from lab.claims.speed import require_choice, write_photo
from lab.load import measurements
from lab.load.measurements import Load
from runtime.benchmark.rows import Row
from runtime.command_line import add_flags, from_flags
from runtime.deployment import Deployment

OFFLINE_SHARE, OVER_PLAIN, LONE_SHARE = 0.75, 3.0, 0.95
SETTINGS = [
    *((0, 0, 1), (0, 0, 4)),
    *((workers, threads, batch) for workers, threads in ((1, 0), (1, 1), (2, 0), (2, 1)) for batch in (1, 4, 8)),
]
PHOTO_SIZE = 512, 384
LEAST_PHOTOS, MOST_PHOTOS = 64, 1000  # offline takes each once; short runs get fewer, for they take time to draw


@dataclass(frozen=True)
class Plan:
    """The load, how many pairs of runs are counted where two are compared, and the seconds of the long experiment."""

    load: Load
    rounds: int = 3
    memory_seconds: float = 600

    def row(self, part: str, figures: Row) -> Row:
        """The figures with what they are of, but not yet where and when."""
        choice = Deployment.read(self.load.path).choice
        settings = {name: value for name, value in asdict(self.load).items() if name not in ("out", "photos")}
        about = {"experiment": "load", "part": part, "candidate": choice.name, "folder": choice.folder}
        return {**settings, **figures, **about}

    def compared(self, part: str, claim: Claim) -> Row:
        """The row of two processes."""
        return self.row(part, compare(claim, self.rounds))


def clients(plan: Plan) -> Iterator[Row]:
    """Photos a second of many clients against the same engine's without a service, from bytes to label."""
    choice = Deployment.read(plan.load.path).choice
    folder = str(plan.load.path.parent / choice.folder)
    offline = in_process(workloads.photos_of_folder, folder, choice.candidate.name, plan.load.photos)
    text = f"{plan.load.clients} clients of the service, against the same engine offline, bytes to label"
    ours = in_process(measurements.by_wrk, plan.load)
    yield plan.compared("clients", Claim(text, OFFLINE_SHARE, ours, offline))


def plain(plan: Plan) -> Iterator[Row]:
    """Photos a second against a plain demo's, both asked by threads of one process."""
    text = f"{plan.load.clients} clients of the service, against a plain Gradio demo in eager PyTorch"
    ours, theirs = (in_process(ask, plan.load) for ask in (measurements.by_threads, measurements.plain))
    yield plan.compared("plain", Claim(text, OVER_PLAIN, ours, theirs))


def lone(plan: Plan) -> Iterator[Row]:
    """What queue, threads and micro-batches add to a lone request, and what HTTP adds."""
    ways = measurements.queue, measurements.direct, measurements.http
    queue, direct, http = (in_process(way, plan.load) for way in ways)
    text = "a lone photo through the queue, against the classifier alone"
    yield plan.compared("queue", Claim(text, LONE_SHARE, queue, direct, "median_ms", less_is_better=True))
    text = "a lone photo over HTTP, against the queue alone"
    yield plan.compared("http", Claim(text, 0, http, queue, "median_ms", less_is_better=True))


def settings(plan: Plan) -> Iterator[Row]:
    """Photos a second for each of the service's settings, one after the other in each round."""
    loads = [replace(plan.load, workers=w, threads=t, batch=b) for w, t, b in SETTINGS]
    rounds = [[measurements.by_wrk(load) for load in loads] for _ in range(plan.rounds)]
    for load, results in zip(loads, zip(*rounds, strict=True), strict=True):
        median = statistics.median(figures["per_second"] for figures in results)
        figures = {"per_second": median, "rounds": plan.rounds, "said": results}
        yield replace(plan, load=load).row("settings", figures)


def overload(plan: Plan) -> Iterator[Row]:
    """Ten times the clients: refusals, those that are let in, recovery."""
    yield plan.row("overload", measurements.overload(plan.load))


def memory(plan: Plan) -> Iterator[Row]:
    """Resident memory over a long load."""
    plan = replace(plan, load=replace(plan.load, seconds=plan.memory_seconds))
    yield plan.row("memory", measurements.memory(plan.load))


EXPERIMENTS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    experiment.__name__: experiment for experiment in (clients, plain, lone, settings, overload, memory)
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How the service is asked, and in which experiments."""
    every, only = [*EXPERIMENTS], f"these alone, of {', '.join(EXPERIMENTS)}"
    parser.add_argument("--only", nargs="+", default=every, choices=every, metavar="EXPERIMENT", help=only)
    add_flags(parser, Load())
    parser.add_argument("--rounds", type=int, default=3, help="counted pairs of runs, where two are compared (3)")
    parser.add_argument("--memory-seconds", type=float, default=600, help="of the experiment about memory (600)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of all experiments, or of those named."""
    load = from_flags(Load(), arguments)
    require_choice(load.path)
    with tempfile.TemporaryDirectory() as photos:
        if not load.photos:
            load = replace(load, photos=photos)
            folder = load.path.parent / Deployment.read(load.path).choice.folder
            for number in range(max(LEAST_PHOTOS, min(MOST_PHOTOS, round(20 * load.seconds)))):
                write_photo(folder, Path(photos) / f"{number:04}.jpg", *PHOTO_SIZE, number)
        plan = Plan(load, arguments.rounds, arguments.memory_seconds)
        for name in arguments.only:
            yield from EXPERIMENTS[name](plan)
