"""The work that is compared, a function for each side; `lab.claims.comparison.in_process` runs one in its own process.

Some of these processes show how long a start takes: what `runtime.load` does not import itself is imported by the
function that needs it.
"""

import itertools
import json
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from runtime import preprocess
from runtime.backends import Backend
from runtime.candidate import Candidate
from runtime.classifier import Classifier
from runtime.environment import usable_cores
from runtime.errors import SajiError
from runtime.evaluation import ValidationSet
from runtime.receipt import Receipt
from runtime.spec import ModelSpec
from runtime.speed_ratio import percentile

SECONDS = 3.0  # of calls, after the warm-up
HARNESS_SECONDS, HARNESS_QUERIES = 5.0, 1024  # beside MLPerf's LoadGen, whose single stream asks for 1,024 queries


def engine(folder: str, candidate: str) -> dict[str, float]:
    """Calls a second of one candidate, one photo each, from pixels to logits; and its multiply-adds a second."""
    import onnx

    opened, images = _engine(folder, candidate), _images(folder)[:1]
    calls = rate(lambda: opened.run(images))
    metadata = {entry.key: entry.value for entry in onnx.load(Path(folder) / "model.onnx").metadata_props}
    multiply_adds = sum(json.loads(metadata["multiply_adds"]).values())
    return {"per_second": calls, "multiply_adds_per_second": calls * multiply_adds}


def for_any_number(folder: str, candidate: str) -> dict[str, float]:
    """As `engine`, of an OpenVINO candidate whose model is compiled for any number of photos alone."""
    opened, images = _engine(folder, candidate), _images(folder)[:1]
    compiled: list[Any] = opened.compiled  # type: ignore[attr-defined]
    compiled[0] = compiled[1]
    return {"per_second": rate(lambda: opened.run(images))}


def without_familiarity(folder: str, candidate: str) -> dict[str, float]:
    """As `engine`, of the candidate's ONNX file without its second output and all that computes it."""
    import onnx

    from export.graph import beside_logits

    chosen, images = _candidate(folder, candidate), _images(folder)[:1]
    model = onnx.load(Path(folder) / chosen.file)
    beside = beside_logits(model)
    kept = [node for node in model.graph.node if node.name not in beside]
    del model.graph.node[:], model.graph.output[1:]
    model.graph.node.extend(kept)
    with tempfile.TemporaryDirectory() as place:
        onnx.save(model, Path(place) / chosen.file)
        opened = chosen.open(Path(place))
    return {"per_second": rate(lambda: opened.run(images))}


def single_stream(folder: str, candidate: str) -> dict[str, float]:
    """The 90th percentile of one call after another over the validation photos, milliseconds: our own loop."""
    from runtime.benchmark.scenarios import settle, timed

    opened, images = _engine(folder, candidate), _images(folder)
    settle(lambda: opened.run(images[:1]))
    numbers = itertools.cycle(range(len(images)))

    def call() -> None:
        i = next(numbers)
        opened.run(images[i : i + 1])

    return {"p90_ms": percentile(timed(call, HARNESS_SECONDS, HARNESS_QUERIES), 90) or 0.0}


def loadgen(folder: str, candidate: str) -> dict[str, Any]:
    """The same, issued and timed by MLPerf's LoadGen (single stream, performance only), with its own verdict."""
    import mlperf_loadgen

    from runtime.benchmark.scenarios import settle

    opened, images = _engine(folder, candidate), _images(folder)
    settle(lambda: opened.run(images[:1]))

    def issue(queries: list[Any]) -> None:
        for query in queries:
            logits = opened.run(images[query.index : query.index + 1])
            response = mlperf_loadgen.QuerySampleResponse(query.id, logits.ctypes.data, logits.nbytes)
            mlperf_loadgen.QuerySamplesComplete([response])

    settings = mlperf_loadgen.TestSettings()
    settings.scenario, settings.mode = mlperf_loadgen.TestScenario.SingleStream, mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = int(1000 * HARNESS_SECONDS), HARNESS_QUERIES
    log = mlperf_loadgen.LogSettings()
    with tempfile.TemporaryDirectory() as logs:
        log.log_output.outdir = logs
        sut = mlperf_loadgen.ConstructSUT(issue, lambda: None)
        qsl = mlperf_loadgen.ConstructQSL(len(images), len(images), lambda _: None, lambda _: None)
        mlperf_loadgen.StartTestWithLogSettings(sut, qsl, settings, log)
        mlperf_loadgen.DestroyQSL(qsl)
        mlperf_loadgen.DestroySUT(sut)
        summary = (Path(logs) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    figures = {name.strip(): value.strip() for name, _, value in (row.partition(":") for row in summary.splitlines())}
    return {"p90_ms": float(figures["90.00 percentile latency (ns)"]) / 1e6, "result": figures["Result is"]}


TRTEXEC = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}


