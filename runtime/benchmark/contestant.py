"""A candidate with a process of its own (`worker`), and the interleaved rounds in which all are measured."""

import base64
import contextlib
import dataclasses
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.benchmark.scenarios import Measurement
from runtime.candidate import Candidate
from runtime.classifier import Prediction
from runtime.errors import SajiError
from runtime.files import as_record
from runtime.terminal import library_output, progress, track

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 5  # fewer tell no pair apart, see runtime.speed_ratio.compared
ROUND_SECONDS = 0.3  # of each measurement in a round

Load = tuple[str, int]  # a name in runtime.benchmark.scenarios.SCENARIOS, and the batch size


@dataclass(eq=False)
class Contestant:
    """A candidate in the benchmark, with its process and what was measured of it so far.

    `threads` and `streams` as in `runtime.backends.open_backend`; `photo` is the file that end-to-end takes, by default
    the golden JPEG; `seed` is that of the scenarios; `sha256` is that of the very file that is to be opened.
    `measurements` has one of each round by load, `cold_starts` the seconds of each `cold_start`. `left_out`: why it
    could not be measured to the end, empty where it could.
    """

    candidate: Candidate
    folder: Path
    threads: int = 0
    streams: int = 1
    photo: str = ""
    seed: int = 0
    sha256: str = ""
    measurements: dict[Load, list[Measurement]] = field(default_factory=lambda: defaultdict(list))
    cold_starts: list[float] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    left_out: str = ""

    @property
    def name(self) -> str:
        """The candidate's name, with threads and streams where they are not the engine's own."""
        return self.candidate.name_with(self.threads, self.streams)

    def key(self) -> tuple[Path | str, ...]:
        """What a verdict is of: the candidate of this folder, whatever the threads and streams."""
        return self.folder, *self.candidate.key()

    def start(self) -> subprocess.Popen[str]:
        """Start the candidate's process unless it runs; does not wait until it is ready."""
        if self.process is None:
            settings = {name: getattr(self, name) for name in ("threads", "streams", "photo", "seed", "sha256")}
            settings["candidate"] = dataclasses.asdict(self.candidate)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runtime.benchmark.worker", str(self.folder.resolve())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=library_output(), text=True, cwd=ROOT,
            )  # fmt: skip
            _write(self.process, settings)  # not as a word of the command: facts of an engine may have 128 KiB and more
        return self.process

    def measure(self, scenario: str, batch: int, seconds: float, **flags: Any) -> Measurement:
        """Measure once under a load; `flags` are the scenario's own."""
        order = {"do": "time", "scenario": scenario, "batch": batch, "seconds": seconds, "flags": flags}
        return as_record(Measurement, self._ask(order))

    def classify(self, photo: bytes = b"") -> Prediction:
        """What an encoded photo shows, by default that of end-to-end."""
        return Prediction(**self._ask({"do": "classify", "photo": base64.b64encode(photo).decode()}))

    def apply_gate(self) -> None:
        """Take this machine's verdict, in the candidate's own process."""
        self.candidate = Candidate.from_values(self._ask({"do": "check"}))

    def cold_start(self) -> None:
        """Take the seconds from the start of a process of its own to its first label: imports, opening, one photo."""
        fresh = dataclasses.replace(self, process=None)
        started = time.perf_counter()
        try:
            fresh.classify()
            self.cold_starts.append(time.perf_counter() - started)
        finally:
            fresh.close()

    def leave_out(self, error: SajiError, say: Callable[[str], None]) -> None:
        """Say why it takes no part any more: what goes wrong costs a candidate, not the benchmark."""
        self.left_out = str(error)
        say(f"{self.name}: left out of the benchmark: {error}")

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            try:
                self.process.communicate(timeout=10)  # closes its stdin, at which it ends
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()
            self.process = None

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send one order to the candidate's process, which is started when needed, and wait for the answer."""
        process = self.start()
        assert process.stdout
        _write(process, order)
        line = process.stdout.readline()
        if not line:
            raise SajiError(f"the process of {self.name} died with status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SajiError(answer["error"])
        return answer


def _write(process: subprocess.Popen[str], values: dict[str, Any]) -> None:
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):  # it has died: the answer that never comes says so
        process.stdin.write(json.dumps(values) + "\n")
        process.stdin.flush()


def run_rounds(
    contestants: Sequence[Contestant], loads: Sequence[Load], seconds: float, seed: int, say: Callable[[str], None]
) -> list[Contestant]:
    """Measure all contestants under all loads for about `seconds`; returns those that are not `left_out`.

    In each round every contestant is measured once under each load, in random order, so that what drifts on the
    machine hits all alike. A measurement takes ROUND_SECONDS, less where that would leave fewer than ROUNDS rounds,
    which are run in any case.
    """
    for contestant in contestants:
        contestant.start()
    opened = track(contestants, "opening the engines", len(contestants))
    ready = [contestant for contestant in opened if _warmed_up(contestant, loads, say)]
    order = [(contestant, load) for contestant in ready for load in loads]
    each = min(ROUND_SECONDS, seconds / max(1, ROUNDS * len(order)))
    lots, started, finished = random.Random(seed), time.perf_counter(), 0
    rounds = max(ROUNDS, seconds / max(each * len(order), 1e-9))  # about
    with progress("measuring in interleaved rounds", rounds) as advance:
        while order and (finished < ROUNDS or time.perf_counter() - started < seconds):
            lots.shuffle(order)
            for contestant, load in order:
                if contestant in ready:
                    try:
                        contestant.measurements[load].append(contestant.measure(*load, each))
                    except SajiError as error:
                        contestant.leave_out(error, say)
                        ready = [other for other in ready if other is not contestant]
                advance(1 / len(order))
            order = [(contestant, load) for contestant, load in order if contestant in ready]
            finished += 1
    return ready


def _warmed_up(contestant: Contestant, loads: Sequence[Load], say: Callable[[str], None]) -> bool:
    """Load and warm up, outside the clock; False, and the reason is said, where that fails."""
    try:
        for load in loads:
            contestant.measure(*load, 0)
    except SajiError as error:
        contestant.leave_out(error, say)
        return False
    return True
