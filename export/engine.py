"""TensorRT engines, by one builder for `tensorrt` and `tensorrt_rtx` (the module is injected).

Precision lives in the ONNX file: networks are strongly typed and no precision flag is touched, so the same code
serves TensorRT 10.14, 11 and RTX. What was really built is read back from the parsed network.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.backends.proof import require, shares
from runtime.backends.tensorrt_logger import collecting_logger
from runtime.errors import SajiError, Unavailable, install_line
from runtime.files import replacing

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class Profile:
    """Smallest, typical and largest batch that an engine accepts."""

    smallest: int = 1
    typical: int = 1
    largest: int = 32


@dataclass(frozen=True)
class Built:
    """Facts of a built engine for the receipt."""

    flavour: str
    version: str
    target: str
    profile: tuple[int, int, int]
    precision_share: dict[str, float]


def module_for(backend: str) -> ModuleType:
    """The Python module of a TensorRT flavour. Raises Unavailable with the install line."""
    try:
        return importlib.import_module(MODULES[backend])
    except (ImportError, OSError) as error:
        raise Unavailable(
            f"{MODULES[backend]} cannot be imported ({str(error)[:80]}); install it with: {install_line(backend)}"
        ) from None


def build_engine(
    trt: ModuleType, onnx_file: Path, path: Path, precision: str, profile: Profile, targets: tuple[str, ...] = ()
) -> Built:
    """Build a raw plan from an ONNX file and write it atomically.

    `targets` such as ("sm86", "sm89") build ahead of time (TensorRT-RTX only); empty means the GPU at hand, and for
    RTX every GPU it knows. Raises SajiError with TensorRT's own words when it refuses, NotAsAsked when the parsed
    network is not in `precision`.
    """
    logger = collecting_logger(trt)
    builder = trt.Builder(logger)
    network, share = parse(trt, builder, logger, onnx_file, precision)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # lets the inspector tell each layer's precision
    # FP32 on a GPU otherwise means TF32, a mantissa of 10 bits
    config.clear_flag(trt.BuilderFlag.TF32)
    _add_profile(builder, config, network, profile, logger)
    if targets:
        _set_targets(trt, config, targets)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SajiError(f"{trt.__name__} cannot build {onnx_file.name}: {logger.reason()}")
    with replacing(path) as temporary:
        temporary.write_bytes(memoryview(plan))
    sizes = (profile.smallest, profile.typical, profile.largest)
    return Built(trt.__name__, trt.__version__, ",".join(targets) or "this GPU", sizes, share)


def parse(trt: ModuleType, builder: Any, logger: Any, onnx_file: Path, precision: str) -> tuple[Any, dict[str, float]]:
    """Parse an ONNX file into a strongly typed network; returns it with its share of multiply-adds per format."""
    flags = trt.NetworkDefinitionCreationFlag
    strongly = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(strongly)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_file.read_bytes()):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise SajiError(f"{trt.__name__} cannot read {onnx_file.name}: {(errors or logger.reason())[:300]}")
    if network.num_layers == 0:
        raise SajiError(f"{trt.__name__} found no layers in {onnx_file.name}: {logger.reason()}")
    return network, require(_precision_share(trt, network), precision, f"{trt.__name__} parsing {onnx_file.name}")


def _precision_share(trt: ModuleType, network: Any) -> dict[str, float]:
    names = {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16", trt.int8: "int8"}
    work: dict[str, float] = {}
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        macs = _multiply_adds(trt, layer)
        if macs:
            kind = layer.get_input(0).dtype
            producer = _producer(network, layer.get_input(0))
            if producer is not None and producer.type == trt.LayerType.DEQUANTIZE:
                kind = producer.get_input(0).dtype  # Q/DQ around a layer: TensorRT fuses them into an INT8 kernel
            work[names.get(kind, str(kind))] = work.get(names.get(kind, str(kind)), 0.0) + macs
    return shares(work)


def _multiply_adds(trt: ModuleType, layer: Any) -> float:
    # the batch dimension is -1 and cancels out of the shares
    if layer.type == trt.LayerType.CONVOLUTION:
        layer.__class__ = trt.IConvolutionLayer
        out, channels = tuple(layer.get_output(0).shape)[1:], layer.get_input(0).shape[1]
        return math.prod(out) * channels * math.prod(layer.kernel_size_nd) / layer.num_groups
    if layer.type == trt.LayerType.MATRIX_MULTIPLY:
        return math.prod(size for size in layer.get_input(1).shape if size > 0)
    return 0.0


def _producer(network: Any, tensor: Any) -> Any:
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if any(layer.get_output(k).name == tensor.name for k in range(layer.num_outputs)):
            return layer
    return None


def _add_profile(builder: Any, config: Any, network: Any, profile: Profile, logger: Any) -> None:
    image = tuple(network.get_input(0).shape)[1:]
    shapes = builder.create_optimization_profile()
    sizes = (profile.smallest, profile.typical, profile.largest)
    shapes.set_shape(network.get_input(0).name, *((size, *image) for size in sizes))
    if config.add_optimization_profile(shapes) < 0:
        raise SajiError(f"batch sizes {sizes} are no profile: {logger.reason()}; give smallest ≤ typical ≤ largest")


def _set_targets(trt: ModuleType, config: Any, targets: tuple[str, ...]) -> None:
    if not hasattr(config, "set_compute_capability"):
        raise SajiError(f"{trt.__name__} builds for the GPU at hand only; leave --targets out, or use tensorrt-rtx")
    config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        capability = getattr(trt.ComputeCapability, target.upper(), None)
        if capability is None:
            known = [name.lower() for name in dir(trt.ComputeCapability) if name.startswith("SM")]
            raise SajiError(f"{trt.__name__} has no target {target!r}; choose from {', '.join(known)}")
        config.set_compute_capability(capability, i)


def build_for_every_flavour(
    onnx_file: Path, folder: Path, profile: Profile, targets: tuple[str, ...], say: Callable[[str], None]
) -> dict[str, Built]:
    """Build one FP16 engine per TensorRT flavour that can be built here; say why the others are skipped."""
    built = {}
    for backend in MODULES:
        try:
            if backend == "tensorrt":  # its builder times kernels, so it needs the GPU it builds for
                from runtime.backends.cuda import require_gpu

                require_gpu()
            trt = module_for(backend)
            chosen = targets if backend == "tensorrt-rtx" else ()
            built[backend] = build_engine(trt, onnx_file, folder / f"{backend}.fp16.engine", "fp16", profile, chosen)
        except Unavailable as error:
            say(f"skipped {backend} engine: {error}")
    return built
