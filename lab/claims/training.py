"""`python -m lab.claims.training`: photos per second of our trainer against other loops on the same photos.

- `plain` is what a tutorial writes: decode with Pillow each epoch, FP32, NCHW, torchvision's ResNet-34, AdamW.
- `timm` is timm's own parts (transform, network, optimiser, loss, gradient clipping) with our settings:
  bf16, channels-last, random crops and flips, no extra processes.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.claims.ratio import compare
from runtime.benchmark.rows import append_rows
from runtime.command_line import exit_with_one_sentence
from training.photos.dataset import Data, load_data
from training.recipe import Recipe


def main() -> None:
    """Race both loops in processes of their own; with `--loop` be one of them."""
    parser = argparse.ArgumentParser(prog="python -m lab.claims.training", description=__doc__)
    parser.add_argument("--data", type=Path, help="photo set; the drawn sample in OUT/sample by default")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")
    parser.add_argument("--size", type=int, default=224, help="image size, pixels")
    parser.add_argument("--batch", type=int, default=32, help="photos per step")
    parser.add_argument("--steps", type=int, default=6, help="timed steps, after two of warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="counted pairs of runs")
    parser.add_argument("--rows", type=Path, help="append the row to this .jsonl")
    parser.add_argument("--against", nargs="+", choices=CLAIMS, default=[*CLAIMS], help="which loops to race")
    parser.add_argument("--loop", choices=["ours", *CLAIMS], help=argparse.SUPPRESS)
    parser.add_argument("--augmentation", default="trivial", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        print(json.dumps({"photos_per_second": _rate(arguments)}))
        return
    command = ["-m", "lab.claims.training", "--data", str(_source(arguments)), "--out", str(arguments.out)]
    command += ["--size", str(arguments.size), "--batch", str(arguments.batch), "--steps", str(arguments.steps)]
    for name in arguments.against:
        claim = CLAIMS[name]
        here = [*command, "--augmentation", claim.augmentation]
        row = compare(
            f"training ResNet-34 at {arguments.size} px against {claim.what}",
            [*here, "--loop", "ours"],
            [*here, "--loop", name],
            target=claim.target,
            rounds=arguments.rounds,
            measure="photos_per_second",
        )
        if arguments.rows:
            append_rows(arguments.rows, [row])
        print(json.dumps(row))


@dataclass(frozen=True)
class Claim:
    """What we say of our trainer beside another loop: at least `target` times its photos per second."""

    what: str
    target: float
    augmentation: str


CLAIMS = {
    "plain": Claim("a plain FP32 NCHW loop", 2.0, "trivial"),
    "timm": Claim("timm's parts at equal settings", 1.0, "crop"),
}


def _rate(arguments: argparse.Namespace) -> float:
    data = load_data(_source(arguments), 0.2, 0, look_alikes=False)
    recipe = Recipe(
        image_size=arguments.size,
        batch_size=arguments.batch,
        epochs=1,
        warmup_epochs=0,
        augmentation=arguments.augmentation,
    )
    steps = min(arguments.steps, len(data.train) // arguments.batch - 2)
    if arguments.loop == "ours":
        return _ours(data, recipe, arguments.out, steps)
    return (_plain if arguments.loop == "plain" else _timm)(data, recipe, steps)


def _source(arguments: argparse.Namespace) -> Path:
    from training.photos.drawn import write_sample

    return arguments.data or write_sample(arguments.out / "sample")


def _ours(data: Data, recipe: Recipe, out: Path, steps: int) -> float:
    """The very module, data and settings of `training.run.train`, stopped after a few steps."""
    import lightning as L
    from torch.utils.data import DataLoader

    from training.run.batches import EpochSampler, TrainPhotos
    from training.run.fitting import Fitting
    from training.run.train import quieten, resolve_device

    class Clock(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 2:
                self.started = time.perf_counter()

        def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            self.seconds = time.perf_counter() - self.started

    quieten()
    photos = TrainPhotos(data, recipe, out / "cache")
    sampler: Any = EpochSampler(photos, 1, 0, seed=recipe.seed)
    clock = Clock()
    accelerator, precision = resolve_device("cpu", recipe.precision)
    trainer = L.Trainer(
        accelerator=accelerator,
        precision=precision,  # type: ignore[arg-type]  # a str from our table, a Literal there
        max_steps=steps + 2,
        max_epochs=1,
        use_distributed_sampler=False,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(photos, recipe.batch_size, sampler=sampler)
    trainer.fit(Fitting("resnet34", len(data.classes), recipe), loader)
    return steps * recipe.batch_size / clock.seconds


def _plain(data: Data, recipe: Recipe, steps: int) -> float:
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
    model = models.resnet34(num_classes=len(data.classes))
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate)
    started = 0.0
    for step in range(steps + 2):
        if step == 2:
            started = time.perf_counter()
        chosen = data.train[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        images = torch.stack([transform(Image.open(data.photos[i].path).convert("RGB")) for i in chosen])
        loss = torch.nn.functional.cross_entropy(model(images), torch.from_numpy(data.labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return steps * recipe.batch_size / (time.perf_counter() - started)


def _timm(data: Data, recipe: Recipe, steps: int) -> float:
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
    optimizer = create_optimizer_v2(model, "adamw", recipe.learning_rate, recipe.weight_decay)
    smoothed = LabelSmoothingCrossEntropy(recipe.label_smoothing)
    started = 0.0
    for step, (images, labels) in zip(range(steps + 2), loader, strict=False):
        if step == 2:
            started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = smoothed(model(images.to(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        dispatch_clip_grad(model.parameters(), recipe.clip_norm)
        optimizer.step()
    return steps * recipe.batch_size / (time.perf_counter() - started)


if __name__ == "__main__":
    exit_with_one_sentence(main)
