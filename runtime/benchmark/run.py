"""A benchmark run as a whole: who takes part, this machine's verdict on each, and what the choice is made from."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime import environment
from runtime.benchmark.contestant import Contestant, run_rounds
from runtime.benchmark.rows import Row, rows_of
from runtime.benchmark.scenarios import SCENARIOS
from runtime.candidate import Candidate
from runtime.choice import Policy
from runtime.deployment import Measured
from runtime.errors import SajiError
from runtime.files import left_by_programs, sha256_file, sha256_modules
from runtime.ranges import Batch, CountOrNone, Seconds, Seed, Streams, Threads, require_right
from runtime.receipt import Receipt
from runtime.speed_ratio import percentile, samples_needed
from runtime.terminal import track
from runtime.verdicts import keep, of_here

Say = Callable[[str], None]
# The modules that decide what is measured and chosen: a choice by other code is not up to date
DECISIVE = ("runtime/choice.py", "runtime/speed_ratio.py", "runtime/benchmark/*.py", "runtime/backends/**/*.py")


@dataclass(frozen=True)
class Options:
    """The flags of the verb bench, beside those of the choice's policy and of single scenarios."""

    out: Path = Path("artifacts")
    """folder of all artefacts"""
    archs: tuple[str, ...] = ()
    """architectures; all exported ones by default"""
    candidates: tuple[str, ...] = ()
    """only those with these words, e.g. "openvino int8" """
    seconds: Seconds = 180
    """length of the benchmark"""
    batch: tuple[Batch, ...] = (1,)
    """batch sizes; the smallest is the served one"""
    threads: tuple[Threads, ...] = (0,)
    """threads of a call; 0: the engine's own"""
    streams: tuple[Streams, ...] = (1,)
    """calls side by side (offline and server)"""
    scenario: tuple[str, ...] = ("single-stream",)
    """what is timed besides single-stream, which the choice is made by"""
    photo: Path | None = None
    """the photo of end-to-end; each model's golden JPEG by default"""
    cold_starts: CountOrNone = 1
    """processes started anew for each candidate, to time the start to the first label"""
    compare: tuple[Path, Path] | None = None
    """compare two .jsonl, one from before a change and one from after it; nothing is measured"""
    rows: Path | None = None
    """append rows to this .jsonl instead of OUT/bench.jsonl"""
    experiment: str = "bench"
    """name stored in the rows"""
    seed: Seed = 0
    """seed of the order within rounds"""
    force: bool = False
    """measure again even when nothing has changed"""

    def __post_init__(self) -> None:
        """Raise SajiError for what contradicts itself or is none."""
        for name in ("batch", "threads", "streams", "scenario"):
            if not getattr(self, name):
                raise SajiError(f"--{name} needs at least one value")
        require_right(self, flags=True)
        if unknown := [name for name in self.scenario if name not in SCENARIOS]:
            raise SajiError(f"there is no scenario {unknown[0]!r}; choose from {', '.join(SCENARIOS)}")
        for name in self.scenario:
            if SCENARIOS[name].alone and 1 not in self.batch:
                raise SajiError(f"the {name} scenario answers one photo at a time; add 1 to --batch")


@dataclass(frozen=True)
class Outcome:
    """Who was measured, the candidates that were left out or could not be, and the rows."""

    measured: list[Contestant]
    others: list[Candidate]
    rows: list[Row]


