"""How right are logits? Accuracy, intervals, and a candidate's figures beside its checkpoint; numpy only."""

import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.lib.format

from runtime.errors import BadModel
from runtime.files import exists, replacing
from runtime.spec import side_by_side, softmax

Z95 = 1.959963984540054  # the two-sided 95 % point of the normal distribution
HARDLY_CHANCE = 0.1  # the p-value of a class by itself below which its loss is told: that of five photos of five


@dataclass(frozen=True)
class Flip:
    """A photo, by its place in the validation set, whose class a candidate changes.

    `margin`: the reference's lead of first over second class there, over its spread of logits.
    """

    photo: int
    margin: float


@dataclass(frozen=True)
class Fall:
    """A class, by its number, of which a candidate gets fewer photos right than the reference, and hardly by chance.

    `p`: of the paired test on its photos, among those of all classes (Holm).
    """

    label: int
    before: float
    after: float
    p: float


@dataclass(frozen=True)
class Figures:
    """A candidate against the reference on the same `photos`; fractions of 1, intervals of 95 %.

    `shift`s as in `Gate`; differences are the candidate's minus the reference's. `decisions_changed` needs the spec,
    the shifts of familiarity are of models that have it, `largest_probability_difference` is known of files with the
    geometry in the graph.
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
    familiarity_shift: float | None = None
    worst_familiarity_shift: float | None = None
    largest_probability_difference: float | None = None
    fallen: tuple[Fall, ...] = ()


def wilson_interval(right: float, n: float) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = right / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def was_asked(interval: Iterable[float]) -> bool:
    """Whether a share with this interval is of any photo: only of none does Wilson's reach from 0 to 1."""
    return [*interval] != [0, 1]


def effective_number(hits: np.ndarray, scenes: np.ndarray) -> float:
    """How many independent photos say as much as these: bool `[N]`, of which photos of one scene share a number `[N]`.

    N over the design effect of clustered samples (Kish 1965; Rao and Scott 1992, Biometrics 48). Where all photos
    agree there is no variance to estimate it by, and each scene counts once.
    """
    n, share = len(hits), float(np.mean(hits)) if len(hits) else 0.0
    _, scene, sizes = np.unique(scenes, return_inverse=True, return_counts=True)
    if share in (0.0, 1.0) or len(sizes) < 2:
        return n**2 / float((sizes**2).sum()) if n else 0.0
    residuals = np.bincount(scene, np.asarray(hits, float) - share)
    return n / max(1.0, float((residuals**2).sum()) / (n * share * (1 - share)))


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


def compare(
    reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray, scenes: np.ndarray | None = None
) -> Figures:
    """Every paired figure of a candidate, without a verdict: float logits `[N, C]` of both, labels int `[N]`, N > 0.

    With `scenes`, a number per photo, several shots of one scene are no more evidence than they are.
    """
    n = len(labels)
    scenes = np.arange(n) if scenes is None else scenes
    # Softmax ignores a constant added to all logits of a photo, so compare what is left without it
    reference, candidate = centred(reference), centred(candidate)
    spread = float(np.sqrt((reference**2).mean())) or 1.0
    squares = ((candidate - reference) / spread) ** 2
    ordered = np.sort(reference, axis=1)
    margins = (ordered[:, -1] - ordered[:, -2]) / spread
    flipped = np.flatnonzero(candidate.argmax(1) != reference.argmax(1))
    was_right, is_right = reference.argmax(1) == labels, candidate.argmax(1) == labels
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(candidate, axis=1)
    cosines = (reference * candidate).sum(1) / np.maximum(lengths, 1e-12)
    falls = _falls(was_right, is_right, labels, scenes)
    return Figures(
        photos=n,
        accuracy=round(float(is_right.mean()), 4),
        accuracy_interval=_interval(is_right, scenes),
        reference_accuracy=round(float(was_right.mean()), 4),
        accuracy_difference=round(float(is_right.mean() - was_right.mean()), 4),
        accuracy_difference_interval=_rounded(paired_bootstrap(is_right.astype(int) - was_right, scenes)),
        mcnemar_p=round(paired_p(is_right.astype(int) - was_right, scenes), 4),
        keeps_99_percent=bool(is_right.sum() >= 0.99 * was_right.sum()),
        agreement=round(1 - len(flipped) / n, 4),
        agreement_interval=_interval(candidate.argmax(1) == reference.argmax(1), scenes),
        worst_recall_difference=round(min(fall.after - fall.before for fall, _ in falls), 4),
        shift=float(f"{np.sqrt(squares.mean(axis=0).max()):.3g}"),  # of the class, and of the photo, that moves most
        worst_shift=float(f"{np.sqrt(squares.mean(axis=1).max()):.3g}"),
        lowest_cosine=round(float(cosines.min()), 5),
        largest_logit_difference=float(f"{np.abs(candidate - reference).max():.3g}"),
        calibration_difference=round(calibration_error(candidate, labels) - calibration_error(reference, labels), 4),
        flipped=tuple(Flip(int(i), round(float(margins[i]), 4)) for i in flipped),
        fallen=tuple(fall for fall, alone in falls if alone < HARDLY_CHANCE and fall.after < fall.before),
    )


