"""TensorRT and TensorRT-RTX engines, one class with the module injected. Runs on a CUDA GPU only."""

import gc
import importlib
import json
import re
import threading
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from runtime.backends import cuda
from runtime.backends.base import Backend, BuildFacts, Layer
from runtime.errors import BadModel, SajiError, Unavailable, install_line
from runtime.machine import machine

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_FORMATS = {"fp16": "fp16", "half": "fp16", "int8": "int8", "bf16": "bf16", "fp32": "fp32", "float": "fp32"}


class Worker:
    """One thread's execution context, stream and device buffers; with `capture`, the graph of one batch size."""

    def __init__(self, context: Any, input_bytes: int, output_bytes: int, capture: bool) -> None:
        from cuda.bindings import runtime as cuda

        self.cuda, self.context, self.capture = cuda, context, capture
        self.graph: Any = None
        self.stream = self._check(cuda.cudaStreamCreate())
        self.images, self.logits = self._check(cuda.cudaMalloc(input_bytes)), self._check(cuda.cudaMalloc(output_bytes))
        self.context.set_tensor_address("images", self.images)
        self.context.set_tensor_address("logits", self.logits)

    def upload(self, images: np.ndarray) -> None:
        """Copy photos to the GPU, on the stream."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self.cuda.cudaMemcpyAsync(self.images, images.ctypes.data, images.nbytes, kind, self.stream))

    def execute(self) -> bool:
        """Run what was uploaded, on the stream; False when TensorRT refuses."""
        if self.graph is not None:
            self._check(self.cuda.cudaGraphLaunch(self.graph, self.stream))
            return True
        done = bool(self.context.execute_async_v3(self.stream))
        if done and self.capture:  # only now: the first call of a shape allocates, which a capture must not
            self.graph = self._captured()
        return done

    def timed(self, work: Callable[[], None]) -> float:
        """Milliseconds on the stream from before to after what `work` puts there, by two CUDA events; waits for it."""
        cuda = self.cuda
        began, ended = self._check(cuda.cudaEventCreate()), self._check(cuda.cudaEventCreate())
        try:
            self._check(cuda.cudaEventRecord(began, self.stream))
            work()
            self._check(cuda.cudaEventRecord(ended, self.stream))
            self._check(cuda.cudaEventSynchronize(ended))
            return float(self._check(cuda.cudaEventElapsedTime(began, ended)))
        finally:
            cuda.cudaEventDestroy(began)
            cuda.cudaEventDestroy(ended)

    def _captured(self) -> Any:
        cuda = self.cuda
        self._check(cuda.cudaStreamSynchronize(self.stream))
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(cuda.cudaStreamBeginCapture(self.stream, mode))
        self.context.execute_async_v3(self.stream)
        graph = self._check(cuda.cudaStreamEndCapture(self.stream))
        executable = self._check(cuda.cudaGraphInstantiate(graph, 0))
        self._check(cuda.cudaGraphDestroy(graph))
        return executable

    def download(self, logits: np.ndarray) -> None:
        """Copy the answers back and wait for the stream."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self.cuda.cudaMemcpyAsync(logits.ctypes.data, self.logits, logits.nbytes, kind, self.stream))
        self._check(self.cuda.cudaStreamSynchronize(self.stream))

    def _check(self, result: tuple) -> Any:
        if result[0] != self.cuda.cudaError_t.cudaSuccess:
            raise SajiError(f"the GPU reports {result[0].name}; check it with: nvidia-smi")
        return result[1] if len(result) > 1 else None

    def close(self) -> None:
        """Free graph, buffers and stream."""
        self.cuda.cudaStreamSynchronize(self.stream)
        if self.graph is not None:
            self.cuda.cudaGraphExecDestroy(self.graph)
        self.cuda.cudaFree(self.images)
        self.cuda.cudaFree(self.logits)
        self.cuda.cudaStreamDestroy(self.stream)