@dataclass(frozen=True)
class BenchmarkRun:
    """Which models are measured, and how.

    The options' `out` has a folder for each of the `receipts`, under its name. `flags` are those that scenarios have of
    their own: their values by the scenario's name.
    """

    options: Options
    receipts: dict[str, Receipt]
    flags: dict[str, dict[str, Any]] = field(default_factory=dict)

    def inputs(self) -> dict[str, Any]:
        """What decides how the run turns out, as JSON values: with the same inputs a choice is up to date."""
        names = "seconds batch threads streams scenario candidates cold_starts seed experiment"
        settings = {name: getattr(self.options, name) for name in names.split()}
        settings["photo"] = self.options.photo and sha256_file(self.options.photo)
        for flags in self.flags.values():
            settings.update(flags)
        receipts = {name: sha256_file(self._folder(name) / "model.json") for name in self.receipts}
        code = sha256_modules(*DECISIVE)
        return {"receipts": receipts, "settings": settings, "versions": environment.versions(), "code": code}

    def run(self, say: Say) -> Outcome:
        """Check who has no verdict of this machine, and measure those that passed.

        Raises SajiError where a model has become another meanwhile.
        """
        options = self.options
        together = [name for name in options.scenario if not SCENARIOS[name].alone]
        loads = list(itertools.product(dict.fromkeys(["single-stream", *together]), options.batch))
        with self.contestants() as contestants:
            check_here(contestants, self.receipts, say)
            passed = [c for c in contestants if c.candidate.verdict == "pass" and c.candidate.servable]
            measured = run_rounds(passed, loads, options.seconds, options.seed, say)
            self._start_cold(measured, say)
            measured = [contestant for contestant in measured if self._measured_alone(contestant, say)]
            rows = [row for contestant in measured for row in self._rows(contestant)]
        self._require_same_models()
        keys = {contestant.key() for contestant in measured}
        others = {c.key(): c.candidate for c in contestants if c.key() not in keys}
        return Outcome(measured, list(others.values()), rows)

    @contextmanager
    def contestants(self) -> Iterator[list[Contestant]]:
        """Every candidate asked for, times threads and streams; their processes, if any, end with the context."""
        contestants, options = [], self.options
        photo = str(options.photo.resolve()) if options.photo else ""
        for name, receipt in self.receipts.items():
            folder = self._folder(name)
            for candidate in receipt.candidates:
                if options.candidates and not any(_has_name(candidate, words) for words in options.candidates):
                    continue
                sha256 = ""
                if candidate.servable:  # a file check's own file is gone where it did not pass
                    receipt.verify(folder, candidate.file)
                    sha256 = receipt.files[candidate.file].sha256
                for threads, streams in itertools.product(options.threads, options.streams):
                    contestants.append(Contestant(candidate, folder, threads, streams, photo, options.seed, sha256))
        if not contestants:
            names = "; ".join(c.name for receipt in self.receipts.values() for c in receipt.candidates)
            raise SajiError(f"no candidate is named {' or '.join(options.candidates)}; there are {names}")
        try:
            yield contestants
        finally:
            for contestant in contestants:
                contestant.close()

    def _folder(self, name: str) -> Path:
        return self.options.out / "models" / name

    def _require_same_models(self) -> None:
        for name, receipt in self.receipts.items():
            if Receipt.read(folder := self._folder(name)) != receipt:
                raise SajiError(f"{folder} was exported anew meanwhile, so no figure is kept; measure again")

    def _start_cold(self, contestants: Sequence[Contestant], say: Say) -> None:
        for number in range(1, self.options.cold_starts + 1):
            what = f"cold start {number} of {self.options.cold_starts}, one process after another"
            for contestant in track(contestants, what, len(contestants)):
                try:
                    contestant.cold_start()
                except SajiError as error:  # what the rounds measured stands
                    say(f"{contestant.name}: its cold start is not known: {error}")

    def _measured_alone(self, contestant: Contestant, say: Say) -> bool:
        """Measure what takes no part in the rounds; False, and the reason is said, where that fails."""
        for name in dict.fromkeys(self.options.scenario):
            if SCENARIOS[name].alone:
                try:
                    measurement = contestant.measure(name, 1, self.options.seconds, **self.flags.get(name, {}))
                except SajiError as error:
                    contestant.leave_out(error, say)
                    return False
                contestant.measurements[name, 1].append(measurement)
                numbers = {key: value for key, value in measurement.figures.items() if isinstance(value, int | float)}
                say(f"{contestant.name}: {name}: {', '.join(f'{key} {value:g}' for key, value in numbers.items())}")
        return True

    def _rows(self, contestant: Contestant) -> list[Row]:
        receipt = self.receipts[contestant.folder.name]
        return rows_of(contestant, receipt, self.options.experiment, self.options.seconds)


