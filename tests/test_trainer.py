"""The trainer as users of big machines expect it: resumed runs, shared work, averaged weights, teachers, freezing."""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import urllib.error
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch import nn

from runtime.environment import saji_version
from runtime.errors import BadModel, SajiError
from runtime.evaluation import ValidationSet
from runtime.files import alone
from training import __main__ as command_line
from training.__main__ import main
from training.launch import Launch, launch
from training.network import architectures
from training.network.classifier import load_checkpoint, save_checkpoint
from training.network.pretrained import load_weights
from training.outcome.report import write_report
from training.outcome.summary import read_outcome
from training.photos.dataset import Data, load_data
from training.photos.seen import require_unseen, sources
from training.recipe import Recipe, load_recipe
from training.run import fitting
from training.run.batches import EpochSampler, TrainPhotos, share_of
from training.run.fitting import Fitting, Teacher, distillation
from training.run.history import History, Kept
from training.run.resume import finished, state_file
from training.run.train import Place, _check_teacher, _processes, _trainer, train

TINY = Recipe(image_size=32, epochs=3, batch_size=16, warmup_epochs=1, precision="fp32", calibration_photos=20)


@pytest.fixture(scope="module")
def data(sample: Path) -> Data:
    return load_data(sample, 0.5, 0, look_alikes=False)


