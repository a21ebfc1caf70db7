"""How large TensorRT-RTX engines are, by precision, and whether a second build gives the same file.

Networks with random weights are measured: sizes do not depend on what a network has learnt.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.engine import SOURCES, build_engine, module_for
from export.graph import export_onnx
from export.precision import half_precision, quantise, quantise_for_tensorrt
from export.settings import Settings
from runtime.benchmark.rows import Row
from runtime.command_line import add_flags, from_flags
from runtime.files import sha256_file
from runtime.spec import Geometry, ModelSpec
from runtime.terminal import say
from training.network.classifier import PhotoClassifier


@dataclass(frozen=True)
class Builds:
    """Which engines are built."""

    archs: tuple[str, ...] = ("plain34", "resnet34", "se_resnet34")
    """Architectures."""
    size: int = 64
    """Image size in pixels."""
    targets: tuple[str, ...] = ("sm86", "sm89", "sm120")
    """GPU architectures."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which engines to build."""
    add_flags(parser, Builds())


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each network."""
    builds = from_flags(Builds(), arguments)
    for architecture in builds.archs:
        say(f"{architecture}: exporting and building")
        with tempfile.TemporaryDirectory() as folder:
            yield built(architecture, Path(folder), builds)


def built(architecture: str, folder: Path, builds: Builds) -> Row:
    """Export one network into `folder`, build each engine twice, and return the row."""
    write_files(architecture, folder, builds.size)
    trt, settings = module_for("tensorrt-rtx"), Settings(targets=builds.targets)
    sizes: dict[str, int] = {}
    again: dict[str, int] = {}
    seconds: dict[str, float] = {}
    identical = True
    for precision, source in {"fp32": "model.onnx", **SOURCES}.items():
        started = time.perf_counter()
        for name in ("first", "second"):
            build_engine(trt, folder / source, folder / name, precision, settings)
        seconds[precision] = round((time.perf_counter() - started) / 2, 2)
        first, second = folder / "first", folder / "second"
        sizes[precision], again[precision] = first.stat().st_size, second.stat().st_size
        identical = identical and sha256_file(first) == sha256_file(second)
    return {
        "experiment": "engine sizes",
        "architecture": architecture,
        "image_size": builds.size,
        "targets": builds.targets,
        "bytes": sizes,
        "ratio": " : ".join(f"{sizes[precision] / sizes['int8']:.2f}" for precision in ("fp32", "fp16", "int8")),
        "bytes_of_second_build": again,
        "identical": identical,
        "build_seconds": seconds,
    }


def write_files(architecture: str, folder: Path, size: int) -> None:
    """An untrained network of 5 classes in every precision, calibrated on noise, into `folder`."""
    network = PhotoClassifier(architecture, 5).eval()
    spec = ModelSpec("untrained", architecture, tuple("abcde"), Geometry.for_size(size))
    photos = np.random.default_rng(0).integers(0, 255, (8, size, size, 3), np.uint8)
    export_onnx(network, spec, folder / "model.onnx")
    quantise(folder / "model.onnx", photos, spec, folder / "model.int8.onnx")
    quantise_for_tensorrt(folder / "model.int8.onnx", spec, folder / SOURCES["int8"])
    export_onnx(half_precision(network), spec, folder / SOURCES["fp16"])
