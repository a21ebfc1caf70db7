"""What a finished network of a run achieved: its answers to the validation photos, its epochs, its cost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from runtime.errors import SajiError
from runtime.evaluation import ValidationSet, calibration_error, holm, paired_bootstrap, paired_p
from runtime.spec import ModelSpec
from training.network.classifier import PhotoClassifier, complete, load_checkpoint, reference_logits, require_own
from training.outcome.evaluate import ClassScores, class_scores, macro_f1
from training.run.records import Epoch, GradientNorm, HeldOutFigures, Interval, Share, read_csv, read_history, rounded


@dataclass(frozen=True)
class Gradients:
    """L2 norms of the weights' gradients: layers in forward order, epochs int `[E]`, norms float `[L, E]`.

    A norm is NaN where its layer was frozen or the gradient was not finite.
    """

    layers: tuple[str, ...]
    epochs: np.ndarray
    norms: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """A network of a run: its checkpoint's logits float32 `[N, C]` on the validation set, and what lies beside it.

    `history` has a row for each epoch, none where `history.csv` is missing; `held_out` is None where no photo is known
    to have chosen nothing.
    """

    run: str
    network: str
    spec: ModelSpec
    validation: ValidationSet
    logits: np.ndarray
    parameters: int
    multiply_adds: int
    history: Sequence[Epoch]
    gradients: Gradients | None
    held_out: HeldOutFigures | None = None

    @property
    def name(self) -> str:
        """The network with its run, for a comparison of runs."""
        return f"{self.run} · {self.network}"

    @cached_property
    def predicted(self) -> np.ndarray:
        """The class with the highest logit, int `[N]`."""
        return self.logits.argmax(1)

    @cached_property
    def right(self) -> np.ndarray:
        """Whether that is the label, bool `[N]`."""
        return self.predicted == self.validation.labels

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class at the spec's temperature, float `[N]`."""
        return self.spec.probabilities(self.logits).max(axis=1)

    @cached_property
    def class_scores(self) -> list[ClassScores]:
        """Precision, recall and F1 of each class."""
        return class_scores(self.validation.labels, self.predicted, len(self.spec.classes))

    @cached_property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that photos show."""
        return macro_f1(self.class_scores)

    @cached_property
    def calibration_error(self) -> float:
        """That of the bare logits: a temperature may have been fitted to these very photos."""
        return calibration_error(self.logits, self.validation.labels)

    @property
    def training_seconds(self) -> float | None:
        """Seconds of all training steps, None without a history."""
        return round(float(self.curve("seconds").sum()), 1) if self.history else None

    @property
    def photos_per_second(self) -> float | None:
        """Median over the epochs, None without a history."""
        return round(float(np.median(self.curve("photos_per_second"))), 1) if self.history else None

    @property
    def best_epoch(self) -> Epoch | None:
        """That of the best score, which the trainer may have released."""
        return max(self.history, key=lambda row: Epoch.score(row.val_accuracy, row.val_loss), default=None)

    def curve(self, column: str) -> np.ndarray:
        """A column of `history.csv`, float `[E]`."""
        return np.array([getattr(row, column) for row in self.history], float)

    def record(self) -> dict[str, Any]:
        """The figures as plain JSON values, None where they are not known."""
        accuracy = Share.of(self.right, self.validation.scenes)
        return {
            "run": self.run,
            "held_out": self.held_out and asdict(self.held_out),
            "network": self.network,
            "recipe": self.spec.recipe.get("name"),
            "image_size": self.spec.geometry.size,
            "photos": len(self.validation.labels),
            "accuracy": accuracy.share,
            "accuracy_interval": list(accuracy.interval),
            "macro_f1": round(self.macro_f1, 4),
            "calibration_error": round(self.calibration_error, 4),
            "best_epoch": _figures(self.best_epoch) if self.best_epoch else None,
            "last_epoch": _figures(self.history[-1]) if self.history else None,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "training_seconds": self.training_seconds,
            "photos_per_second": self.photos_per_second,
        }


def _figures(row: Epoch) -> dict[str, float]:
    names = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")
    values = {name: getattr(row, name) for name in names if np.isfinite(getattr(row, name))}
    return {"epoch": row.epoch, **rounded(values)}


def finished(run: Path) -> list[Path]:
    """Folders of a run's complete networks, by name. Raises SajiError when there is none."""
    folders = [path.parent for path in sorted(run.glob("*/checkpoint.pt")) if complete(path.parent)]
    if not folders:
        raise SajiError(
            f"{run} has no finished network (a folder with checkpoint.pt and validation.npz); "
            f"train one with: make train RUN={run.name}"
        )
    return folders


