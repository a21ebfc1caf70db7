"""Is there a CUDA GPU? Asked before any library that crashes without one."""

from runtime.errors import Unavailable, missing_extra


def require_gpu() -> None:
    """Raise Unavailable when no CUDA GPU can be used, with the driver's own reason."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise missing_extra("cuda-bindings", "tensorrt") from None
    try:
        status, count = runtime.cudaGetDeviceCount()
    except RuntimeError as error:  # the driver's library itself is missing
        raise Unavailable(f"this machine has no CUDA GPU ({str(error).splitlines()[0][:100]})") from None
    if status != runtime.cudaError_t.cudaSuccess or count == 0:
        raise Unavailable(f"this machine has no CUDA GPU ({status.name}); GPU candidates are skipped")


def versions() -> dict[str, str]:
    """Versions of the CUDA runtime and of the highest CUDA that the driver serves, "none" without a driver."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return {}
    try:
        numbers = {"cuda": runtime.getLocalRuntimeVersion()[1], "driver": runtime.cudaDriverGetVersion()[1]}
    except RuntimeError:  # the driver's library is missing
        return {"cuda": "installed", "driver": "none"}
    return {name: f"{n // 1000}.{n % 1000 // 10}" if n else "none" for name, n in numbers.items()}


def compute_capability() -> str:
    """The first GPU's architecture as "sm86"; call `require_gpu` first."""
    from cuda.bindings import runtime

    attributes = runtime.cudaDeviceAttr
    major = runtime.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMajor, 0)[1]
    minor = runtime.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMinor, 0)[1]
    return f"sm{major}{minor}"
