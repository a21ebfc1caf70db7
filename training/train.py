"""Train one network on prepared data and release its checkpoint. Lightning drives the loop."""

import csv
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from runtime.environment import versions
from runtime.errors import SajiError
from runtime.evaluation import JudgingSet, accuracy, wilson_interval
from runtime.files import replacing
from runtime.spec import Geometry, ModelSpec
from training.classifier import PhotoClassifier, reference_logits, save_checkpoint
from training.dataset import Data, Progress, TrainPhotos, calibration_set, judging_set
from training.recipe import Recipe


def train(
    architecture: str, data: Data, recipe: Recipe, folder: Path, cache: Path, device: str, progress: Progress
) -> ModelSpec:
    """Train and write `checkpoint.pt`, `judging.npz`, `calibration.npz` and `history.csv` into `folder`.

    The checkpoint is the epoch of the best validation accuracy, written last. Ctrl-C releases the best epoch so
    far, then raises KeyboardInterrupt. Raises SajiError on a loss that is not finite.
    """
    quieten()
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    geometry = Geometry.for_size(recipe.image_size)
    judging = judging_set(data, geometry, progress)
    fitting = Fitting(architecture, len(data.classes), recipe)
    photos = TrainPhotos(data, recipe.image_size, recipe.augmentation, recipe.smallest_crop, cache, progress)
    accelerator, precision = resolve_device(device, recipe.precision)
    workers = recipe.workers if recipe.workers >= 0 else (0 if accelerator == "cpu" else 8)
    loading: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    loading["pin_memory"] = accelerator == "cuda"
    # A last batch of one photo would break batch norm, so it is dropped where there is another
    drop_last = len(photos) % recipe.batch_size == 1 and len(photos) > recipe.batch_size
    train_loader = DataLoader(photos, recipe.batch_size, shuffle=True, drop_last=drop_last, **loading)
    val_set = TensorDataset(torch.from_numpy(judging.images), torch.from_numpy(judging.labels))
    val_loader = DataLoader(val_set, max(32, recipe.batch_size), **loading)

    history = History(architecture, recipe.epochs)
    best = ModelCheckpoint(folder / "lightning", "best", monitor="val_accuracy", mode="max", save_weights_only=True)
    callbacks: list[Callback] = [best, history]
    if recipe.patience:
        callbacks.append(EarlyStopping("val_loss", patience=recipe.patience))
    if sys.stderr.isatty():
        callbacks.append(RichProgressBar(console_kwargs={"stderr": True}))
    trainer = L.Trainer(
        accelerator=accelerator,
        devices="auto" if accelerator == "cuda" else 1,
        precision=precision,  # type: ignore[arg-type]  # a str from our table, a Literal there
        max_epochs=recipe.epochs,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    interrupted = _fit(trainer, fitting, train_loader, val_loader)
    if interrupted and not best.best_model_path:
        raise KeyboardInterrupt
    spec = None
    if trainer.is_global_zero:
        weights = torch.load(best.best_model_path, weights_only=True, map_location="cpu")["state_dict"]
        fitting.load_state_dict(weights)
        spec = _release(fitting.model, architecture, data, recipe, geometry, judging, folder, history, progress)
    trainer.strategy.barrier()
    if interrupted:
        raise KeyboardInterrupt
    return spec or ModelSpec(architecture, architecture, data.classes)


def _fit(trainer: L.Trainer, fitting: "Fitting", train_loader: DataLoader, val_loader: DataLoader) -> bool:
    try:
        trainer.fit(fitting, train_loader, val_loader)
    except (SystemExit, KeyboardInterrupt):  # Lightning turns Ctrl-C into SystemExit(1)
        return True
    return bool(trainer.interrupted)


def _release(
    model: PhotoClassifier,
    architecture: str,
    data: Data,
    recipe: Recipe,
    geometry: Geometry,
    judging: JudgingSet,
    folder: Path,
    history: "History",
    progress: Progress,
) -> ModelSpec:
    logits = reference_logits(model, judging.images)
    right = int((logits.argmax(1) == judging.labels).sum())
    n = len(judging.labels)
    spec = ModelSpec(
        name=f"{architecture} on {folder.parent.name}",
        architecture=architecture,
        classes=data.classes,
        geometry=geometry,
        validation={
            "accuracy": round(accuracy(logits, judging.labels), 4),
            "interval": [round(edge, 4) for edge in wilson_interval(right, n)],
            "photos": n,
        },
        recipe=asdict(recipe),
        data={"fingerprint": data.fingerprint, "train": len(data.train), "drawn": data.report.get("drawn", False)},
        versions=versions(),
    )
    judging.save(folder / "judging.npz")
    calibration_set(data, geometry, recipe.calibration_photos, recipe.seed, progress).save(folder / "calibration.npz")
    history.write(folder / "history.csv")
    save_checkpoint(folder / "checkpoint.pt", model, spec)  # last: its presence says the run is complete
    return spec


def resolve_device(device: str, precision: str) -> tuple[str, str]:
    """Lightning's accelerator and precision for `--device` and the recipe's precision.

    bf16 only where the hardware computes it: compute capability 8.0 on a GPU (a T4 emulates it, slower than FP32),
    AVX-512 BF16 or AMX on a CPU. Raises SajiError when CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SajiError("--device cuda was asked for, but PyTorch sees no CUDA GPU here; use --device cpu or auto")
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if precision == "auto":
        if cuda:
            precision = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
        else:
            precision = (
                "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
            )
    table = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    if precision == "fp16" and not cuda:
        raise SajiError("precision=fp16 trains on a GPU only; use bf16 or fp32 on a CPU")
    return ("cuda" if cuda else "cpu"), table[precision]


class Fitting(L.LightningModule):
    """How a PhotoClassifier learns: loss, optimiser, schedule."""

    def __init__(self, architecture: str, classes: int, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = PhotoClassifier(architecture, classes, asdict(recipe), recipe.pretrained)
        if recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.mix = v2.RandomChoice([v2.MixUp(num_classes=classes, alpha=0.2), v2.CutMix(num_classes=classes)])

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """One step; images uint8 `[N, S, S, 3]`, labels int64 `[N]`."""
        images, labels = batch
        x = self.model.normalise(images)
        if self.recipe.mix:
            x, labels = self.mix(x, labels)
        if self.recipe.channels_last:
            x = x.to(memory_format=torch.channels_last)
        loss = self.loss(self.model.network(x), labels)
        if not torch.isfinite(loss):
            raise SajiError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}; the likely cause is the learning "
                f"rate {self.recipe.learning_rate:g}, try: --learning-rate {self.recipe.learning_rate / 5:g}"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        """Validation loss without smoothing, and accuracy."""
        images, labels = batch
        logits = self.model(images).float()
        right = (logits.argmax(1) == labels).float().mean()
        loss = nn.functional.cross_entropy(logits, labels)
        self.log_dict({"val_loss": loss, "val_accuracy": right}, batch_size=len(images), sync_dist=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip gradients here rather than by the trainer's flag, which refuses fused optimisers under autocast."""
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser, with the learning rate set anew each step."""
        recipe = self.recipe
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]  # biases and norms: decay only hurts them
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        rate, decay = recipe.learning_rate, recipe.weight_decay
        # One pass over the weights instead of ten; under fp16 the loss scale must be taken out before the step
        fused = self.trainer.precision != "16-mixed"
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, rate, weight_decay=decay, fused=fused)
        elif recipe.optimizer == "adam":
            optimizer = torch.optim.Adam(self.model.parameters(), rate, weight_decay=decay, fused=fused)
        else:
            optimizer = torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True, weight_decay=decay)
        steps = max(1, math.ceil(self.trainer.estimated_stepping_batches / recipe.epochs))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step / steps, recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def rate_factor(epoch: float, recipe: Recipe) -> float:
    """The learning rate at a (fractional) epoch, as a share of the peak."""
    if epoch < recipe.warmup_epochs:
        return max(1e-3, epoch / recipe.warmup_epochs)
    if recipe.schedule == "step":
        return recipe.step_gamma ** int(epoch / recipe.step_epochs)
    if recipe.schedule == "constant":
        return 1.0
    length = max(1e-9, recipe.epochs - recipe.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - recipe.warmup_epochs) / length)))


class History(Callback):
    """One row an epoch, for `history.csv`, and one line an epoch where there is no progress bar."""

    def __init__(self, architecture: str, epochs: int) -> None:
        self.architecture, self.epochs = architecture, epochs
        self.rows: list[dict[str, Any]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self.started = time.perf_counter()
        self.photos = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count photos; the clock stops before validation."""
        self.photos += len(batch[1])
        self.seconds = time.perf_counter() - self.started

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep the epoch's row (validation has run by now)."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {"epoch": trainer.current_epoch + 1, **{k: round(values[k], 5) for k in sorted(values)}}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = round(self.seconds, 2)
        row["photos_per_second"] = round(self.photos / self.seconds, 1)
        self.rows.append(row)
        if not sys.stderr.isatty() and trainer.is_global_zero:
            print(
                f"{self.architecture} epoch {row['epoch']}/{self.epochs}: loss {row['train_loss']:.3f}, validation "
                f"accuracy {row['val_accuracy']:.3f}, {row['photos_per_second']:.0f} photos/s",
                file=sys.stderr,
            )

    def write(self, path: Path) -> None:
        """Write all rows as CSV."""
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


def quieten() -> None:
    """Silence Lightning's hints (worker counts, tips); errors and our own lines stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def silent(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """A progress bar that shows nothing, for tests and pipes."""
    return items
