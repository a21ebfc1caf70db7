"""NVIDIA's GPUs as the driver tells of them, which of them this process uses, and what `make` should install for them.

Standard library only, nothing of ours imported: `make` runs this file by the system's Python before anything else is
installed (`python3 runtime/nvidia.py --extras`, and `--check cpu,openvino` before a `.venv` is touched).
"""

from __future__ import annotations

import ctypes
import difflib
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import UUID

# Where the loader's cache was not refreshed, WSL's own folder (NVIDIA's "CUDA on WSL User Guide")
_LIBRARIES = ("libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1", "nvcuda.dll")
_NVML = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1", "nvml.dll")
# cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_MAJOR, _MINOR = 75, 76
_PATIENCE = 60  # seconds; with persistence mode off, eight GPUs take some ten to wake
_NUMBER = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)?\b")


@dataclass(frozen=True)
class Cuda:
    """One major version of CUDA and what of the packages is built for it.

    Within a major version newer packages run on older drivers (NVIDIA, "CUDA Compatibility": 12.x from r525, 13.x from
    r580). `oldest` and `newest`: compute capability that PyTorch's wheels are compiled for. `tensorrt`: the CUDA that a
    driver must serve for the wheels of TensorRT 11.4 ("Prerequisites": r535, which serves 12.2, and r580; Turing or
    later), and so for TensorRT-RTX.
    """

    major: int
    suffix: str
    torch_index: str
    oldest: int
    newest: int
    tensorrt: tuple[int, int]


# PyPI's torch 2.14 is built for CUDA 13, from sm75 on; its last wheels for CUDA 12 are 2.14's cu126, sm50 to sm90
# (pytorch/pytorch#178665, #190385). onnxruntime-gpu is built for CUDA 13 from 1.27 on (microsoft/onnxruntime#29500), on
# ARM from 1.29 on
CUDAS = (
    Cuda(13, "", "", 75, 999, (13, 0)),
    Cuda(12, "-cu12", "https://download.pytorch.org/whl/cu126", 50, 90, (12, 2)),
)
_TENSORRT_FROM = 75  # TensorRT's support matrices, 10.14 to 11.4
# TensorRT-RTX's targets (1.7's ComputeCapability; no sm90), and on ARM GB10 alone (its support matrix)
_RTX = {"x86_64": {75, 80, 86, 89, 120, 121}, "aarch64": {121}}
_TEGRA = {53, 62, 72, 87, 110}  # the GPUs of Jetsons, from Nano to Thor
# What helps against CUDA's errors that are no matter of what is installed: the fabric manager of HGX boards, a module
# that was replaced while it runs, libraries of a newer CUDA in an image, a module that lost its GPU over a suspend
_MENDS = {
    "CUDA_ERROR_SYSTEM_NOT_READY": "sudo systemctl start nvidia-fabricmanager",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "sudo reboot",
    "CUDA_ERROR_UNKNOWN": "sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm",
}
_FORWARD = "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE"
_MISSING = "libcuda.so.1 is not there"
ANEW = "make setup EXTRAS=auto"
# Engines that need no GPU; TensorRT-RTX has them built ahead of time, on x86-64
_CPU = {"x86_64": "cpu,openvino,tensorrt-rtx"}


class NoSuchGpu(ValueError):
    """The number of a GPU that is not there; its text is one sentence."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability such as "sm89", memory in MiB, and the identity that NVML knows it by."""

    name: str
    capability: str
    memory_mib: int
    uuid: str = ""


@dataclass(frozen=True)
class Driver:
    """What the driver tells.

    `version` such as "580.95.05", empty where there is none; `cuda` the highest CUDA that it serves, such as "13.0";
    `gpus` those that this process may use, in CUDA's order; `error` why it may use none, empty when all is well.
    """

    version: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""


@functools.cache
def driver() -> Driver:
    """Ask the driver; raises nothing.

    In a process of its own: CUDA must not be initialised in one that may fork, and a broken driver ends only the
    process that asks. None is started where libcuda cannot be loaded.
    """
    return _found()


