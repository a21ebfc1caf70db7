"""Suspects: photos under a wrong label come first, and how far to trust the list can be measured."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab import __main__ as lab_main
from lab import suspects as laboratory
from lab.suspects import planted, recall
from runtime.errors import SajiError
from training.__main__ import main
from training.photos import suspects as module
from training.photos.photo_set import Photo, PhotoSet
from training.photos.split import Data
from training.photos.suspects import Answers, ask_folds, contact_sheet, features, ranking
from training.progress import silent

CLASSES = 3


def fake(scenes: list[int]) -> Data:
    """30 photos a class, without files; `scenes[i]` is the scene of photo i."""
    labels = np.repeat(np.arange(CLASSES), 30)
    photos = tuple(Photo(Path(f"{i}.jpg"), "abc"[label], None, f"{i:04d}") for i, label in enumerate(labels))
    return Data(photos, ("a", "b", "c"), labels, np.arange(1), np.arange(1), np.array(scenes))


def seen(shown: np.ndarray, seed: int = 0) -> np.ndarray:
    """Features of photos that show these classes: unit vectors `[N, 16]` around one direction a class."""
    vectors = np.eye(16)[shown] + np.random.default_rng(seed).normal(0, 0.15, (len(shown), 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(ranked: list) -> set[int]:
    return {int(suspect.photo.stem) for suspect in ranked}


def test_another_class_and_no_class_come_first() -> None:
    data = fake(list(range(90)))
    shown = data.labels.copy()
    shown[[3, 40]] = [1, 2]  # another dish
    shown[[20, 70]] = [9, 10]  # none
    ranked = ranking(data, ask_folds(seen(shown), data, 3, 0))
    assert names(ranked[:4]) == {3, 40, 20, 70} and len(ranked) == 90
    swapped = next(suspect for suspect in ranked if suspect.photo.stem == "3")
    assert (swapped.label, swapped.other) == ("a", "b") and swapped.confidence < 0.3 < 0.5 < swapped.likeness
    outside = next(suspect for suspect in ranked if suspect.photo.stem == "20")
    assert outside.distance > 1 > 2 * ranked[-1].distance


def test_each_of_the_two_answers_alone_makes_a_suspect() -> None:
    data, sure = fake(list(range(90))), np.eye(3)[fake([]).labels]
    swapped, far = sure.copy(), np.zeros(90)
    swapped[7], far[8] = [0, 1, 0], 1
    assert names(ranking(data, Answers(swapped, np.zeros(90)))[:1]) == {7}
    assert names(ranking(data, Answers(sure, far))[:1]) == {8}


def test_no_photo_is_judged_by_its_own_scene() -> None:
    """Two shots of what is no dish: where one is asked about the other, both are less suspect."""
    vectors = seen(np.repeat(np.arange(CLASSES), 30))
    vectors[[5, 6]] = np.eye(16)[12]
    together, apart = (
        ask_folds(vectors, fake(scenes), 3, 0) for scenes in ([*range(6), 5, *range(7, 90)], [*range(90)])
    )
    assert together.distance[[5, 6]].min() > 1.2 > 1.1 > apart.distance[[5, 6]].max()
    assert np.allclose(together.probabilities.sum(1), 1)


def test_published_weights_know_a_photo_again(sample: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    photos = [Photo(path, "a") for path in sorted(sample.glob("*/*_001.jpg"))]
    for number, photo in enumerate(photos[:3]):
        Image.open(photo.path).rotate(15, expand=True).save(tmp_path / f"{number}.png")
    vectors = features("efficientnet_lite0", [*photos, *(Photo(tmp_path / f"{n}.png", "a") for n in range(3))], silent)
    assert vectors.shape == (8, 1280) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors[5:] @ vectors[:5].T).argmax(1).tolist() == [0, 1, 2]


def test_recall_counts_the_planted_among_the_first() -> None:
    ranked = ranking(fake(list(range(90))), Answers(np.full((90, 3), 1 / 3), np.arange(90) / 90))
    wrong = {Path("89.jpg"), Path("88.jpg"), Path("0.jpg")}
    figures = recall(ranked, wrong)
    assert (figures.planted, figures.first, figures.ranks) == (3, 60, [1, 2, 90])
    assert (figures.found, figures.recall) == (2, 0.6667)
    backwards = recall(ranked[::-1], wrong)
    assert (backwards.found, backwards.found_by_confidence, backwards.found_by_distance) == (1, 1, 2)


def test_planted_photos_join_the_set_and_no_split_remains() -> None:
    found = PhotoSet(Path("x"), (Photo(Path("x/a.jpg"), "a", "train"), Photo(Path("x/b.jpg"), "b", "val")), ("blank",))
    both, wrong = planted(found, PhotoSet(Path("y"), (Photo(Path("y/c.jpg"), "a"),)))
    assert [(photo.path.name, photo.label, photo.split) for photo in both.photos] == [
        ("a.jpg", "a", None), ("b.jpg", "b", None), ("c.jpg", "a", None)
    ]  # fmt: skip
    assert wrong == {Path("y/c.jpg")} and both.problems == ("blank",)


def listed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "suspects", *map(str, arguments)])
    main()


@pytest.fixture()
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features and look-alikes that cost nothing; photos named `9.png` and on show no class."""

    def features(architecture: str, photos: list[Photo], progress: object) -> np.ndarray:
        labels = sorted({photo.label for photo in photos})
        stems = [photo.path.stem for photo in photos]
        return seen(
            np.array([int(s) if s.isdigit() else labels.index(p.label) for s, p in zip(stems, photos, strict=True)])
        )

    monkeypatch.setattr(module, "features", features)
    monkeypatch.setattr("training.photos.duplicates.find_duplicates", lambda *_: [])


