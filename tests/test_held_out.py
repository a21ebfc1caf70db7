"""The accuracy that is led with is of photos that chose nothing: not the epoch, the temperature or the threshold."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import BadModel, SajiError
from runtime.evaluation import calibration_error, effective_number, holm, paired_bootstrap, paired_p, reliability
from runtime.spec import FAMILIARITY, ModelSpec, Rejection
from training.__main__ import train as train_command
from training.network.classifier import load_checkpoint, replace_spec, save_checkpoint
from training.photos.dataset import load_data
from training.photos.split import folds, set_aside
from training.recipe import Recipe, load_recipe, names
from training.run.held_out import HeldOut, _same, in_words, of_validation, settle
from training.run.records import HeldOutFigures, Share
from training.run.train import train

TINY = ["--archs", "resnet18", "--epochs", "1", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve photos, red ones and green ones; of each class two are one file under two names."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k, label in enumerate(("green", "red")):
        (root / label).mkdir()
        for number in range(12):
            noise = rng.integers(0, 120, (40, 40, 3), np.uint8)
            noise[..., 1 - k] += 120
            Image.fromarray(noise).save(root / label / f"{number:02}.png")
        (root / label / "11.png").write_bytes((root / label / "10.png").read_bytes())
    return root


@pytest.fixture(scope="module")
def folded(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training with two folds leaves in OUT, to be copied."""
    out = tmp_path_factory.mktemp("folded")
    train_command([*TINY, "--data", str(photos), "--run", "r", "--out", str(out), "--folds", "2"])
    return out


def spec_of(out: Path, run: str) -> ModelSpec:
    return load_checkpoint(out / "runs" / run / "resnet18" / "checkpoint.pt")[1]


def test_folds_answer_every_photo_once_and_settle_what_ships(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*TINY, "--data", str(photos), "--run", "r", "--out", str(tmp_path)]
    train_command(common)
    assert "24 photos" not in capsys.readouterr().out
    assert spec_of(tmp_path, "r").validation["held_out"]["how"] == "validation photos"
    weights = load_checkpoint(tmp_path / "runs" / "r" / "resnet18" / "checkpoint.pt")[0].state_dict()
    train_command([*common, "--folds", "2"])
    told = capsys.readouterr()
    assert "training 2 more networks" in told.err and "24 photos that chose nothing (2 folds)" in told.out
    model, spec = load_checkpoint(tmp_path / "runs" / "r" / "resnet18" / "checkpoint.pt")
    assert all((tensor == weights[name]).all() for name, tensor in model.state_dict().items())  # the same network
    figures, held_out = spec.validation["held_out"], HeldOut.load(tmp_path / "runs" / "r" / "resnet18")
    assert held_out and held_out.how == figures["how"] == "2 folds"
    assert (figures["photos"], figures["scenes"]) == (24, 22)
    assert figures["accuracy"] == round(float((held_out.logits.argmax(1) == held_out.labels).mean()), 4)
    # what ships is settled by the folds, out of which each photo is asked
    assert spec.temperature == settle(tmp_path, spec, held_out, held_out).temperature
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("checkpoint.pt")}
    train_command([*common, "--folds", "2"])
    assert files == {path: path.stat().st_mtime_ns for path in files}  # nothing is trained twice
    report = (tmp_path / "runs" / "r" / "report.md").read_text(encoding="utf-8")
    assert "24 of 2 folds" in report and "reliability.png" in report