@pytest.fixture(scope="module")
def straight(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `TINY` with averaged weights, from its first epoch to its last without an interruption."""
    out = tmp_path_factory.mktemp("straight")
    train("resnet18", data, replace(TINY, ema_decay=0.8), out / "run", out / "cache", Place("cpu"))
    return out / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["weights"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_was_cut_off_goes_on_to_the_very_same_weights(
    straight: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    recipe, row = replace(TINY, ema_decay=0.8), History.on_train_epoch_end

    def power_cut(self: History, trainer, module) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("power cut")
        row(self, trainer, module)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(History, "on_train_epoch_end", power_cut)
        train("resnet18", data, recipe, tmp_path / "run", tmp_path / "cache", Place("cpu"))
    assert list((tmp_path / "run").iterdir()) == [state_file(tmp_path / "run", "resnet18", recipe, data.fingerprint)]
    torch.rand(5)  # what else the process drew must not matter
    train("resnet18", data, recipe, tmp_path / "run", tmp_path / "cache", Place("cpu"))
    assert "resuming after epoch 1" in capfd.readouterr().err
    assert same(weights(tmp_path / "run"), weights(straight))
    assert (tmp_path / "run" / "gradients.csv").read_text() == (straight / "gradients.csv").read_text()
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_another_recipe_does_not_resume(data: Data, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"epoch": 1, "identity": "another run"}, folder / "last.ckpt")
    assert not finished(folder, "resnet18", TINY, data.fingerprint)
    train("resnet18", data, replace(TINY, epochs=1), folder, tmp_path / "cache", Place("cpu"))
    told = " ".join(capfd.readouterr().err.split())
    assert "resuming" not in told and "last.ckpt keeps 2 epochs of a run by another saji, which cannot go on" in told
    assert not list(folder.glob("*.ckpt"))


def test_an_interrupted_run_is_not_up_to_date(straight: Path, data: Data) -> None:
    run = "resnet18", replace(TINY, ema_decay=0.8), data.fingerprint
    assert finished(straight, *run)
    for file in (state_file(straight, *run), straight / "last.ckpt"):  # which an earlier saji left
        file.touch()
        assert not finished(straight, *run)
        file.unlink()
    other = state_file(straight, "resnet18", TINY, data.fingerprint)
    other.touch()
    assert finished(straight, *run), "another run was begun in its place"
    other.unlink()


@pytest.mark.parametrize("name", ["validation.npz", "calibration.npz"])
def test_a_file_of_another_training_beside_a_checkpoint_is_told_and_trained_anew(
    name: str, straight: Path, data: Data
) -> None:
    whole = (straight / name).read_bytes()
    (straight / name).write_bytes(whole + b" ")  # as a training leaves it that was cut off before its checkpoint
    assert not finished(straight, "resnet18", replace(TINY, ema_decay=0.8), data.fingerprint)
    with pytest.raises(BadModel, match=f"{name} is of another training than"):
        read_outcome(straight)
    (straight / name).write_bytes(whole)


def test_nothing_is_written_before_the_photos_that_chose_nothing_are_asked_about(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> None:
        assert not [*(tmp_path / "run").glob("*.npz"), *(tmp_path / "run").glob("*.csv")]
        raise KeyboardInterrupt

    monkeypatch.setattr("training.run.train.of_test", asked)
    with pytest.raises(KeyboardInterrupt):
        train("resnet18", data, replace(TINY, epochs=1), tmp_path / "run", tmp_path / "cache", Place("cpu"))


@pytest.mark.parametrize(("release", "saved"), [("last", [1, 5]), ("best", [1, 2, 5])])
def test_the_validation_has_a_say_in_what_is_kept_only_where_it_chooses(
    release: str, saved: list[int], tmp_path: Path
) -> None:
    """For that is what Ctrl-C releases."""
    kept, epochs = Kept(tmp_path / "last-0.ckpt", release), []
    for epoch, accuracy in enumerate((0.5, 0.9, 0.6, 0.7, 0.8)):

        def save(path: Path, epoch: int = epoch) -> None:
            path.unlink(missing_ok=True)
            path.write_text(str(epoch + 1))
            epochs.append(epoch + 1)

        metrics = {"val_accuracy": accuracy, "val_loss": 1 - accuracy}
        alone = SimpleNamespace(broadcast=bool)
        state = {"callback_metrics": metrics, "current_epoch": epoch, "max_epochs": 5, "should_stop": False}
        kept.on_train_epoch_end(
            SimpleNamespace(**state, strategy=alone, save_checkpoint=save, is_global_zero=True), None
        )
    assert epochs == saved and kept.released.read_text() == {"last": "5", "best": "2"}[release]
    kept.remove()
    assert not list(tmp_path.iterdir())


def test_an_epoch_that_could_not_be_saved_is_none(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "last-0.ckpt", "last")
    trainer = SimpleNamespace(
        **{"callback_metrics": {"val_accuracy": 0.5, "val_loss": 1}, "current_epoch": 0, "max_epochs": 5},
        **{"should_stop": False, "strategy": SimpleNamespace(broadcast=bool)},
        save_checkpoint=Mock(side_effect=KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        kept.on_train_epoch_end(trainer, None)
    assert kept.last_epoch == 0


def test_what_was_cut_off_between_two_files_is_released_from_the_best_epoch(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "last-0.ckpt", "best")
    kept.best_epoch = kept.last_epoch = 3
    torch.save({"callbacks": {kept.state_key: kept.state_dict()}}, kept.last)
    kept.best.write_text("the best before")
    kept.rewind()
    assert kept.best.read_bytes() == kept.last.read_bytes()


def test_runs_that_were_stopped_in_one_place_lose_nothing_to_each_other(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    folder, first, second = tmp_path / "run", TINY, replace(TINY, learning_rate=0.01)
    monkeypatch.setattr("training.run.history.AT_STAKE", 1e9)

    def runs(recipe: Recipe, stop: int | None = None) -> str:
        begin = Fitting.on_train_epoch_start

        def pressed(self: Fitting) -> None:
            if self.current_epoch == stop:
                raise KeyboardInterrupt
            begin(self)

        with monkeypatch.context() as patch, nullcontext() if stop is None else pytest.raises(KeyboardInterrupt):
            patch.setattr(Fitting, "on_train_epoch_start", pressed)
            train("resnet18", data, recipe, folder, tmp_path / "cache", Place("cpu"))
        return " ".join(capfd.readouterr().err.split())

    runs(first, 2)
    _, spec = load_checkpoint(folder / "checkpoint.pt")
    assert spec.validation["epoch"] == spec.validation["last_epoch"]["epoch"] == 1, "kept by the clock"
    assert len((folder / "history.csv").read_text().splitlines()) == 2
    assert "keeps 1 epochs of a run with learning_rate 0.002, which goes on" in runs(second, 1)
    assert not finished(folder, "resnet18", first, data.fingerprint), "one epoch of three is there"
    assert "resuming after epoch 1" in runs(replace(first, workers=0, name="of another file"))
    assert finished(folder, "resnet18", first, data.fingerprint)
    assert "resuming after epoch 1" in runs(second, 1)


def rewritten(straight: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a finished run whose checkpoint has another recipe or other versions."""
    shutil.copytree(straight, folder)
    model, spec = load_checkpoint(folder / "checkpoint.pt")
    save_checkpoint(folder / "checkpoint.pt", model, replace(spec, **changes))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("changes", [{"learning_rate": 1e30}, {"patience": 1, "learning_rate": 1e30}], ids=str)
def test_weights_that_ran_away_in_the_last_step_replace_nothing(
    changes: dict[str, Any], straight: Path, data: Data, tmp_path: Path
) -> None:
    shutil.copytree(straight, tmp_path / "run")
    recipe = replace(TINY, epochs=1, warmup_epochs=0, batch_size=64, **changes)  # one step, whose loss is finite
    for _ in range(2):
        with pytest.raises(SajiError, match=r"NaN or infinite in epoch 1; .* 1e\+30, try: --learning-rate 0\.1$"):
            train("resnet18", data, recipe, tmp_path / "run", tmp_path / "cache", Place("cpu"))
        assert files(tmp_path / "run") == files(straight)


def test_a_state_of_an_earlier_saji_that_answers_with_nan_is_not_released(
    straight: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(straight, tmp_path / "run")
    with monkeypatch.context() as before:
        before.setattr(Fitting, "on_train_epoch_end", lambda self: None)
        with pytest.raises(SajiError, match=r"answers with NaN or infinite numbers; .*, try: --learning-rate"):
            recipe = replace(TINY, epochs=1, warmup_epochs=0, batch_size=64, learning_rate=1e30)
            train("resnet18", data, recipe, tmp_path / "run", tmp_path / "cache", Place("cpu"))
    assert files(tmp_path / "run") == files(straight)


def test_a_setting_that_is_new_at_its_default_does_not_train_again(straight: Path, data: Data, tmp_path: Path) -> None:
    recipe = replace(TINY, ema_decay=0.8)
    older = {name: value for name, value in asdict(recipe).items() if name not in ("mix", "head_dropout")}
    earlier = rewritten(straight, tmp_path / "earlier", recipe=older)
    assert finished(earlier, "resnet18", recipe, data.fingerprint)
    assert not finished(earlier, "resnet18", replace(recipe, mix=True), data.fingerprint)
    gone = rewritten(straight, tmp_path / "gone", recipe={**asdict(recipe), "cutout": 0.5})
    assert not finished(gone, "resnet18", recipe, data.fingerprint), "what cutout did is not known any more"


def test_a_run_of_the_last_version_is_up_to_date(straight: Path, data: Data, tmp_path: Path) -> None:
    earlier = tmp_path / "run" / "resnet18"
    shutil.copytree(straight, earlier)
    (earlier / "validation.npz").rename(earlier / "judging.npz")
    assert finished(earlier, "resnet18", replace(TINY, ema_decay=0.8), data.fingerprint)
    assert [outcome.network for outcome in write_report(earlier.parent)] == ["resnet18"]


def test_a_run_of_another_saji_is_told_and_not_trained_again(
    straight: Path, data: Data, tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    run, recipe = tmp_path / "runs" / "r", replace(TINY, ema_decay=0.8, seed=0)
    _, spec = load_checkpoint(straight / "checkpoint.pt")
    assert spec.versions["saji"] == saji_version()
    line = ["--data", str(sample), "--archs", "resnet18", "--run", "r", "--out", str(tmp_path)]
    for name, value in asdict(recipe).items():
        if value != getattr(load_recipe("scratch"), name):
            line += [f"--{name}", str(value)]
    monkeypatch.setattr("sys.argv", ["training", *line, "--name", recipe.name])
    monkeypatch.setattr("training.photos.dataset.load_data", lambda *_: data)
    for version, words in (("0.0.1", "trained by saji 0.0.1, this is"), (None, "an older saji"), (saji_version(), "")):
        versions = {**spec.versions, "saji": version} if version else {"torch": "2"}
        rewritten(straight, run / "resnet18", versions=versions)
        main()
        told = capsys.readouterr().err
        assert f"resnet18: up to date in {run / 'resnet18'}" in told and words in told
        assert words or "trained by" not in told
        shutil.rmtree(run)


def test_tensorboard_gets_loss_and_accuracy_of_each_epoch(data: Data, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'saji[tensorboard]'"
    )
    recipe = replace(TINY, epochs=1, warmup_epochs=0)
    train("resnet18", data, recipe, tmp_path / "run", tmp_path / "cache", Place("cpu", tensorboard=True))
    log = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    logged = {tag: [event.value for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    row = next(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    assert logged["val_accuracy"] == pytest.approx([float(row["val_accuracy"])], abs=1e-4)


def test_the_released_weights_are_the_averaged_ones_that_were_validated(straight: Path) -> None:
    _, spec = load_checkpoint(straight / "checkpoint.pt")
    facts = spec.validation
    assert facts["accuracy"] == pytest.approx(facts["best_epoch"]["accuracy"], abs=1e-4)
    rows = list(csv.DictReader((straight / "history.csv").open()))
    assert facts["best_epoch"]["accuracy"] == max(float(row["val_accuracy"]) for row in rows)
    assert facts["last_epoch"] == {"epoch": 3, "accuracy": float(rows[-1]["val_accuracy"])}


def test_gradients_have_a_row_per_layer_and_epoch(straight: Path) -> None:
    rows = list(csv.DictReader((straight / "gradients.csv").open()))
    layers = [name for name, p in architectures.build("resnet18", 5).named_parameters() if p.ndim > 1]
    assert [row["layer"] for row in rows] == 3 * layers
    assert all(float(row["norm"]) > 0 for row in rows)


def test_an_epoch_is_shared_without_a_photo_seen_twice() -> None:
    class Photos:
        def __len__(self) -> int:
            return 13

    def epoch(number: int) -> list[int]:
        seen = []
        for rank in (0, 1):
            sampler = EpochSampler(Photos(), 2, rank, seed=4)
            sampler.set_epoch(number)
            items = list(sampler)
            assert {epoch for epoch, _ in items} == {number}
            seen += [index for _, index in items]
        return seen

    assert set(epoch(0)) == set(range(13)) and len(epoch(0)) == 14  # one repeat evens the two out
    assert epoch(0) != epoch(1) and epoch(1) == epoch(1)


def test_augmentation_depends_on_epoch_and_photo_alone(data: Data, tmp_path: Path) -> None:
    photos = TrainPhotos(data, replace(TINY, augmentation="trivial"), tmp_path)
    torch.manual_seed(1)
    first, _ = photos[2, 5]
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))  # the caller's random numbers are left alone
    assert torch.equal(photos[2, 5][0], first) and not torch.equal(photos[3, 5][0], first)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"GROUP_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
SLURM = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train.sh", "SLURM_JOB_ID": "1", "SLURM_NODELIST": "n1"}
SLURM |= {"SLURM_NODEID": "0", "SLURM_LOCALID": "1", "SLURM_PROCID": "1"}
KUBEFLOW = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.77.0.10", "MASTER_PORT": "29400"}


@pytest.mark.parametrize("others", [SLURM, KUBEFLOW, {"RANK": ""}, {"LOCAL_RANK": "2", "NODE_RANK": "x"}])
def test_what_is_not_started_by_torchrun_trains_alone(tmp_path: Path, others: dict[str, str], monkeypatch) -> None:
    """One that shares nothing is the first, whom a second one that is started into the same folder has to find."""
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    assert launch() == Launch()
    trainer = _trainer(TINY, Place("cpu"), tmp_path, [])
    assert trainer.is_global_zero and trainer.world_size == 1
    assert _get_rank() is None, "which Lightning asks as soon as it is imported"
    with alone(tmp_path, "training into"), pytest.raises(SajiError, match="another process is training into"):
        command_line._alone(tmp_path).__enter__()


def test_the_first_of_those_that_share_the_work_is_known(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SAJI_SHARED", "1")
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert launch() == Launch(first=rank == "0")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert launch() == Launch(True, False, 2, 6)
    environment = _trainer(replace(TINY, batch_size=24), Place("cpu"), tmp_path, []).strategy.cluster_environment
    assert isinstance(environment, TorchElasticEnvironment) and environment.global_rank() == 3


@pytest.mark.parametrize(
    "wrong", [{"LOCAL_WORLD_SIZE": None}, {"RANK": ""}, {"RANK": "6"}, {"LOCAL_WORLD_SIZE": "4"}, {"MASTER_PORT": "x"}]
)
def test_half_of_what_torchrun_sets_is_refused(wrong: dict[str, str | None], monkeypatch) -> None:
    for name, value in {**TORCHRUN, **wrong}.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    said = r"torchrun started this, but RANK=.* is not what it sets; start it with torchrun, or unset TORCHELASTIC"
    monkeypatch.setattr("sys.argv", ["training", "--archs", "resnet18"])
    with pytest.raises(SajiError, match=said):
        main()


def test_one_process_a_device_or_as_many_as_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _processes("cpu", 0, TINY) == {"devices": 1, "strategy": "auto"}
    assert _processes("cpu", 2, TINY)["devices"] == 2
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    placed = _processes("cpu", 0, replace(TINY, batch_size=24))
    assert (placed["devices"], placed["num_nodes"]) == (2, 3)
    with pytest.raises(SajiError, match="16 photos cannot be shared by 6 processes"):
        _processes("cpu", 0, TINY)


def test_processes_share_the_batch_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [share_of(32, n) for n in (1, 2, 4, 32)] == [32, 16, 8, 1]
    with pytest.raises(
        SajiError, match=r"shared by 3 processes; type --devices with one of 1, 2, 4, or --batch-size 33$"
    ):
        share_of(32, 3)
    for there, taken in ((1, 1), (2, 2), (3, 2), (6, 4), (8, 8)):  # of 16 photos
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        assert _processes("cuda", 0, TINY)["devices"] == taken


def test_frozen_epochs_leave_all_but_the_head_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Fitting("resnet18", 3, replace(TINY, freeze_epochs=1, channels_last=False))
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    module.on_train_epoch_start()
    module.log = lambda *args, **kwargs: None
    loss = module.training_step(
        (torch.randint(0, 255, (4, 32, 32, 3), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])), 0
    )
    loss.backward()
    assert [name for name, p in module.model.named_parameters() if p.grad is not None] == [
        "network.fc.weight",
        "network.fc.bias",
    ]
    assert same(before, module.model.state_dict())  # not even the batch norms' statistics moved
    monkeypatch.setattr(Fitting, "current_epoch", 1)
    module.on_train_epoch_start()
    assert all(p.requires_grad for p in module.model.parameters()) and module.model.training


def test_body_and_head_learn_at_their_own_rates() -> None:
    module = Fitting("resnet18", 3, replace(TINY, learning_rate=0.1, backbone_rate=0.01, weight_decay=0.5))
    rates = [(group["lr"], group.get("weight_decay")) for group in module._groups()]
    assert rates == [(0.001, None), (0.001, 0.0), (0.1, None), (0.1, 0.0)]
    parameters = [id(p) for group in module._groups() for p in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(module.model.parameters()))


def test_distillation_pulls_towards_the_teacher() -> None:
    taught = torch.tensor([[3.0, 0.0, -1.0]])
    assert distillation(taught + 7, taught, 2.0) == pytest.approx(0, abs=1e-6)  # a constant changes no answer
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = distillation(logits, taught, 2.0)
    loss.backward()
    p, q = torch.softmax(taught / 2, 1), torch.full((1, 3), 1 / 3)
    assert loss.item() == pytest.approx(4 * float((p * (p / q).log()).sum()), rel=1e-5)
    assert logits.grad[0, 0] < 0 < logits.grad[0, 2]


def test_a_teacher_sees_the_same_pixels_at_its_own_size_and_is_not_trained(run: Path) -> None:
    teacher = Teacher(run / "checkpoint.pt")
    images = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected, _ = teacher.model(images)
    assert torch.equal(teacher(fitting.planes(images)), expected)
    assert teacher(torch.zeros(2, 3, 48, 48)).shape == (2, 5)
    pupil = Fitting("resnet18", 5, replace(TINY, teacher=str(run / "checkpoint.pt")))
    assert len(list(pupil.parameters())) == len(list(pupil.model.parameters()))
    assert pupil.state_dict().keys() == {f"model.{name}" for name in pupil.model.state_dict()}


def test_a_teacher_of_another_split_is_refused(run: Path, data: Data, tmp_path: Path) -> None:
    recipe = replace(TINY, teacher=str(run / "checkpoint.pt"))
    pupil = Fitting("resnet18", 5, recipe)
    _check_teacher(pupil, data)
    require_unseen(data, sources(recipe))
    swapped = replace(data, train=data.val, val=data.train)
    with pytest.raises(SajiError, match=r"40 of 40 validation photos were seen by .*another set or split"):
        train("resnet18", swapped, recipe, tmp_path / "run", tmp_path / "cache", Place("cpu"))
    with pytest.raises(SajiError, match="knows bakso"):
        _check_teacher(pupil, replace(data, classes=("a", "b")))


class Evil:
    def __reduce__(self):
        return (print, ("code in a weights file was executed",))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_of_a_file_fill_all_but_the_head(tmp_path: Path, suffix: str) -> None:
    theirs = timm.create_model("resnet18", num_classes=1000)
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}}, file)
    else:
        from safetensors.torch import save_file

        save_file(theirs.state_dict(), file)
    ours = architectures.build("resnet18", 5)
    head = ours.fc.weight.clone()
    load_weights(ours, ours.fc, file)
    assert torch.equal(ours.layer3[1].conv2.weight, theirs.layer3[1].conv2.weight)
    assert torch.equal(ours.bn1.running_var, theirs.bn1.running_var) and torch.equal(ours.fc.weight, head)


def test_weights_of_our_own_checkpoint_fill_all_but_the_head(run: Path) -> None:
    theirs, _ = load_checkpoint(run / "checkpoint.pt")
    ours = architectures.build("resnet18", 7)
    head = ours.fc.weight.clone()
    load_weights(ours, ours.fc, run / "checkpoint.pt")
    assert torch.equal(ours.conv1.weight, theirs.network.conv1.weight) and torch.equal(ours.fc.weight, head)


def test_weights_of_timm_fit_torchvisions_network_of_other_names(tmp_path: Path) -> None:
    theirs = timm.create_model("efficientnet_b0", num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "b0.pth")
    ours = architectures.build("efficientnet_b0", 5).eval()
    load_weights(ours, architectures.head(ours), tmp_path / "b0.pth")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours.features(x), theirs.forward_features(x), atol=1e-4)