def _falls(
    was_right: np.ndarray, is_right: np.ndarray, labels: np.ndarray, scenes: np.ndarray
) -> list[tuple[Fall, float]]:
    """Each class that photos show, bool and int `[N]`, with the p-value of its photos alone."""
    members = {int(label): labels == label for label in np.unique(labels)}
    alone = [paired_p(is_right[own].astype(int) - was_right[own], scenes[own]) for own in members.values()]
    return [
        (Fall(label, round(float(was_right[own].mean()), 4), round(float(is_right[own].mean()), 4), round(p, 4)), one)
        for (label, own), p, one in zip(members.items(), holm(alone), alone, strict=True)
    ]


def moved(reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float]:
    """By how much familiarities `[N]` differ from others: RMS, and the largest.

    Over the standard deviation of those, or over 1, that of training photos, where they hardly vary.
    """
    spread = max(float(np.std(reference)), 1.0)
    apart = np.abs(np.asarray(candidate, np.float64) - reference) / spread
    return float(f"{np.sqrt((apart**2).mean()):.3g}"), float(f"{apart.max():.3g}")


def paired_bootstrap(
    differences: np.ndarray, scenes: np.ndarray | None = None, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a mean of paired differences, int or float `[N]` (Efron 1979); seeded.

    With `scenes`, a number per photo, whole scenes are drawn: shots of one plate are no independent evidence.
    """
    lots = np.random.default_rng(seed)
    scene = np.arange(len(differences)) if scenes is None else np.unique(scenes, return_inverse=True)[1]
    sums, photos = np.bincount(scene, differences), np.bincount(scene)
    n = len(sums)
    at_once = max(1, 500_000 // n)  # resamples: all of them, of many photos, would fill the memory
    drawn = (lots.integers(0, n, (min(at_once, resamples - first), n)) for first in range(0, resamples, at_once))
    means = np.concatenate([sums[lot].sum(axis=1) / photos[lot].sum(axis=1) for lot in drawn])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_p(differences: np.ndarray, scenes: np.ndarray, flips: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of paired differences, int `[N]` of -1, 0 and 1, under a fair sign for each scene, a number `[N]`.

    McNemar's exact test where no scene counts twice; else signs are drawn (Good 2005, permutation tests), seeded.
    """
    sums = np.bincount(np.unique(scenes, return_inverse=True)[1], differences)
    sums = sums[sums != 0]
    if np.all(np.abs(sums) == 1):
        return mcnemar_p(int((sums < 0).sum()), int((sums > 0).sum()))
    lots, as_far = np.random.default_rng(seed), 0
    at_once = max(1, 1_000_000 // len(sums))  # of many scenes all signs would fill the memory
    for first in range(0, flips, at_once):
        signs = 2 * lots.integers(0, 2, (min(at_once, flips - first), len(sums))) - 1
        as_far += int((np.abs(signs @ sums) >= abs(sums.sum())).sum())
    return (1 + as_far) / (1 + flips)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that one of them is wrongly below a bound as rarely as one alone (Holm
    1979, Scandinavian Journal of Statistics 6)."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted.tolist()


def mcnemar_p(lost: int, won: int) -> float:
    """Exact two-sided p of `lost` against `won` discordant photos under a fair coin (McNemar 1947); 1 without any."""
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1)) / 2**n
    return min(1.0, 2 * tail)


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of softmax(logits) in equal-width bins (Guo et al. 2017), 0 to 1."""
    return sum(b.photos * abs(b.accuracy - b.confidence) for b in reliability(logits, labels, bins)) / len(labels)


@dataclass(frozen=True)
class Bin:
    """A bar of a reliability diagram: photos of like confidence, the mean of that, and the share that is right."""

    photos: int
    confidence: float
    accuracy: float


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = 10) -> list[Bin]:
    """The bins of equal width, 0 to 1, that hold a photo; the weighted gaps add up to `calibration_error`."""
    confidence = softmax(logits).max(axis=1)
    right = logits.argmax(1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    inside = [which == b for b in range(bins) if (which == b).any()]
    return [Bin(int(b.sum()), float(confidence[b].mean()), float(right[b].mean())) for b in inside]


def _interval(hits: np.ndarray, scenes: np.ndarray) -> tuple[float, float]:
    n = effective_number(hits, scenes)
    return _rounded(wilson_interval(n * float(hits.mean()), n))


def _rounded(interval: tuple[float, float]) -> tuple[float, float]:
    return round(interval[0], 4), round(interval[1], 4)


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits `[N, C]` less each photo's mean, float64."""
    logits = np.asarray(logits, np.float64)
    return logits - logits.mean(axis=1, keepdims=True)


