"""The long promises, run by `make verify`: the main job as a stranger runs it, and the claims about speed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

import runtime
from runtime.benchmark.rows import read_rows
from runtime.deployment import Deployment
from runtime.environment import machine
from runtime.receipt import Receipt

pytestmark = pytest.mark.slow

needs_bf16 = pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & set(machine().cpu_features),
    reason="this processor has no bf16 arithmetic, for which this promise about training was made",
)


def made(out: Path) -> subprocess.CompletedProcess[str]:
    """`make` with its results in `out`, and without the ARGS that an outer `make verify ARGS=…` hands down."""
    return subprocess.run(["make", f"OUT={out}", "ARGS="], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of `make`, with its outputs kept beside it."""
    out = tmp_path_factory.mktemp("artifacts")
    started = time.perf_counter()
    done = made(out)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    (out / "stdout").write_text(done.stdout, encoding="utf-8")
    (out / "seconds").write_text(str(time.perf_counter() - started), encoding="utf-8")
    return out


def test_make_ends_with_table_choice_reason_and_the_line_for_the_demo(out: Path) -> None:
    printed = (out / "stdout").read_text(encoding="utf-8")
    table, _, end = printed.rpartition("\nchoice: ")
    assert "candidate" in table and "reason: fastest of" in end and "make demo" in end
    assert (
        json.loads(printed.splitlines()[-1])["choice"] == Deployment.read(out / "deployment.json").choice.candidate.name
    )


@needs_bf16
def test_make_takes_less_than_5_minutes(out: Path) -> None:
    assert float((out / "seconds").read_text(encoding="utf-8")) < 300


def test_the_quick_recipe_learns_the_drawn_dishes(out: Path) -> None:
    found = {folder.name: Receipt.read(folder).spec.validation["accuracy"] for folder in (out / "models").iterdir()}
    assert set(found) == {"resnet18", "resnet34"}
    assert min(found.values()) >= 0.95, found


def test_the_choice_answers_right_on_its_examples(out: Path) -> None:
    with runtime.load(out / "deployment.json") as classifier:
        assert classifier.spec.data["drawn"] and not classifier.passed_over
        examples = sorted((out / "models" / classifier.spec.architecture / "examples").glob("*.png"))
        assert [classifier(example).label for example in examples] == list(classifier.spec.classes)


def test_the_second_make_redoes_nothing(out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name in ("checkpoint.pt", "model.json")}
    done = made(out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("up to date") == 5  # two networks trained, two exported, one race
    assert before == {path: path.stat().st_mtime_ns for path in before}


def claim(*command: str) -> dict:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_bf16
def test_training_is_twice_as_fast_as_a_plain_loop(out: Path) -> None:
    row = claim("-m", "lab", "training", "--out", str(out), "--against", "plain")
    assert row["ratio"] >= 2, row


def test_training_is_not_slower_than_timms_parts(out: Path) -> None:
    row = claim("-m", "lab", "training", "--out", str(out), "--against", "timm")
    assert row["ratio_high"] >= 1, row  # a tie within what the pairs tell apart


def test_cold_start_takes_a_sixth_of_pytorchs(out: Path) -> None:
    row = claim("-m", "lab", "speed", "--out", str(out), "--only", "cold start")
    assert row["ratio"] >= 6, row


def test_the_committed_race_keeps_the_claim_about_resnet34() -> None:
    rows = [row for row in read_rows(ROOT / "results" / "food5.jsonl") if row["architecture"] == "resnet34"]
    pytorch = min(row["milliseconds"] for row in rows if row["backend"] == "pytorch")
    passed = min(row["milliseconds"] for row in rows if row["verdict"] == "pass")
    assert pytorch / passed >= 2.5
