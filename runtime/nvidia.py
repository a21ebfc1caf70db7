"""NVIDIA's GPUs as the driver tells of them, which of them this process uses, and what `make` should install for them.

Standard library only, nothing of ours imported: `make` runs this file by the system's Python before anything else is
installed (`python3 runtime/nvidia.py --extras`).
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Where the loader's cache was not refreshed, WSL's own folder (NVIDIA's "CUDA on WSL User Guide")
_LIBRARIES = ("libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1", "nvcuda.dll")
_NVML = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1", "nvml.dll")
# cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_MAJOR, _MINOR = 75, 76
_PATIENCE = 60  # seconds; with persistence mode off, eight GPUs take some ten to wake
_NUMBER = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)?\b")


class NoSuchGpu(ValueError):
    """The number of a GPU that is not there; its text is one sentence."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, its compute capability such as "sm89", its memory in MiB."""

    name: str
    capability: str
    memory_mib: int


@dataclass(frozen=True)
class Driver:
    """What the driver tells.

    `version` such as "580.95.05", empty where there is none; `cuda` the highest CUDA that it serves, such as "13.0";
    `gpus` those that this process may use, in CUDA's order; `error` why it may use none, empty when all is well.
    """

    version: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""


@functools.cache
def driver() -> Driver:
    """Ask the driver; raises nothing.

    In a process of its own: CUDA must not be initialised in one that may fork, and a broken driver ends only the
    process that asks. None is started where libcuda cannot be loaded.
    """
    if _load(_LIBRARIES) is None:
        return Driver(version=_version_of_kernel(), error="libcuda.so.1 is not there")
    ask = [sys.executable, str(Path(__file__).resolve()), "--ask"]
    try:
        asked = subprocess.run(ask, capture_output=True, text=True, timeout=_PATIENCE)
        told = json.loads(asked.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(_version_of_kernel(), error=f"the driver gave no answer ({error})")
    except ValueError:
        return Driver(_version_of_kernel(), error=f"the driver broke off ({_ending(asked)})")
    return Driver(told["version"], told["cuda"], tuple(Gpu(**gpu) for gpu in told["gpus"]), told["error"])


def use(number: int) -> None:
    """Let this process and those it starts see one GPU only, by CUDA_VISIBLE_DEVICES: it is device 0 from then on.

    `number` counts the GPUs that are visible now, in CUDA's order; UUIDs and MIG instances are kept as they were named.
    Call it before anything opens CUDA. Raises NoSuchGpu.
    """
    gpus = driver().gpus
    if not 0 <= number < len(gpus):
        there = "; ".join(f"{i}: {gpu.name}" for i, gpu in enumerate(gpus))
        seen = f"it has {there}; choose one of them" if gpus else f"it has none that can be used ({driver().error})"
        raise NoSuchGpu(f"there is no GPU {number} on this machine, {seen}; see: python -m runtime doctor")
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number] if visible else str(number)
    driver.cache_clear()


def _load(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _ending(asked: subprocess.CompletedProcess[str]) -> str:
    lines = [f"signal {-asked.returncode}"] if asked.returncode < 0 else asked.stderr.split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"exit status {asked.returncode}")[:120]


# --- in the process that asks


def _asked() -> Driver:
    """What libcuda says; it is initialised in this process from now on."""
    cuda = _load(_LIBRARIES)
    if cuda is None:
        return Driver(error="libcuda.so.1 is not there")
    version, number, count = _version(), ctypes.c_int(), ctypes.c_int()
    status = cuda.cuDriverGetVersion(ctypes.byref(number))
    served = f"{number.value // 1000}.{number.value % 1000 // 10}" if status == 0 else ""
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return Driver(version, served, error=_name(cuda, status or 100))
    try:
        return Driver(version, served, tuple(_gpus(cuda, count.value)))
    except RuntimeError as error:
        return Driver(version, served, error=str(error))


def _gpus(cuda: ctypes.CDLL, count: int) -> Iterator[Gpu]:
    def check(status: int) -> None:
        if status:
            raise RuntimeError(_name(cuda, status))

    for ordinal in range(count):
        device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        major, minor = ctypes.c_int(), ctypes.c_int()
        check(cuda.cuDeviceGet(ctypes.byref(device), ordinal))
        check(cuda.cuDeviceGetName(name, len(name), device))
        check(cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device))
        check(cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device))
        check(cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))  # the plain name is that of 32 bits
        text = name.value.decode(errors="replace")
        yield Gpu(text, f"sm{major.value}{minor.value}", memory.value // 2**20)


def _name(cuda: ctypes.CDLL, status: int) -> str:
    """CUDA's name of a status, such as CUDA_ERROR_NO_DEVICE."""
    text = ctypes.c_char_p()
    if cuda.cuGetErrorName(status, ctypes.byref(text)) or not text.value:
        return f"CUDA error {status}"
    return text.value.decode()


def _version() -> str:
    """The driver's own number: by NVML, else by the kernel module, else by nvidia-smi; empty where none tells."""
    nvml, text = _load(_NVML), ctypes.create_string_buffer(96)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE is 80
    if nvml is not None and nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0:
        return text.value.decode()
    return _version_of_kernel() or _version_by_command()


def _version_of_kernel() -> str:
    try:
        found = _NUMBER.search(Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[0] if found else ""


def _version_by_command() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = _NUMBER.search(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found[0] if found else ""


if __name__ == "__main__" and sys.argv[1:] == ["--ask"]:
    print(json.dumps(asdict(_asked())))
