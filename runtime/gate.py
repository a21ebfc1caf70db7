"""The gate: may a candidate be served? The bounds of each precision, and the verdict by them; numpy only."""

import dataclasses
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import SajiError
from runtime.evaluation import Figures, centred, compare, moved
from runtime.files import as_record
from runtime.spec import ABSENT, UNKNOWN, ModelSpec


@dataclass(frozen=True)
class Gate:
    """The bounds a candidate of one precision must keep, relative to the reference's own spread of logits.

    `shift`: the RMS over photos of (candidate − reference), both centred photo by photo, of the class where it is
    largest, over the RMS of the reference's centred logits; so one wrong logit of a thousand counts as one of five.
    `worst_shift`: the RMS over classes of the photo where it is largest, among at most TYPICAL_PHOTOS, see `growth`.
    A second output, familiarity, keeps FAMILIAR times the two, over its own standard deviation among the photos, and at
    least LEAST_FAMILIAR.
    `flip_margin`: a photo may change its class only where the reference's lead of first over second, over that spread,
    is below this. `accuracy_drop`: at most this much lower, as a fraction. `source`: where the bounds come from.
    """

    shift: float
    worst_shift: float
    flip_margin: float
    accuracy_drop: float
    source: str = ""

    @classmethod
    def from_values(cls, values: Any, origin: str = "") -> "Gate":
        """A gate from its JSON form; one of `runtime.files.DAMAGE` when it is none, or bounds nothing."""
        gate = as_record(cls, values, origin)
        if max(gate.shift, gate.worst_shift, gate.flip_margin, gate.accuracy_drop) >= MOST:
            raise ValueError(f"a gate with {max(gate.shift, gate.worst_shift, gate.flip_margin, gate.accuracy_drop)}")
        return gate


# Bounds of processors are a stated multiple of the largest shift of healthy files: three architectures in three
# trainings each, EfficientNet-Lite0, transformers and other people's graphs; docs/gate.md shows them and the multiple.
# A row that ends in -gpu holds for GPUs, which have not been measured: INT8's is that of processors, the others are set
# from the precision's steps with the room that 34 layers of rounding need. INT8's flip_margin is √2 times its
# worst_shift: by as much two logits part that each move by the worst shift, independently of one another.
MOST = 1e9  # that a bound may be: beyond it, and at infinity, it would be none
ROOM = 3  # times the largest healthy shift
ROOM_FOR_ROUNDING = 10  # times that of the network itself
NOT_MEASURED = "not measured on a GPU"
GATES = {
    "fp32": Gate(5e-5, 2.5e-4, 0.001, 0.005, f"{ROOM} × the largest healthy shift: sums of 24 bits reordered"),
    "fp16": Gate(0.02, 0.10, 0.10, 0.01, "significands of 11 bits"),
    "bf16": Gate(0.05, 0.25, 0.25, 0.015, "significands of 8 bits"),
    "int8": Gate(0.15, 0.50, 0.70, 0.02, "256 steps for each activation, calibrated"),
    # Not a precision: resizing inside the graph, against the same file on pixels that Pillow resized (export.geometry)
    "geometry": Gate(0.05, 0.25, 0.10, 0.015, "pixels that differ by up to 1/255 after resizing"),
    "fp32-gpu": Gate(1e-3, 5e-3, 0.01, 0.005, NOT_MEASURED),
    "fp16-gpu": Gate(0.02, 0.10, 0.10, 0.01, NOT_MEASURED),
    "bf16-gpu": Gate(0.05, 0.25, 0.25, 0.015, NOT_MEASURED),
    "int8-gpu": Gate(0.15, 0.50, 0.70, 0.02, NOT_MEASURED),
}


MIN_PHOTOS = 30  # below this, not one flip still leaves 10 % flips possible (rule of three): no verdict
TYPICAL_PHOTOS = 100  # of a validation set: `Gate.worst_shift` holds for the worst of so many
# INT8 and FP16 move familiarity by about twice as much of its deviation as logits of theirs. FP32 moves it by up to
# 5e-5, since cosines near 1 are rounded at 1 and vary by a hundredth of it; the least room is 20 times that
FAMILIAR, LEAST_FAMILIAR = 2, 1e-3
SAME = 1e-6  # logits that move by less than this share of their size are all rounding, eight steps of FP32


