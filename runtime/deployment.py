"""`deployment.json`: which candidate is served on this machine, why, and what is next in line (`runtime.choice`)."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.candidate import VERDICTS, Candidate, not_run_here
from runtime.errors import BadModel
from runtime.files import as_record, exists, read_record, sha256_json, write_record
from runtime.machine import Machine, machine
from runtime.ranges import MOST_THREADS

SCHEMA_VERSION = 2


def is_setting(value: Any) -> bool:
    """Whether a value may be the number of an engine's threads or streams."""
    return isinstance(value, int | np.integer) and bool(0 <= value <= MOST_THREADS)


@dataclass(frozen=True)
class Measured:
    """A candidate with what the benchmark measured of it.

    `milliseconds` at the policy's percentile over all calls, `rounds` the same of each round; `threads` and `streams`
    are those it was measured with and is served with.
    """

    candidate: Candidate
    folder: str
    sha256: str
    file_bytes: int
    milliseconds: float
    rounds: tuple[float, ...] = ()
    peak_memory_mib: float | None = None
    threads: int = 0
    streams: int = 1

    @classmethod
    def from_values(cls, values: Any, origin: str = "") -> "Measured":
        """One from its JSON form; one of `runtime.files.DAMAGE` when it cannot be right."""
        place = as_record(cls, values, origin)
        for setting in (place.threads, place.streams):
            if not is_setting(setting):
                raise ValueError(f"{place.candidate.name} is to run with {setting!r} threads or streams")
        return place

    @property
    def accuracy(self) -> float:
        """Accuracy on the validation photos, as checked on this machine; 0 where it was not."""
        return self.candidate.figures.accuracy if self.candidate.figures else 0.0

    @property
    def name(self) -> str:
        """The candidate's name, with threads and streams where they are not the engine's own."""
        return self.candidate.name_with(self.threads, self.streams)


@dataclass(frozen=True)
class Rejected:
    """A candidate, by its name, that was not chosen: the reason in words, and what kind of reason it is.

    `cause` is its verdict where that is not "pass", or "file check", "memory", "size", "accuracy" or "speed".
    """

    candidate: str
    reason: str
    cause: str = ""

    @classmethod
    def from_values(cls, values: Any, origin: str = "") -> "Rejected":
        """One from its JSON form; earlier versions wrote no cause, but the verdict into its reasons."""
        entry = as_record(cls, values, origin)
        cause = entry.cause or next((verdict for verdict in VERDICTS if f"verdict {verdict}" in entry.reason), "")
        return dataclasses.replace(entry, cause=cause)


@dataclass(frozen=True)
class Deployment:
    """The content of `deployment.json`; `folder`s in it are relative to the file itself.

    `policy` holds the values of the `runtime.choice.Policy` that chose, `inputs` what it chose from.
    """

    choice: Measured
    reason: str
    fallbacks: tuple[Measured, ...]
    rejected: tuple[Rejected, ...]
    policy: dict[str, Any]
    machine: Machine | None
    inputs: dict[str, Any]

    def place_of(self, candidate: Candidate) -> Measured | None:
        """The candidate's place among the choice and its fallbacks, if it has one."""
        places = (place for place in (self.choice, *self.fallbacks) if place.candidate.key() == candidate.key())
        return next(places, None)

    def write(self, path: Path) -> None:
        """Write atomically."""
        write_record(path, self, SCHEMA_VERSION)

    @classmethod
    def read(cls, path: Path) -> "Deployment":
        """Read a deployment. Raises BadModel when it is missing, damaged or from another schema."""
        if not exists(path):
            raise BadModel(f"{path} does not exist: nothing is chosen yet; run: make train export bench")
        return read_record(path, cls, SCHEMA_VERSION, "choose again with: make bench")

    @classmethod
    def up_to_date(cls, path: Path, policy: dict[str, Any], inputs: dict[str, Any]) -> "Deployment | None":
        """What was chosen on this machine by the same policy from the same inputs, or None."""
        try:
            earlier = cls.read(path)
        except BadModel:
            return None
        same = earlier.policy == policy and sha256_json(earlier.inputs) == sha256_json(inputs)
        return earlier if same and earlier.machine == machine() else None

    def not_passed(self) -> str:
        """In words: what was not run here and what the gate refused, by reason."""
        because = [(entry.cause, entry.candidate, entry.reason.partition(": ")[2]) for entry in self.rejected]
        lines = not_run_here((name, reason) for cause, name, reason in because if cause == "unchecked")
        refused: dict[str, list[str]] = {}
        for cause, name, reason in because:
            if cause == "fail":
                refused.setdefault(reason, []).append(name)
        lines += [f"refused: {', '.join(names)}: {reason}" for reason, names in refused.items()]
        return "\n".join(lines)