def receipts_in(models: Path, archs: Sequence[str]) -> dict[str, Receipt]:
    """The receipts of some architectures, or of all, by name. Raises SajiError where they cannot be compared."""
    exported = sorted(
        path.parent.name for path in models.glob("*/model.json") if not left_by_programs(path.parent.name)
    )
    unknown = [name for name in archs if name not in exported]
    if unknown or not exported:
        raise SajiError(
            f"{models} holds {', '.join(exported) or 'no exported model'}"
            f"{', not ' + ', '.join(unknown) if unknown else ''}; export first with: make train export"
        )
    receipts = {name: Receipt.read(models / name) for name in archs or exported}
    by_data: dict[str, list[str]] = {}
    for name, receipt in receipts.items():
        by_data.setdefault(str(receipt.spec.data.get("fingerprint")), []).append(name)
    if len(by_data) > 1:
        groups = " | ".join(" ".join(names) for names in by_data.values())
        raise SajiError(f"these models were trained on different photos and cannot be compared: {groups}; use --archs")
    _require_told_apart(models, receipts)
    return receipts


def _require_told_apart(models: Path, receipts: dict[str, Receipt]) -> None:
    """Raise SajiError where two folders hold one network: a copy, or another training that was put beside the first.

    Candidates, rows and what is served are known by the network's name.
    """
    by_network: dict[str, list[str]] = {}
    for name, receipt in receipts.items():
        for network in {candidate.architecture for candidate in receipt.candidates}:
            by_network.setdefault(network, []).append(name)
    for network, names in by_network.items():
        if len(names) > 1:
            raise SajiError(
                f"the folders {', '.join(names)} in {models} hold one network, {network}, whose figures could not be "
                "told apart; choose one with --archs, or move the others elsewhere"
            )


def _has_name(candidate: Candidate, words: str) -> bool:
    return set(words.replace("·", " ").split()) <= set(candidate.name.replace("·", " ").split())


def check_here(contestants: Sequence[Contestant], receipts: dict[str, Receipt], say: Say) -> None:
    """Take anew the verdicts that do not hold on this machine, and keep them beside the receipts."""
    # Threads and streams change the order of sums, which no gate is as narrow as
    checked = {
        (folder, *key): candidate
        for folder in {contestant.folder for contestant in contestants}
        for key, candidate in of_here(folder, receipts[folder.name]).items()
    }
    for contestant in track(contestants, "checking on this machine", len(contestants)):
        candidate = contestant.candidate
        if not candidate.servable:
            continue
        if contestant.key() in checked:
            contestant.candidate = checked[contestant.key()]
            continue
        try:
            contestant.apply_gate()
            keep(contestant.folder, receipts[contestant.folder.name], [contestant.candidate])
        except SajiError as error:
            contestant.candidate = replace(candidate, verdict="fail", reasons=(str(error),))
        finally:
            contestant.close()
        checked[contestant.key()] = contestant.candidate
        say(f"{candidate.name}: checked on this machine: {contestant.candidate.verdict}")


def measured(contestant: Contestant, receipt: Receipt, policy: Policy) -> Measured:
    """What the choice knows of a contestant that was measured. Raises SajiError where its calls are too few for it."""
    measurements = contestant.measurements["single-stream", policy.batch]
    calls = [value for measurement in measurements for value in measurement.samples]
    milliseconds = percentile(calls, policy.percentile)
    if milliseconds is None:
        raise SajiError(
            f"{len(calls)} calls of {contestant.name} do not tell p{policy.percentile:g}, which takes "
            f"{samples_needed(policy.percentile)}; measure longer with --seconds"
        )
    file = receipt.files[contestant.candidate.file]
    rounds = (float(np.percentile(measurement.samples, policy.percentile)) for measurement in measurements)
    return Measured(
        candidate=contestant.candidate,
        folder=f"models/{contestant.folder.name}",
        sha256=file.sha256,
        file_bytes=file.bytes,
        milliseconds=round(milliseconds, 4),
        rounds=tuple(round(value, 4) for value in rounds),
        peak_memory_mib=measurements[-1].peak_memory_mib,
        threads=contestant.threads,
        streams=contestant.streams,
    )