@pytest.mark.parametrize("old", ["0-of-2", "1-of-2", ""])  # a fold, or the network that is released
def test_folds_of_an_earlier_saji_settle_what_ships_by_probability(
    old: str, photos: Path, folded: Path, tmp_path: Path
) -> None:
    shutil.copytree(folded, tmp_path, dirs_exist_ok=True)
    network = tmp_path / "runs" / "r" / "resnet18"
    assert spec_of(tmp_path, "r").rejection.rule == FAMILIARITY
    file = (network / "folds" / old if old else network) / "checkpoint.pt"
    model, spec = load_checkpoint(file)
    model.familiarity = None
    earlier = replace(spec, familiarity=False, schema_version=1, rejection=Rejection("max_probability", 0.3))
    save_checkpoint(file, model, earlier)
    released = spec_of(tmp_path, "r")
    before = {name: figure for name, figure in released.validation.items() if name != "held_out"}
    replace_spec(network / "checkpoint.pt", replace(released, validation=before))
    (network / "held_out.npz").unlink()
    train_command([*TINY, "--data", str(photos), "--run", "r", "--out", str(tmp_path), "--folds", "2"])
    spec = spec_of(tmp_path, "r")
    assert spec.rejection.rule == "max_probability" and spec.familiarity == bool(old)
    assert spec.validation["held_out"]["right_kept"] >= 0.9


def test_a_test_share_trains_nothing_and_is_what_is_led_with(photos: Path, tmp_path: Path) -> None:
    train_command([*TINY, "--data", str(photos), "--run", "t", "--out", str(tmp_path), "--test-share", "0.25"])
    spec = spec_of(tmp_path, "t")
    assert spec.validation["held_out"]["how"] == "test photos" and spec.validation["held_out"]["photos"] == 6
    data = load_data(photos, 0.2, 0, False, test_share=0.25)
    held = {photo.path for photo in data.test.photos}
    assert len(held) == 6 and not held & {photo.path for photo in data.photos}
    same = {(photos / label / f"{n}.png") for label in ("green", "red") for n in (10, 11)}
    assert {len(held & {path for path in same if path.parent.name == label}) for label in ("green", "red")} <= {0, 2}
    findings = json.loads((tmp_path / "runs" / "t" / "resnet18" / "data.json").read_text(encoding="utf-8"))
    assert findings["used"]["test"] == 6


def test_a_chosen_epoch_leaves_the_accuracy_unknown_and_the_temperature_alone(photos: Path, tmp_path: Path) -> None:
    common = [*TINY, "--data", str(photos), "--out", str(tmp_path), "--release", "best"]
    train_command([*common, "--run", "best"])
    spec = spec_of(tmp_path, "best")
    assert "held_out" not in spec.validation and "calibration" not in spec.validation and spec.temperature == 1
    assert "not known" in in_words(spec) and "--folds 3" in in_words(spec)
    train_command([*common, "--run", "best", "--folds", "2"])
    spec = spec_of(tmp_path, "best")
    assert spec.validation["held_out"]["how"] == "2 folds" and spec.validation["calibration"]


def test_a_fold_that_chooses_its_epoch_has_validation_photos_of_its_own(photos: Path) -> None:
    for part in folds(load_data(photos, 0.2, 0, False), 2, 0):
        own = set_aside(part, 0.2, 0)
        assert not set(part.val) & {*own.train, *own.val}
        assert {*own.train, *own.val} == set(part.train) and len(own.val)
        assert not set(own.scenes[own.train]) & set(own.scenes[own.val])
        others = replace(own, train=np.setdiff1d(np.arange(len(own.photos)), own.val))
        assert own.fingerprint not in (part.fingerprint, others.fingerprint)


def test_photos_that_may_leak_are_not_led_with(photos: Path) -> None:
    data = load_data(photos, 0.2, 0, False)
    scenes = data.scenes.copy()
    scenes[data.val[0]] = scenes[data.train[0]]
    leaking = replace(data, scenes=scenes)
    logits = np.eye(2)[data.labels[data.val]]
    spec = ModelSpec("x", "x", data.classes)
    assert len(of_validation(spec, logits, data, Recipe()).labels) == len(data.val)
    assert len(of_validation(spec, logits, leaking, Recipe()).labels) == len(data.val) - 1
    for recipe in (Recipe(patience=3), Recipe(release="best")):
        assert of_validation(spec, logits, data, recipe).chose


