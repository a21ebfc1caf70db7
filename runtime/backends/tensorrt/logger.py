"""A logger for TensorRT, which reports errors nowhere else."""

import gc
from types import ModuleType
from typing import Any


def collecting_logger(trt: ModuleType) -> Any:
    """A logger of `tensorrt` or `tensorrt_rtx`: `errors` lists what went wrong so far, `reason()` says it in a line."""
    # TensorRT calls its logger with a lock held. Were Python to collect its garbage then, and a builder or engine of
    # an earlier failure in it, freeing that would wait for the same lock for ever: so it is collected now
    gc.collect()

    class Collecting(trt.ILogger):  # type: ignore[name-defined, misc]  # the base class comes with the module
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())

        def reason(self) -> str:
            return "; ".join(self.errors[-2:])[:300] or "TensorRT gave no reason"

    return Collecting()
