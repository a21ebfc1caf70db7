"""The measurement of load: what wrk says is read, rows hold what the tables need, each part runs."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from test_demo import colour_classifier, running, serving_of

from lab.__main__ import keep
from lab.claims.comparison import Claim
from lab.claims.speed import write_photo
from lab.load import clients, experiments, measurements
from lab.load.experiments import EXPERIMENTS, Plan
from lab.load.measurements import Load, flatness
from lab.tables.load import table
from runtime.benchmark.rows import read_rows
from runtime.deployment import Deployment, Measured
from runtime.errors import SajiError
from runtime.receipt import Receipt

needs_wrk = pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not here: sudo apt-get install wrk")

FIGURES = {"seconds": 2.0, "answers": 90, "refused": 60, "broken": 1, "p50_ms": 9.0, "p95_ms": 20.5, "p99_ms": 31.0}
FIGURES |= {"max_ms": 40.0, "client_cpu_seconds": 0.5, "server_cpu_seconds": 3.0, "per_second": 15.0}
FIGURES |= {"answered": {"200": 30, "429": 60}, "memory_mib": 300.0, "peak_memory_mib": 310.0}
LONE = {"clients": 320, "recovered_seconds": 0.4, "ordinary_ms": 7.0, "bound_seconds": 30, "witnessed": {"429": 9}}
SOME = clients.latencies([1.0] * 400)


@pytest.fixture(scope="module")
def out(model: Path) -> Path:
    """A folder of artefacts whose choice is the tiny model in ONNX Runtime."""
    receipt = Receipt.read(model)
    [candidate] = [c for c in receipt.candidates if (c.backend, c.precision, c.variant) == ("ort-cpu", "fp32", "")]
    folder = model.parent.parent
    choice = Measured(candidate, f"models/{model.name}", receipt.files[candidate.file].sha256, 1, 1.0)
    Deployment(choice, "the only one", (), (), {}, None, {}).write(folder / "deployment.json")
    return folder


@pytest.fixture(scope="module")
def photos(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        write_photo(model, folder / f"{number}.jpg", 64, 48, number)
    return folder


def test_the_summary_is_found_among_wrks_own_lines() -> None:
    line = '{"seconds": 2.001, "answers": 300, "refused": 4, "broken": 0, "p50_ms": 9.1}'
    text = f"Running 2s test @ http://127.0.0.1:1\n  1 threads and 32 connections\nRequests/sec: 150.1\n{line}\n"
    assert clients.summary(text)["answers"] == 300 and clients.summary(text)["refused"] == 4


def test_a_missing_wrk_is_one_sentence(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SajiError, match="apt-get install wrk"):
        clients.wrk("http://127.0.0.1:9", [*photos.iterdir()], 2, 1)
    with pytest.raises(SajiError, match="apt-get install wrk"):
        clients.summary("Requests/sec: 150.1\n")


@needs_wrk
def test_wrk_counts_what_the_service_answered(photos: Path, tmp_path: Path) -> None:
    with serving_of(colour_classifier(), tmp_path) as serving, running(serving) as address:
        found = clients.wrk(address, sorted(photos.iterdir()), 4, 1)
    assert found["answers"] > 4 and found["refused"] == found["broken"] == 0
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert found["client_cpu_seconds"] > 0


def test_threads_tell_each_status_and_broken_connections(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.iterdir())
    with serving_of(colour_classifier(), tmp_path) as serving, running(serving) as address:
        found = clients.threads(address, files, 3, 2, clients.ask_service)
        assert found["answers"] > 3 and clients.statuses(found["samples"]) == {"200": found["answers"]}
        (tmp_path / "text.jpg").write_text("no picture")
        found = clients.threads(address, [tmp_path / "text.jpg"], 1, 0.1, clients.ask_service)
        assert found["refused"] == found["answers"] and clients.statuses(found["samples"]) == {"422": found["answers"]}
    found = clients.threads(address, files, 1, 0.5, clients.ask_service)
    assert found["broken"] > 0 and found["refused"] == found["answers"] == 0


def test_growth_is_the_last_tenth_over_the_first() -> None:
    flat, growing = flatness([300.0] * 60, 10), flatness([300.0 + i for i in range(60)], 10)
    assert (flat["growth"], flat["slope_mib_per_hour"]) == (0, 0)
    assert growing["growth"] == pytest.approx(54 / 302.5, abs=1e-4) and growing["slope_mib_per_hour"] == 360


def test_rows_of_every_part_say_what_was_measured_and_make_the_table(
    out: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(Load(str(out), str(photos), seconds=2), 2, 4)

    def compared(claim: Claim, rounds: int) -> dict:
        said = [[FIGURES, FIGURES]] * rounds
        ratios = {"ratio": 0.75, "ratio_low": 0.7, "ratio_high": 0.8, "ours": [15.0, 15.0], "theirs": [20.0, 20.0]}
        facts = {"claim": claim.text, "target": claim.target, "measure": claim.measure, "rounds": rounds, "said": said}
        return {**facts, **ratios}

    monkeypatch.setattr(experiments, "compare", compared)
    monkeypatch.setattr(measurements, "by_wrk", lambda load: FIGURES)
    overload = {**FIGURES, **LONE, "accepted": SOME, "refusals": SOME}
    monkeypatch.setattr(measurements, "overload", lambda load: overload)
    monkeypatch.setattr(measurements, "memory", lambda load: {**FIGURES, **flatness([300.0] * 60, 10)})
    keep((row for experiment in EXPERIMENTS.values() for row in experiment(plan)), tmp_path / "rows.jsonl")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert {row["part"] for row in rows} == {"clients", "plain", "queue", "http", "settings", "overload", "memory"}
    for row in rows:
        assert row["experiment"] == "load" and row["candidate"].startswith("resnet18 · ort-cpu")
        assert {"clients", "workers", "threads", "batch", "commit", "machine_cores", "versions"} <= set(row)
        assert str(out) not in json.dumps(row) and str(photos) not in json.dumps(row)
    assert [row["seconds"] for row in rows if row["part"] in ("clients", "memory")] == [2, 2]
    text = table(rows)
    assert "15 against 20 photos/s; p95 20 ms, p99 31 ms" in text and "0.75× (0.70–0.80)" in text
    assert "67 % were refused with 429" in text and "(+0.0 %)" in text and "| 2 × 1, 8 |" in text
    assert "refused with 429, p99 1 ms; of those let in, p99 1 ms; the slowest took 1 ms of the 30 s" in text
    few = [row | {"accepted": clients.latencies([1.0] * 9)} for row in rows if row["part"] == "overload"]
    assert "of those let in, too few were timed for a p99; the slowest took 1 ms of the 30 s" in table(few)
    some = table([row for row in rows if row["part"] != "memory"])  # while the others are still to be measured
    assert "were refused" in some and "Memory over" not in some


def test_the_service_is_started_with_room_for_all_clients(out: Path, photos: Path) -> None:
    load = Load(str(out), str(photos), workers=2, threads=1, batch=4)
    assert {"--workers=2", "--threads=1", "--batch=4", "--max-queue=64"} <= set(load.service())
    assert {"--max-queue=100", "--max-connections=1100"} <= set(replace(load, clients=100).service())


def test_a_server_that_does_not_start_is_one_sentence(tmp_path: Path) -> None:
    from lab.load.server import serving

    sentence = r"did not start: saji: .*deployment.json does not exist"
    with pytest.raises(SajiError, match=sentence), serving("demo", "--out", str(tmp_path), "--port=0"):
        pass


@needs_wrk
@pytest.mark.slow
def test_every_part_runs(out: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lab", "load", "--out", str(out), "--seconds", "2", "--memory-seconds", "2"]
    command += ["--rounds", "1", "--clients", "4", "--rows", str(tmp_path / "load.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert done.returncode == 0, done.stderr
    rows = {row["part"]: row for row in read_rows(tmp_path / "load.jsonl")}
    assert set(rows) == {"clients", "plain", "queue", "http", "settings", "overload", "memory"}
    ours, theirs = rows["plain"]["said"][0]
    assert ours["statuses"].keys() == theirs["statuses"].keys() == {"200"}
    assert rows["clients"]["said"][0][0]["answered"].keys() == {"200"}
    assert rows["overload"]["recovered_seconds"] is not None
    assert table(list(rows.values()))
