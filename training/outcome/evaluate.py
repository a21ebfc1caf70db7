"""How good a model is on photos that it has not been trained on: `python -m training evaluate`.

Photos whose label is no class of the model count as "none of these": they are to be rejected, not to be classified.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from runtime.classifier import load
from runtime.errors import BadModel, BadPhoto, SajiError, missing_extra, some_of
from runtime.evaluation import calibration_error
from runtime.files import is_file, sha256_file
from runtime.preprocess import pixels
from runtime.spec import ModelSpec, Rejection
from runtime.terminal import printable, tell, tell_programs
from training.photos.findings import LARGEST_FILE
from training.photos.photo_set import Photo, read_photo_set, spoken
from training.progress import Progress, bar, in_threads, silent
from training.run.records import Interval, Share, rounded

BATCH = 32  # photos in memory at a time
NONE = -1  # the label of a photo that shows none of the model's classes

Outputs = Callable[[np.ndarray], np.ndarray]  # uint8 [N, S, S, 3] RGB → float32 [N, …], see runtime.spec.ModelSpec


@dataclass(frozen=True)
class Answers:
    """A model's outputs float32 `[N, …]` for photos that can be read; labels int `[N]`, NONE for "none of these".

    `files` int `[N]` is a number per photo that copies of one file share.
    """

    outputs: np.ndarray
    labels: np.ndarray
    files: np.ndarray
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class ClassScores:
    """How a class is recognised; `support` photos show it."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error at the model's temperature, and at 1."""

    temperature: float
    ece: float
    ece_at_temperature_1: float


@dataclass(frozen=True)
class RejectionFigures:
    """What the model's rule keeps and rejects, None where there are no such photos; AUROC of known against unknown."""

    rule: Rejection | None
    auroc: float | None
    unknown_rejected: Share | None
    known_kept: Share | None
    right_kept: Share | None


@dataclass(frozen=True)
class Evaluation:
    """All figures of a model on some photos, `known` of its classes and `unknown` of none of them.

    What is None has no known photo to be measured on. Macro-F1 is the mean over the classes that the photos show.
    Intervals are no narrower for copies of a file.
    """

    photos: int
    known: int
    unknown: int
    rejection: RejectionFigures
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    macro_f1: float | None = None
    per_class: dict[str, ClassScores] = field(default_factory=dict)
    calibration: Calibration | None = None

    def record(self) -> dict[str, Any]:
        """Its JSON form, numbers to four digits."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, {})}
        rule = self.rejection.rule  # whose threshold keeps all its digits
        return {**rounded(values), "rejection": {**rounded(asdict(self.rejection)), "rule": rule and asdict(rule)}}


def evaluate(checkpoint: Path, source: Path, split: str | None) -> None:
    """Let a model answer the photos, of one side of the split if it is named; print its figures, and them as JSON.

    Photos that a checkpoint is known to have seen are counted and left out. Raises SajiError where there are no others.
    """
    photos, problems = _chosen(source, split)
    outputs, spec = opened(checkpoint)
    photos = list(in_threads(_examined, photos))
    photos, seen, notes = _unseen(checkpoint, photos)
    answers = answer(outputs, spec, photos, bar)
    problems += [*notes, *_repeated(answers)]
    evaluation, strangers = evaluated(spec, answers.outputs, answers.labels, answers.files), _strangers(spec, photos)
    tell(described(evaluation, strangers, answers.unreadable, problems))
    request = {"checkpoint": str(checkpoint), "data": str(source), "split": split}
    rest = {"seen": seen, "none_of_these": strangers, "unreadable": answers.unreadable, "problems": problems}
    tell_programs({**request, **evaluation.record(), **rest})


def _chosen(source: Path, split: str | None) -> tuple[list[Photo], list[str]]:
    listed = read_photo_set(source)
    chosen = [photo for photo in listed.photos if split in (None, photo.split)]
    if not chosen:
        splits = ", ".join(sorted({photo.split or "none" for photo in listed.photos}))
        raise SajiError(
            f"{source} has no photo of the split {split!r} (there: {splits}); leave --split out to take all"
        )
    return chosen, [*listed.problems, *listed.notes]


def _unseen(checkpoint: Path, photos: list[Photo]) -> tuple[list[Photo], int | str, list[str]]:
    """The photos that are new to a model, how many others there are, "unknown" where it has no record, and notes."""
    if checkpoint.suffix != ".pt":  # an exported model, which is evaluated without PyTorch
        return photos, "unknown", _perhaps_seen(photos)
    from training.photos.seen import DIGITS, seen_by

    record = seen_by(checkpoint)
    if record.photos is None:
        return photos, "unknown", _perhaps_seen(photos)
    digests = [photo.sha256[:DIGITS] for photo in photos]
    new = [photo for photo, digest in zip(photos, digests, strict=True) if digest not in record.photos]
    if not new:
        raise SajiError(
            f"all {len(photos)} photos were seen by {checkpoint} when it was trained, so they say nothing of new ones; "
            "give photos that it has not seen"
        )
    number = len(photos) - len(new)
    notes = [f"{number} of {len(photos)} photos were seen by {checkpoint} when it was trained, and are left out"]
    if settled := sum(digest in record.settled for digest in digests):
        notes.append(
            f"{settled} of these photos set the temperature and the threshold of {checkpoint}, so the calibration "
            "error and what is rejected look somewhat too good"
        )
    elif not record.settled:  # an earlier saji kept no record of them
        notes += _perhaps_seen([photo for photo in new if photo.split == "val"])
    return new, number, notes if number else notes[1:]


def _examined(photo: Photo) -> Photo:
    """The photo with its file's SHA-256; without, where that cannot be read, which is told when it is decoded."""
    with suppress(OSError):
        if photo.path.stat().st_size <= LARGEST_FILE:
            return replace(photo, sha256=sha256_file(photo.path))
    return photo


