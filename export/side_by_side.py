"""Checkpoints exported side by side, each in a process of its own, for most of an export is Python on one core."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from export.settings import Settings
from runtime import command_line
from runtime.errors import SajiError
from runtime.machine import cgroup_limits, gpu_name, usable_cores
from runtime.receipt import Receipt

MEMORY_GIB = 4.0  # for each export, twice what ResNet-34 takes (python -m lab export-cost)

Say = Callable[[str], None]

_lines: Any = None  # in a process of the pool: where what it says goes


def exported(runs: Sequence[Path], out: Path, settings: Settings, say: Say) -> Iterator[Receipt]:
    """The receipts of folders with checkpoint.pt, in their order, each as soon as it and those before it are made.

    `say` is called with a line for each file that is written or checked. Raises as `export.model.write_model` does.
    """
    at_once = min(len(runs), places())
    if at_once < 2:
        yield from (_write(run, out, settings, say) for run in runs)
        return
    with _pool(at_once, say) as pool:
        try:
            yield from pool.map(partial(_work, out=out, settings=settings), runs)
        except BrokenProcessPool:
            reason = "the system ended an export, most likely for memory"
            raise SajiError(f"{reason}; export one network at a time with --archs NAME") from None


def places() -> int:
    """How many exports this machine bears at a time; beside a GPU one, for TensorRT chooses by what it times."""
    free = psutil.virtual_memory().available / 2**30
    memory = min(free, cgroup_limits()[1] or free)
    return 1 if gpu_name() else max(1, min(usable_cores(), int(memory / MEMORY_GIB)))


def _write(run: Path, out: Path, settings: Settings, say: Say) -> Receipt:
    from export.model import Checkpoint, write_model

    return write_model(Checkpoint(run), out / "models" / run.name, settings, say, out / "cache")


@contextlib.contextmanager
def _pool(at_once: int, say: Say) -> Iterator[Executor]:
    context = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
    lines = context.SimpleQueue()

    def relay() -> None:
        while line := lines.get():
            say(line)

    thread = threading.Thread(target=relay, daemon=True)
    pool = ProcessPoolExecutor(at_once, context, _begin, (lines, max(1, usable_cores() // at_once)))
    thread.start()
    try:
        yield pool
    except KeyboardInterrupt:  # it may have come to this process alone
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        lines.put("")
        thread.join()


def _begin(lines: Any, threads: int) -> None:
    global _lines
    _lines = lines
    command_line.stop_by_signals()
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    import torch

    torch.set_num_threads(threads)


def _end_with_the_command() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _work(run: Path, out: Path, settings: Settings) -> Receipt:
    return _write(run, out, settings, _lines.put)