def trtexec(folder: str, candidate: str) -> dict[str, float]:
    """The same engine by NVIDIA's own tool: host to host, transfers included as in `engine`, but from pinned memory."""
    chosen, size = _candidate(folder, candidate), _spec(folder).geometry.size
    command = [TRTEXEC[chosen.backend], f"--loadEngine={Path(folder) / chosen.file}"]
    command += [f"--shapes=images:1x{size}x{size}x3", f"--duration={SECONDS:g}"]
    if chosen.variant == "CUDA graph":
        rtx = chosen.backend == "tensorrt-rtx"  # which captures graphs by itself
        command.append("--rtxCudaGraphStrategy=wholeGraph" if rtx else "--useCudaGraph")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip() and not line.startswith("&&&&")]
        raise SajiError(f"{command[0]} refuses: {(lines or ['it says nothing'])[-1]}")
    return {"per_second": 1000 / latency_median(done.stdout)}


def latency_median(text: str) -> float:
    """The median of trtexec's "Latency" in milliseconds: transfer in, compute and transfer out."""
    latency = re.search(r"\bLatency: .*?median = ([\d.]+) ms", text)
    if not latency:
        raise SajiError("trtexec printed no median latency; run it by hand to see why")
    return float(latency[1])


def int8_peak() -> dict[str, float]:
    """Multiply-adds a second of the fastest INT8 matrix product we have: ONNX Runtime's, 1024 to 2048 square."""
    import onnxruntime
    from onnx import TensorProto, helper

    rates = []
    for side in (1024, 1536, 2048):
        ones = np.ones((side, side), np.uint8)
        a = helper.make_tensor_value_info("a", TensorProto.UINT8, [side, side])
        c = helper.make_tensor_value_info("c", TensorProto.INT32, [side, side])
        b = helper.make_tensor("b", TensorProto.INT8, [side, side], ones.tobytes(), raw=True)
        graph = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["c"])], "product", [a], [c], [b])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        rates.append(side**3 * rate(partial(session.run, None, {"a": ones})))
    return {"multiply_adds_per_second": max(rates)}


def photo(folder: str, candidate: str, path: str, whole: bool = False) -> dict[str, float]:
    """Photos a second through `runtime`, one after another, from encoded bytes to the label.

    `whole`: JPEGs are decoded in full size, not at the scale that the network needs.
    """
    encoded = Path(path).read_bytes()
    with _classifier(folder, candidate) as classifier:
        if whole:
            classifier.spec = replace(classifier.spec, geometry=replace(classifier.spec.geometry, decode="full"))
        return {"per_second": rate(lambda: classifier(encoded).label)}


def torchvision_photo(folder: str, path: str) -> dict[str, float]:
    """The same as torchvision's documentation has it: `decode_image`, v2 transforms, eager PyTorch, channels-last."""
    import torch
    from torchvision.io import decode_image

    module, transform, classes = eager(folder)
    encoded = Path(path).read_bytes()

    def label() -> str:
        pixels = transform(decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode="RGB"))
        with torch.inference_mode():
            return classes[int(module(pixels.permute(1, 2, 0)[None]).argmax())]

    return {"per_second": rate(label)}


