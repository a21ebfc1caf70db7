"""TensorRT engines, by one builder for `tensorrt` and `tensorrt_rtx` (the module is injected).

Precision lives in the ONNX file: networks are strongly typed and no precision flag is touched, so the same code
serves TensorRT 10.14, 11 and RTX. What was really built is read back from the parsed network.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from export.graph import layer_facts
from export.settings import USUAL_TARGETS, Settings
from runtime.backends import cuda
from runtime.backends.base import BuildFacts, check_precision
from runtime.backends.tensorrt.engine import MODULES, imported
from runtime.backends.tensorrt.logger import collecting_logger
from runtime.errors import SajiError, Unavailable
from runtime.files import replacing, sha256_file
from runtime.machine import machine
from runtime.terminal import doing

SOURCES = {"fp16": "model.fp16.onnx", "int8": "model.int8-trt.onnx"}  # what the engine of a precision is built from


@dataclass(frozen=True, kw_only=True)
class Built(BuildFacts):
    """Facts of a built engine for the receipt: what it was built with, for which GPUs, and what is in it.

    `layers` are the parsed network's as (name, kind, number format).
    """

    cuda: str
    driver: str
    gpu: str | None
    profile: tuple[int, int, int]
    precision_share: dict[str, float]
    layers: tuple[tuple[str, str, str], ...]
    onnx_sha256: str
    engine_sha256: str

    def facts(self) -> BuildFacts:
        """Those that the runtime needs, to refuse a mismatch and to check the precision."""
        return BuildFacts(**{fact.name: getattr(self, fact.name) for fact in fields(BuildFacts)})


def module_for(backend: str) -> ModuleType:
    """The Python module of a TensorRT flavour that can build here. Raises Unavailable with the reason."""
    if backend == "tensorrt":  # its builder times kernels, so it needs the GPU it builds for
        cuda.require_gpu()
    return imported(backend)


def buildable() -> dict[str, str]:
    """The TensorRT flavours whose engines can be built here, with their versions."""
    flavours = {}
    for backend in MODULES:
        with contextlib.suppress(Unavailable):
            flavours[backend] = str(module_for(backend).__version__)
    return flavours


def targets_of(trt: ModuleType, settings: Settings) -> tuple[str, ...]:
    """The GPU architectures that an engine is built for; empty where it is for every GPU that the flavour knows.

    Enterprise TensorRT builds for the GPU that is here. TensorRT-RTX builds for those named or, by default, for the
    usual ones and this machine's, if it serves that.
    """
    if trt.__name__ != "tensorrt_rtx":
        return (cuda.compute_capability(),)
    if settings.targets != USUAL_TARGETS:
        return settings.targets
    with contextlib.suppress(Unavailable):
        cuda.require_gpu()
        here = cuda.compute_capability()
        if hasattr(trt.ComputeCapability, here.upper()):
            return tuple(dict.fromkeys((*USUAL_TARGETS, here)))
    return USUAL_TARGETS


def build_engines(
    folder: Path, settings: Settings, say: Callable[[str], None], cache: Path | None = None
) -> tuple[dict[str, Built], list[str]]:
    """Build the engines of a model folder by every TensorRT flavour that can build here.

    Returns the facts by file name, and why others are missing: the flavour is unavailable, or TensorRT refused. Where
    it refuses a precision that must pass, SajiError is raised.
    """
    built: dict[str, Built] = {}
    skipped: list[str] = []
    for backend in MODULES:
        try:
            trt = module_for(backend)
            _check_options(trt, settings)
        except Unavailable as error:
            skipped.append(f"skipped {backend} engines: {error}")
            continue
        for precision in (p for p in SOURCES if p in settings.wanted):
            name = f"engines/{backend}.{precision}.engine"
            say(f"building {name}")
            source = folder / SOURCES[precision]
            try:
                built[name] = build_engine(trt, source, folder / name, precision, settings, cache)
            except SajiError as error:
                if precision in settings.precisions:
                    raise
                skipped.append(f"no {name}: {error}")
    for reason in skipped:
        say(reason)
    return built, skipped


def build_engine(
    trt: ModuleType, onnx_file: Path, path: Path, precision: str, settings: Settings, cache: Path | None = None
) -> Built:
    """Build a raw plan from an ONNX file and write it atomically; see `write_model` for `cache`.

    Raises SajiError with TensorRT's own words when it refuses, NotAsAsked when the parsed network is not in
    `precision`.
    """
    logger = collecting_logger(trt)
    builder = _builder(trt, logger)
    network = parse(trt, builder, logger, onnx_file)
    facts, layers = layer_facts(onnx_file), layers_of(trt, network)
    amounts = facts["multiply_adds"]  # of the file: in the network the batch is free, and so is what is merged with it
    work = [(name, kind, float(amounts[name])) for name, _, kind in layers if name in amounts]
    share = check_precision(work, precision, f"{trt.__name__} parsing {onnx_file.name}", facts["kept"])
    config = _config(trt, builder, network, settings, logger)
    timings = cache / _timings_of(trt) if cache and trt.__name__ == "tensorrt" else None
    if timings:
        _take_timings(config, timings)
    progress = _progress_monitor(trt, path.name)  # the builder itself does not keep it alive
    config.progress_monitor = progress
    plan = serialised(builder, network, config, f"{trt.__name__} cannot build {onnx_file.name}")
    with replacing(path) as temporary:
        temporary.write_bytes(memoryview(plan))
    if timings and (learnt := config.get_timing_cache()) is not None:
        with replacing(timings) as temporary:
            temporary.write_bytes(memoryview(learnt.serialize()))
    versions = cuda.versions()
    return Built(
        **facts,
        typed={name: kind for name, kind, _ in work},
        flavour=trt.__name__,
        version=trt.__version__,
        cuda=versions.get("cuda", "unknown"),
        driver=versions.get("driver", "unknown"),
        system=machine().system,
        gpu=machine().gpu,
        targets=targets_of(trt, settings),
        profile=settings.batch,
        version_compatible=settings.version_compatible,
        hardware_compatible=settings.hardware_compatible,
        precision_share=share,
        layers=layers,
        onnx_sha256=sha256_file(onnx_file),
        engine_sha256=sha256_file(path),
    )


def _builder(trt: ModuleType, logger: Any) -> Any:
    """A builder. Without a driver that works its constructor returns nothing, which Python gets as TypeError."""
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        why = logger.reason() if logger.errors else str(error)[:120]
        raise Unavailable(
            f"{trt.__name__} {trt.__version__} cannot build here ({why}); look with: nvidia-smi"
        ) from None


def _timings_of(trt: ModuleType) -> str:
    """Where the timings of kernels are kept: they hold for one version of TensorRT on one kind of GPU."""
    gpu = "".join(letter if letter.isalnum() else "-" for letter in machine().gpu or "")
    return f"tensorrt-{trt.__version__}-{gpu}.timings"


def _take_timings(config: Any, file: Path) -> None:
    """Let the builder begin with the timings in a file, or where TensorRT does not take those, with none."""
    for known in ([file.read_bytes()] if file.is_file() else []) + [b""]:
        timings = config.create_timing_cache(known)
        if timings is not None and config.set_timing_cache(timings, False):
            return


def parse(trt: ModuleType, builder: Any, logger: Any, onnx_file: Path) -> Any:
    """Parse an ONNX file into a strongly typed network; raises SajiError with the parser's words."""
    flags = trt.NetworkDefinitionCreationFlag
    strongly = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(strongly)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_file.read_bytes()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_operator()} {error.desc()}".strip() for error in errors)
        raise SajiError(f"{trt.__name__} cannot read {onnx_file.name}: {(reasons or logger.reason())[:300]}")
    if network.num_layers == 0:
        raise SajiError(f"{trt.__name__} found no layers in {onnx_file.name}: {logger.reason()}")
    return network


