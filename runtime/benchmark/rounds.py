"""Interleaved rounds: every candidate takes a turn in each, in random order, so that drift hits all alike."""

import contextlib
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.benchmark.scenarios import highest_rate
from runtime.candidate import Candidate
from runtime.comparison import samples_needed
from runtime.errors import SajiError

ROOT = Path(__file__).resolve().parents[2]


ROUNDS = 5  # fewer tell no pair apart, see runtime.comparison.compared

Load = tuple[str, int]  # a name in runtime.benchmark.scenarios.SCENARIOS, and the batch size


@dataclass
class Entrant:
    """A candidate in the race: its process, and each round's answer so far (see `worker`) by what was asked.

    `cold_starts` are seconds, see `cold_start`.
    `threads` and `streams` as in `runtime.backends.open_backend`; `photo` is the file that end-to-end takes, by default
    the golden JPEG.
    """

    candidate: Candidate
    folder: Path
    threads: int = 0
    streams: int = 1
    photo: str = ""
    turns: dict[Load, list[dict[str, Any]]] = field(default_factory=dict)
    cold_starts: list[float] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    @property
    def name(self) -> str:
        """The candidate's name, with threads and streams where they are not the engine's own."""
        return self.candidate.name_with(self.threads, self.streams)

    def start(self) -> subprocess.Popen[str]:
        """Start the candidate's process unless it runs; returns at once."""
        if self.process is None:
            asked = {"candidate": dataclasses.asdict(self.candidate), "threads": self.threads}
            asked |= {"streams": self.streams, "photo": self.photo}
            folder = str(self.folder.resolve())
            command = [sys.executable, "-m", "runtime.benchmark.worker", folder, json.dumps(asked)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
            )
        return self.process

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send one order to the candidate's process, which is started when needed, and wait for the answer."""
        process = self.start()
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has died: the empty answer below says so
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SajiError(f"the process of {self.name} died with status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SajiError(answer["error"])
        return answer

    def cold_start(self) -> None:
        """Take the seconds from the start of a process of its own to its first label: imports, opening, one photo."""
        fresh = dataclasses.replace(self, process=None)
        started = time.perf_counter()
        try:
            fresh.ask({"do": "classify"})
            self.cold_starts.append(time.perf_counter() - started)
        finally:
            fresh.close()

    def apply_gate(self) -> None:
        """Take this machine's verdict, in the candidate's own process."""
        self.candidate = Candidate.from_values(self.ask({"do": "check"}))

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):  # what it was last asked, it did not live to read
                self.process.stdin.close()  # type: ignore[union-attr]  # opened with a pipe
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()  # type: ignore[union-attr]
            self.process = None


def hold(entrant: Entrant, bound: float, percent: float, seed: int) -> dict[str, Any]:
    """The server scenario: the highest Poisson rate at which the entrant, alone, keeps `bound` milliseconds.

    As `runtime.benchmark.scenarios.highest_rate` returns it; the entrant must have run its single stream.
    """
    queries = max(500, samples_needed(percent))

    def ask(rate: float) -> list[float]:
        latencies: list[float] = entrant.ask({"do": "serve", "rate": rate, "queries": queries, "seed": seed})["samples"]
        return latencies

    alone = statistics.median(value for turn in entrant.turns["single-stream", 1] for value in turn["samples"])
    return highest_rate(ask, bound, percent, capacity=1000 * entrant.streams / alone)


def race(
    entrants: list[Entrant], loads: Sequence[Load], seconds: float, seed: int, say: Callable[[str], None]
) -> list[Entrant]:
    """Time all entrants under all loads in interleaved rounds for about `seconds`; returns those that finished.

    One turn is about 0.3 s, shorter where that would leave fewer than ROUNDS, which are run in any case.
    """
    lots = random.Random(seed)
    turns = [(entrant, load) for entrant in entrants for load in loads]
    for entrant in entrants:
        entrant.start()
    for entrant, (scenario, batch) in list(turns):  # load and warm up, outside the clock
        try:
            entrant.ask({"do": "time", "scenario": scenario, "batch": batch, "seconds": 0})
        except SajiError as error:
            say(f"{entrant.name}: left out of the race: {error}")
            entrants = [other for other in entrants if other is not entrant]
            turns = [turn for turn in turns if turn[0] is not entrant]
    turn_seconds = min(0.3, seconds / max(1, ROUNDS * len(turns)))
    started, finished = time.perf_counter(), 0
    while turns and (finished < ROUNDS or time.perf_counter() - started < seconds):
        lots.shuffle(turns)
        for entrant, (scenario, batch) in turns:
            order = {"do": "time", "scenario": scenario, "batch": batch, "seconds": turn_seconds}
            entrant.turns.setdefault((scenario, batch), []).append(entrant.ask(order))
        finished += 1
        say(f"round {finished}: {len(turns)} turns, {time.perf_counter() - started:.0f} of about {seconds:.0f} s")
    return entrants
