"""Which candidate is served: the fastest that passed on this machine and is about as accurate as the best."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import environment
from runtime.candidate import Candidate
from runtime.comparison import TIE, compared
from runtime.errors import BadModel, GateFailed
from runtime.files import read_json, sha256_json, write_json
from runtime.receipt import candidate_from

SCHEMA_VERSION = 2
MOST_THREADS = 1024  # or streams, that a deployment may ask for: far above any machine


@dataclass(frozen=True)
class Policy:
    """What "about as accurate" and "fast" mean, and what else must hold.

    `max_accuracy_drop` below the best model, as a fraction of 1; `batch` is the one that is served; `percentile` of the
    latency is what counts, 50 being the median; peak memory in MiB and file size in MB, None without a bound.
    """

    max_accuracy_drop: float = 0.01
    batch: int = 1
    percentile: float = 50
    max_memory: float | None = None
    max_size: float | None = None


@dataclass(frozen=True)
class Measured:
    """A candidate with its measured place in the race.

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

    @property
    def accuracy(self) -> float:
        """Accuracy on the validation photos, as judged on this machine."""
        return float(self.candidate.figures.get("accuracy", 0.0))

    @property
    def name(self) -> str:
        """The candidate's name, with threads and streams where they are not the engine's own."""
        return self.candidate.name_with(self.threads, self.streams)

    def ties_with(self, fastest: "Measured") -> bool:
        """Whether the race did not tell this one from the fastest, and puts it at most TIE behind."""
        ratio = compared(fastest.rounds, self.rounds)
        return ratio.verdict in ("tie", "inconclusive") and ratio.ratio <= 1 + TIE


