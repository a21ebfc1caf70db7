"""One side of a comparison in a process of its own: `python -m lab.claims.loops NAME ARGUMENT…`.

The last line of stdout is JSON, for `lab.claims.ratio`. Heavy libraries are imported by the loop that needs
them, because two loops are about how long a start takes.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from runtime.errors import SajiError

SECONDS = 3.0  # of calls, after the warm-up
HARNESS_SECONDS, HARNESS_QUERIES = 5.0, 1024  # beside MLPerf's LoadGen, whose single stream asks for 1,024 queries


def engine(folder: str, candidate: str) -> dict[str, float]:
    """Calls a second of one candidate, one photo each, from pixels to logits; and its multiply-adds a second."""
    import onnx

    from runtime.evaluation import ValidationSet

    images = ValidationSet.load(Path(folder) / "validation.npz").images[:1]
    opened = _candidate(folder, candidate).open(Path(folder))
    calls = rate(lambda: opened.run(images))
    metadata = {entry.key: entry.value for entry in onnx.load(Path(folder) / "model.onnx").metadata_props}
    multiply_adds = sum(json.loads(metadata["multiply_adds"]).values())
    return {"per_second": calls, "multiply_adds_per_second": calls * multiply_adds}


def single_stream(folder: str, candidate: str) -> dict[str, float]:
    """The 90th percentile of one call after another over the validation photos, milliseconds: our own loop."""
    import itertools

    from runtime.benchmark.scenarios import settle, timed
    from runtime.comparison import percentile
    from runtime.evaluation import ValidationSet

    images = ValidationSet.load(Path(folder) / "validation.npz").images
    opened = _candidate(folder, candidate).open(Path(folder))
    settle(lambda: opened.run(images[:1]))
    turns = itertools.cycle(range(len(images)))

    def call() -> None:
        i = next(turns)
        opened.run(images[i : i + 1])

    return {"p90_ms": percentile(timed(call, HARNESS_SECONDS, HARNESS_QUERIES), 90) or 0.0}


def loadgen(folder: str, candidate: str) -> dict[str, Any]:
    """The same, issued and timed by MLPerf's LoadGen (single stream, performance only), with its own verdict."""
    import tempfile

    import mlperf_loadgen

    from runtime.benchmark.scenarios import settle
    from runtime.evaluation import ValidationSet

    images = ValidationSet.load(Path(folder) / "validation.npz").images
    opened = _candidate(folder, candidate).open(Path(folder))
    settle(lambda: opened.run(images[:1]))

    def issue(queries: list[Any]) -> None:
        for query in queries:
            logits = opened.run(images[query.index : query.index + 1])
            answer = mlperf_loadgen.QuerySampleResponse(query.id, logits.ctypes.data, logits.nbytes)
            mlperf_loadgen.QuerySamplesComplete([answer])

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
    told = {name.strip(): value.strip() for name, _, value in (row.partition(":") for row in summary.splitlines())}
    return {"p90_ms": float(told["90.00 percentile latency (ns)"]) / 1e6, "result": told["Result is"]}


TRTEXEC = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}


def trtexec(folder: str, candidate: str) -> dict[str, float]:
    """The same engine by NVIDIA's own tool: host to host, transfers included as in `engine`, but from pinned memory."""
    import subprocess

    from runtime.receipt import Receipt

    chosen, size = _candidate(folder, candidate), Receipt.read(Path(folder)).spec.geometry.size
    command = [TRTEXEC[chosen.backend], f"--loadEngine={Path(folder) / chosen.file}"]
    command += [f"--shapes=images:1x{size}x{size}x3", f"--duration={SECONDS:g}"]
    command += ["--useCudaGraph"] if chosen.variant == "CUDA graph" else []
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"per_second": 1000 / latency_median(said)}


def latency_median(text: str) -> float:
    """The median of trtexec's "Latency" in milliseconds: transfer in, compute and transfer out."""
    import re

    found = re.search(r"\bLatency: .*?median = ([\d.]+) ms", text)
    if not found:
        raise SajiError("trtexec printed no median latency; run it by hand to see why")
    return float(found[1])


