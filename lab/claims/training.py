"""Photos per second of our trainer against other loops on the same photos.

- `plain` is what a tutorial writes: decode with Pillow each epoch, FP32, NCHW, torchvision's ResNet-34, AdamW.
- `timm` is timm's own parts (transform, network, optimiser, loss, gradient clipping) with our settings:
  bf16, channels-last, random crops and flips, no extra processes.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab.claims.comparison import Claim, compare, in_process
from runtime.benchmark.rows import Row
from training.photos.dataset import Data, load_data
from training.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and on what."""
    parser.add_argument("--data", type=Path, help="photo set; the drawn sample in OUT/sample by default")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")
    parser.add_argument("--size", type=int, default=224, help="image size, pixels (224)")
    parser.add_argument("--batch", type=int, default=32, help="photos per step (32)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps, after two of warm-up (6)")
    parser.add_argument("--rounds", type=int, default=3, help="counted pairs of runs (3)")
    parser.add_argument("--against", nargs="+", choices=OTHERS, default=[*OTHERS], help="which loops to compare with")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each of the other loops."""
    from training.photos.drawn import write_sample

    source = arguments.data or write_sample(arguments.out / "sample")
    work = str(source), str(arguments.out), arguments.size, arguments.batch, arguments.steps
    for name in arguments.against:
        other = OTHERS[name]
        text = f"training ResNet-34 at {arguments.size} px against {other.words}"
        ours, theirs = (in_process(photos_per_second, loop, *work, other.augmentation) for loop in ("ours", name))
        yield compare(Claim(text, other.target, ours, theirs, "photos_per_second"), arguments.rounds)


def photos_per_second(
    loop: str, source: str, out: str, size: int, batch: int, steps: int, augmentation: Any,
    device: str = "cpu", precision: Any = "auto",
) -> dict[str, float]:  # fmt: skip
    """The rate of one loop over `steps` batches, in this process, on "cpu" or "cuda"; `precision` is for ours alone."""
    data = load_data(Path(source), 0.2, 0, look_alikes=False)
    settings = {"augmentation": augmentation, "precision": precision}
    recipe = Recipe(image_size=size, batch_size=batch, epochs=1, warmup_epochs=0, **settings)
    steps = min(steps, len(data.train) // batch - 2)
    if loop == "ours":
        seconds = _ours(data, recipe, steps, Path(out), device)
    else:
        seconds = OTHERS[loop].seconds(data, recipe, steps, device)
    return {"photos_per_second": steps * batch / seconds}


def _now(device: str) -> float:
    """Seconds on a clock, once the GPU has done all that it was asked for."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _ours(data: Data, recipe: Recipe, steps: int, out: Path, device: str) -> float:
    """Seconds of the very module, data and settings of `training.run.train`, stopped after a few steps."""
    import lightning as L

    from runtime.evaluation import ValidationSet
    from runtime.terminal import quiet
    from training.run.batches import Batches, TrainPhotos
    from training.run.fitting import Fitting
    from training.run.train import resolve_device

    class Clock(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 2:
                self.started = _now(device)

        def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            self.seconds = _now(device) - self.started

    none = ValidationSet(np.empty((0, 1, 1, 3), np.uint8), np.empty(0, np.int64), ())
    batches = Batches(TrainPhotos(data, recipe, out / "cache"), none, none, recipe, start=0)
    clock = Clock()
    accelerator, precision = resolve_device(device, recipe.precision)
    with quiet():
        trainer = L.Trainer(
            accelerator=accelerator,
            precision=precision,  # type: ignore[arg-type]  # a str from our table, a Literal there
            devices=1,
            limit_val_batches=0,
            max_steps=steps + 2,
            max_epochs=1,
            use_distributed_sampler=False,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Fitting("resnet34", len(data.classes), recipe), datamodule=batches)
    return float(clock.seconds)


def _plain(data: Data, recipe: Recipe, steps: int, device: str) -> float:
    import torch
    from PIL import Image
    from torchvision import models, transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(recipe.image_size, (recipe.smallest_crop, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.TrivialAugmentWide(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    model = models.resnet34(num_classes=len(data.classes)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate)
    started = 0.0
    for step in range(steps + 2):
        if step == 2:
            started = _now(device)
        chosen = data.train[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        images = torch.stack([transform(Image.open(data.photos[i].path).convert("RGB")) for i in chosen])
        labels = torch.from_numpy(data.labels[chosen]).to(device)
        loss = torch.nn.functional.cross_entropy(model(images.to(device)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _now(device) - started


def _timm(data: Data, recipe: Recipe, steps: int, device: str) -> float:
    import timm
    import torch
    from PIL import Image
    from timm.data import create_transform
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import dispatch_clip_grad

    transform = create_transform(
        recipe.image_size, is_training=True, scale=(recipe.smallest_crop, 1.0), color_jitter=0.0
    )

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(data.train)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            photo = data.train[index]
            return transform(Image.open(data.photos[photo].path).convert("RGB")), int(data.labels[photo])

    loader = torch.utils.data.DataLoader(Photos(), recipe.batch_size, shuffle=True, drop_last=True)
    model = timm.create_model("resnet34", num_classes=len(data.classes)).to(memory_format=torch.channels_last)
    model.to(device)
    optimizer = create_optimizer_v2(model, "adamw", recipe.learning_rate, recipe.weight_decay)
    smoothed = LabelSmoothingCrossEntropy(recipe.label_smoothing)
    started = 0.0
    for step, (images, labels) in zip(range(steps + 2), loader, strict=False):
        if step == 2:
            started = _now(device)
        with torch.autocast(device, torch.bfloat16):
            loss = smoothed(model(images.to(device, memory_format=torch.channels_last)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        dispatch_clip_grad(model.parameters(), recipe.clip_norm)
        optimizer.step()
    return _now(device) - started


@dataclass(frozen=True)
class Other:
    """Another loop, which gives the seconds of its steps on a device: ours has `target` times its photos per second."""

    seconds: Callable[[Data, Recipe, int, str], float]
    words: str
    target: float
    augmentation: str


OTHERS = {
    "plain": Other(_plain, "a plain FP32 NCHW loop", 2.0, "trivial"),
    "timm": Other(_timm, "timm's parts at equal settings", 1.0, "crop"),
}