def read_outcome(folder: Path) -> Outcome:
    """Read a network's folder and run its checkpoint over the validation set. Raises BadModel on a damaged file."""
    model, spec = load_checkpoint(folder / "checkpoint.pt")
    require_own(folder / "checkpoint.pt")
    validation, last = ValidationSet.load(folder / "validation.npz"), spec.validation.get("last_epoch")
    return Outcome(
        run=folder.resolve().parent.name,
        network=folder.name,
        spec=spec,
        validation=validation,
        logits=reference_logits(model, validation.images),
        parameters=sum(weights.numel() for weights in model.parameters()),
        multiply_adds=multiply_adds(model, spec.geometry.size),
        history=read_history(folder, last.get("epoch") if isinstance(last, dict) else None),  # not all versions told it
        gradients=_gradients(read_csv(folder / "gradients.csv", GradientNorm)),
        held_out=HeldOutFigures.from_record(spec.validation.get("held_out")),
    )


def multiply_adds(model: PhotoClassifier, size: int) -> int:
    """Multiply-adds for one photo of `size` × `size` pixels: half of the FLOPs that PyTorch counts."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class Difference:
    """By how much the first of two networks is more accurate on the same validation photos, whose scenes are drawn
    anew for the interval of 95 % and change signs for the p-value."""

    first: Outcome
    second: Outcome
    difference: float
    interval: Interval
    p: float


def differences(outcomes: Sequence[Outcome]) -> list[Difference]:
    """Each pair of networks that answered the same photos of the same split, with p-values for all of them (Holm)."""
    both = [pair for pair in combinations(outcomes, 2) if _same(*pair)]
    pairs = [Difference(one, other, *_difference(one, other)) for one, other in both]
    return [replace(pair, p=p) for pair, p in zip(pairs, holm([pair.p for pair in pairs]), strict=True)]


def _same(one: Outcome, other: Outcome) -> bool:
    photos = one.spec.classes == other.spec.classes and one.validation.names == other.validation.names
    return photos and one.spec.data.get("fingerprint") == other.spec.data.get("fingerprint")


def _difference(one: Outcome, other: Outcome) -> tuple[float, Interval, float]:
    scenes = one.validation.scenes if one.validation.scenes is not None else np.arange(len(one.right))
    ahead = one.right.astype(int) - other.right
    return float(ahead.mean()), paired_bootstrap(ahead, scenes), paired_p(ahead, scenes)


def _gradients(rows: Sequence[GradientNorm]) -> Gradients | None:
    if not rows:
        return None
    epochs = sorted({row.epoch for row in rows})
    # The last epoch first: a layer that was frozen at the start has its place in it
    layers = list(dict.fromkeys(row.layer for row in [*(r for r in rows if r.epoch == epochs[-1]), *rows]))
    grid = np.full((len(layers), len(epochs)), np.nan)
    for row in rows:
        grid[layers.index(row.layer), epochs.index(row.epoch)] = row.norm
    grid[~np.isfinite(grid)] = np.nan  # a step in fp16 may overflow
    return Gradients(tuple(layers), np.array(epochs), grid) if np.nanmax(grid, initial=0) > 0 else None