def _file(photo: Photo) -> str:
    """What copies of a file share."""
    return photo.sha256 or str(photo.path.resolve())


def _perhaps_seen(photos: list[Photo]) -> list[str]:
    """What makes figures look too good where the model comes from this very photo set."""
    learnt, settled = (sum(photo.split == side for photo in photos) for side in ("train", "val"))
    notes = []
    if learnt:
        notes.append(f"{learnt} photos are of the split train; if the model learnt from them, every figure is too good")
    if settled:
        notes.append(
            f"{settled} photos are of the split val; if they chose the epoch and set the temperature and the "
            "threshold of this model, its figures are somewhat too good"
        )
    return notes


def _repeated(answers: Answers) -> list[str]:
    """That photos count more than once, where the set has them so."""
    labels: dict[int, list[int]] = defaultdict(list)
    for file, label in zip(answers.files.tolist(), answers.labels.tolist(), strict=True):
        labels[file].append(label)
    several = [given for given in labels.values() if len(given) > 1]
    two = sum(len(set(given)) > 1 for given in several)
    told = f"{len(several)} photos are listed more than once or have copies, {two} of them under two labels; "
    return [told + "each one counts, and the intervals are no narrower for them"] if several else []


def opened(path: Path) -> tuple[Outputs, ModelSpec]:
    """How to ask a checkpoint, or any model that `runtime.load` opens. Raises SajiError in one sentence."""
    if is_file(path / "checkpoint.pt"):  # a run's folder of a network
        path /= "checkpoint.pt"
    if path.suffix != ".pt":
        classifier = load(path)
        return classifier.outputs, classifier.spec
    try:  # only here: an exported model is evaluated without PyTorch
        from training.network.classifier import load_checkpoint, reference_outputs
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "torch", "train") from None

    model, spec = load_checkpoint(path)
    return lambda images: reference_outputs(model, images), spec


def answer(ask: Outputs, spec: ModelSpec, photos: list[Photo], progress: Progress = silent) -> Answers:
    """Preprocess and ask batch by batch, so that memory stays bounded. Raises SajiError when no photo can be read."""
    outputs, labels, files, unreadable = [], [], [], []
    number = numbers(spec, {photo.label for photo in photos})
    starts = range(0, len(photos), BATCH)
    for start in progress(starts, "evaluating", len(starts)):
        batch = photos[start : start + BATCH]
        images = []
        for photo, image in zip(batch, in_threads(lambda photo: _pixels(photo, spec), batch), strict=True):
            if isinstance(image, BadPhoto):
                unreadable.append(f"{photo.path}: {image}")
            else:
                images.append(image)
                labels.append(number[photo.label])
                files.append(_file(photo))
        if images:
            outputs.append(ask(np.stack(images)))
    if not outputs:
        raise SajiError(f"none of the {len(photos)} photos can be read ({unreadable[0]}); give JPEG, PNG or WEBP files")
    of_file = np.unique(files, return_inverse=True)[1]
    return Answers(np.concatenate(outputs), np.array(labels), of_file, tuple(unreadable))


def _pixels(photo: Photo, spec: ModelSpec) -> np.ndarray | BadPhoto:
    try:
        return pixels(photo.source(), spec.geometry)
    except BadPhoto as error:
        return error


def numbers(spec: ModelSpec, labels: Iterable[str]) -> dict[str, int]:
    """The class that each label names: by its very name, or as one class alone is said aloud; else NONE."""
    exact, aloud = {name: k for k, name in enumerate(spec.classes)}, Counter(map(spoken, spec.classes))
    said = {spoken(name): k for name, k in exact.items() if aloud[spoken(name)] == 1}
    return {label: exact.get(label, said.get(spoken(label), NONE)) for label in labels}


def _strangers(spec: ModelSpec, photos: list[Photo]) -> list[str]:
    return sorted(label for label, k in numbers(spec, {photo.label for photo in photos}).items() if k == NONE)


