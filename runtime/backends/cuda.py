"""Is there a CUDA GPU, and can its driver run what is installed? Asked before any library that crashes otherwise."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.backends.base import temporary_cause
from runtime.errors import SajiError, Unavailable, anew_line, missing_extra
from runtime.nvidia import driver, here, serving


def require_gpu() -> None:
    """Raise Unavailable when no CUDA GPU can be used: none there, or a driver older than the installed CUDA."""
    found = driver()
    if not found.gpus:
        raise Unavailable(f"this machine has no CUDA GPU ({found.error}); GPU candidates are skipped")
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        raise missing_extra("cuda-bindings", "gpu")
    installed = versions()["cuda"]
    if installed[:1].isdigit() and int(installed.split(".")[0]) > int(found.cuda.split(".")[0]):
        other = f", or: {anew_line()}" if serving(found, here()) else f": {here().new_driver}"
        raise Unavailable(
            f"the driver {found.version} serves CUDA {found.cuda}, the installed packages need CUDA "
            f"{installed.split('.')[0]}; get a newer driver{other}"
        )


@contextmanager
def first_gpu() -> Iterator[None]:
    """The first GPU as the current device of this thread, each of which has its own, such as by torch.cuda.set_device.

    Raises Unavailable where it cannot be for now, SajiError where it is broken.
    """
    from cuda.bindings import runtime

    before, success = runtime.cudaGetDevice()[1], runtime.cudaError_t.cudaSuccess
    if (status := runtime.cudaSetDevice(0)[0]) != success:
        kind = Unavailable if temporary_cause(status.name) else SajiError
        raise kind(f"the GPU reports {status.name}; look with: nvidia-smi")
    try:
        yield
    finally:
        if before:
            runtime.cudaSetDevice(before)


def versions() -> dict[str, str]:
    """Versions of the installed CUDA runtime and of the highest CUDA that the driver serves, "none" without one."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return {}
    served = driver().cuda or "none"
    try:
        number = runtime.getLocalRuntimeVersion()[1]
    except RuntimeError:  # the runtime's library is missing
        return {"cuda": "installed", "driver": served}
    return {"cuda": f"{number // 1000}.{number % 1000 // 10}" if number else "none", "driver": served}


def compute_capability() -> str:
    """The first GPU's architecture as "sm86"; call `require_gpu` first."""
    return driver().gpus[0].capability
