"""The doctor names what is in the way on any machine, with what to type next; here with facts of other machines."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import psutil
import pytest
from conftest import ROOT

from runtime import doctor, machine, probes
from runtime.__main__ import main
from runtime.backends import BACKENDS, unavailable_because
from runtime.doctor import Facts, cgroup_limits, findings, lines, states
from runtime.errors import GateFailed
from runtime.nvidia import Driver, Gpu, Here

L4 = Driver("580.65.06", "13.0", (Gpu("NVIDIA L4", "sm89", 23034),))

WELL = Facts(
    cpu="Some CPU",
    system="Linux x86_64",
    cores=8,
    cores_seen=8,
    backends=dict.fromkeys(BACKENDS),
    probes=dict.fromkeys(BACKENDS),
    cpu_features=("avx2", "avx512_vnni"),
    memory_gib=16.0,
    driver=L4,
    here=Here(on_bus=True),
    cudas={"cuda-bindings": 13, "onnxruntime-gpu": 13, "tensorrt-cu13": 13},
    onnxruntimes=("onnxruntime-gpu",),
    pillow=dict.fromkeys(("jpg", "webp", "avif", "littlecms2", "heif"), True),
)
NO_GPU = {"driver": Driver(error="libcuda.so.1 is not there"), "here": Here(), "cudas": {}}


def test_where_nothing_is_in_the_way_nothing_is_found() -> None:
    assert findings(WELL) == [] and set(states(WELL).values()) == {None}
    assert findings(replace(WELL, quota=8.0, here=Here(container=True, on_bus=True))) == []


SICK = [
    ({"onnxruntimes": ("onnxruntime", "onnxruntime-gpu")}, "own the same folder and break each other",
     r"pip uninstall -y onnxruntime onnxruntime-gpu && pip install '.*\[gpu\]'"),
    ({"onnxruntimes": ("onnxruntime", "onnxruntime-gpu"), **NO_GPU}, "break each other", r"pip install '.*\[cpu\]'"),
    ({"probes": {"ort-cuda": "it silently falls back"}}, "tiny network does not run on it .it silently falls back",
     r"pip install '.*\[gpu\]' --force-reinstall"),
    ({"probes": {"tensorrt": "it ended its process by signal 11"}}, "signal 11", r"\[tensorrt\]' --force-reinstall"),
    ({"probes": {"openvino": "RuntimeError: no plugin"}}, "does not run on it .RuntimeError: no plugin",
     r"\[openvino\]"),
    ({**NO_GPU, "here": Here(on_bus=True)}, "no driver that works", "ubuntu-drivers install"),
    ({**NO_GPU, "here": Here(on_bus=True, container=True)}, "this container was not given", "docker run --gpus all"),
    ({"driver": replace(L4, gpus=(), error="CUDA_ERROR_NO_DEVICE"), "here": Here(on_bus=True, visible="-1")},
     "CUDA_VISIBLE_DEVICES='-1' leaves no GPU", "unset CUDA_VISIBLE_DEVICES"),
    ({"driver": replace(L4, version="470.256.02", cuda="11.4")}, r"serves CUDA 11\.4, too old", "drivers install"),
    ({"driver": replace(L4, version="535.54.03", cuda="12.2")},
     r"\(CUDA 12\.2\) are served by packages for CUDA 12, installed is CUDA 13 .cuda-b", "make setup EXTRAS=auto"),
    ({"driver": replace(L4, gpus=(Gpu("Tesla V100", "sm70", 16384),))}, "for CUDA 12, installed is CUDA 13", "=auto"),
    ({"cudas": {"cuda-bindings": 13, "tensorrt-cu12": 12}}, "of several CUDAs .*tensorrt-cu12 for CUDA 12",
     "make setup EXTRAS=auto"),
    ({"backends": {**dict.fromkeys(BACKENDS), "ort-cuda": "not installed", "tensorrt": "not installed"}},
     "gpu,openvino,tensorrt,tensorrt-rtx, but ort-cuda, tensorrt cannot be used yet", "make setup EXTRAS=auto"),
    ({"quota": 2.5}, r"may use 2\.5 cores' worth of time but sees 8", "taskset -c 0-1 "),
    ({"memory_gib": 0.5}, r"0\.5 GiB serve with ONNX Runtime", r"\[cpu\]"),
    ({"memory_gib": 0.5, "here": Here(container=True)}, "not with PyTorch", "docker run --memory 4g"),
    ({"cpu_features": ("avx2",)}, "no INT8 arithmetic", "make bench"),
    ({"pillow": {"webp": False}}, "WEBP", "pip install --force-reinstall pillow"),
    ({"pillow": {"avif": False}}, "AVIF", r"pip install --upgrade 'pillow>=11\.3'"),
    ({"pillow": {"heif": False}}, "HEIC", "pip install 'pillow-heif>=1.8'"),
    ({"pillow": {"littlecms2": False}}, "colour profiles", "pip install"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "says", "command"), SICK, ids=[case[1][:24] for case in SICK])
def test_each_gap_is_one_finding_with_its_command(facts: dict, says: str, command: str) -> None:
    [finding] = findings(replace(WELL, **facts))
    assert re.search(says, finding.says) and re.search(command, finding.next)
    assert "\n" not in finding.says + finding.next
    text = "\n".join(lines(WELL, states(WELL), [finding]))
    assert f"{finding.about}: {finding.says}\n      {finding.next}" in text


def test_without_a_gpu_nobody_is_told_to_install_what_needs_one() -> None:
    facts = replace(
        WELL, **NO_GPU, backends={**WELL.backends, "ort-cuda": "replace it with: pip uninstall onnxruntime"}
    )
    assert findings(facts) == []
    assert states(facts)["ort-cuda"] == "needs an NVIDIA GPU, and this machine has none"


def test_a_backend_that_is_installed_and_does_not_run_is_not_ready() -> None:
    found = states(replace(WELL, probes={"ort-cpu": "ImportError: libgomp", "openvino": None}))
    assert "does not run on it (ImportError: libgomp)" in (found["ort-cpu"] or "") and found["openvino"] is None


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_limits_of_control_groups_of_both_versions_are_read(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    second = {"proc/self/cgroup": "0::/pod/app\n", f"{top}/pod/app/cpu.max": "max 100000\n",
              f"{top}/pod/cpu.max": "150000 100000\n", f"{top}/pod/app/memory.max": "1073741824\n",
              f"{top}/cpu.max": "400000 100000\n", f"{top}/pod/memory.max": "2147483648\n"}  # fmt: skip
    assert cgroup_limits(write(tmp_path / "2", second)) == (1.5, 1.0)
    first = {"proc/self/cgroup": "4:memory:/docker/af\n3:cpu,cpuacct:/docker/af\n0::/\n",
             f"{top}/cpu/cpu.cfs_quota_us": "200000\n", f"{top}/cpu/cpu.cfs_period_us": "100000\n",
             f"{top}/memory/memory.limit_in_bytes": "536870912\n"}  # fmt: skip
    assert cgroup_limits(write(tmp_path / "1", first)) == (2.0, 0.5)
    (tmp_path / "1" / top / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_limits(tmp_path / "1") == (None, 0.5)
    assert cgroup_limits(tmp_path / "another system") == (None, None)


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.5, 1), (1.5, 2), (64.0, 8)])
def test_a_container_of_one_core_on_a_large_machine_has_one(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [*range(8)], raising=False)
    monkeypatch.setattr(machine, "cgroup_limits", lambda: (quota, None))
    assert machine.usable_cores() == cores


def commands(line: str) -> list[list[str]]:
    """The commands of a line of advice, without what stands behind it in words."""
    return [shlex.split(part) for part in line.partition("  (")[0].removeprefix("on the host: ").split(" && ")]


EVERY_GPU = [
    {
        "driver": replace(L4, cuda=cuda, version=version, gpus=(replace(L4.gpus[0], capability=capability),)),
        "here": here,
    }
    for capability in ("sm37", "sm50", "sm70", "sm75", "sm90", "sm120", "sm121")
    for version, cuda in (("470.1", "11.4"), ("535.1", "12.2"), ("580.1", "13.0"))
    for here in (Here(), Here(machine="aarch64"), Here(jetson=True), Here(wsl=True), Here(container=True))
]


def test_every_line_of_advice_is_a_command_that_exists_and_parses() -> None:
    from pip._internal.commands import create_command

    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    nothing = {"backends": dict.fromkeys(BACKENDS, "not installed")}
    asked = [replace(WELL, **facts) for facts in (*EVERY_GPU, *(case[0] for case in SICK))]
    advice = {
        finding.next for facts in asked for found in (facts, replace(facts, **nothing)) for finding in findings(found)
    }
    in_words = {"install the driver of https://www.nvidia.com/drivers in Windows", "it takes a newer GPU"}
    system = {"sudo", "docker", "taskset", "unset", "nvidia-smi", "wsl"}
    for program, *arguments in (command for line in advice - in_words for command in commands(line)):
        if program == "make":
            assert {word for word in arguments if "=" not in word} <= targets, arguments
            assert all(f"\n{word.partition('=')[0]} " in makefile for word in arguments if "=" in word), arguments
        elif program == "pip":
            create_command(arguments[0]).parse_args(arguments[1:])
            assert set(",".join(re.findall(r"\[(.*)\]", " ".join(arguments))).split(",")) - {""} <= extras, arguments
        else:
            assert program in system, program


def test_every_gpu_is_listed_as_the_flag_counts_them() -> None:
    two = replace(L4, gpus=(*L4.gpus, Gpu("Tesla T4", "sm75", 15360)))
    text = "\n".join(lines(replace(WELL, driver=two), {}, []))
    assert (
        "2 GPUs" in text and "--gpu 1      Tesla T4, sm75, 15360 MiB" in text and "580.65.06, serves CUDA 13.0" in text
    )


def test_the_probe_is_a_network_and_each_backend_runs_it_in_a_process_of_its_own() -> None:
    import onnx

    onnx.checker.check_model(onnx.load_from_string(probes.NETWORK))
    assert set(probes.PROBES) >= set(BACKENDS)
    found = probes.probe(["ort-cpu", "ort-cuda"])
    assert found["ort-cpu"] is None and "\n" not in (found["ort-cuda"] or "\n")


FAKES = {
    "onnxruntime.py": """
