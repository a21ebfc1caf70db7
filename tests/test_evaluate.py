"""The verb evaluate: the figures of a model on photos it has not learnt from, whatever the photos' list."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED, needs_shared
from PIL import Image

from runtime.errors import BadModel, SajiError
from runtime.evaluation import ValidationSet, wilson_interval
from runtime.spec import Geometry, ModelSpec, Rejection
from training.__main__ import main
from training.network.classifier import load_checkpoint
from training.outcome import evaluate
from training.photos.photo_set import Photo

Evaluate = Callable[..., dict[str, Any]]
SPEC = ModelSpec("x", "y", ("soto_ayam", "bakso", "rendang"))


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Run the command in this process; what its last line says, with all lines under "text"."""

    def command(*arguments: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["training", "evaluate", *map(str, arguments)])
        main()
        text = capsys.readouterr().out
        return json.loads(text.splitlines()[-1]) | {"text": text}

    return command


def unseen(photo: Path, target: Path) -> Path:
    """The same pixels in a file that no checkpoint has seen: what follows a JPEG's end is not read."""
    target.write_bytes(photo.read_bytes() + b"\0")
    return target


def test_the_folder_of_a_network_stands_for_its_checkpoint(run: Path) -> None:
    ask, spec = evaluate.opened(run)
    same, _ = evaluate.opened(run / "checkpoint.pt")
    photo = np.full((1, spec.geometry.size, spec.geometry.size, 3), 90, np.uint8)
    assert np.array_equal(ask(photo), same(photo))


def unrecorded(checkpoint: Path, target: Path) -> Path:
    """A checkpoint as saji wrote it before it kept a record of the photos that were seen."""
    content = torch.load(checkpoint, weights_only=True)
    del content["seen"]
    torch.save(content, target)
    return target


