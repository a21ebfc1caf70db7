"""The engines that can run a model, one row each; adding one is one file and one row.

A backend is a class with `run(images: uint8 [N, H, W, 3] RGB) -> float32 [N, classes]`, `close()`, and the proof
of what it really got: `precision_share`, the share of multiply-adds per number format, read from the opened engine.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.errors import SajiError, Unavailable


class Backend(Protocol):
    """An opened engine. Opening raises Unavailable or NotAsAsked rather than falling back."""

    def run(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 `[N, classes]` logits."""
        ...

    def precision_share(self) -> dict[str, float]:
        """Share of the network's multiply-adds per number format, e.g. `{"int8": 0.97, "fp32": 0.03}`."""
        ...

    def close(self) -> None:
        """Free the engine; `run` must not be called afterwards."""
        ...


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
class Row:
    """One backend: its module and class under `runtime.backends`, the extra that installs it, what it offers."""

    module: str
    extra: str
    offers: tuple[Offer, ...]


_FP32, _INT8 = Offer("model.onnx", "fp32"), Offer("model.int8.onnx", "int8")
# ONNX Runtime's CPU provider computes an FP16 graph in FP32 between casts, and leaves out those between two layers; as
# written it keeps them, so that rounding and overflow show. FP16 sums and FP16 speed it cannot show
_FP16_CHECK = Offer("model.fp16.onnx", "fp16", variant="as written", servable=False)
# Likewise the INT8 file for TensorRT: its roundings between layers that compute in FP32. As written: ONNX Runtime
# 1.31.1 would quantise the biases by scales that it multiplies in FP16, where they vanish, and answer wrongly
_INT8_CHECK = Offer("model.int8-trt.onnx", "int8", variant="as written", servable=False)


def _engines(backend: str) -> tuple[Offer, ...]:
    files = {precision: f"engines/{backend}.{precision}.engine" for precision in ("fp16", "int8")}
    return tuple(Offer(file, precision, variant) for precision, file in files.items() for variant in ("", "CUDA graph"))


BACKENDS: dict[str, Row] = {
    "pytorch": Row(
        "pytorch", "train", (Offer("model.pt2", "fp32"), Offer("model.pt2", "fp32", variant="channels-last"))
    ),
    "ort-cpu": Row("onnxruntime", "cpu", (_FP32, _INT8, _FP16_CHECK, _INT8_CHECK)),
    "openvino": Row("openvino", "openvino", (_FP32, Offer("model.onnx", "bf16"), _INT8)),
    "ort-cuda": Row("onnxruntime", "gpu", (_FP32, Offer("model.fp16.onnx", "fp16"))),
    "tensorrt": Row("tensorrt", "tensorrt", _engines("tensorrt")),
    "tensorrt-rtx": Row("tensorrt", "tensorrt-rtx", _engines("tensorrt-rtx")),
}


def unavailable_because(backend: str) -> str | None:
    """Why this machine cannot run `backend`, as one sentence; None when it can."""
    if backend not in BACKENDS:
        raise SajiError(f"there is no backend {backend!r}; choose from {', '.join(BACKENDS)}")
    try:
        _module(backend).check_available(backend)
    except Unavailable as error:
        return str(error)
    return None


def available_backends() -> dict[str, str | None]:
    """Every backend's name with the reason why it cannot run here, or None when it can."""
    return {name: unavailable_because(name) for name in BACKENDS}


def open_backend(
    backend: str,
    path: Path,
    precision: str,
    variant: str = "",
    threads: int = 0,
    facts: dict[str, Any] | None = None,
    streams: int = 1,
) -> Backend:
    """Open a model file and prove provider and precision, or raise.

    `threads` are the processor threads of one call; 0 leaves the count to the engine, which takes all cores it may use.
    `streams` are the calls from several threads that it should be ready to compute side by side. `facts` are the
    candidate's: what an engine was built for, which layers keep a higher precision. Raises Unavailable (library or
    device missing), NotAsAsked (another provider or precision than asked), BadModel (file damaged).
    """
    reason = unavailable_because(backend)
    if reason:
        raise Unavailable(reason)
    if not path.is_file():
        raise SajiError(f"{path} does not exist; write it with: make export")
    opened: Backend = _module(backend).open_engine(backend, path, precision, variant, threads, facts or {}, streams)
    return opened


def _module(backend: str):  # type: ignore[no-untyped-def]  # a module that has check_available and open_engine
    return importlib.import_module(f"runtime.backends.{BACKENDS[backend].module}")
