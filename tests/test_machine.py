"""A verdict's machine tells processors apart: by /proc/cpuinfo as real machines have it, x86 and ARM."""

import contextlib
import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from runtime import candidate, environment, machine, verdicts
from runtime.backends.base import UNTOLD, check_precision
from runtime.candidate import Candidate
from runtime.doctor import GOOD_FOR
from runtime.errors import NotAsAsked
from runtime.machine import Machine, bound_to, told_by

_ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
_ARMV82 = f"{_ARMV8} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_APPLE = f"{_ARMV82} jscvt fcma sha3 sha512 asimdfhm dit uscat ilrcpc flagm sb paca pacg dcpodp flagm2 frint"
_GRAVITON3 = f"{_ARMV82} jscvt fcma sha3 sm3 sm4 sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg dcpodp"
_GRAVITON3 += " svei8mm svebf16 i8mm bf16 dgh rng"
_GRAVITON4 = f"{_GRAVITON3} sve2 sveaes svepmull svebitperm svesha3 flagm2 frint bti"

# Its name to us, the features that its kernel tells, and the numbers of its cores
ARM = {
    "Raspberry Pi 4": ("Cortex-A72", "fp asimd evtstrm crc32 cpuid", ["0x41 0xd08"] * 4),
    "Raspberry Pi 5": ("Cortex-A76", _ARMV82, ["0x41 0xd0b"] * 4),
    "Rock 5": ("Cortex-A55 + Cortex-A76", _ARMV82, ["0x41 0xd05"] * 4 + ["0x41 0xd0b"] * 4),
    "Jetson Orin": ("Cortex-A78AE", f"{_ARMV82} uscat ilrcpc flagm paca pacg", ["0x41 0xd42"] * 8),
    "Ampere Altra": ("Neoverse-N1", f"{_ARMV82} ssbs", ["0x41 0xd0c"] * 2),
    "Graviton 3": ("Neoverse-V1", _GRAVITON3, ["0x41 0xd40"] * 2),
    "Graviton 4": ("Neoverse-V2", _GRAVITON4, ["0x41 0xd4f"] * 2),
    "Docker on a Mac": ("Apple silicon", _APPLE, ["0x61 0x000"] * 2),
    "one that is not listed": ("ARM 0x51 0x001", f"{_APPLE} i8mm bf16", ["0x51 0x001"] * 2),
}
X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni

processor\t: 1
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni
"""


def cpuinfo(name: str) -> str:
    """The text of an ARM machine; Jetson's kernel has a model name that says only what all of them are."""
    _, features, cores = ARM[name]
    model = "model name\t: ARMv8 Processor rev 1 (v8l)\n" if "Jetson" in name else ""
    blocks = (
        f"processor\t: {number}\n{model}BogoMIPS\t: 108.00\nFeatures\t: {features}\n"
        f"CPU implementer\t: {core[:4]}\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {core[5:]}\n\n"
        for number, core in enumerate(cores)
    )
    tail = f"Revision\t: d04170\nModel\t\t: {name} Model B Rev 1.0\n" if "Raspberry" in name else ""
    return "".join(blocks) + tail


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):
    """This machine as a program of this architecture sees it where /proc/cpuinfo has this text."""

    def seen(text: str, architecture: str = "aarch64") -> Machine:
        monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
        monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
        monkeypatch.setattr(machine, "cgroup_limits", lambda: (None, None))
        return machine.machine.__wrapped__()

    return seen


@pytest.mark.parametrize("name", ARM)
def test_a_processor_of_arm_has_a_name_and_its_number_formats(name: str, on) -> None:
    here = on(cpuinfo(name))
    assert here.cpu == ARM[name][0]
    assert here.cpu_features and set(here.cpu_features) <= set(ARM[name][1].split()) & set(GOOD_FOR)


def test_processors_that_compute_otherwise_are_other_kinds_of_machine(on, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("Raspberry Pi 4", "Raspberry Pi 5", "Graviton 3", "Graviton 4", "one that is not listed")
    for one, other in itertools.combinations(kinds, 2):
        here = on(cpuinfo(one))
        monkeypatch.setattr(verdicts, "machine", lambda here=here: here)
        assert not verdicts.same_kind(on(cpuinfo(other))), (one, other)


def test_what_another_architecture_is_emulated_on_says_nothing_of_what_computes(on) -> None:
    assert told_by(X86, "x86_64") == ("Intel(R) Xeon(R) Processor", {"fpu", "sse2", "avx2", "avx512f", "avx512_vnni"})
    for text, architecture in ((X86, "aarch64"), (cpuinfo("Jetson Orin"), "x86_64"), ("isa\t: rv64", "riscv64")):
        here = on(text, architecture)
        assert (here.cpu, here.cpu_features) == (architecture, ())


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_commit_is_told_of_our_checkout_and_of_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, installed = tmp_path / "theirs", tmp_path / "theirs" / ".venv" / "site-packages" / "runtime"
    installed.mkdir(parents=True)
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    for words in (("init", "--quiet"), (*who, "commit", "--quiet", "--allow-empty", "--message", "theirs")):
        subprocess.run(["git", "-C", theirs, *words], check=True)
    monkeypatch.setattr(environment, "__file__", str(installed / "environment.py"))
    assert environment.commit() == (None, False)
    monkeypatch.setattr(environment, "__file__", str(theirs / "runtime" / "environment.py"))
    assert len(environment.commit()[0] or "") == 12


def test_what_a_command_prints_may_be_no_text() -> None:
    print_bytes = "import os; os.write(1, b'a driver of \\xff words')"
    assert machine.output_of(sys.executable, "-c", print_bytes) == "a driver of \ufffd words"


def test_processors_of_apple_are_told_apart_where_there_is_no_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setattr(machine, "output_of", lambda *command: "Apple M2 Pro" if command[0] == "sysctl" else "")
    assert machine._cpu() == ("Apple M2 Pro", set())


@pytest.mark.parametrize(("computed", "right"), [("fp32", True), ("fp16", True), ("int8", False)])
def test_a_file_check_may_be_computed_in_fp16_as_arm_does_and_a_candidate_not(
    computed: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(backend: str, path: Path, precision: str, *_: object) -> dict[str, float]:
        return check_precision([("conv", computed, 9.0), ("gemm", UNTOLD, 1.0)], precision, "ONNX Runtime", {})

    monkeypatch.setattr(candidate, "open_backend", opened)
    check = Candidate("resnet18", "model.fp16.onnx", "ort-cpu", "fp16", "as written", servable=False)
    with contextlib.nullcontext() if right else pytest.raises(NotAsAsked, match="asked for fp32 or fp16, but computes"):
        check.open(Path())
    served = replace(check, file="model.onnx", precision="fp32", variant="", servable=True)
    with contextlib.nullcontext() if computed == "fp32" else pytest.raises(NotAsAsked, match="asked for fp32, but"):
        served.open(Path())


def test_cores_are_those_that_this_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [5], raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 7)
    assert bound_to() == 1
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    assert bound_to() == 7, "where the system tells none, as macOS"


def test_the_memory_is_told_in_gib() -> None:
    machine.machine.cache_clear()
    assert machine.machine().memory_gib == pytest.approx(psutil.virtual_memory().total / 1024**3, abs=0.06)
