"""Doubles of libcuda.so and libnvidia-ml.so as ctypes loads them. Standard library only.

Names and numbers are those of cuda.h and nvml.h: CUDA_ERROR_INVALID_VALUE 1, NOT_INITIALIZED 3, NO_DEVICE 100,
INVALID_DEVICE 101; CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR 75 and MINOR 76; NVML_ERROR_UNINITIALIZED 1.
"""

import re
import uuid
from collections.abc import Callable
from typing import Any

from saji_twin import machine, misuse, number, visible

ERRORS = {
    **{0: "CUDA_SUCCESS", 1: "CUDA_ERROR_INVALID_VALUE", 3: "CUDA_ERROR_NOT_INITIALIZED"},
    **{100: "CUDA_ERROR_NO_DEVICE", 101: "CUDA_ERROR_INVALID_DEVICE"},
}


def store(target: Any, value: Any) -> None:
    """Write into what a C function was given to fill: byref(x), pointer(x), a ctypes array or object."""
    target = getattr(target, "_obj", target)
    if hasattr(target, "contents"):
        target = target.contents
    if isinstance(value, bytes) and hasattr(target, "raw"):
        if len(value) >= len(target):
            value = value[: len(target) - 1]
        target.value = value
    elif isinstance(value, bytes) and hasattr(target, "_length_"):  # CUuuid, an array of 16 bytes
        target[:] = value
    else:
        target.value = value


def plain(value: Any) -> int:
    """A number that may have come as a ctypes object."""
    return int(getattr(value, "value", value))


class Function:
    """One entry of a library; `argtypes` and `restype` may be set, as ctypes allows."""

    def __init__(self, call: Callable[..., int]) -> None:
        self.call, self.argtypes, self.restype = call, None, None

    def __call__(self, *arguments: Any) -> int:
        return self.call(*arguments)


class Library:
    """A loaded library whose functions are the methods of the class that derives it."""

    def __getattr__(self, name: str) -> Function:
        if not name.startswith("_") and hasattr(type(self), f"do_{name}"):
            function = Function(getattr(self, f"do_{name}"))
            setattr(self, name, function)
            return function
        raise AttributeError(f"undefined symbol: {name}")


class Cuda(Library):
    """libcuda.so.1."""

    ready = False

    def do_cuInit(self, flags: Any) -> int:
        Cuda.ready = bool(visible())
        return 0 if plain(flags) == 0 and visible() else 100 if plain(flags) == 0 else 1

    def do_cuDriverGetVersion(self, version: Any) -> int:
        store(version, number(machine().cuda))  # may be asked before cuInit
        return 0

    def do_cuDeviceGetCount(self, count: Any) -> int:
        return self._told(count, len(visible()))

    def do_cuDeviceGet(self, device: Any, ordinal: Any) -> int:
        return self._of(ordinal, lambda gpu: store(device, plain(ordinal)))

    def do_cuDeviceGetName(self, name: Any, length: Any, device: Any) -> int:
        return self._of(device, lambda gpu: store(name, gpu.name.encode()))

    def do_cuDeviceGetAttribute(self, value: Any, attribute: Any, device: Any) -> int:
        if plain(attribute) not in (75, 76):
            misuse(f"cuDeviceGetAttribute: the twin does not know attribute {plain(attribute)}")
        return self._of(device, lambda gpu: store(value, gpu.capability[plain(attribute) - 75]))

    def do_cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        return self._of(device, lambda gpu: store(size, gpu.memory_mib * 2**20))

    def do_cuDeviceTotalMem(self, size: Any, device: Any) -> int:
        misuse("cuDeviceTotalMem is the old entry that writes 32 bits; cuda.h maps the name to cuDeviceTotalMem_v2")

    def do_cuDeviceGetUuid(self, identity: Any, device: Any) -> int:
        return self._of(device, lambda gpu: store(identity, uuid.UUID(gpu.uuid.removeprefix("GPU-")).bytes))

    do_cuDeviceGetUuid_v2 = do_cuDeviceGetUuid

    def do_cuGetErrorName(self, error: Any, text: Any) -> int:
        store(text, ERRORS.get(plain(error), "CUDA_ERROR_UNKNOWN").encode())
        return 0

    def do_cuGetErrorString(self, error: Any, text: Any) -> int:
        store(text, ERRORS.get(plain(error), "unknown").removeprefix("CUDA_ERROR_").replace("_", " ").lower().encode())
        return 0

    def _told(self, target: Any, value: Any) -> int:
        if not Cuda.ready:
            return 3
        store(target, value)
        return 0

    def _of(self, device: Any, answer: Callable[[Any], None]) -> int:
        if not Cuda.ready:
            return 3
        if not 0 <= plain(device) < len(visible()):
            return 101
        answer(visible()[plain(device)])
        return 0


class Nvml(Library):
    """libnvidia-ml.so.1, as far as it tells the driver's version and the GPUs; it knows no CUDA_VISIBLE_DEVICES."""

    ready = False

    def do_nvmlInit_v2(self) -> int:
        Nvml.ready = True
        return 0

    do_nvmlInit = do_nvmlInit_v2

    def do_nvmlShutdown(self) -> int:
        Nvml.ready = False
        return 0

    def do_nvmlSystemGetDriverVersion(self, version: Any, length: Any) -> int:
        if not Nvml.ready:
            return 1
        store(version, machine().driver.encode())
        return 0

    def do_nvmlSystemGetCudaDriverVersion_v2(self, version: Any) -> int:
        store(version, number(machine().cuda))
        return 0

    def do_nvmlDeviceGetCount_v2(self, count: Any) -> int:
        if not Nvml.ready:
            return 1
        store(count, len(machine().gpus))
        return 0


LIBRARIES = {"libcuda.so": Cuda, "libnvidia-ml.so": Nvml}


def smi(arguments: list[str]) -> str:
    """What nvidia-smi prints for its arguments; it knows no CUDA_VISIBLE_DEVICES and lists by the PCI bus."""
    query = next((word.partition("=")[2] for word in arguments if word.startswith("--query-gpu=")), "")
    lines = []
    for index, gpu in enumerate(machine().gpus):
        values = {
            **{"name": gpu.name, "driver_version": machine().driver, "memory.total": f"{gpu.memory_mib} MiB"},
            **{"index": str(index), "uuid": gpu.uuid, "compute_cap": ".".join(map(str, gpu.capability))},
        }
        if query:
            lines.append(", ".join(values.get(field.strip(), "[N/A]") for field in query.split(",")))
        else:
            lines.append(f"GPU {index}: {gpu.name} (UUID: {gpu.uuid})")
    if not query and not re.search("-L", " ".join(arguments)):
        lines.insert(0, f"NVIDIA-SMI {machine().driver}   CUDA Version: {machine().cuda}")
    return "\n".join(lines)
