"""TensorRT and TensorRT-RTX engines, one class with the module injected. Runs on a CUDA GPU only."""

import importlib
import json
from functools import partial
from typing import Any

import numpy as np

from runtime.backends import cuda
from runtime.backends.base import Backend, Layer
from runtime.backends.tensorrt.fit import TITLES, mismatch
from runtime.backends.tensorrt.inspector import inspected
from runtime.backends.tensorrt.logger import collecting_logger
from runtime.backends.tensorrt.runtime_cache import RuntimeCache
from runtime.backends.tensorrt.worker import Worker, Workers
from runtime.errors import BadModel, SajiError, Unavailable, advice, install_line
from runtime.machine import machine
from runtime.spec import FAMILIARITY

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class TensorRt(Backend):
    """A deserialised engine with as many workers as calls should run side by side; more calls wait for one.

    Each call copies the photos to the GPU, runs, copies the answers back and waits for the stream. Variant "CUDA graph"
    replays its kernels as one graph for each batch size instead of launching each; the copies are no part of it. A plan
    is executable code: only open a file whose sha256 is in its receipt.
    """

    title = TITLES["tensorrt"]
    where = staticmethod(cuda.first_gpu)

    @classmethod
    def check_available(cls, backend: str) -> None:
        """Raise Unavailable when the TensorRT flavour is not installed."""
        imported(backend)

    def open(self) -> None:
        """Deserialise the plan, unless its facts already say that it was built for something else."""
        path, facts = self.request.path, self.request.facts
        self.trt = trt = imported(self.request.backend)
        self.title, self.rtx = TITLES[trt.__name__], trt.__name__ == "tensorrt_rtx"
        target = cuda.compute_capability()
        if self.rtx and not hasattr(trt.ComputeCapability, target.upper()):
            line = install_line("tensorrt")
            raise Unavailable(
                f"TensorRT-RTX {trt.__version__} does not serve {target}, this GPU's; TensorRT does: {line}"
            )
        reason = mismatch(facts, trt.__name__, trt.__version__, target, machine().system)
        if reason:
            raise Unavailable(f"{path.name} {reason}; build it here with: make export")
        self.logger = collecting_logger(trt)
        self.runtime = trt.Runtime(self.logger)
        if facts.version_compatible:  # such a plan brings its own runtime, which is code as well
            self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(self.request.content())
        if self.engine is None:
            raise BadModel(f"{path} was not built for {trt.__name__} {trt.__version__} and this GPU "
                           f"({self.logger.reason()}); build it here with: make export")  # fmt: skip
        self.largest = int(self.engine.get_tensor_profile_shape("images", 0)[2][0])
        self.image = tuple(int(size) for size in self.engine.get_tensor_shape("images"))[1:]
        self.classes = int(self.engine.get_tensor_shape("logits")[-1])
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.familiarity = FAMILIARITY in names
        self.cache: RuntimeCache | None = None
        self.compiled_for: set[int] = set()  # the batch sizes that TensorRT-RTX has kernels of
        try:
            self.workers = Workers(self._worker(), self.request.streams)
        except SajiError as error:
            raise type(error)(f"{path.name} cannot be opened: {error}") from None

    def _worker(self) -> Any:
        """What makes a worker. TensorRT-RTX captures graphs by itself, TensorRT is captured by us."""
        graphs, make = self.request.variant == "CUDA graph", self.engine.create_execution_context
        capture, shared = graphs and not self.rtx, 0
        if self.rtx:
            make = partial(make, self._settings(graphs))
        elif capture:
            make = partial(make, self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            shared = int(self.engine.device_memory_size_v2)
        return partial(Worker, make, (self.largest, *self.image), self.classes, capture, shared, self.familiarity)

    def _settings(self, graphs: bool) -> Any:
        """How TensorRT-RTX runs: no answer by a slower kernel while the right one is still being compiled."""
        settings, trt = self.engine.create_runtime_config(), self.trt
        settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if graphs:
            settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.cache = RuntimeCache(self.request.path, settings)
        return settings

    def compute(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 outputs side by side; more than the profile's batch goes in parts."""
        with self.workers.lent() as worker:
            parts = [self._answer(worker, part) for part in self._parts(images)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def device_milliseconds(self, images: np.ndarray) -> float:
        """Milliseconds of photos uint8 `[N, H, W, 3]` RGB on the GPU, without the transfers there and back."""
        milliseconds = 0.0
        with self.at_work("timed"), self.workers.lent() as worker:
            for part in self._parts(images):
                context = worker.upload(part)
                milliseconds += worker.timed(partial(worker.execute, context, len(part)))
        return milliseconds

    def _parts(self, images: np.ndarray) -> list[np.ndarray]:
        images = np.ascontiguousarray(images)
        return [images[i : i + self.largest] for i in range(0, len(images), self.largest)]

    def _answer(self, worker: Worker, images: np.ndarray) -> np.ndarray:
        known = len(self.logger.errors)
        try:
            outputs = worker.run(images, self.classes)
        except SajiError as error:
            why = f" ({self.logger.reason()})" if len(self.logger.errors) > known else ""
            raise type(error)(f"{self.request.path.name} could not run: {error}{why}") from None
        if self.cache and len(images) not in self.compiled_for:
            self.compiled_for.add(len(images))
            self.cache.keep()
        return outputs

    @property
    def otherwise(self) -> str:  # type: ignore[override]  # an attribute there
        """That some batch size runs without the CUDA graph that was asked for; empty where all is as asked."""
        return self.workers.otherwise

    def layers(self) -> list[Layer]:
        """The layers that do the work, by the engine inspector; see `inspected`."""
        inspector = self.engine.create_engine_inspector()
        with self.workers.lent() as worker:  # with a shape set some versions tell more
            inspector.execution_context = worker.upload(np.zeros((self.largest, *self.image), np.uint8))
            information = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        return inspected(json.loads(information, strict=False), self.request.facts)  # raw U+001F in the metadata

    def close(self) -> None:
        """Free the engine and its workers, from any thread."""
        with self.where():
            self.workers.close()
            del self.workers, self.engine, self.runtime


def imported(backend: str) -> Any:
    """The Python module of a TensorRT flavour. Raises Unavailable with the reason where it cannot be imported."""
    name = MODULES[backend]
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise Unavailable(f"{name} cannot be imported ({str(error)[:80]}); {advice(backend)}") from None