def serialised(builder: Any, network: Any, config: Any, what: str) -> Any:
    """The built plan; raises SajiError, which begins with `what` and ends with the reason from the logger."""
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SajiError(f"{what}: {builder.logger.reason()}")
    return plan


def layers_of(trt: ModuleType, network: Any) -> tuple[tuple[str, str, str], ...]:
    """Name, kind and number format of each layer of a parsed network, constants left out."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made_by = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    return tuple(
        (layer.name, layer.type.name, _format(trt, layer, made_by))
        for layer in layers
        if layer.type != trt.LayerType.CONSTANT
    )


def _format(trt: ModuleType, layer: Any, made_by: dict[str, Any]) -> str:
    """A layer's number format: INT8 where Q/DQ pairs wrap all its inputs, which TensorRT fuses into one kernel."""
    formats = {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16", trt.int8: "int8"}
    inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
    kinds = [_origin(trt, tensor, made_by) for tensor in inputs if tensor is not None]  # None: one that may be left out
    multiplies = layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    if multiplies and trt.int8 in kinds and set(kinds[:2]) != {trt.int8}:
        kinds = [layer.get_output(0).dtype]  # only half quantised: it computes in the type it gives
    kind = kinds[0] if kinds else layer.get_output(0).dtype
    return formats.get(kind, str(kind))


def _origin(trt: ModuleType, tensor: Any, made_by: dict[str, Any]) -> Any:
    """The type in which a tensor is really handed over, seen through dequantisation and pooling.

    Max pooling commutes with quantisation, and TensorRT moves the pair across it (its guide's chapter on Q/DQ).
    """
    maker = made_by.get(tensor.name)
    while maker is not None and maker.type == trt.LayerType.POOLING:
        maker = made_by.get(maker.get_input(0).name)
    if maker is not None and maker.type == trt.LayerType.DEQUANTIZE:
        return maker.get_input(0).dtype
    return tensor.dtype


def _config(trt: ModuleType, builder: Any, network: Any, settings: Settings, logger: Any) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # lets the inspector tell each layer's precision
    # FP32 on a GPU otherwise means TF32, a mantissa of 10 bits
    config.clear_flag(trt.BuilderFlag.TF32)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    image = tuple(network.get_input(0).shape)[1:]
    add_profile(builder, config, network.get_input(0).name, image, settings.batch, logger)
    targets = targets_of(trt, settings)
    if targets and trt.__name__ == "tensorrt_rtx":
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), i)
    return config


