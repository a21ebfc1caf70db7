"""`python -m training.outcome.evaluate CHECKPOINT DATA`: how good a model is on photos that it has not been trained on.

Photos whose label is no class of the model count as "none of these": they are to be rejected, not to be classified.
"""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.command_line import Parser, exit_with_one_sentence, require_extra

if __name__ == "__main__":  # before the imports that would fail with a traceback
    require_extra("train", "rich", "sklearn")

import numpy as np
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from runtime.classifier import load
from runtime.environment import usable_cores
from runtime.errors import BadModel, BadPhoto, SajiError, missing_extra
from runtime.evaluation import calibration_error, wilson_interval
from runtime.preprocess import pixels
from runtime.spec import ModelSpec
from training.photos.photo_set import Photo, read_photo_set, spoken
from training.progress import bar

BATCH = 32  # photos in memory at a time
NONE = -1  # the label of a photo that shows none of the model's classes

Logits = Callable[[np.ndarray], np.ndarray]  # uint8 [N, S, S, 3] RGB → float32 [N, C]


@dataclass(frozen=True)
class Answers:
    """A model's logits float32 `[N, C]` to the photos that can be read; labels int `[N]`, NONE for "none of these"."""

    logits: np.ndarray
    labels: np.ndarray
    unreadable: tuple[str, ...]


