"""`make torture`: seeded attempts, which go on where they were interrupted, and each campaign's first ten seconds."""

import importlib
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import made_once

from demo.service.problem import Problem
from lab.torture import artefacts, campaign, guided, honest, http, odd_pictures, parsers, pictures
from lab.torture.apart import Apart
from lab.torture.campaign import Attempt, Found, run
from runtime.benchmark.rows import Row

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="memory, and addresses of loopback, as Linux has them")


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


class Told(Dice):
    """Dice that say at the end how high they were."""

    @contextmanager
    def prepared(self, folder: Path) -> Iterator[Attempt]:
        yield self

    __call__ = Dice._throw

    def told(self) -> dict[str, Any]:
        if max(self.thrown) < 6:
            raise Found("never a six")
        return {"highest": max(self.thrown)}


def test_what_an_attempt_tells_at_the_end_is_in_the_row(tmp_path: Path) -> None:
    assert run("dice", Told(), tmp_path, 3, range(40))["highest"] == 6
    low = next(
        first for first in itertools.count() if not run("dice", Dice(), tmp_path, 3, range(first, first + 2))["found"]
    )
    assert run("dice", Told(), tmp_path, 3, range(low, low + 2))["found"] == [{"number": None, "what": "never a six"}]


# Each campaign for a moment; `make torture` runs them at length


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lab.torture import tiny

    return made_once(tmp_path_factory, "tortured", tiny.train_and_export)


@pytest.fixture
def short(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a campaign's first attempts; its tiny network is already there."""
    from lab.torture import tiny as module

    monkeypatch.setattr(module, "train_and_export", lambda out: shutil.copytree(tiny, out, dirs_exist_ok=True))
    return lambda name, attempts: brief(name, attempts, tmp_path)


def brief(name: str, attempts: int, folder: Path) -> Row:
    row = run(name, importlib.import_module(f"lab.torture.{name}"), folder, 0, range(attempts))
    assert not row["found"] and sum(row["came"].values()) == attempts
    return row


def test_every_campaign_is_tried_here() -> None:
    assert set(campaign.CAMPAIGNS) >= {"pictures", "service", "http", "artefacts", "parsers"}


def test_odd_pictures_are_decoded_or_refused(tmp_path: Path) -> None:
    came = brief("pictures", 600, tmp_path)["came"]
    assert min(came["decoded"], came["not-a-picture"]) > 150, "too tame, or too wild to reach what decodes"


def test_a_picture_is_odd_in_the_same_way_again_and_its_checksums_are_right() -> None:
    files = odd_pictures.corpus()
    for name, file in files.items():
        format = next((each for each in odd_pictures.FORMATS if file.startswith(each.magic)), None)
        assert format is None or format.joined(format.split(file)) == file, name
    odd = odd_pictures.OddPictures(list(files.values()))
    made = [odd(random.Random(number)) for number in range(300)]
    assert made == [odd(random.Random(number)) for number in range(300)] and len(set(made)) > 280
    header = odd_pictures.PNG.split(files["PNG, colours"])[0]
    assert header[0] == b"IHDR"
    wider = odd_pictures.PNG.joined([(header[0], b"\0\0\x10\0" + header[1][4:])])
    assert wider == odd_pictures.PNG_MAGIC + odd_pictures.png_chunk(b"IHDR", b"\0\0\x10\0" + header[1][4:])


@pytest.mark.parametrize(
    "refusal",
    [
        Problem(
            422, "not-a-picture", "the file is damaged (it ends the program that decodes it); send a complete file"
        ),
        Problem(422, "not-a-picture", "the file is damaged (/tmp/x/y.py, line 3); send a complete file"),
        Problem(422, "not-a-picture", "the file is damaged\nin two lines"),
        Problem(500, "failed", "the service failed at this request; its log says why"),
    ],
)
def test_a_crash_and_an_answer_that_no_document_has_are_faults(refusal: Problem) -> None:
    with pytest.raises(Found) as found:
        pictures.answer_of(refusal, b"photo")
    assert found.value.evidence == b"photo"


@linux_only
def test_a_decoder_that_holds_too_much_or_too_long_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "IDLE_MIB", -pictures.LIMITS.decode_memory)
    found = run("pictures", pictures, tmp_path, 0, range(2))["found"]  # type: ignore[arg-type]
    assert len(found) == 2 and "MiB" in found[0]["what"]
    monkeypatch.setattr(pictures, "LATE_SECONDS", -pictures.LIMITS.decode_seconds)
    assert "took" in run("pictures", pictures, tmp_path, 0, range(1))["found"][0]["what"]  # type: ignore[arg-type]