def _found() -> Driver:
    if _load(_LIBRARIES) is None:
        return Driver(version=_version_of_kernel(), error=_MISSING)
    ask = [sys.executable, str(Path(__file__).resolve()), "--ask"]
    try:
        asked = subprocess.run(ask, capture_output=True, text=True, errors="replace", timeout=_PATIENCE)
        told = json.loads(asked.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(_version_of_kernel(), error=f"the driver gave no answer ({error})")
    except ValueError:
        return Driver(_version_of_kernel(), error=f"the driver broke off ({_ending(asked)})")
    return Driver(told["version"], told["cuda"], tuple(Gpu(**gpu) for gpu in told["gpus"]), told["error"])


def use(number: int) -> None:
    """Let this process and those it starts see one GPU only, by CUDA_VISIBLE_DEVICES: it is device 0 from then on.

    `number` counts the GPUs that are visible now, in CUDA's order; UUIDs and MIG instances are kept as they were named.
    Call it before anything opens CUDA. Raises NoSuchGpu.
    """
    gpus = driver().gpus
    if not 0 <= number < len(gpus):
        there = "; ".join(f"{i}: {gpu.name}" for i, gpu in enumerate(gpus))
        seen = f"it has {there}; choose one of them" if gpus else f"it has none that can be used ({driver().error})"
        raise NoSuchGpu(f"there is no GPU {number} on this machine, {seen}; see: python -m runtime doctor")
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number] if visible else str(number)
    driver.cache_clear()


# --- what to install


@dataclass(frozen=True)
class Here:
    """What a choice depends on beside the driver.

    `jetson`: NVIDIA's JetPack runs it. `on_bus`: an NVIDIA GPU is plugged in, whether or not a driver sees it.
    `visible`: CUDA_VISIBLE_DEVICES, None where it is not set. `pod`: a container of Kubernetes. `capabilities`:
    NVIDIA_DRIVER_CAPABILITIES, which tells what a container was given of the driver.
    """

    system: str = "Linux"
    machine: str = "x86_64"
    jetson: bool = False
    wsl: bool = False
    container: bool = False
    on_bus: bool = False
    visible: str | None = None
    pod: bool = False
    capabilities: str = ""

    @property
    def new_driver(self) -> str:
        """What to type for a newer driver."""
        if self.wsl:
            return "install the driver of https://www.nvidia.com/drivers in Windows"
        return self.on_host("sudo ubuntu-drivers install && sudo reboot")

    def on_host(self, line: str) -> str:
        """A line to type where the driver lives."""
        return f"{'on the host: ' if self.container else ''}{line}"


@dataclass(frozen=True)
class Choice:
    """The extras that `make` installs, the index of PyTorch's wheels (empty: PyPI), and why, in one sentence."""

    extras: str
    torch_index: str = ""
    sentence: str = ""


def choose(told: Driver, here: Here) -> Choice:
    """What to install on such a machine; without a GPU there is nothing to say of it."""
    cpu = _CPU.get(here.machine if here.system == "Linux" else "", "cpu,openvino")
    says, next_line = refusal(told, here)
    cuda = serving(told, here)
    if says or not cuda:
        return Choice(cpu, sentence=says and f"{says} ({next_line}, then: {ANEW}); installs {cpu}")
    extras = [f"gpu{cuda.suffix}", "openvino"]
    levels = [_level(gpu) for gpu in told.gpus]
    if _served(told) >= cuda.tensorrt and max(levels) >= _TENSORRT_FROM:
        extras.append(f"tensorrt{cuda.suffix}")
        if _RTX.get(here.machine, set()).intersection(levels):
            extras.append(f"tensorrt-rtx{cuda.suffix}")
    line = ",".join(extras)
    return Choice(line, cuda.torch_index, f"{_names(told)}, driver {told.version}, CUDA {told.cuda}: installs {line}")


def fault(extras: str) -> str:
    """Why extras that someone typed cannot be installed, and what to type; empty where they can. pip warns at most."""
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    known, names = list(project["project"]["optional-dependencies"]), extras.split(",")
    near = {name: difflib.get_close_matches(name.lower(), known, 1) for name in names if name not in known}
    if near:
        meant = ",".join(dict.fromkeys(near.get(name, [name])[0] for name in names)) if all(near.values()) else "auto"
        return f"saji has no extra {', '.join(near)}, it has {', '.join(known)}; type: make setup EXTRAS={meant}"
    for exclusive in project["tool"]["uv"]["conflicts"]:
        first, *others = [each["extra"] for each in exclusive if each["extra"] in names] or [""]
        if others:
            rest = ",".join(name for name in names if name not in others)
            both = " and ".join([first, *others])
            return f"{both} break each other in one .venv; choose one of them, such as: make setup EXTRAS={rest}"
    return ""


def serving(told: Driver, here: Here) -> Cuda | None:
    """The newest CUDA that driver and all GPUs are served by, else driver and first GPU, which is the one we use."""
    levels = [_level(gpu) for gpu in told.gpus]
    for some in (levels, levels[:1]):
        for cuda in _built(here):
            if some and _served(told) >= (cuda.major, 0) and all(cuda.oldest <= x <= cuda.newest for x in some):
                return cuda
    return None


def _built(here: Here) -> list[Cuda]:
    return [cuda for cuda in CUDAS if here.machine == "x86_64" or not cuda.suffix]  # on ARM for CUDA 13 alone


