"""What an export of every precision takes.

The export runs as a user's would, in a process of its own, with recovery and engines for all default targets.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from runtime.benchmark.rows import Row
from runtime.errors import SajiError
from runtime.receipt import Receipt


def cost(run: Path) -> Row:
    """Seconds and peak memory of exporting `run`, a folder with checkpoint.pt; raises SajiError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        architecture = run.name
        (Path(folder) / "runs" / "it").mkdir(parents=True)
        (Path(folder) / "runs" / "it" / architecture).symlink_to(run.resolve())
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "export", "--out", folder], capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SajiError(f"the export of {run} failed: {done.stderr.strip().splitlines()[-1]}")
        receipt = Receipt.read(Path(folder) / "models" / architecture)
    checked = [candidate.figures for candidate in receipt.candidates if candidate.figures]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB, of the largest process
    return {
        "experiment": "export cost",
        "architecture": receipt.spec.architecture,
        "image_size": receipt.spec.geometry.size,
        "photos": checked[0].photos,
        "files": sum(name.endswith((".onnx", ".pt2", ".engine")) for name in receipt.files),
        "judged": len(checked),
        "seconds": round(seconds, 1),
        "peak_memory_mib": round(peak / 1024),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to export."""
    parser.add_argument("run", type=Path, help="a folder with checkpoint.pt, such as artifacts/runs/sample/resnet34")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """The row of one export."""
    if not (arguments.run / "checkpoint.pt").is_file():
        raise SajiError(f"{arguments.run} holds no checkpoint.pt; train one with: make train")
    yield cost(arguments.run)
