"""Layer by layer: an INT8 file with a fault that logits do not show fails; what gives no answer has its layer named."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.faults import broken, constant, set_constant
from export.layers import faults_of, first_module_without_answer, first_without_answer, with_layer
from export.model import Checkpoint, write_model
from export.precision import quantise
from export.settings import Settings
from lab.faults import FAINT_FAULTS
from runtime.candidate import Candidate, check_candidate
from runtime.errors import GateFailed
from runtime.evaluation import ValidationSet
from runtime.receipt import Receipt
from training.network.classifier import PhotoClassifier


@pytest.fixture(scope="module")
def photos(run: Path) -> np.ndarray:
    return ValidationSet.load(run / "calibration.npz").images


def found(model: Path, changed: onnx.ModelProto, photos: np.ndarray, folder: Path) -> tuple[str, ...]:
    onnx.save_model(changed, folder / "broken.onnx")
    return faults_of(model / "model.onnx", folder / "broken.onnx", photos)


def test_a_healthy_int8_file_has_no_fault_in_any_layer(model: Path, photos: np.ndarray) -> None:
    assert faults_of(model / "model.onnx", model / "model.int8.onnx", photos) == ()


@pytest.mark.slow
def test_weights_of_7_bits_are_no_fault(model: Path, photos: np.ndarray, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.onnx"
    quantise(model / "model.onnx", photos, Receipt.read(model).spec, fixed, recover=False, overflow_fix=True)
    assert faults_of(model / "model.onnx", fixed, photos) == ()


@pytest.mark.parametrize("fault", FAINT_FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_one_layer_is_found_and_its_layer_named(
    fault: object, model: Path, photos: np.ndarray, tmp_path: Path
) -> None:
    right = onnx.load(model / "model.int8.onnx")
    wrong = broken(right, fault)
    changed = {a.name for a, b in zip(right.graph.initializer, wrong.graph.initializer, strict=True) if a != b}
    through = {name for node in right.graph.node if changed & set(node.input) for name in (*node.output, *node.input)}
    layers = [node.name for node in right.graph.node if through & set(node.input)]
    worst, *_ = found(model, wrong, photos, tmp_path)
    assert any(name in worst for name in (*layers, *through)), worst


def test_an_activation_of_too_few_steps_is_found(model: Path, photos: np.ndarray, tmp_path: Path) -> None:
    """A step ten times as coarse explains its own error; the range does not explain the step."""
    graph = onnx.load(model / "model.int8.onnx")
    scale = [node.input[1] for node in graph.graph.node if node.op_type == "QuantizeLinear"][3]
    set_constant(graph, scale, 10 * constant(graph, scale))
    assert found(model, graph, photos, tmp_path)


def test_another_networks_int8_file_is_told_from_a_faulty_one(model: Path, photos: np.ndarray, tmp_path: Path) -> None:
    graph = onnx.load(model / "model.int8.onnx")
    first = next(node for node in graph.graph.node if node.op_type == "Relu").output[0]
    for node in graph.graph.node:
        node.input[:] = ["elsewhere" if name == first else name for name in node.input]
        node.output[:] = ["elsewhere" if name == first else name for name in node.output]
    assert found(model, graph, photos, tmp_path) == ("it is of another network: the FP32 graph has no elsewhere",)


def test_a_faulty_file_fails_on_whatever_engine_and_machine_checks_it(model: Path) -> None:
    receipt, validation = Receipt.read(model), ValidationSet.load(model / "validation.npz")
    candidate = next(c for c in receipt.candidates if (c.backend, c.precision) == ("ort-cpu", "fp32"))
    assert check_candidate(candidate, model, validation, receipt.spec).verdict != "fail"
    faulty = Candidate.from_values(json.loads(json.dumps(asdict(replace(candidate, faults=("layer a differs",))))))
    found = check_candidate(faulty, model, validation, receipt.spec)
    assert found.verdict == "fail" and "layer a differs" in found.reasons


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0], ids=["NaN", "infinity", "the same"])
def test_the_first_layer_without_an_answer_is_named(value: float, model: Path, tmp_path: Path) -> None:
    graph, images = onnx.load(model / "model.onnx"), ValidationSet.load(model / "validation.npz").images
    assert first_without_answer(graph, images) == ""
    layer = [node for node in graph.graph.node if node.op_type == "Conv"][4]
    for name in layer.input[1:]:
        set_constant(graph, name, np.full_like(constant(graph, name), value))
    onnx.save_model(graph, tmp_path / "broken.onnx")
    candidate = Candidate("resnet18", "broken.onnx", "ort-cpu", "fp32", verdict="fail", reasons=("no answer",))
    assert layer.name in with_layer(candidate, tmp_path, images).reasons[-1]


@pytest.mark.parametrize("value", [float("nan"), 0.0], ids=["NaN", "the same"])
def test_a_checkpoint_without_an_answer_is_refused_and_its_layer_named(value: float, run: Path, tmp_path: Path) -> None:
    source = Checkpoint(run)
    silenced(source.model, value)
    with pytest.raises(GateFailed, match=r"first layer without an answer is network\.fc"):
        write_model(source, tmp_path / "model", Settings(), lambda line: None)
    assert not (tmp_path / "model").exists()


def silenced(model: PhotoClassifier, value: float) -> None:
    with torch.no_grad():
        model.network.fc.weight.fill_(value)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    assert first_module_without_answer(model, images) == "network.fc"