@pytest.mark.parametrize("what", ["missing", "code", "another network", "no weights"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, what: str, capfd: pytest.CaptureFixture) -> None:
    file = tmp_path / "weights.pt"
    if what == "code":
        torch.save(Evil(), file)
    elif what == "another network":
        torch.save(architectures.build("mobilenet_v3_small", 5).state_dict(), file)
    elif what == "no weights":
        torch.save({"epoch": 3}, file)
    ours = architectures.build("resnet18", 5)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(SajiError, match=r"weights\.pt") as error:
        load_weights(ours, ours.fc, file)
    assert "\n" not in str(error.value) and "executed" not in capfd.readouterr().out
    assert same(before, ours.state_dict())


def written(file: Path, weights: dict[Any, torch.Tensor], front: str = "") -> Path:
    torch.save({front + name if front else name: tensor for name, tensor in weights.items()}, file)
    return file


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [("resnet18", "resnet34"), ("plain34", "resnet34"), ("convnext_tiny", "convnext_small"), ("swin_t", "swin_s")],
)
def test_weights_of_a_larger_network_are_refused(smaller: str, larger: str, tmp_path: Path) -> None:
    networks = [architectures.without_numbers(name, 5, TINY) for name in (smaller, larger)]
    shapes = networks[1].state_dict()
    zeros = {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in shapes.items()}
    file = written(tmp_path / "weights.pt", zeros)
    with pytest.raises(SajiError, match=r"weights\.pt is of another network: it has \d+ tensors more"):
        load_weights(networks[0], architectures.head(networks[0]), file)
    load_weights(networks[1], architectures.head(networks[1]), file)


