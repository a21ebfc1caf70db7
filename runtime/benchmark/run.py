"""The race as a whole: which candidates enter, this machine's verdict on each, and what the choice is made from."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime import environment
from runtime.benchmark.rounds import Entrant, hold, race
from runtime.benchmark.rows import Row, rows_of, server_row
from runtime.candidate import Candidate
from runtime.choice import Policy
from runtime.comparison import percentile, samples_needed
from runtime.deployment import Measured
from runtime.errors import SajiError
from runtime.files import sha256_file
from runtime.receipt import Receipt

SERVER_PERCENTILE = 99  # MLPerf's server scenario bounds p99 of ResNet-50


@dataclass(frozen=True)
class Race:
    """What races under which loads; the fields are the flags of `runtime/bench.py`, which explains them.

    `models` holds a folder for each of the `receipts`, under its name.
    """

    models: Path
    receipts: dict[str, Receipt]
    candidates: Sequence[str]
    seconds: float
    batch: Sequence[int]
    threads: Sequence[int]
    streams: Sequence[int]
    scenario: Sequence[str]
    latency_bound: float
    photo: Path | None
    cold_starts: int
    experiment: str
    seed: int

    def inputs(self) -> dict[str, Any]:
        """What decides how the race turns out, as JSON values: with the same inputs a choice is up to date."""
        named = ("seconds", "batch", "threads", "streams", "scenario", "candidates", "latency_bound", "cold_starts")
        return {
            "receipts": {name: sha256_file(self.models / name / "model.json") for name in self.receipts},
            "settings": {name: getattr(self, name) for name in named},
            "versions": environment.versions(),
        }

    def run(self, say: Callable[[str], None]) -> tuple[list[Entrant], list[Candidate], list[Row]]:
        """Race; returns those that finished, the candidates that were left out or did not, and the rows."""
        with self.entrants() as entrants:
            judge_here(entrants, self.receipts, say)
            racing = [e for e in entrants if e.candidate.verdict == "pass" and e.candidate.servable]
            loads = [(scenario, batch) for scenario in self._raced() for batch in self.batch]
            finished = race(racing, loads, self.seconds, self.seed, say)
            self._start_cold(finished, say)
            rows = [row for entrant in finished for row in self._rows(entrant, say)]
        raced = {entrant.candidate.key() for entrant in finished}
        others = {entrant.candidate.key(): entrant.candidate for entrant in entrants}
        return finished, [candidate for key, candidate in others.items() if key not in raced], rows

    def _start_cold(self, finished: Sequence[Entrant], say: Callable[[str], None]) -> None:
        for number in range(1, self.cold_starts + 1):
            say(f"cold start {number} of {self.cold_starts}: {len(finished)} processes, one after another")
            for entrant in finished:
                try:
                    entrant.cold_start()
                except SajiError as error:  # the race itself stands
                    say(f"{entrant.name}: its cold start is not known: {error}")

    def _raced(self) -> list[str]:
        return list(dict.fromkeys(["single-stream", *(name for name in self.scenario if name != "server")]))

    @contextmanager
    def entrants(self) -> Iterator[list[Entrant]]:
        """Every candidate asked for, times threads and streams; their processes, if any, end with the context."""
        entrants, photo = [], str(self.photo.resolve()) if self.photo else ""
        for name, receipt in self.receipts.items():
            for candidate in receipt.candidates:
                if self.candidates and not any(_named(candidate, words) for words in self.candidates):
                    continue
                receipt.verify(self.models / name, candidate.file)
                for threads, streams in itertools.product(self.threads, self.streams):
                    entrants.append(Entrant(candidate, self.models / name, threads, streams, photo))
        if not entrants:
            there = "; ".join(c.name for receipt in self.receipts.values() for c in receipt.candidates)
            raise SajiError(f"no candidate is named {' or '.join(self.candidates)}; there are {there}")
        try:
            yield entrants
        finally:
            for entrant in entrants:
                entrant.close()

    def _rows(self, entrant: Entrant, say: Callable[[str], None]) -> list[Row]:
        receipt = self.receipts[entrant.candidate.architecture]
        rows = rows_of(entrant, receipt, self.experiment, self.seconds)
        if "server" in self.scenario:
            held = hold(entrant, self.latency_bound, SERVER_PERCENTILE, self.seed)
            say(f"{entrant.name}: {held['rate']:.0f} queries/s held")
            rows.append(server_row(entrant, receipt, self.experiment, held))
        return rows


def receipts_in(models: Path, archs: Sequence[str]) -> dict[str, Receipt]:
    """The receipts of some architectures, or of all, by name. Raises SajiError where they cannot be compared."""
    there = sorted(path.parent.name for path in models.glob("*/model.json"))
    unknown = [name for name in archs if name not in there]
    if unknown or not there:
        raise SajiError(
            f"{models} holds {', '.join(there) or 'no exported model'}"
            f"{', not ' + ', '.join(unknown) if unknown else ''}; export first with: make train export"
        )
    receipts = {name: Receipt.read(models / name) for name in archs or there}
    by_data: dict[str, list[str]] = {}
    for name, receipt in receipts.items():
        by_data.setdefault(str(receipt.spec.data.get("fingerprint")), []).append(name)
    if len(by_data) > 1:
        groups = " | ".join(" ".join(names) for names in by_data.values())
        raise SajiError(f"these models were trained on different photos and cannot be compared: {groups}; use --archs")
    return receipts


def _named(candidate: Candidate, words: str) -> bool:
    return set(words.replace("·", " ").split()) <= set(candidate.name.replace("·", " ").split())


def judge_here(entrants: Sequence[Entrant], receipts: dict[str, Receipt], say: Callable[[str], None]) -> None:
    """Keep verdicts given on this very machine with these versions, take all others anew: parity depends on both."""
    here, versions = environment.machine(), environment.versions()
    judged: dict[Any, Candidate] = {}  # threads and streams change the order of sums, which no gate is as narrow as
    for entrant in entrants:
        same = entrant.candidate.machine == here and receipts[entrant.candidate.architecture].versions == versions
        if same or not entrant.candidate.servable:
            continue
        if entrant.candidate.key() in judged:
            entrant.candidate = judged[entrant.candidate.key()]
            continue
        try:
            entrant.apply_gate()
        except SajiError as error:
            entrant.candidate = replace(entrant.candidate, verdict="fail", reasons=(str(error),))
        finally:
            entrant.close()
        judged[entrant.candidate.key()] = entrant.candidate
        say(f"{entrant.candidate.name}: judged on this machine: {entrant.candidate.verdict}")


def measured(entrant: Entrant, receipt: Receipt, policy: Policy) -> Measured:
    """What the choice knows of an entrant that finished. Raises SajiError where its calls are too few for that."""
    turns = entrant.turns["single-stream", policy.batch]
    calls = [value for turn in turns for value in turn["samples"]]
    at = percentile(calls, policy.percentile)
    if at is None:
        raise SajiError(
            f"{len(calls)} calls of {entrant.name} do not tell p{policy.percentile:g}, which takes "
            f"{samples_needed(policy.percentile)}; race longer with --seconds"
        )
    facts = receipt.files[entrant.candidate.file]
    return Measured(
        candidate=entrant.candidate,
        folder=f"models/{entrant.folder.name}",
        sha256=facts.sha256,
        file_bytes=facts.bytes,
        milliseconds=round(at, 4),
        rounds=tuple(round(float(np.percentile(turn["samples"], policy.percentile)), 4) for turn in turns),
        peak_memory_mib=turns[-1]["peak_memory_mib"],
        threads=entrant.threads,
        streams=entrant.streams,
    )
