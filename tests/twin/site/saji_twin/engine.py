"""Runtime, engines and execution contexts. An engine computes its ONNX file by ONNX Runtime, each layer in its type."""

import contextlib
import ctypes
import json
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from saji_twin import counts, fault, machine, memory, misuse, streams
from saji_twin.build import MAGIC, RTX_DEFAULT, enterprise, gpu, register, say, usable
from saji_twin.shapes import BITS, Bound, Dims
from saji_twin.streams import here

_users: dict[int, Any] = {}  # by activations' memory, the last work in it
RUNTIME_CACHE = b"TWIN kernels\n"
NUMPY = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT8": "int8", "INT32": "int32", "INT64": "int64"}


def ampere(capability: tuple[int, int]) -> bool:
    return capability >= (8, 0)


class Runtime(Bound):
    """As the builder it needs a usable driver, and raises TypeError without one (NVIDIA/TensorRT#308)."""

    def __init__(self, logger: Any) -> None:
        register(self, logger)
        self._logger = logger
        self.engine_host_code_allowed = False
        if enterprise(self) and not usable():
            say(self, "ERROR", "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    engine_host_code_allowed = False
    logger = property(lambda self: self._logger)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        """None, with the reason in the logger, for what is no plan or not for this version and GPU."""
        with streams.lock:
            plan, onnx, reason = _read(bytes(serialized_engine))
            reason = reason or _misfit(self, plan)
            if reason is not None:
                say(self, "ERROR", f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization ({reason})")
                return None
            try:
                weights = memory.allocate(len(onnx), here.device)
            except memory.OutOfMemory:
                say(self, "ERROR", "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (out of memory)")
                return None
            return self._trt.ICudaEngine(self, plan, onnx, weights)


def _read(data: bytes) -> tuple[dict[str, Any], bytes, str | None]:
    words = "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed."
    if not data.startswith(MAGIC):
        return {}, b"", words
    sizes, _, rest = data.removeprefix(MAGIC).partition(b"\n")
    header, body = map(int, sizes.split())
    if len(rest) != header + body:
        return {}, b"", "Serialization assertion plan->header.size == blobSize failed."
    return json.loads(rest[:header]), rest[header:], None


def _misfit(runtime: Any, plan: dict[str, Any]) -> str | None:
    """Why a plan does not run here."""
    trt = runtime._trt
    if fault("deserialize"):
        return "a fault that was planted"
    if not usable():
        if enterprise(runtime):
            misuse("deserialize_cuda_engine without a GPU may crash the process; ask for a device first")
        return "cudaError 35: CUDA driver version is insufficient for CUDA runtime version"
    if plan["flavour"] != trt.__name__:
        return "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed."
    lean = plan["version_compatible"] and plan["version"].split(".")[0] == trt.__version__.split(".")[0]
    if lean and not runtime.engine_host_code_allowed:
        return "the plan holds host code; set engine_host_code_allowed"
    if plan["version"] != trt.__version__ and not lean:
        return f"The engine plan file is not compatible with this version of TensorRT, expecting library version {trt.__version__} got {plan['version']}, please rebuild."  # noqa: E501
    capability = gpu().capability
    if not _fits(plan, capability):
        built = plan["capability"] or plan["targets"]
        return f"The engine plan file is generated on an incompatible device, expecting compute {capability} got compute {built}, please rebuild."  # noqa: E501
    return None


def _fits(plan: dict[str, Any], capability: tuple[int, int]) -> bool:
    if plan["targets"] == "default":
        return capability in RTX_DEFAULT or capability > RTX_DEFAULT[-1]
    if plan["targets"]:
        return list(capability) in plan["targets"]
    return tuple(plan["capability"]) == capability or (plan["ampere_plus"] and ampere(capability))


class ICudaEngine(Bound):
    def __init__(self, runtime: Any, plan: dict[str, Any], onnx: bytes, weights: int) -> None:
        self._runtime, self._plan, self._onnx, self._weights = runtime, plan, onnx, weights
        self._inputs, self._outputs, self._device = plan["inputs"], plan["outputs"], here.device
        self._bindings = [*self._inputs, *self._outputs]
        self._session: Any = None
        counts["engines"] += 1

    num_io_tensors = property(lambda self: len(self._bindings))
    num_layers = property(lambda self: len(self._plan["layers"]))
    num_optimization_profiles = property(lambda self: len(self._plan["profiles"]))
    name = property(lambda self: "main_graph")
    refittable = property(lambda self: False)
    profiling_verbosity = property(lambda self: getattr(self._trt.ProfilingVerbosity, self._plan["verbosity"]))

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes of activations for the largest batch of the profile."""
        largest = max((shapes[2][0] for p in self._plan["profiles"] for shapes in p.values()), default=1)
        return int(self._plan["largest"]) * int(largest)

    device_memory_size = device_memory_size_v2

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self.device_memory_size_v2

    def _tensor(self, name: str) -> dict[str, Any] | None:
        found = next((tensor for tensor in self._bindings if tensor["name"] == name), None)
        if found is None:
            say(self, "ERROR", f"Error Code 3: API Usage Error (there is no tensor {name})")
        return found

    def get_tensor_name(self, index: int) -> str:
        return str(self._bindings[index]["name"])

    def get_tensor_shape(self, name: str) -> Dims:
        tensor = self._tensor(name)
        return Dims(tensor["shape"]) if tensor else Dims([-1])

    def get_tensor_dtype(self, name: str) -> Any:
        tensor = self._tensor(name)
        return getattr(self._trt.DataType, tensor["dtype"] if tensor else "FLOAT")

    def get_tensor_mode(self, name: str) -> Any:
        tensor, modes = self._tensor(name), self._trt.TensorIOMode
        return modes.NONE if tensor is None else modes.INPUT if tensor in self._inputs else modes.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return self._trt.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        return [Dims(shape) for shape in self._plan["profiles"][int(profile_index)][name]]

    def create_engine_inspector(self) -> Any:
        return self._trt.EngineInspector(self)

    def create_runtime_config(self) -> Any:
        return self._trt.IRuntimeConfig(self)

    def serialize(self) -> Any:
        text = json.dumps(self._plan).encode()
        return self._trt.IHostMemory(MAGIC + f"{len(text)} {len(self._onnx)}\n".encode() + text + self._onnx)

    def create_execution_context(self, strategy: Any = None, *, runtime_config: Any = None) -> Any:
        """None, with a reason, when the device's memory does not hold its activations."""
        config = runtime_config or (strategy if isinstance(strategy, self._trt.IRuntimeConfig) else None)
        users = config is None and strategy == self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if users and not fault("context"):  # the memory comes with set_device_memory
            return self._trt.IExecutionContext(self, 0, None)
        with streams.lock:
            try:
                if fault("context"):
                    raise memory.OutOfMemory
                scratch = memory.allocate(self.device_memory_size_v2, self._device)
            except memory.OutOfMemory:
                words = f"Requested size was {self.device_memory_size_v2} bytes."
                say(
                    self,
                    "ERROR",
                    f"[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory) {words}",
                )
                return None
            return self._trt.IExecutionContext(self, scratch, config)

    def _run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """What the file answers, with every rounding between its layers kept."""
        if self._session is None:
            self._session = _session(self._onnx)
        names = [tensor["name"] for tensor in self._outputs]
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def __del__(self) -> None:
        with contextlib.suppress(AssertionError, AttributeError):
            memory.release(self._weights, pinned=False)


def _session(data: bytes) -> Any:
    """ONNX Runtime on one thread of the CPU; each layer's output is asked for, so that no cast is left out."""
    import onnx
    import onnxruntime

    model = onnx.load_model_from_string(data)
    known = {value.name for value in model.graph.output}
    between = [name for node in model.graph.node for name in node.output if name and name not in known]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in between)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class IRuntimeCache(Bound):
    """TensorRT-RTX's compiled kernels; another version's or GPU's are refused, by the docstring of `deserialize`."""

    def __init__(self) -> None:
        self._kernels: set[str] = set()

    def serialize(self) -> Any:
        content = {"version": self._trt.__version__, "gpu": gpu().name, "driver": machine().driver}
        return self._trt.IHostMemory(RUNTIME_CACHE + json.dumps({**content, "kernels": sorted(self._kernels)}).encode())

    def deserialize(self, blob: Any) -> bool:
        data = bytes(blob)
        try:
            content = json.loads(data.removeprefix(RUNTIME_CACHE)) if data.startswith(RUNTIME_CACHE) else {}
        except ValueError:
            content = {}
        here_now = (self._trt.__version__, gpu().name, machine().driver.split(".")[0])
        there = (content.get("version"), content.get("gpu"), str(content.get("driver")).split(".")[0])
        if here_now != there:
            return False
        self._kernels = set(content["kernels"])
        return True

    def reset(self) -> None:
        self._kernels.clear()


class IRuntimeConfig(Bound):
    def __init__(self, engine: Any) -> None:
        self._engine, self._cache = engine, None
        if hasattr(self._trt, "CudaGraphStrategy"):
            self.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
            strategies = self._trt.DynamicShapesKernelSpecializationStrategy
            self.dynamic_shapes_kernel_specialization_strategy = strategies.LAZY

    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = None

    def create_runtime_cache(self) -> Any:
        return self._trt.IRuntimeCache()

    def set_runtime_cache(self, cache: Any = None) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> Any:
        return self._cache


class IExecutionContext(Bound):
    """One caller at a time: two at once are undefined behaviour (TensorRT, Thread Safety), and raise TwinError here."""

    def __init__(self, engine: Any, scratch: int, config: Any) -> None:
        self._engine, self._scratch, self._config, self._owned = engine, scratch, config, scratch != 0
        self._shapes: dict[str, Dims] = {}
        self._addresses: dict[str, int] = {}
        self._ready: set[Any] = set()  # shapes that were enqueued outside a capture
        self._seen: dict[Any, int] = {}  # how often, by shape
        self._guard, self._last = threading.Lock(), None
        self._fixed: list[Any] = []  # shapes that graphs of this context hold
        self._capturing = False
        counts["contexts"] += 1
        self._jit()

    engine = property(lambda self: self._engine)
    all_binding_shapes_specified = property(lambda self: not self.infer_shapes())

    @contextlib.contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        if not self._guard.acquire(blocking=False):
            misuse(f"{what}: another thread is using the same execution context")
        try:
            yield
        finally:
            self._guard.release()

    def set_input_shape(self, name: str, shape: Any) -> bool:
        """False, with a reason, where the tensor is no input or the profile does not hold the shape."""
        with self._alone("set_input_shape"):
            profile = self._engine._plan["profiles"][0].get(name)
            wanted = Dims(shape)
            if not any(tensor["name"] == name for tensor in self._engine._inputs):
                return self._refuse(f"setInputShape: {name} is no input")
            limits = profile or [next(t["shape"] for t in self._engine._inputs if t["name"] == name)] * 3
            inside = len(wanted) == len(limits[0]) and all(
                low <= size <= high for low, size, high in zip(limits[0], wanted, limits[2], strict=True)
            )
            if not inside:
                return self._refuse(
                    f"setInputShape: {wanted} of {name} is not in the profile {limits[0]} to {limits[2]}"
                )
            self._shapes[name] = wanted
            return True

    def set_tensor_address(self, name: str, memory: Any) -> bool:
        with self._alone("set_tensor_address"):
            if not any(tensor["name"] == name for tensor in self._engine._bindings):
                return self._refuse(f"setTensorAddress: there is no tensor {name}")
            self._addresses[name] = int(memory)
            return True

    def set_device_memory(self, memory: Any, size: int) -> None:
        """Memory for activations, of a context that was made USER_MANAGED; two must not use one piece at once."""
        if self._owned:
            misuse("set_device_memory: the context has memory of its own; make it USER_MANAGED")
        if int(memory) % 256 or int(size) < self._engine.device_memory_size_v2:
            misuse("set_device_memory: the memory is too small, or not aligned to 256 bytes")
        self._scratch = int(memory)

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def get_tensor_shape(self, name: str) -> Dims:
        """With -1 where it is not known yet."""
        shape = self._engine.get_tensor_shape(name)
        batch = next((wanted[0] for wanted in self._shapes.values()), -1)
        return self._shapes.get(name) or Dims(batch if size == -1 else size for size in shape)

    def infer_shapes(self) -> list[str]:
        dynamic = [tensor["name"] for tensor in self._engine._inputs if -1 in tensor["shape"]]
        return [name for name in dynamic if name not in self._shapes]

    def get_runtime_config(self) -> Any:
        return self._config

    def is_stream_capturable(self, stream: Any) -> bool:
        return int(stream) not in (0, 1)

    def execute_async_v3(self, stream_handle: Any) -> bool:
        """Queued on the stream; False, with the reason in the logger, where something is missing."""
        with self._alone("execute_async_v3"):
            time.sleep(0.0002)  # as long as launching takes: a second caller is seen
            with streams.lock:
                return self._enqueue(stream_handle)

    def _enqueue(self, handle: Any) -> bool:
        stream = streams.stream_of(handle, "execute_async_v3")
        if stream.device != self._engine._device or here.device != self._engine._device:
            misuse(f"execute_async_v3: the engine is of device {self._engine._device}, stream or thread of another")
        missing = self.infer_shapes() or [t["name"] for t in self._engine._bindings if t["name"] not in self._addresses]
        if missing:
            return self._refuse(f"enqueueV3: shape or address of {', '.join(missing)} is not set")
        if not self._scratch and self._engine.device_memory_size_v2:
            return self._refuse("enqueueV3: there is no device memory; call set_device_memory")
        if fault("execute"):
            return self._refuse("enqueueV3: a fault that was planted")
        shape = tuple(self._shapes.items())
        if stream.capture is not None and not self._may_be_captured(stream, shape):
            return False
        if self._last is not None and not self._last.done and self._last.stream is not stream:
            misuse("execute_async_v3: earlier work of this context is queued on another stream")
        if (other := _users.get(self._scratch)) is not None and not other.done and other.stream is not stream:
            misuse("execute_async_v3: another context's work in the same device memory is queued on another stream")
        work = self._work(stream, dict(self._shapes), dict(self._addresses))
        self._last = _users[self._scratch] = work or self._last
        if work is not None:
            self._ready.add(shape)
        return True

    def _may_be_captured(self, stream: Any, shape: Any) -> bool:
        """The first call of a shape updates the context's state, which a capture must not hold: "call enqueueV3 once
        before capturing after an input shape change" (reference of IExecutionContext::enqueueV3)."""
        planted = fault("capture")
        if planted == "empty":
            return self._refuse("enqueueV3: Cuda Runtime (operation not permitted when stream is capturing)")
        if planted == "invalid" or shape not in self._ready:
            stream.capture.broken = True
            return self._refuse("enqueueV3: Cuda Runtime (operation not permitted when stream is capturing)")
        return True

    def _work(self, stream: Any, shapes: dict[str, Dims], addresses: dict[str, int]) -> Any:
        places = []
        for tensor in self._engine._bindings:
            shape = shapes.get(tensor["name"]) or self.get_tensor_shape(tensor["name"])
            size = _bytes(tensor["dtype"], shape)
            memory.device_bytes(addresses[tensor["name"]], size, "execute_async_v3", self._engine._device)
            places.append((tensor, shape, size, addresses[tensor["name"]]))
        captured, owner, scratch = stream.capture is not None, self, self._scratch
        size = self._engine.device_memory_size_v2

        def do() -> None:
            memory.device_bytes(scratch, size, "a kernel's activations")
            if captured and tuple(owner._shapes.items()) != tuple(shapes.items()):
                misuse("cudaGraphLaunch: the context has another shape than captured, its memory may be laid out anew")
            owner._compute(places)

        return streams.enqueue(stream, do, what="execute_async_v3")

    def _compute(self, places: list[Any]) -> None:
        import numpy as np

        inputs = {tensor["name"] for tensor in self._engine._inputs}
        feeds = {}
        for tensor, shape, size, address in places:
            if tensor["name"] in inputs:
                data = ctypes.string_at(memory.device_bytes(address, size, "a kernel's input"), size)
                feeds[tensor["name"]] = np.frombuffer(data, NUMPY[tensor["dtype"]]).reshape(shape)
        self._specialise(tuple(value.shape for value in feeds.values()))
        answers = self._engine._run(feeds)
        for tensor, shape, size, address in places:
            if tensor["name"] in answers:
                told = np.ascontiguousarray(_planted(answers[tensor["name"]]), NUMPY[tensor["dtype"]])
                assert told.shape == tuple(shape), (told.shape, shape)
                target = memory.device_bytes(address, size, "a kernel's output")
                ctypes.memmove(target, told.ctypes.data, size)
        counts["executions"] += 1

    def _jit(self) -> None:
        """TensorRT-RTX compiles kernels on the device, unless its cache has them."""
        if enterprise(self):
            return
        cache, key = self._config and self._config._cache, self._engine._plan["build"]
        if cache is not None and key in cache._kernels:
            counts["kernels from the cache"] += 1
            return
        counts["kernels compiled"] += 1
        if cache is not None:
            cache._kernels.add(key)

    def _specialise(self, shape: Any) -> None:
        """TensorRT-RTX, LAZY: a fallback serves a new shape until its own kernel is compiled; EAGER compiles first."""
        if enterprise(self):
            return
        strategy = self._config and self._config.dynamic_shapes_kernel_specialization_strategy.name
        seen = self._seen[shape] = self._seen.get(shape, 0) + 1
        fallback = strategy == "NONE" or (strategy != "EAGER" and seen <= 3)
        counts["fallback kernels" if fallback else "specialised kernels"] += 1

    def _refuse(self, reason: str) -> bool:
        say(self, "ERROR", f"IExecutionContext::{reason}")
        return False

    def __del__(self) -> None:
        with contextlib.suppress(AssertionError, AttributeError):
            if self._last is not None and not self._last.done:
                misuse("an execution context was freed while its work was queued")
            if self._owned:
                memory.release(self._scratch, pinned=False)


def _bytes(dtype: str, shape: Any) -> int:
    count = 1
    for size in shape:
        count *= size
    return count * BITS.get(dtype, 8) // 8


def _planted(answer: Any) -> Any:
    """Logits as they are, or as a fault wants them."""
    if fault("answers") == "wrong":
        return answer[..., ::-1] + secrets.randbelow(2)
    return answer * float("nan") if fault("answers") == "nan" else answer


CLASSES = (Runtime, ICudaEngine, IRuntimeCache, IRuntimeConfig, IExecutionContext)
