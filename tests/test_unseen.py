"""`python -m lab unseen` and `sources`: what is left out is really not learnt from, and a stopped run goes on."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab import __main__ as lab_main
from lab import sources, unseen
from runtime.benchmark.rows import read_rows
from runtime.errors import SajiError
from runtime.evaluation import ValidationSet
from runtime.preprocess import pixels
from runtime.spec import RULES, Geometry, ModelSpec
from training.network.classifier import PhotoClassifier, save_checkpoint
from training.photos.dataset import Data, load_data
from training.recipe import Recipe
from training.run.release import release


@pytest.fixture(scope="module")
def data(sample: Path) -> Data:
    return load_data(sample, 0.5, 0, look_alikes=False)


def test_without_a_class_all_else_stays_where_it_was(data: Data) -> None:
    known = unseen.without(data, "rendang")
    assert known.classes == tuple(name for name in data.classes if name != "rendang")
    for old, new in ((data.train, known.train), (data.val, known.val)):
        stays = [data.photos[i] for i in old if data.photos[i].label != "rendang"]
        assert [known.photos[i] for i in new] == stays
    for photo, label, digest in zip(known.photos, known.labels, known.hashes, strict=True):
        assert known.classes[label] == photo.label and digest == data.hashes[data.photos.index(photo)]


def test_the_command_writes_a_row_per_class_and_goes_on_where_it_was(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def untrained(data: Data, architecture: str, recipe: Recipe, *_: Path) -> PhotoClassifier:
        asked.append(data.classes)
        model = PhotoClassifier(architecture, len(data.classes), recipe)
        release(model, None, 0, data, Geometry.for_size(recipe.image_size))
        return model

    monkeypatch.setattr(unseen, "_trained", untrained)
    monkeypatch.setattr(unseen, "load_data", lambda source, share, seed, *_: load_data(source, share, seed, False))
    command = ["lab", "unseen", str(sample), "--arch", "resnet18", "--recipe", "quick", "--out", str(tmp_path)]
    (tmp_path / "none").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "blue").save(tmp_path / "none" / name)
    (tmp_path / "none" / "notes.txt").write_text("no photo")
    command += ["--absent", str(tmp_path / "none"), "--rows", str(tmp_path / "rows.jsonl"), "--leave"]
    for leave in ("rendang", "bakso", "rendang"):
        monkeypatch.setattr(sys, "argv", [*command, leave])
        lab_main.main()
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["unseen"] for row in rows] == ["rendang", "bakso"] and len(asked) == 2, "the third had its row"
    assert rows[0]["auroc"].keys() == rows[0]["unknown_rejected"].keys() == {*RULES, "familiarity"}
    assert rows[0]["absent"] == 2 and rows[0]["absent_rejected"].keys() == rows[0]["auroc"].keys()
    assert "rendang" not in asked[0] and rows[0]["unknown"] == 16 and rows[0]["versions"]
    printed = capsys.readouterr()
    assert [json.loads(line)["unseen"] for line in printed.out.splitlines()] == ["rendang", "bakso"]
    mean = sum(row["auroc"]["energy"] for row in rows) / 2
    assert "| rule | rendang | bakso | mean AUROC |" in printed.err
    assert float(printed.err.split("| energy |")[-1].split("|")[2]) == pytest.approx(mean, abs=1e-3)
    monkeypatch.setattr(sys, "argv", [*command, "durian"])
    with pytest.raises(SajiError, match="three classes; there are bakso"):
        lab_main.main()


def test_a_source_left_out_is_asked_about_and_shares_no_scene(data: Data) -> None:
    names = np.array(["kev" if i % 3 else "if25" for i in range(len(data.photos))])
    scenes = data.scenes.copy()
    scenes[np.flatnonzero(names == "if25")[0]] = scenes[np.flatnonzero(names == "kev")[0]]
    part = sources.without_source(replace(data, scenes=scenes), names == "if25")
    assert set(names[part.train]) == {"kev"} and set(names[part.val]) == {"if25"}
    assert len(part.val) == (names == "if25").sum() - 1, "one shows what a photo that is trained on shows"


def test_sources_come_from_file_names_and_each_has_a_row(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    for i, file in enumerate(sorted(sample.glob("*/*.jpg"))):
        (photos / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, photos / file.parent.name / f"{'kev' if i % 2 else 'if25'}_{file.name}")
    untrained = PhotoClassifier("resnet18", 5)

    def train(architecture: str, data: Data, recipe: Recipe, folder: Path, *_: object) -> None:
        folder.mkdir(parents=True)
        images = np.stack([pixels(data.photos[i].path, Geometry.for_size(32)) for i in data.val])
        names = tuple(data.photos[i].path.name for i in data.val)
        ValidationSet(images, data.labels[data.val], names).save(folder / "validation.npz")
        save_checkpoint(folder / "checkpoint.pt", untrained, ModelSpec("x", architecture, data.classes))

    monkeypatch.setattr(sources, "train", train)
    (tmp_path / "r.toml").write_text("image_size = 32\n")
    command = ["lab", "sources", str(photos), "--arch", "resnet18", "--recipe", str(tmp_path / "r.toml")]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path), "--rows", str(tmp_path / "rows.jsonl")])
    lab_main.main()
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["left_out"] for row in rows] == ["if25", "kev", "none"]
    assert list(rows[0]["accuracy"]) == ["as trained", "0", "0.25", "0.5", "0.75"]
    assert rows[0]["accuracy"]["0"] != rows[0]["accuracy"]["as trained"], "an untrained last layer is fitted"
    assert "| left out | photos | as trained | share 0 |" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--leave", "gecs"])
    with pytest.raises(SajiError, match="there are if25, kev, none"):
        lab_main.main()
