"""TensorRT and TensorRT-RTX engines, one class with the module injected. Runs on a CUDA GPU only."""

import importlib
import json
import re
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.precision_check import Layer, check_precision
from runtime.backends.tensorrt_logger import collecting_logger
from runtime.backends.tensorrt_worker import Worker
from runtime.environment import machine
from runtime.errors import BadModel, SajiError, Unavailable, install_line

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def check_available(backend: str) -> None:
    """Raise Unavailable when the TensorRT flavour is not installed or there is no GPU."""
    try:
        importlib.import_module(_MODULES[backend])
    except (ImportError, OSError) as error:
        raise Unavailable(
            f"{_MODULES[backend]} cannot be imported ({str(error)[:80]}); install it with: {install_line(backend)}"
        ) from None
    from runtime.backends.cuda import require_gpu

    require_gpu()  # without one, deserialising can crash the process instead of failing


def open_engine(
    backend: str, path: Path, precision: str, variant: str, threads: int, facts: dict[str, Any], streams: int = 1
) -> "TensorRt":
    """Deserialise a plan, unless its `facts` already say that it was built for something else.

    Variant "CUDA graph" replays the kernels of a batch size as one graph instead of launching each.
    Only call this on a file whose sha256 is in its receipt: a plan is executable code.
    """
    from runtime.backends.cuda import compute_capability

    trt = importlib.import_module(_MODULES[backend])
    reason = mismatch(facts, trt.__name__, trt.__version__, compute_capability(), machine()["system"])
    if reason:
        raise Unavailable(f"{path.name} {reason}; build it here with: make export")
    return TensorRt(trt, path, precision, facts, graphs=variant == "CUDA graph")


def mismatch(facts: dict[str, Any], flavour: str, version: str, target: str, system: str) -> str | None:
    """Why an engine with these `facts` cannot run here, or None when nothing speaks against it.

    `target` is this GPU as "sm86". A plan is tied to the TensorRT that built it, the system and the architecture,
    except as asked for at its build: `version_compatible` plans run on every later minor version of their major,
    `hardware_compatible` ones on the GPUs from Ampere (sm80) on.
    """
    if not facts:
        return "has no facts in a receipt, so nobody knows what it was built for"
    there = f"{_TITLES[facts['flavour']]} {facts['version']} on {facts['system']}"
    built = f"was built for {', '.join(facts['targets']) or 'every GPU'} with {there}"
    here = f"this machine has {target} and {_TITLES[flavour]} {version} on {system}"
    same_version = facts["version"] == version
    if facts.get("version_compatible"):
        mine, built_by = _numbers(version), _numbers(facts["version"])
        same_version = mine[0] == built_by[0] and mine >= built_by
    same_gpu = not facts["targets"] or target in facts["targets"]
    if facts.get("hardware_compatible"):
        same_gpu = int(target.removeprefix("sm")) >= 80
    same = facts["flavour"] == flavour and facts["system"] == system and same_version and same_gpu
    return None if same else f"{built}, {here}"


_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