def evaluated(spec: ModelSpec, outputs: np.ndarray, labels: np.ndarray, files: np.ndarray | None = None) -> Evaluation:
    """All figures of a model's outputs against labels int `[N]`, where NONE is a photo of none of the classes.

    With `files`, a number per photo, copies of one file are no more evidence than it is.
    Raises BadModel on outputs that are not finite.
    """
    if not np.isfinite(outputs).all():
        broken = int((~np.isfinite(outputs)).any(axis=1).sum())
        raise BadModel(f"{spec.name} gives NaN or infinite logits for {broken} of {len(labels)} photos; train it again")
    known, files = labels != NONE, np.arange(len(labels)) if files is None else files
    figures = Evaluation(len(labels), int(known.sum()), int((~known).sum()), _rejection(spec, outputs, labels, files))
    if not known.any():
        return figures
    logits, labels = spec.logits(outputs)[known], labels[known]
    right = Share.of(logits.argmax(1) == labels, files[known])
    scores = class_scores(labels, logits.argmax(1), len(spec.classes))
    return replace(
        figures,
        accuracy=right.share,
        accuracy_interval=right.interval,
        macro_f1=macro_f1(scores),
        per_class=dict(zip(spec.classes, scores, strict=True)),
        calibration=Calibration(
            temperature=spec.temperature,
            ece=calibration_error(logits / spec.temperature, labels),
            ece_at_temperature_1=calibration_error(logits, labels),
        ),
    )


def class_scores(labels: np.ndarray, predicted: np.ndarray, classes: int) -> list[ClassScores]:
    """The scores of each class, 0 where they are undefined; labels and predictions int `[N]`."""
    table = precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    return [ClassScores(float(p), float(r), float(f1), int(support)) for p, r, f1, support in zip(*table, strict=True)]


def macro_f1(scores: Iterable[ClassScores]) -> float:
    """The mean F1 of the classes that photos show."""
    return float(np.mean([each.f1 for each in scores if each.support]))


def _rejection(spec: ModelSpec, outputs: np.ndarray, labels: np.ndarray, files: np.ndarray) -> RejectionFigures:
    known, sure, scores = labels != NONE, spec.sure(outputs), spec.score(outputs)
    both, right = known.any() and not known.all(), known & (spec.logits(outputs).argmax(1) == labels)
    return RejectionFigures(
        rule=spec.rejection,
        auroc=float(roc_auc_score(known, scores)) if both else None,
        unknown_rejected=_share(~sure[~known], files[~known]),
        known_kept=_share(sure[known], files[known]),
        right_kept=_share(sure[right], files[right]),
    )


def _share(hits: np.ndarray, files: np.ndarray) -> Share | None:
    return Share.of(hits, files) if len(hits) else None


def described(
    evaluation: Evaluation, strangers: Sequence[str], unreadable: Sequence[str], problems: Sequence[str]
) -> str:
    """The figures as lines for people, with the labels that are no class and the files that were left out."""
    labelled = f" (labelled {some_of(strangers)})" if strangers else ""
    lines = [
        f"{evaluation.photos} photos: {evaluation.known} of the model's classes, {evaluation.unknown} of none of these"
        + labelled
    ]
    if evaluation.known:
        lines += _described_known(evaluation)
    lines += _described_rejection(evaluation.rejection)
    if unreadable:
        lines.append(f"unreadable, left out: {len(unreadable)}")
        lines += [f"  {name}" for name in unreadable]
    return "\n".join(map(printable, [*lines, *(f"note: {problem}" for problem in problems)]))


def _described_known(figures: Evaluation) -> list[str]:
    assert figures.accuracy is not None and figures.accuracy_interval and figures.calibration
    wide, calibration = max(map(len, (*figures.per_class, "class"))), figures.calibration
    accuracy = Share(figures.accuracy, figures.accuracy_interval).in_words()
    never = [name for name, row in figures.per_class.items() if not row.support]
    return [
        f"accuracy {accuracy}, macro-F1 {figures.macro_f1:.3f}",
        f"{'class':{wide}}  precision  recall     f1  support",
        *(
            f"{name:{wide}}  {row.precision:9.3f}  {row.recall:6.3f}  {row.f1:5.3f}  {row.support:7}"
            for name, row in figures.per_class.items()
            if row.support
        ),
        *([f"no photo was asked of {some_of(never)}"] if never else []),
        f"expected calibration error {calibration.ece:.3f} at the model's temperature "
        f"{calibration.temperature:.2f} ({calibration.ece_at_temperature_1:.3f} at 1)",
    ]


def _described_rejection(rejection: RejectionFigures) -> list[str]:
    lines, rule = ["rejection: the model has no rule, it keeps every photo"], rejection.rule
    if rule:
        lines = [f"rejection: {rule.rule.replace('_', ' ')} below {rule.threshold:.3f} means none of these"]
        for what, share in (
            ("known photos kept", rejection.known_kept),
            ("right ones kept", rejection.right_kept),
            ("none-of-these rejected", rejection.unknown_rejected),
        ):
            if share:
                lines.append(f"  {what} {share.in_words()}")
    if rejection.auroc is not None:
        lines.append(f"  AUROC of known against unknown {rejection.auroc:.3f}")
    return lines
