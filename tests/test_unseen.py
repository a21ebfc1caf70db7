"""`python -m lab unseen`: what is left out is really not learnt from, and a stopped run goes on."""

import json
import sys
from pathlib import Path

import pytest

from lab import __main__ as lab_main
from lab import unseen
from runtime.benchmark.rows import read_rows
from runtime.errors import SajiError
from runtime.spec import RULES
from training.network.classifier import PhotoClassifier
from training.photos.dataset import Data, load_data
from training.recipe import Recipe


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
        return PhotoClassifier(architecture, len(data.classes), recipe)

    monkeypatch.setattr(unseen, "_trained", untrained)
    monkeypatch.setattr(unseen, "load_data", lambda source, share, seed, *_: load_data(source, share, seed, False))
    command = ["lab", "unseen", str(sample), "--arch", "resnet18", "--recipe", "quick", "--out", str(tmp_path)]
    command += ["--rows", str(tmp_path / "rows.jsonl"), "--leave"]
    for leave in ("rendang", "bakso", "rendang"):
        monkeypatch.setattr(sys, "argv", [*command, leave])
        lab_main.main()
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["unseen"] for row in rows] == ["rendang", "bakso"] and len(asked) == 2, "the third had its row"
    assert rows[0]["auroc"].keys() == rows[0]["unknown_rejected"].keys() == RULES.keys()
    assert "rendang" not in asked[0] and rows[0]["unknown"] == 16 and rows[0]["versions"]
    printed = capsys.readouterr()
    assert [json.loads(line)["unseen"] for line in printed.out.splitlines()] == ["rendang", "bakso"]
    mean = sum(row["auroc"]["energy"] for row in rows) / 2
    assert "| rule | rendang | bakso | mean AUROC |" in printed.err
    assert float(printed.err.split("| energy |")[-1].split("|")[2]) == pytest.approx(mean, abs=1e-3)
    monkeypatch.setattr(sys, "argv", [*command, "durian"])
    with pytest.raises(SajiError, match="three classes; there are bakso"):
        lab_main.main()