@pytest.fixture(scope="module")
def listed(run: Path, sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The validation photos as a CSV as people write them, with two photos of another dish and two that are no photo.

    The rows of the split test are the photos of `validation.npz`.
    """
    folder = tmp_path_factory.mktemp("listed")
    rows = [["FileName", "label_check", " label", "split", "source"]]
    for number, name in enumerate(ValidationSet.load(run / "validation.npz").names):
        label, file = name.split("/")
        unseen(sample / name, folder / f"{label}_{file}")
        spelled = (label, label.replace("_", " ").title(), f" {label.upper()} ")[len(label) % 3]
        rows.append([f"{label}_{file}", "doubtful", spelled, "test", str(number)])
    for stranger in ("rambutan", "durian"):
        unseen(next((sample / "bakso").glob("*.jpg")), folder / f"{stranger}.jpg")
        rows.append([f"{stranger}.jpg", "", stranger, "val", ""])
    (folder / "note.jpg").write_text("no picture")
    (folder / "empty.png").touch()
    rows += [["note.jpg", "", "BAKSO", "val", ""], ["empty.png", "", "rambutan", "val", ""], ["gone.jpg", "", "BAKSO"]]
    with open(folder / "photos.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder / "photos.csv"


def test_validation_photos_give_the_accuracy_that_training_stated(run: Path, listed: Path, run_command) -> None:
    found = run_command(run / "checkpoint.pt", listed, "--split", "test")
    _, spec = load_checkpoint(run / "checkpoint.pt")
    assert found["known"] == found["photos"] == spec.validation["photos"] and not found["unreadable"]
    assert found["accuracy"] == spec.validation["accuracy"]
    assert found["accuracy_interval"] == spec.validation["interval"]
    assert set(found["per_class"]) == set(spec.classes)
    assert f"accuracy {found['accuracy']:.3f} (95 % interval" in found["text"]


def test_a_class_of_which_no_photo_was_asked_has_no_figures(run: Path, listed: Path, run_command) -> None:
    rows = [line for line in listed.read_text().splitlines() if "rendang" not in line]
    (few := listed.with_name("few.csv")).write_text("\n".join(rows))
    text = run_command(run / "checkpoint.pt", few)["text"]
    assert "no photo was asked of rendang\n" in text and "\nrendang" not in text and "\nsoto_ayam" in text


def test_the_exported_file_says_what_its_checkpoint_says_without_pytorch(
    run: Path, model: Path, listed: Path, run_command: Evaluate
) -> None:
    hide = "import sys, runpy\nclass Hide:\n    def find_spec(self, name, *_):\n"
    hide += "        if name in ('torch', 'lightning'): raise ModuleNotFoundError(name)\n"
    hide += "sys.meta_path.insert(0, Hide())\n"
    code = hide + f"sys.argv[1:] = ['evaluate', {str(model / 'model.onnx')!r}, {str(listed)!r}]\n"
    code += "runpy.run_module('training', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    by_file, by_checkpoint = json.loads(done.stdout.splitlines()[-1]), run_command(run / "checkpoint.pt", listed)
    for key in ("accuracy", "per_class", "macro_f1", "known", "unknown", "unreadable"):
        assert by_file[key] == by_checkpoint[key]
    assert by_file["rejection"]["auroc"] == pytest.approx(by_checkpoint["rejection"]["auroc"], abs=0.02)


def test_strangers_and_files_that_are_no_photo_are_counted_apart(run: Path, listed: Path, run_command) -> None:
    photos = len(ValidationSet.load(run / "validation.npz").names)
    found = run_command(run / "checkpoint.pt", listed)
    assert (found["known"], found["unknown"], found["none_of_these"]) == (photos, 2, ["durian", "rambutan"])
    assert sum(row["support"] for row in found["per_class"].values()) == photos
    assert [Path(line.partition(": ")[0]).name for line in found["unreadable"]] == ["note.jpg", "empty.png"]
    assert any("gone.jpg does not exist" in problem for problem in found["problems"])
    for said in ("none of these (labelled durian, rambutan)", "unreadable, left out: 2", "note.jpg is no picture"):
        assert said in found["text"]


def test_photos_that_the_model_may_have_seen_are_not_taken_silently(
    run: Path, model: Path, sample: Path, tmp_path: Path, run_command
) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "bakso").mkdir(parents=True)
        shutil.copy(trained_on(run, sample)[0], tmp_path / split / "bakso")
    old = unrecorded(run / "checkpoint.pt", tmp_path / "old.pt")
    for file in (old, model / "model.onnx"):
        both = run_command(file, tmp_path)
        assert "1 photos are of the split train" in both["text"] and "1 photos are of the split val" in both["text"]
        assert both["seen"] == "unknown" and both["photos"] == 2
    assert "split train" not in run_command(old, tmp_path, "--split", "val")["text"]
    with pytest.raises(SajiError, match=r"all 2 photos were seen by .*checkpoint\.pt"):
        run_command(run / "checkpoint.pt", tmp_path)


def trained_on(run: Path, sample: Path) -> list[Path]:
    """The photos of bakso that did not validate."""
    validation = ValidationSet.load(run / "validation.npz").names
    return [photo for photo in sorted((sample / "bakso").glob("*.jpg")) if f"bakso/{photo.name}" not in validation]


def test_photos_that_the_checkpoint_has_seen_are_counted_and_left_out(
    run: Path, sample: Path, tmp_path: Path, run_command
) -> None:
    (tmp_path / "bakso").mkdir()
    for number, photo in enumerate(trained_on(run, sample)[:5]):
        if number < 2:
            shutil.copy(photo, tmp_path / "bakso" / "renamed.jpg" if number else tmp_path / "bakso")
        else:
            unseen(photo, tmp_path / "bakso" / photo.name)
    found = run_command(run / "checkpoint.pt", tmp_path)
    assert (found["photos"], found["known"], found["seen"]) == (3, 3, 2)
    assert "2 of 5 photos were seen by" in found["text"] and "left out" in found["text"]


def test_photos_that_set_the_temperature_are_told(run: Path, sample: Path, tmp_path: Path, run_command) -> None:
    learnt = trained_on(run, sample)
    (tmp_path / "bakso").mkdir()
    settled = [photo for photo in sorted((sample / "bakso").glob("*.jpg")) if photo not in learnt][:2]
    for photo in (*settled, *learnt[:1]):
        shutil.copy(photo, tmp_path / "bakso")
    unseen(learnt[1], tmp_path / "bakso" / "new.jpg")
    found = run_command(run / "checkpoint.pt", tmp_path)
    assert (found["photos"], found["seen"]) == (3, 1)
    assert "2 of these photos set the temperature and the threshold of" in " ".join(found["text"].split())
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    del content["seen"]["settled"]
    torch.save(content, tmp_path / "earlier.pt")
    for side, photo in (("train", learnt[0]), ("val", settled[0])):
        (tmp_path / "set" / side / "bakso").mkdir(parents=True)
        shutil.copy(photo, tmp_path / "set" / side / "bakso")
    found = run_command(tmp_path / "earlier.pt", tmp_path / "set")
    assert found["photos"] == 1 and "1 photos are of the split val; if they" in " ".join(found["text"].split())


def test_photos_that_are_listed_more_than_once_are_told(model: Path, sample: Path, tmp_path: Path, run_command) -> None:
    for i, photo in enumerate(sorted((sample / "bakso").glob("*.jpg"))[:3]):
        shutil.copy(photo, tmp_path / f"{i}.jpg")
    rows = ["filename,label", "0.jpg,bakso", "./0.jpg,bakso", "1.jpg,bakso", "1.jpg,rendang", "2.jpg,bakso"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    told = run_command(model / "model.onnx", tmp_path)["problems"]
    assert told[0].startswith("2 photos are listed more than once or have copies, 1 of them under two labels; each one")


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two photos of a class and two of none, for a model that answers by colour."""
    spec = replace(SPEC, geometry=Geometry.for_size(16), rejection=Rejection("energy", 200.0))
    monkeypatch.setattr(evaluate, "opened", lambda path: (lambda images: images.mean((1, 2), np.float32), spec))
    for label, fills in (("bakso", ("red", "lime")), ("stone", ("grey", "white"))):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for fill in fills:
            Image.new("RGB", (20, 20), fill).save(tmp_path / "photos" / label / f"{fill}.png")
    return tmp_path / "photos"


def test_copies_of_a_photo_count_and_narrow_no_interval(colours: Path, run_command) -> None:
    for label in ("bakso", "stone"):
        (colours / label / "broken off.png").touch()  # copies, too, which count nowhere
    once = run_command("a.onnx", colours)
    for photo in [path for path in colours.glob("*/*.png") if path.stat().st_size]:
        for number in range(8):
            shutil.copy(photo, photo.with_stem(f"{photo.stem} {number}"))
    often = run_command("a.onnx", colours)
    assert often["known"] == often["unknown"] == 18 and once["accuracy"] == often["accuracy"] == 0.5
    assert often["accuracy_interval"] == once["accuracy_interval"]
    for name in ("unknown_rejected", "known_kept", "right_kept"):
        assert often["rejection"][name] == once["rejection"][name]
    assert not once["problems"]
    assert often["problems"][0].startswith("4 photos are listed more than once or have copies, 0 of them")


def test_a_photo_that_changes_after_its_hash_was_taken_is_a_sentence(
    colours: Path, run_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that hash it is held against those that the checkpoint has seen."""
    unseen = evaluate._unseen

    def meanwhile(*asked: Any) -> Any:
        shutil.copy(colours / "stone" / "grey.png", colours / "bakso" / "red.png")
        return unseen(*asked)

    monkeypatch.setattr(evaluate, "_unseen", meanwhile)
    with pytest.raises(SajiError, match=r"red\.png has changed .* type the same again"):
        run_command("a.onnx", colours)


def scored(values: list[float]) -> np.ndarray:
    """Logits whose highest probability rises with the values; the answer is always class 0."""
    return np.array([[value, 0.0, 0.0] for value in values])


def test_the_figures_are_those_of_the_textbook() -> None:
    labels = np.array([0, 0, 0, 1])  # nothing shows class 2
    logits = np.array([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 9, 0]])
    found = evaluate.evaluated(SPEC, logits, labels).record()
    assert found["accuracy"] == 0.75
    assert found["accuracy_interval"] == [round(edge, 4) for edge in wilson_interval(3, 4)]
    assert found["per_class"] == {
        "soto_ayam": {"precision": 1, "recall": 0.6667, "f1": 0.8, "support": 3},
        "bakso": {"precision": 0.5, "recall": 1, "f1": 0.6667, "support": 1},
        "rendang": {"precision": 0, "recall": 0, "f1": 0, "support": 0},
    }
    assert found["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2, abs=1e-4), "over the classes that the photos show"
    assert found["calibration"]["ece"] == pytest.approx(0.25, abs=0.001)


def test_calibration_is_that_of_the_probabilities_that_are_served() -> None:
    logits, labels = scored([8.0] * 10), np.array([0] * 5 + [1] * 5)
    found = evaluate.evaluated(replace(SPEC, temperature=1000.0), logits, labels).record()["calibration"]
    assert found["ece"] == pytest.approx(0.5 - 1 / 3, abs=0.005)
    assert found["ece_at_temperature_1"] == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("rule", [None, "max_probability", "energy"])
def test_auroc_is_the_share_of_pairs_in_the_right_order(rule: str | None) -> None:
    known, unknown = [1.0, 3.0, 3.5, 6.0], [0.5, 2.0, 3.0]
    spec = replace(SPEC, rejection=Rejection(rule, 0.0) if rule else None)
    labels = np.array([0] * len(known) + [evaluate.NONE] * len(unknown))
    found = evaluate.evaluated(spec, scored(known + unknown), labels).record()["rejection"]["auroc"]
    pairs = [(k > u) + (k == u) / 2 for k in known for u in unknown]
    assert found == round(sum(pairs) / len(pairs), 4)


def test_rejection_counts_what_the_rule_keeps() -> None:
    spec = replace(SPEC, rejection=Rejection("energy", 4.0))
    labels = np.array([0, 0, 0, 1, *[evaluate.NONE] * 3])
    found = evaluate.evaluated(spec, scored([5.0, 5, 1, 1, 5, 1, 1]), labels).record()["rejection"]
    shares = [found[name]["share"] for name in ("known_kept", "right_kept", "unknown_rejected")]
    assert shares == [0.5, 0.6667, 0.6667]
    assert found["unknown_rejected"]["interval"] == [round(edge, 4) for edge in wilson_interval(2, 3)]


def test_only_known_and_only_unknown_photos_have_figures_too() -> None:
    known = evaluate.evaluated(SPEC, scored([1.0, 2]), np.array([0, 1]))
    assert known.accuracy == 0.5 and known.rejection.auroc is None
    unknown = evaluate.evaluated(SPEC, scored([1.0, 2]), np.array([evaluate.NONE] * 2))
    assert "accuracy" not in unknown.record() and unknown.record()["rejection"]["unknown_rejected"]["share"] == 0
    for figures in (known, unknown):
        assert evaluate.described(figures, [], [], [])


def test_photos_are_asked_batch_by_batch(sample: Path) -> None:
    photo = Photo(next((sample / "bakso").glob("*.jpg")), "Bakso")
    asked = []

    def logits(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return images.mean((1, 2))

    spec = replace(SPEC, geometry=Geometry.for_size(16))
    answers = evaluate.answer(logits, spec, [photo] * (2 * evaluate.BATCH + 3))
    assert asked == [evaluate.BATCH, evaluate.BATCH, 3]
    assert answers.outputs.shape == (sum(asked), 3) and set(answers.labels) == {1}


def test_classes_that_only_case_tells_apart_keep_their_own_photos() -> None:
    """ImageNet has Cardigan, the dog, and cardigan, the garment."""
    spec = replace(SPEC, classes=("Cardigan", "cardigan", "hot dog"))
    named = {"Cardigan": 0, "cardigan": 1, "Hot_Dog": 2, "CARDIGAN": evaluate.NONE, "bakso": evaluate.NONE}
    assert evaluate.numbers(spec, named) == named


def test_misuse_is_one_sentence(run: Path, sample: Path, tmp_path: Path, run_command) -> None:
    with pytest.raises(SajiError, match=r"no photo of the split 'val' \(there: none\)"):
        run_command(run / "checkpoint.pt", sample, "--split", "val")
    with pytest.raises(BadModel, match="does not exist"):
        run_command(tmp_path / "gone.pt", sample)
    with pytest.raises(SajiError, match="is no model"):
        run_command(next((sample / "bakso").glob("*.jpg")), sample)
    (tmp_path / "data" / "bakso").mkdir(parents=True)
    (tmp_path / "data" / "bakso" / "text.jpg").write_text("no picture")
    with pytest.raises(SajiError, match=r"none of the 1 photos can be read \(.*text.jpg"):
        run_command(run / "checkpoint.pt", tmp_path / "data")
    with pytest.raises(BadModel, match="NaN or infinite logits for 1 of 2"):
        evaluate.evaluated(SPEC, np.array([[0, 1, np.nan], [0, 1, 2]]), np.array([0, 1]))


@needs_shared
def test_files_as_users_really_have_them(run: Path, run_command) -> None:
    found = run_command(run / "checkpoint.pt", SHARED / "odd_files")
    assert found["none_of_these"] == ["csv", "format", "label_noise"] and found["known"] == 0
    unreadable = {Path(line.partition(": ")[0]).name for line in found["unreadable"]}
    tables = {path.name for path in (SHARED / "odd_files" / "csv").iterdir() if not path.name.startswith(".")}
    assert unreadable == tables | {"git_lfs_pointer.png"}
    assert found["unknown"] == 19 + 26, "every other file is a picture, whatever its name says"