def widened(gate: Gate, rounding: float) -> Gate:
    """FP32's gate for a network whose own answers move by `rounding`, a shift, from FP32 to FP64.

    An engine, which sums in another order and folds batch norm into weights, moves them by a few times as much. Where
    that is more than the bounds allow, a right file would be refused for how the network amplifies the last bit, as
    batch norm over channels that hardly vary does. So the bounds grow with it, as far as FP16's.
    """
    factor = min(ROOM_FOR_ROUNDING * rounding, GATES["fp16"].shift) / gate.shift
    if not factor > 1:
        return gate
    grown = {name: factor * getattr(gate, name) for name in ("shift", "worst_shift", "flip_margin")}
    return dataclasses.replace(gate, **grown, source=f"{ROOM_FOR_ROUNDING} × its own rounding, {rounding:.1e}")


@dataclass(frozen=True)
class GateResult:
    """A candidate's verdict ("pass", "fail" or "inconclusive"), why, and the figures behind it, if it has any."""

    verdict: str
    reasons: tuple[str, ...]
    figures: Figures | None = None


def read_gates(path: Path) -> dict[str, Gate]:
    """GATES with the bounds that a TOML file sets otherwise, such as `int8.shift = 0.2`; `source` says so.

    A bound of a precision holds for GPUs, too, unless the file sets theirs (`int8-gpu.shift = 0.3`). Raises SajiError
    when the file cannot be read or names a gate or bound that does not exist.
    """
    bounds = [part.name for part in dataclasses.fields(Gate) if part.name != "source"]
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        own = {(gate, bound): value for gate, values in content.items() for bound, value in values.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise SajiError(f"{path} cannot be read as gates ({error}); write for example: int8.shift = 0.2") from None
    gates = dict(GATES)
    own = {(f"{gate}-gpu", bound): value for (gate, bound), value in own.items() if f"{gate}-gpu" in gates} | own
    for (gate, bound), value in own.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST
        if gate not in gates or bound not in bounds or not number:
            known = f"gates are {', '.join(GATES)}, their bounds {', '.join(bounds)}, each a number"
            raise SajiError(f"{path} sets {gate}.{bound} = {value!r}; {known}")
        gates[gate] = dataclasses.replace(gates[gate], **{bound: float(value)}, source=f"set in {path.name}")
    return gates


def apply_gate(
    reference: np.ndarray,
    candidate: np.ndarray,
    labels: np.ndarray,
    gate: Gate,
    spec: ModelSpec | None = None,
    scenes: np.ndarray | None = None,
) -> GateResult:
    """Hold a candidate's logits `[N, C]` against the FP32 checkpoint's on the same photos, of these `scenes` if given.

    With the model's `spec` they are all its outputs, side by side, and the figures also count the served decisions that
    change, "not sure" being one.

    Continuous paired statistics decide first (logit shift, flips by margin): on a hundred photos a bare threshold on
    accuracy would fail healthy candidates and pass sick ones. A loss of accuracy beyond the gate's bound is "fail"
    where the paired test tells it from chance, else "inconclusive", as is any verdict on too few photos. So is that of
    one class, which may be rare: where it is less than half as often right, the loss that may be chance is doubtful.
    """
    if candidate.shape != reference.shape:
        return GateResult("fail", (f"gives logits {list(candidate.shape)}, the checkpoint {list(reference.shape)}",))
    if len(labels) == 0:
        return GateResult("inconclusive", ("there are no photos to check by",))
    both = reference, candidate
    if spec:
        reference, candidate = map(spec.logits, both)
    for who, logits in (("", candidate), (" in the checkpoint itself", reference)):
        # A few photos may be copies of one, and pass no gate in any case
        if (reason := no_logits(logits)) and (len(labels) >= MIN_PHOTOS or not np.isfinite(logits).all()):
            return GateResult("fail", (reason + who,))
    if spec and spec.familiarity and not all(np.isfinite(outputs[:, -1]).all() for outputs in both):
        return GateResult("fail", ("gives NaN or infinite familiarity",))
    figures = compare(reference, candidate, labels, scenes)
    if spec:
        before, after = (_decisions(outputs, spec) for outputs in both)
        figures = dataclasses.replace(figures, decisions_changed=int((before != after).sum()))
    if spec and spec.familiarity:
        shift, worst_shift = moved(*(outputs[:, -1] for outputs in both))
        figures = dataclasses.replace(figures, familiarity_shift=shift, worst_familiarity_shift=worst_shift)
    broken, doubtful = _against(gate, figures, spec.classes if spec else ())
    verdict = "fail" if broken else "inconclusive" if doubtful else "pass"
    return GateResult(verdict, tuple(broken + doubtful), figures)


def no_answer(values: np.ndarray, size: float | None = None) -> str:
    """Why values `[N, …]` of N photos, such as logits, tell nothing about them; empty where they do.

    `size`: what they were rounded at, by default the largest of them.
    """
    values, n = np.asarray(values, np.float64).reshape(len(values), -1), len(values)
    broken_photos = int((~np.isfinite(values).all(axis=1)).sum())
    if broken_photos:
        return f"{broken_photos} of {n} photos give NaN or infinite logits"
    if n > 1 and np.ptp(values, axis=0).max() <= SAME * (np.abs(values).max() if size is None else size):
        return f"all {n} photos give the same logits"
    return ""


def no_logits(logits: np.ndarray) -> str:
    """As `no_answer`, of logits `[N, C]`, of which softmax ignores a constant added to all of a photo."""
    return no_answer(logits) or no_answer(centred(logits), float(np.abs(logits).max(initial=0)))


def growth(photos: int) -> float:
    """How much larger the worst of so many photos may be than the worst of TYPICAL_PHOTOS.

    The largest of N values with an exponential tail lies near ln N times its scale (Gumbel 1958), and the shifts of
    photos have no heavier one; without this every bound of the worst photo would be broken by enough photos.
    """
    return max(1.0, math.log(max(photos, 1)) / math.log(TYPICAL_PHOTOS))


def _decisions(outputs: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """What the model answers for each photo, int `[N]`: its class, -1 for "not sure", -2 for nothing of the kind."""
    others, likeliest = {UNKNOWN: -1, ABSENT: -2}, spec.logits(outputs).argmax(1)
    return np.array([others.get(answer, top) for answer, top in zip(spec.answers(outputs), likeliest, strict=True)])


def _against(gate: Gate, figures: Figures, classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """What the gate forbids, and what it can neither forbid nor allow."""
    shift, worst_shift = gate.shift, gate.worst_shift * growth(figures.photos)
    allowed = {"shift": shift, "worst_shift": worst_shift}
    if figures.familiarity_shift is not None:
        allowed["familiarity_shift"] = max(FAMILIAR * shift, LEAST_FAMILIAR)
        allowed["worst_familiarity_shift"] = max(FAMILIAR * worst_shift, 5 * LEAST_FAMILIAR)
    broken = [
        f"{name.replace('_', ' ')} {getattr(figures, name):.3g} is above {most:.3g}"
        for name, most in allowed.items()
        if not getattr(figures, name) <= most
    ]
    clear = [flip.margin for flip in figures.flipped if flip.margin > gate.flip_margin]
    if clear:
        broken.append(f"{len(clear)} clear photos changed class (margin up to {max(clear):.2f} > {gate.flip_margin})")
    doubtful: list[str] = []
    if -figures.accuracy_difference > gate.accuracy_drop:
        p, lost = figures.mcnemar_p, -100 * figures.accuracy_difference
        reason = f"accuracy fell by {lost:.1f} points, more than {100 * gate.accuracy_drop:g} (McNemar p = {p:.2g})"
        (broken if p < 0.05 else doubtful).append(reason)
    for fall in figures.fallen:
        name = classes[fall.label] if classes else f"class {fall.label}"
        reason = f"the recall of {name} fell from {fall.before:.2f} to {fall.after:.2f} (p = {fall.p:.2g})"
        if fall.p < 0.05:
            broken.append(reason)
        elif 2 * fall.after < fall.before:
            doubtful.append(reason)
    if figures.photos < MIN_PHOTOS:
        doubtful.append(f"only {figures.photos} photos, {MIN_PHOTOS} are needed for a verdict")
    return broken, doubtful
