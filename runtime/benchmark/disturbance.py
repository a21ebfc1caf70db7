"""What else the machine did while something was timed: the usual causes of figures that do not repeat."""

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Above these a cause is named. They are no physics: a tenth of the processor moves a median visibly on two cores.
OTHERS, STEAL, CLOCK, HOT = 0.10, 0.02, 0.10, 90.0


@dataclass
class Watch:
    """Counters of the machine, read when a turn begins and ends; `stop` gives the difference as plain numbers."""

    began: dict[str, Any] = field(default_factory=lambda: _counters())

    def stop(self) -> dict[str, Any]:
        """What happened since the watch was made.

        `seconds` of wall clock times cores, `steal` and `others` as processor seconds of it (the hypervisor's, and
        other processes'), `mhz` and `celsius` now; a figure that the system does not tell is left out.
        """
        ended = _counters()
        spent = {"seconds": (ended["wall"] - self.began["wall"]) * (os.cpu_count() or 1)}
        if "busy" in ended:
            own = ended["own"] - self.began["own"]
            spent["steal"] = ended["steal"] - self.began["steal"]
            # Kernel ticks of 10 ms: single turns may come out below zero, their sum does not
            spent["others"] = ended["busy"] - self.began["busy"] - own
        return {**spent, **{name: ended[name] for name in ("mhz", "celsius", "gpu") if name in ended}}


def disturbed_by(turns: Iterable[dict[str, Any]]) -> list[str]:
    """The likely causes of instability over some turns of `Watch.stop`, in words; empty when nothing stands out."""
    turns = list(turns)
    total = sum(turn["seconds"] for turn in turns) or 1.0
    causes = []
    for name, bound, words in (
        ("others", OTHERS, "other processes took {:.0%} of the processors"),
        ("steal", STEAL, "the hypervisor gave {:.0%} of the processors to others"),
    ):
        share = sum(turn.get(name, 0.0) for turn in turns) / total
        if share > bound:
            causes.append(words.format(share))
    clocks = [turn["mhz"] for turn in turns if "mhz" in turn]
    if clocks and max(clocks) > (1 + CLOCK) * min(clocks):
        causes.append(f"the clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    hottest = max((turn["celsius"] for turn in turns if "celsius" in turn), default=0.0)
    if hottest >= HOT:
        causes.append(f"the processor reached {hottest:.0f} °C")
    return causes + sorted({reason for turn in turns for reason in turn.get("gpu", ())})


def _counters() -> dict[str, Any]:
    found: dict[str, Any] = {"wall": time.perf_counter(), "own": time.process_time()}
    if sys.platform == "linux":
        ticks = os.sysconf("SC_CLK_TCK")
        # man 5 proc: user nice system idle iowait irq softirq steal, in ticks over all processors
        fields = [int(n) for n in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        user, nice, system, _, _, irq, softirq, steal = fields
        found |= {"busy": (user + nice + system + irq + softirq) / ticks, "steal": steal / ticks}
        clocks = _numbers("/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
        heat = _numbers("/sys/class/thermal", "thermal_zone*/temp")
        found |= {"mhz": sum(clocks) / len(clocks) / 1000} if clocks else {}
        found |= {"celsius": max(heat) / 1000} if heat else {}
    if gpu := _gpu():
        found["gpu"] = gpu
    return found


def _numbers(folder: str, pattern: str) -> list[float]:
    numbers = []
    for path in Path(folder).glob(pattern):
        try:
            numbers.append(float(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # a sensor may refuse to be read
            continue
    return numbers


def _gpu() -> tuple[str, ...]:
    """What slows the first GPU down at this moment, in NVML's terms; empty without a GPU or without nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        slowed = pynvml.nvmlDeviceGetCurrentClocksEventReasons(device)
        others = [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device) if not _of_this_race(p.pid)]
        watts = pynvml.nvmlDeviceGetPowerManagementLimit(device) / 1000
    except pynvml.NVMLError:
        return ()
    reasons = {
        pynvml.nvmlClocksEventReasonSwPowerCap: f"the GPU was held back by its power limit of {watts:.0f} W",
        pynvml.nvmlClocksThrottleReasonHwSlowdown: "the GPU was slowed down by its hardware (heat or power)",
        pynvml.nvmlClocksEventReasonSwThermalSlowdown: "the GPU was slowed down by heat",
    }
    causes = [words for bit, words in reasons.items() if slowed & bit]
    return (*causes, *([f"{len(others)} other processes used the GPU"] if others else []))


def _of_this_race(pid: int) -> bool:
    """Whether it is this process or one with the same parent: the other candidates, which idle outside their turns."""
    if pid == os.getpid():
        return True
    try:  # man 5 proc: pid (name) state parent …, and the name may hold anything
        parent = int(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[1]
        )
    except (OSError, ValueError, IndexError):
        return False
    return parent == os.getppid()
