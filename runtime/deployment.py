"""Which candidate is served: the fastest that passed on this machine and is about as accurate as the best."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.candidate import Candidate
from runtime.errors import BadModel, GateFailed
from runtime.files import write_json
from runtime.receipt import candidate_from

SCHEMA_VERSION = 1
TIE = 0.03  # candidates within 3 % of each other's latency tie: medians of one run do not tell them apart


@dataclass(frozen=True)
class Policy:
    """What "about as accurate" and "fast" mean: accuracy drop as a fraction of 1, the batch that is served."""

    max_accuracy_drop: float = 0.01
    batch: int = 1


@dataclass(frozen=True)
class Measured:
    """A candidate with its measured place in the race."""

    candidate: Candidate
    folder: str
    sha256: str
    file_bytes: int
    milliseconds: float

    @property
    def accuracy(self) -> float:
        """Accuracy on the validation photos, as judged on this machine."""
        return float(self.candidate.figures.get("accuracy", 0.0))


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

    def write(self, path: Path) -> None:
        """Write atomically."""
        write_json(path, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> "Deployment":
        """Read a deployment. Raises BadModel when it is missing, damaged or from another schema."""
        if not path.is_file():
            raise BadModel(f"{path} does not exist: nothing is chosen yet; run: make train export bench")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
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


def _measured(values: dict[str, Any]) -> Measured:
    return Measured(**{**values, "candidate": candidate_from(values["candidate"])})


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
    passed = [m for m in measured if m.candidate.verdict == "pass" and m.candidate.servable]
    for m in measured:
        if m not in passed:
            rejected.append({"candidate": m.candidate.name, "reason": _why_not(m.candidate)})
    if not passed:
        why = "; ".join(
            sorted({entry["reason"] for entry in rejected if "verdict unjudged" not in entry["reason"]})[:2]
        )
        raise GateFailed(
            f"no candidate passed parity on this machine, so nothing is served ({why or 'none was judged'})"
        )
    best = max(m.accuracy for m in passed)
    accurate, floor = [], best - policy.max_accuracy_drop
    for m in passed:
        if m.accuracy >= floor - 1e-9:
            accurate.append(m)
        else:
            drop = f"{100 * (best - m.accuracy):.1f} points below the best ({best:.3f})"
            rejected.append({"candidate": m.candidate.name, "reason": f"accuracy {m.accuracy:.3f} is {drop}"})
    fastest = min(m.milliseconds for m in accurate)
    tied = [m for m in accurate if m.milliseconds <= fastest * (1 + TIE)]
    choice = min(tied, key=lambda m: (-m.accuracy, m.file_bytes, m.milliseconds))
    others = sorted((m for m in accurate if m is not choice), key=lambda m: m.milliseconds)
    rejected += [
        {
            "candidate": m.candidate.name,
            "reason": f"slower: {m.milliseconds:.2f} ms against {choice.milliseconds:.2f} ms",
        }
        if m.milliseconds > choice.milliseconds
        else {"candidate": m.candidate.name, "reason": "ties in speed, the choice is more accurate or smaller"}
        for m in others
    ]
    points = f"{100 * policy.max_accuracy_drop:g} point{'' if policy.max_accuracy_drop == 0.01 else 's'}"
    reason = (
        f"fastest of {len(accurate)} candidates that passed parity on this machine within {points} of the best "
        f"accuracy ({best:.3f}): {choice.milliseconds:.2f} ms at batch {policy.batch}, accuracy {choice.accuracy:.3f}"
    )
    if len(tied) > 1:
        reason += f"; {len(tied)} tie within {100 * TIE:.0f} %, the more accurate, then smaller one wins"
    return Deployment(choice, reason, tuple(others), tuple(rejected), policy, machine, inputs)


def _why_not(candidate: Candidate) -> str:
    if not candidate.servable:
        return "a file check: this machine does not run it in its own precision"
    return f"parity verdict {candidate.verdict}: {'; '.join(candidate.reasons) or 'not judged on this machine'}"