class TensorRt(Backend):
    """A deserialised engine with one execution context and stream per thread.

    Each call copies the photos to the GPU, runs, copies the logits back and waits for the stream. Variant "CUDA graph"
    keeps a context per batch size as well and replays its kernels as one graph instead of launching each; only what
    runs is in a graph, because copies from memory that is not pinned cannot be. A plan is executable code: only open a
    file whose sha256 is in its receipt.
    """

    @classmethod
    def check_available(cls, backend: str) -> None:
        """Raise Unavailable when the TensorRT flavour is not installed."""
        try:
            importlib.import_module(_MODULES[backend])
        except (ImportError, OSError) as error:
            raise Unavailable(
                f"{_MODULES[backend]} cannot be imported ({str(error)[:80]}); install it with: {install_line(backend)}"
            ) from None

    def open(self) -> None:
        """Deserialise the plan, unless its facts already say that it was built for something else."""
        path, facts = self.request.path, self.request.facts
        self.trt = trt = importlib.import_module(_MODULES[self.request.backend])
        self.title = _TITLES[trt.__name__]
        reason = mismatch(facts, trt.__name__, trt.__version__, cuda.compute_capability(), machine().system)
        if reason:
            raise Unavailable(f"{path.name} {reason}; build it here with: make export")
        self.graphs = self.request.variant == "CUDA graph"
        self.logger = collecting_logger(trt)
        self.runtime = trt.Runtime(self.logger)
        if facts.version_compatible:  # such a plan brings its own runtime, which is code as well
            self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise BadModel(f"{path} was not built for {trt.__name__} {trt.__version__} and this GPU "
                           f"({self.logger.reason()}); build it here with: make export")  # fmt: skip
        self.largest = int(self.engine.get_tensor_profile_shape("images", 0)[2][0])
        self.classes = int(self.engine.get_tensor_shape("logits")[-1])
        # By thread and batch. A thread's number is given again once it has ended, and its worker with it
        self.workers: dict[tuple[int, int], Worker] = {}

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
            raise SajiError(f"{self.trt.__name__} could not run {self.request.path.name}: {self.logger.reason()}")

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

    def layers(self) -> list[Layer]:
        """The compute layers by the engine inspector; see `inspected`."""
        inspector = self.engine.create_engine_inspector()
        information = json.loads(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))
        return inspected(information, self.request.facts.multiply_adds)

    def close(self) -> None:
        """Free the engine and the buffers of every thread that ran it, from any thread."""
        while self.workers:
            self.workers.popitem()[1].close()
        del self.engine, self.runtime


def mismatch(facts: BuildFacts, flavour: str, version: str, target: str, system: str) -> str | None:
    """Why an engine with these `facts` cannot run here, or None when nothing speaks against it.

    `target` is this GPU as "sm86". A plan is tied to the TensorRT that built it, the system and the architecture,
    except as asked for at its build: `version_compatible` plans run on every later minor version of their major,
    `hardware_compatible` ones on the GPUs from Ampere (sm80) on.
    """
    if not facts.flavour:
        return "has no facts in a receipt, so nobody knows what it was built for"
    same_version = facts.version == version
    if facts.version_compatible:
        here, build = _numbers(version), _numbers(facts.version)
        same_version = here[0] == build[0] and here >= build
    same_gpu = not facts.targets or target in facts.targets
    if facts.hardware_compatible:
        same_gpu = int(target.removeprefix("sm")) >= 80
    if facts.flavour == flavour and facts.system == system and same_version and same_gpu:
        return None
    return (
        f"was built for {', '.join(facts.targets) or 'every GPU'} with {_TITLES[facts.flavour]} {facts.version} on "
        f"{facts.system}, this machine has {target} and {_TITLES[flavour]} {version} on {system}"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


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
    layers: list[Layer] = []
    for entry in information["Layers"]:
        if not isinstance(entry, dict):  # the plan tells names only
            continue
        text = f"{entry.get('Name', '')} {entry.get('Metadata', '')}"
        nodes = [node for node in multiply_adds if re.search(rf"(?<![\w.]){re.escape(node)}(?![\w.])", text)]
        kind = entry.get("LayerType", "").lower()
        if entry.get("Inputs") and (nodes or "conv" in kind or "gemm" in kind):
            datatype = str(entry["Inputs"][0].get("Format/Datatype", "")).lower()
            name = next((ours for theirs, ours in _FORMATS.items() if theirs in datatype), datatype or "unknown")
            layers.append((entry.get("Name", ""), name, float(sum(multiply_adds[node] for node in nodes))))
    known = any(amount for _, _, amount in layers)
    return [(name, kind, amount if known else 1.0) for name, kind, amount in layers]


def collecting_logger(trt: ModuleType) -> Any:
    """A logger of `tensorrt` or `tensorrt_rtx`, which report errors nowhere else.

    `errors` lists what went wrong so far, `reason()` says it in a line.
    """
    # TensorRT calls its logger with a lock held. Were Python to collect its garbage then, and a builder or engine of
    # an earlier failure in it, freeing that would wait for the same lock for ever: so it is collected now
    gc.collect()

    class Collecting(trt.ILogger):  # type: ignore[name-defined, misc]  # the base class comes with the module
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())

        def reason(self) -> str:
            return "; ".join(self.errors[-2:])[:300] or "TensorRT gave no reason"

    return Collecting()