HEADS = {
    "none": {},
    "one of three layers": {"fc.0.weight": (64, 512), "fc.0.bias": (64,), "fc.3.weight": (9, 64), "fc.3.bias": (9,)},
    "one of another name": {"classifier.weight": (9, 512), "classifier.bias": (9,)},
    "auxiliary ones": {"fc.weight": (9, 512), "aux1.conv.weight": (8, 64, 1, 1), "AuxLogits.fc.weight": (9, 768)},
}


@pytest.mark.parametrize("head", HEADS)
def test_whatever_head_weights_come_with(head: str, tmp_path: Path) -> None:
    ours, theirs = (architectures.build("resnet18", classes) for classes in (5, 9))
    body = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")}
    more = {name: torch.zeros(shape) for name, shape in HEADS[head].items()}
    load_weights(ours, ours.fc, written(tmp_path / "weights.pt", body | more))
    assert torch.equal(ours.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


WRITERS = {  # what stands in front of the network's own names, and what beside it comes first
    "Lightning, with a loss that has weights": ("model.", {"loss.weight": torch.ones(9)}),
    "saji, of a run that was interrupted": ("model.network.", {"model.normalise.mean": torch.zeros(1, 3, 1, 1)}),
    "torch.compile": ("_orig_mod.", {}),
    "a framework of its own": ("module.backbone.", {"queue": torch.zeros(8, 64)}),
}


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_stands_in_front_of_the_networks_names(writer: str, by_name: bool, tmp_path: Path) -> None:
    ours, theirs = (architectures.build("resnet18", classes) for classes in (5, 9))
    front, beside = WRITERS[writer]
    weights = beside | {front + name: tensor for name, tensor in theirs.state_dict().items()}
    sorted_as_safetensors = dict(sorted(weights.items())) if by_name else weights
    load_weights(ours, ours.fc, written(tmp_path / "weights.pt", sorted_as_safetensors))
    assert torch.equal(ours.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_a_file_with_two_networks_is_not_taken_by_its_order(tmp_path: Path) -> None:
    ours = architectures.build("resnet18", 5)
    one = ours.state_dict()
    both = {f"{front}.{name}": tensor for front in ("ema", "model") for name, tensor in one.items()}
    with pytest.raises(SajiError, match=r"2 times, as ema\.conv1\.weight and model\.conv1\.weight; save the one"):
        load_weights(ours, ours.fc, written(tmp_path / "weights.pt", both))


def test_the_order_of_a_file_that_is_sorted_by_name_is_no_order_of_layers(tmp_path: Path) -> None:
    """As safetensors are: of a batch norm all four tensors have one shape, and each took another's numbers."""
    network, theirs = (architectures.build("resnet18", 5) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in before))
    parts = ((name.rpartition("."), tensor) for name, tensor in theirs.state_dict().items())
    other = {f"{layers.index(layer):03}.{kind}": tensor for (layer, _, kind), tensor in parts}
    with pytest.raises(SajiError, match="does not fit the network"):
        load_weights(network, network.fc, written(tmp_path / "weights.pt", dict(sorted(other.items()))))
    assert same(before, network.state_dict())
    load_weights(network, network.fc, written(tmp_path / "weights.pt", other))  # in the order of the layers
    assert torch.equal(network.layer4[1].bn2.running_var, theirs.layer4[1].bn2.running_var)


class OfTheirs:
    """A class of the script that wrote a file."""


@pytest.mark.parametrize(
    "beside",
    [argparse.Namespace(lr=0.1, out=Path("runs"), device=torch.device("cpu")), np.float64(0.9), Path("photos")],
    ids=["arguments", "a number of numpy", "a path"],
)
def test_what_training_scripts_keep_beside_weights_is_no_code(beside: Any, tmp_path: Path) -> None:
    network, theirs = (architectures.build("resnet18", classes) for classes in (5, 9))
    content = {"model": theirs.state_dict(), "beside": beside}
    load_weights(network, network.fc, written(tmp_path / "weights.pt", content))
    assert torch.equal(network.conv1.weight, theirs.conv1.weight)


def test_code_in_a_file_of_weights_is_named_with_what_to_save_instead(tmp_path: Path) -> None:
    network, file = architectures.build("resnet18", 5), tmp_path / "weights.pt"
    for content, said in (
        (torch.nn.Linear(2, 2), r"holds code \(torch.nn.modules.linear.Linear\) .* torch.save\(model.state_dict\(\), "),
        (
            [OfTheirs()],
            r"holds code \(.*OfTheirs\) and was refused; save the weights alone by the program that wrote it",
        ),
        ({"epoch": 3, "best": 0.5}, "no weights by name but epoch, best; save"),
    ):
        torch.save(content, file)
        with pytest.raises(SajiError, match=said):
            load_weights(network, network.fc, file)


@pytest.mark.parametrize("name", ["W.SAFETENSORS", "pytorch_model.bin"])
def test_safetensors_are_known_whatever_they_are_called(name: str, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    network, theirs = (architectures.build("resnet18", classes) for classes in (5, 9))
    save_file(theirs.state_dict(), tmp_path / name)
    load_weights(network, network.fc, tmp_path / name)
    assert torch.equal(network.conv1.weight, theirs.conv1.weight)


@pytest.mark.parametrize("how", [{"pretrained": True}, {"weights": "w.pt"}])
def test_a_network_of_two_heads_takes_no_weights_of_others(how: dict[str, Any], tmp_path: Path) -> None:
    """Only one of the heads would be made anew for the classes."""
    pytest.importorskip("timm")
    with pytest.raises(SajiError, match="timm-levit_128s answers by 2 heads"):
        Fitting("timm-levit_128s", 3, replace(TINY, image_size=224, **how))
    for name in ("resnet18", "inception_v3", "squeezenet1_0", "swin_t"):
        architectures.require_one_head(name, TINY)


NO_WEIGHTS = {
    "names that are numbers": (lambda name: {0: torch.zeros(1)}, "holds no weights by name"),
    "shapes alone": (lambda name: {name: torch.empty(512, device="meta")}, "on the device meta"),
    "sparse tensors": (lambda name: {name: torch.ones(512).to_sparse()}, "torch.sparse_coo"),
    "complex numbers": (lambda name: {name: torch.ones(512, dtype=torch.complex64)}, "as torch.complex64"),
    "whole numbers": (lambda name: {name: torch.ones(512, dtype=torch.uint8)}, "as torch.uint8"),
    "NaN": (lambda name: {name: torch.full((512,), torch.nan)}, "NaN or infinite numbers in layer4.1.bn2.bias"),
    "more than float32 holds": (lambda name: {name: torch.full((512,), 1e300, dtype=torch.float64)}, "infinite"),
}


@pytest.mark.parametrize("what", NO_WEIGHTS)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_tensors_that_are_no_weights_are_one_sentence(what: str, tmp_path: Path) -> None:
    ours = architectures.build("resnet18", 5)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    make, why = NO_WEIGHTS[what]
    given = {name: torch.zeros_like(tensor) for name, tensor in before.items()} | make("layer4.1.bn2.bias")
    with pytest.raises(SajiError, match=rf"weights\.pt .*{why}") as error:
        load_weights(ours, ours.fc, written(tmp_path / "weights.pt", given))
    assert "\n" not in str(error.value) and same(before, ours.state_dict())


def test_weights_bring_the_statistics_of_the_pixels_that_they_were_trained_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    content["weights"] |= {"normalise.mean": torch.full((1, 3, 1, 1), 51.0)}
    torch.save(content, tmp_path / "checkpoint.pt")
    started = Fitting("resnet18", 5, replace(TINY, weights=str(tmp_path / "checkpoint.pt")))
    assert started.model.normalise.mean.flatten().tolist() == [51, 51, 51]
    assert torch.equal(started.model.normalise.std, content["weights"]["normalise.std"])
    assert "mean 0.200/0.200/0.200" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["googlenet", "shufflenet_v2_x0_5", "efficientnet_v2_l", "plain34"])
def test_weights_that_name_no_statistics_have_those_of_the_published_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    network = architectures.without_numbers(name, 5, TINY)
    monkeypatch.setattr(architectures, "build", lambda *_: network)
    zeros = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in network.state_dict().items()}
    file = written(tmp_path / "weights.pt", zeros)
    halves = name in ("googlenet", "efficientnet_v2_l")
    mean = Fitting(name, 5, replace(TINY, weights=str(file), channels_last=False)).model.normalise.mean
    assert torch.allclose(mean.flatten() / 255, torch.tensor((0.5, 0.5, 0.5) if halves else (0.485, 0.456, 0.406)))
    assert f"as is usual for {name}; the file does not say" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["timm/resnet18", "timm-resnet18", "timm/resnet18.tv_in1k", "resnet18"])
