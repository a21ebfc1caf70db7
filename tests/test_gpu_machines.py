"""The product on each machine of the twin: what is installed there, which engines pass, and what is served."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from twin.faults import fault
from twin.machines import environment, installed
from twin.product import export, place

import runtime
from runtime.choice import Policy, choose
from runtime.evaluation import ValidationSet
from runtime.machine import machine

# What is chosen from on each machine: the backends whose engines pass there; a portable file always does
MACHINES_AND_ENGINES = {
    "rtx4090": {"tensorrt", "tensorrt-rtx"},
    "t4": {"tensorrt", "tensorrt-rtx"},  # RTX serves Turing where it is named
    "a100": {"tensorrt", "tensorrt-rtx"},
    "h100": {"tensorrt"},  # TensorRT-RTX has no target for SM90
    "rtx5090": {"tensorrt", "tensorrt-rtx"},
    "two": {"tensorrt", "tensorrt-rtx"},
    "small": {"tensorrt"},  # INT8 alone fits, and RTX does not tell that its engine is INT8
    "cuda12": {"tensorrt", "tensorrt-rtx"},
    "old-driver": set(),
    "ancient": set(),
    "none": set(),
}
# What `make` installs there
EXTRAS = dict.fromkeys(MACHINES_AND_ENGINES, "gpu,openvino,tensorrt,tensorrt-rtx")
EXTRAS |= dict.fromkeys(("cuda12", "old-driver"), "gpu-cu12,openvino,tensorrt-cu12,tensorrt-rtx-cu12")
EXTRAS |= {"h100": "gpu,openvino,tensorrt", **dict.fromkeys(("ancient", "none"), "cpu,openvino,tensorrt-rtx")}
# Why no engine of a kind passed, in words of the sentence
WITHOUT = {
    "old-driver": "535.54.03",
    "ancient": "470.256.02",
    "none": "no CUDA GPU",
    "small": "memory",
    "h100": "does not serve sm90",
}


def python(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    """A program of ours on a machine."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)


POWER, HOT = "was held back by its power limit", "was slowed down by heat"


@pytest.mark.parametrize(
    ("lacks", "told"),
    [
        ("", [f"{POWER} of 450 W", HOT]),
        ("nvmlDeviceGetEnforcedPowerLimit", [POWER, HOT]),
        ("nvmlDeviceGetPowerManagementLimit", [f"{POWER} of 450 W", HOT]),  # as on laptops
        ("nvmlDeviceGetCurrentClocksEventReasons", []),  # slices of a GPU
        ("nvmlDeviceGetComputeRunningProcesses", [f"{POWER} of 450 W", HOT]),  # WSL
    ],
)
def test_what_a_gpu_does_not_tell_hides_nothing_else(
    lacks: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed("rtx4090"):
        import pynvml

        from runtime.benchmark.watch import Watch

        def refuse(gpu: object) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", lambda gpu: 0x4 | 0x20)
        if lacks:
            monkeypatch.setattr(pynvml, lacks, refuse, raising=False)
        assert sorted(Watch().stop().gpu) == [f"the GPU {words}" for words in told]


@pytest.mark.parametrize("lacks", ["", "nvmlDeviceGetEccMode", "nvmlDeviceGetEnforcedPowerLimit"])
def test_what_decides_a_gpus_speed_is_read_as_far_as_it_is_told(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"gpu_sm_mhz": 1410, "gpu_sm_mhz_max": 1980, "gpu_power_limit_watts": 450.0, "gpu_compute_mode": "default"}
    told |= {"gpu_ecc": False, "gpu_persistence": True, "gpu_other_processes": 0}
    with installed("rtx4090"):
        import pynvml

        from runtime.benchmark.watch import Watch

        def refuse(gpu: object) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        if lacks:
            monkeypatch.setattr(pynvml, lacks, refuse)
            told.pop({"nvmlDeviceGetEccMode": "gpu_ecc"}.get(lacks, "gpu_power_limit_watts"))
        assert Watch().stop().gpu_conditions == told
    with installed("none"):
        assert Watch().stop().gpu_conditions == {}


@pytest.mark.parametrize("name", MACHINES_AND_ENGINES)
def test_set_up_installs_what_the_machine_is_served_by(name: str) -> None:
    done = python("runtime/nvidia.py", "--extras", env=environment(name))
    assert done.stdout.strip() == EXTRAS[name], done.stderr


@pytest.mark.parametrize(
    "name", [name if name == "h100" else pytest.param(name, marks=pytest.mark.slow) for name in MACHINES_AND_ENGINES]
)
def test_what_is_right_on_each_machine_is_chosen_and_served(name: str, run: Path, model: Path, tmp_path: Path) -> None:
    """An engine where one passed and takes the shortest, by durations that are stated here; else the portable file."""
    folder, path = tmp_path / "models" / "resnet18", tmp_path / "deployment.json"
    with installed(name) as twin:
        receipt = export(run, model, folder, [], ("fp16", "int8"))
        engines = [c for c in receipt.candidates if "tensorrt" in c.backend and c.verdict == "pass"]
        portable = next(c for c in receipt.candidates if c.backend == "ort-cpu" and c.servable)
        told = " ".join([*receipt.skipped, *(reason for c in receipt.candidates for reason in c.reasons)])
        assert {candidate.backend for candidate in engines} == MACHINES_AND_ENGINES[name], told
        assert WITHOUT.get(name, "") in told
        known = ValidationSet.load(folder / "validation.npz")
        for fastest in (*engines, portable):
            places = [place(c, receipt, "models/resnet18", 1 if c == fastest else 5) for c in (*engines, portable)]
            # By durations alone: how accurate the drawn network's files are differs between processors
            choose(places, [], Policy(max_accuracy_drop=1), machine(), {}).write(path)
            with runtime.load(path) as classifier:
                assert classifier.candidate == fastest and not classifier.passed_over
                room = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.5}[fastest.precision] * np.abs(known.logits).max()
                assert np.abs(classifier.logits(known.images) - known.logits).max() < room, fastest.name
        twin.require_no_misuse()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rtx4090", "t4"])
