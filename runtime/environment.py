"""The conditions of a measurement: which machine, which versions, which commit."""

import datetime
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "numpy pillow torch torchvision onnx onnxruntime onnxruntime-gpu openvino nncf tensorrt tensorrt-cu13 "
    "tensorrt-rtx-cu13 gradio opencv-python-headless scikit-learn"
)
_CPU_FLAGS = "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_bf16 amx_int8 asimddp bf16 i8mm"


def versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result, and Python's."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES.split():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def machine() -> dict[str, Any]:
    """The machine that a verdict or a timing holds for: processor, its number formats, cores, memory, GPU."""
    model, flags = _cpu()
    return {
        "cpu": model,
        "cpu_features": [flag for flag in _CPU_FLAGS.split() if flag in flags],
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def usable_cores() -> int:
    """Processor cores this process may use (its affinity, where the system has one)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> tuple[str | None, bool]:
    """The repository's commit and whether files differ from it; (None, False) outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    head = _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    dirty = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return head or None, bool(dirty)


def stamp() -> dict[str, Any]:
    """What every measured row carries: when, from which commit, on which machine, with which versions."""
    head, dirty = commit()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": head,
        "dirty": dirty,
        **{f"machine_{name}": value for name, value in machine().items()},
        "versions": versions(),
    }


def _cpu() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.machine()), set(flags.split())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None


def _gpu() -> str | None:
    return _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
