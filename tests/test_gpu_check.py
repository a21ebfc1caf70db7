"""`make gpu-check`: a step costs only itself, whatever it does, and without a GPU everything is skipped."""

import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import house
import psutil
import pytest
from conftest import PATIENCE, ROOT

from lab import __main__ as lab
from lab.gpu_check import command
from lab.gpu_check.step import KEPT, Outcome, Place, Step, run
from runtime import nvidia
from runtime.benchmark.rows import read_rows
from runtime.errors import GateFailed, SajiError
from runtime.nvidia import Driver, Here

STEPS = """
import os, signal, subprocess, sys, time
from runtime.errors import Unavailable
def passing(place):
    yield {"number": 1, "says": "it is one"}
    yield {"kept": place.keep("INSPECTOR-x.json", "{}")}
def finding_faults(place):
    yield {"wrong": "it is two"}
    yield {"says": "it is three"}
def lacking(place):
    raise Unavailable("there is no such library")
    yield
def importing(place):
    import a_library_of_nobody
    yield
def showing_nothing(place):
    yield {"before": True, "lacks": "no engine can show it"}
    yield {"before": True, "lacks": "no engine can show it"}
def saying_nothing(place):
    yield {"before": True}
def wrong_before_it_lacks(place):
    yield {"wrong": "it is four"}
    raise Unavailable("there is no such library")
def dying_at_its_end(place):
    import atexit
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    yield {"says": "it is one"}
def hanging_at_its_end(place):
    import atexit
    atexit.register(lambda: time.sleep(600))
    yield {"says": "it is one"}
def failing(place):
    yield {"before": True}
    raise ArithmeticError("two is\\nthree")
def crashing(place):
    yield {"before": True}
    print("just before", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
def hanging(place):
    yield {"before": True}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (place.folder / "child").write_text(str(child.pid))
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Step]:
    """A step of STEPS by its name, which the processes of steps find, too."""
    (tmp_path / "steps_of_a_test.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    module = types.ModuleType("steps_of_a_test")
    exec(STEPS, module.__dict__)
    return lambda name, limit=60: Step(getattr(module, name), limit)


def check(monkeypatch: pytest.MonkeyPatch, steps: list[Step], *arguments: str, gpu: bool = True) -> int:
    """The exit status of `python -m lab gpu-check` with these steps, on a machine that claims a GPU or has none."""
    monkeypatch.setattr(command, "STEPS", tuple(steps))
    monkeypatch.setattr(command.machine, "no_gpu", lambda: "" if gpu else "this machine has no CUDA GPU")
    monkeypatch.setattr(sys, "argv", ["lab", "gpu-check", *arguments])
    try:
        lab.main()
    except SajiError as error:
        return error.exit_status
    return 0


def test_a_step_that_fails_crashes_or_hangs_costs_only_itself(
    steps: Callable[..., Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    names = ("crashing", "failing", "finding_faults", "lacking", "importing", "passing")
    asked = [steps("hanging", 3), *map(steps, names)]
    rows = tmp_path / "results" / "gpu.jsonl"
    assert check(monkeypatch, asked, "--rows", str(rows)) == GateFailed.exit_status
    kept = {row["step"]: row for row in read_rows(rows)}
    assert list(kept) == [step.name for step in asked]
    assert [row["verdict"] for row in kept.values()] == ["FAIL"] * 4 + ["SKIP"] * 2 + ["PASS"]
    assert "not done after 3 s" in kept["hanging"]["says"] and "at work" in kept["hanging"]["says"]
    assert "SIGSEGV" in kept["crashing"]["says"] and "just before" in kept["crashing"]["says"]
    assert kept["failing"]["says"] == "ArithmeticError: two is three"
    assert kept["finding faults"]["says"] == "it is two" and len(kept["finding faults"]["found"]) == 2
    assert kept["lacking"]["says"] == "there is no such library"
    assert kept["importing"]["says"] == "a_library_of_nobody is not installed"
    assert kept["passing"]["says"] == "it is one" and kept["passing"]["found"][0]["number"] == 1
    for name in ("hanging", "crashing", "failing"):
        assert kept[name]["found"] == [{"before": True}], "what was found before is lost"
    assert all({"machine_gpu", "commit", "versions"} <= row.keys() for row in kept.values())
    assert (rows.parent / "gpu" / kept["passing"]["found"][1]["kept"]).read_text() == "{}"
    table = capsys.readouterr().out.splitlines()
    assert table[-1] == "1 PASS, 4 FAIL, 2 SKIP" and max(map(len, table)) <= 80


@pytest.mark.parametrize(
    ("name", "verdict", "says"),
    [
        ("showing_nothing", "SKIP", "no engine can show it"),
        ("saying_nothing", "SKIP", "nothing was found out"),
        ("wrong_before_it_lacks", "FAIL", "it is four"),
        ("dying_at_its_end", "FAIL", "it is one, but its process died at its end (SIGSEGV)"),
        ("hanging_at_its_end", "FAIL", "it is one, but its process did not end within 3 s"),
    ],
)
def test_only_what_affirms_something_and_ends_well_passes(
    name: str, verdict: str, says: str, steps: Callable[..., Step], tmp_path: Path
) -> None:
    outcome = run(steps(name), Place(tmp_path, 32, 3))
    assert (outcome.verdict, outcome.says) == (verdict, says)


def test_what_one_run_keeps_no_other_replaces(tmp_path: Path) -> None:
    place = Place(tmp_path, 32, 3)
    names = [place.keep("INSPECTOR-x.json", text) for text in ("of 224", "of 64", "of 224")]
    assert [(tmp_path / KEPT / name).read_text() for name in names] == ["of 224", "of 64", "of 224"]


def test_what_a_hanging_step_started_ends_with_it(steps: Callable[..., Step], tmp_path: Path) -> None:
    assert run(steps("hanging"), Place(tmp_path, 32, 3)).verdict == "FAIL"
    child, ended = int((tmp_path / "child").read_text()), time.monotonic() + PATIENCE
    while _runs(child):  # who is killed dies once a core is free for it
        assert time.monotonic() < ended, "its child still runs"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_steps_end_with_the_time_of_all(
    steps: Callable[..., Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = tmp_path / "gpu.jsonl"
    check(monkeypatch, [steps("hanging"), steps("passing")], "--seconds", "3", "--rows", str(rows))
    first, second = read_rows(rows)
    assert "not done after 3 s" in first["says"]
    assert second["verdict"] == "SKIP" and "3 s are over" in second["says"]


def test_every_row_is_kept_before_the_next_step_begins(
    steps: Callable[..., Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "STEPS", (steps("passing"), steps("failing")))
    monkeypatch.setattr(command.machine, "no_gpu", lambda: "")
    rows, known = tmp_path / "gpu.jsonl", list[int]()

    def counted(step: Step, place: Place) -> Outcome:
        known.append(len(read_rows(rows)) if rows.exists() else 0)
        return run(step, place)

    monkeypatch.setattr(command, "run", counted)
    monkeypatch.setattr(sys, "argv", ["lab", "gpu-check", "--rows", str(rows)])
    with pytest.raises(GateFailed, match="1 of 2 steps failed: failing"):
        lab.main()
    assert known == [0, 1]


def test_without_a_gpu_every_step_is_skipped_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    every = list(command.STEPS)
    assert check(monkeypatch, every, "--rows", str(tmp_path / "gpu.jsonl"), gpu=False) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "this machine has no CUDA GPU" and table.count(table[0]) == 1
    assert table[-1] == f"{len(every)} SKIP" and max(map(len, table)) <= 80
    assert all(any(line.startswith(f"SKIP  {step.name} ") for line in table) for step in every)
    assert not (tmp_path / "gpu.jsonl").exists()


def test_why_no_gpu_can_be_used_is_told_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "driver", lambda: Driver("580.95.05", error="libcuda.so.1 is not there"))
    monkeypatch.setattr(nvidia, "here", lambda: Here(container=True))
    given = "the machine has an NVIDIA GPU that this container was not given; type: docker run --gpus all …"
    assert command.machine.no_gpu() == given
    monkeypatch.setattr(nvidia, "driver", lambda: Driver(error="libcuda.so.1 is not there"))
    assert command.machine.no_gpu() == "this machine has no NVIDIA GPU (libcuda.so.1 is not there)"


def test_what_cannot_be_kept_is_a_remark_and_rows_that_cannot_be_are_told_first(
    steps: Callable[..., Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "gpu").write_text("in the way")
    asked = [steps("passing"), steps("lacking")]
    assert check(monkeypatch, asked, "--rows", str(tmp_path / "gpu.jsonl")) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "1 PASS, 1 SKIP" and "cannot be kept in" in said.err
    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("a step was run"))
    assert check(monkeypatch, asked, "--rows", str(tmp_path)) == 2
    assert house.here("bench", "--out", "none", "--rows", str(tmp_path)).last.startswith(f"saji: {tmp_path} ")


def test_without_the_three_libraries_it_says_what_to_type() -> None:
    """-S: without the packages of this environment."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [sys.executable, "-S", "-m", "lab", "gpu-check"]
    done = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith("-m pip install numpy pillow psutil\n")