def misbehave(how: str) -> str:
    if how == "late":
        time.sleep(60)
    if how == "crash":
        os.abort()
    if how == "raise":
        raise KeyError("x")
    return how


def test_what_runs_apart_may_do_its_worst(tmp_path: Path) -> None:
    apart = Apart(misbehave, tmp_path / "printed", seconds=0.5)
    for how, what in (("late", "more than"), ("crash", "status"), ("raise", "raised KeyError")):
        apart(b"", "well")  # whatever was before
        with pytest.raises(Found, match=what) as found:
            apart(how.encode(), how)
        assert found.value.evidence == how.encode()
    assert apart(b"", "well") == "well"
    apart.close()


def intrude(event: str, out: Path) -> int:
    if event == "runs":
        os.system("true")
    elif event == "writes":
        (out / ".." / "x").write_text("x")
    elif event == "moves":
        (out / "y").write_text("y")
        (out / "y").rename(out / ".." / "y")
    elif event == "leaves":
        (out / ".." / "z").mkdir()
    else:  # as a judgement anew does
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "profile").write_text("x")
        (out / "verdicts").mkdir()
    return 0


def opened_by_an_intruder(event: str, out: str) -> str:
    artefacts.DOORS["intruder"] = lambda place: intrude(event, place)
    artefacts._expected = lambda door, pristine: "0"  # type: ignore[assignment, misc]
    return artefacts.opened("intruder", out, out)


def test_what_opening_runs_or_writes_elsewhere_is_a_fault(tmp_path: Path) -> None:
    apart = Apart(opened_by_an_intruder, tmp_path / "printed", seconds=60)
    (tmp_path / "out").mkdir()
    for event, what in (("runs", "os.system"), ("writes", "open"), ("moves", "os.rename"), ("leaves", "os.mkdir")):
        with pytest.raises(Found, match=f"led to {what}"):
            apart(b"", event, str(tmp_path / "out"))
    assert apart(b"", "keeps", str(tmp_path / "out")) == "the same answer"
    apart.close()


def test_damaged_artefacts_are_refused_or_as_good_as_before(short: Any) -> None:
    came = short("artefacts", 40)["came"]
    assert came["flipped: refused"] > 15 and came["cut: refused"]


def test_odd_pictures_leave_the_service_as_it_was(short: Any) -> None:
    came = short("service", 60)["came"]
    assert came["honest: right"] and came["not-a-picture"]


@linux_only
def test_honest_clients_notice_no_hostility(short: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CALM", 1)
    monkeypatch.setattr(http, "WARM_SECONDS", 0.5)
    row = short("http", 4)
    assert row["honest"]["answers"] > 4


def test_a_wrong_answer_is_told_from_a_right_one() -> None:
    photo = honest.Honest(b"", {"a": 0.7, "b": 0.3})

    def answer(label: str, **probabilities: float) -> bytes:
        return json.dumps({"answers": [{"label": label, "probabilities": probabilities}]}).encode()

    assert not photo.wrong(answer("a", a=0.7, b=0.3))
    for wrong in (answer("b", a=0.7, b=0.3), answer("a", a=0.69, b=0.31), answer("a", a=0.7)):
        assert photo.wrong(wrong)


def test_our_parsers_read_or_refuse_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsers, "RUNS", 200)
    brief("parsers", 2, tmp_path)


@pytest.mark.parametrize("name", ["csv", "toml", "gates", "spec", "receipt", "deployment"])
def test_each_parser_copes_with_seeded_changes(name: str, tmp_path: Path) -> None:
    guided.feed(guided.one_of(name, tmp_path), guided.seeds(name), "1", "300", tmp_path)


def test_an_input_that_a_parser_stumbles_over_is_kept(tmp_path: Path) -> None:
    def stumbles(content: bytes) -> None:
        raise IndexError

    with pytest.raises(IndexError):
        guided.feed(stumbles, [b"whole"], "1", "9", tmp_path)
    assert len([*tmp_path.glob("crash-*")]) == 1
