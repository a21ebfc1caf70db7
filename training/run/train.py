"""Train one network on prepared data and release its checkpoint. Lightning drives the loop."""

import functools
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from runtime.backends.pytorch import why_no_gpu
from runtime.environment import saji_version, versions
from runtime.errors import SajiError, missing_extra, some_of
from runtime.evaluation import ValidationSet
from runtime.machine import machine
from runtime.nvidia import driver
from runtime.spec import Geometry, ModelSpec
from runtime.terminal import quiet, say
from training.launch import SHARED, launch
from training.network.classifier import load_checkpoint, reference_outputs, save_checkpoint
from training.photos import seen
from training.photos.dataset import calibration_set, validation_set
from training.photos.split import Data
from training.progress import Progress, silent
from training.recipe import Recipe
from training.run.batches import Batches, TrainPhotos, share_of
from training.run.fitting import Fitting
from training.run.held_out import of_test, of_validation, settle
from training.run.history import AtomicFiles, Gradients, History, Kept, Patience
from training.run.records import Epoch, EpochAccuracy, Share, Validation, WithoutLeaks
from training.run.release import release
from training.run.resume import identity_of, resumable, state_file


@dataclass(frozen=True)
class Place:
    """Where and how a run computes; nothing here changes what is learnt, but for rounding.

    Several processes share each batch of the recipe, so steps and learning rates are those of one. What they cannot
    share: random numbers within a batch (dropout, mixing) are each process's own, and so are the statistics of batch
    norm on CPUs; GPUs gather them.
    """

    device: str = "auto"  # or "cpu" or "cuda": the first GPU that is visible, see `runtime.nvidia.use`
    devices: int = 0  # processes that share the work: 0 = all GPUs that can share a batch, or one process on a CPU
    tensorboard: bool = False
    resume: bool = True  # go on where the same run was interrupted


SAME = 32  # validation photos that a written checkpoint is tried on: a whole batch, whose sums are rounded alike


