"""What a run says of itself, and who reads it back: the validation in a checkpoint, `history.csv`, `gradients.csv`."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runtime.errors import BadModel
from runtime.evaluation import Bin, effective_number, wilson_interval
from runtime.files import is_file, replacing

NAN = float("nan")
Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """A share of photos, from 0 to 1, with its 95 % interval: Wilson's, for as many photos as the scenes are worth."""

    share: float
    interval: Interval

    @classmethod
    def of(cls, hits: np.ndarray, scenes: np.ndarray | None = None) -> "Share":
        """The share of bool `[N]` that is true, to four digits; NaN where N is 0.

        With `scenes`, a number per photo, several shots of one plate widen the interval.
        """
        n = len(hits) if scenes is None else effective_number(hits, scenes)
        low, high = wilson_interval(n * float(hits.mean()), n) if n else (0.0, 1.0)
        return cls(round(float(hits.mean()), 4) if len(hits) else NAN, (round(low, 4), round(high, 4)))

    def in_words(self, more: str = "") -> str:
        """The share for people; `more` stands behind the interval."""
        return f"{self.share:.3f} (95 % interval {self.interval[0]:.3f} to {self.interval[1]:.3f}{more})"


DIGITS = 5  # behind the point, of accuracies and losses in `history.csv`


@dataclass(frozen=True)
class Epoch:
    """A row of `history.csv`; accuracies and losses are means over photos, NaN where they were not measured.

    Training loss is the one that is minimised, with augmentation and label smoothing; the others are of photos as they
    are. `seconds` are those of the training steps alone.
    """

    epoch: int
    train_accuracy: float
    train_loss: float
    val_accuracy: float
    val_loss: float
    learning_rate: float
    seconds: float
    photos_per_second: float

    @staticmethod
    def score(accuracy: float, loss: float) -> tuple[float, float]:
        """Of the validation photos; the best epoch is the first of the highest: accuracy, of equals the lower loss."""
        return round(accuracy, DIGITS), -round(loss, DIGITS)


@dataclass(frozen=True)
class GradientNorm:
    """A row of `gradients.csv`: the L2 norm of the gradient of a layer's weights, the median over an epoch's steps."""

    epoch: int
    layer: str
    norm: float


@dataclass(frozen=True)
class EpochAccuracy:
    """Validation accuracy of an epoch as it was measured while training, in its own arithmetic."""

    epoch: int
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """The temperature, and the expected calibration error without it and at one fitted to the other `folds`."""

    temperature: float
    ece_before: float
    ece_after: float
    folds: int


@dataclass(frozen=True)
class HeldOutFigures:
    """What a network does on photos that chose nothing of it, as `how` says: neither weights nor epoch, and each photo
    at a temperature that it did not help to fit.

    `recalls` and their intervals are by class, as in the spec. `right_kept` is the share of right answers that the
    rejection rule keeps.
    """

    how: str
    photos: int
    scenes: int
    accuracy: float
    interval: Interval
    macro_f1: float
    calibration_error: float
    recalls: tuple[float, ...]
    recall_intervals: tuple[Interval, ...]
    reliability: tuple[Bin, ...]
    right_kept: float | None

    @classmethod
    def from_record(cls, record: Any) -> "HeldOutFigures | None":
        """The figures in a spec; None where it has none, or none that can be read."""
        try:
            return cls(**{**record, "reliability": tuple(Bin(**each) for each in record["reliability"])})
        except (TypeError, KeyError):
            return None

    @property
    def share(self) -> Share:
        """The accuracy with its interval."""
        return Share(self.accuracy, (self.interval[0], self.interval[1]))


@dataclass(frozen=True)
class WithoutLeaks:
    """Accuracy on the `photos` that training does not show too, None where all of them are `leaking`."""

    leaking: int
    photos: int
    accuracy: float | None
    interval: Interval


@dataclass(frozen=True)
class Validation:
    """What the released epoch does on the validation photos, in FP32 on the CPU as every candidate is measured."""

    accuracy: float
    interval: Interval
    photos: int
    epoch: int
    best_epoch: EpochAccuracy
    last_epoch: EpochAccuracy
    without_leaks: WithoutLeaks | None

    def record(self) -> dict[str, Any]:
        """Its JSON form in the spec, without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def in_words(self, architecture: str, checkpoint: Path) -> str:
        """The line about the validation photos that ends a training, and one more where the split leaks."""
        accuracy = Share(self.accuracy, self.interval).in_words()
        last, leaks = self.last_epoch, self.without_leaks
        chose = (
            "" if self.epoch == last.epoch else f", which chose it; epoch {last.epoch}, the last, {last.accuracy:.3f}"
        )
        line = (
            f"{architecture}: accuracy {accuracy} on {self.photos} validation photos at epoch {self.epoch}{chose} → "
            f"{checkpoint}"
        )
        if leaks:
            others = "unknown" if leaks.accuracy is None else f"{leaks.accuracy:.3f}"
            line += (
                f"\n{architecture}: {leaks.leaking} of these photos LEAK, training shows them too; "
                f"on the {leaks.photos} others the accuracy is {others}"
            )
        return line


def rounded(value: Any) -> Any:
    """A JSON value with every number that is no whole one to four digits."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


Row = TypeVar("Row", Epoch, GradientNorm)
_LATER = ("train_accuracy", "learning_rate")  # columns that earlier versions did not write
_COST = ("seconds", "photos_per_second")  # which every epoch has; losses and norms may overflow
_ADVICE = "delete it for a report without it, or train again"


def write_csv(path: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    """Write rows with a header, atomically."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_history(folder: Path, last: Any = None) -> list[Epoch]:
    """The rows of `history.csv`, of epochs from 1 to the `last` where that is known; see `read_csv`."""
    path = folder / "history.csv"
    rows = read_csv(path, Epoch)
    epochs = [row.epoch for row in rows]
    if path.is_file() and (epochs != [*range(1, len(rows) + 1)] or last not in (None, len(rows))):
        raise BadModel(f"{path} has {len(rows)} rows, not one for each epoch from 1 to {last or 'the last'}; {_ADVICE}")
    return rows


def read_csv(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a file; none where it is missing, NaN for an empty cell and for a column that earlier versions lack.

    Raises BadModel on a damaged file, such as one that is cut short.
    """
    if not is_file(path):
        return []
    text = path.read_bytes().decode("utf-8", "replace")
    try:
        rows = list(csv.DictReader(StringIO(text, newline="")))
        for name in (field.name for field in fields(kind)):
            if rows and name not in rows[0] and name not in _LATER:
                raise BadModel(f"{path} has no column {name}; {_ADVICE}")
        if not text.endswith("\n") or any(None in row or None in row.values() for row in rows):
            raise ValueError("its rows are not whole")
        return [kind(**{field.name: _value(field.name, row.get(field.name)) for field in fields(kind)}) for row in rows]
    except (ValueError, OverflowError, csv.Error) as error:
        raise BadModel(f"{path} is damaged ({error}); {_ADVICE}") from None


def _value(name: str, cell: str | None) -> Any:
    if name == "layer":
        return cell
    number = float(cell or "nan")
    if name in _COST and not math.isfinite(number):
        raise ValueError(f"{name} is {cell!r}")
    return int(number) if name == "epoch" else number