def resizing(folder: str, path: str, crop_first: bool) -> dict[str, float]:
    """Decoded photos a second that get the network's size: only what the crop keeps is resized, or all of it."""
    geometry = _spec(folder).geometry
    picture = preprocess.decode_for(path, geometry)

    def everything() -> np.ndarray:
        shorter = min(picture.size)
        width, height = (geometry.resize * side // shorter for side in picture.size)
        resized = picture.resize((width, height), preprocess.FILTERS[geometry.interpolation])
        left, top = round((width - geometry.size) / 2), round((height - geometry.size) / 2)
        return np.asarray(resized.crop((left, top, left + geometry.size, top + geometry.size)))

    return {"per_second": rate(partial(preprocess.fit, picture, geometry) if crop_first else everything)}


def first_label(deployment: str, path: str) -> dict[str, float]:
    """Peak memory up to the first label of the deployed choice; the process's time is the cold start."""
    with runtime.load(deployment) as classifier:
        classifier(path)
        return _memory()


def first_label_of_checkpoint(checkpoint: str, path: str) -> dict[str, float]:
    """The same by PyTorch: import, checkpoint, first label."""
    import torch

    from training.network.classifier import load_checkpoint

    torch.set_grad_enabled(False)
    model, spec = load_checkpoint(Path(checkpoint))
    images = torch.from_numpy(preprocess.pixels(path, spec.geometry).copy())[None]
    _ = spec.classes[int(model(images).argmax())]
    return _memory()


def photos_of_folder(folder: str, candidate: str, photos: str, core_each: bool = True) -> dict[str, float]:
    """Photos a second of a folder as `python -m runtime classify` takes them: a core each, from file to label.

    Without `core_each` they come one after another, and each has all cores.
    """
    from runtime.classify import Photos, answers

    cores = {"threads": 1, "streams": usable_cores()} if core_each else {}
    with _classifier(folder, candidate, **cores) as classifier:
        classifier(Path(folder) / "golden.png")
        paths, started = Photos([photos], print), time.perf_counter()
        number = sum(1 for _ in (answers(classifier, paths) if core_each else map(classifier, paths)))
        return {"per_second": number / (time.perf_counter() - started), **_memory()}


def dataloader(folder: str, photos: str) -> dict[str, float]:
    """Photos a second of a folder through a DataLoader with a worker per core and eager PyTorch, 32 at a time."""
    import torch
    from torchvision.io import decode_image

    module, transform, classes = eager(folder)
    paths = sorted(Path(photos).iterdir())

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> torch.Tensor:
            return transform(decode_image(str(paths[i]), mode="RGB")).permute(1, 2, 0)

    started, labels = time.perf_counter(), []
    for batch in torch.utils.data.DataLoader(Photos(), 32, num_workers=usable_cores()):
        with torch.inference_mode():
            labels += [classes[i] for i in module(batch).argmax(1).tolist()]
    return {"per_second": len(labels) / (time.perf_counter() - started), **_memory()}


def rate(call: Callable[[], object]) -> float:
    """Calls a second by the median, over SECONDS, once they have settled."""
    from runtime.benchmark.scenarios import settle, timed

    settle(call)
    return 1000 / statistics.median(timed(call, SECONDS))


def _spec(folder: str) -> ModelSpec:
    return Receipt.read(Path(folder)).spec


def _candidate(folder: str, name: str) -> Candidate:
    return next(c for c in Receipt.read(Path(folder)).candidates if c.name == name)


def _engine(folder: str, candidate: str) -> Backend:
    return _candidate(folder, candidate).open(Path(folder))


def _classifier(folder: str, candidate: str, threads: int = 0, streams: int = 1) -> Classifier:
    chosen = _candidate(folder, candidate)
    return Classifier(_spec(folder), chosen.open(Path(folder), threads, streams), chosen)


def _images(folder: str) -> np.ndarray:
    """The validation photos, uint8 `[N, S, S, 3]`."""
    return ValidationSet.load(Path(folder) / "validation.npz").images


def eager(folder: str) -> tuple[Any, Any, tuple[str, ...]]:
    """The exported program as an eager module, torchvision's v2 transforms for its geometry, its classes."""
    import torch
    from torchvision.transforms import v2

    spec = _spec(folder)
    module = torch.export.load(Path(folder) / "model.pt2").module().to(memory_format=torch.channels_last)
    transform = v2.Compose([v2.Resize(spec.geometry.resize, antialias=True), v2.CenterCrop(spec.geometry.size)])
    return module, transform, spec.classes


def _memory() -> dict[str, float]:
    from runtime.benchmark.watch import peak_memory_mib

    return {"peak_memory_mib": peak_memory_mib() or 0.0}
