"""Engines on this GPU: built, read back, held against the network, timed beside PyTorch and NVIDIA's own tool."""

import contextlib
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lab.gpu_check.models import keep_receipt, model_folder
from lab.gpu_check.step import Place
from runtime.backends import Backend
from runtime.backends.base import require_finite, temporary_cause
from runtime.benchmark.rows import Row
from runtime.candidate import Candidate, check_candidate
from runtime.errors import SajiError, Unavailable
from runtime.evaluation import ValidationSet
from runtime.receipt import Receipt
from runtime.terminal import say

BATCHES = (1, 32)
MEASURED_SECONDS = 30.0  # of all candidates of one network together
CALLS = 100  # on the device, with and without a graph


def tensorrt(place: Place) -> Iterator[Row]:
    """Are FP16 and INT8 engines of plain34 by TensorRT built, in the precision asked for, and right?"""
    yield from _built("tensorrt", "plain34", place, require=True)


def tensorrt_rtx(place: Place) -> Iterator[Row]:
    """Are FP16 and INT8 engines of plain34 by TensorRT-RTX built, in the precision asked for, and right?"""
    yield from _built("tensorrt-rtx", "plain34", place, require=True)


def latency_of_plain34(place: Place) -> Iterator[Row]:
    """How long do 1 and 32 photos take plain34's engines, and PyTorch on the same GPU?"""
    yield from _latency("plain34", place)


def latency_of_resnet34(place: Place) -> Iterator[Row]:
    """How long do 1 and 32 photos take resnet34's engines, and PyTorch on the same GPU?"""
    yield from _latency("resnet34", place)


def latency_of_se_resnet34(place: Place) -> Iterator[Row]:
    """How long do 1 and 32 photos take se_resnet34's engines, and PyTorch on the same GPU?"""
    yield from _latency("se_resnet34", place)


def _built(backend: str, architecture: str, place: Place, require: bool = False) -> Iterator[Row]:
    """Build what is missing of a flavour's engines, keep what the inspector says, check them; a row for each thing.

    Without `require` a flavour that is not installed yields nothing.
    """
    from export.engine import SOURCES, build_engine, module_for, targets_of
    from export.settings import Settings
    from runtime.backends import cuda

    try:
        trt = module_for(backend)
        targets, here = targets_of(trt, Settings()), cuda.compute_capability()
        if targets and here not in targets:
            raise Unavailable(f"{backend} builds for {', '.join(targets)}, and this GPU is {here}")
    except Unavailable:
        if require:
            raise
        return
    folder = model_folder(place.folder, architecture, place.size)
    known = {candidate.file for candidate in Receipt.read(folder).candidates if candidate.facts.flavour}
    for precision, source in SOURCES.items():
        file, started = f"engines/{backend}.{precision}.engine", time.perf_counter()
        about = {"architecture": architecture, "file": file, "image_size": place.size}
        if file in known and (folder / file).is_file():
            continue
        if not (folder / source).is_file():
            yield {**about, "lacks": f"no {precision}, which needs NNCF"}
            continue
        say(f"building {file} of {architecture}")
        try:
            built = build_engine(trt, folder / source, folder / file, precision, Settings())
        except SajiError as error:
            yield {**about, "wrong": f"{precision}: {error}"}
            continue
        # At once: the process may not outlive the inspector
        keep_receipt(Receipt.read(folder), folder, {file: built.facts()}, [])
        seconds = round(time.perf_counter() - started, 1)
        facts = {"flavour": built.flavour, "version": built.version, "targets": built.targets}
        yield {**about, **facts, "bytes": (folder / file).stat().st_size, "build_seconds": seconds}
        try:
            yield {**about, "inspector": _inspector(trt, folder / file, f"{architecture}-{precision}", place)}
        except Exception as error:  # whatever the library raises: the engine may be right all the same
            yield {**about, "wrong": f"its inspector fails: {error!r}"}
        yield from _checked(folder, partial(_runs, file), required=True)


def _runs(file: str, candidate: Candidate) -> bool:
    return candidate.file == file


def _inspector(trt: Any, plan: Path, about: str, place: Place) -> list[str]:
    """Keep what the inspector says, without and with a context that has a shape; the names of the files.

    The engine is opened past the product, which closes one that is not as asked: what that says matters most.
    """
    from runtime.backends.tensorrt.logger import collecting_logger
    from runtime.machine import machine

    logger = collecting_logger(trt)
    runtime = trt.Runtime(logger)
    engine, names = runtime.deserialize_cuda_engine(plan.read_bytes()), list[str]()
    if engine is None:
        raise SajiError(f"{plan.name} cannot be opened where it was built: {logger.reason()}")
    context = engine.create_execution_context()
    for given in (None, context):
        inspector = engine.create_engine_inspector()
        if given is not None:
            given.set_input_shape("images", (1, place.size, place.size, 3))
            inspector.execution_context = given
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        where = re.sub(r"\W+", "-", f"{machine().gpu}-{trt.__name__}-{trt.__version__}-{about}")
        name = f"INSPECTOR-{where}{'' if given is None else '-context'}.json"
        names.append(place.keep(name, text))
    return names


