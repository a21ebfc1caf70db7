"""Machines with NVIDIA GPUs as data, and the two ways into them: by environment for processes, or within this one."""

import contextlib
import ctypes
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

SITE = Path(__file__).parent / "site"
OURS = ("cuda", "tensorrt", "tensorrt_rtx", "pynvml", "saji_twin")  # modules that stand in `site`
CACHING = ("runtime", "export", "demo", "training", "lab")  # packages of ours, whose cached answers are forgotten

TENSORRT_10 = {"tensorrt-cu13": "10.14.1.48.post1", "tensorrt": "10.14.1.48.post1"}
TENSORRT_11 = {"tensorrt-cu13": "11.4.0.106", "tensorrt": "11.4.0.106"}
RTX = {"tensorrt-rtx-cu13": "1.7.1.116"}
FOR_CUDA_12 = {"tensorrt-cu12": "11.4.0.106", "tensorrt-rtx-cu12": "1.7.1.116"}
COMMON = {"cuda-bindings": "13.5.0", "nvidia-ml-py": "13.590.44"}


@dataclass(frozen=True)
class Gpu:
    """A device: its name, compute capability, memory in MiB. The twin puts "twin of" before each name."""

    name: str
    capability: tuple[int, int]
    memory_mib: int
    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Machine:
    """What the twin is to look like.

    `gpus` stand in the order of the PCI bus, as nvidia-smi and NVML list them; CUDA sorts them by speed. `driver` and
    the highest `cuda` that it serves are empty without a driver; `toolkit` is the CUDA that the installed packages
    were built with. `installed`: distributions with their versions; modules of others cannot be imported. `faults` are
    those that `saji_twin.FAULTS` lists.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str = "580.95.05"
    cuda: str = "13.0"
    toolkit: str = "13.0"
    installed: dict[str, str] = field(default_factory=lambda: {**TENSORRT_10, **RTX, **COMMON})
    faults: dict[str, Any] = field(default_factory=dict)


def _uuid(number: int) -> str:
    return f"GPU-{number:08x}-7a1e-4b0b-9c5d-0242ac120002"


RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", (8, 9), 24564, _uuid(0x4090))
T4 = Gpu("Tesla T4", (7, 5), 15360, _uuid(0x74))
A100 = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 40960, _uuid(0xA100))
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 81559, _uuid(0x100))
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", (12, 0), 32607, _uuid(0x5090))

MACHINES = {
    "rtx4090": Machine((RTX_4090,)),
    "t4": Machine((T4,)),
    "a100": Machine((A100,)),
    "h100": Machine((H100,)),
    "rtx5090": Machine((RTX_5090,)),
    "two": Machine((T4, RTX_4090)),  # the slower one first on the bus: CUDA's device 0 is not nvidia-smi's
    "old-driver": Machine((RTX_4090,), driver="535.54.03", cuda="12.2"),  # for the packages that are installed
    "cuda12": Machine((RTX_4090,), "535.54.03", "12.2", toolkit="12.9", installed={**FOR_CUDA_12, **COMMON}),
    "ancient": Machine((RTX_4090,), driver="470.256.02", cuda="11.4"),
    "small": Machine((replace(RTX_4090, memory_mib=16),)),  # a GPU that runs out of memory
    "none": Machine(driver="", cuda=""),
}
# The three shapes of TensorRT's Python module: which backend, and what is installed
SHAPES = {
    "10.14": ("tensorrt", {**TENSORRT_10, **COMMON}),
    "11.4": ("tensorrt", {**TENSORRT_11, **COMMON}),
    "rtx": ("tensorrt-rtx", {**RTX, **COMMON}),
}


def changed(machine: str | Machine, **changes: Any) -> Machine:
    """One of MACHINES by its name, or a machine as it is, with some fields changed; `faults` are added to."""
    found = MACHINES[machine] if isinstance(machine, str) else machine
    faults = {**found.faults, **changes.pop("faults", {})}
    return replace(found, faults=faults, **changes)


def environment(machine: str | Machine, **changes: Any) -> dict[str, str]:
    """The environment in which every Python process finds the twin; what it refuses stands in the file SAJI_TWIN_LOG.

    CUDA_VISIBLE_DEVICES is taken away: add it where a test means it.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    python = [str(SITE), *(path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return {
        **variables,
        "PYTHONPATH": os.pathsep.join(python),
        "PATH": os.pathsep.join([str(SITE / "bin"), variables.get("PATH", "")]),
        "SAJI_TWIN": json.dumps(asdict(changed(machine, **changes))),
    }


@contextlib.contextmanager
def installed(machine: str | Machine, **changes: Any) -> Iterator[Any]:
    """This process, and those that it starts, on a machine; gives the twin's package `saji_twin`.

    At the end whatever the twin called undefined behaviour is raised once more: code under test may have caught it.
    """
    before, path, modules, cdll = dict(os.environ), list(sys.path), _removed(), ctypes.CDLL
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8", suffix=".log") as log:
        os.environ.update({**environment(machine, **changes), "SAJI_TWIN_LOG": log.name})
        sys.path.insert(0, str(SITE))
        _forget()
        try:
            start = importlib.import_module("saji_twin.start")
            twin = importlib.import_module("saji_twin")
            start.begin()
            yield twin
            twin.require_no_misuse()
        finally:
            start.end()
            _removed()
            sys.modules.update(modules)
            ctypes.CDLL = cdll  # type: ignore[misc]
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(before)
            _forget()


def _removed() -> dict[str, Any]:
    """Take the modules that the twin doubles out of this process; returns them by name."""
    names = [name for name in sys.modules if name.split(".")[0].removesuffix("_bindings") in OURS]
    return {name: sys.modules.pop(name) for name in names}


def _forget() -> None:
    """Clear what functions of ours have cached about the machine."""
    importlib.invalidate_caches()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in CACHING:
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
