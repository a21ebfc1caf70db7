"""The doctor names what is in the way on any machine, with what to type next; here with facts of other machines."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from runtime import doctor
from runtime.__main__ import main
from runtime.backends import BACKENDS, unavailable_because
from runtime.doctor import PROBE, Facts, cgroup_limits, findings, lines, states
from runtime.errors import GateFailed

WELL = Facts(
    cpu="Some CPU",
    system="Linux x86_64",
    cores=8,
    cores_seen=8,
    backends=dict.fromkeys(BACKENDS),
    probes=dict.fromkeys(("pytorch", "openvino", "CPUExecutionProvider", "CUDAExecutionProvider")),
    cpu_features=("avx2", "avx512_vnni"),
    memory_gib=16.0,
    gpu="NVIDIA L4, 580.65",
    on_bus=True,
    cuda={"cuda": "13.0", "driver": "13.0"},
    onnxruntimes=("onnxruntime-gpu",),
    pillow=dict.fromkeys(("jpg", "webp", "avif", "littlecms2", "heif"), True),
)
NO_GPU = {"gpu": None, "on_bus": False, "cuda": {}}


def test_where_nothing_is_in_the_way_nothing_is_found() -> None:
    assert findings(WELL) == [] and set(states(WELL).values()) == {None}
    assert findings(replace(WELL, quota=8.0, container=True)) == []


SICK = [
    ({"onnxruntimes": ("onnxruntime", "onnxruntime-gpu")}, "own the same folder and break each other",
     r"pip uninstall -y onnxruntime onnxruntime-gpu && pip install '.*\[gpu\]'"),
    ({"onnxruntimes": ("onnxruntime", "onnxruntime-gpu"), **NO_GPU}, "break each other", r"pip install '.*\[cpu\]'"),
    ({"probes": {"CUDAExecutionProvider": "it silently falls back"}}, "lists it, but .* falls back",
     r"pip uninstall -y onnxruntime-gpu && pip install '.*\[gpu\]'"),
    ({"probes": {"openvino": "RuntimeError: no plugin"}}, "does not run on it .RuntimeError: no plugin",
     r"\[openvino\]"),
    ({"gpu": None}, "no driver that works", "ubuntu-drivers install"),
    ({"gpu": None, "container": True}, "this container was not given", "docker run --gpus all"),
    ({"cuda": {}}, "cuda-bindings is missing", r"\[tensorrt-rtx\]"),
    ({"cuda": {"cuda": "13.0", "driver": "12.4"}}, r"serves CUDA up to 12\.4, installed is CUDA 13\.0",
     "drivers install"),
    ({"quota": 2.5}, r"may use 2\.5 cores' worth of time but sees 8", "taskset -c 0-1 "),
    ({"memory_gib": 0.5}, r"0\.5 GiB serve with ONNX Runtime", r"\[cpu\]"),
    ({"memory_gib": 0.5, "container": True}, "not with PyTorch", "docker run --memory 4g"),
    ({"cpu_features": ("avx2",)}, "no INT8 arithmetic", "make bench"),
    ({"pillow": {"webp": False}}, "WEBP", "pip install --force-reinstall pillow"),
    ({"pillow": {"avif": False}}, "AVIF", r"pip install --upgrade 'pillow>=11\.3'"),
    ({"pillow": {"heif": False}}, "HEIC", "pip install pillow-heif"),
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
    probes = {"CPUExecutionProvider": "ImportError: libgomp", "openvino": None}
    found = states(replace(WELL, probes=probes))
    assert "does not run on it (ImportError: libgomp)" in (found["ort-cpu"] or "") and found["openvino"] is None


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_limits_of_control_groups_of_both_versions_are_read(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    second = {"proc/self/cgroup": "0::/pod/app\n", f"{top}/pod/app/cpu.max": "max 100000\n",
              f"{top}/pod/cpu.max": "150000 100000\n", f"{top}/pod/app/memory.max": "1073741824\n"}  # fmt: skip
    assert cgroup_limits(write(tmp_path / "2", second)) == (1.5, 1.0)
    first = {"proc/self/cgroup": "4:memory:/docker/af\n3:cpu,cpuacct:/docker/af\n0::/\n",
             f"{top}/cpu/cpu.cfs_quota_us": "200000\n", f"{top}/cpu/cpu.cfs_period_us": "100000\n",
             f"{top}/memory/memory.limit_in_bytes": "536870912\n"}  # fmt: skip
    assert cgroup_limits(write(tmp_path / "1", first)) == (2.0, 0.5)
    (tmp_path / "1" / top / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_limits(tmp_path / "1") == (None, 0.5)
    assert cgroup_limits(tmp_path / "another system") == (None, None)


def test_the_probe_is_a_network_that_a_listed_provider_must_really_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load_from_string(PROBE))
    assert doctor._run_onnxruntime("CPUExecutionProvider") is None
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    found = doctor._probes({"pytorch": "not installed", "openvino": "not installed", "ort-cpu": None})
    assert found["CPUExecutionProvider"] is None and len(found) == 2
    assert "\n" not in (found["CUDAExecutionProvider"] or "\n")


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


def test_this_machine_is_examined_whatever_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def falls_over(name: str) -> None:
        raise OSError("libfoo.so:\n cannot open")

    monkeypatch.setattr(doctor, "unavailable_because", falls_over)
    facts = doctor.examine()
    assert set(facts.backends.values()) == {"OSError: libfoo.so: cannot open"}
    assert facts.cores >= 1 and facts.versions["pillow"] and not facts.probes


def test_the_command_says_what_is_ready(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["runtime", "doctor", "--json"])
    main()
    report = json.loads(capsys.readouterr().out)
    assert {"pytorch", "ort-cpu", "openvino"} <= set(report["ready"])
    assert report["facts"]["probes"]["CPUExecutionProvider"] is None