class TensorRt:
    """A deserialised engine with one execution context and stream per thread, with `graphs` also per batch size.

    Each call copies the photos to the GPU, runs, copies the logits back and waits for the stream; only what runs is in
    a graph, because copies from memory that is not pinned cannot be.
    """

    def __init__(self, trt: Any, path: Path, precision: str, facts: dict[str, Any], graphs: bool = False) -> None:
        self.trt, self.path, self.precision, self.facts, self.graphs = trt, path, precision, facts, graphs
        self.logger = collecting_logger(trt)
        self.runtime = trt.Runtime(self.logger)
        if facts.get("version_compatible"):  # such a plan brings its own runtime, which is code: see open_engine
            self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise BadModel(f"{path} was not built for {trt.__name__} {trt.__version__} and this GPU "
                           f"({self.logger.reason()}); build it here with: make export")  # fmt: skip
        self.largest = int(self.engine.get_tensor_profile_shape("images", 0)[2][0])
        self.classes = int(self.engine.get_tensor_shape("logits")[-1])
        # By thread and batch. A thread's number is given again once it has ended, and its worker with it
        self.workers: dict[tuple[int, int], Worker] = {}
        self.precision_share()

    def run(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 `[N, classes]` logits; more than the profile's batch goes in parts."""
        parts = [self._run(part) for part in self._parts(images)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def device_milliseconds(self, images: np.ndarray) -> float:
        """Milliseconds of photos uint8 `[N, H, W, 3]` RGB on the GPU, without the transfers there and back."""
        milliseconds = 0.0
        for part in self._parts(images):
            worker = self._fed(part)
            milliseconds += worker.timed(partial(self._execute, worker))
        return milliseconds

    def _parts(self, images: np.ndarray) -> list[np.ndarray]:
        images = np.ascontiguousarray(images)
        return [images[i : i + self.largest] for i in range(0, len(images), self.largest)]

    def _run(self, images: np.ndarray) -> np.ndarray:
        logits = np.empty((len(images), self.classes), np.float32)
        worker = self._fed(images)
        self._execute(worker)
        worker.download(logits)
        return logits

    def _fed(self, images: np.ndarray) -> Worker:
        worker = self._worker(images.shape)
        worker.context.set_input_shape("images", images.shape)
        worker.upload(images)
        return worker

    def _execute(self, worker: Worker) -> None:
        if not worker.execute():
            raise SajiError(f"{self.trt.__name__} could not run {self.path.name}: {self.logger.reason()}")

    def _worker(self, shape: tuple[int, ...]) -> Worker:
        batch = shape[0] if self.graphs else self.largest  # a captured graph holds on to its context's shape
        key = threading.get_ident(), batch
        if key not in self.workers:
            context = context_of(self.trt, self.engine, self.graphs)
            # TensorRT-RTX captures by itself, once its kernels for a shape are compiled; TensorRT is captured by us
            capture = self.graphs and not hasattr(self.trt, "CudaGraphStrategy")
            nbytes = batch * int(np.prod(shape[1:]))
            self.workers[key] = Worker(context, nbytes, 4 * batch * self.classes, capture)
        return self.workers[key]

    def precision_share(self) -> dict[str, float]:
        """Share of the work per number format, from the engine inspector; see `inspected`."""
        inspector = self.engine.create_engine_inspector()
        information = json.loads(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))
        layers = inspected(information, self.facts.get("multiply_adds", {}))
        return check_precision(layers, self.precision, f"{self.trt.__name__} on {self.path.name}", self.facts)

    def close(self) -> None:
        """Free the engine and the buffers of every thread that ran it, from any thread."""
        while self.workers:
            self.workers.popitem()[1].close()
        del self.engine, self.runtime


def context_of(trt: Any, engine: Any, graphs: bool) -> Any:
    """An execution context; TensorRT-RTX's is told to capture CUDA graphs when `graphs` asks for them."""
    if not (graphs and hasattr(trt, "CudaGraphStrategy")):
        return engine.create_execution_context()
    settings = engine.create_runtime_config()
    settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(settings)


def inspected(information: dict[str, Any], multiply_adds: dict[str, int]) -> list[Layer]:
    """The compute layers of an engine inspector's JSON, each with its input's format and its multiply-adds.

    `multiply_adds` is the ONNX file's table by node: an engine's layer does the work of every node that its name or
    metadata mentions. Where no layer mentions any, each convolution and matrix product counts as one.
    """
    found: list[Layer] = []
    for entry in information["Layers"]:
        if not isinstance(entry, dict):  # the plan tells names only
            continue
        text = f"{entry.get('Name', '')} {entry.get('Metadata', '')}"
        nodes = [node for node in multiply_adds if re.search(rf"(?<![\w.]){re.escape(node)}(?![\w.])", text)]
        kind = entry.get("LayerType", "").lower()
        if entry.get("Inputs") and (nodes or "conv" in kind or "gemm" in kind):
            datatype = str(entry["Inputs"][0].get("Format/Datatype", "")).lower()
            name = next((ours for theirs, ours in _FORMATS.items() if theirs in datatype), datatype or "unknown")
            found.append((entry.get("Name", ""), name, float(sum(multiply_adds[node] for node in nodes))))
    told = any(amount for _, _, amount in found)
    return [(name, kind, amount if told else 1.0) for name, kind, amount in found]


_FORMATS = {"fp16": "fp16", "half": "fp16", "int8": "int8", "bf16": "bf16", "fp32": "fp32", "float": "fp32"}
