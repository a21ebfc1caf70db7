"""The faults of the GPU path that were found before it was ever run, by number, and those that are still open."""

import pytest

FAULTS = {
    1: "the proof of precision refuses every engine of enterprise TensorRT",
    2: "engines of TensorRT-RTX are not built for the GPU that is here",
    3: "what is installed afterwards builds no engines, as the export is up to date",
    4: "ONNX Runtime finds CUDA only where PyTorch was imported before",
    5: "a refusal within a capture is kept as an empty graph; other threads break captures",
    6: "one execution context a thread",
    7: "tracebacks instead of reasons where memory, the driver or the timing cache is missing",
    8: "TensorRT-RTX serves fallback kernels, and compiles anew at every start",
    9: "a driver that is too old is taken for no GPU",
    10: "nvidia-smi's GPUs are taken for CUDA's",
    11: "a GPU engine is compared with PyTorch on the processor",
    12: "the Triton repository drops the variant; copies are pageable",
}
OPEN: frozenset[int] = frozenset()  # tests of these fail: a number leaves when its fault is mended


def fault(number: int) -> pytest.MarkDecorator:
    """Marks a test that its fault lets fail, as long as it is open."""
    return pytest.mark.xfail(number in OPEN, strict=True, reason=f"gpu.md fault {number}: {FAULTS[number]}")
