"""`python -m runtime doctor`: what this machine can run, and for everything else why not and what to type next.

`examine` looks at the machine once; what follows from those facts is decided by functions that any facts can be fed.
"""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata

import psutil
from PIL import features

from runtime import environment
from runtime.backends import BACKENDS
from runtime.errors import GateFailed, anew_line, install_line
from runtime.machine import bound_to, cgroup_limits, machine
from runtime.nvidia import Driver, Here, choose, driver, extra_of, refusal, serving
from runtime.nvidia import here as nvidia_here
from runtime.probes import missing, probe
from runtime.terminal import tell

# What a processor's number formats are good for, on x86 and on ARM
GOOD_FOR = {
    "avx2": "FP32 eight numbers at a time",
    "avx512f": "FP32 sixteen numbers at a time",
    "avx512_vnni": "INT8 products summed in one step: INT8 files run much faster than FP32",
    "avx_vnni": "INT8 products summed in one step: INT8 files run much faster than FP32",
    "avx512_bf16": "OpenVINO in bf16, faster than FP32 where INT8 loses too much",
    "amx_int8": "INT8 in tiles, best with large batches",
    "amx_bf16": "bf16 in tiles, best with large batches",
    "asimd": "FP32 four numbers at a time",
    "asimdhp": "FP16 eight numbers at a time",
    "asimddp": "INT8 products summed in one step",  # how fast that is was never measured on ARM
    "i8mm": "INT8 matrix products",
    "bf16": "bf16 matrix products",
    "sve": "vectors as long as the processor has them",
    "sve2": "more operations on such vectors",
    "sme": "FP32 in tiles, best with large batches",
}
_FASTER_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
LOW_MEMORY_GIB = 2.0
# What Pillow may have been built without, what it then cannot do, and what to type
PHOTOS = {
    "jpg": ("cannot read JPEG", "pip install --force-reinstall pillow"),
    "webp": ("cannot read WEBP photos", "pip install --force-reinstall pillow"),
    "avif": ("cannot read AVIF photos", "pip install --upgrade 'pillow>=11.3'"),
    "littlecms2": ("cannot convert colour profiles to sRGB", "pip install --force-reinstall pillow"),
    "heif": ("cannot read the HEIC photos of iPhones", "pip install 'pillow-heif>=1.8'"),
}


