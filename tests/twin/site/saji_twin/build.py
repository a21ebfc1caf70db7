"""Builder, its configuration, timing caches and plans."""

import json
import secrets
import weakref
from typing import Any

from saji_twin import fault, machine, misuse, serves, visible
from saji_twin.shapes import Bound, Dims
from saji_twin.streams import here

MAGIC = b"TWIN plan\n"
CACHE = b"TWIN timings\n"
RTX_DEFAULT = ((8, 0), (8, 6), (8, 9), (12, 0))  # "and later"; Turing must be named (TensorRT-RTX, Compute Capability)


class ILogger(Bound):
    """To be derived; messages go nowhere else."""

    def __init__(self) -> None:
        self._begun = True

    @classmethod
    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)

    def log(self, severity: Any, msg: str) -> None:
        raise RuntimeError('Tried to call pure virtual function "ILogger::log"')


class Logger(ILogger):
    """Prints what is at least so severe."""

    def __init__(self, min_severity: Any = None) -> None:
        super().__init__()
        self._least = min_severity if min_severity is not None else self._trt.Severity.WARNING

    def log(self, severity: Any, msg: str) -> None:
        if int(severity) <= int(self._least):
            print(f"[TRT] [{severity.name[0]}] {msg}")

    min_severity = property(lambda self: self._least)


_registered: dict[str, Any] = {}  # by flavour: the logger in use and those whose lives keep it


def register(owner: Any, logger: Any) -> None:
    """A flavour has one logger: the first, as long as a builder or runtime that was given it lives.

    "The logger passed into createInferRuntime differs from one already registered … the current new logger is ignored"
    (a warning of TensorRT-RTX 1.7.1, and in the documentation of createInferBuilder).
    """
    if not isinstance(logger, owner._trt.ILogger):
        raise TypeError(f"__init__(): incompatible constructor arguments. Invoked with: {logger!r}")
    if not getattr(logger, "_begun", False):
        raise TypeError("ILogger.__init__() must be called when overriding __init__")
    known = _registered.get(owner._trt.__name__)
    if known is None or not known[1]:
        _registered[owner._trt.__name__] = known = (logger, weakref.WeakSet())
    elif known[0] is not logger:
        say(owner, "WARNING", "The logger differs from one already registered, so the current new logger is ignored")
    known[1].add(owner)


def say(owner: Any, severity: str, message: str) -> None:
    """Give the logger a message; errors reach the user by no other way."""
    logger, _ = _registered[owner._trt.__name__]
    logger.log(getattr(owner._trt.Severity, severity), message)


def enterprise(owner: Any) -> bool:
    return owner._trt.__name__ == "tensorrt"


def usable() -> bool:
    """Whether CUDA works in this process."""
    return serves(machine().cuda, machine().toolkit) and bool(visible())


def gpu() -> Any:
    """The current device of this thread."""
    return visible()[here.device]


class IHostMemory(Bound, bytes):
    dtype = property(lambda self: self._trt.DataType.INT8)
    nbytes = property(lambda self: len(self))


class ITimingCache(Bound):
    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def serialize(self) -> Any:
        return self._trt.IHostMemory(CACHE + json.dumps(self._content).encode())

    def reset(self) -> bool:
        self._content["timings"] = []
        return True


class IOptimizationProfile(Bound):
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[Dims, Dims, Dims]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not len(min) == len(opt) == len(max):
            raise ValueError("the shapes of a profile have different numbers of dimensions")
        self._shapes[input] = Dims(min), Dims(opt), Dims(max)

    def get_shape(self, input: str) -> list[Dims]:
        return list(self._shapes.get(input, ()))

    def __bool__(self) -> bool:
        rising = (0 <= a <= b <= c for shape in self._shapes.values() for a, b, c in zip(*shape, strict=True))
        return bool(self._shapes) and all(rising)