def _checked(folder: Path, wanted: Callable[[Candidate], bool], required: bool = False) -> Iterator[Row]:
    """This machine's verdict on the GPU's candidates that are wanted and have none; kept in the receipt.

    `required` as in `_verdict`.
    """
    receipt = Receipt.read(folder)
    validation, checked = ValidationSet.load(folder / "validation.npz"), list[Candidate]()
    for candidate in receipt.candidates:
        if not wanted(candidate) or candidate.verdict != "unchecked":
            continue
        try:
            candidate = check_candidate(candidate, folder, validation, receipt.spec)
        except Exception as error:  # what the product does not expect costs this candidate only
            candidate = replace(candidate, verdict="fail", reasons=(f"{type(error).__name__}: {error}",))
        checked.append(candidate)
        say(f"{candidate.name}: {candidate.verdict}")
        yield _verdict(candidate, required)
    keep_receipt(receipt, folder, {}, checked)


def _verdict(candidate: Candidate, required: bool) -> Row:
    """A candidate that could not be opened is wrong where that was `required`, or may do so on this machine yet."""
    figures = candidate.figures
    row: Row = {
        "candidate": candidate.name,
        "verdict_of_gate": candidate.verdict,
        "reasons": candidate.reasons,
        "computed_in": candidate.precision_share,
        "shift": figures.shift if figures else None,
        "worst_shift": figures.worst_shift if figures else None,
    }
    short = " · ".join(part for part in (candidate.precision, candidate.variant) if part)
    reasons = "; ".join(candidate.reasons)
    if candidate.verdict == "pass":
        return {**row, "says": f"{short} passes" + (f", shift {figures.shift:.2g}" if figures else "")}
    if candidate.verdict == "unchecked" and not required and not temporary_cause(reasons):
        return {**row, "lacks": reasons}
    return {**row, "wrong": f"{candidate.name}: {reasons}"}


def _latency(architecture: str, place: Place) -> Iterator[Row]:
    """The rows of a benchmark, by the product's own rounds and processes, and what its tool says of each engine."""
    from runtime.benchmark.contestant import Contestant, run_rounds
    from runtime.benchmark.rows import rows_of

    folder = model_folder(place.folder, architecture, place.size)
    for backend in ("tensorrt", "tensorrt-rtx"):
        yield from _built(backend, architecture, place)
    # Compiling takes a minute, and once is enough to see how it does
    yield from _checked(folder, lambda candidate: candidate.variant != "compiled" or architecture == "plain34")
    receipt = Receipt.read(folder)
    contestants = [Contestant(candidate, folder) for candidate in receipt.candidates if candidate.verdict == "pass"]
    if not contestants:
        reasons = "; ".join(sorted({reason for c in receipt.candidates for reason in c.reasons}))
        raise Unavailable(f"no candidate passed on this GPU: {reasons}")
    try:
        loads = [("single-stream", batch) for batch in BATCHES]
        measured = run_rounds(contestants, loads, min(MEASURED_SECONDS, place.seconds / 3), 0, say)
        rows = [row for each in measured for row in rows_of(each, receipt, "gpu check", MEASURED_SECONDS)]
        lost = [{"candidate": c.name, "wrong": f"{c.name}: {c.left_out}"} for c in contestants if c.left_out]
    finally:
        for contestant in contestants:
            contestant.close()
    for row in rows:
        yield {name: value for name, value in row.items() if name not in ("samples", "versions")}
    yield from lost
    if rows:
        yield {"says": "; ".join(_ratio(rows, batch) for batch in BATCHES)}
    yield from _by_nvidias_tool(folder, receipt, place)


def _ratio(rows: list[Row], batch: int) -> str:
    """The fastest engine at a batch size, and how many times as fast as each way of PyTorch it is."""
    of_batch = [row for row in rows if row["batch"] == batch]
    theirs = {row["precision"]: row for row in of_batch if row["backend"] == "pytorch-cuda" and not row["variant"]}
    best = min(of_batch, key=lambda row: float(row["milliseconds"]))
    short = best["candidate"].partition(" · ")[2]
    against = [f"{row['milliseconds'] / best['milliseconds']:.1f}× PyTorch {name}" for name, row in theirs.items()]
    return f"b{batch}: {best['milliseconds']:.2f} ms {short}{', ' if against else ''}{', '.join(against)}"