@dataclass(frozen=True)
class Facts:
    """What there is to know of a machine; None where the system does not tell.

    `backends`: by name, why it cannot be used, None if it can. `probes`: by backend, why a tiny network does not run on
    it, None if it does. `quota`: cores' worth of time that a container grants. `memory_gib`: what may be used. `driver`
    and `here`: what set-up, too, chooses by. `cudas`: by distribution, the major version of CUDA that it is built for.
    `onnxruntimes`: the distributions that own the folder onnxruntime. `pillow`: features, and whether pillow-heif is
    there.
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
    driver: Driver = field(default_factory=Driver)
    here: Here = field(default_factory=Here)
    cudas: dict[str, int] = field(default_factory=dict)
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
        tell("\n".join(lines(facts, backends, faults)))
    if not ready:
        raise GateFailed(f"no backend runs here; install the smallest with: {install_line('cpu')}")


def lines(facts: Facts, backends: dict[str, str | None], faults: list[Finding]) -> Iterator[str]:
    """The report for people."""
    memory = f", {facts.memory_gib:.1f} GiB of memory" if facts.memory_gib else ""
    gpus = f"{len(facts.driver.gpus) or 'no'} GPU{'s' if len(facts.driver.gpus) > 1 else ''}"
    yield f"{facts.cores} of {facts.cores_seen} cores of {facts.cpu}{memory}, {gpus}, {facts.system}"
    for number, gpu in enumerate(facts.driver.gpus):
        yield f"  --gpu {number}      {gpu.name}, {gpu.capability}, {gpu.memory_mib} MiB"
    if facts.driver.version:
        yield f"  driver       {facts.driver.version}, serves CUDA {facts.driver.cuda or 'of no version'}"
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
        if row.gpu and not facts.driver.gpus and not facts.here.on_bus:
            reasons[name] = "needs an NVIDIA GPU, and this machine has none"  # whatever else is missing: no use here
        elif reason is None and (broken := facts.probes.get(name)):
            reasons[name] = f"is installed, but a tiny network does not run on it ({broken})"
        else:
            reasons[name] = reason
    return reasons


def findings(facts: Facts) -> list[Finding]:
    """What to change on a machine with these facts, the gravest first."""
    return [finding for rule in (_libraries, _gpu, _limits, _pillow) for finding in rule(facts)]


def _libraries(facts: Facts) -> Iterator[Finding]:
    if len(facts.onnxruntimes) > 1:
        says = (
            f"{' and '.join(facts.onnxruntimes)} are installed together: they own the same folder and break each other"
        )
        anew = install_line("gpu" if serving(facts.driver, facts.here) else "cpu")
        yield Finding("onnxruntime", says, f"pip uninstall -y {' '.join(facts.onnxruntimes)} && {anew}")
    for name, reason in facts.probes.items():
        if reason and (not BACKENDS[name].gpu or facts.driver.gpus):
            says = f"is installed, but a tiny network does not run on it ({reason})"
            yield Finding(name, says, f"{install_line(BACKENDS[name].extra)} --force-reinstall")


def _gpu(facts: Facts) -> Iterator[Finding]:
    says, line = refusal(facts.driver, facts.here)
    if says:
        yield Finding("gpu", says, line)
    if says or not facts.driver.gpus:
        return
    extras = choose(facts.driver, facts.here).extras.split(",")
    anew = anew_line()
    cuda, majors = serving(facts.driver, facts.here), set(facts.cudas.values())
    chosen = [
        name for name, row in BACKENDS.items() if row.gpu and extra_of(row.extra, facts.driver, facts.here) in extras
    ]
    missing = [name for name in chosen if facts.backends.get(name)]
    if cuda and max(majors, default=0) > cuda.major:
        built = ", ".join(name for name, major in facts.cudas.items() if major > cuda.major)
        says = f"GPU and driver (CUDA {facts.driver.cuda}) are served by packages for CUDA {cuda.major}, installed is"
        yield Finding("gpu", f"{says} CUDA {max(majors)} ({built})", anew)
    elif len(majors) > 1:
        built = ", ".join(f"{name} for CUDA {major}" for name, major in facts.cudas.items())
        yield Finding("gpu", f"packages of several CUDAs are installed together ({built})", anew)
    elif missing:
        yield Finding("gpu", f"it is served by {','.join(extras)}, but {', '.join(missing)} cannot be used yet", anew)


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
        more = "docker run --memory 4g …" if facts.here.container else install_line("cpu")
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
    backends = missing(BACKENDS)
    return Facts(
        cpu=here.cpu,
        system=here.system,
        cores=bound_to(),
        backends=backends,
        probes=probe(name for name, reason in backends.items() if reason is None),
        cpu_features=here.cpu_features,
        cores_seen=psutil.cpu_count() or here.cores,
        quota=quota,
        memory_gib=min((gib for gib in (here.memory_gib, limit) if gib), default=None),
        driver=driver(),
        here=nvidia_here(),
        cudas=_cudas(),
        onnxruntimes=tuple(sorted(set(metadata.packages_distributions().get("onnxruntime", [])))),
        versions=environment.versions(),
        pillow={name: bool(features.check(name)) for name in PHOTOS if name != "heif"}
        | {"heif": importlib.util.find_spec("pillow_heif") is not None},
    )


def _cudas() -> dict[str, int]:
    """By installed distribution, the major version of CUDA that it is built for."""
    majors = {}
    for name in ("tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "cuda-bindings", "torch"):
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
            told = re.search(r"-cu(\d\d)$", name) or re.search(r"\+cu(\d\d)", version)
            if told or name == "cuda-bindings":
                majors[name] = int(told[1] if told else version.split(".")[0])
    with suppress(metadata.PackageNotFoundError):
        major, minor = metadata.version("onnxruntime-gpu").split(".")[:2]
        majors["onnxruntime-gpu"] = 13 if (int(major), int(minor)) >= (1, 27) else 12
    return majors
