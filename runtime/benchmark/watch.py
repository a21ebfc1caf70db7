"""What else the machine did while something was timed, the usual cause of figures that do not repeat; and memory."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from runtime.nvidia import driver

# Above these a cause is named. They are no physics: a tenth of the processor moves a median visibly on two cores.
OTHERS, STEAL, CLOCK, HOT = 0.10, 0.02, 0.10, 90.0
# Linux's drivers of the processor's own sensors; others belong to disks, radios and batteries
_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "x86_pkg_temp", "acpitz")
# nvml.h: nvmlClocksEventReasonSwPowerCap, HwSlowdown and SwThermalSlowdown
_POWER_CAP = 0x4
_SM = 1  # nvml.h: NVML_CLOCK_SM
_MODES = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}  # nvmlComputeMode_t
_SLOWED = {0x8: "the GPU was slowed down by its hardware (heat or power)", 0x20: "the GPU was slowed down by heat"}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Disturbance:
    """What the machine did while something was timed.

    `seconds` of wall clock times cores; of these the hypervisor gave `steal` to other machines, and other processes
    took `others`. The processor's clock and temperature are those at the end, None where the system does not tell;
    `gpu` says in words what held the GPU back, `gpu_conditions` what it ran under, each by its name in a row.
    """

    seconds: float
    steal: float = 0.0
    others: float = 0.0
    mhz: float | None = None
    celsius: float | None = None
    gpu: tuple[str, ...] = ()
    gpu_conditions: dict[str, Any] = field(default_factory=dict)


class Watch:
    """Counters of the machine, read when it is made and when it stops."""

    def __init__(self) -> None:
        self.wall, self.own, self.cpu = time.perf_counter(), time.process_time(), psutil.cpu_times()

    def stop(self) -> Disturbance:
        """What happened since the watch was made."""
        wall, own, cpu = time.perf_counter(), time.process_time(), psutil.cpu_times()
        return Disturbance(
            seconds=(wall - self.wall) * (os.cpu_count() or 1),
            steal=getattr(cpu, "steal", 0.0) - getattr(self.cpu, "steal", 0.0),
            # The kernel counts in ticks of 10 ms: single measurements may come out below zero, their sum does not
            others=_busy(cpu) - _busy(self.cpu) - (own - self.own),
            mhz=_clock(),
            celsius=_temperature(),
            gpu=_held_back(),
            gpu_conditions=_gpu_conditions(),
        )


def causes_of(disturbances: Sequence[Disturbance]) -> list[str]:
    """The likely causes of instability over some measurements, in words; empty when nothing stands out."""
    total = sum(measured.seconds for measured in disturbances) or 1.0
    causes = []
    others = sum(measured.others for measured in disturbances) / total
    if others > OTHERS:
        causes.append(f"other processes took {others:.0%} of the processors")
    steal = sum(measured.steal for measured in disturbances) / total
    if steal > STEAL:
        causes.append(f"the hypervisor gave {steal:.0%} of the processors to others")
    clocks = [measured.mhz for measured in disturbances if measured.mhz]
    if clocks and max(clocks) > (1 + CLOCK) * min(clocks):
        causes.append(f"the clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    hottest = max((measured.celsius or 0.0 for measured in disturbances), default=0.0)
    if hottest >= HOT:
        causes.append(f"the processor reached {hottest:.0f} °C")
    return causes + sorted({reason for measured in disturbances for reason in measured.gpu})


def _busy(cpu: Any) -> float:
    """Processor seconds that were used, of `psutil.cpu_times()`; waiting for disks is idleness."""
    return sum(getattr(cpu, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))


def _clock() -> float | None:
    try:
        clock = psutil.cpu_freq()
    except (AttributeError, OSError, NotImplementedError, RuntimeError):  # some systems do not tell it
        return None
    return clock.current if clock else None


def _temperature() -> float | None:
    sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    return max((sensor.current for name in _SENSORS for sensor in sensors.get(name, ())), default=None)


def peak_memory_mib() -> float | None:
    """Largest resident memory of this process so far, MiB; None where the system does not tell.

    psutil tells it on Windows alone. On Linux getrusage counts what the parent had before it became this process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8", errors="replace").splitlines() if status.is_file() else []
    if largest := [line.split()[1] for line in lines if line.startswith("VmHWM:")]:
        return round(int(largest[0]) / 2**10, 1)
    try:
        import resource
    except ImportError:
        peak = getattr(psutil.Process().memory_info(), "peak_wset", None)
        return round(peak / 2**20, 1) if peak else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def gpu_memory_mib() -> float | None:
    """What this process holds of the first GPU's memory, MiB; None without a GPU or where NVML does not tell.

    In a container whose processes have numbers of their own, NVML knows them by others and does not tell.
    """

    def held(nvml: Any, gpu: Any) -> int | None:
        return {p.pid: p.usedGpuMemory for p in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)}.get(os.getpid())

    memory = _of_gpu(held)
    return round(memory / 2**20, 1) if memory else None