def test_only_the_experiments_of_others_release_a_chosen_epoch() -> None:
    chosen = {name for name in names() if load_recipe(name).epoch_is_chosen}
    assert chosen == {"300gecs", "cosine_warmup", "nasgor_goreng", "salt"}


def test_shots_of_one_plate_widen_the_interval() -> None:
    hits = np.arange(200) % 5 > 0
    alone, fours = np.arange(200), np.arange(200) // 4
    assert effective_number(hits, alone) == pytest.approx(200, rel=0.01)
    repeated = np.repeat(hits[:50], 4)
    assert effective_number(repeated, fours) == pytest.approx(50, rel=0.05)
    assert effective_number(np.ones(200, bool), fours) == 50 and effective_number(hits[:0], alone[:0]) == 0
    low, high = Share.of(repeated, fours).interval
    assert (low, high) == pytest.approx(Share.of(hits[:50]).interval, abs=0.01)
    ahead = np.repeat(np.arange(50) % 10 == 0, 4).astype(int)
    wide, narrow = paired_bootstrap(ahead, fours), paired_bootstrap(ahead)
    assert wide[1] - wide[0] > 1.7 * (narrow[1] - narrow[0])
    assert paired_p(ahead, fours) > 20 * paired_p(ahead, alone)


def test_several_p_values_are_adjusted_together() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


def test_the_reliability_diagram_adds_up_to_the_calibration_error() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 4)), rng.integers(0, 4, 500)
    bins = reliability(logits, labels)
    assert sum(each.photos for each in bins) == 500
    gaps = sum(each.photos * abs(each.confidence - each.accuracy) for each in bins) / 500
    assert gaps == pytest.approx(calibration_error(logits, labels))