def main() -> None:
    """Read the command line, let the model answer, print the figures for people and as JSON on the last line."""
    parser = Parser(prog="python -m training.outcome.evaluate", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint.pt, an .onnx file, or what runtime.load opens")
    parser.add_argument("data", type=Path, help="a folder per class, or a CSV with filename,label[,split]")
    parser.add_argument("--split", choices=["train", "val", "test"], help="only this side; all photos by default")
    arguments = parser.parse_args()
    photos, problems = _chosen(arguments.data, arguments.split)
    logits, spec = opened(arguments.checkpoint)
    answers = answer(logits, spec, photos, bar)
    figures = {
        "checkpoint": str(arguments.checkpoint),
        "data": str(arguments.data),
        "split": arguments.split,
        **evaluated(spec, answers.logits, answers.labels),
        "none_of_these": _strangers(spec, photos),
        "unreadable": list(answers.unreadable),
        "problems": problems,
    }
    print(described(figures))
    print(json.dumps(figures, ensure_ascii=False))


def _chosen(source: Path, split: str | None) -> tuple[list[Photo], list[str]]:
    found = read_photo_set(source)
    chosen = [photo for photo in found.photos if split in (None, photo.split)]
    if not chosen:
        there = ", ".join(sorted({photo.split or "none" for photo in found.photos}))
        raise SajiError(f"{source} has no photo of the split {split!r} (there: {there}); leave --split out to take all")
    return chosen, [*found.problems, *_seen_before(chosen)]


def _seen_before(photos: list[Photo]) -> list[str]:
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


def opened(path: Path) -> tuple[Logits, ModelSpec]:
    """How to ask a checkpoint, or any model that `runtime.load` opens. Raises SajiError in one sentence."""
    if path.suffix != ".pt":
        classifier = load(path)
        return classifier.logits, classifier.spec
    try:  # only here: an exported model is evaluated without PyTorch
        from training.network.classifier import load_checkpoint, reference_logits
    except ImportError as error:
        raise missing_extra(error.name or "torch", "train") from None

    model, spec = load_checkpoint(path)
    return lambda images: reference_logits(model, images), spec


def answer(
    logits: Logits, spec: ModelSpec, photos: list[Photo], progress: Callable[..., Iterable[Any]] = lambda i, w, t: i
) -> Answers:
    """Preprocess and ask batch by batch, so that memory stays bounded. Raises SajiError when no photo can be read."""
    outputs, labels, unreadable = [], [], []
    number = {spoken(name): k for k, name in enumerate(spec.classes)}
    starts = range(0, len(photos), BATCH)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in progress(starts, "evaluating", len(starts)):
            batch = photos[start : start + BATCH]
            read = list(zip(batch, pool.map(lambda photo: _pixels(photo, spec), batch), strict=True))
            good = [(photo, image) for photo, image in read if isinstance(image, np.ndarray)]
            unreadable += [f"{photo.path}: {image}" for photo, image in read if not isinstance(image, np.ndarray)]
            labels += [number.get(spoken(photo.label), NONE) for photo, _ in good]
            if good:
                outputs.append(logits(np.stack([image for _, image in good])))
    if not outputs:
        raise SajiError(f"none of the {len(photos)} photos can be read ({unreadable[0]}); give JPEG, PNG or WEBP files")
    return Answers(np.concatenate(outputs), np.array(labels), tuple(unreadable))


def _pixels(photo: Photo, spec: ModelSpec) -> np.ndarray | BadPhoto:
    try:
        return pixels(photo.path, spec.geometry)
    except BadPhoto as error:
        return error


def _strangers(spec: ModelSpec, photos: list[Photo]) -> list[str]:
    known = {spoken(name) for name in spec.classes}
    return sorted({photo.label for photo in photos if spoken(photo.label) not in known})


def evaluated(spec: ModelSpec, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """All figures of logits float `[N, C]` against labels int `[N]`, where NONE is a photo of none of the classes.

    Raises BadModel on logits that are not finite.
    """
    if not np.isfinite(logits).all():
        broken = int((~np.isfinite(logits)).any(axis=1).sum())
        raise BadModel(f"{spec.name} gives NaN or infinite logits for {broken} of {len(labels)} photos; train it again")
    known = labels != NONE
    figures: dict[str, Any] = {"photos": len(labels), "known": int(known.sum()), "unknown": int((~known).sum())}
    if known.any():
        figures |= _on_known(spec, logits[known], labels[known])
    return figures | {"rejection": _rejection(spec, logits, labels)}


def _on_known(spec: ModelSpec, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy, per class and calibration. Macro-F1 is the mean over the classes that the photos show."""
    found, right = logits.argmax(1), int((logits.argmax(1) == labels).sum())
    table = precision_recall_fscore_support(labels, found, labels=range(len(spec.classes)), zero_division=0)
    names = ("precision", "recall", "f1", "support")
    per_class = {
        name: {n: round(float(v), 4) for n, v in zip(names, row, strict=True)} | {"support": int(row[3])}
        for name, row in zip(spec.classes, zip(*table, strict=True), strict=True)
    }
    return {
        "accuracy": round(right / len(labels), 4),
        "accuracy_interval": _interval(right, len(labels)),
        "macro_f1": round(float(table[2][table[3] > 0].mean()), 4),
        "per_class": per_class,
        "calibration": {
            "temperature": round(spec.temperature, 4),
            "ece": round(calibration_error(logits / spec.temperature, labels), 4),
            "ece_at_temperature_1": round(calibration_error(logits, labels), 4),
        },
    }


def _rejection(spec: ModelSpec, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The rule's AUROC of known against unknown photos, and the shares it keeps and rejects, None where undefined."""
    known, sure, scores = labels != NONE, spec.sure(logits), spec.score(logits)
    both = known.any() and not known.all()
    return {
        "rule": spec.rejection and asdict(spec.rejection),
        "auroc": round(float(roc_auc_score(known, scores)), 4) if both else None,
        "unknown_rejected": _share(~sure[~known]),
        "known_kept": _share(sure[known]),
        "right_kept": _share(sure[known & (logits.argmax(1) == labels)]),
    }


def _share(hits: np.ndarray) -> dict[str, Any] | None:
    if not len(hits):
        return None
    return {"share": round(float(hits.mean()), 4), "interval": _interval(int(hits.sum()), len(hits))}


def _interval(right: int, n: int) -> list[float]:
    return [round(edge, 4) for edge in wilson_interval(right, n)]


def described(figures: dict[str, Any]) -> str:
    """The figures as lines for people."""
    lines = [
        f"{figures['photos']} photos: {figures['known']} of the model's classes, {figures['unknown']} of none of these"
    ]
    if figures["none_of_these"]:
        lines[0] += f" (labelled {', '.join(figures['none_of_these'])})"
    if "accuracy" in figures:
        lines += _described_known(figures)
    lines += _described_rejection(figures["rejection"], figures["unknown"])
    if figures["unreadable"]:
        lines.append(f"unreadable, left out: {len(figures['unreadable'])}")
        lines += [f"  {name}" for name in figures["unreadable"]]
    lines += [f"note: {problem}" for problem in figures["problems"]]
    return "\n".join(lines)


def _described_known(figures: dict[str, Any]) -> list[str]:
    wide = max(map(len, (*figures["per_class"], "class")))
    calibration = figures["calibration"]
    return [
        f"accuracy {_of(figures['accuracy'], figures['accuracy_interval'])}, macro-F1 {figures['macro_f1']:.3f}",
        f"{'class':{wide}}  precision  recall     f1  support",
        *(
            f"{name:{wide}}  {row['precision']:9.3f}  {row['recall']:6.3f}  {row['f1']:5.3f}  {row['support']:7}"
            for name, row in figures["per_class"].items()
        ),
        f"expected calibration error {calibration['ece']:.3f} at the model's temperature "
        f"{calibration['temperature']:.2f} ({calibration['ece_at_temperature_1']:.3f} at 1)",
    ]


def _described_rejection(rejection: dict[str, Any], unknown: int) -> list[str]:
    rule = rejection["rule"]
    lines = []
    if rule:
        lines.append(f"rejection: {rule['rule'].replace('_', ' ')} below {rule['threshold']:.3f} means none of these")
        said = {
            "known_kept": "known photos kept",
            "right_kept": "right ones kept",
            "unknown_rejected": "none-of-these rejected",
        }
        lines += [f"  {what} {_of(**rejection[key])}" for key, what in said.items() if rejection[key]]
    else:
        lines.append("rejection: the model has no rule, it keeps every photo")
    if rejection["auroc"] is not None:
        lines.append(f"  AUROC of known against unknown {rejection['auroc']:.3f}")
    return lines


def _of(share: float, interval: list[float]) -> str:
    return f"{share:.3f} (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"


if __name__ == "__main__":
    exit_with_one_sentence(main)