def _by_nvidias_tool(folder: Path, receipt: Receipt, place: Place) -> Iterator[Row]:
    """Each engine's time for one photo by trtexec or tensorrt_rtx, where that is on the PATH."""
    from lab.claims.workloads import TRTEXEC, trtexec

    for candidate in receipt.candidates:
        tool = TRTEXEC.get(candidate.backend, "")
        if candidate.verdict == "pass" and tool and shutil.which(tool):
            say(f"{candidate.name} by {tool}")
            row: Row = {"candidate": candidate.name, "tool": tool, "batch": 1}
            try:
                yield {**row, "milliseconds": round(1000 / trtexec(str(folder), candidate.name)["per_second"], 4)}
            except (SajiError, OSError) as error:  # such as one of another TensorRT
                yield {**row, "lacks": str(error)}


def cuda_graphs(place: Place) -> Iterator[Row]:
    """Does an engine give the same answers with a CUDA graph as without, for batches by turns, and how fast is each?"""
    folder = model_folder(place.folder, "plain34", place.size)
    yield from _checked(folder, _is_engine, required=True)
    images = ValidationSet.load(folder / "validation.npz").images
    built = [candidate for candidate in Receipt.read(folder).candidates if _is_engine(candidate)]
    if not built:
        raise Unavailable("no engine was built yet; build them with: --only tensorrt graphs")
    by_file: dict[str, list[Candidate]] = {}
    for candidate in built:
        if candidate.verdict == "pass":
            by_file.setdefault(candidate.file, []).append(candidate)
    pairs = [each for each in by_file.values() if len(each) == 2]
    if not pairs:
        raise Unavailable("no engine passed with and without a CUDA graph")
    for pair in pairs:
        try:
            yield _with_graph(pair, folder, images)
        except SajiError as error:
            yield {"file": pair[0].file, "wrong": str(error)}


def _is_engine(candidate: Candidate) -> bool:
    return candidate.file.endswith(".engine")


def _with_graph(pair: list[Candidate], folder: Path, images: np.ndarray) -> Row:
    """An engine without a CUDA graph and with one, side by side. Raises SajiError."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(contextlib.closing(candidate.open(folder))) for candidate in pair]
        plain, graph = (np.concatenate([engine.run(images[part]) for part in _parts()]) for engine in opened)
        for answers, candidate in zip((plain, graph), pair, strict=True):
            require_finite(answers, candidate.name)
        times = [_on_device(engine, images) for engine in opened]
    largest = float(np.abs(plain - graph).max())
    row: Row = {"file": pair[0].file, "identical": np.array_equal(plain, graph), "largest_difference": largest}
    row |= {"device_milliseconds": times[0], "device_milliseconds_with_graph": times[1]}
    row["says"] = f"{pair[0].backend} {pair[0].precision}: {times[0]:.3f} ms, with graph {times[1]:.3f}"
    if not largest <= 0.1 * float(np.ptp(plain, axis=0).max()):  # of what tells photos apart, which is little here
        row["wrong"] = f"{pair[0].file} answers otherwise with a graph, by up to {largest:.3g}"
    return row


def _parts() -> list[slice]:
    """Parts of the photos, of sizes by turns: a graph that is replayed must see the new photos and their number."""
    return [slice(0, 1), slice(1, 2), slice(0, 32), slice(2, 4), slice(4, 36), slice(4, 5)]


def _on_device(engine: Backend, images: np.ndarray) -> float:
    """The median of milliseconds on the GPU for one photo."""
    times = [engine.device_milliseconds(images[:1]) for _ in range(CALLS)]  # type: ignore[attr-defined]
    return round(statistics.median(times), 4)


def ort_cuda_without_torch(place: Place) -> Iterator[Row]:
    """Does ONNX Runtime find CUDA in a process without PyTorch, as served there, and is it right?"""
    import subprocess

    from lab.claims.comparison import in_process
    from runtime.backends import unavailable_because

    if reason := unavailable_because("ort-cuda"):
        raise Unavailable(reason)
    write = in_process(write_folder, str(place.folder), "plain34", place.size)
    subprocess.run([sys.executable, *write], check=True)  # that takes PyTorch
    if "torch" in sys.modules:
        raise RuntimeError("PyTorch was imported already, so that nothing is known")
    sys.modules["torch"] = None  # type: ignore[assignment]  # whoever imports it now fails
    folder = place.folder / "models" / "plain34"
    receipt, validation = Receipt.read(folder), ValidationSet.load(folder / "validation.npz")
    for candidate in receipt.candidates:
        if candidate.backend == "ort-cuda":
            yield _verdict(check_candidate(candidate, folder, validation, receipt.spec), required=True)


def write_folder(out: str, architecture: str, size: int) -> str:
    """Write a model folder where there is none; its path."""
    return str(model_folder(Path(out), architecture, size))