def test_the_fast_tests_pass_where_tensorrt_works(name: str) -> None:
    files = [f"tests/test_{what}.py" for what in ("runtime", "engines", "threads", "triton")]
    # What TensorRT's own builder refuses, and the bytes of its timings, the twin does not know
    theirs = "not TestRefusals and not timings_are_kept"
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", theirs, *files, env=environment(name))
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[fault(1)] if MACHINES_AND_ENGINES[name] else []) for name in MACHINES_AND_ENGINES],
)
def test_the_two_commands_end_with_the_right_candidates(name: str, run: Path, tmp_path: Path) -> None:
    """`make export bench` by its programs, in processes, on each machine; which is fastest is not the twin's to say."""
    shutil.copytree(run.parents[2], tmp_path / "artifacts", dirs_exist_ok=True)
    variables, out = {**environment(name), "SAJI_TWIN_LOG": str(tmp_path / "log")}, str(tmp_path / "artifacts")
    (tmp_path / "log").touch()
    shutil.rmtree(tmp_path / "artifacts" / "models", ignore_errors=True)
    exported = python("-m", "export", "--out", out, "--no-recover", env=variables)
    assert exported.returncode == 0, exported.stderr
    quick = ["--seconds", "5", "--cold-starts", "0", "--max-accuracy-drop", "1"]
    raced = python("runtime/bench.py", "--out", out, *quick, env=variables)
    assert raced.returncode == 0, raced.stderr
    deployment = json.loads((tmp_path / "artifacts" / "deployment.json").read_text(encoding="utf-8"))
    named = [deployment["choice"]["candidate"], *(place["candidate"] for place in deployment["fallbacks"])]
    named_engines = {candidate["backend"] for candidate in named if "tensorrt" in candidate["backend"]}
    slower = {entry["candidate"].split(" · ")[1] for entry in deployment["rejected"] if entry["cause"] == "speed"}
    assert named_engines | {b for b in slower if "tensorrt" in b} == MACHINES_AND_ENGINES[name]
    assert not (tmp_path / "log").read_text(encoding="utf-8")
    told = python("-m", "runtime", "selftest", f"{out}/models/resnet18", env=variables)
    assert told.returncode == 0, told.stdout
