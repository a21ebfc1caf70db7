"""What Ray costs: `classify --ray` beside `classify` on the same cores, one after the other, on more and more photos.

The photos are hard links to some drawn ones, so that many need no room. Between the smallest and the largest source a
command's rate is its steady one; what is left of the seconds is its start. Memory is the most that the command and all
that it started had at a time, what they share counted once. Both have to give the same answers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from runtime.benchmark.rows import Row
from runtime.command_line import require_extra
from runtime.errors import SajiError
from training.photos.drawn import DISHES, write_sample

HOW = ("local", "ray")
A_FOLDER = 1000  # photos
EACH_SECONDS = 0.5  # between two looks at the memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many photos, of which model."""
    parser.add_argument("--photos", type=int, nargs="+", default=[2000, 20000], metavar="N", help="(2000 20000)")
    parser.add_argument("--model", type=Path, default=Path("artifacts/deployment.json"), help="(%(default)s)")
    parser.add_argument("--drawn", type=int, default=500, help="photos that are drawn, the others are copies (500)")
    parser.add_argument("--size", type=int, default=512, help="of a photo, in pixels (512)")
    parser.add_argument("--how", nargs="+", choices=HOW, default=HOW, help="(both)")
    parser.add_argument("--rounds", type=int, default=1, help="times that each is measured (1)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each command, number of photos and round. Raises SajiError where the answers differ."""
    require_extra("scale", "ray", "pyarrow")
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        drawn = sorted(
            write_sample(folder / "drawn", -(-arguments.drawn // len(DISHES)), arguments.size).rglob("*.jpg")
        )
        for count in sorted(arguments.photos):
            photos = _linked(drawn, folder / str(count), count)
            for number in range(arguments.rounds):
                answers = {}
                for how in arguments.how:
                    output = folder / f"{count}.{number}.{how}"
                    figures = _run(how, photos, arguments.model, output)
                    answers[how] = _answers(output)
                    yield {
                        "experiment": "bulk", "how": how, "photos": count, "round": number, "size": arguments.size,
                        "ray": metadata.version("ray"), "served_by": answers[how][0][-1], **figures,
                        "same": answers[how] == answers[HOW[0]] if HOW[0] in answers else None,
                    }  # fmt: skip
                    if len(answers[how]) != count or answers[how] != next(iter(answers.values())):
                        raise SajiError(f"{how} answered {len(answers[how])} of {count} photos, or otherwise")


def _linked(drawn: list[Path], folder: Path, count: int) -> Path:
    for number in range(count):
        below = folder / f"{number // A_FOLDER:03}"
        below.mkdir(parents=True, exist_ok=True)
        os.link(drawn[number % len(drawn)], below / f"{number:07}.jpg")
    return folder


def _run(how: str, photos: Path, model: Path, output: Path) -> dict[str, Any]:
    """Seconds and memory of the command."""
    line = [sys.executable, "-m", "runtime", "classify", str(photos), "--model", str(model), "--output", str(output)]
    started, most = time.perf_counter(), 0
    with tempfile.TemporaryFile() as said:
        running = psutil.Popen([*line, *["--ray"][: how == "ray"]], stdout=said, stderr=said)
        while running.poll() is None:
            most = max(most, _memory(running))
            with suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
                running.wait(EACH_SECONDS)
        seconds = time.perf_counter() - started
        if running.returncode:
            said.seek(0)
            raise SajiError(f"{' '.join(line)} failed: {said.read().decode(errors='replace')[-300:]}")
    return {"seconds": round(seconds, 2), "peak_memory_mib": most // 2**20}


def _memory(process: psutil.Process) -> int:
    """Bytes of a process and all below it."""
    total = 0
    with suppress(psutil.Error):
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += each.memory_full_info().pss
    return total


def _answers(output: Path) -> list[tuple[Any, ...]]:
    """What was said of each photo, to the last bit and in the order of their names."""
    if output.is_file():
        rows = map(json.loads, output.read_text().splitlines())
        told = ((row["photo"], row["answer"], tuple(row["probabilities"].items()), row["served_by"]) for row in rows)
    else:
        import pyarrow.parquet as pq

        columns = pq.read_table(output, columns=["photo", "answer", "probabilities", "served_by"]).to_pydict()
        told = (
            (photo, answer, tuple(probabilities), served_by)
            for photo, answer, probabilities, served_by in zip(*columns.values(), strict=True)
        )
    return sorted(told)
