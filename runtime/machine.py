"""The machine that a verdict or a timing holds for."""

import functools
import math
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from runtime.nvidia import driver

# Of x86, then of ARM
_CPU_FLAGS = "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_bf16 amx_int8"
_CPU_FLAGS += " asimd asimdhp asimddp i8mm bf16 sve sve2 sme"
# ARM's Linux has numbers for names (arch/arm64/include/asm/cputype.h); any other core is called by them
_ARM_CORES = {
    "0x41 0xd03": "Cortex-A53", "0x41 0xd05": "Cortex-A55", "0x41 0xd07": "Cortex-A57", "0x41 0xd08": "Cortex-A72",
    "0x41 0xd0b": "Cortex-A76", "0x41 0xd0c": "Neoverse-N1", "0x41 0xd40": "Neoverse-V1", "0x41 0xd42": "Cortex-A78AE",
    "0x41 0xd49": "Neoverse-N2", "0x41 0xd4f": "Neoverse-V2", "0x61 0x000": "Apple silicon", "0xc0 0xac3": "Ampere-1",
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Processor, its number formats, the cores that this process may use, memory, GPU with its driver, system."""

    cpu: str
    cpu_features: tuple[str, ...] = ()
    cores: int = 1
    memory_gib: float | None = None
    gpu: str | None = None
    system: str = ""


@functools.cache
def machine() -> Machine:
    """This machine."""
    model, flags = _cpu()
    return Machine(
        cpu=model,
        cpu_features=tuple(flag for flag in _CPU_FLAGS.split() if flag in flags),
        cores=usable_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=gpu_name(),
        system=f"{platform.system()} {platform.machine()}",
    )


def gpu_name() -> str | None:
    """Name and driver of the GPU that is used, the first that is visible; None without one."""
    found = driver()
    return f"{found.gpus[0].name}, {found.version}" if found.gpus else None


def usable_cores() -> int:
    """Processor cores this process may use: its affinity, and no more than a container's quota is worth."""
    quota = cgroup_limits()[0]
    return min(bound_to(), math.ceil(quota)) if quota else bound_to()


def bound_to() -> int:
    """Processor cores this process is scheduled on (its affinity, where the system has one): what engines take."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1


def _cpu() -> tuple[str, set[str]]:
    """The processor's name and flags. psutil does not tell them, and py-cpuinfo takes a second to."""
    try:
        return told_by(Path("/proc/cpuinfo").read_text(encoding="utf-8"), platform.machine())
    except OSError:
        apples = output_of("sysctl", "-n", "machdep.cpu.brand_string")  # where Python says "arm" of each of them
        return apples or platform.processor() or platform.machine(), set()


def told_by(text: str, architecture: str) -> tuple[str, set[str]]:
    """The processor's name and flags by the text of /proc/cpuinfo, for a program of this architecture.

    Where another architecture's is emulated, the text is often the host's, and says nothing of what computes here.
    """
    fields: dict[str, list[str]] = {}
    for name, colon, value in (line.partition(":") for line in text.splitlines()):
        if colon:
            fields.setdefault(name.strip(), []).append(value.strip())
    arm = architecture in ("aarch64", "arm64")
    if not (flags := fields.get("Features" if arm else "flags")):
        return architecture, set()
    names = fields.get("model name", [architecture])[-1:]
    if arm:  # a processor may have several kinds of cores; some kernels add a "model name" that all ARMv8 share
        cores = zip(fields.get("CPU implementer", []), fields.get("CPU part", []), strict=False)
        names = [_ARM_CORES.get(core, f"ARM {core}") for core in dict.fromkeys(map(" ".join, cores))] or [architecture]
    return " + ".join(names), set(flags[-1].split())


def output_of(*command: str) -> str:
    """What a command prints, stripped; empty where it is missing, fails or takes longer than 10 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def cgroup_limits(root: Path = Path("/")) -> tuple[float | None, float | None]:
    """What Linux's control groups (version 2 or 1) grant this process: cores' worth of time, and memory in GiB.

    None where there is no limit, and on other systems.
    """
    cores, memory = [], []
    for folder in _cgroups(root):
        quota = _numbers(folder / "cpu.max") or [
            *_numbers(folder / "cpu.cfs_quota_us"),
            *_numbers(folder / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and quota[0] > 0:  # "max" is no number, and version 1 says -1
            cores.append(quota[0] / quota[1])
        memory += _numbers(folder / "memory.max") + _numbers(folder / "memory.limit_in_bytes")
    return min(cores, default=None), min(memory) / 2**30 if memory else None


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of all above them; a container sees its own as the top."""
    try:
        text = (root / "proc/self/cgroup").read_text()
    except OSError:
        return
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):  # none in version 2
            top = root / "sys/fs/cgroup" / controller
            group = top / path.strip("/")
            yield from [group, *group.parents][: len(group.parts) - len(top.parts) + 1]


def _numbers(file: Path) -> list[float]:
    try:
        words = file.read_text().split()
    except OSError:
        return []
    return [float(word) for word in words if word.lstrip("-").isdigit()]
