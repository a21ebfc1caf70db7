"""What a finished network of a run achieved: its answers to the validation photos, its epochs, its cost."""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch.utils.flop_counter import FlopCounterMode

from runtime.errors import BadModel, SajiError
from runtime.evaluation import ValidationSet, calibration_error, mcnemar_p, wilson_interval
from runtime.spec import ModelSpec
from training.network.classifier import PhotoClassifier, load_checkpoint, reference_logits


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

    `history` is a float `[E]` per column of `history.csv`, empty where that file is missing.
    """

    run: str
    network: str
    spec: ModelSpec
    validation: ValidationSet
    logits: np.ndarray
    parameters: int
    multiply_adds: int
    history: dict[str, np.ndarray]
    gradients: Gradients | None

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


def finished(run: Path) -> list[Path]:
    """Folders of a run's complete networks, by name. Raises SajiError when there is none."""
    found = [path.parent for path in sorted(run.glob("*/checkpoint.pt")) if (path.parent / "validation.npz").is_file()]
    if not found:
        raise SajiError(
            f"{run} has no finished network (a folder with checkpoint.pt and validation.npz); "
            f"train one with: make train RUN={run.name}"
        )
    return found


def read_outcome(folder: Path) -> Outcome:
    """Read a network's folder and run its checkpoint over the validation set. Raises BadModel on a damaged file."""
    model, spec = load_checkpoint(folder / "checkpoint.pt")
    validation = ValidationSet.load(folder / "validation.npz")
    return Outcome(
        run=folder.resolve().parent.name,
        network=folder.name,
        spec=spec,
        validation=validation,
        logits=reference_logits(model, validation.images),
        parameters=sum(weights.numel() for weights in model.parameters()),
        multiply_adds=multiply_adds(model, spec.geometry.size),
        history=_history(folder / "history.csv"),
        gradients=_gradients(folder / "gradients.csv"),
    )


def multiply_adds(model: PhotoClassifier, size: int) -> int:
    """Multiply-adds for one photo of `size` × `size` pixels: half of the FLOPs that PyTorch counts."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    return counter.get_total_flops() // 2


def summary(outcome: Outcome) -> dict[str, Any]:
    """The figures of a network as plain JSON values, None where they are not known.

    The calibration error is that of the bare logits, since a temperature may have been fitted to these very photos.
    """
    labels, history, classes = outcome.validation.labels, outcome.history, range(len(outcome.spec.classes))
    f1 = f1_score(labels, outcome.predicted, labels=classes, average="macro", zero_division=0)
    return {
        "run": outcome.run,
        "network": outcome.network,
        "recipe": outcome.spec.recipe.get("name"),
        "image_size": outcome.spec.geometry.size,
        "photos": len(labels),
        "accuracy": round(float(outcome.right.mean()), 4),
        "accuracy_interval": [round(edge, 4) for edge in wilson_interval(int(outcome.right.sum()), len(labels))],
        "macro_f1": round(float(f1), 4),
        "calibration_error": round(calibration_error(outcome.logits, labels), 4),
        "best_epoch": _epoch(history, int(history["val_accuracy"].argmax())) if history else None,
        "last_epoch": _epoch(history, -1) if history else None,
        "parameters": outcome.parameters,
        "multiply_adds": outcome.multiply_adds,
        "training_seconds": round(float(history["seconds"].sum()), 1) if history else None,
        "photos_per_second": round(float(np.median(history["photos_per_second"])), 1) if history else None,
    }


def difference_p(one: Outcome, other: Outcome) -> float | None:
    """McNemar's exact p that one network is as often right as the other; None unless they saw the same photos."""
    same = one.spec.classes == other.spec.classes and one.validation.names == other.validation.names
    if not same or one.spec.data.get("fingerprint") != other.spec.data.get("fingerprint"):
        return None
    return mcnemar_p(int((one.right & ~other.right).sum()), int((~one.right & other.right).sum()))


def _epoch(history: dict[str, np.ndarray], index: int) -> dict[str, float]:
    wanted = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")
    values = {name: round(float(history[name][index]), 4) for name in wanted if name in history}
    return {"epoch": int(history["epoch"][index])} | {name: v for name, v in values.items() if np.isfinite(v)}


def _history(path: Path) -> dict[str, np.ndarray]:
    needed = ("epoch", "train_loss", "val_loss", "val_accuracy", "seconds", "photos_per_second")
    return {name: _numbers(values, path) for name, values in _columns(path, needed).items()}


def _gradients(path: Path) -> Gradients | None:
    columns = _columns(path, ("epoch", "layer", "norm"))
    if not columns:
        return None
    epochs, norms = (_numbers(columns[name], path) for name in ("epoch", "norm"))
    every = np.unique(epochs)
    # The last epoch first: a layer that was frozen at the start has its place in it
    last = [layer for layer, epoch in zip(columns["layer"], epochs, strict=True) if epoch == every[-1]]
    layers = list(dict.fromkeys(last + columns["layer"]))
    grid = np.full((len(layers), len(every)), np.nan)
    grid[[layers.index(layer) for layer in columns["layer"]], np.searchsorted(every, epochs)] = norms
    grid[~np.isfinite(grid)] = np.nan  # a step in fp16 may overflow
    return Gradients(tuple(layers), every.astype(int), grid) if np.nanmax(grid, initial=0) > 0 else None


def _columns(path: Path, needed: tuple[str, ...]) -> dict[str, list[str]]:
    """The columns of a CSV file by name; empty where it is missing or has no rows."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in needed if rows and name not in rows[0]]
    if missing:
        raise BadModel(f"{path} has no column {missing[0]}; delete it for a report without it, or train again")
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ()) if name}


def _numbers(values: list[str], path: Path) -> np.ndarray:
    try:
        return np.array([float(value or "nan") for value in values])
    except ValueError as error:
        raise BadModel(f"{path} is damaged ({error}); delete it for a report without it, or train again") from None