class IBuilderConfig(Bound):
    def __init__(self, builder: Any) -> None:
        trt = self._trt
        self._builder, self._flags = builder, 1 << int(trt.BuilderFlag.TF32)
        self._profiles: list[Any] = []
        self._cache: Any = None
        self._monitor: Any = None
        self._targets: list[Any] = []
        self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        self.builder_optimization_level, self.max_aux_streams, self.avg_timing_iterations = 3, -1, 1
        self._limits: dict[str, int] = {}

    profiling_verbosity = hardware_compatibility_level = None
    builder_optimization_level = max_aux_streams = avg_timing_iterations = None
    num_optimization_profiles = property(lambda self: len(self._profiles))

    @property
    def flags(self) -> int:
        return self._flags

    def set_flag(self, flag: Any) -> None:
        self._flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags &= ~(1 << int(flag))

    def get_flag(self, flag: Any) -> bool:
        return bool(self._flags & 1 << int(flag))

    def _has(self, name: str) -> bool:
        return hasattr(self._trt.BuilderFlag, name) and self.get_flag(getattr(self._trt.BuilderFlag, name))

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._limits[pool.name] = int(pool_size)

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._limits.get(pool.name, gpu().memory_mib * 2**20 if usable() else 2**64 - 1)

    def add_optimization_profile(self, profile: Any) -> int:
        """-1 and a reason in the logger where it is none."""
        if not profile:
            say(self, "ERROR", "IBuilderConfig::addOptimizationProfile: Error Code 3: condition: profile->isValid()")
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    @property
    def progress_monitor(self) -> Any:
        return self._monitor and self._monitor()

    @progress_monitor.setter
    def progress_monitor(self, monitor: Any) -> None:
        self._monitor = weakref.ref(monitor) if monitor is not None else None  # the bindings do not keep it alive

    # Timing caches

    def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
        """None, and a reason, for what is no cache of this version (createTimingCache: nullptr)."""
        data, fresh = bytes(serialized_timing_cache), {"version": self._trt.__version__, "gpu": "", "timings": []}
        if fault("timing_cache") == "none":
            say(self, "ERROR", "createTimingCache: Serialization assertion failed.Version tag does not match.")
            return None
        if not data:
            return self._trt.ITimingCache({**fresh, "gpu": gpu().uuid if usable() else ""})
        try:
            content = json.loads(data.removeprefix(CACHE)) if data.startswith(CACHE) else {}
        except ValueError:
            content = {}
        if content.get("version") != self._trt.__version__:
            say(self, "ERROR", "createTimingCache: Serialization assertion failed.Version tag does not match.")
            return None
        return self._trt.ITimingCache(content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        """False for a cache of another GPU: "A failure will be reported if the CUDA device property in the provided
        cache is different from current environment" (docstring of the bindings)."""
        if not isinstance(cache, self._trt.ITimingCache):
            raise TypeError(f"set_timing_cache(): incompatible function arguments. Invoked with: {cache!r}")
        other = usable() and cache._content["gpu"] != gpu().uuid
        if fault("timing_cache") == "false" or (other and not ignore_mismatch):
            say(self, "ERROR", "setTimingCache: the timing cache was created on a different device")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    # TensorRT-RTX's targets

    @property
    def num_compute_capabilities(self) -> int:
        return len(self._targets)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        self._targets = [self._trt.ComputeCapability.NONE] * int(count)

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        current = compute_capability == self._trt.ComputeCapability.CURRENT
        alone = index == 0 and len(self._targets) == 1
        wrong = compute_capability == self._trt.ComputeCapability.NONE or (current and not (alone and usable()))
        if wrong or not 0 <= index < len(self._targets):
            say(self, "ERROR", "setComputeCapability: Index of compute capability is not in a valid range.")
            return False
        self._targets[index] = compute_capability
        return True

    def get_compute_capability(self, index: int) -> Any:
        return self._targets[index]


class IProgressMonitor(Bound):
    """To be derived."""

    def __init__(self) -> None:
        self._begun = True

    def phase_start(self, phase_name: str, parent_phase: Any, num_steps: int) -> None:
        raise RuntimeError("pure virtual function")

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise RuntimeError("pure virtual function")

    def phase_finish(self, phase_name: str) -> None:
        raise RuntimeError("pure virtual function")


class Builder(Bound):
    """TypeError without a usable driver for enterprise TensorRT (NVIDIA/TensorRT#308, #2913); RTX builds anywhere."""

    def __init__(self, logger: Any) -> None:
        register(self, logger)
        self._logger = logger
        if enterprise(self) and (fault("builder") or not usable()):
            say(self, "ERROR", "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    logger = property(lambda self: self._logger)

    def create_network(self, flags: int = 0) -> Any:
        return self._trt.INetworkDefinition(self, int(flags))

    def create_builder_config(self) -> Any:
        return self._trt.IBuilderConfig(self)

    def create_optimization_profile(self) -> Any:
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        """A plan; None where it is refused, with the reason in the logger."""
        reason = _refusal(network, config)
        if reason is not None:
            say(self, "ERROR", f"IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error ({reason})")
            return None
        if not _went_through(config):
            say(self, "ERROR", "buildSerializedNetwork: the build was cancelled by the progress monitor")
            return None
        if config._cache is not None:
            config._cache._content["timings"].append(secrets.token_hex(8))
        return self._trt.IHostMemory(_plan(self, network, config))


def _refusal(network: Any, config: Any) -> str | None:
    """Why a network is not built, in TensorRT's words as far as they are known."""
    if fault("build"):
        return "Could not find any implementation for node, a fault that was planted"
    if not network.num_layers or not network.num_outputs:
        return "Network must have at least one output"
    shapes = config._profiles[0]._shapes if config._profiles else {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tensor.shape:
            continue
        if not config._profiles:
            return "Network has dynamic or shape inputs, but no optimization profile has been defined."
        if tensor.name not in shapes:
            return f"Dynamic dimension in profile 0: tensor {tensor.name} is missing dimensions in profile"
        for axis, sizes in enumerate(zip(*shapes[tensor.name], tensor.shape, strict=True)):
            if sizes[3] != -1 and set(sizes) != {sizes[3]}:
                return f"input {tensor.name} axis {axis}, profile has min={sizes[0]}, but tensor has {sizes[3]}"
    if any(target == config._trt.ComputeCapability.NONE for target in config._targets):
        return "a compute capability was not set"
    return None


def _went_through(config: Any) -> bool:
    """Tell the progress monitor, which may cancel."""
    if config._monitor is None:
        return True
    monitor = config._monitor()
    if monitor is None:
        misuse("the progress monitor was freed before the build: the bindings do not keep it alive")
    monitor.phase_start("Building Engine", None, 2)
    for step in range(2):
        if not monitor.step_complete("Building Engine", step):
            return False
    monitor.phase_finish("Building Engine")
    return True


def _plan(owner: Any, network: Any, config: Any) -> bytes:
    """An engine as bytes: what it is for, its layers, the file that it computes; no two builds are the same."""
    from saji_twin.inspector import layers_of

    targets = [tuple(divmod(int(t), 10)) if int(t) > 1 else gpu().capability for t in config._targets]
    weakly = not network._strongly_typed  # FP32 then, whatever the file says, unless a flag allows less
    header = {
        "flavour": owner._trt.__name__,
        "version": owner._trt.__version__,
        "capability": gpu().capability if enterprise(owner) else None,
        "targets": targets or (None if enterprise(owner) else "default"),
        "version_compatible": config._has("VERSION_COMPATIBLE"),
        "ampere_plus": config.hardware_compatibility_level.name == "AMPERE_PLUS",
        "verbosity": config.profiling_verbosity.name,
        "profiles": [profile._shapes for profile in config._profiles],
        "inputs": [_told(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_told(network.get_output(i)) for i in range(network.num_outputs)],
        "layers": layers_of(network, "FLOAT" if weakly or fault("lie") == "fp32" else None),
        "largest": _largest(network),
        "build": secrets.token_hex(16),
    }
    text = json.dumps(header).encode()
    return MAGIC + f"{len(text)} {len(network._onnx)}\n".encode() + text + network._onnx


def _told(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": tensor.shape}


def _largest(network: Any) -> int:
    """Bytes of the two largest tensors that a photo takes: what a context must at least hold at once."""
    sizes = [0, 0]
    for layer in network._layers:
        for tensor in layer._outputs:
            if -1 in tensor.shape:
                elements = abs(1 if not tensor.shape else _product(tensor.shape))
                sizes.append(elements * tensor.dtype.itemsize)
    return sum(sorted(sizes)[-2:])


def _product(shape: Any) -> int:
    result = 1
    for size in shape:
        result *= max(1, size)
    return result


CLASSES = (ILogger, Logger, IHostMemory, ITimingCache, IOptimizationProfile, IBuilderConfig, IProgressMonitor, Builder)