PHOTOS, EARLIER = "validation.npz", "judging.npz"  # the name in earlier versions
OPTIONAL = ("logits", "scenes", "familiarity")  # arrays that a validation set may lack


@dataclass(frozen=True)
class ValidationSet:
    """The preprocessed validation photos: uint8 `[N, S, S, 3]` RGB, labels int64 `[N]`, names, reference logits.

    `scenes` is a number per photo that shots of one scene share; None in files of earlier versions. `familiarity`
    float32 `[N]` is the reference's second output, where it has one.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    logits: np.ndarray | None = None
    scenes: np.ndarray | None = None
    familiarity: np.ndarray | None = None

    @property
    def outputs(self) -> np.ndarray:
        """The reference's outputs side by side, see `runtime.spec.ModelSpec`; for sets that have its logits."""
        assert self.logits is not None
        return side_by_side(self.logits, self.familiarity)

    def save(self, path: Path) -> None:
        """Write as `validation.npz`, atomically; photos do not compress further, so they are stored as they are."""
        arrays = {"images": self.images, "labels": self.labels, "names": np.array(self.names)}
        arrays |= {name: each for name in OPTIONAL if (each := getattr(self, name)) is not None}
        with replacing(path) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # numpy's stub mixes up its keyword arguments

    @classmethod
    def load(cls, path: Path) -> "ValidationSet":
        """Read `validation.npz`; raises BadModel when it is missing or damaged."""
        with _readable(path) as file, np.load(file, allow_pickle=False) as arrays:
            if unknown := set(arrays) - {field.name for field in fields(cls)}:  # a part by a damaged name is missing
                raise ValueError(f"it holds {min(unknown)!r}, which is no part of one")
            names = tuple(map(str, arrays["names"]))
            found = cls(arrays["images"], arrays["labels"], names, **{name: arrays.get(name) for name in OPTIONAL})
            if {len(each) for each in vars(found).values() if each is not None} != {len(names)} or not names:
                raise ValueError("it holds no photos, or not as many of each part")
            return found

    @staticmethod
    def first_images(path: Path, most: int) -> np.ndarray:
        """The first photos of `validation.npz`, uint8 `[most or fewer, S, S, 3]`, without the others in memory."""
        with _readable(path) as file, zipfile.ZipFile(file) as archive, archive.open("images.npy") as member:
            numpy.lib.format.read_magic(member)
            (n, *shape), _, kind = numpy.lib.format.read_array_header_1_0(member)
            count = min(n, most) * math.prod(shape)
            return np.frombuffer(member.read(count), kind).reshape(-1, *shape)


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """The file of a validation set, whose reading in the context raises BadModel where it is missing or damaged."""
    earlier = path.with_name(EARLIER)
    try:
        yield path if exists(path) else earlier
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BadModel(f"{path} cannot be read ({error}); train or export again to write it anew") from None
    except Exception as error:  # zipfile.BadZipFile and friends are no common family
        raise BadModel(f"{path} is damaged ({error}); train or export again to write it anew") from None
