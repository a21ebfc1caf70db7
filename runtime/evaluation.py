"""Is a candidate right? Statistics and gates on logits; numpy only, used by training, export and bench alike."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import BadModel
from runtime.files import replacing

Z95 = 1.959963984540054  # the two-sided 95 % point of the normal distribution


@dataclass(frozen=True)
class Gate:
    """The bounds a candidate of one precision must keep, relative to the reference's own spread of logits.

    `shift`: RMS of (candidate − reference) over the RMS of the reference's centred logits. `worst_shift`: the same
    for the worst single photo. `flip_margin`: a photo may change its class only where the reference's lead of first
    over second, over that spread, is below this. `accuracy_drop`: at most this much lower, as a fraction.
    """

    shift: float
    worst_shift: float
    flip_margin: float
    accuracy_drop: float


# FP32 on another engine differs by the order of sums; bf16 has 8 bits of mantissa (relative step 2^-8), FP16 has 11,
# INT8 quantises activations to 256 steps. Bounds leave healthy candidates room of about 3x, see docs/parity.md.
GATES = {
    "fp32": Gate(shift=1e-3, worst_shift=5e-3, flip_margin=0.01, accuracy_drop=0.005),
    "fp16": Gate(shift=0.02, worst_shift=0.10, flip_margin=0.10, accuracy_drop=0.01),
    "bf16": Gate(shift=0.05, worst_shift=0.25, flip_margin=0.25, accuracy_drop=0.015),
    "int8": Gate(shift=0.15, worst_shift=0.60, flip_margin=0.50, accuracy_drop=0.02),
}

MIN_PHOTOS = 30  # below this, not one flip still leaves 10 % flips possible (rule of three): no verdict


@dataclass(frozen=True)
class Judgement:
    """A candidate's verdict ("pass", "fail" or "inconclusive"), why, and the figures behind it."""

    verdict: str
    reasons: tuple[str, ...]
    figures: dict[str, Any] = field(default_factory=dict)


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = right / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of photos whose highest logit is the label; logits float `[N, C]`, labels int `[N]`."""
    return float((logits.argmax(1) == labels).mean())


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts int `[C, C]`: row = true class, column = predicted class."""
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(1), minlength=classes**2).reshape(classes, classes)


def judge(reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray, precision: str) -> Judgement:
    """Hold a candidate's logits `[N, C]` against the FP32 checkpoint's on the same photos.

    Continuous paired statistics decide (logit shift, flips by margin); accuracy alone would raise false alarms on a
    hundred photos. "inconclusive" when the photos are too few to tell.
    """
    if candidate.shape != reference.shape:
        return Judgement("fail", (f"gives logits {list(candidate.shape)}, the checkpoint {list(reference.shape)}",))
    finite = np.isfinite(candidate).all(axis=1)
    if not finite.all():
        return Judgement("fail", (f"{int((~finite).sum())} of {len(labels)} photos give NaN or infinite logits",))
    gate, n = GATES[precision], len(labels)
    # Softmax ignores a constant added to all logits of a photo, so compare what is left without it
    reference, candidate = _centred(reference), _centred(candidate)
    spread = float(np.sqrt((reference**2).mean())) or 1.0
    photo_shift = np.sqrt(((candidate - reference) ** 2).mean(axis=1)) / spread
    ordered = np.sort(reference, axis=1)
    margins = (ordered[:, -1] - ordered[:, -2]) / spread
    flipped = np.flatnonzero(candidate.argmax(1) != reference.argmax(1))
    drop = accuracy(reference, labels) - accuracy(candidate, labels)
    figures: dict[str, Any] = {
        "photos": n,
        "accuracy": round(accuracy(candidate, labels), 4),
        "accuracy_interval": [round(edge, 4) for edge in wilson_interval(_right(candidate, labels), n)],
        "reference_accuracy": round(accuracy(reference, labels), 4),
        "agreement": round(1 - len(flipped) / n, 4) if n else 0.0,
        "shift": float(f"{np.sqrt((photo_shift**2).mean()):.3g}") if n else 0.0,
        "worst_shift": float(f"{photo_shift.max(initial=0):.3g}"),
        "largest_logit_difference": float(f"{np.abs(candidate - reference).max(initial=0):.3g}"),
        "flipped": [{"photo": int(i), "margin": round(float(margins[i]), 4)} for i in flipped],
    }
    reasons = []
    for name in ("shift", "worst_shift"):
        if figures[name] > getattr(gate, name):
            reasons.append(f"{name.replace('_', ' ')} {figures[name]:.3g} is above {getattr(gate, name):g}")
    clear = [flip for flip in figures["flipped"] if flip["margin"] > gate.flip_margin]
    if clear:
        worst = max(flip["margin"] for flip in clear)
        reasons.append(f"{len(clear)} clear photos changed class (margin up to {worst:.2f} > {gate.flip_margin})")
    if drop * n > gate.accuracy_drop * n + 1:  # one photo is the step of the scale, not evidence
        reasons.append(f"accuracy fell by {100 * drop:.1f} points, more than {100 * gate.accuracy_drop:g}")
    if reasons:
        return Judgement("fail", tuple(reasons), figures)
    if n < MIN_PHOTOS:
        return Judgement("inconclusive", (f"only {n} photos, {MIN_PHOTOS} are needed for a verdict",), figures)
    return Judgement("pass", (), figures)


def _centred(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - logits.mean(axis=1, keepdims=True)


def _right(logits: np.ndarray, labels: np.ndarray) -> int:
    return int((logits.argmax(1) == labels).sum())


@dataclass(frozen=True)
class JudgingSet:
    """The preprocessed validation photos: uint8 `[N, S, S, 3]` RGB, labels int64 `[N]`, names, reference logits."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    logits: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write as `judging.npz`, atomically; photos do not compress further, so they are stored as they are."""
        arrays = {"images": self.images, "labels": self.labels, "names": np.array(self.names)}
        if self.logits is not None:
            arrays["logits"] = self.logits
        with replacing(path) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # numpy's stub mixes up its keyword arguments

    @classmethod
    def load(cls, path: Path) -> "JudgingSet":
        """Read `judging.npz`; raises BadModel when it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                logits = arrays.get("logits")
                return cls(arrays["images"], arrays["labels"], tuple(map(str, arrays["names"])), logits)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise BadModel(f"{path} cannot be read ({error}); train or export again to write it anew") from None
        except Exception as error:  # zipfile.BadZipFile and friends are no common family
            raise BadModel(f"{path} is damaged ({error}); train or export again to write it anew") from None