def extra_of(name: str, told: Driver, here: Here) -> str:
    """The extra of ours for the CUDA that a driver serves: "tensorrt-cu12" for "tensorrt" where that is CUDA 12."""
    cuda = serving(told, here) if name in ("gpu", "tensorrt", "tensorrt-rtx") else None
    return f"{name}{cuda.suffix}" if cuda else name


def unserved(name: str, told: Driver, here: Here) -> str:
    """Why an extra of ours is not for the GPU and driver that are here, and what helps; empty where it may be."""
    if not told.gpus or name not in ("gpu", "tensorrt", "tensorrt-rtx"):
        return ""
    if extra_of(name, told, here) in choose(told, here).extras.split(","):
        return ""
    says, line = refusal(told, here)
    if not says and name in choose(replace(told, cuda="99.0"), here).extras.split(","):
        says, line = f"the extra {name} does not serve driver {told.version}, CUDA {told.cuda}", here.new_driver
    return f"{says}; {line}" if says else f"the extra {name} does not serve the GPU that is here: {_names(told)}"


def refusal(told: Driver, here: Here) -> tuple[str, str]:
    """Why a GPU that is there cannot be used, and what to type next; both empty where none is in the way."""
    nothing, missing = told.error == "CUDA_ERROR_NO_DEVICE", told.error == _MISSING
    there = here.on_bus or (bool(told.version) and not nothing)
    # Schedulers set the variable on every machine; any other error is the driver's own
    hidden = here.visible is not None and nothing and (bool(told.version) or here.on_bus)
    jetson = here.jetson or any(_level(gpu) in _TEGRA for gpu in told.gpus)
    unused = told.gpus and not serving(told, here)
    oldest = min(cuda.oldest for cuda in _built(here))
    too_old = f"driver {told.version} serves CUDA {told.cuda}, too old for today's packages; 580 or newer serves them"
    gives_none = f"driver {told.version} gives no GPU ({told.error})"
    rules = (
        (jetson, "a Jetson has CUDA from its JetPack, not from PyPI, and saji was never run on one",
         here.on_host("sudo apt-get install -y nvidia-jetpack")),
        (told.gpus and here.system != "Linux", f"saji uses no GPU on {here.system}", "wsl --install"),
        (unused and max(map(_level, told.gpus)) < oldest,
         f"{_names(told)}: today's packages serve no GPU below sm{oldest}", "it takes a newer GPU"),
        (unused, f"{_names(told)}: {too_old}", here.new_driver),
        (told.gpus, "", ""),
        (hidden, f"CUDA_VISIBLE_DEVICES={here.visible!r} leaves no GPU to use", "unset CUDA_VISIBLE_DEVICES"),
        (there and here.container and (missing or nothing), *_not_given(here)),
        (there and not told.version, "there is an NVIDIA GPU, but no driver that works", here.new_driver),
        (there and missing, f"driver {told.version} is loaded, but its {_MISSING}",
         f"sudo apt-get install -y libnvidia-compute-{told.version.partition('.')[0]}"),
        (there and told.error == _FORWARD, f"{gives_none}: libcuda is of a newer CUDA, which this GPU does not take",
         "sudo apt-get remove -y 'cuda-compat-*'"),
        (there, gives_none, here.on_host(_MENDS[told.error]) if told.error in _MENDS else "nvidia-smi"),
    )  # fmt: skip
    return next(((says, line) for holds, says, line in rules if holds), ("", ""))


def _not_given(here: Here) -> tuple[str, str]:
    """What a container lacks of a GPU whose driver is on its host, and what to type."""
    given = {part.strip() for part in here.capabilities.split(",") if part.strip()}
    if given and not given & {"all", "compute"}:
        says = f"this container was given the GPU for {here.capabilities} alone (NVIDIA_DRIVER_CAPABILITIES)"
        return says, "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility …"
    line = "in the pod's resources.limits: nvidia.com/gpu: 1" if here.pod else "docker run --gpus all …"
    return "the machine has an NVIDIA GPU that this container was not given", line


def _names(told: Driver) -> str:
    names = [f"{re.sub('^NVIDIA (GeForce )?', '', gpu.name)} ({gpu.capability})" for gpu in told.gpus]
    counts = {name: names.count(name) for name in names}
    return " + ".join(name if count == 1 else f"{count}x {name}" for name, count in counts.items())


def _level(gpu: Gpu) -> int:
    return int(gpu.capability[2:])


def _served(told: Driver) -> tuple[int, ...]:
    return tuple(map(int, told.cuda.split("."))) if told.cuda else (0, 0)


