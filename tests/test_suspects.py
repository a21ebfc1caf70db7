"""Suspects: photos under a wrong label come first, and how far to trust the list can be measured."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import SajiError
from runtime.photos import Photo, PhotoSet
from training import folds
from training import suspects as module
from training.dataset import load_data
from training.suspects import contact_sheet, likely_mislabelled, planted, recall, suspects


def answers(labels: np.ndarray, wrong: list[int], classes: int = 3, seed: int = 0) -> np.ndarray:
    """Out-of-fold logits of a good network on photos of which those at `wrong` show the next class."""
    shown = labels.copy()
    shown[wrong] = (labels[wrong] + 1) % classes
    return 4 * np.eye(classes)[shown] + np.random.default_rng(seed).normal(0, 0.7, (len(labels), classes))


@pytest.fixture()
def mixed(tmp_path: Path, sample: Path) -> tuple[Path, Path]:
    """Two photos of each drawn dish under the name of another one, apart; the rest is the sample."""
    dishes = sorted(child.name for child in sample.iterdir() if child.is_dir())
    for label, shown in zip(dishes, [*dishes[1:], dishes[0]], strict=True):
        (tmp_path / "wrong" / label).mkdir(parents=True)
        for number, photo in enumerate(sorted((sample / shown).iterdir())[:2]):
            Image.open(photo).rotate(90).save(tmp_path / "wrong" / label / f"{number}.png")
    return sample, tmp_path / "wrong"


def test_mislabelled_photos_come_first(sample: Path) -> None:
    data = load_data(sample, 0.5, 0, look_alikes=False)
    wrong = [3, 21, 40, 63]
    ranked = suspects(data, answers(data.labels, wrong, 5))
    assert {suspect.photo for suspect in ranked[:4]} == {data.photos[i].path for i in wrong}
    assert len(ranked) == len(data.photos)
    first = data.photos.index(next(photo for photo in data.photos if photo.path == ranked[0].photo))
    assert ranked[0].label == data.photos[first].label != ranked[0].other
    assert ranked[0].other == data.classes[(data.labels[first] + 1) % 5]
    assert ranked[0].confidence < 0.1 and ranked[0].likeness > 0.8


def test_the_number_of_wrong_labels_is_estimated() -> None:
    labels = np.arange(300) % 3
    assert likely_mislabelled(answers(labels, []), labels) <= 3
    assert abs(likely_mislabelled(answers(labels, list(range(0, 300, 10))), labels) - 30) <= 3


def test_a_network_that_prefers_one_class_does_not_make_the_others_wrong() -> None:
    labels = np.arange(300) % 3
    logits = answers(labels, []) + np.array([3.5, 0, 0])
    assert (logits.argmax(1) != labels).sum() > 30 > likely_mislabelled(logits, labels)


def test_recall_counts_the_planted_among_the_first(sample: Path) -> None:
    data = load_data(sample, 0.5, 0, look_alikes=False)
    ranked = suspects(data, answers(data.labels, [3, 21], 5))
    wrong = {data.photos[i].path for i in (3, 21)} | {ranked[-1].photo}
    assert recall(ranked, wrong) == {
        "planted": 3, "first": 60, "found": 2, "recall": 0.6667, "ranks": [1, 2, len(ranked)]
    }  # fmt: skip
    assert recall(ranked, set()) == {}


def test_planted_photos_join_the_set_and_no_split_remains() -> None:
    found = PhotoSet(Path("x"), (Photo(Path("x/a.jpg"), "a", "train"), Photo(Path("x/b.jpg"), "b", "val")), ("blank",))
    both, wrong = planted(found, PhotoSet(Path("y"), (Photo(Path("y/c.jpg"), "a"),)))
    assert [(photo.path.name, photo.label, photo.split) for photo in both.photos] == [
        ("a.jpg", "a", None), ("b.jpg", "b", None), ("c.jpg", "a", None)
    ]  # fmt: skip
    assert wrong == {Path("y/c.jpg")} and both.problems == ("blank",)


def listed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["suspects", *map(str, arguments)])
    module.main()


def test_the_command_writes_a_list_and_a_contact_sheet(
    mixed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source, wrong = mixed

    def out_of_fold(architecture, data, recipe, k, folder, *_):
        assert (architecture, recipe.name, recipe.epochs, k) == ("resnet18", "quick", 2, 4)
        assert folder == tmp_path / "out" / "suspects" / source.name / "resnet18"
        planted = [i for i, photo in enumerate(data.photos) if photo.path.is_relative_to(wrong)]
        return answers(data.labels, planted, 5)

    monkeypatch.setattr(folds, "out_of_fold", out_of_fold)
    monkeypatch.setattr("training.duplicates.find_duplicates", lambda *_: [])
    options = ["--arch", "resnet18", "--recipe", "quick", "--epochs", 2, "--folds", 4, "--planted", wrong]
    listed(monkeypatch, source, *options, "--out", tmp_path / "out", "--rows", tmp_path / "rows.jsonl")
    *lines, last = capsys.readouterr().out.splitlines()
    answer, row = json.loads(last), json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8"))
    assert len(lines) == 10 and all(str(wrong) in line for line in lines)
    assert answer["found"] == answer["planted"] == 10 == row["found"] and answer["photos"] == 90 and row["commit"]
    with open(answer["suspects"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 90 and rows[0]["label"] == Path(rows[0]["photo"]).parent.name != rows[0]["other"]
    sheet = Image.open(tmp_path / "out" / "suspects" / source.name / "suspects.png")
    assert sheet.width > 1300 and len(set(sheet.crop((8, 8, 168, 168)).getdata())) > 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--arch", "resnet43"], "resnet43"),
        (["--recipe", "tranfser"], "no recipe 'tranfser'"),
        (["--epochs", "-1"], "epochs is -1"),
        (["--planted", "nowhere"], "nowhere does not exist"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    sample: Path, tmp_path: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SajiError, match=words):
        listed(monkeypatch, sample, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_the_contact_sheet_is_bounded(sample: Path) -> None:
    data = load_data(sample, 0.5, 0, look_alikes=False)
    ranked = suspects(data, answers(data.labels, [], 5))
    sheet = contact_sheet(ranked * 20)
    assert sheet.width < 1500 and sheet.height < 2200 and contact_sheet(ranked[:1]).height < 300
