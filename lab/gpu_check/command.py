"""What only a machine with an NVIDIA GPU can settle, the most valuable first, in ten minutes.

Each step runs in a process of its own and ends PASS, FAIL or SKIP with the reason; its row is kept as soon as it ends.
Networks have random weights, pictures are drawn, nothing is downloaded or installed. It needs NumPy, Pillow, psutil and
PyTorch 2.9; steps whose libraries are missing are skipped.
"""

import argparse
import shutil
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.gpu_check import engines, machine, serving, training, workers
from lab.gpu_check.step import KEPT, Outcome, Place, Step, run
from runtime.benchmark.rows import Row
from runtime.errors import GateFailed, SajiError
from runtime.terminal import say

# The most valuable first, each with the seconds after which it is stopped
STEPS = (
    Step(machine.environment, 60),
    Step(engines.tensorrt, 180),
    Step(engines.tensorrt_rtx, 180),
    Step(engines.latency_of_plain34, 150),
    Step(engines.cuda_graphs, 60),
    Step(workers.worker, 60),
    Step(engines.ort_cuda_without_torch, 60),
    Step(engines.latency_of_resnet34, 120),
    Step(serving.demo, 90),
    Step(engines.latency_of_se_resnet34, 120),
    Step(machine.fp16_keeps_the_gate, 60),
    Step(training.training_in_bf16, 60),
    Step(training.training_in_fp16, 60),
    Step(training.resume, 90),
)
WIDTH, NAMES = 80, 23  # columns of the table, and of the names in it
NONE = "no GPU to use"
MOST = 300  # letters of a reason in the table; its row has all of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, and what."""
    parser.add_argument("--seconds", type=float, default=600, help="time for all steps together (600)")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in pixels (224)")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="steps with one of these words")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each step as it ends, and at the end the table. Raises GateFailed where one failed."""
    steps = [step for step in STEPS if not arguments.only or any(word in step.name for word in arguments.only)]
    if not steps:
        raise SajiError(f"no step has these words; the steps are {', '.join(step.name for step in STEPS)}")
    outcomes = []
    reason = machine.no_gpu()
    with tempfile.TemporaryDirectory(prefix="saji-gpu-") as folder:
        end = time.monotonic() + arguments.seconds
        for step in steps:
            outcome = Outcome(step.name, "SKIP", NONE) if reason else _outcome(step, Path(folder), arguments, end)
            outcomes.append(outcome)
            if not reason:
                say(lines(outcome))
                yield outcome.row()
                _keep(Path(folder), arguments.rows)
    if reason:
        print(textwrap.fill(reason, WIDTH))
    print(table(outcomes))
    if failed := [outcome.step for outcome in outcomes if outcome.verdict == "FAIL"]:
        raise GateFailed(f"{len(failed)} of {len(outcomes)} steps failed: {', '.join(failed)}")


def _outcome(step: Step, folder: Path, arguments: argparse.Namespace, end: float) -> Outcome:
    left = end - time.monotonic()
    if left < 1:
        return Outcome(step.name, "SKIP", f"the {arguments.seconds:g} s are over; give it more with --seconds")
    say(f"{step.name}: {' '.join((step.check.__doc__ or '').split())}")
    return run(step, Place(folder, arguments.size, min(step.limit, left)))


def _keep(folder: Path, rows: Path | None) -> None:
    """Copy what the step keeps to a folder beside the rows; where that fails, the rows and the table stand."""
    if rows and (folder / KEPT).is_dir():
        try:
            shutil.copytree(folder / KEPT, rows.parent / "gpu", dirs_exist_ok=True)
        except OSError as error:
            say(f"what the inspectors said cannot be kept in {rows.parent / 'gpu'}: {error}")


def table(outcomes: Sequence[Outcome]) -> str:
    """All steps with verdict, seconds and reason, at most WIDTH columns wide."""
    counts = {verdict: sum(each.verdict == verdict for each in outcomes) for verdict in ("PASS", "FAIL", "SKIP")}
    end = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return "\n".join([f"{'':6}{'step':{NAMES}}{'s':>5}", *map(lines, outcomes), end])


def lines(outcome: Outcome) -> str:
    """The outcome's lines of the table."""
    head = f"{outcome.verdict:6}{outcome.step:{NAMES}}{outcome.seconds:5.0f}  "
    says = outcome.says if len(outcome.says) <= MOST else outcome.says[:MOST] + " …"
    return textwrap.fill(says, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
