"""`make torture`: seeded attempts, which go on where they were interrupted, and each campaign's first ten seconds."""

import importlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.torture import campaign
from lab.torture.campaign import Attempt, Found, run


class Dice:
    """A campaign whose attempts throw a die; a six is a fault."""

    ATTEMPTS = 40

    def __init__(self, interrupted_at: int = -1) -> None:
        self.thrown: list[int] = []
        self._interrupted_at = interrupted_at

    @contextmanager
    def prepared(self, folder: Path) -> Iterator[Attempt]:
        assert not any(folder.iterdir())
        yield self._throw

    def _throw(self, chance: random.Random) -> str:
        if len(self.thrown) == self._interrupted_at:
            raise KeyboardInterrupt
        self.thrown.append(chance.randint(1, 6))
        if self.thrown[-1] == 6:
            raise Found("a six", b"6")
        return "odd" if self.thrown[-1] % 2 else "even"


def test_what_was_found_is_counted_and_kept_with_its_cause(tmp_path: Path) -> None:
    dice = Dice()
    row = run("dice", dice, tmp_path, 3, range(40))
    sixes = [number for number, thrown in enumerate(dice.thrown) if thrown == 6]
    assert sixes and [found["number"] for found in row["found"]] == sixes
    assert row["came"] == {"even": sum(t in (2, 4) for t in dice.thrown), "odd": sum(t % 2 for t in dice.thrown)}
    assert (tmp_path / f"dice.3.{sixes[0]}").read_bytes() == b"6"
    again = Dice()
    assert run("dice", again, tmp_path, 3, range(sixes[0], sixes[0] + 1))["found"] and again.thrown == [6]


def test_an_interrupted_campaign_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "SAVE_SECONDS", 0.0)
    whole = run("dice", Dice(), tmp_path / "whole", 3, range(40))
    first, second = Dice(interrupted_at=25), Dice()
    with pytest.raises(KeyboardInterrupt):
        run("dice", first, tmp_path, 3, range(40))
    assert json.loads((tmp_path / "dice.3.json").read_text())["next"] == 25
    row = run("dice", second, tmp_path, 3, range(40))
    assert len(second.thrown) == 15 and {**row, "seconds": 0} == {**whole, "seconds": 0}


# The first attempts of each; all of them are in results/torture.jsonl
FEW = {"pictures": 5000, "artefacts": 200}


@pytest.mark.parametrize("name", ["pictures", pytest.param("artefacts", marks=pytest.mark.slow)])
def test_the_first_attempts_find_nothing(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"lab.torture.{name}")
    row = run(name, module, tmp_path, 0, range(FEW[name]))
    assert not row["found"] and len(row["came"]) > 1 and sum(row["came"].values()) == FEW[name]