import sys
loaded = False
def preload_dlls():
    global loaded
    loaded = "torch" not in sys.modules
class SessionOptions: pass
class InferenceSession:
    def __init__(self, network, options, providers): self.providers = providers
    def get_providers(self): return self.providers if loaded else ["CPUExecutionProvider"]
    def run(self, outputs, inputs): return [0]
""",
    "tensorrt.py": "class Logger:\n    ERROR = 1\n    def __init__(self, level): pass\nBuilder = Runtime = Logger\n",
    "tensorrt_rtx.py": "import os\nos.abort()\n",
}


def test_probes_load_cudas_libraries_without_pytorch_and_open_tensorrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, FAKES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probes.probe(["ort-cuda", "tensorrt", "tensorrt-rtx"])
    assert found == {"ort-cuda": None, "tensorrt": None, "tensorrt-rtx": "it ended its process by signal 6"}


def test_a_fallback_is_named_by_what_runs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = MagicMock()
    fake.InferenceSession.return_value.get_providers.return_value = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(RuntimeError, match="falls back to CUDAExecutionProvider"):
        probes.onnxruntime("TensorrtExecutionProvider")


@pytest.mark.parametrize("answer", [-1.0, 1e-3, float("nan")])
def test_a_library_that_computes_wrongly_is_not_to_be_trusted(answer: float) -> None:
    with pytest.raises(ArithmeticError, match=r"for max\(0, -1\), so nothing that it says"):
        probes._require_zero([answer])


@pytest.mark.parametrize("missing", ["Builder", "Runtime"])
def test_tensorrt_that_opens_half_does_not_run(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = SimpleNamespace(Logger=MagicMock(), Builder=MagicMock(), Runtime=MagicMock())
    setattr(trt, missing, lambda logger: None)  # as TensorRT answers where it cannot
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    with pytest.raises(RuntimeError, match="builder nor a runtime"):
        probes.tensorrt("tensorrt")


def test_a_half_uninstalled_onnxruntime_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    assert "half empty" in (unavailable_because("ort-cpu") or "")


def test_the_doctor_of_a_machine_that_runs_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = replace(WELL, backends=dict.fromkeys(BACKENDS, "not installed"))
    monkeypatch.setattr(doctor, "examine", lambda: nothing)
    with pytest.raises(GateFailed, match=r"no backend runs here; install the smallest with: pip install '.*\[cpu\]'"):
        doctor.doctor(as_json=True)
    assert json.loads(capsys.readouterr().out)["ready"] == []


# Its last words, and others that are no text
TORCH = "import os\nos.write(2, b'\\xff')\nraise OSError('libfoo.so:\\n cannot open')\n"


def test_this_machine_is_examined_whatever_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As ONNX Runtime ends where ARM is emulated and /proc/cpuinfo is that of x86
    broken = {"onnxruntime.py": "import os\nos.abort()\n", "torch.py": TORCH}
    monkeypatch.setenv("PYTHONPATH", str(write(tmp_path, {**broken, "openvino.py": "raise ImportError\n"})))
    facts = doctor.examine()
    assert facts.probes == {"ort-cpu": "it ended its process by signal 6", "pytorch": "OSError: libfoo.so: cannot open"}
    assert {"ort-cpu", "pytorch"} <= {finding.about for finding in findings(facts)}
    assert "openvino is not installed" in (facts.backends["openvino"] or "")
    assert facts.cores >= 1 and facts.versions["pillow"]


def test_the_command_says_what_is_ready(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["runtime", "doctor", "--json"])
    main()
    report = json.loads(capsys.readouterr().out)
    assert {"pytorch", "ort-cpu", "openvino"} <= set(report["ready"])
    assert report["facts"]["probes"]["ort-cpu"] is None


def test_a_probe_that_gives_no_answer_is_ended_and_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "PATIENCE", 0.1)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], text=True)
    assert probes._ending(process) == (1, "it gave no answer within 0.1 seconds") and process.returncode < 0