def test_a_network_is_found_however_its_name_is_typed(typed: str) -> None:
    assert architectures.check_name(typed) == typed.replace("/", "-")
    assert architectures.find(typed).mean == architectures.IMAGENET_MEAN


@pytest.mark.parametrize("typed", ["timm/resnet18.typo_in1k", "resnet18.tv_in1k", "timm-resnet18."])
def test_a_set_of_weights_that_is_none_is_told_as_such(typed: str) -> None:
    with pytest.raises(SajiError, match=r"there is no architecture .*; did you mean (timm-)?resnet18"):
        architectures.check_name(typed)


def test_without_a_network_pretrained_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(SajiError, match=r"resnet18 cannot be downloaded .* --no-pretrained --weights FILE"):
        architectures.build("resnet18", 5, pretrained=True)
    with pytest.raises(SajiError, match="nobody publishes weights of plain34"):
        architectures.build("plain34", 5, pretrained=True)


@pytest.mark.parametrize(
    ("dropout", "norm", "layers"),
    [
        (0.0, "none", []),
        (0.3, "none", [nn.Dropout]),
        (0.3, "before_dropout", [nn.BatchNorm1d, nn.Dropout]),
        (0.3, "after_dropout", [nn.Dropout, nn.BatchNorm1d]),
    ],
)
def test_the_head_of_se_resnet34(dropout: float, norm: str, layers: list) -> None:
    recipe = replace(TINY, head_dropout=dropout, head_batch_norm=norm)
    fc = architectures.build("se_resnet34", 5, recipe).fc
    assert [type(layer) for layer in (fc if layers else [fc])] == [*layers, nn.Linear]


