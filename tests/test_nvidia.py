"""Which GPU there is, which is used, and what `make` installs for it; here with a driver that a few lines stand for."""

import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import house
import pytest
from conftest import ROOT

from runtime import nvidia
from runtime.backends import cuda
from runtime.errors import Unavailable, install_line, missing_extra
from runtime.machine import gpu_name
from runtime.nvidia import Choice, Driver, Gpu, Here, choose

CU126 = "https://download.pytorch.org/whl/cu126"
CPU = "cpu,openvino,tensorrt-rtx"
ARM = {"machine": "aarch64"}


def told(*gpus: str, cuda: str = "13.0", version: str = "580.95.05", error: str = "") -> Driver:
    """A driver's answer; a GPU is written "NVIDIA GeForce RTX 4090 sm89"."""
    found = tuple(Gpu(*gpu.rsplit(" ", 1), memory_mib=24564) for gpu in gpus)
    return Driver(version, cuda, found, error)


RTX_4090, V100 = "NVIDIA GeForce RTX 4090 sm89", "Tesla V100-SXM2-16GB sm70"
OLD = {"cuda": "12.2", "version": "535.54.03"}

SERVED = [
    (told(RTX_4090), {}, "gpu,openvino,tensorrt,tensorrt-rtx", "RTX 4090 (sm89), driver 580.95.05, CUDA 13.0: inst"),
    (told("NVIDIA GeForce RTX 5090 sm120"), {}, "gpu,openvino,tensorrt,tensorrt-rtx", "RTX 5090 (sm120)"),
    (told("NVIDIA GeForce RTX 3090 sm86"), {}, "gpu,openvino,tensorrt,tensorrt-rtx", "RTX 3090 (sm86)"),
    (told("NVIDIA L4 sm89"), {}, "gpu,openvino,tensorrt,tensorrt-rtx", "L4 (sm89)"),
    (told("Tesla T4 sm75"), {}, "gpu,openvino,tensorrt,tensorrt-rtx", "Tesla T4 (sm75)"),
    (told("NVIDIA A100-SXM4-40GB sm80"), {}, "gpu,openvino,tensorrt,tensorrt-rtx", "A100-SXM4-40GB (sm80)"),
    (told("NVIDIA A100-SXM4-40GB MIG 1g.5gb sm80"), {}, "gpu,openvino,tensorrt,tensorrt-rtx", "MIG 1g.5gb (sm80)"),
    (told("NVIDIA H100 80GB HBM3 sm90"), {}, "gpu,openvino,tensorrt", "H100 80GB HBM3 (sm90)"),
    (told(V100), {}, "gpu-cu12,openvino", "Tesla V100-SXM2-16GB (sm70)"),
    (told("NVIDIA GB10 sm121"), ARM, "gpu,openvino,tensorrt,tensorrt-rtx", "GB10 (sm121)"),
    (told("NVIDIA GH200 480GB sm90"), ARM, "gpu,openvino,tensorrt", "GH200"),
    (told(RTX_4090, **OLD), {}, "gpu-cu12,openvino,tensorrt-cu12,tensorrt-rtx-cu12", "driver 535.54.03, CUDA 12.2"),
    (told(RTX_4090, cuda="12.0", version="525.60"), {}, "gpu-cu12,openvino", "driver 525.60, CUDA 12.0"),
    (told(RTX_4090), {"wsl": True}, "gpu,openvino,tensorrt,tensorrt-rtx", "RTX 4090"),
    (told(RTX_4090, "Tesla T4 sm75"), {}, "gpu,openvino,tensorrt,tensorrt-rtx", "RTX 4090 (sm89) + Tesla T4 (sm75)"),
    (told(V100, V100), {}, "gpu-cu12,openvino", "2x Tesla V100"),
    (told(RTX_4090, V100), {}, "gpu-cu12,openvino,tensorrt-cu12,tensorrt-rtx-cu12", "+ Tesla V100"),  # both train
    (told("NVIDIA RTX 5090 sm120", V100), {}, "gpu,openvino,tensorrt,tensorrt-rtx", "+"),  # the first is ours
]  # fmt: skip


