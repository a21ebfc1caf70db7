"""What a run remembers of itself, epoch by epoch, also across an interruption: curves, gradients, checkpoints."""

import os
import shutil
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping

from runtime.files import replacing
from runtime.terminal import progress
from training.network.classifier import save
from training.run.records import DIGITS, NAN, Epoch, GradientNorm, Row, write_csv

AT_STAKE = 10  # seconds of training that a kill may cost: epochs shorter than that are kept together
GRADIENTS_EVERY = 4  # steps between two looks at the gradients: each reads all of them


class Recorder(Callback, Generic[Row]):
    """Collects the rows of a CSV file; the state file keeps them, so that a resumed run writes all."""

    kind: type[Row]

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def state_dict(self) -> dict[str, Any]:
        """What the state file keeps."""
        return {"rows": [asdict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an interrupted run's rows."""
        self.rows = [self.kind(**row) for row in state["rows"]]

    def write(self, path: Path) -> None:
        """Write all rows as CSV."""
        write_csv(path, self.kind, self.rows)


class History(Recorder[Epoch]):
    """One row an epoch, for `history.csv`; a progress bar, and in a pipe one line an epoch."""

    kind = Epoch

    def __init__(self, architecture: str, epochs: int) -> None:
        super().__init__()
        self.architecture, self.epochs = architecture, epochs
        self.bar = ExitStack()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin the bar, over all epochs that are left."""
        batches = int(trainer.num_training_batches) * (self.epochs - trainer.current_epoch)
        silent = nullcontext(lambda steps=1, now="": None)  # in all processes but the first
        self.advance = self.bar.enter_context(
            progress(f"training {self.architecture}", batches) if trainer.is_global_zero else silent
        )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take the bar away."""
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Take the bar away."""
        self.bar.close()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self.started = time.perf_counter()
        self.photos = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count photos; the clock stops before validation."""
        self.photos += len(batch[1]) * trainer.world_size
        if trainer.is_last_batch and module.device.type == "cuda":  # the host runs ahead of it
            torch.cuda.synchronize(module.device)
        self.seconds = time.perf_counter() - self.started
        self.advance()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep the epoch's row (validation has run by now)."""
        measured = {name: round(float(value), DIGITS) for name, value in trainer.callback_metrics.items()}
        row = Epoch(
            epoch=trainer.current_epoch + 1,
            train_accuracy=measured.get("train_accuracy", NAN),
            train_loss=measured["train_loss"],
            val_accuracy=measured["val_accuracy"],
            val_loss=measured["val_loss"],
            learning_rate=trainer.optimizers[0].param_groups[-1]["lr"],
            seconds=round(self.seconds, 2),
            photos_per_second=round(self.photos / self.seconds, 1),
        )
        self.rows.append(row)
        if trainer.is_global_zero:
            more = f"loss {row.train_loss:.3f}, {row.photos_per_second:.0f} photos/s"
            epoch = f"{self.architecture} epoch {row.epoch}/{self.epochs}"
            self.advance(0, f"{epoch}: validation accuracy {row.val_accuracy:.3f}, {more}")


class Gradients(Recorder[GradientNorm]):
    """The gradient norm of each layer for `gradients.csv`: where the signal dies or explodes is seen there.

    The median over the steps of an epoch: in a last batch of a few photos, batch norm makes norms a thousandfold.
    """

    kind = GradientNorm

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget the last epoch's norms."""
        self.norms: list[torch.Tensor] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the gradients before they are clipped."""
        if trainer.global_step % GRADIENTS_EVERY == 0:
            zero = torch.zeros((), device=module.device)
            layers = self._layers(module).values()
            self.norms.append(torch.stack([zero if p.grad is None else p.grad.norm() for p in layers]))

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep the epoch's medians."""
        if self.norms:
            medians = torch.stack(self.norms).median(0).values.tolist()
            norms = zip(self._layers(module), medians, strict=True)
            epoch = trainer.current_epoch + 1
            self.rows += [GradientNorm(epoch, name, float(f"{norm:.4g}")) for name, norm in norms]

    @staticmethod
    def _layers(module: L.LightningModule) -> dict[str, torch.nn.Parameter]:
        network = module.get_submodule("model.network")
        return {name: p for name, p in network.named_parameters() if p.ndim > 1}  # filters and matrices


class Kept(Checkpoint):
    """The state file `last` after an epoch, to resume from; where the best epoch is released, another name of that too.

    The best epoch is that of the best `Epoch.score`. Where it is not released it has no say in what is kept: Ctrl-C
    releases what the clock chose. (Lightning's ModelCheckpoint, when it saves weights only, would save them there as
    they are instead of their moving average.)
    """

    def __init__(self, last: Path, release: str) -> None:
        self.last, self.best = last, last.with_name(last.name.replace("last", "best"))
        self.released = self.best if release == "best" else last
        self.best_epoch, self.best_score, self.last_epoch = 0, (-1.0, 0.0), 0
        self.saved = time.monotonic()

    def remove(self) -> None:
        """Take both away, once the checkpoint is written, and those that an earlier saji left here."""
        for file in (self.best, self.last, self.last.with_name("best.ckpt"), self.last.with_name("last.ckpt")):
            file.unlink(missing_ok=True)

    def rewind(self, *recorders: Recorder) -> None:
        """Bring itself and recorders back to the epoch that was saved: later ones are lost where a run is cut off."""
        states = torch.load(self.last, weights_only=True, map_location="cpu")["callbacks"]
        for each in (self, *recorders):
            each.load_state_dict(states[each.state_key])
        if self.released == self.best and self.best_epoch == self.last_epoch:  # cut off between the two files
            self._link()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save the epoch, unless it was short and not the best of those of which the best is released."""
        metrics = trainer.callback_metrics
        score = Epoch.score(float(metrics["val_accuracy"]), float(metrics["val_loss"]))
        if score > self.best_score:
            self.best_epoch, self.best_score = trainer.current_epoch + 1, score
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = ends or not self.last_epoch or time.monotonic() - self.saved > AT_STAKE or self._to_link(trainer, 1)
        if not trainer.strategy.broadcast(due):  # the processes' clocks differ
            return
        before, self.last_epoch = self.last_epoch, trainer.current_epoch + 1
        try:
            trainer.save_checkpoint(self.last)
        except BaseException:  # such as Ctrl-C
            self.last_epoch = before
            raise
        self.saved = time.monotonic()
        if self._to_link(trainer, 1) and trainer.is_global_zero:
            self._link()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """When resumed: a kill between the two files may have left the best one behind."""
        if self.best_epoch and self._to_link(trainer) and trainer.is_global_zero:
            self._link()

    def _to_link(self, trainer: L.Trainer, more: int = 0) -> bool:
        return self.released == self.best and self.best_epoch == trainer.current_epoch + more

    def _link(self) -> None:
        with replacing(self.best, durable=False) as temporary:
            try:
                os.link(self.last, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(self.last, temporary)

    def state_dict(self) -> dict[str, Any]:
        """What the state file keeps."""
        return {"best_epoch": self.best_epoch, "best_score": list(self.best_score), "last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an interrupted run's best epoch."""
        self.best_epoch, self.best_score = state["best_epoch"], tuple(state["best_score"])
        self.last_epoch = state["last_epoch"]


class AtomicFiles(TorchCheckpointIO):
    """Checkpoints straight to a temporary file that is renamed; Lightning's own go through a copy in memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one checkpoint; a full disk is the system's OSError."""
        save(checkpoint, Path(path), durable=False)


class Patience(EarlyStopping):
    """Stop after `patience` epochs without a better validation loss; a run that had stopped does not go on."""

    def __init__(self, patience: int) -> None:
        super().__init__("val_loss", patience=patience)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Lightning saves how long it has waited, but not that it has stopped."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience
