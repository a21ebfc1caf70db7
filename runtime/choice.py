"""Which candidate is served: the fastest that passed on this machine and is about as accurate as the best."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from runtime.candidate import Candidate
from runtime.deployment import Deployment, Measured, Rejected
from runtime.errors import GateFailed
from runtime.machine import Machine
from runtime.ranges import Batch, Percentile, Positive, Share, require_right
from runtime.speed_ratio import TIE, compared

# Variants of a file that this machine runs as written, and that no service is for
_ONLY_CHECKED = {
    "embed": "the file for other apps, which resizes and crops in the graph itself",
    "cam": "the file of the heat map, which is opened beside the one that answers",
}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What "about as accurate" and "fast" mean, and what else must hold: flags of the verb bench.

    `batch` is the one that is served, the smallest of those measured; without a bound, memory and size are None.
    """

    max_accuracy_drop: Share = 0.01
    """below the best model, as a fraction"""
    batch: Batch = 1
    percentile: Percentile = 50
    """of the latency, which the choice is made by"""
    max_memory: Positive | None = None
    """peak memory of a candidate's process that is allowed, MiB"""
    max_size: Positive | None = None
    """file size that is allowed, MB"""

    def __post_init__(self) -> None:
        require_right(self, flags=True)

    def values(self) -> dict[str, Any]:
        """The policy as a deployment keeps it."""
        return dataclasses.asdict(self)


def choose(
    measured: list[Measured],
    unmeasured: list[Candidate],
    policy: Policy,
    machine: Machine | None,
    inputs: dict[str, Any],
    labelled: bool = True,
) -> Deployment:
    """Choose by the policy. Raises GateFailed when no candidate may be served.

    `unmeasured` are candidates that were not timed, because they did not pass or cannot run here; they are listed
    with their reasons. `machine` and `inputs` go into the deployment. Where photos were not `labelled`, accuracy is
    agreement with the checkpoint.
    """
    rejected = [_not_passed(candidate, candidate.name) for candidate in unmeasured]
    allowed = _allowed(measured, policy, rejected)
    if not allowed:
        told = [entry for entry in rejected if entry.cause not in ("unchecked", "file check")]
        why = "; ".join(sorted({entry.reason for entry in told or rejected if entry.cause != "file check"})[:2])
        raise GateFailed(
            f"no candidate may be served on this machine, so nothing is chosen ({why or 'none was checked'})"
        )
    best = max(place.accuracy for place in allowed)
    accurate = _accurate(allowed, policy, best, rejected)
    fastest = min(accurate, key=lambda place: place.milliseconds)
    tied = [place for place in accurate if place is fastest or _as_fast(place, fastest)]
    choice = min(tied, key=lambda place: (-place.accuracy, place.file_bytes, place.milliseconds))
    others = sorted((place for place in accurate if place is not choice), key=lambda place: place.milliseconds)
    rejected += [_second(place, choice, place in tied) for place in others]
    points = f"{100 * policy.max_accuracy_drop:g} point{'' if policy.max_accuracy_drop == 0.01 else 's'}"
    percentile = "" if policy.percentile == 50 else f" (p{policy.percentile:g})"
    what = "accuracy" if labelled else "agreement with the checkpoint"
    reason = (
        f"fastest of {len(accurate)} candidates that passed parity on this machine within {points} of the best "
        f"{what} ({best:.3f}): {choice.milliseconds:.2f} ms{percentile} at batch {policy.batch}, "
        f"{what} {choice.accuracy:.3f}"
    )
    if len(tied) > 1:
        reason += f"; {len(tied)} are not told apart by the benchmark, the more accurate, then smaller one wins"
    return Deployment(choice, reason, tuple(others), tuple(rejected), policy.values(), machine, inputs)


def _as_fast(place: Measured, fastest: Measured) -> bool:
    """Whether the benchmark did not tell this one from the fastest, and puts it at most TIE behind."""
    ratio = compared(fastest.rounds, place.rounds)
    return ratio.verdict in ("tie", "inconclusive") and ratio.ratio <= 1 + TIE


def _allowed(measured: list[Measured], policy: Policy, rejected: list[Rejected]) -> list[Measured]:
    """Those that passed and keep the policy's bounds; the others go to `rejected`."""
    allowed = []
    for place in measured:
        memory, size = place.peak_memory_mib, place.file_bytes / 1e6
        if place.candidate.verdict != "pass" or not place.candidate.servable:
            rejected.append(_not_passed(place.candidate, place.name))
        elif policy.max_memory is not None and (memory is None or memory > policy.max_memory):
            reason = f"takes {memory:.0f} MiB, more than {policy.max_memory:g}" if memory else "its memory is not known"
            rejected.append(Rejected(place.name, reason, "memory"))
        elif policy.max_size is not None and size > policy.max_size:
            rejected.append(Rejected(place.name, f"is {size:.1f} MB large, more than {policy.max_size:g}", "size"))
        else:
            allowed.append(place)
    return allowed


def _accurate(allowed: list[Measured], policy: Policy, best: float, rejected: list[Rejected]) -> list[Measured]:
    """Those about as accurate as the best; the others go to `rejected`."""
    accurate = []
    for place in allowed:
        if place.accuracy >= best - policy.max_accuracy_drop - 1e-9:
            accurate.append(place)
        else:
            drop = f"{100 * (best - place.accuracy):.1f} points below the best ({best:.3f})"
            rejected.append(Rejected(place.name, f"accuracy {place.accuracy:.3f} is {drop}", "accuracy"))
    return accurate


def _second(place: Measured, choice: Measured, tied: bool) -> Rejected:
    reason = f"slower: {place.milliseconds:.2f} ms against {choice.milliseconds:.2f} ms"
    if tied:
        reason = "not told apart in speed, the choice is more accurate or smaller"
    return Rejected(place.name, reason, "speed")


def _not_passed(candidate: Candidate, name: str) -> Rejected:
    if not candidate.servable:
        why = _ONLY_CHECKED.get(candidate.variant, "this machine does not run it in its own precision")
        return Rejected(name, f"a file check: {why}", "file check")
    if candidate.verdict == "pass":
        return Rejected(name, "passed, but could not be measured", "not measured")
    why = "; ".join(candidate.reasons) or "not checked on this machine"
    return Rejected(name, f"parity verdict {candidate.verdict}: {why}", candidate.verdict)
