"""Familiarity: a second output that tells strangers apart, the same in every file, judged by the gate, and followed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import runtime
from export.geometry import open_with_geometry
from export.graph import beside_logits
from runtime.backends import unavailable_because
from runtime.errors import BadModel, SajiError
from runtime.evaluation import ValidationSet, moved, side_by_side
from runtime.gate import FAMILIAR, GATES, LEAST_FAMILIAR, apply_gate
from runtime.golden import Golden, difference
from runtime.preprocess import decode, pixels
from runtime.receipt import Receipt
from runtime.spec import FAMILIARITY, ModelSpec, Rejection
from training.network.classifier import PhotoClassifier, load_checkpoint, reference_outputs
from training.network.familiarity import BUFFERS, fitted
from training.photos.dataset import load_data
from training.recipe import Recipe
from training.run.fitting import Fitting
from training.run.release import MOST, _some, release

SPEC = ModelSpec("x", "y", tuple("abc"), rejection=Rejection(FAMILIARITY, 1.0), familiarity=True, schema_version=3)
SMALL = replace(SPEC.geometry, size=32, resize=37)


def seen(classes: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features `[N, 24]` about a direction for each class, their logits and labels, in no order."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(classes), each))
    centres = 4 * np.abs(np.random.default_rng(7).normal(size=(classes + 1, 24)))
    features = np.abs(centres[labels] + random.normal(0, 0.7, (len(labels), 24))).astype(np.float32)
    return features, features @ (centres[:classes].T.astype(np.float32) / 40), labels


def test_a_class_that_nobody_taught_is_less_familiar() -> None:
    features, logits, labels = seen(4, 40)
    known = labels < 3
    familiarity = fitted(features[known], logits[known, :3], labels[known])
    fresh, of_fresh, kinds = seen(4, 30, seed=1)
    told = familiarity(torch.from_numpy(fresh), torch.from_numpy(of_fresh[:, :3])).numpy()
    assert told[kinds < 3].min() > told[kinds == 3].max()


@pytest.mark.parametrize(
    "strange",
    [
        lambda features: features[:5],  # fewer photos than directions
        lambda features: np.zeros_like(features),  # a layer that is dead
        lambda features: np.repeat(features[:1], len(features), axis=0),  # one photo again and again
        lambda features: -features,  # as SiLU gives
        lambda features: 1e4 * features,
        lambda features: features[:, :1],  # a single one
    ],
)
def test_whatever_a_network_sees_familiarity_is_a_number(strange: Callable[[np.ndarray], np.ndarray]) -> None:
    features, logits, labels = seen(3, 20)
    features = strange(features)
    n = len(features)
    told = fitted(features, logits[:n], labels[:n])(torch.from_numpy(features), torch.from_numpy(logits[:n]))
    assert told.dtype == torch.float32 and told.shape == (n,) and torch.isfinite(told).all()


def test_a_network_that_hardly_tells_photos_apart_does_not_pass_rounding_off_as_familiarity() -> None:
    features, logits, labels = seen(3, 20)
    alike = features[:1] + 1e-5 * features
    familiarity = fitted(alike, logits[:1] + 1e-5 * logits, labels)
    rounded = torch.from_numpy(
        alike * (1 + 1e-7 * np.random.default_rng(0).choice([-1, 1], alike.shape)).astype(np.float32)
    )
    told = [familiarity(given, torch.from_numpy(logits)) for given in (torch.from_numpy(alike), rounded)]
    assert moved(*(each.numpy() for each in told))[1] < LEAST_FAMILIAR


def test_every_file_and_engine_gives_the_checkpoints_familiarity(run: Path, model: Path) -> None:
    """Also where the network itself computes in FP16 or INT8: what familiarity is made of stays FP32."""
    validation, receipt = ValidationSet.load(model / "validation.npz"), Receipt.read(model)
    checkpoint, spec = load_checkpoint(run / "checkpoint.pt")
    assert spec.familiarity and spec.rejection and spec.rejection.rule == FAMILIARITY and spec.schema_version == 3
    reference = reference_outputs(checkpoint, validation.images)
    assert np.allclose(reference, validation.outputs, atol=1e-5)
    for candidate in receipt.candidates:
        if unavailable_because(candidate.backend) or candidate.variant in ("cam", "embed"):
            continue
        assert candidate.verdict == "pass", (candidate.name, candidate.reasons)
        assert candidate.figures and candidate.figures.familiarity_shift is not None
        if candidate.precision == "fp32":
            assert candidate.figures.familiarity_shift < LEAST_FAMILIAR
    for file in ("model.onnx", "model.int8.onnx", "model.int8-trt.onnx"):
        graph = onnx.load(model / file)
        beside = [node for node in graph.graph.node if node.name in beside_logits(graph)]
        assert len(beside) > 20 and not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in beside}


def test_the_file_with_the_geometry_inside_has_it_too(model: Path) -> None:
    spec, golden = Receipt.read(model).spec, Golden.read(model)
    outputs, _ = open_with_geometry(model / "model.embed.onnx")(np.asarray(decode(model / "golden.png")))
    assert outputs.shape == (1, len(spec.classes) + 1)
    known = golden.pictures["golden.png"].familiarity
    assert known is not None and abs(outputs[0, -1] - known) / (4 + abs(known)) < 0.02


def test_a_shift_of_familiarity_alone_is_a_failure_of_the_gate() -> None:
    random = np.random.default_rng(0)
    logits, familiarity = random.normal(0, 2, (60, 3)), random.normal(1, 2, 60)
    right, labels = side_by_side(logits, familiarity), logits.argmax(1)
    for precision, gate in GATES.items():
        bound = max(FAMILIAR * gate.shift, LEAST_FAMILIAR) * familiarity.std()
        healthy, broken = (side_by_side(logits, familiarity + factor * bound) for factor in (0.5, 2))
        assert apply_gate(right, healthy, labels, gate, SPEC).verdict == "pass", precision
        found = apply_gate(right, broken, labels, gate, SPEC)
        assert found.verdict == "fail" and "familiarity shift" in found.reasons[0], precision
    silent = apply_gate(right, side_by_side(logits, np.full(60, np.nan)), labels, GATES["int8"], SPEC)
    assert silent.verdict == "fail" and silent.figures is None  # a receipt holds no NaN


def test_decisions_follow_familiarity_whatever_the_probabilities() -> None:
    outputs = np.array([[9.0, 0, 0, 0.9], [0.1, 0, 0, 1.1]])
    assert SPEC.answers(outputs) == ["unknown", "named"] and SPEC.logits(outputs).shape == (2, 3)
    assert SPEC.probabilities(outputs).shape == (2, 3)
    figures = apply_gate(
        outputs, outputs[:, [0, 1, 2, 3]] + [0, 0, 0, 0.2], np.zeros(2, int), GATES["int8"], SPEC
    ).figures
    assert figures and figures.decisions_changed == 1


def test_a_golden_vector_tells_a_familiarity_that_is_wrong(model: Path) -> None:
    spec, answer = Receipt.read(model).spec, Golden.read(model).pictures["golden.png"]
    images = pixels(model / "golden.png", spec.geometry)[None]

    class Engine:
        def __init__(self, more: float) -> None:
            self.more = more

        def run(self, _: np.ndarray) -> np.ndarray:
            assert answer.familiarity is not None
            return np.array([[*answer.logits, answer.familiarity + self.more]])

    assert difference(Engine(0.0), images, answer, spec) < 1e-6  # type: ignore[arg-type]
    assert not difference(Engine(np.nan), images, answer, spec) <= 1  # type: ignore[arg-type]
    moved_by = 1 + abs(answer.familiarity or 0.0)
    assert difference(Engine(moved_by), images, answer, spec) > 0.2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "which is of version 3"),
        ({"familiarity": "yes"}, r"familiarity .*yes.* is no truth value"),
        ({"familiarity": False}, "a familiarity that it does not have"),
    ],
)
def test_a_spec_that_cannot_be_followed_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(BadModel, match=said):
        ModelSpec.from_values(json.loads(SPEC.to_json()) | change)


def test_models_without_it_are_as_they_were() -> None:
    old = replace(SPEC, familiarity=False, schema_version=1, rejection=Rejection("max_probability", 0.5))
    assert "familiarity" not in json.loads(old.to_json()) and old.outputs == ("logits",)
    assert ModelSpec.from_json(old.to_json()) == old and old.answers(np.zeros((1, 3))) == ["unknown"]
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC and SPEC.outputs == ("logits", FAMILIARITY)


def test_a_checkpoint_that_lost_a_part_of_it_is_refused(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    assert {f"familiarity.{name}" for name in BUFFERS} <= set(content["weights"])
    del content["weights"]["familiarity.means"]
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(BadModel, match="weights that do not fit"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("change", ["no familiarity", "a class more"])
def test_a_bare_file_that_does_not_answer_as_its_spec_says_is_refused(change: str, model: Path, tmp_path: Path) -> None:
    file, spec = onnx.load(model / "model.onnx"), Receipt.read(model).spec
    if change == "no familiarity":
        del file.graph.output[1:]
    else:
        spec = replace(spec, classes=(*spec.classes, "durian"), validation={})
    onnx.helper.set_model_props(file, {"spec": spec.to_json()})
    onnx.save(file, tmp_path / "model.onnx")
    with pytest.raises(BadModel, match=r"answers with \[1, \d\], its spec with \[1, \d\]"):
        runtime.load(tmp_path / "model.onnx")


def test_the_service_and_the_library_answer_by_it(model: Path, sample: Path) -> None:
    receipt = Receipt.read(model)
    with runtime.load(model) as classifier:
        photo = next((sample / "bakso").glob("*.jpg"))
        images = pixels(photo, receipt.spec.geometry)[None]
        outputs = classifier.outputs(images)
        assert classifier.logits(images).shape == (1, 5) and outputs.shape == (1, 6)
        least = receipt.spec.rejection.threshold if receipt.spec.rejection else 0
        assert classifier(photo).sure == (outputs[0, -1] >= least)


# --- what is released


def averaged(share: float, sample: Path) -> tuple[PhotoClassifier, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A network after release, its start, and what training had made of it."""
    data = load_data(sample, 0.5, 0, look_alikes=False)
    torch.manual_seed(0)
    model = PhotoClassifier("resnet18", 5).eval()
    start = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    trained = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    release(model, start, share, data, SMALL)
    return model, start, trained


