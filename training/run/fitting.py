"""How a network learns: loss, teacher, optimiser and schedule of a recipe."""

import copy
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torchvision.transforms import v2

from runtime.errors import SajiError
from runtime.terminal import say
from training.network import architectures
from training.network.classifier import PhotoClassifier, load_checkpoint, planes
from training.network.pretrained import load_weights
from training.recipe import Recipe
from training.run.batches import mixed_seed
from training.run.release import require_linear

LOOK_EVERY = 50  # steps on a GPU between two looks at the loss: each look waits for all that the GPU has to do


class Fitting(L.LightningModule):
    """A PhotoClassifier in training. `identity` goes into the state file: only the same run may be resumed from it."""

    def __init__(self, architecture: str, classes: int, recipe: Recipe, identity: str = "") -> None:
        super().__init__()
        self.architecture, self.recipe, self.identity = architecture, recipe, identity
        self.watched: torch.Tensor | None = None  # the first loss that was not finite, or the last one
        self.model = PhotoClassifier(architecture, classes, recipe, recipe.pretrained)
        if recipe.weights:
            self._start_from(Path(recipe.weights))
        require_linear(self.model, recipe.start_share)
        # In a tuple, or Lightning would save it
        self.start = (copy.deepcopy(self.model.network.state_dict()),) if recipe.start_share else ()
        if recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.mix = v2.RandomChoice([v2.MixUp(num_classes=classes, alpha=0.2), v2.CutMix(num_classes=classes)])
        # in a tuple, or Lightning would save and train it as a part of this module
        self.teacher = (Teacher(Path(recipe.teacher)),) if recipe.teacher else ()

    def _start_from(self, weights: Path) -> None:
        """Take up weights, and the mean and standard deviation of the pixels that they were trained with."""
        normalise, network = self.model.normalise, self.model.network
        architectures.require_one_head(self.architecture, self.recipe)
        theirs = load_weights(network, architectures.head(network), weights)
        if theirs:
            normalise.load_state_dict(theirs)
        mean, std = ((each / 255).flatten().tolist() for each in (normalise.mean, normalise.std))
        which = "as the file says" if theirs else f"as is usual for {self.architecture}; the file does not say"
        say(
            f"{self.architecture}: from {weights}, for pixels of mean {_rounded(mean)} and standard deviation "
            f"{_rounded(std)}, {which}"
        )

    def on_fit_start(self) -> None:
        """Bring the teacher to the device of its pupil."""
        for teacher in self.teacher:
            teacher.model.to(self.device)

    def on_train_epoch_start(self) -> None:
        """In the first epochs of `freeze_epochs` only the head learns; frozen batch norms keep their statistics."""
        frozen = self.current_epoch < self.recipe.freeze_epochs
        for parameter in self.model.network.parameters():
            parameter.requires_grad_(not frozen)
        architectures.head(self.model.network).requires_grad_(True)
        self.model.train(not frozen)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what is drawn in this step (dropout, mixing) by its place, so that a resumed run draws the same."""
        seed = mixed_seed(self.recipe.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed is slow where CUDA is compiled in and absent
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
        """The `step`-th of the epoch; images uint8 `[N, S, S, 3]`, labels int64 `[N]`."""
        images, labels = batch
        x = planes(images)
        if self.recipe.mix:
            x, labels = self.mix(x, labels)
        scaled = self.model.normalise.scaled(x)
        if self.recipe.channels_last:
            scaled = scaled.to(memory_format=torch.channels_last)
        logits = self.model.network(scaled)
        loss = self.loss(logits, labels)
        for teacher in self.teacher:
            share, softness = self.recipe.teacher_share, self.recipe.teacher_temperature
            loss = (1 - share) * loss + share * distillation(logits, teacher(x), softness)
        self._watch(loss.detach(), step)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        return loss

    def _watch(self, loss: torch.Tensor, step: int) -> None:
        """Keep the first loss that is not finite on its device: reading it each step would make the GPU wait for us."""
        kept = self.watched
        self.watched = loss if kept is None else torch.where(kept.isfinite(), loss, kept)
        if loss.device.type == "cpu" or step % LOOK_EVERY == LOOK_EVERY - 1:
            self._require_finite()

    def _require_finite(self) -> None:
        """Raise SajiError once a loss was not finite; waits for the device."""
        if self.watched is not None and not torch.isfinite(self.watched):
            raise self.diverged(f"the loss became {self.watched.item()} in epoch {self.current_epoch + 1}")

    def diverged(self, what: str) -> SajiError:
        """The error that says what is not finite, and what to type."""
        rate = self.recipe.learning_rate
        lower = min(rate / 5, 0.1)  # from far above, a fifth would not get anywhere
        return SajiError(f"{what}; the likely cause is the learning rate {rate:g}, try: --learning-rate {lower:g}")

    def on_validation_start(self) -> None:
        """The epoch's last step has been asked for: no epoch is measured or kept whose loss was not finite."""
        self._require_finite()

    def on_train_epoch_end(self) -> None:
        """Nor is one kept whose last step, of which no loss tells, left weights or answers that are not finite."""
        loss = self.trainer.callback_metrics["val_loss"]
        if not all(tensor.isfinite().all() for tensor in (loss, *self.model.state_dict().values())):
            raise self.diverged(f"weights or answers became NaN or infinite in epoch {self.current_epoch + 1}")

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int, dataloader_idx: int = 0) -> None:
        """Loss without smoothing and accuracy: of the validation photos (0), and of training photos as they are (1)."""
        images, labels = batch
        logits = self.model(images).float()
        accuracy = (logits.argmax(1) == labels).float().mean()
        if dataloader_idx == 0:
            metrics = {"val_accuracy": accuracy, "val_loss": nn.functional.cross_entropy(logits, labels)}
        else:
            metrics = {"train_accuracy": accuracy}
        self.log_dict(metrics, batch_size=len(images), sync_dist=True, add_dataloader_idx=False)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip gradients here rather than by the trainer's flag, which refuses fused optimisers under autocast."""
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the state file which run it belongs to."""
        checkpoint["identity"] = self.identity

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser, with the learning rate set anew each step."""
        recipe = self.recipe
        groups = self._groups()
        # One pass over the weights instead of ten; under fp16 the loss scale must be taken out before the step
        fused = self.trainer.precision != "16-mixed"
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=fused)
        elif recipe.optimizer == "adam":
            optimizer = torch.optim.Adam(groups, weight_decay=recipe.weight_decay, fused=fused)
        else:
            optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
        steps = max(1, math.ceil(self.trainer.estimated_stepping_batches / recipe.epochs))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step / steps, recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        """Body and head at their own rates; biases and norms without decay, which only hurts them (but for adam)."""
        recipe = self.recipe
        head = {id(parameter) for parameter in architectures.head(self.model.network).parameters()}
        groups: list[dict[str, Any]] = []
        for in_head, rate in ((False, recipe.learning_rate * recipe.backbone_rate), (True, recipe.learning_rate)):
            part = [p for p in self.model.parameters() if (id(p) in head) == in_head]
            groups.append({"params": [p for p in part if p.ndim > 1], "lr": rate})
            decay = {} if recipe.optimizer == "adam" else {"weight_decay": 0.0}
            groups.append({"params": [p for p in part if p.ndim <= 1], "lr": rate, **decay})
        return groups


def _rounded(channels: list[float]) -> str:
    return "/".join(f"{each:.3f}" for each in channels)


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


class Teacher:
    """A checkpoint whose answers another network learns. It sees the very same mixed and cropped pixels, which is what
    makes distillation work (Beyer et al. 2022, "A good teacher is patient and consistent")."""

    def __init__(self, path: Path) -> None:
        self.model, self.spec = load_checkpoint(path)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 `[N, 3, S, S]` RGB on a scale of 0 to 255 → logits `[N, C]`, at the size the teacher learnt with."""
        size = self.spec.geometry.size
        if x.shape[-1] != size:
            x = nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
        return self.model.network(self.model.normalise.scaled(x))


def distillation(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence of two answers `[N, C]` softened by a temperature, times its square (Hinton et al. 2015, eq. 4)."""
    pupil, teacher = (nn.functional.log_softmax(answer.float() / temperature, 1) for answer in (logits, taught))
    return temperature**2 * nn.functional.kl_div(pupil, teacher, reduction="batchmean", log_target=True)
