"""Runtime and engines. An engine computes its ONNX file by ONNX Runtime, each layer in its type."""

import contextlib
import json
from typing import Any

from saji_twin import counts, fault, machine, memory, misuse, streams
from saji_twin.build import MAGIC, RTX_DEFAULT, enterprise, gpu, register, say, usable
from saji_twin.shapes import Bound, Dims
from saji_twin.streams import here

RUNTIME_CACHE = b"TWIN kernels\n"


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
    majors = tuple(version.split(".")[0] for version in (plan["version"], trt.__version__))
    lean = plan["version_compatible"] and (majors[0] == majors[1] or majors == ("10", "11"))
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


CLASSES = (Runtime, ICudaEngine, IRuntimeCache, IRuntimeConfig)