def _of_gpu(question: Callable[[Any, Any], Answer]) -> Answer | None:
    """What NVML tells of the GPU that we use; None without a GPU, without nvidia-ml-py, or where NVML does not tell."""
    try:
        import pynvml
    except ImportError:
        return None
    if not (gpus := driver().gpus):
        return None
    try:
        pynvml.nvmlInit()
        return question(pynvml, pynvml.nvmlDeviceGetHandleByUUID(gpus[0].uuid))  # NVML counts all, CUDA the visible
    except pynvml.NVMLError:
        return None


def _held_back() -> tuple[str, ...]:
    """What slows the GPU down at this moment, in NVML's terms; each kind of GPU answers only some of the questions."""
    slowed = _of_gpu(lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)) or 0
    causes = [words for bit, words in _SLOWED.items() if slowed & bit]
    if slowed & _POWER_CAP:
        # Not the limit that is set, which laptops do not have
        limit = _of_gpu(lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu))
        causes.append(f"the GPU was held back by its power limit{f' of {limit / 1000:.0f} W' if limit else ''}")
    if isinstance(others := _other_processes(), int) and others:
        causes.append(f"{others} other processes used the GPU")
    return tuple(causes)


# What decides a GPU's speed beside its name; each kind of GPU tells only some of it
_CONDITIONS: dict[str, Callable[[Any, Any], Any]] = {
    "gpu_sm_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, _SM),
    "gpu_sm_mhz_max": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, _SM),
    "gpu_power_limit_watts": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
    "gpu_compute_mode": lambda nvml, gpu: _MODES.get(nvml.nvmlDeviceGetComputeMode(gpu)),
    "gpu_ecc": lambda nvml, gpu: bool(nvml.nvmlDeviceGetEccMode(gpu)[0]),
    "gpu_persistence": lambda nvml, gpu: bool(nvml.nvmlDeviceGetPersistenceMode(gpu)),
}


def _gpu_conditions() -> dict[str, Any]:
    told = {name: _of_gpu(question) for name, question in _CONDITIONS.items()}
    told["gpu_other_processes"] = _other_processes()
    return {name: value for name, value in told.items() if value is not None}


def _other_processes() -> int | str | None:
    """How many processes that are not this benchmark's use the GPU; None where NVML does not tell.

    In a container NVML knows processes by the host's numbers, which say nothing here: this benchmark's own are among
    them.
    """
    processes = _of_gpu(lambda nvml, gpu: nvml.nvmlDeviceGetComputeRunningProcesses(gpu))
    if processes is None:
        return None
    if not all(psutil.pid_exists(process.pid) for process in processes):
        return "not known"
    return sum(not _of_this_benchmark(process.pid) for process in processes)


def _of_this_benchmark(pid: int) -> bool:
    """Whether it is this process or one with the same parent: the other candidates', which idle meanwhile."""
    try:
        return pid == os.getpid() or psutil.Process(pid).ppid() == os.getppid()
    except psutil.Error:
        return False
