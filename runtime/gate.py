"""The gate: may a candidate be served? The bounds of each precision, and the verdict by them; numpy only."""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import SajiError
from runtime.evaluation import Figures, compare
from runtime.spec import ModelSpec


@dataclass(frozen=True)
class Gate:
    """The bounds a candidate of one precision must keep, relative to the reference's own spread of logits.

    `shift`: RMS of (candidate − reference) over the RMS of the reference's centred logits. `worst_shift`: the same
    for the worst single photo. `flip_margin`: a photo may change its class only where the reference's lead of first
    over second, over that spread, is below this. `accuracy_drop`: at most this much lower, as a fraction. `source`:
    where the bounds come from.
    """

    shift: float
    worst_shift: float
    flip_margin: float
    accuracy_drop: float
    source: str = ""


# FP32 on another engine differs by the order of sums; FP16 has 11 significant bits (a relative step of 2^-11), bf16 8,
# INT8 quantises activations to 256 steps. Bounds are set from these steps with the room that 34 layers of rounding
# need; docs/gate.md shows the shifts of healthy and of broken files on both sides of them. INT8's flip_margin is √2
# times its worst_shift: by as much two logits part that each move by the worst shift, independently of one another.
GATES = {
    "fp32": Gate(1e-3, 5e-3, 0.01, 0.005, "sums of 24-bit significands in another order"),
    "fp16": Gate(0.02, 0.10, 0.10, 0.01, "significands of 11 bits"),
    "bf16": Gate(0.05, 0.25, 0.25, 0.015, "significands of 8 bits"),
    "int8": Gate(0.12, 0.50, 0.70, 0.02, "256 steps for each activation, calibrated"),
    # Not a precision: resizing inside the graph, against the same file on pixels that Pillow resized (export.geometry)
    "geometry": Gate(0.05, 0.25, 0.10, 0.015, "pixels that differ by up to 1/255 after resizing"),
}


MIN_PHOTOS = 30  # below this, not one flip still leaves 10 % flips possible (rule of three): no verdict


@dataclass(frozen=True)
class GateResult:
    """A candidate's verdict ("pass", "fail" or "inconclusive"), why, and the figures behind it, if it has any."""

    verdict: str
    reasons: tuple[str, ...]
    figures: Figures | None = None


def read_gates(path: Path) -> dict[str, Gate]:
    """GATES with the bounds that a TOML file sets otherwise, such as `int8.shift = 0.2`; `source` says so.

    Raises SajiError when the file cannot be read or names a gate or bound that does not exist.
    """
    bounds = [part.name for part in dataclasses.fields(Gate) if part.name != "source"]
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        own = {(gate, bound): value for gate, values in content.items() for bound, value in values.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise SajiError(f"{path} cannot be read as gates ({error}); write for example: int8.shift = 0.2") from None
    gates = dict(GATES)
    for (gate, bound), value in own.items():
        if gate not in gates or bound not in bounds or isinstance(value, bool) or not isinstance(value, int | float):
            known = f"gates are {', '.join(GATES)}, their bounds {', '.join(bounds)}, each a number"
            raise SajiError(f"{path} sets {gate}.{bound} = {value!r}; {known}")
        gates[gate] = dataclasses.replace(gates[gate], **{bound: float(value)}, source=f"set in {path.name}")
    return gates


def apply_gate(
    reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray, gate: Gate, spec: ModelSpec | None = None
) -> GateResult:
    """Hold a candidate's logits `[N, C]` against the FP32 checkpoint's on the same photos.

    With the model's `spec` the figures also count the served decisions that change, "not sure" being one.

    Continuous paired statistics decide first (logit shift, flips by margin): on a hundred photos a bare threshold on
    accuracy would fail healthy candidates and pass sick ones. A loss of accuracy beyond the gate's bound is "fail"
    where the paired test tells it from chance, else "inconclusive", as is any verdict on too few photos.
    """
    if candidate.shape != reference.shape:
        return GateResult("fail", (f"gives logits {list(candidate.shape)}, the checkpoint {list(reference.shape)}",))
    for who, logits in (("", candidate), (" in the checkpoint itself", reference)):
        broken_photos = int((~np.isfinite(logits).all(axis=1)).sum())
        if broken_photos:
            reason = f"{broken_photos} of {len(labels)} photos give NaN or infinite logits{who}"
            return GateResult("fail", (reason,))
    if len(labels) == 0:
        return GateResult("inconclusive", ("there are no photos to check by",))
    figures = compare(reference, candidate, labels)
    if spec:
        changed = int((_decisions(reference, spec) != _decisions(candidate, spec)).sum())
        figures = dataclasses.replace(figures, decisions_changed=changed)
    broken, doubtful = _against(gate, figures)
    verdict = "fail" if broken else "inconclusive" if doubtful else "pass"
    return GateResult(verdict, tuple(broken + doubtful), figures)


def _decisions(logits: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """What the model answers for each photo, int `[N]`: its class, or -1 for "not sure"."""
    return np.where(spec.sure(logits), logits.argmax(1), -1)


def _against(gate: Gate, figures: Figures) -> tuple[list[str], list[str]]:
    """What the gate forbids, and what it can neither forbid nor allow."""
    broken = [
        f"{name.replace('_', ' ')} {getattr(figures, name):.3g} is above {getattr(gate, name):g}"
        for name in ("shift", "worst_shift")
        if getattr(figures, name) > getattr(gate, name)
    ]
    clear = [flip.margin for flip in figures.flipped if flip.margin > gate.flip_margin]
    if clear:
        broken.append(f"{len(clear)} clear photos changed class (margin up to {max(clear):.2f} > {gate.flip_margin})")
    doubtful: list[str] = []
    if -figures.accuracy_difference > gate.accuracy_drop:
        p, lost = figures.mcnemar_p, -100 * figures.accuracy_difference
        reason = f"accuracy fell by {lost:.1f} points, more than {100 * gate.accuracy_drop:g} (McNemar p = {p:.2g})"
        (broken if p < 0.05 else doubtful).append(reason)
    if figures.photos < MIN_PHOTOS:
        doubtful.append(f"only {figures.photos} photos, {MIN_PHOTOS} are needed for a verdict")
    return broken, doubtful