def test_the_command_writes_a_list_and_a_contact_sheet(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, quick: None
) -> None:
    photos = shutil.copytree(sample, tmp_path / "set")
    for number, colour in enumerate(("blue", "lime", "magenta"), 9):
        Image.new("RGB", (80, 80), colour).save(photos / "bakso" / f"{number}.png")
    listed(monkeypatch, photos, "--out", tmp_path / "out")
    *lines, last = capsys.readouterr().out.splitlines()
    answer = json.loads(last)
    assert len(lines) == 10 and all(line.startswith(str(photos / "bakso")) for line in lines[:3])
    with open(answer["suspects"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == answer["photos"] == 83 and rows[0]["label"] == "bakso" != rows[0]["other"]
    sheet = Image.open(tmp_path / "out" / "suspects" / "set" / "suspects.png")
    assert sheet.width > 1300 and sheet.getpixel((88, 88)) in [(0, 0, 255), (0, 255, 0), (255, 0, 255)]


def test_the_list_holds_no_formula(sample: Path, tmp_path: Path) -> None:
    photo = next(sample.rglob("*.jpg"))
    module.write([module.Suspect(photo, "=1+1", 0.1, "@x", 0.9, 0.2)], tmp_path)
    assert (tmp_path / "suspects.csv").read_text().endswith(",'=1+1,0.1000,'@x,0.9000,0.2000\n")


def test_photos_that_are_mixed_in_are_counted(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, quick: None
) -> None:
    (tmp_path / "wrong" / "bakso").mkdir(parents=True)
    for number in (9, 10, 11):
        Image.new("RGB", (80, 80), (number, 0, 0)).save(tmp_path / "wrong" / "bakso" / f"{number}.png")
    monkeypatch.setattr(laboratory, "features", module.features)
    line = ["suspects", sample, "--planted", tmp_path / "wrong", "--out", tmp_path / "out", "--rows", tmp_path / "rows"]
    monkeypatch.setattr(sys, "argv", ["lab", *map(str, line)])
    lab_main.main()
    row = json.loads((tmp_path / "rows").read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out)["ranks"] == row["ranks"] == [1, 2, 3]
    assert row["photos"] == 83 and row["commit"] and (row["found"], row["planted"], row["recall"]) == (3, 3, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--arch", "resnet43"], "resnet43"),
        (["--arch", "timm/resnet18.a9_in1k"], r"'timm-resnet18\.a9_in1k'; did you mean timm-resnet18\.a\d_in1k"),
        (["--folds", "1"], "at least 2"),
        (["--folds", "17"], "has 16 scenes, too few for 17 folds"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    sample: Path, tmp_path: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    with pytest.raises(SajiError, match=words):
        listed(monkeypatch, sample, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out" / "suspects").exists()


def test_weights_that_nobody_publishes_are_one_sentence(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.photos.duplicates.find_duplicates", lambda *_: [])
    with pytest.raises(SajiError, match="nobody publishes weights of plain34"):
        listed(monkeypatch, sample, "--out", tmp_path / "out", "--arch", "plain34")


def test_the_contact_sheet_is_bounded(sample: Path) -> None:
    photo = next(sample.glob("bakso/*.jpg"))
    many = [module.Suspect(photo, "bakso" * 50, 0.1, "rendang", 0.8, 0.5)] * 1000
    sheet = contact_sheet(many)
    assert sheet.width < 1500 and sheet.height < 2200 and contact_sheet(many[:1]).height < 300
