"""`python -m runtime doctor`: what this machine can run, and for everything else why not and what to type next.

`examine` looks at the machine once; what follows from those facts is decided by functions that any facts can be fed.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import features

from runtime import environment
from runtime.backends import BACKENDS, cuda, unavailable_because
from runtime.errors import GateFailed, install_line
from runtime.machine import cgroup_limits, machine, nvidia_on_bus

# What a processor's number formats are good for, on x86 and on ARM
GOOD_FOR = {
    "avx2": "FP32 eight numbers at a time",
    "avx512f": "FP32 sixteen numbers at a time",
    "avx512_vnni": "INT8 products summed in one step: INT8 files run much faster than FP32",
    "avx_vnni": "INT8 products summed in one step: INT8 files run much faster than FP32",
    "avx512_bf16": "OpenVINO in bf16, faster than FP32 where INT8 loses too much",
    "amx_int8": "INT8 in tiles, best with large batches",
    "amx_bf16": "bf16 in tiles, best with large batches",
    "asimddp": "INT8 products summed in one step: INT8 files run much faster than FP32",
    "i8mm": "INT8 matrix products, faster still",
    "bf16": "bf16 matrix products",
}
_FASTER_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
LOW_MEMORY_GIB = 2.0
# What Pillow may have been built without, what it then cannot do, and what to type
PHOTOS = {
    "jpg": ("cannot read JPEG", "pip install --force-reinstall pillow"),
    "webp": ("cannot read WEBP photos", "pip install --force-reinstall pillow"),
    "avif": ("cannot read AVIF photos", "pip install --upgrade 'pillow>=11.3'"),
    "littlecms2": ("cannot convert colour profiles to sRGB", "pip install --force-reinstall pillow"),
    "heif": ("cannot read the HEIC photos of iPhones", "pip install pillow-heif"),
}

# The smallest network: Relu of one number, y = max(x, 0), as an ONNX file of opset 13
PROBE = bytes.fromhex(
    "08083a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a0208014204"
    "0a00100d"
)


@dataclass(frozen=True)
class Facts:
    """What there is to know of a machine; None where the system does not tell.

    `backends`: by name, why it cannot be used, None if it can. `probes`: by ONNX Runtime's provider or by backend, why
    a tiny network does not run on it, None if it does. `quota`: cores' worth of time that a container grants.
    `memory_gib`: what may be used. `on_bus`: an NVIDIA GPU is plugged in, whether or not a driver sees it. `cuda`:
    versions of the installed CUDA and of the highest that the driver serves. `onnxruntimes`: the distributions that
    own the folder onnxruntime. `pillow`: features, and whether pillow-heif is there.
    """

    cpu: str
    system: str
    cores: int
    backends: dict[str, str | None]
    probes: dict[str, str | None] = field(default_factory=dict)
    cpu_features: tuple[str, ...] = ()
    cores_seen: int = 0
    quota: float | None = None
    memory_gib: float | None = None
    gpu: str | None = None
    on_bus: bool = False
    container: bool = False
    cuda: dict[str, str] = field(default_factory=dict)
    onnxruntimes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    pillow: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """Something that is missing or in the way: what it is about, what is the matter, what to type next."""

    about: str
    says: str
    next: str


def doctor(as_json: bool) -> None:
    """Print the findings on this machine. Raises GateFailed when no backend runs here."""
    facts = examine()
    faults, backends = findings(facts), states(facts)
    ready = [name for name, reason in backends.items() if reason is None]
    if as_json:
        report = {"ready": ready, "backends": backends, "findings": [dataclasses.asdict(fault) for fault in faults]}
        print(json.dumps({**report, "facts": dataclasses.asdict(facts)}, ensure_ascii=False, indent=2))
    else:
        print("\n".join(lines(facts, backends, faults)))
    if not ready:
        raise GateFailed(f"no backend runs here; install the smallest with: {install_line('cpu')}")


def lines(facts: Facts, backends: dict[str, str | None], faults: list[Finding]) -> Iterator[str]:
    """The report for people."""
    memory = f", {facts.memory_gib:.1f} GiB of memory" if facts.memory_gib else ""
    yield f"{facts.cores} of {facts.cores_seen} cores of {facts.cpu}{memory}, {facts.gpu or 'no GPU'}, {facts.system}"
    yield ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    yield from (f"  {name:12} {GOOD_FOR[name]}" for name in facts.cpu_features if name in GOOD_FOR)
    yield "\nbackends"
    yield from (f"  {name:12} {reason or 'ready'}" for name, reason in backends.items())
    yield "\nwhat could be better" if faults else "\nnothing is in the way"
    yield from (f"  {fault.about}: {fault.says}\n      {fault.next}" for fault in faults)


def states(facts: Facts) -> dict[str, str | None]:
    """Every backend with the reason why it does not run here, None when it does: installed, and seen running."""
    reasons: dict[str, str | None] = {}
    for name, reason in facts.backends.items():
        row = BACKENDS[name]
        if row.gpu and not facts.gpu and not facts.on_bus:
            reasons[name] = "needs an NVIDIA GPU, and this machine has none"  # whatever else is missing: no use here
        elif reason is None and (broken := facts.probes.get(row.provider or name)):
            reasons[name] = f"is installed, but a tiny network does not run on it ({broken})"
        else:
            reasons[name] = reason
    return reasons


def findings(facts: Facts) -> list[Finding]:
    """What to change on a machine with these facts, the gravest first."""
    return [finding for rule in (_libraries, _gpu, _limits, _pillow) for finding in rule(facts)]


def _libraries(facts: Facts) -> Iterator[Finding]:
    onnxruntime = install_line("gpu" if facts.gpu else "cpu")
    if len(facts.onnxruntimes) > 1:
        says = (
            f"{' and '.join(facts.onnxruntimes)} are installed together: they own the same folder and break each other"
        )
        yield Finding("onnxruntime", says, f"pip uninstall -y {' '.join(facts.onnxruntimes)} && {onnxruntime}")
    for name, reason in facts.probes.items():
        if reason and name in BACKENDS:
            says = f"is installed, but a tiny network does not run on it ({reason})"
            yield Finding(name, says, f"{install_line(BACKENDS[name].extra)} --force-reinstall")
        elif reason:
            says = f"onnxruntime lists it, but a tiny network does not run on it ({reason})"
            owners = " ".join(facts.onnxruntimes) or "onnxruntime"
            yield Finding(name, says, f"pip uninstall -y {owners} && {onnxruntime}")


def _gpu(facts: Facts) -> Iterator[Finding]:
    installed, driver = facts.cuda.get("cuda", "none"), facts.cuda.get("driver", "none")
    new_driver = "sudo ubuntu-drivers install && reboot"
    if facts.on_bus and not facts.gpu and facts.container:
        says = "the machine has an NVIDIA GPU that this container was not given"
        yield Finding("gpu", says, "docker run --gpus all …")
    elif facts.on_bus and not facts.gpu:
        yield Finding("gpu", "there is an NVIDIA GPU, but no driver that works", new_driver)
    elif facts.gpu and not facts.cuda:
        yield Finding("gpu", "cuda-bindings is missing, by which TensorRT is run", install_line("tensorrt-rtx"))
    elif facts.gpu and "none" not in (installed, driver) and int(driver.split(".")[0]) < int(installed.split(".")[0]):
        says = f"the driver serves CUDA up to {driver}, installed is CUDA {installed}, whose programs it refuses"
        yield Finding("gpu", says, new_driver)


def _limits(facts: Facts) -> Iterator[Finding]:
    if facts.quota and facts.quota < facts.cores:
        cores = f"0-{max(1, int(facts.quota)) - 1}"
        says = (
            f"this container may use {facts.quota:g} cores' worth of time but sees {facts.cores}: "
            "engines start a thread for each and are halted in between"
        )
        yield Finding("threads", says, f"taskset -c {cores} …  (or docker run --cpuset-cpus={cores} …)")
    if facts.memory_gib and facts.memory_gib < LOW_MEMORY_GIB:
        says = "serve with ONNX Runtime or OpenVINO (0.2 GiB and the photo), not with PyTorch"
        more = "docker run --memory 4g …" if facts.container else install_line("cpu")
        yield Finding("memory", f"{facts.memory_gib:.1f} GiB {says}", more)
    if facts.cpu_features and not _FASTER_INT8 & set(facts.cpu_features):
        says = "no INT8 arithmetic (VNNI, AMX, dot product): INT8 files are smaller here, but hardly faster than FP32"
        yield Finding("processor", says, "make bench  (it measures which is fastest)")


def _pillow(facts: Facts) -> Iterator[Finding]:
    for feature, (says, command) in PHOTOS.items():
        if not facts.pillow.get(feature, True):
            yield Finding("pillow", says, command)


def examine() -> Facts:
    """Look at this machine; takes seconds where PyTorch is installed. Raises nothing, whatever is broken."""
    here, (quota, limit) = machine(), cgroup_limits()
    backends = {name: _why_not(unavailable_because, name) for name in BACKENDS}
    return Facts(
        cpu=here.cpu,
        system=here.system,
        cores=here.cores,
        backends=backends,
        probes=_probes(backends),
        cpu_features=here.cpu_features,
        cores_seen=psutil.cpu_count() or here.cores,
        quota=quota,
        memory_gib=min((gib for gib in (here.memory_gib, limit) if gib), default=None),
        gpu=here.gpu,
        on_bus=nvidia_on_bus(),
        container=any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")),
        cuda=cuda.versions(),
        onnxruntimes=tuple(sorted(set(metadata.packages_distributions().get("onnxruntime", [])))),
        versions=environment.versions(),
        pillow={name: bool(features.check(name)) for name in PHOTOS if name != "heif"}
        | {"heif": importlib.util.find_spec("pillow_heif") is not None},
    )


def _probes(backends: dict[str, str | None]) -> dict[str, str | None]:
    """Run the smallest network wherever a library says that it could."""
    probes = {"pytorch": _run_pytorch, "openvino": _run_openvino}
    reasons = {name: _why_not(probe) for name, probe in probes.items() if backends[name] is None}
    if backends["ort-cpu"] is None:
        import onnxruntime

        for provider in onnxruntime.get_available_providers():
            if provider != "AzureExecutionProvider":  # a client of a service elsewhere
                reasons[provider] = _why_not(_run_onnxruntime, provider)
    return reasons


def _why_not(probe: Callable[..., str | None], *arguments: str) -> str | None:
    """What a probe returns, or in one line what it raises: a broken library may raise anything."""
    try:
        return probe(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _run_pytorch() -> None:
    import torch

    _require_zero(torch.relu(torch.tensor([-1.0])).item())


def _run_openvino() -> None:
    import openvino

    core = openvino.Core()
    _require_zero(core.compile_model(core.read_model(PROBE), "CPU")(np.array([-1], np.float32))[0])


def _run_onnxruntime(provider: str) -> str | None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is told by us, in one line
    session = onnxruntime.InferenceSession(PROBE, options, providers=[provider])
    if session.get_providers()[0] != provider:
        return f"it silently falls back to {session.get_providers()[0]}: a library or the device is missing"
    _require_zero(session.run(None, {"x": np.array([-1], np.float32)})[0])
    return None


def _require_zero(answer: Any) -> None:
    """Raise ArithmeticError unless a probe computed max(0, −1); an assert would be gone under `python -O`."""
    value = np.asarray(answer).item()
    if value != 0:
        raise ArithmeticError(f"it says {value:g} for max(0, -1), so nothing that it says is to be trusted")
