"""`python -m lab`: every verb explains itself, and every row is kept with the conditions it was measured in."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lab import __main__ as lab
from lab.coverage import contains
from runtime.benchmark.rows import read_rows
from runtime.errors import SajiError

Run = Callable[..., list[dict]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the verb `fake` in an empty folder; the rows that it prints."""

    def measure(arguments: argparse.Namespace) -> Iterator[dict]:
        yield from ({"number": number} for number in range(arguments.number))

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("number", type=int)

    def run(*arguments: str, rows: str = "") -> list[dict]:
        monkeypatch.setitem(lab.VERBS, "fake", lab.Verb("lab.fake", "", rows))
        monkeypatch.setattr(sys, "argv", ["lab", "fake", *arguments])
        lab.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    monkeypatch.setitem(sys.modules, "lab.fake", SimpleNamespace(measure=measure, add_arguments=add_arguments))
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize("verb", [*lab.VERBS, "tables"])
def test_every_verb_explains_itself(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lab", verb, "--help"])
    with pytest.raises(SystemExit) as stopped:
        lab.main()
    told = capsys.readouterr().out
    assert not stopped.value.code and f"lab {verb}" in told and ("--rows" in told) == (verb != "tables")


def test_every_row_carries_its_conditions_and_is_kept_where_it_was_asked_to_be(run: Run, tmp_path: Path) -> None:
    printed = run("2", "--rows", "mine.jsonl", rows="results/default.jsonl")
    assert read_rows(tmp_path / "mine.jsonl") == printed and [row["number"] for row in printed] == [0, 1]
    assert all({"time", "commit", "dirty", "machine_cpu", "versions"} <= row.keys() for row in printed)
    assert not (tmp_path / "results").exists()


def test_rows_go_to_the_verbs_own_file_or_to_none(run: Run, tmp_path: Path) -> None:
    printed = run("1", rows="results/default.jsonl")
    assert read_rows(tmp_path / "results" / "default.jsonl") == printed
    assert len(run("3")) == 3 and [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_missing_library_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lab.fake")
    with pytest.raises(SajiError, match=r"lab.fake is not installed; install all .* make setup"):
        run("1")


def test_an_interval_from_some_photos_is_held_against_the_others() -> None:
    hits, own = np.arange(400) % 10 > 0, np.arange(100)
    assert contains(hits, np.arange(400), own)
    assert not contains(np.where(np.arange(400) < 100, hits, False), np.arange(400), own)


def test_networks_are_a_table_from_the_first_row_on() -> None:
    from lab.tables.networks import networks

    row = {"architecture": "b", "image_size": 8, "parameters": 1_500_000, "seconds": 9.6, "engines": [], "refused": ""}
    row |= {"verdicts": {"ort-cpu fp32": "pass", "openvino fp32": "fail", "ort-cpu int8": "unchecked"}}
    row |= {"machine_cores": 2, "machine_cpu": "X", "machine_cpu_features": ["avx2"]}
    row |= {"versions": {"onnxruntime": "1", "openvino": "2", "torch": "4", "torchvision": "3"}}
    refused = {**row, "architecture": "a", "image_size": None, "verdicts": {}, "refused": "training: no | such size"}
    assert "1.5" in networks([row]) and "ONNX Runtime: pass, OpenVINO: fail" in networks([row])
    text = networks([row, refused, {**row, "seconds": 5.0}])
    assert text.index("| a |") < text.index("| b |") and text.count("| b |") == 1 and "no \\| such size" in text
    assert "2 networks were tried" in text


def test_how_the_service_did_in_a_container_is_told_whatever_it_answered() -> None:
    from lab.tables.claims import containers

    ended = {"seconds": 1.0, "status": 143}
    row = {"what": "service", "memory_limit_mib": 512, "cores_limit": 1, "ready_seconds": 6.0, "peak_memory_mib": 382.0}
    row |= {"stop_serving": ended, "stop_starting": ended, "commit": "abc"}
    row |= {"machine_cores": 2, "machine_cpu": "X", "machine_cpu_features": ["avx2"]}
    well = containers([{**row, "statuses": {"200": 300}, "left_unreaped": 0}])
    assert "300 photos, some of 20 MB, were answered with status 200; the" in well and "left no zombie." in well
    badly = containers([{**row, "statuses": {"200": 298, "503": 2}, "left_unreaped": 2}])
    assert "300 photos, some of 20 MB, were answered with status 200 (298), 503 (2);" in badly
    assert "left 2 zombies." in badly


def change(before: str, after: str, outcome: str) -> Any:
    """An outcome as cosmic-ray has it."""
    diff = f"--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-    {before}\n+    {after}\n"
    return SimpleNamespace(test_outcome=outcome, diff=diff)


def test_a_mutation_score_leaves_out_what_no_test_can_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    from lab import mutation

    judged = [{"line": "a = 1", "change": "a = 2", "reason": "a is not read"}]
    monkeypatch.setattr(mutation, "equivalents", lambda module: judged)
    results = [change("a = 1", "a = 2", "survived"), change("b = 1", "b = 2", "survived"), None]
    row = mutation.row_of("x.py", [], results + [change("c = 1", "c = 2", "killed")] * 3)
    assert (row["mutants"], row["tried"], row["score"]) == (6, 5, 0.75)
    assert row["survivors"] == [{"line": "b = 1", "change": "b = 2"}] and row["equivalent"] == judged


def test_a_change_is_shown_to_the_quickest_tests_that_run_its_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lab import mutation

    source = "MOST = 3\n\n\ndef few(a: int = 2) -> int:\n    if a:\n        return MOST\n    print(a)\n    return 0\n"
    source += "\n\nOFFER = 4\nTABLE = [\n    OFFER,\n]\n\nif __name__ == '__main__':\n    few()\n"
    (tmp_path / "x.py").write_text(source)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("def test_table():\n    assert 4 in x.TABLE\n")
    monkeypatch.setattr(mutation, "CHECKOUT", tmp_path)
    seconds = {"slow": 60.0, "each[1]": 0.1, "each[2]": 0.1, "quick": 0.2, "calls": 0.0, "script": 0.3}
    lines = {5: {*seconds}, 16: {"script"}, 6: {"slow", "each[1]", "each[2]", "quick"}, 8: {"calls"}}
    record = mutation.Record(seconds, {"x.py": lines, "tests/test_x.py": {2: {"quick"}}})
    assert record.tests("x.py", 6, source) == ["each[1]", "quick", "each[2]"], "one of each function first"
    assert record.tests("x.py", 1, source) == record.tests("x.py", 6, source), "a constant: by the lines that name it"
    assert record.tests("x.py", 11, source) == ["quick"], "a part of a table: by the tests that name the table"
    assert record.tests("x.py", 16, source) == ["script"], "outside functions, and gives no name: by who runs it"
    assert record.tests("x.py", 7, source) == record.tests("x.py", 6, source), "run by none: the nearest line above"
    assert record.tests("x.py", 8, source) == ["calls"] and record.few(["slow"]) == ["slow"]
    with pytest.raises(SajiError, match=r"no test runs z\.py; name another module"):
        mutation.tried("z.py", record)


def test_a_test_that_fails_without_a_change_is_shown_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lab import mutation

    data = pytest.importorskip("coverage", reason="coverage is not installed").CoverageData(str(tmp_path / "lines"))
    for context in ("", "t.py::a[x y]", "t.py::a[x y] (call)", "t.py::fails"):  # (call): a process that a test starts
        data.set_context(context)
        data.add_lines({str(tmp_path / "x.py"): [2 if "(" in context else 3 if "fails" in context else 1]})
    data.write()
    said = "0.25s call     t.py::a[x y]\n1.00s setup    t.py::a[x y]\n2.00s call     t.py::fails\nPASSED t.py::a[x y]\n"
    (tmp_path / "tests").write_text(said + "FAILED t.py::fails - no\n")
    monkeypatch.setattr(mutation, "CHECKOUT", tmp_path)
    monkeypatch.setattr(mutation, "FOLDER", tmp_path)
    test = "t.py::a[x y]"
    assert mutation._read_record() == mutation.Record({test: 1.25}, {"x.py": {1: {test}, 2: {test}}})


def test_all_modules_whose_lines_decide_are_tried() -> None:
    from lab import mutation

    assert {"runtime/choice.py", "runtime/gate.py", "export/parity.py"} <= set(mutation.all_modules())
