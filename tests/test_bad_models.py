"""Model files that are damaged, foreign or cannot be written: one sentence, and what was there before stays."""

import errno
import io
import itertools
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

import runtime
from export import __main__ as exporting
from export.graph import export_pt2, save_onnx
from export.model import Checkpoint, write_model
from export.settings import Settings
from runtime.backends import open_backend
from runtime.command_line import exit_with_one_sentence
from runtime.errors import BadModel
from runtime.evaluation import ValidationSet
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec
from training.network.classifier import load_checkpoint, save_checkpoint

SPEC = ModelSpec("x", "resnet18", ("a", "b"), Geometry.for_size(8))


def onnx_file(path: Path, photos: str = "uint8[batch, 8, 8, 3] images", rows: str = "batch", spec: str = "") -> Path:
    """A file of one layer, by default within the contract: uint8 photos in, two logits out, our spec."""
    name = photos.rpartition(" ")[2]
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 18]>
        sums ({photos}) => (float[{rows}, 2] logits)
        {{
            pixels = Cast <to = 1> ({name})
            flat = Flatten (pixels)
            logits = MatMul (flat, weights)
        }}""")
    weights = np.linspace(-1, 1, 384, dtype=np.float32).reshape(192, 2)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    onnx.helper.set_model_props(model, {"spec": spec or SPEC.to_json()})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("backend", ["ort-cpu", "openvino"])
@pytest.mark.parametrize(
    ("photos", "rows"),
    [
        ("uint8[1, 8, 8, 3] images", "1"),
        ("float[batch, 8, 8, 3] images", "batch"),
        ("uint8[batch, 3, 8, 8] images", "batch"),
        ("uint8[batch, 8, 8, 3] pixels_in", "batch"),
    ],
)
def test_a_file_outside_the_contract_is_refused_with_what_it_takes(
    photos: str, rows: str, backend: str, tmp_path: Path
) -> None:
    name = photos.rpartition(" ")[2]
    with pytest.raises(BadModel, match=rf"takes {name} tensor\(.*, a saji model images uint8 \[batch, S, S, 3\]"):
        runtime.load(onnx_file(tmp_path / "model.onnx", photos, rows), backend)


def test_the_same_file_within_the_contract_opens(tmp_path: Path) -> None:
    with runtime.load(onnx_file(tmp_path / "model.onnx")) as classifier:
        assert classifier.logits(np.zeros((3, 8, 8, 3), np.uint8)).shape == (3, 2)


@pytest.mark.parametrize("name", ["model", "a\tb"])
def test_a_spec_of_another_version_is_refused(name: str, tmp_path: Path) -> None:
    newer = replace(SPEC, schema_version=99).to_json()
    with pytest.raises(BadModel, match=r"^[^ ]*model\.onnx has spec version 99, this saji reads 1"):
        runtime.load(onnx_file(tmp_path / "model.onnx", spec=newer).rename(tmp_path / f"{name}model.onnx"))


@pytest.mark.parametrize("location", ["gone.bin", "../outside.bin"])
def test_weights_outside_the_file_that_are_missing_or_elsewhere_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    model = onnx.load(onnx_file(folder / "model.onnx"))
    (tmp_path / "outside.bin").write_bytes(model.graph.initializer[0].raw_data)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadModel, match="is no ONNX model that opens") as error:
        runtime.load(folder / "model.onnx")
    with pytest.raises(BadModel, match="cannot be opened by ONNX Runtime"):
        open_backend("ort-cpu", folder / "model.onnx", "fp32")
    assert "\n" not in str(error.value)


def test_a_judging_set_of_other_classes_is_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", *load_checkpoint(run / "checkpoint.pt"))  # as earlier versions wrote it
    validation = ValidationSet.load(run / "validation.npz")
    replace(validation, labels=validation.labels + 3).save(tmp_path / "validation.npz")
    with pytest.raises(BadModel, match=r"validation\.npz is not of checkpoint\.pt \(32 px, 5 classes\)"):
        write_model(Checkpoint(tmp_path), tmp_path / "models" / "resnet18", Settings(), lambda line: None)
    assert not (tmp_path / "models").exists()


@contextmanager
def little_room(most: int) -> Iterator[None]:
    """No file may grow beyond `most` bytes: the system refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Sums(torch.nn.Module):
    """uint8 photos → two logits; 192 × 2 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(192, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.float().flatten(1))


WRITERS: dict[str, Callable[[Path], object]] = {
    "checkpoint.pt": lambda path: save_checkpoint(path, Sums(), SPEC),  # type: ignore[arg-type]
    "model.pt2": lambda path: export_pt2(Sums(), SPEC, path),
    "model.onnx": lambda path: save_onnx(onnx.load(onnx_file(path.parent.parent / "m.onnx")), SPEC, path),
    "validation.npz": lambda path: ValidationSet(np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9, int), ("x",) * 9).save(
        path
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_earlier_file_and_names_the_cause(name: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    WRITERS[name](path)
    before = path.read_bytes()
    assert len(before) > 1000

    def write() -> None:
        with little_room(1000):
            WRITERS[name](path)

    with pytest.raises(SystemExit) as exit_:
        exit_with_one_sentence(write)
    assert exit_.value.code == 2 and "check the path, its permissions and free space" in capsys.readouterr().err
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [name]


class FailingAt(io.FileIO):
    """A file to write to whose write of that number, from 0, fails as a broken disk does."""

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(path, "w")
        self.left = number

    def write(self, content: Any) -> int:
        self.left -= 1
        if self.left == -1:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(content)


def test_a_disk_that_fails_at_any_write_of_a_checkpoint_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.network import classifier

    for number in itertools.count():
        monkeypatch.setattr(classifier, "open", lambda path, mode, at=number: FailingAt(path, at), raising=False)
        try:
            save_checkpoint(tmp_path / "checkpoint.pt", Sums(), SPEC)  # type: ignore[arg-type]
        except OSError as error:
            assert error.errno == errno.EIO and not [*tmp_path.iterdir()]
        else:
            break
    assert number > 5


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_an_output_folder_that_cannot_be_written_is_one_sentence(
    code: int, model: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    before = Receipt.read(model)

    def refuse(*args: object, **options: object) -> None:
        raise OSError(code, "the system's words", str(model.parent))

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr("sys.argv", ["export", "--out", str(run.parents[2]), "--force"])
    with pytest.raises(SystemExit) as exit_:
        exit_with_one_sentence(exporting.main)
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and f"saji: the system's words ({model.parent}); check the path" in said
    assert Receipt.read(model) == before and "Traceback" not in said
