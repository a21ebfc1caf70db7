"""How large TensorRT-RTX engines are, by precision, and whether a second build gives the same file.

`python -m lab.engine_sizes --rows results/engines.jsonl` measures networks with random weights: sizes do not depend
on what a network has learnt. It prints a table and appends one row per network.
"""

import dataclasses
import datetime
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.engine import SOURCES, build_engine, module_for
from export.graph import export_onnx
from export.precision import HalfPrecision, quantise, quantise_for_tensorrt
from export.settings import Settings
from runtime import environment
from runtime.benchmark.rows import Row, append_rows
from runtime.command_line import Parser, add_flags, exit_with_one_sentence, from_flags
from runtime.files import sha256_file
from runtime.spec import Geometry, ModelSpec
from training.network.classifier import PhotoClassifier


@dataclass(frozen=True)
class Command:
    """Measure the sizes of ahead-of-time engines in FP32, FP16 and INT8."""

    archs: tuple[str, ...] = ("plain34", "resnet34", "se_resnet34")
    """Architectures."""
    size: int = 64
    """Image size in pixels."""
    targets: tuple[str, ...] = ("sm86", "sm89", "sm120")
    """GPU architectures."""
    rows: Path | None = None
    """Append the rows to this .jsonl."""


def main() -> None:
    """Read the command line, measure, print a table; the last line of stdout is JSON."""
    parser = Parser(prog="python -m lab.engine_sizes", description=Command.__doc__)
    add_flags(parser, Command())
    command = from_flags(Command(), parser.parse_args())
    rows = []
    for architecture in command.archs:
        print(f"{architecture}: exporting and building", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(architecture, Path(folder), command))
    if command.rows:
        append_rows(command.rows, rows)
    print(table(rows))
    print(json.dumps({row["architecture"]: row["bytes"] for row in rows}))


def measured(architecture: str, folder: Path, command: Command) -> dict[str, Any]:
    """Export one network into `folder`, build each engine twice, and return the row."""
    write_files(architecture, folder, command.size)
    trt, settings = module_for("tensorrt-rtx"), Settings(targets=command.targets)
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
    commit, dirty = environment.commit()
    return {
        "experiment": "engine sizes",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "architecture": architecture,
        "image_size": command.size,
        "targets": command.targets,
        "bytes": sizes,
        "ratio": " : ".join(f"{sizes[precision] / sizes['int8']:.2f}" for precision in ("fp32", "fp16", "int8")),
        "bytes_of_second_build": again,
        "identical": identical,
        "build_seconds": seconds,
        **{f"machine_{name}": value for name, value in dataclasses.asdict(environment.machine()).items()},
        "versions": environment.versions(),
    }


def write_files(architecture: str, folder: Path, size: int) -> None:
    """An untrained network of 5 classes in every precision, calibrated on noise, into `folder`."""
    network = PhotoClassifier(architecture, 5, {}).eval()
    spec = ModelSpec("untrained", architecture, tuple("abcde"), Geometry.for_size(size))
    photos = np.random.default_rng(0).integers(0, 255, (8, size, size, 3), np.uint8)
    export_onnx(network, spec, folder / "model.onnx")
    quantise(folder / "model.onnx", photos, spec, folder / "model.int8.onnx")
    quantise_for_tensorrt(folder / "model.int8.onnx", spec, folder / SOURCES["int8"])
    export_onnx(HalfPrecision(network), spec, folder / SOURCES["fp16"])


def table(rows: list[Row]) -> str:
    """The rows as Markdown: megabytes by precision and whether a second build is the same file."""
    lines = ["| network | FP32 MB | FP16 MB | INT8 MB | ratio | second build |", "|---|---:|---:|---:|---:|---|"]
    for row in rows:
        sizes = " | ".join(f"{row['bytes'][precision] / 1e6:.1f}" for precision in ("fp32", "fp16", "int8"))
        again = "the same bytes" if row["identical"] else "other bytes"
        lines.append(f"| {row['architecture']} | {sizes} | {row['ratio']} | {again} |")
    row = rows[0]
    where = f"for {', '.join(row['targets'])}, {row['image_size']} px, untrained"
    version = row["versions"]["tensorrt-rtx-cu13"]
    return "\n".join(
        [*lines, "", f"TensorRT-RTX {version}, built {where}; commit {row['commit']}, {row['time'][:10]}."]
    )


if __name__ == "__main__":
    exit_with_one_sentence(main)