def here() -> Here:
    """This machine."""
    return Here(
        system=platform.system(),
        machine=platform.machine(),
        jetson=Path("/etc/nv_tegra_release").exists(),
        wsl=Path("/dev/dxg").exists(),
        container=_in_container(),
        on_bus=_on_bus(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        pod="KUBERNETES_SERVICE_HOST" in os.environ,
        capabilities=os.environ.get("NVIDIA_DRIVER_CAPABILITIES", ""),
    )


def _in_container() -> bool:
    """Whether the marks of Docker or Podman are there, or the variables of Kubernetes or of systemd's interface."""
    files = any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
    return files or not {"container", "KUBERNETES_SERVICE_HOST"}.isdisjoint(os.environ)


def _on_bus() -> bool:
    """Whether a display or 3D controller of NVIDIA is plugged in; Linux tells, elsewhere it is False."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            kind, vendor = (device / "class").read_text(), (device / "vendor").read_text()
        except OSError:
            continue
        if vendor.strip() == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def _load(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _ending(asked: subprocess.CompletedProcess[str]) -> str:
    lines = [f"signal {-asked.returncode}"] if asked.returncode < 0 else asked.stderr.split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"exit status {asked.returncode}")[:120]


# --- in the process that asks


def _asked() -> Driver:
    """What libcuda says; it is initialised in this process from now on."""
    cuda = _load(_LIBRARIES)
    if cuda is None:
        return Driver(error=_MISSING)
    version, number, count = _version(), ctypes.c_int(), ctypes.c_int()
    status = cuda.cuDriverGetVersion(ctypes.byref(number))
    served = f"{number.value // 1000}.{number.value % 1000 // 10}" if status == 0 else ""
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return Driver(version, served, error=_name(cuda, status or 100))
    try:
        return Driver(version, served, tuple(_gpus(cuda, count.value)))
    except RuntimeError as error:
        return Driver(version, served, error=str(error))


def _gpus(cuda: ctypes.CDLL, count: int) -> Iterator[Gpu]:
    def check(status: int) -> None:
        if status:
            raise RuntimeError(_name(cuda, status))

    for ordinal in range(count):
        device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        major, minor = ctypes.c_int(), ctypes.c_int()
        check(cuda.cuDeviceGet(ctypes.byref(device), ordinal))
        check(cuda.cuDeviceGetName(name, len(name), device))
        check(cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device))
        check(cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device))
        check(cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))  # the plain name is that of 32 bits
        text, identity = name.value.decode(errors="replace"), (ctypes.c_ubyte * 16)()
        known = cuda.cuDeviceGetUuid_v2(ctypes.byref(identity), device) == 0  # of a slice its own
        uuid = f"{'MIG' if ' MIG ' in text else 'GPU'}-{UUID(bytes=bytes(identity))}" if known else ""
        yield Gpu(text, f"sm{major.value}{minor.value}", memory.value // 2**20, uuid)


def _name(cuda: ctypes.CDLL, status: int) -> str:
    """CUDA's name of a status, such as CUDA_ERROR_NO_DEVICE."""
    text = ctypes.c_char_p()
    if cuda.cuGetErrorName(status, ctypes.byref(text)) or not text.value:
        return f"CUDA error {status}"
    return text.value.decode()


def _version() -> str:
    """The driver's own number: by NVML, else by the kernel module, else by nvidia-smi; empty where none tells."""
    nvml, text = _load(_NVML), ctypes.create_string_buffer(96)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE is 80
    if nvml is not None and nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0:
        return text.value.decode()
    return _version_of_kernel() or _version_by_command()


def _version_of_kernel() -> str:
    try:
        found = _NUMBER.search(Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[0] if found else ""


def _version_by_command() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = _NUMBER.search(asked.stdout)
    return found[0] if found else ""


def _main(flags: list[str]) -> None:
    """`--extras`: what `make` should install on stdout, why on stderr; whatever is broken, the CPU's and status 0.
    `--check cpu,openvino`: status 1 with a sentence where they cannot be installed."""
    if flags == ["--ask"]:
        print(json.dumps(asdict(_asked())))
    elif flags[:1] == ["--check"]:
        sys.exit(fault(flags[1]) or 0)
    elif flags == ["--extras"]:
        try:
            choice = choose(driver(), here())
        except Exception as error:
            choice = Choice("cpu,openvino", sentence=f"the GPU was not found out ({error}); installs cpu,openvino")
        print(choice.extras)
        if choice.sentence:
            wide = shutil.get_terminal_size().columns if sys.stderr.isatty() else len(choice.sentence)
            lines = textwrap.wrap(choice.sentence, wide, subsequent_indent="  ", break_long_words=False)
            print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    _main(sys.argv[1:])
