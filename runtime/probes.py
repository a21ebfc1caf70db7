"""Does a backend really run? `python -m runtime.probes run NAME` has it compute the smallest network.

Each has a process of its own: a broken library may end it, and one that was imported before may lend its files to the
next. Neither is to be seen in another backend's answer.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends import unavailable_because

MISSING = 3  # the exit status of who says why a backend cannot be used
PATIENCE = 120  # seconds; PyTorch takes some ten to start beside others
# The smallest network: Relu of one number, y = max(x, 0), as an ONNX file of opset 13
NETWORK = bytes.fromhex(
    "08083a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a0208014204"
    "0a00100d"
)


def missing(backends: Iterable[str]) -> dict[str, str | None]:
    """By backend, why it cannot be used in one line; None if it can, or breaks when imported, which `probe` tells."""
    return {name: why if status == MISSING else None for name, (status, why) in _asked("import", backends).items()}


def probe(backends: Iterable[str]) -> dict[str, str | None]:
    """By backend, why the smallest network does not run on it in one line, None if it does; all at the same time."""
    found = _asked("run", (name for name in backends if name in PROBES))
    return {name: why if status else None for name, (status, why) in found.items()}


def _asked(what: str, backends: Iterable[str]) -> dict[str, tuple[int, str]]:
    started = {name: _start(what, name) for name in backends}
    return {name: _ending(process) for name, process in started.items()}


def _start(what: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runtime.probes", what, name],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip


def _ending(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return 1, f"it gave no answer within {PATIENCE} seconds"
    status = process.returncode
    if status < 0:
        return status, f"it ended its process by signal {-status}"
    lines = (out.strip() or err.strip()).splitlines()
    return status, lines[-1] if lines else f"exit status {status}"


def pytorch() -> None:
    """PyTorch on the processor."""
    import torch

    _require_zero(torch.relu(torch.tensor([-1.0])).item())


def pytorch_cuda() -> None:
    """PyTorch on the GPU, by one of its own kernels."""
    import torch

    _require_zero(torch.relu(torch.tensor([-1.0], device="cuda")).item())


def openvino() -> None:
    """OpenVINO on the processor."""
    import openvino

    core = openvino.Core()
    _require_zero(core.compile_model(core.read_model(NETWORK), "CPU")(np.array([-1], np.float32))[0])


def onnxruntime(provider: str) -> None:
    """ONNX Runtime on one provider, with CUDA's libraries loaded as when it serves."""
    from runtime.backends.onnxruntime import load_cuda_runtime, preload_cuda

    load_cuda_runtime()
    import onnxruntime

    if provider == "CUDAExecutionProvider":
        preload_cuda()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is told by us, in one line
    session = onnxruntime.InferenceSession(NETWORK, options, providers=[provider])
    if session.get_providers()[0] != provider:
        fallback = session.get_providers()[0]
        raise RuntimeError(f"it silently falls back to {fallback}: a library or the device is missing")
    _require_zero(session.run(None, {"x": np.array([-1], np.float32)})[0])


def tensorrt(module: str) -> None:
    """A flavour of TensorRT: what builds and what runs engines can be opened."""
    import importlib

    trt = importlib.import_module(module)
    logger = trt.Logger(trt.Logger.ERROR)
    if not trt.Builder(logger) or not trt.Runtime(logger):
        raise RuntimeError("neither a builder nor a runtime can be opened")


PROBES: dict[str, Callable[[], None]] = {
    "pytorch": pytorch,
    "pytorch-cuda": pytorch_cuda,
    "openvino": openvino,
    "ort-cpu": lambda: onnxruntime("CPUExecutionProvider"),
    "ort-cuda": lambda: onnxruntime("CUDAExecutionProvider"),
    "tensorrt": lambda: tensorrt("tensorrt"),
    "tensorrt-rtx": lambda: tensorrt("tensorrt_rtx"),
}


def _require_zero(answer: Any) -> None:
    """Raise ArithmeticError unless a probe computed max(0, −1); an assert would be gone under `python -O`."""
    value = np.asarray(answer).item()
    if value != 0:
        raise ArithmeticError(f"it says {value:g} for max(0, -1), so nothing that it says is to be trusted")


def _import(name: str) -> None:
    if reason := unavailable_because(name):
        print(f"\n{reason}", flush=True)
        os._exit(MISSING)


def main() -> None:
    """Import or run the backend that is named; what goes wrong is the last line of stdout."""
    what, name = sys.argv[1:]
    try:
        _import(name) if what == "import" else PROBES[name]()
    except Exception as error:  # a broken library may raise anything
        print(f"\n{type(error).__name__}: {' '.join(str(error).split())[:120]}", flush=True)
        os._exit(1)  # libraries that are half loaded may crash as Python ends


if __name__ == "__main__":
    main()
