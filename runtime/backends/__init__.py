"""The engines that can run a model, one row each: adding one is one file, with a class of `Backend`, and one row."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from runtime.backends.base import Backend, BuildFacts, Request
from runtime.backends.cuda import require_gpu
from runtime.errors import SajiError, Unavailable
from runtime.files import is_file

__all__ = ["BACKENDS", "Backend", "BuildFacts", "available_backends", "distributions", "open_backend"]
__all__ += ["unavailable_because"]


@dataclass(frozen=True)
class Offer:
    """One way a backend can run one file: the file's name, the precision it must reach, and a variant of settings.

    Not `servable`: the backend computes the file in FP32, which tells whether the file is right and nothing more.
    """

    file: str
    precision: str
    variant: str = ""
    servable: bool = True


@dataclass(frozen=True)
class Triton:
    """How Triton Inference Server runs a backend's files: its own backend, the file name it expects, and where."""

    backend: str
    file: str
    kind: str


@dataclass(frozen=True)
class Row:
    """What there is to know of one backend, wherever backends are listed.

    `opened_by`: the module under `runtime.backends` and the class in it. `extra`: of ours, which installs it.
    `distributions`: the packages whose versions belong to the conditions of a measurement. `provider`: ONNX Runtime's
    name of it. `triton` is None where Triton does not run its files.
    """

    opened_by: str
    extra: str
    distributions: tuple[str, ...]
    offers: tuple[Offer, ...]
    gpu: bool = False
    provider: str = ""
    triton: Triton | None = None


_PYTORCH = (Offer("model.pt2", "fp32"), Offer("model.pt2", "fp32", variant="channels-last"))
_PYTORCH_CUDA = (
    *(Offer("model.pt2", precision) for precision in ("fp32", "fp16", "bf16")),
    *(Offer("model.pt2", precision, variant="compiled") for precision in ("fp32", "fp16")),
)
_FP32, _INT8 = Offer("model.onnx", "fp32"), Offer("model.int8.onnx", "int8")
# ONNX Runtime's CPU provider computes an FP16 graph in FP32 between casts, and leaves out those between two layers; as
# written it keeps them, so that rounding and overflow show. FP16 sums and FP16 speed it cannot show on x86; an ARM
# processor with FP16 arithmetic computes them
_FP16_CHECK = Offer("model.fp16.onnx", "fp16", variant="as written", servable=False)
# Likewise the INT8 file for TensorRT: its roundings between layers that compute in FP32. As written: ONNX Runtime
# 1.31.1 would quantise the biases by scales that it multiplies in FP16, where they vanish, and answer wrongly
_INT8_CHECK = Offer("model.int8-trt.onnx", "int8", variant="as written", servable=False)
_ORT_CUDA = tuple(
    Offer(file, precision, variant)
    for file, precision in (("model.onnx", "fp32"), ("model.fp16.onnx", "fp16"))
    for variant in ("", "CUDA graph")
)
_ORT = ("onnxruntime", "onnxruntime-gpu")  # which of them is there serves both providers
# Wheels for CUDA 13 or 12, by what the driver serves
_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_RTX = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12")


def _engines(backend: str) -> tuple[Offer, ...]:
    files = {precision: f"engines/{backend}.{precision}.engine" for precision in ("fp16", "int8")}
    return tuple(Offer(file, precision, variant) for precision, file in files.items() for variant in ("", "CUDA graph"))


BACKENDS: dict[str, Row] = {
    "pytorch": Row("pytorch.PyTorch", "train", ("torch",), _PYTORCH),
    "ort-cpu": Row("onnxruntime.OnnxRuntime", "cpu", _ORT, (_FP32, _INT8, _FP16_CHECK, _INT8_CHECK),
                   provider="CPUExecutionProvider", triton=Triton("onnxruntime", "model.onnx", "KIND_CPU")),
    "openvino": Row("openvino.OpenVino", "openvino", ("openvino",), (_FP32, Offer("model.onnx", "bf16"), _INT8)),
    "pytorch-cuda": Row("pytorch.PyTorchCuda", "train", ("torch",), _PYTORCH_CUDA, gpu=True),
    "ort-cuda": Row("onnxruntime.OnnxRuntimeCuda", "gpu", _ORT, _ORT_CUDA, gpu=True,
                    provider="CUDAExecutionProvider", triton=Triton("onnxruntime", "model.onnx", "KIND_GPU")),
    "tensorrt": Row("tensorrt.engine.TensorRt", "tensorrt", _TENSORRT, _engines("tensorrt"),
                    gpu=True, triton=Triton("tensorrt", "model.plan", "KIND_GPU")),
    "tensorrt-rtx": Row("tensorrt.engine.TensorRt", "tensorrt-rtx", _RTX, _engines("tensorrt-rtx"),
                        gpu=True),
}  # fmt: skip


def unavailable_because(backend: str) -> str | None:
    """Why this machine cannot run `backend`, as one sentence; None when it can."""
    if backend not in BACKENDS:
        raise SajiError(f"there is no backend {backend!r}; choose from {', '.join(BACKENDS)}")
    try:
        if BACKENDS[backend].gpu:  # without one, some libraries crash the process instead of failing
            require_gpu()
        _class_of(backend).check_available(backend)
    except Unavailable as error:
        return str(error)
    return None


def available_backends() -> dict[str, str | None]:
    """Every backend's name with the reason why it cannot run here, or None when it can."""
    return {name: unavailable_because(name) for name in BACKENDS}


def distributions(*backends: str) -> tuple[str, ...]:
    """The packages that some backends, by default all, are installed by, each once and in the table's order."""
    rows = (row for name, row in BACKENDS.items() if not backends or name in backends)
    return tuple(dict.fromkeys(package for row in rows for package in row.distributions))


def open_backend(
    backend: str,
    path: Path,
    precision: str,
    variant: str = "",
    threads: int = 0,
    facts: BuildFacts | None = None,
    streams: int = 1,
    sha256: str = "",
) -> Backend:
    """Open a model file and check provider and precision, or raise; the arguments are those of `base.Request`.

    Raises Unavailable (library or device missing), NotAsAsked (another provider or precision than asked), BadModel
    (file damaged).
    """
    reason = unavailable_because(backend)
    if reason:
        raise Unavailable(reason)
    if not is_file(path):
        raise SajiError(f"{path} does not exist; write it with: make export")
    return _class_of(backend)(
        Request(backend, path, precision, variant, threads, facts or BuildFacts(), streams, sha256)
    )


def _class_of(backend: str) -> type[Backend]:
    module, _, name = BACKENDS[backend].opened_by.rpartition(".")
    return getattr(importlib.import_module(f"runtime.backends.{module}"), name)  # type: ignore[no-any-return]
