"""`python -m lab`: every verb explains itself, and every row is kept with the conditions it was measured in."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

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