def test_figures_are_plain_json_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    answers = HeldOut("test photos", np.eye(3)[[0, 1, 2]], np.array([0, 1, 1]), np.arange(3))  # none of the last class
    spec = settle(tmp_path, ModelSpec("x", "y", tuple("abc"), validation={"accuracy": 1}), answers, answers)
    values = json.loads(spec.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert values["validation"]["held_out"]["recall_intervals"][2] == [0, 1]
    assert values["validation"]["held_out"]["macro_f1"] == round((1 + 2 / 3) / 2, 4), "of the classes that photos show"
    assert ModelSpec.from_json(spec.to_json()).validation["held_out"]["photos"] == 3
    wrongs = {"interval": [1], "accuracy": "a", "macro_f1": "a", "recalls": [], "reliability": [1], "how": None}
    for name, wrong in wrongs.items():
        values["validation"]["held_out"] |= {name: wrong}
        with pytest.raises(BadModel, match="chose nothing cannot be read"):
            ModelSpec.from_json(json.dumps(values))
        values = json.loads(spec.to_json())


def test_what_a_spec_says_wrongly_is_as_if_it_said_nothing() -> None:
    for record in (None, {}, {"accuracy": 1}, {"reliability": [{}]}, 7):
        assert HeldOutFigures.from_record(record) is None


def test_a_test_share_beside_a_test_split_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    for side in ("train", "test"):
        (tmp_path / side).mkdir()
        for label in ("green", "red"):
            (tmp_path / side / label).symlink_to(photos / label)
    with pytest.raises(SajiError, match="test split of their own"):
        load_data(tmp_path, 0.2, 0, False, test_share=0.2)
    with pytest.raises(SajiError, match="test_share is 1"):
        Recipe(test_share=1)


def test_interrupted_folds_go_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = [*TINY, "--data", str(photos), "--run", "r", "--out", str(tmp_path), "--folds", "2"]
    made: list[Path] = []

    def once(architecture, part, recipe, into, *rest):  # the second fold is cut off
        if into.name == "1-of-2" and len(made) < 3:
            made.append(into)
            raise KeyboardInterrupt
        made.append(into)
        return train(architecture, part, recipe, into, *rest)

    monkeypatch.setattr("training.run.train.train", once)
    with pytest.raises(KeyboardInterrupt):
        train_command(common)
    train_command(common)
    assert [path.name for path in made] == ["resnet18", "0-of-2", "1-of-2", "1-of-2"]


def test_folds_that_cannot_be_are_told_before_training(photos: Path, tmp_path: Path) -> None:
    for k, words in (("1", "at least 2"), ("50", "too few for 50 folds")):
        with pytest.raises(SajiError, match=words):
            train_command([*TINY, "--data", str(photos), "--run", "r", "--out", str(tmp_path), "--folds", k])
    assert not list((tmp_path / "runs").rglob("checkpoint.pt"))


def test_a_test_split_that_comes_later_measures_a_finished_network(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    for label in ("green", "red"):
        shutil.copytree(photos / label, data / "train" / label)
    common = [*TINY, "--data", str(data), "--run", "r", "--out", str(tmp_path)]
    train_command(common)
    (data / "test" / "red").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(9).integers(0, 250, (40, 40, 3), np.uint8)).save(
        data / "test" / "red" / "new.png"
    )
    weights = load_checkpoint(tmp_path / "runs" / "r" / "resnet18" / "checkpoint.pt")[0].state_dict()
    train_command(common)
    model, spec = load_checkpoint(tmp_path / "runs" / "r" / "resnet18" / "checkpoint.pt")
    assert all((tensor == weights[name]).all() for name, tensor in model.state_dict().items())
    assert (spec.validation["held_out"]["how"], spec.validation["held_out"]["photos"]) == ("test photos", 1)


def test_the_order_of_rows_changes_nothing_and_a_mended_test_label_does(photos: Path, tmp_path: Path) -> None:
    """Of a finished network, which stays as it was trained."""
    data = shutil.copytree(photos, tmp_path / "data")
    rows = [
        (f"{label}/{number:02}.png", label, ("train", "val", "test")[number // 2 % 3])
        for label in ("green", "red")
        for number in range(12)
    ]

    def settled(rows: list[tuple[str, str, str]]) -> ModelSpec:
        lines = "".join(f"{','.join(row)}\n" for row in rows)
        (data / "list.csv").write_text(f"filename,label,split\n{lines}")
        train_command([*TINY, "--epochs", "3", "--data", str(data / "list.csv"), "--run", "r", "--out", str(tmp_path)])
        return spec_of(tmp_path, "r")

    first = settled(rows)
    weights = load_checkpoint(tmp_path / "runs" / "r" / "resnet18" / "checkpoint.pt")[0].state_dict()
    other = settled(rows[::-1])
    assert (other.temperature, other.rejection.threshold) == pytest.approx(
        (first.temperature, first.rejection.threshold), rel=1e-3
    )
    figures, again = first.validation["held_out"], other.validation["held_out"]
    assert again["calibration_error"] == pytest.approx(figures["calibration_error"], abs=1e-3)
    swapped = {"green": "red", "red": "green"}
    mended = settled([(file, swapped[label] if side == "test" else label, side) for file, label, side in rows[::-1]])
    assert mended.validation["held_out"]["accuracy"] == pytest.approx(1 - figures["accuracy"]) != figures["accuracy"]
    assert mended.temperature == pytest.approx(first.temperature, rel=1e-3)
    model = load_checkpoint(tmp_path / "runs" / "r" / "resnet18" / "checkpoint.pt")[0]
    assert all((tensor == weights[name]).all() for name, tensor in model.state_dict().items())


def test_answers_that_another_machine_rounds_otherwise_settle_nothing_anew() -> None:
    kept = HeldOut("test photos", np.float32([[1, 2], [30, 4]]), np.array([0, 1]), np.array([5, 6]))
    assert _same(kept, replace(kept, logits=kept.logits * np.float32(1 + 1e-6)))
    changes = {"logits": kept.logits[::-1], "labels": kept.labels[::-1], "scenes": kept.scenes + 1, "how": "3 folds"}
    assert not any(_same(kept, replace(kept, **{name: value})) for name, value in changes.items())
