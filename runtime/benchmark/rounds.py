"""Interleaved rounds: every candidate takes a turn in each, in random order, so that drift hits all alike."""

import contextlib
import dataclasses
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.candidate import Candidate
from runtime.errors import SajiError
from runtime.receipt import candidate_from

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Entrant:
    """A candidate in the race: its process, and what was measured so far by batch size."""

    candidate: Candidate
    folder: Path
    threads: int = 0
    samples: dict[int, list[list[float]]] = field(default_factory=dict)  # batch -> one list a round
    facts: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """Start the candidate's process unless it runs; returns at once."""
        if self.process is None:
            candidate, folder = json.dumps(dataclasses.asdict(self.candidate)), str(self.folder.resolve())
            command = [sys.executable, "-m", "runtime.benchmark.worker", folder, candidate, str(self.threads)]
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
            raise SajiError(f"the process of {self.candidate.name} died with status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SajiError(answer["error"])
        return answer

    def judge(self) -> None:
        """Take this machine's verdict, in the candidate's own process."""
        self.candidate = candidate_from(self.ask({"do": "judge"}))

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.stdin.close()  # type: ignore[union-attr]  # opened with a pipe
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
            self.process.stdout.close()  # type: ignore[union-attr]
            self.process = None


def race(
    entrants: list[Entrant], batches: Iterable[int], seconds: float, seed: int, say: Callable[[str], None]
) -> list[Entrant]:
    """Time all entrants in interleaved rounds for about `seconds`; returns those that finished.

    One turn is about 0.3 s, shorter where that would leave fewer than five rounds.
    """
    lots = random.Random(seed)
    turns = [(entrant, batch) for entrant in entrants for batch in batches]
    for entrant in entrants:
        entrant.start()
    for entrant, batch in list(turns):  # load and warm up, outside the clock
        try:
            entrant.ask({"do": "time", "batch": batch, "seconds": 0})
        except SajiError as error:
            say(f"{entrant.candidate.name}: left out of the race: {error}")
            entrants = [other for other in entrants if other is not entrant]
            turns = [turn for turn in turns if turn[0] is not entrant]
    turn_seconds = min(0.3, seconds / max(1, 5 * len(turns)))
    started, finished = time.perf_counter(), 0
    while turns and (finished < 3 or time.perf_counter() - started < seconds):
        lots.shuffle(turns)
        for entrant, batch in turns:
            answer = entrant.ask({"do": "time", "batch": batch, "seconds": turn_seconds})
            entrant.samples.setdefault(batch, []).append(answer.pop("samples"))
            entrant.facts = answer
        finished += 1
        say(f"round {finished}: {len(turns)} turns, {time.perf_counter() - started:.0f} of about {seconds:.0f} s")
    return entrants