@dataclass(frozen=True)
class Deployment:
    """The content of `deployment.json`; `folder`s in it are relative to the file itself."""

    choice: Measured
    reason: str
    fallbacks: tuple[Measured, ...]
    rejected: tuple[dict[str, str], ...]
    policy: Policy
    machine: dict[str, Any]
    inputs: dict[str, Any]

    def place_of(self, candidate: Candidate) -> Measured | None:
        """The candidate's place among the choice and its fallbacks, if it has one."""
        places = (place for place in (self.choice, *self.fallbacks) if place.candidate.key() == candidate.key())
        return next(places, None)

    def write(self, path: Path) -> None:
        """Write atomically."""
        write_json(path, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> "Deployment":
        """Read a deployment. Raises BadModel when it is missing, damaged or from another schema."""
        if not path.exists():
            raise BadModel(f"{path} does not exist: nothing is chosen yet; run: make train export bench")
        try:
            content = read_json(path)
            version = content.pop("schema_version")
            if version == SCHEMA_VERSION:
                content["choice"] = _measured(content["choice"])
                content["fallbacks"] = tuple(_measured(values) for values in content["fallbacks"])
                content["rejected"] = tuple(content["rejected"])
                content["policy"] = Policy(**content["policy"])
                return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadModel(f"{path} is damaged ({error!r}); choose again with: make bench") from None
        raise BadModel(f"{path} has version {version}, this saji reads {SCHEMA_VERSION}; choose again with: make bench")

    @classmethod
    def up_to_date(cls, path: Path, policy: Policy, inputs: dict[str, Any]) -> "Deployment | None":
        """What was chosen on this machine by the same policy from the same inputs, or None."""
        try:
            earlier = cls.read(path)
        except BadModel:
            return None
        same = earlier.policy == policy and sha256_json(earlier.inputs) == sha256_json(inputs)
        return earlier if same and earlier.machine == environment.machine() else None

    def told(self) -> str:
        """In words: what was not run here and what the gate refused, by cause, then the choice and its reason."""
        lines = []
        for what, verdict in (("not run here", "unchecked"), ("refused", "verdict fail")):
            by_reason: dict[str, list[str]] = {}
            for entry in self.rejected:
                if verdict in entry["reason"]:
                    by_reason.setdefault(entry["reason"].partition(": ")[2], []).append(entry["candidate"])
            lines += [f"{what}: {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
        lines += ["", f"choice: {self.choice.name}", f"reason: {self.reason}", "open the demo: make demo"]
        return "\n".join(lines)


def _measured(values: dict[str, Any]) -> Measured:
    candidate, rounds = candidate_from(values["candidate"]), tuple(values["rounds"])
    measured = Measured(**{**values, "candidate": candidate, "rounds": rounds})
    if not isinstance(measured.folder, str) or not isinstance(measured.sha256, str):
        raise ValueError(f"{candidate.name} lies in no folder, or has no sha256")
    for setting in (measured.threads, measured.streams):
        if not isinstance(setting, int) or not 0 <= setting <= MOST_THREADS:
            raise ValueError(f"{candidate.name} is to run with {setting!r} threads or streams")
    return measured


def choose(
    measured: list[Measured],
    unmeasured: list[Candidate],
    policy: Policy,
    machine: dict[str, Any],
    inputs: dict[str, Any],
) -> Deployment:
    """Choose by the policy. Raises GateFailed when no candidate may be served.

    `unmeasured` are candidates that were not timed, because they did not pass or cannot run here; they are listed
    with their reasons.
    """
    rejected = [{"candidate": c.name, "reason": _why_not(c)} for c in unmeasured]
    allowed = _allowed(measured, policy, rejected)
    if not allowed:
        why = "; ".join(
            sorted({entry["reason"] for entry in rejected if "verdict unchecked" not in entry["reason"]})[:2]
        )
        raise GateFailed(
            f"no candidate may be served on this machine, so nothing is chosen ({why or 'none was judged'})"
        )
    best = max(m.accuracy for m in allowed)
    accurate = _accurate(allowed, best - policy.max_accuracy_drop, best, rejected)
    fastest = min(accurate, key=lambda m: m.milliseconds)
    tied = [m for m in accurate if m is fastest or m.ties_with(fastest)]
    choice = min(tied, key=lambda m: (-m.accuracy, m.file_bytes, m.milliseconds))
    others = sorted((m for m in accurate if m is not choice), key=lambda m: m.milliseconds)
    rejected += [{"candidate": m.name, "reason": _why_second(m, choice, m in tied)} for m in others]
    points = f"{100 * policy.max_accuracy_drop:g} point{'' if policy.max_accuracy_drop == 0.01 else 's'}"
    reason = (
        f"fastest of {len(accurate)} candidates that passed parity on this machine within {points} of the best "
        f"accuracy ({best:.3f}): {choice.milliseconds:.2f} ms{_at(policy)}, accuracy {choice.accuracy:.3f}"
    )
    if len(tied) > 1:
        reason += f"; {len(tied)} are not told apart by the race, the more accurate, then smaller one wins"
    return Deployment(choice, reason, tuple(others), tuple(rejected), policy, machine, inputs)


def _allowed(measured: list[Measured], policy: Policy, rejected: list[dict[str, str]]) -> list[Measured]:
    """Those that passed and keep the policy's bounds; the others go to `rejected`."""
    allowed = []
    for m in measured:
        memory, size = m.peak_memory_mib or 0.0, m.file_bytes / 1e6
        if m.candidate.verdict != "pass" or not m.candidate.servable:
            rejected.append({"candidate": m.name, "reason": _why_not(m.candidate)})
        elif policy.max_memory is not None and memory > policy.max_memory:
            rejected.append({"candidate": m.name, "reason": f"takes {memory:.0f} MiB, more than {policy.max_memory:g}"})
        elif policy.max_size is not None and size > policy.max_size:
            rejected.append({"candidate": m.name, "reason": f"is {size:.1f} MB large, more than {policy.max_size:g}"})
        else:
            allowed.append(m)
    return allowed


def _accurate(allowed: list[Measured], floor: float, best: float, rejected: list[dict[str, str]]) -> list[Measured]:
    accurate = []
    for m in allowed:
        if m.accuracy >= floor - 1e-9:
            accurate.append(m)
        else:
            drop = f"{100 * (best - m.accuracy):.1f} points below the best ({best:.3f})"
            rejected.append({"candidate": m.name, "reason": f"accuracy {m.accuracy:.3f} is {drop}"})
    return accurate


def _why_second(m: Measured, choice: Measured, tied: bool) -> str:
    if tied:
        return "not told apart in speed, the choice is more accurate or smaller"
    return f"slower: {m.milliseconds:.2f} ms against {choice.milliseconds:.2f} ms"


def _at(policy: Policy) -> str:
    percentile = "" if policy.percentile == 50 else f" (p{policy.percentile:g})"
    return f"{percentile} at batch {policy.batch}"


def _why_not(candidate: Candidate) -> str:
    if not candidate.servable:
        return "a file check: this machine does not run it in its own precision"
    return f"parity verdict {candidate.verdict}: {'; '.join(candidate.reasons) or 'not judged on this machine'}"