def add_profile(
    builder: Any, config: Any, tensor: str, image: tuple[int, ...], sizes: tuple[int, int, int], logger: Any
) -> None:
    """Allow batches of the smallest to the largest of `sizes`, for images `[N, *image]`.

    Raises SajiError with TensorRT's words.
    """
    shapes = builder.create_optimization_profile()
    shapes.set_shape(tensor, *((size, *image) for size in sizes))
    if config.add_optimization_profile(shapes) < 0:
        raise SajiError(f"batch sizes {sizes} are no profile: {logger.reason()}")


def _check_options(trt: ModuleType, settings: Settings) -> None:
    """Raise SajiError for a target that does not exist, Unavailable for what this flavour cannot build."""
    if trt.__name__ != "tensorrt_rtx":
        return
    for target in settings.targets:
        if not hasattr(trt.ComputeCapability, target.upper()):
            known = [name.lower() for name in dir(trt.ComputeCapability) if name.startswith("SM")]
            raise SajiError(f"{trt.__name__} has no target {target!r}; choose from {', '.join(known)}")
    if settings.version_compatible or settings.hardware_compatible:
        raise Unavailable(
            "TensorRT-RTX ties a plan to its version, and to GPUs by --targets; leave --version-compatible and "
            "--hardware-compatible out, or install enterprise TensorRT on a machine with a GPU"
        )


def _progress_monitor(trt: ModuleType, name: str) -> Any:
    """What the builder is at, beside the bar that shows the export's progress."""

    class Progress(trt.IProgressMonitor):  # type: ignore[name-defined, misc]  # the base class comes with the module
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            doing(f"{name}: {phase} {step + 1}/{self.steps[phase]}")
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            pass

    return Progress()