@quiet()
def train(
    architecture: str, data: Data, recipe: Recipe, folder: Path, cache: Path, place: Place, progress: Progress = silent
) -> Validation | None:
    """Train and write `checkpoint.pt`, `validation.npz`, `calibration.npz`, `held_out.npz` and the histories.

    The checkpoint is written last and holds the epoch that the recipe's `release` names. While training, a state file
    holds the last complete epoch; a run that was cut off goes on from there. Ctrl-C raises KeyboardInterrupt, and where
    there is no checkpoint yet releases what was kept so far. Gives what the released epoch does; None in all but the
    first of several processes. Raises SajiError on a loss, weights or answers that are not finite; files stay then.
    """
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    geometry = Geometry.for_size(recipe.image_size)
    folder = folder.resolve()
    last = state_file(folder, architecture, recipe, data.fingerprint)
    history, gradients, kept = History(architecture, recipe.epochs), Gradients(), Kept(last, recipe.release)
    trainer = _trainer(recipe, place, folder, [history, gradients, kept])  # first: a device that is absent is told now
    validation = validation_set(data, geometry, progress)
    calibration = calibration_set(data, geometry, recipe.calibration_photos, recipe.seed, progress)
    before = seen.require_unseen(data, seen.sources(recipe))
    identity = identity_of(architecture, recipe, data.fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    start = resumable(architecture, last, identity) if place.resume else 0
    fitting = Fitting(architecture, len(data.classes), recipe, identity)
    _check_teacher(fitting, data)
    n = len(validation.labels)
    trained = ValidationSet(calibration.images[:n], calibration.labels[:n], calibration.names[:n])
    batches = Batches(TrainPhotos(data, recipe, cache, progress), validation, trained, recipe, start)
    interrupted, figures = _fit(trainer, fitting, batches, last if start else None), None
    if interrupted and (not kept.last_epoch or (folder / "checkpoint.pt").is_file()):  # what is finished stays
        raise KeyboardInterrupt
    if trainer.is_global_zero:
        kept.rewind(history, gradients)
        outputs = _released(fitting, data, geometry, validation, kept)
        figures = _validation_figures(outputs[:, : len(data.classes)], data, history.rows, kept, recipe.release)
        spec = _spec(fitting, data, folder, figures, before)
        answers = of_validation(spec, outputs, data, recipe), of_test(fitting.model, spec, data)
        sets = folder / "validation.npz", folder / "calibration.npz"
        for photos, file in zip((validation, calibration), sets, strict=True):
            photos.save(file)  # first: by them the checkpoint before knows that it was to be replaced
        history.write(folder / "history.csv")
        gradients.write(folder / "gradients.csv")
        spec, known = settle(folder, spec, *answers), seen.record(data, before, recipe.epoch_is_chosen)
        save_checkpoint(folder / "checkpoint.pt", fitting.model, spec, known, sets)  # last: the run is complete
        _require_same_again(folder / "checkpoint.pt", validation.images[:SAME], outputs[:SAME])
        if not interrupted:
            kept.remove()
    trainer.strategy.barrier()
    if interrupted:
        raise KeyboardInterrupt
    return figures


def _require_same_again(path: Path, images: np.ndarray, outputs: np.ndarray) -> None:
    """Raise SajiError unless a checkpoint is read back as the network that was trained: uint8 `[N, S, S, 3]` RGB,
    float32 `[N, …]`."""
    model, spec = load_checkpoint(path)
    again, n = reference_outputs(model, images), len(spec.classes)
    # Familiarity is in standard deviations; of a network that tells no photo from another all of it is rounding
    rounding = 1e-3 * float(np.abs(outputs[:, :n]).max()), 0.05
    pairs = (again[:, :n], outputs[:, :n]), (again[:, n:], outputs[:, n:])
    if not all(np.allclose(a, b, 1e-3, atol) for (a, b), atol in zip(pairs, rounding, strict=True)):
        path.unlink()
        raise SajiError(f"{path} is read back as another network than was trained, which is a fault of saji; tell us")


def _released(fitting: Fitting, data: Data, geometry: Geometry, validation: ValidationSet, kept: Kept) -> np.ndarray:
    """Take up the weights of the epoch that the recipe releases, and what is made of them; the network's outputs for
    the validation photos. Raises SajiError where they are not finite."""
    fitting.load_state_dict(torch.load(kept.released, weights_only=True, map_location="cpu")["state_dict"])
    start = fitting.start[0] if fitting.start else None
    release(fitting.model, start, fitting.recipe.start_share, data, geometry)
    outputs = reference_outputs(fitting.model, validation.images)
    if not np.isfinite(outputs).all():
        kept.remove()  # left by an older saji: nothing comes of it
        raise fitting.diverged("the network that was trained answers with NaN or infinite numbers")
    return outputs


def _spec(fitting: Fitting, data: Data, folder: Path, figures: Validation, before: list[seen.Seen]) -> ModelSpec:
    architecture, recipe, familiarity = fitting.architecture, fitting.recipe, fitting.model.familiarity is not None
    facts = {"fingerprint": data.fingerprint, "train": len(data.train), "drawn": data.findings.drawn}
    return ModelSpec(
        name=f"{architecture} on {folder.parent.name}",
        architecture=architecture,
        classes=data.classes,
        geometry=Geometry.for_size(recipe.image_size),
        validation=figures.record(),
        recipe=asdict(recipe),
        data=facts | seen.started_from(before),
        versions=versions() | {"saji": saji_version()},
        familiarity=familiarity,
        schema_version=3 if familiarity else 1,
    )


def _check_teacher(fitting: Fitting, data: Data) -> None:
    for teacher in fitting.teacher:
        if teacher.spec.classes != data.classes:
            raise SajiError(
                f"the teacher {fitting.recipe.teacher} knows {some_of(teacher.spec.classes)}, the photos show "
                f"{some_of(data.classes)}; train a teacher on these photos first"
            )


def _trainer(recipe: Recipe, place: Place, folder: Path, callbacks: list[Callback]) -> L.Trainer:
    accelerator, precision = resolve_device(place.device, recipe.precision)
    processes = _processes(accelerator, place.devices, recipe)
    torchrun = launch().torchrun
    if processes["devices"] > 1 and not torchrun:
        os.environ[SHARED] = "1"
    if recipe.ema_decay:
        callbacks = [*callbacks, EMAWeightAveraging(decay=recipe.ema_decay)]
    if recipe.patience:
        callbacks = [*callbacks, Patience(recipe.patience)]
    return L.Trainer(
        accelerator=accelerator,
        precision=precision,  # type: ignore[arg-type]  # a str from our table, a Literal there
        max_epochs=recipe.epochs,
        accumulate_grad_batches=recipe.accumulate,
        callbacks=callbacks,
        plugins=[AtomicFiles(), TorchElasticEnvironment() if torchrun else LightningEnvironment()],
        logger=_tensorboard(folder) if place.tensorboard else False,
        log_every_n_steps=10,
        deterministic=recipe.deterministic,
        use_distributed_sampler=False,  # ours knows the process it is in
        enable_progress_bar=False,  # History has one of ours
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        sync_batchnorm=accelerator == "cuda",  # PyTorch has it on GPUs only; alone it does nothing
        **processes,
    )


def _processes(accelerator: str, devices: int, recipe: Recipe) -> dict[str, Any]:
    """How many processes train together: as torchrun says, or as many as devices were asked for."""
    # Frozen layers have no gradient to wait for
    together = DDPStrategy(find_unused_parameters=recipe.freeze_epochs > 0)
    if (started := launch()).torchrun:
        share_of(recipe.batch_size, started.everywhere)
        nodes = started.everywhere // started.here
        return {"devices": started.here, "num_nodes": nodes, "strategy": together}
    there = torch.cuda.device_count() if accelerator == "cuda" else 1
    count = devices or max(n for n in range(1, there + 1) if recipe.batch_size % n == 0)
    share_of(recipe.batch_size, count)
    return {"devices": count, "strategy": together if count > 1 else "auto"}


def _tensorboard(folder: Path) -> TensorBoardLogger:
    try:
        return TensorBoardLogger(folder, name="", version="tensorboard")
    except ModuleNotFoundError:
        raise missing_extra("tensorboard", "tensorboard") from None


def _fit(trainer: L.Trainer, fitting: Fitting, batches: Batches, resume_from: Path | None) -> bool:
    """Train; True when Ctrl-C ended it."""
    try:
        trainer.fit(fitting, datamodule=batches, ckpt_path=resume_from, weights_only=True)
    except (SystemExit, KeyboardInterrupt):  # Lightning turns Ctrl-C into SystemExit(1)
        return True
    return bool(trainer.interrupted)


def _validation_figures(logits: np.ndarray, data: Data, rows: list[Epoch], kept: Kept, release: str) -> Validation:
    """What the released epoch does on the validation photos, from its logits float `[len(data.val), C]`."""
    right = Share.of(logits.argmax(1) == data.labels[data.val], data.scenes[data.val])
    return Validation(
        accuracy=right.share,
        interval=right.interval,
        photos=len(data.val),
        epoch=kept.best_epoch if release == "best" else kept.last_epoch,
        best_epoch=EpochAccuracy(kept.best_epoch, rows[kept.best_epoch - 1].val_accuracy),
        last_epoch=EpochAccuracy(rows[-1].epoch, rows[-1].val_accuracy),
        without_leaks=without_leaks(data, logits),
    )


def without_leaks(data: Data, logits: np.ndarray) -> WithoutLeaks | None:
    """The accuracy on the validation photos that training does not show too; None where the split does not leak.

    `logits` is float `[len(data.val), C]`, in the order of `data.val`.
    """
    leaks = np.isin(data.val, data.leaking)
    if not leaks.any():
        return None
    right = Share.of((logits.argmax(1) == data.labels[data.val])[~leaks])
    return WithoutLeaks(int(leaks.sum()), int((~leaks).sum()), None if leaks.all() else right.share, right.interval)


def resolve_device(device: str, precision: str) -> tuple[str, str]:
    """Lightning's accelerator and precision for `--device` and the recipe's precision.

    bf16 only where it is quicker: compute capability 8.0 on a GPU (a T4 emulates it, slower than FP32); on a CPU AMX or
    AMD's AVX-512 BF16, while an Intel processor that has that alone trains slower by it. Raises SajiError when
    CUDA is asked for and cannot be used; "auto" then takes the CPU, and says why where there is a GPU.
    """
    reason = None if device == "cpu" else why_no_gpu()
    if device == "cuda" and reason:
        raise SajiError(f"--device cuda was asked for, but {reason}; or train with --device cpu")
    if device == "auto" and reason and driver().gpus:
        _say_once(f"{reason}; training on the CPU")
    cuda = device != "cpu" and not reason
    if precision == "auto" and cuda:
        precision = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    elif precision == "auto":
        avx512 = torch.cpu._is_avx512_bf16_supported() and "AMD" in machine().cpu
        bf16 = avx512 or torch.cpu._is_amx_tile_supported()
        precision = "bf16" if bf16 else "fp32"
    if precision == "fp16" and not cuda:
        raise SajiError("precision=fp16 trains on a GPU only; use bf16 or fp32 on a CPU")
    return ("cuda" if cuda else "cpu"), {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision]


@functools.cache
def _say_once(line: str) -> None:
    say(line)
