"""The machine that SAJI_TWIN describes, and how the twin complains. Standard library only: any Python may be told."""

import functools
import json
import os
from collections import Counter
from types import SimpleNamespace
from typing import Any, NoReturn

# What may be planted, by name and value
FAULTS = {
    "allocations": "so many device allocations succeed, all later ones are refused",
    "capture": '"refused": cudaStreamBeginCapture fails; "empty": TensorRT refuses within a capture and leaves it '
    'valid and empty; "invalid": it refuses and the capture is invalidated',
    "legacy": "another thread uses the legacy stream at the beginning of every capture",
    "builder": "trt.Builder raises TypeError, as without a usable driver",
    "context": "create_execution_context gives None",
    "timing_cache": '"none": create_timing_cache gives None; "false": set_timing_cache gives False',
    "execute": "execute_async_v3 returns False",
    "build": "build_serialized_network gives None",
    "deserialize": "deserialize_cuda_engine gives None",
    "lie": '"fp32": the engine computes in FP32, and its inspector says so',
    "inspector": '"silent": neither weights nor tactics are told; "mute": no types at all; "names": names alone; '
    '"context": a context with a shape does not make it tell formats, as reported of 8.6',
    "answers": '"wrong": other logits than the file has; "nan": no numbers',
}


class TwinError(AssertionError):
    """Code under test did what the documentation forbids or leaves undefined: on hardware anything might follow."""


misuses: list[str] = []  # of this process
counts: Counter[str] = Counter()  # what TensorRT did in this process that nobody sees from outside


def misuse(what: str) -> NoReturn:
    """Raise TwinError, and note it where the test finds it even if the code under test catches it."""
    misuses.append(what)
    if log := os.environ.get("SAJI_TWIN_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(what.replace("\n", " ") + "\n")
    raise TwinError(what)


def forget_misuse() -> None:
    """The test has seen it."""
    misuses.clear()
    if log := os.environ.get("SAJI_TWIN_LOG"):
        with open(log, "w", encoding="utf-8"):
            pass


def require_no_misuse() -> None:
    """Raise TwinError where this process, or one that it started, did what is undefined."""
    told = list(misuses)
    if log := os.environ.get("SAJI_TWIN_LOG"):
        with open(log, encoding="utf-8") as file:
            told = file.read().splitlines() or told
    if told:
        raise TwinError("; ".join(dict.fromkeys(told)))


@functools.cache
def machine() -> Any:
    """The machine, with the fields of `twin.machines.Machine`; raises ImportError outside the twin."""
    text = os.environ.get("SAJI_TWIN")
    if not text:
        raise ImportError("SAJI_TWIN is not set: this module is a double for tests")
    values = json.loads(text)
    values["gpus"] = [SimpleNamespace(**gpu) for gpu in values["gpus"]]
    for gpu in values["gpus"]:
        gpu.capability, gpu.name = tuple(gpu.capability), f"twin of {gpu.name}"
    unknown = set(values["faults"]) - set(FAULTS)
    if unknown:
        raise ValueError(f"the twin knows no fault {unknown.pop()!r}, only {', '.join(FAULTS)}")
    return SimpleNamespace(**values)


def fault(name: str) -> Any:
    """The value of a planted fault; None where it is not planted."""
    assert name in FAULTS, name
    return machine().faults.get(name)


@functools.cache
def visible() -> tuple[Any, ...]:
    """The GPUs that CUDA lists, in its order; read once a process, at the first use of CUDA.

    The fastest first, by a simple heuristic, unless CUDA_DEVICE_ORDER says PCI_BUS_ID; of CUDA_VISIBLE_DEVICES all up
    to the first that does not exist (CUDA C++ Programming Guide, CUDA Environment Variables).
    """
    gpus = list(machine().gpus)
    if os.environ.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST") != "PCI_BUS_ID":
        gpus.sort(key=lambda gpu: (gpu.capability, gpu.memory_mib), reverse=True)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(gpus)
    found: list[Any] = []
    for word in chosen.split(","):
        gpu = _named(word.strip(), gpus)
        if gpu is None or gpu in found:
            break
        found.append(gpu)
    return tuple(found)


def _named(word: str, gpus: list[Any]) -> Any:
    if word.isdigit():
        return gpus[int(word)] if int(word) < len(gpus) else None
    fitting = [gpu for gpu in gpus if word.startswith("GPU-") and gpu.uuid.startswith(word)]
    return fitting[0] if len(fitting) == 1 else None


def number(version: str) -> int:
    """A CUDA version such as "13.0" as CUDA's functions tell it, 13000; 0 for none."""
    major, _, minor = version.partition(".")
    return 1000 * int(major) + 10 * int(minor or 0) if version else 0


def serves(driver: str, toolkit: str) -> bool:
    """Whether a driver that serves one CUDA runs programs of another: those of its own and of earlier majors.

    Within a major version any minor does (CUDA Compatibility, Minor Version Compatibility).
    """
    return bool(driver) and int(driver.split(".")[0]) >= int(toolkit.split(".")[0])
