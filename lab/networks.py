"""Every classification network of torchvision, ours among them, at the smallest size that it takes.

Trained for a few epochs on two drawn dishes, exported and judged by the two commands that everybody types, each in a
process of its own. That teaches little, but enough for photos to get different answers: asked is whether the files
answer as the checkpoint does. A network that has its row is not repeated.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.benchmark.rows import Row, read_rows
from runtime.receipt import Receipt
from runtime.terminal import say
from training.network import architectures
from training.photos.drawn import write_sample
from training.recipe import DEFAULTS

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 5400  # seconds of each command; in 1800 MaxViT, which takes 224 px alone, was not trained
_SILENT = ("pass", "unchecked")  # the reasons of the latter are the machine's
EPOCHS, RATE = "30", "5e-4"  # fewer leave batch norm's statistics, and a higher rate SqueezeNet, with one answer to all
BATCH = 8
HEAVY, HEAVY_BATCH = 50_000_000, 32  # above so many parameters a step takes seconds, whatever the size of its batch
PHOTOS, KINDS = 64, 2  # of a dish, of which half validate; dishes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which networks."""
    parser.add_argument("--only", default="", metavar="TEXT", help="networks with this in their name")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each network that has none yet, the smallest first."""
    done = {row["architecture"] for row in read_rows(arguments.rows)} if arguments.rows.is_file() else set()
    for name in sorted(architectures.names(), key=parameters):
        if arguments.only in name and name not in done:
            with tempfile.TemporaryDirectory() as folder:
                yield tried(name, Path(folder))


def parameters(name: str) -> int:
    """How many numbers the network learns, for two classes of photos of 224 px."""
    network = architectures.without_numbers(name, KINDS, replace(DEFAULTS, image_size=224))
    return sum(each.numel() for each in network.parameters())


def tried(name: str, folder: Path) -> Row:
    """What becomes of a network: `refused` is the sentence of the command that ends it, empty where none does."""
    started, size = time.perf_counter(), architectures.smallest_size(name, KINDS, DEFAULTS)
    say(f"{name}: {size} px")
    everything = write_sample(folder / "all", PHOTOS, 96)
    (folder / "photos").mkdir()
    for dish in sorted(path for path in everything.iterdir() if path.is_dir())[:KINDS]:
        dish.rename(folder / "photos" / dish.name)
    return {
        "experiment": "networks",
        "architecture": name,
        "image_size": size,
        "parameters": parameters(name),
        **_outcome(name, size, folder),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _outcome(name: str, size: int | None, folder: Path) -> dict[str, Any]:
    """Train and export; the verdicts by backend and precision, with the reasons of those that did not pass."""
    out = ["--run", "own", "--out", str(folder)]
    learn = ["--data", str(folder / "photos"), "--archs", name, "--image-size", str(size), "--epochs", EPOCHS]
    batch = HEAVY_BATCH if parameters(name) > HEAVY else BATCH
    how = ["--batch-size", str(batch), "--precision", "fp32", "--validation-share", "0.5", "--learning-rate", RATE]
    for words in (["training", *learn, *how, *out], ["export", "--no-recover", *out]):
        if refused := _command(words):
            refused = refused.replace(f"{folder}/", "")
            return {"refused": f"{words[0]}: {refused}", "verdicts": {}, "reasons": {}, "engines": []}
    receipt = Receipt.read(folder / "models" / name)
    judged = {f"{c.backend} {c.precision}": c for c in receipt.candidates if c.variant in ("", "as written")}
    return {
        "refused": "",
        "verdicts": {key: candidate.verdict for key, candidate in judged.items()},
        "reasons": {key: "; ".join(c.reasons)[:300] for key, c in judged.items() if c.verdict not in _SILENT},
        "engines": sorted(receipt.engines),
    }


def _command(words: Sequence[str]) -> str:
    """Run `python -m` one of our commands; the last line that it says where it fails, else empty."""
    try:
        line = [sys.executable, "-m", *words]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"it takes longer than {LIMIT} s"
    if done.returncode < 0:
        return f"it was ended by signal {-done.returncode}"
    if not done.returncode:
        return ""
    told = [line for line in done.stderr.splitlines() if line.strip()]
    said = [line for line in told if not line.startswith("what the libraries said")]
    return (said or ["without a word"])[-1][:300]