@pytest.mark.parametrize(("driver", "here", "extras", "says"), SERVED, ids=[case[3][:24] for case in SERVED])
def test_what_a_gpu_is_served_by_is_installed(driver: Driver, here: dict, extras: str, says: str) -> None:
    choice = choose(driver, Here(**here))
    assert choice.extras == extras and says in choice.sentence and extras in choice.sentence
    assert choice.torch_index == (CU126 if "cu12" in extras else "") and "\n" not in choice.sentence


NOT_THERE = "libcuda.so.1 is not there"
NO_DEVICE, KERNEL = "CUDA_ERROR_NO_DEVICE", {"version": "580.95.05", "cuda": ""}
REFUSED = [
    (told(RTX_4090, cuda="11.4", version="470.256.02"), {}, "470.256.02 serves CUDA 11.4, too old", "580 or newer"),
    (told("NVIDIA RTX 5090 sm120", cuda="12.8", version="570.86"), {}, "570.86 serves CUDA 12.8", "580 or newer"),
    (told("NVIDIA GH200 480GB sm90", **OLD), ARM, "535.54.03", "580 or newer"),
    (told(RTX_4090, cuda="11.4", version="470.1"), {"wsl": True}, "too old", "nvidia.com/drivers in Windows"),
    (told("Orin sm87"), {"jetson": True, **ARM}, "JetPack, not from PyPI", "nvidia-jetpack"),
    (told(error=NO_DEVICE), {"visible": "", "on_bus": True}, "CUDA_VISIBLE_DEVICES='' leaves", "unset CUDA_VISIBLE"),
    (told(error=NO_DEVICE), {"visible": "-1"}, "CUDA_VISIBLE_DEVICES='-1' leaves", "unset CUDA_VISIBLE_DEVICES"),
    (Driver(error="libcuda.so.1 is not there"), {"on_bus": True}, "no driver that works", "ubuntu-drivers install"),
    (told(error="libcuda.so.1 is not there", **KERNEL), {"container": True}, "container was not given", "--gpus all"),
    (told(error="CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), {}, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "sudo reboot"),
    # Schedulers set the variable; it is no cause of the driver's own errors
    (told(error="CUDA_ERROR_SYSTEM_NOT_READY"), {"visible": "0"}, "gives no GPU (CUDA_ERROR_SYSTEM_NOT", "nvidia-fabr"),
    (told(error="the driver gave no answer (…)"), {"visible": "0"}, "gives no GPU (the driver gave no", "nvidia-smi"),
    (Driver(error="libcuda.so.1 is not there"), {"on_bus": True, "visible": "0"}, "no driver that works", "ubuntu-"),
    # In a container, too, CUDA's own errors are no matter of what it was given
    (told(error="CUDA_ERROR_SYSTEM_NOT_READY"), {"container": True}, "(CUDA_ERROR_SYSTEM_NOT_READY)", "on the host: "),
    (told(error="CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), {"container": True}, "_MISMATCH)", "on the host: sudo reboot"),
    (told(error="CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE"), {"container": True}, "of a newer CUDA", "cuda-compat-"),
    (told(error="CUDA_ERROR_UNKNOWN"), {"container": True}, "(CUDA_ERROR_UNKNOWN)", "modprobe nvidia_uvm"),
    (told(error=NO_DEVICE), {"container": True, "on_bus": True}, "container was not given", "docker run --gpus all"),
    (Driver("580.95", error=NOT_THERE), {"container": True, "pod": True}, "was not given", "limits: nvidia.com/gpu: 1"),
    (Driver("580.95", error=NOT_THERE), {"container": True, "capabilities": "utility"}, "utility alone", "=compute"),
    (Driver("580.95", error=NOT_THERE), {}, "580.95 is loaded, but its libcuda.so.1 is not", "libnvidia-compute-580"),
    (Driver("580.95", error="the driver gave no answer (…)"), {}, "580.95 gives no GPU (the driver gave", "nvidia-smi"),
    (told("Tesla K80 sm37", cuda="11.4", version="470.9"), {}, "K80 (sm37): today's packages serve no", "a newer GPU"),
    (told("Orin sm87"), {"container": True, **ARM}, "JetPack, not from PyPI", "on the host: sudo apt-get"),
]  # fmt: skip


@pytest.mark.parametrize(("driver", "here", "says", "line"), REFUSED, ids=[case[2][:24] for case in REFUSED])
def test_a_gpu_that_cannot_be_used_is_named_with_the_way_out(driver: Driver, here: dict, says: str, line: str) -> None:
    choice = choose(driver, Here(**here))
    cpu = "cpu,openvino" if here.get("machine") else CPU
    assert choice.extras == cpu and choice.sentence.endswith(f"then: {nvidia.ANEW}); installs {cpu}")
    assert says in choice.sentence and line in choice.sentence and "\n" not in choice.sentence


@pytest.mark.parametrize("name", ["KUBERNETES_SERVICE_HOST", "container"])
def test_a_container_without_dockers_marks_is_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    for variable in ("KUBERNETES_SERVICE_HOST", "container"):
        monkeypatch.delenv(variable, raising=False)
    assert not nvidia.here().container
    monkeypatch.setenv(name, "10.0.0.1")
    assert nvidia.here().container and nvidia.here().pod == name.startswith("KUBERNETES")


@pytest.mark.parametrize("driver", [Driver(error="libcuda.so.1 is not there"), told(error=NO_DEVICE)])
def test_of_a_machine_without_a_gpu_nothing_is_said(driver: Driver) -> None:
    assert choose(driver, Here()) == Choice(CPU)


def test_every_extra_that_is_chosen_exists_and_the_makefile_knows_its_index() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert {name for case in SERVED for name in case[2].split(",")} | set(CPU.split(",")) <= extras
    assert f"$(if $(findstring -cu12,$(CHOSEN)),{CU126})" in (ROOT / "Makefile").read_text()


# --- a driver of a few lines, loaded in place of the real one by every Python that has it in its path

FAKE = """
import ctypes, os, platform
platform.machine = lambda: "x86_64"
class Cuda:
    def cuDriverGetVersion(self, number): number._obj.value = 13010; return 0
    def cuInit(self, flags): %s; return 0 if os.environ.get("CUDA_VISIBLE_DEVICES") != "-1" else 100
    def cuDeviceGetCount(self, count): count._obj.value = 1; return 0
    def cuDeviceGet(self, device, ordinal): device._obj.value = ordinal; return 0
    def cuDeviceGetName(self, name, length, device): name.value = b"NVIDIA Test"; return 0
    def cuDeviceGetAttribute(self, value, attribute, device): value._obj.value = {75: 8, 76: 9}[attribute]; return 0
    def cuDeviceTotalMem_v2(self, memory, device): memory._obj.value = 24 * 2**30; return 0
    def cuDeviceGetUuid_v2(self, identity, device): identity._obj[:] = bytes(range(16)); return 0
    def cuGetErrorName(self, status, text): text._obj.value = b"CUDA_ERROR_NO_DEVICE"; return 0
class Nvml:
    def nvmlInit_v2(self): return 0
    def nvmlSystemGetDriverVersion(self, text, length): text.value = b"580.95.05"; return 0
real = ctypes.CDLL
fakes = {"libcuda.so.1": Cuda, "libnvidia-ml.so.1": Nvml}
ctypes.CDLL = lambda name, *more, **named: fakes[name]() if name in fakes else real(name, *more, **named)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    (tmp_path / "sitecustomize.py").write_text(FAKE % "pass")
    return tmp_path


def asked(folder: Path, *line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), **variables}
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT / "runtime", timeout=100)


DRIVER = [sys.executable, "-c", "import nvidia; print(nvidia.driver())"]


def test_the_driver_is_asked_for_its_version_its_cuda_and_its_gpus(fake: Path) -> None:
    expected = Driver(
        "580.95.05", "13.1", (Gpu("NVIDIA Test", "sm89", 24576, "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"),)
    )
    assert asked(fake, *DRIVER).stdout.strip() == str(expected)
    hidden = asked(fake, *DRIVER, CUDA_VISIBLE_DEVICES="-1").stdout
    assert hidden.strip() == str(Driver("580.95.05", "13.1", (), "CUDA_ERROR_NO_DEVICE"))


@pytest.mark.parametrize("broken", ["os.abort()", "1 / 0", "os._exit(3)", "os.write(2, b'\\xff no text'); os._exit(3)"])
def test_a_driver_that_falls_over_takes_nobody_along(broken: str, fake: Path) -> None:
    (fake / "sitecustomize.py").write_text(FAKE % broken)
    said = asked(fake, *DRIVER)
    assert said.returncode == 0 and "gpus=(), error='the driver broke off (" in said.stdout
    said = asked(fake, sys.executable, "nvidia.py", "--extras")
    assert said.returncode == 0 and "Traceback" not in said.stderr and said.stdout.startswith("cpu,openvino")


def test_the_systems_python_tells_make_before_anything_is_installed(fake: Path) -> None:
    """-I -S: without our environment's packages, and so without the fake driver, too."""
    said = asked(fake, sys.executable, "nvidia.py", "--extras")
    assert said.stdout == "gpu,openvino,tensorrt,tensorrt-rtx\n" and said.stderr.count("\n") == 1
    assert asked(fake, sys.executable, "-I", "-S", "nvidia.py", "--extras").returncode == 0


# --- which one is used


@pytest.mark.parametrize(
    ("visible", "number", "after"),
    [(None, 1, "1"), ("2,0", 1, "0"), ("GPU-aa, MIG-bb", 1, "MIG-bb"), ("GPU-aa,MIG-bb", 0, "GPU-aa")],
)
def test_the_one_gpu_to_use_keeps_the_name_that_it_was_made_visible_by(
    visible: str | None, number: int, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, told(RTX_4090, "Tesla T4 sm75"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    nvidia.use(number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == after


@pytest.fixture(autouse=True)
def this_machines_driver() -> Iterator[None]:
    yield
    nvidia.driver.cache_clear()


def with_gpus(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    """This process has such a driver, in a PC, until the end of the test."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))  # is put back at the end
    # Not the function in its place: a module that is imported meanwhile would keep that for good
    monkeypatch.setattr(nvidia, "_found", lambda: driver)
    nvidia.driver.cache_clear()


COMMANDS = [
    ("export", "--out", "none"),
    ("bench", "--out", "none"),
    ("runtime", "bench", "--out", "none"),
    ("runtime", "classify", "photo.png"),
    ("runtime", "selftest", "model"),
    ("demo", "--out", "none"),
]


@pytest.mark.parametrize("line", COMMANDS, ids=[" ".join(line[:2]) for line in COMMANDS])
def test_each_command_that_opens_engines_takes_the_number_of_a_gpu(
    line: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, told(RTX_4090, "Tesla T4 sm75"))
    said = house.here(*line, "--gpu", "2")
    assert said.status == 2 and "there is no GPU 2 on this machine, it has 0: NVIDIA GeForce RTX 4090; 1: " in said.last
    used = house.here(*line, "--gpu", "1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1" and "no GPU" not in used.err


def test_of_several_numbers_the_last_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the GPUs that were visible before the first: ARGS in a Makefile, and one's own behind it."""
    with_gpus(monkeypatch, told(RTX_4090, "Tesla T4 sm75"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    house.here("runtime", "classify", "photo.png", "--gpu", "1", "--gpu", "0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_without_a_gpu_the_flag_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, Driver(error="libcuda.so.1 is not there"))
    with pytest.raises(nvidia.NoSuchGpu, match=r"it has none that can be used \(libcuda\.so\.1 is not there\)"):
        nvidia.use(0)


# --- what follows from it


def test_a_driver_too_old_for_what_is_installed_is_told_from_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "versions", lambda: {"cuda": "13.0", "driver": "12.2"})
    with_gpus(monkeypatch, told(RTX_4090, **OLD))
    old = r"the driver 535\.54\.03 serves CUDA 12\.2, the installed packages need CUDA 13; .*make setup EXTRAS=auto"
    with pytest.raises(Unavailable, match=old):
        cuda.require_gpu()
    with_gpus(monkeypatch, told(error=NO_DEVICE))
    with pytest.raises(Unavailable, match=r"no CUDA GPU \(CUDA_ERROR_NO_DEVICE\)"):
        cuda.require_gpu()
    with_gpus(monkeypatch, told(RTX_4090))
    cuda.require_gpu()
    assert cuda.compute_capability() == "sm89" and gpu_name() == "NVIDIA GeForce RTX 4090, 580.95.05"


def test_an_extra_is_that_of_the_cuda_which_the_driver_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, told(RTX_4090, **OLD))
    assert "[tensorrt-cu12]" in install_line("tensorrt") and "[openvino]" in install_line("openvino")
    with_gpus(monkeypatch, told(RTX_4090))
    assert "[tensorrt]" in install_line("tensorrt")


@pytest.mark.parametrize(
    ("driver", "extra", "says"),
    [
        (told("NVIDIA H200 sm90"), "tensorrt-rtx", "the extra tensorrt-rtx does not serve the GPU that is here: H200"),
        (told(V100), "tensorrt", "the extra tensorrt does not serve the GPU that is here: Tesla V100"),
        (
            told("T4 sm75", cuda="12.0", version="525.1"),
            "tensorrt",
            "does not serve driver 525.1, CUDA 12.0; sudo ",
        ),
        (
            told(RTX_4090, cuda="11.4", version="470.1"),
            "gpu",
            "too old for today's packages; 580 or newer serves",
        ),
    ],
)
def test_nobody_is_told_to_install_what_does_not_serve_him(
    driver: Driver, extra: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, driver)
    monkeypatch.setattr("runtime.errors.here", Here)
    assert says in str(missing_extra("it", extra)) and "pip install" not in str(missing_extra("it", extra))
    monkeypatch.setattr(cuda, "versions", lambda: {"cuda": "13.0"})
    monkeypatch.setattr(cuda, "here", Here)
    if not nvidia.serving(driver, Here()):
        with pytest.raises(Unavailable, match=r"get a newer driver: sudo ubuntu-drivers install && sudo reboot$"):
            cuda.require_gpu()


# --- make

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make setup` reads, in a folder without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "runtime").mkdir()
    shutil.copy(ROOT / "runtime" / "nvidia.py", tmp_path / "runtime")
    return tmp_path


def unset() -> dict[str, str]:
    """The environment without what a make around the tests hands down."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "EXTRAS", "TORCH_"))}


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What make would run."""
    line = ["make", "-n", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(line, cwd=folder, env={**unset(), **variables}, capture_output=True, text=True)


def installs(said: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"-e '\.\[train,tensorboard,export,(.*),demo,heic,dev\]'", said.stdout)
    return found[1] if found else ""


@needs_make
def test_make_installs_for_the_gpu_and_says_so_once(checkout: Path, fake: Path) -> None:
    (checkout / "site").mkdir()
    shutil.move(fake / "sitecustomize.py", checkout / "site")
    said = make(checkout, "setup", PYTHONPATH=str(checkout / "site"))
    assert installs(said) == "gpu,openvino,tensorrt,tensorrt-rtx"
    assert said.stderr.count("installs gpu,openvino,tensorrt,tensorrt-rtx") == 1
    typed = make(checkout, "setup", "EXTRAS=cpu", PYTHONPATH=str(checkout / "site"))
    assert installs(typed) == "cpu" and not typed.stderr


@needs_make
def test_make_remembers_what_it_installed_and_starts_afresh_for_something_else(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    record = checkout / ".venv" / "installed"
    record.write_text(f"gpu-cu12,openvino {CU126}\n")
    orders = ["EXTRAS=gpu-cu12,openvino"], ["EXTRAS=openvino,gpu-cu12"], ["EXTRAS= openvino  gpu-cu12,"]
    for same in ([], *orders, [f"TORCH_INDEX={CU126}"]):
        assert "Nothing to be done" in make(checkout, "setup", *same).stdout
    os.utime(checkout / "pyproject.toml", (record.stat().st_mtime + 9,) * 2)
    said = make(checkout, "setup")  # for newer requirements, and the same engines
    assert (
        installs(said) == "gpu-cu12,openvino" and f"INDEX_URL={CU126}" in said.stdout and "--clear" not in said.stdout
    )
    for anew in ("cpu,openvino", "auto"):
        said = make(checkout, "setup", f"EXTRAS={anew}")
        assert "venv --clear .venv" in said.stdout and "cu126" not in said.stdout
        assert installs(said) == ("cpu,openvino" if anew != "auto" else choose(nvidia.driver(), nvidia.here()).extras)


@pytest.mark.parametrize(
    ("extras", "sentence"),
    [
        ("cpu,openvinoo", r"saji has no extra openvinoo, it has cpu, gpu, .*; type: make setup EXTRAS=cpu,openvino$"),
        ("GPU,tensorrt_rtx", r"no extra GPU, tensorrt_rtx, .*EXTRAS=gpu,tensorrt-rtx$"),
        ("cpu,xyzzy", r"no extra xyzzy, .*EXTRAS=auto$"),
        ("cpu,gpu,openvino", r"^cpu and gpu break each other .*EXTRAS=cpu,openvino$"),
        ("openvino,tensorrt,tensorrt-rtx-cu12", r"^tensorrt and tensorrt-rtx-cu12 break .*EXTRAS=openvino,tensorrt$"),
        *((extras, "^$") for extras in (CPU, "cpu,dev", "gpu-cu12,openvino,tensorrt-cu12,tensorrt-rtx-cu12")),
    ],
)
def test_extras_that_cannot_be_installed_are_told_with_what_to_type(extras: str, sentence: str) -> None:
    assert re.search(sentence, nvidia.fault(extras))


@pytest.fixture
def complete(checkout: Path) -> Path:
    """A checkout with an environment, and a Python whose `venv` makes another from `fresh`, which stands for pip."""
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "installed").write_text("cpu,openvino\n")
    python = checkout / "python"
    copy = "mkdir -p .venv/bin && cp fresh .venv/bin/python"
    clear = 'if [ "$3" = --clear ]; then rm -rf .venv/*; fi'
    python.write_text(f'#!/bin/sh\nif [ "$2" != venv ]; then exec {sys.executable} "$@"; fi\n{clear}; {copy}\n')
    (checkout / "fresh").touch(0o755)
    python.chmod(0o755)
    return checkout


def setup(folder: Path, pip: str, *arguments: str) -> subprocess.Popen[str]:
    """`make setup` under way, as from a terminal: signals reach it also where the tests run in the background."""

    def as_from_a_terminal() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    (folder / "fresh").write_text(f"#!/bin/sh\n{pip}\n")
    return subprocess.Popen(
        ["make", "setup", "PYTHON=./python", *arguments],
        cwd=folder,
        env=unset(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=as_from_a_terminal,
    )


def kept(folder: Path) -> bool:
    return (folder / ".venv/installed").read_text() == "cpu,openvino\n" and not (folder / ".venv/bin").exists()


@needs_make
@pytest.mark.parametrize("extras", ["cpu,openvinoo", "cpu,gpu", "it's"])
def test_extras_with_a_slip_leave_the_environment_alone(complete: Path, extras: str) -> None:
    made = setup(complete, "exit 0", f"EXTRAS={extras}")
    said, _ = made.communicate(timeout=60)
    assert made.returncode == 2 and "make setup EXTRAS=" in said and "Setup" not in said and kept(complete)


@needs_make
def test_an_environment_is_there_until_a_fresh_one_is_complete(complete: Path) -> None:
    record, before, log = (complete / name for name in (".venv/installed", ".venv.before", ".venv/setup.log"))
    before.mkdir()  # of a removal that was cut off
    assert "no such wheel" in setup(complete, "echo no such wheel; exit 1", "EXTRAS=cpu").communicate(timeout=60)[0]
    assert kept(complete) and not before.exists() and log.read_text() == "no such wheel\n"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        made = setup(complete, "touch started; exec sleep 60", "EXTRAS=cpu")
        while not (complete / "started").exists() and made.poll() is None:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):  # make hands on what it got, so that its shell gets it again
            for _ in range(40 if number != signal.SIGKILL else 1):
                os.killpg(made.pid, number)
                time.sleep(0.002)
        made.communicate(timeout=60)
        (complete / "started").unlink()
        left = sorted(path.name for path in (complete / ".venv").iterdir())
        assert number == signal.SIGKILL or (kept(complete) and not before.exists()), (number, left)
    setup(complete, "exit 1", "EXTRAS=cpu").communicate(timeout=60)  # a kill left both
    assert kept(complete) and not before.exists()
    setup(complete, "exit 0", "EXTRAS=cpu").communicate(timeout=60)
    assert record.read_text() == "cpu\n" and not before.exists() and (complete / ".venv/bin").exists()


@needs_make
def test_an_environment_on_another_disk_stays_there(complete: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    there = shutil.move(complete / ".venv", tmp_path_factory.mktemp("disk") / "large")
    (complete / ".venv").symlink_to(there)
    setup(complete, "exit 0", "EXTRAS=cpu").communicate(timeout=60)
    assert (there / "installed").read_text() == "cpu\n" and (complete / ".venv").is_symlink()


@needs_make
def test_a_full_disk_is_told_with_where_to_go_instead(complete: Path) -> None:
    full = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    said, _ = setup(complete, f"echo '{full}'; exit 1", "EXTRAS=cpu").communicate(timeout=60)
    assert full in said and "the disk is full: .venv takes 7 GB" in said and "make setup TMPDIR=FOLDER" in said
    assert kept(complete)
    assert "the disk is full" not in setup(complete, "exit 1", "EXTRAS=cpu").communicate(timeout=60)[0]


@needs_make
def test_make_names_what_to_do_where_tensorrts_own_index_is_not_reached(checkout: Path) -> None:
    said = make(checkout, "setup", "EXTRAS=gpu,openvino,tensorrt,tensorrt-rtx").stdout
    assert 'pypi.nvidia.com; without them: make setup EXTRAS=gpu,openvino,tensorrt-rtx"' in said
    assert "pypi.nvidia.com" not in make(checkout, "setup", f"EXTRAS={CPU}").stdout


@needs_make
def test_nobody_is_asked_for_the_list_of_targets(checkout: Path) -> None:
    said = make(checkout, "help", "PYTHON=/none")
    assert said.returncode == 0 and not said.stderr


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [(-11, "a line", "signal 11"), (0, "a line\n\n", "a line"), (7, "\n", "exit status 7")],
)
def test_how_a_process_that_asks_a_driver_ended_is_told(status: int, said: str, told: str) -> None:
    assert nvidia._ending(subprocess.CompletedProcess([], status, "", said)) == told
