"""A double of nvidia-ml-py, as far as the benchmark's watch and people use it."""

import os
import sys
from types import SimpleNamespace
from typing import Any

from saji_twin import machine

NVML_ERROR_UNINITIALIZED, NVML_ERROR_INVALID_ARGUMENT, NVML_ERROR_NOT_SUPPORTED = 1, 2, 3
NVML_ERROR_LIBRARY_NOT_FOUND = 12
_ready = False


class NVMLError(Exception):
    """NVML's error, by its number."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


def nvmlInit() -> None:
    global _ready
    if not machine().driver:
        raise NVMLError(NVML_ERROR_LIBRARY_NOT_FOUND)
    _ready = True


def nvmlShutdown() -> None:
    global _ready
    _ready = False


def _require() -> None:
    if not _ready:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)


def nvmlSystemGetDriverVersion() -> str:
    _require()
    return machine().driver


def nvmlDeviceGetCount() -> int:
    _require()
    return len(machine().gpus)


def nvmlDeviceGetHandleByIndex(index: int) -> Any:
    _require()
    if not 0 <= index < len(machine().gpus):
        raise NVMLError(NVML_ERROR_INVALID_ARGUMENT)
    return machine().gpus[index]


def nvmlDeviceGetHandleByUUID(uuid: str) -> Any:
    _require()
    text = uuid.decode() if isinstance(uuid, bytes) else uuid
    for gpu in machine().gpus:
        if gpu.uuid == text:
            return gpu
    raise NVMLError(NVML_ERROR_INVALID_ARGUMENT)


def nvmlDeviceGetName(gpu: Any) -> str:
    return gpu.name


def nvmlDeviceGetUUID(gpu: Any) -> str:
    return gpu.uuid


def nvmlDeviceGetMemoryInfo(gpu: Any) -> Any:
    total = gpu.memory_mib * 2**20
    return SimpleNamespace(total=total, used=_held(gpu), free=total - _held(gpu))


def nvmlDeviceGetComputeRunningProcesses(gpu: Any) -> list[Any]:
    held = _held(gpu)
    return [SimpleNamespace(pid=os.getpid(), usedGpuMemory=held)] if held else []


def nvmlDeviceGetCurrentClocksEventReasons(gpu: Any) -> int:
    return 0


def nvmlDeviceGetEnforcedPowerLimit(gpu: Any) -> int:
    return 450_000  # milliwatts


def nvmlDeviceGetClockInfo(gpu: Any, kind: int) -> int:
    return 1410


def nvmlDeviceGetMaxClockInfo(gpu: Any, kind: int) -> int:
    return 1980


def nvmlDeviceGetComputeMode(gpu: Any) -> int:
    return 0


def nvmlDeviceGetEccMode(gpu: Any) -> list[int]:
    return [0, 1]  # now, and after the next start


def nvmlDeviceGetPersistenceMode(gpu: Any) -> int:
    return 1


def _held(gpu: Any) -> int:
    memory = sys.modules.get("saji_twin.memory")
    return memory.held_by_uuid(gpu.uuid) if memory else 0
