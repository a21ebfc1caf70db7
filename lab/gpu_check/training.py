"""Training on this GPU: photos a second, and whether a run that was cut off ends in the very same weights."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lab.gpu_check.machine import require_torch_gpu
from lab.gpu_check.step import ROOT, Place
from runtime.benchmark.rows import Row
from runtime.errors import SajiError
from runtime.terminal import say

PER_CLASS, BATCH, STEPS = 120, 32, 12  # drawn pictures; photos a step; timed steps
RESUMED_SIZE, EPOCHS = 64, 4
DEVICE = "cuda"


def training_in_bf16(place: Place) -> Iterator[Row]:
    """Photos a second of ResNet-34 in training with bf16, beside a plain loop on the same GPU."""
    yield from _rates("bf16", place)


def training_in_fp16(place: Place) -> Iterator[Row]:
    """Photos a second of ResNet-34 in training with fp16, beside a plain loop on the same GPU."""
    yield from _rates("fp16", place)


def _rates(precision: str, place: Place) -> Iterator[Row]:
    from lab.claims.training import photos_per_second

    require_torch_gpu()
    source, rates = str(_sample(place.folder)), {}
    for loop in ("ours", "plain"):
        used = precision if loop == "ours" else _plain_precision()
        say(f"training by the loop {loop} in {used}")
        asked = (loop, source, str(place.folder), place.size, BATCH, STEPS, "trivial", DEVICE, precision)
        rates[loop] = photos_per_second(*asked)["photos_per_second"]
        yield {
            "loop": loop,
            "precision": used,
            "image_size": place.size,
            "batch": BATCH,
            "photos_per_second": rates[loop],
        }
    yield {"says": f"{rates['ours']:.0f} photos/s, {rates['ours'] / rates['plain']:.1f}× the plain loop"}


def _plain_precision() -> str:
    """What PyTorch computes FP32 in where nobody chooses: cuDNN's convolutions in TF32, from Ampere on."""
    import torch

    tf32 = torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability() >= (8, 0)
    return "fp32, convolutions in tf32" if tf32 else "fp32"


def _sample(folder: Path) -> Path:
    from training.photos.drawn import write_sample

    return write_sample(folder / "sample", PER_CLASS)


def resume(place: Place) -> Iterator[Row]:
    """With --deterministic, does a run that is killed and resumed end in the very same weights as one that is not?"""
    import lightning  # noqa: F401  # else it is missing only in the runs' own processes
    import torch

    require_torch_gpu()
    out, weights = place.folder / "resumed", {}
    for name in ("straight", "killed"):
        if name == "killed":
            _kill_once(_command(place, out, name), out / "runs" / name / "resnet18")
        done = subprocess.run(_command(place, out, name), cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SajiError(f"the run {name!r} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        checkpoint = out / "runs" / name / "resnet18" / "checkpoint.pt"
        weights[name] = torch.load(checkpoint, weights_only=True, map_location="cpu")["weights"]
    resumed = "resuming after epoch" in done.stderr
    differing = [name for name, value in weights["straight"].items() if not torch.equal(value, weights["killed"][name])]
    row: Row = {"resumed": resumed, "tensors": len(weights["straight"]), "differing": differing}
    if differing or not resumed:
        row["wrong"] = f"{len(differing)} tensors differ" if differing else "the killed run began anew"
    yield row | {"says": f"all {len(weights['straight'])} tensors are the same bits"}


def _command(place: Place, out: Path, name: str) -> list[str]:
    asked = {"data": _sample(place.folder), "archs": "resnet18", "run": name, "out": out, "device": DEVICE}
    asked |= {"image-size": RESUMED_SIZE, "epochs": EPOCHS, "warmup-epochs": 1, "devices": 1}
    flags = [word for flag, value in asked.items() for word in (f"--{flag}", str(value))]
    return [sys.executable, "-m", "training", *flags, "--deterministic"]


def _kill_once(command: list[str], folder: Path) -> None:
    """Start a run and kill it as soon as it has kept an epoch."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(folder.glob("last*.ckpt")):
            time.sleep(0.02)
        process.kill()
