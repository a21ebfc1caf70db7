"""What a process of the twin differs in: which distributions there are, and what ctypes finds as the driver."""

import ctypes
import ctypes.util
import importlib.metadata as metadata
import re
import sys
from collections.abc import Iterable
from typing import Any

from saji_twin import machine
from saji_twin.driver import LIBRARIES

# The modules that a distribution brings
BRINGS = {
    "tensorrt-cu13": ("tensorrt", "tensorrt_bindings", "tensorrt_libs"),
    "tensorrt-cu12": ("tensorrt", "tensorrt_bindings", "tensorrt_libs"),
    "tensorrt-rtx-cu13": ("tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs"),
    "tensorrt-rtx-cu12": ("tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs"),
    "cuda-bindings": ("cuda.bindings",),
    "nvidia-ml-py": ("pynvml",),
}
# Of whichever version, these are the twin's to tell: the real ones in this environment are not there
HIDDEN = re.compile(r"tensorrt(-rtx)?(-cu\d+)?(-bindings|-libs)?|cuda-bindings|nvidia-ml-py")


class Told(metadata.Distribution):
    """A distribution of which there is nothing but name, version and modules."""

    def __init__(self, name: str, version: str) -> None:
        self.texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            "top_level.txt": "\n".join(module.split(".")[0] for module in BRINGS.get(name, ())),
        }

    def read_text(self, filename: Any) -> str | None:
        return self.texts.get(str(filename))

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(path)


class Finder(metadata.DistributionFinder):
    """First on sys.meta_path: refuses modules whose distribution is not installed, and tells of those that are."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Nothing, so that the next finder looks into PYTHONPATH, or ModuleNotFoundError."""
        owners = {module: [d for d in BRINGS if module in BRINGS[d]] for d in BRINGS for module in BRINGS[d]}
        if name in owners and not set(owners[name]) & set(machine().installed):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def find_distributions(self, context: Any = metadata.DistributionFinder.Context()) -> Iterable[Told]:  # noqa: B008
        """Those that the machine is to have."""
        told = machine().installed.items()
        return [Told(name, version) for name, version in told if context.name in (None, name)]


finder = Finder()
_real_cdll, _real_search = ctypes.CDLL, metadata.MetadataPathFinder.find_distributions
_real_find = ctypes.util.find_library


def _without_hidden(*arguments: Any, **named: Any) -> Iterable[metadata.Distribution]:
    for found in _real_search(*arguments, **named):
        if not HIDDEN.fullmatch(re.sub(r"[-_.]+", "-", found.metadata["Name"] or "").lower()):
            yield found


class CDLL(_real_cdll):  # type: ignore[misc, valid-type]
    """ctypes.CDLL, but the driver's libraries are doubles, and absent without a driver."""

    def __new__(cls, name: Any, *arguments: Any, **named: Any) -> Any:
        stem = str(name).rpartition("/")[2]
        for library, double in LIBRARIES.items():
            if stem in (library, f"{library}.1"):
                if not machine().driver:
                    raise OSError(f"{name}: cannot open shared object file: No such file or directory")
                return double()
        return super().__new__(cls)


def find_library(name: str) -> str | None:
    """ctypes.util.find_library, which finds the driver's libraries where there is a driver."""
    if f"lib{name}.so" in LIBRARIES:
        return f"lib{name}.so.1" if machine().driver else None
    return _real_find(name)


def begin() -> None:
    """Make this process one of the twin."""
    machine()
    sys.meta_path.insert(0, finder)
    metadata.MetadataPathFinder.find_distributions = _without_hidden  # type: ignore[method-assign, assignment]
    ctypes.CDLL = CDLL  # type: ignore[misc]
    ctypes.cdll._dlltype = CDLL  # type: ignore[attr-defined]
    ctypes.util.find_library = find_library


def end() -> None:
    """Undo `begin`, as far as it came."""
    sys.meta_path[:] = [other for other in sys.meta_path if other is not finder]
    metadata.MetadataPathFinder.find_distributions = _real_search  # type: ignore[method-assign]
    ctypes.CDLL = _real_cdll  # type: ignore[misc]
    ctypes.cdll._dlltype = _real_cdll  # type: ignore[attr-defined]
    ctypes.util.find_library = _real_find
