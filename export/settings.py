"""What an export is asked for: the flags of `python -m export` that decide how its files turn out."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.errors import SajiError
from runtime.gate import GATES, Gate, read_gates

USUAL_TARGETS = ("sm86", "sm89", "sm120")  # GeForce RTX 30, 40 and 50
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Settings:
    """How files are written, engines built and verdicts given. Raises SajiError where batch sizes are not in order."""

    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ()
    """Precisions that must pass: exit status 1 when one fails, or none is sure. By default all are tried, and a lower
    one that fails is refused without failing the export. fp32 is always written, and has to pass on ONNX Runtime and
    PyTorch."""
    recover: bool = True
    """Return the layers that INT8 hurts most to a higher precision where it would lose too much; takes minutes."""
    overflow_fix: bool = False
    """INT8 weights of 7 bits: right on x86 processors without VNNI, too, and a little less exact on all."""
    targets: tuple[str, ...] = USUAL_TARGETS
    """GPU architectures that TensorRT-RTX builds for ahead of time, by default also this machine's; none stands for
    every GPU it knows."""
    batch: tuple[int, int, int] = (1, 1, 32)
    """Smallest, typical and largest batch of TensorRT engines."""
    version_compatible: bool = False
    """Enterprise TensorRT: engines that later minor versions, and the next major one, can run too."""
    hardware_compatible: bool = False
    """Enterprise TensorRT: engines that every GPU from Ampere on can run, somewhat slower."""
    gates: Path | None = None
    """A TOML file with other bounds for the verdicts, such as: int8.shift = 0.2"""

    def __post_init__(self) -> None:
        if not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            sizes = " ".join(map(str, self.batch))
            raise SajiError(f"batch sizes {sizes} are no profile; give --batch smallest typical largest, in that order")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The precisions to write: those asked for, or all."""
        return self.precisions or ("fp32", "fp16", "int8")

    @functools.cached_property
    def bounds(self) -> Mapping[str, Gate]:
        """The gates that verdicts are given by."""
        return read_gates(self.gates) if self.gates else GATES


@dataclass(frozen=True)
class Foreign:
    """A classifier that was not trained here: what its file does not say."""

    onnx: Path | None = None
    """An ONNX file of another project: one batch of float32 photos in, one row of logits for each out."""
    classes: Path | None = None
    """Text file with the names of its classes, one a line, in the order of its logits."""
    mean: Triple | None = None
    """What it subtracts from red, green and blue, after --scale."""
    std: Triple | None = None
    """What it then divides red, green and blue by."""
    scale: float = 1 / 255
    """What it multiplies pixels of 0 to 255 by first."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Order of its input's dimensions."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order of its input's channels; --mean and --std are in the order red, green, blue in any case."""
    crop: Literal["center", "squash"] = "center"
    """Its photos keep their shape, and the centre is cut out, or by squash they are made square before that."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How its photos were resized."""
    antialias: bool = True
    """Whether they were, made smaller, averaged, as by Pillow and torchvision; OpenCV and Keras did not."""
    size: int = 0
    """Side of its square input in pixels; by default what the file says."""
    resize: int = 0
    """What a photo's shorter side is resized to before the crop; by default 8/7 of the size, of a squash the size."""
    data: Path | None = None
    """Photos to check the wrapped file by: a folder per class, or a CSV. Without them nothing of it is served."""
    name: str = ""
    """What it is called here, by default as its file; what is no letter, digit, - or _ becomes _."""

    def __post_init__(self) -> None:
        """Raise SajiError for numbers that no photo is normalised by."""
        mean, std, white = self.mean or (0.0, 0.0, 0.0), self.std or (1.0, 1.0, 1.0), 255 * self.scale
        if min(*std, white) <= 0:
            raise SajiError("--std and --scale are to be above 0")
        for flag, numbers in (("--std", std), ("--mean", mean)):
            if max(numbers) > 100 * min(numbers) > 0:  # those of photos are within 10 times of each other
                told = " ".join(f"{number:g}" for number in numbers)
                raise SajiError(f"{flag} {told} is of two scales; give red, green and blue by one")
        if white > 300 * max(std):
            raise SajiError(f"--std {max(std):g} is far below white, which is {white:g} by --scale; give one that fits")
        for flag, largest, most in (("--mean", max(mean), 1.01), ("--std", max(std), 10)):
            if largest > most * white:
                raise SajiError(f"{flag} {largest:g} is above white, which is {white:g} by --scale; try --scale 1")
        if self.std and max(std) > 50 * max(mean) > 0:  # by itself it may be small, as of photos by night
            raise SajiError(f"--mean {max(mean):g} is of another scale than --std {max(std):g}; give both by one")
