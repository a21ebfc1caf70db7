"""Is a candidate right? Statistics and gates on logits; numpy only, used by training, export and bench alike."""

import dataclasses
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import BadModel, SajiError
from runtime.files import replacing
from runtime.spec import ModelSpec, softmax

Z95 = 1.959963984540054  # the two-sided 95 % point of the normal distribution


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
class Flip:
    """A photo, by its place in the validation set, whose class a candidate changes.

    `margin`: the reference's lead of first over second class there, over its spread of logits.
    """

    photo: int
    margin: float


@dataclass(frozen=True)
class Figures:
    """A candidate against the reference on the same `photos`; fractions of 1, intervals of 95 %.

    `shift`s as in `Gate`; differences are the candidate's minus the reference's. `decisions_changed` needs the spec,
    `largest_probability_difference` is known of files with the geometry in the graph.
    """

    photos: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    reference_accuracy: float
    accuracy_difference: float
    accuracy_difference_interval: tuple[float, float]
    mcnemar_p: float
    keeps_99_percent: bool  # MLPerf Inference's rule for "99 %" models
    agreement: float
    agreement_interval: tuple[float, float]
    worst_recall_difference: float
    shift: float
    worst_shift: float
    lowest_cosine: float
    largest_logit_difference: float
    calibration_difference: float
    flipped: tuple[Flip, ...]
    decisions_changed: int | None = None
    largest_probability_difference: float | None = None


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


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = right / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def with_interval(share: float, interval: Iterable[float]) -> str:
    """A share with its interval, as tables have it: "0.831 (0.76–0.88)"."""
    low, high = interval
    return f"{share:.3f} ({low:.2f}–{high:.2f})"


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of photos whose highest logit is the label; logits float `[N, C]`, labels int `[N]`."""
    return float((logits.argmax(1) == labels).mean())


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts int `[C, C]`: row = true class, column = predicted class."""
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(1), minlength=classes**2).reshape(classes, classes)


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
    finite = np.isfinite(candidate).all(axis=1)
    if not finite.all():
        return GateResult("fail", (f"{int((~finite).sum())} of {len(labels)} photos give NaN or infinite logits",))
    if len(labels) == 0:
        return GateResult("inconclusive", ("there are no photos to check by",))
    figures = compare(reference, candidate, labels)
    if spec:
        changed = int((_decisions(reference, spec) != _decisions(candidate, spec)).sum())
        figures = dataclasses.replace(figures, decisions_changed=changed)
    broken, doubtful = _against(gate, figures)
    verdict = "fail" if broken else "inconclusive" if doubtful else "pass"
    return GateResult(verdict, tuple(broken + doubtful), figures)


def compare(reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> Figures:
    """Every paired figure of a candidate, without a verdict: float logits `[N, C]` of both, labels int `[N]`, N > 0."""
    n = len(labels)
    # Softmax ignores a constant added to all logits of a photo, so compare what is left without it
    reference, candidate = _centred(reference), _centred(candidate)
    spread = float(np.sqrt((reference**2).mean())) or 1.0
    photo_shift = np.sqrt(((candidate - reference) ** 2).mean(axis=1)) / spread
    ordered = np.sort(reference, axis=1)
    margins = (ordered[:, -1] - ordered[:, -2]) / spread
    flipped = np.flatnonzero(candidate.argmax(1) != reference.argmax(1))
    was_right, is_right = reference.argmax(1) == labels, candidate.argmax(1) == labels
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(candidate, axis=1)
    cosines = (reference * candidate).sum(1) / np.maximum(lengths, 1e-12)
    recalls = [float(is_right[labels == k].mean() - was_right[labels == k].mean()) for k in np.unique(labels)]
    return Figures(
        photos=n,
        accuracy=round(float(is_right.mean()), 4),
        accuracy_interval=_rounded(wilson_interval(int(is_right.sum()), n)),
        reference_accuracy=round(float(was_right.mean()), 4),
        accuracy_difference=round(float(is_right.mean() - was_right.mean()), 4),
        accuracy_difference_interval=_rounded(paired_bootstrap(is_right.astype(int) - was_right)),
        mcnemar_p=round(mcnemar_p(int((was_right & ~is_right).sum()), int((~was_right & is_right).sum())), 4),
        keeps_99_percent=bool(is_right.sum() >= 0.99 * was_right.sum()),
        agreement=round(1 - len(flipped) / n, 4),
        agreement_interval=_rounded(wilson_interval(n - len(flipped), n)),
        worst_recall_difference=round(min(recalls), 4),
        shift=float(f"{np.sqrt((photo_shift**2).mean()):.3g}"),
        worst_shift=float(f"{photo_shift.max():.3g}"),
        lowest_cosine=round(float(cosines.min()), 5),
        largest_logit_difference=float(f"{np.abs(candidate - reference).max():.3g}"),
        calibration_difference=round(calibration_error(candidate, labels) - calibration_error(reference, labels), 4),
        flipped=tuple(Flip(int(i), round(float(margins[i]), 4)) for i in flipped),
    )


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


def paired_bootstrap(differences: np.ndarray, resamples: int = 4000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of a mean of paired differences, int or float `[N]` (Efron 1979); seeded."""
    drawn = np.random.default_rng(seed).integers(0, len(differences), (resamples, len(differences)))
    low, high = np.percentile(differences[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def mcnemar_p(lost: int, won: int) -> float:
    """Exact two-sided p of `lost` against `won` discordant photos under a fair coin (McNemar 1947); 1 without any."""
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1)) / 2**n
    return min(1.0, 2 * tail)


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of softmax(logits) in equal-width bins (Guo et al. 2017), 0 to 1."""
    confidence = softmax(logits).max(axis=1)
    right = logits.argmax(1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs((right[which == b] - confidence[which == b]).sum()) for b in range(bins)]
    return float(sum(gaps) / len(labels))


def _rounded(interval: tuple[float, float]) -> tuple[float, float]:
    return round(interval[0], 4), round(interval[1], 4)


def _centred(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - logits.mean(axis=1, keepdims=True)


@dataclass(frozen=True)
class ValidationSet:
    """The preprocessed validation photos: uint8 `[N, S, S, 3]` RGB, labels int64 `[N]`, names, reference logits."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    logits: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write as `validation.npz`, atomically; photos do not compress further, so they are stored as they are."""
        arrays = {"images": self.images, "labels": self.labels, "names": np.array(self.names)}
        if self.logits is not None:
            arrays["logits"] = self.logits
        with replacing(path) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # numpy's stub mixes up its keyword arguments

    @classmethod
    def load(cls, path: Path) -> "ValidationSet":
        """Read `validation.npz`; raises BadModel when it is missing or damaged."""
        earlier = path.with_name("judging.npz")  # its name until version 0.1
        try:
            with np.load(path if path.exists() else earlier, allow_pickle=False) as arrays:
                logits = arrays.get("logits")
                return cls(arrays["images"], arrays["labels"], tuple(map(str, arrays["names"])), logits)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise BadModel(f"{path} cannot be read ({error}); train or export again to write it anew") from None
        except Exception as error:  # zipfile.BadZipFile and friends are no common family
            raise BadModel(f"{path} is damaged ({error}); train or export again to write it anew") from None