# The long ones: real kills, real processes


def command(out: Path, *arguments: str) -> list[str]:
    tiny = ["--archs", "resnet18", "--epochs", "3", "--image-size", "32", "--batch-size", "32", "--device", "cpu"]
    return [sys.executable, "-m", "training", *tiny, "--out", str(out), *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--workers", "2", "--ema-decay", "0.9", "--accumulate", "2", "--mix"]])
def test_a_killed_process_leaves_what_the_next_one_needs(tmp_path: Path, more: list[str]) -> None:
    """bf16 where the processor has it, as by default."""
    subprocess.run(command(tmp_path / "straight", *more), cwd=ROOT, check=True, capture_output=True)
    with subprocess.Popen(command(tmp_path / "cut", *more), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "epoch 2/3" in line:
                process.kill()
                break
    again = subprocess.run(command(tmp_path / "cut", *more), cwd=ROOT, check=True, capture_output=True, text=True)
    assert "resuming after epoch" in again.stderr
    folders = [tmp_path / name / "runs" / "sample" / "resnet18" for name in ("straight", "cut")]
    assert same(*(weights(folder) for folder in folders))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["--devices", "torchrun"])
def test_two_processes_train_together(tmp_path: Path, launcher: str) -> None:
    line = command(tmp_path, "--precision", "fp32")
    if launcher == "torchrun":
        line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *line[1:]]
    else:
        line += ["--devices", "2"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("validation photos at epoch") == 1 and done.stderr.count("epoch 3/3") == 1  # one writer
    folder = tmp_path / "runs" / "sample" / "resnet18"
    _, spec = load_checkpoint(folder / "checkpoint.pt")
    rows = list(csv.DictReader((folder / "history.csv").open()))
    # exact: what two processes measured on their halves is what one measures on all photos
    judged = len(ValidationSet.load(folder / "validation.npz").labels)
    last = float(rows[-1]["val_accuracy"])
    assert spec.validation["accuracy"] == pytest.approx(last, abs=1e-4) and judged == spec.validation["photos"]
    assert np.isfinite([float(row["train_loss"]) for row in rows]).all()


STEPS = """
import os

from training.__main__ import main
from training.run.fitting import Fitting

def count(self):
    if self.trainer.is_global_zero:
        with open(os.environ["STEPS"], "a") as file:  # what libraries print goes into a log
            file.write(f"{self.trainer.global_step}\\n")

Fitting.on_train_end = count
if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does_in_as_many_steps(tmp_path: Path) -> None:
    """But for the statistics of batch norm, which processes on CPUs do not share."""
    (tmp_path / "count.py").write_text(STEPS)
    steps, rows = {}, {}
    for devices in ("1", "2"):
        line = command(tmp_path / devices, "--precision", "fp32", "--devices", devices, "--learning-rate", "5e-4")
        line = [sys.executable, str(tmp_path / "count.py"), *line[3:]]
        counted = tmp_path / f"steps of {devices}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "STEPS": str(counted)}
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        steps[devices] = counted.read_text().splitlines()
        history = tmp_path / devices / "runs" / "sample" / "resnet18" / "history.csv"
        rows[devices] = list(csv.DictReader(history.open()))
    assert steps["1"] == steps["2"] and len(steps["1"]) == 1
    one, two = (np.array([[float(row["train_loss"]), float(row["learning_rate"])] for row in rows[n]]) for n in "12")
    assert (one[:, 1] == two[:, 1]).all() and np.abs(one[:, 0] - two[:, 0]).max() < 0.1 * one[:, 0].max()


@pytest.mark.slow
def test_a_batch_that_processes_cannot_share_is_refused_before_any_starts(tmp_path: Path) -> None:
    line = command(tmp_path, "--precision", "fp32", "--devices", "3")
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("saji: a batch of 32 photos cannot be shared by 3 processes") == 1