OTHERS = """torchvision lightning onnx onnxscript onnxruntime openvino nncf gradio sklearn scipy cv2 matplotlib timm
imagehash cuda tensorrt tensorrt_rtx prometheus_client pynvml rich"""
ALONE = """
import importlib.abc, sys
class Others(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {others!r}.split():
            raise ModuleNotFoundError(f"no module named {{name}}", name=name)
sys.meta_path.insert(0, Others())
from lab.__main__ import main
main()
"""


def test_it_runs_without_any_library_but_numpy_pillow_psutil_and_torch(tmp_path: Path) -> None:
    code = ALONE.format(others=OTHERS)
    command_line = [sys.executable, "-c", code, "gpu-check", "--rows", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1) and ["step", "s"] in map(str.split, done.stdout.splitlines()), done.stderr


def test_every_step_says_what_it_settles_and_leaves_time_for_the_others() -> None:
    for step in command.STEPS:
        assert step.check.__doc__ and "\n" not in step.check.__doc__, step.name
        assert 0 < step.limit <= 300 and len(step.name) < command.NAMES
    assert command.STEPS[0].name == "environment" and command.STEPS[1].name == "tensorrt"


def test_what_is_told_at_length_stays_within_the_table() -> None:
    outcome = Outcome("latency of se resnet34", "FAIL", "tensorrt · fp16: " + "because of this " * 20 + "x" * 100, 88.8)
    assert max(map(len, command.table([outcome]).splitlines())) <= 80
    json.dumps(outcome.row())


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["rtx4090", "h100"])
def test_in_the_twin_engines_are_built_checked_and_kept(machine: str, tmp_path: Path) -> None:
    """On doubles of two machines: what the twin's clock says is no figure, and its rows go nowhere."""
    from twin.machines import environment

    line = ["-m", "lab", "gpu-check", "--size", "64", "--rows", str(tmp_path / "gpu.jsonl")]
    line += ["--only", "environment", "tensorrt", "worker"]
    subprocess.run([sys.executable, *line], cwd=ROOT, env=environment(machine), capture_output=True)
    rows = {row["step"]: row for row in read_rows(tmp_path / "gpu.jsonl")}
    assert all(row["machine_gpu"].startswith("twin of ") for row in rows.values())
    assert rows["environment"]["found"][0]["says"].startswith("twin of ")  # PyTorch is not doubled and sees no GPU
    for name in ("tensorrt", "worker"):
        assert rows[name]["verdict"] == "PASS", rows[name]
    verdicts = {row["candidate"]: row["verdict_of_gate"] for row in rows["tensorrt"]["found"] if "candidate" in row}
    assert verdicts == dict.fromkeys(
        [f"plain34 · tensorrt · {p}{v}" for p in ("fp16", "int8") for v in ("", " · CUDA graph")], "pass"
    )
    kept = [name for row in rows["tensorrt"]["found"] for name in row.get("inspector", [])]
    assert len(kept) == 4 and all(json.loads((tmp_path / "gpu" / name).read_text(), strict=False) for name in kept)
    if machine == "h100":  # for which TensorRT-RTX builds nothing
        assert rows["tensorrt rtx"]["verdict"] == "SKIP" and "this GPU is sm90" in rows["tensorrt rtx"]["says"]