def test_what_is_released_lies_between_start_and_training_and_its_last_layer_is_fitted(sample: Path) -> None:
    model, start, trained = averaged(0.25, sample)
    now = model.network.state_dict()
    for name in ("conv1.weight", "layer4.1.bn2.running_var"):
        assert torch.allclose(now[name], 0.25 * start[name] + 0.75 * trained[name], atol=1e-6)
    assert not torch.allclose(now["fc.weight"], 0.25 * start["fc.weight"] + 0.75 * trained["fc.weight"], atol=1e-3)
    data = load_data(sample, 0.5, 0, look_alikes=False)
    images = np.stack([pixels(data.photos[i].path, SMALL) for i in data.train])
    right = reference_outputs(model, images)[:, :5].argmax(1) == data.labels[data.train]
    assert right.mean() > 0.6, "an untrained network's features, but a layer that is fitted to these very photos"


def test_without_published_weights_there_is_nothing_to_average_with() -> None:
    with pytest.raises(SajiError, match="needs weights to start from; use --pretrained"):
        Recipe(start_share=0.5)
    with pytest.raises(SajiError, match=r"start_share is 1\.0; it must be at least 0 and below 1"):
        Recipe(start_share=1.0, pretrained=True)


def test_a_network_without_a_linear_end_is_told_before_it_trains(tmp_path: Path) -> None:
    weights = PhotoClassifier("squeezenet1_1", 5).network.state_dict()
    torch.save(weights, tmp_path / "w.pt")
    recipe = Recipe(start_share=0.5, weights=str(tmp_path / "w.pt"))
    with pytest.raises(SajiError, match="--start-share 0"):
        Fitting("squeezenet1_1", 5, recipe)


def test_of_many_photos_each_class_has_its_part(sample: Path) -> None:
    data = load_data(sample, 0.5, 0, look_alikes=False)
    many = replace(data, train=np.tile(data.train, MOST // len(data.train) + 2))
    chosen = data.labels[_some(many)]
    assert len(chosen) <= MOST and set(np.bincount(chosen)) == {MOST // 5}
    assert sorted(_some(data)) == sorted(data.train)


def test_moved_is_over_the_references_own_spread() -> None:
    reference = np.array([0.0, 2, 4, 6])
    assert moved(reference, np.array([0.0, 2, 4, 7])) == pytest.approx((0.5 / 5**0.5, 1 / 5**0.5), rel=1e-2)