def int8_peak() -> dict[str, float]:
    """Multiply-adds a second of the fastest INT8 matrix product we have: ONNX Runtime's, 1024 to 2048 square."""
    import numpy as np
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


def photo(folder: str, candidate: str, path: str) -> dict[str, float]:
    """Photos a second through `runtime`, one after another, from encoded bytes to the label."""
    from runtime.classifier import Classifier
    from runtime.receipt import Receipt

    chosen, encoded = _candidate(folder, candidate), Path(path).read_bytes()
    with Classifier(Receipt.read(Path(folder)).spec, chosen.open(Path(folder)), chosen) as classifier:
        return {"per_second": rate(lambda: classifier(encoded).label)}


def torchvision_photo(folder: str, path: str) -> dict[str, float]:
    """The same as torchvision's documentation has it: `decode_image`, v2 transforms, eager PyTorch, channels-last."""
    import torch
    from torchvision.io import decode_image

    module, transform, classes = _eager(folder)
    encoded = Path(path).read_bytes()

    def label() -> str:
        pixels = transform(decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode="RGB"))
        with torch.inference_mode():
            return classes[int(module(pixels.permute(1, 2, 0)[None]).argmax())]

    return {"per_second": rate(label)}


def first_label(deployment: str, path: str) -> dict[str, float]:
    """Peak memory up to the first label of the deployed choice; the process's time is the cold start."""
    import runtime

    with runtime.load(deployment) as classifier:
        classifier(path)
        return _memory()


def folder(folder: str, candidate: str, photos: str) -> dict[str, float]:
    """Photos a second of a folder as `python -m runtime classify` takes them: a core each, from file to label."""
    from runtime.classifier import Classifier
    from runtime.classify import Photos, answers
    from runtime.environment import usable_cores
    from runtime.receipt import Receipt

    chosen, spec = _candidate(folder, candidate), Receipt.read(Path(folder)).spec
    with Classifier(spec, chosen.open(Path(folder), 1, usable_cores()), chosen) as classifier:
        classifier(Path(folder) / "golden.png")
        started = time.perf_counter()
        found = sum(1 for _ in answers(classifier, Photos([photos], print)))
        return {"per_second": found / (time.perf_counter() - started), **_memory()}


def dataloader(folder: str, photos: str) -> dict[str, float]:
    """Photos a second of a folder through a DataLoader with a worker per core and eager PyTorch, 32 at a time."""
    import torch
    from torchvision.io import decode_image

    from runtime.environment import usable_cores

    module, transform, classes = _eager(folder)
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


def _candidate(folder: str, name: str) -> Any:
    from runtime.receipt import Receipt

    return next(c for c in Receipt.read(Path(folder)).candidates if c.name == name)


def _eager(folder: str) -> tuple[Any, Any, tuple[str, ...]]:
    """The exported program as an eager module, torchvision's v2 transforms for its geometry, its classes."""
    import torch
    from torchvision.transforms import v2

    from runtime.receipt import Receipt

    spec = Receipt.read(Path(folder)).spec
    module = torch.export.load(Path(folder) / "model.pt2").module().to(memory_format=torch.channels_last)
    transform = v2.Compose([v2.Resize(spec.geometry.resize, antialias=True), v2.CenterCrop(spec.geometry.size)])
    return module, transform, spec.classes


def rate(call: Callable[[], object]) -> float:
    """Calls a second by the median, over SECONDS, once they have settled."""
    from runtime.benchmark.scenarios import settle, timed

    settle(call)
    return 1000 / statistics.median(timed(call, SECONDS))


def _memory() -> dict[str, float]:
    from runtime.benchmark.watch import peak_memory_mib

    return {"peak_memory_mib": peak_memory_mib() or 0.0}


LOOPS: dict[str, Callable[..., dict[str, float]]] = {
    loop.__name__: loop
    for loop in (
        engine,
        single_stream,
        loadgen,
        trtexec,
        int8_peak,
        photo,
        torchvision_photo,
        first_label,
        folder,
        dataloader,
    )
}

if __name__ == "__main__":
    print(json.dumps(LOOPS[sys.argv[1]](*sys.argv[2:])))
