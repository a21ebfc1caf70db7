"""Confidence: the temperature is honest about what it was fitted to, and the rejection rule keeps its promise."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.candidate import Candidate
from runtime.classifier import Classifier
from runtime.errors import BadModel
from runtime.evaluation import calibration_error
from runtime.spec import RULES, Geometry, ModelSpec, Rejection
from training.run.confidence import KEPT, cross_fitted, fitted_temperature, settled, threshold_keeping


def calibrated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[N, 4]` with labels drawn from their own softmax: the right temperature is 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, 4))
    return logits, (logits + random.gumbel(size=logits.shape)).argmax(1)


@pytest.mark.parametrize("factor", [0.4, 1, 3])
def test_the_temperature_undoes_what_sharpened_the_logits(factor: float) -> None:
    logits, labels = calibrated(4000)
    assert fitted_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.08)


def test_a_few_photos_that_are_all_right_do_not_make_an_answer_certain() -> None:
    labels = np.arange(20) % 4
    logits = 3.0 * np.eye(4)[labels]
    spec = replace(ModelSpec("x", "y", tuple("abcd")), temperature=fitted_temperature(logits, labels))
    # one more wrong answer than seen, of 20 + 2: the rule of succession
    assert spec.probabilities(logits).max() == pytest.approx(21 / 22, abs=0.0005)


def test_no_photo_has_a_say_in_the_temperature_that_it_is_scored_at() -> None:
    logits, labels = calibrated(23)
    before = cross_fitted(logits, labels)
    for photo in range(len(labels)):
        other = labels.copy()
        other[photo] = (labels[photo] + 1) % 4
        after = cross_fitted(logits, other)
        assert after[photo] == before[photo]
        assert (after != before).sum() > len(labels) / 2, "the photos of the other folds do look at it"


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=200), st.floats(0.5, 0.999))
def test_the_threshold_is_the_highest_that_keeps_the_share(values: list[float], share: float) -> None:
    scores = np.array(values)
    threshold = threshold_keeping(scores, share)
    assert (scores >= threshold).mean() >= share - 1e-9  # a share of 0.5 and a hair asks for no photo more
    # one photo more may go only where that would break the promise
    assert (scores > threshold).sum() - 1 < share * len(scores)


@pytest.mark.parametrize(("photos", "share", "kept"), [(20, 0.95, 19), (60, 0.95, 57), (100, 0.9, 90), (10, 0.7, 7)])
def test_a_share_that_is_a_whole_number_of_photos_keeps_just_these(photos: int, share: float, kept: int) -> None:
    scores = np.arange(photos)
    assert (scores >= threshold_keeping(scores, share)).sum() == kept


def test_no_temperature_is_below_a_twentieth_or_above_twenty() -> None:
    logits = np.eye(4)[np.arange(400) % 4]
    for scale, labels, bound in ((1e5, np.arange(400) % 3, 20), (1e-5, np.arange(400) % 4, 0.05)):
        assert fitted_temperature(scale * logits, labels) == pytest.approx(bound, rel=0.001)


def test_two_classes_share_as_four_do_and_one_class_is_no_error() -> None:
    labels = np.arange(20) % 2
    temperature = fitted_temperature(9.0 * np.eye(2)[labels], labels)
    spec = replace(ModelSpec("x", "y", ("a", "b")), temperature=temperature)
    assert spec.probabilities(9.0 * np.eye(2)).max() == pytest.approx(21 / 22, abs=0.0005)
    assert np.isfinite(fitted_temperature(np.ones((3, 1)), np.zeros(3, int)))


def test_no_photo_fits_no_temperature_and_one_does() -> None:
    assert fitted_temperature(np.zeros((0, 4)), np.zeros(0, int)) == 1
    assert fitted_temperature(9.0 * np.eye(4)[:1], np.zeros(1, int)) != 1
    assert cross_fitted(9.0 * np.eye(4)[:2], np.zeros(2, int), np.zeros(2, int)).tolist() == [1, 1], "of one scene"


def test_where_no_photo_is_left_to_fit_the_temperature_is_1() -> None:
    logits, labels = calibrated(50)
    spec = settled(ModelSpec("x", "y", tuple("abcd")), 4 * logits, labels, fit=False)
    assert spec.temperature == 1 and "calibration" not in spec.validation and spec.rejection


def test_settled_reports_calibration_out_of_sample_and_keeps_right_photos() -> None:
    logits, labels = calibrated(397)
    spec = settled(ModelSpec("x", "y", tuple("abcd"), validation={"accuracy": 0.5}), 4 * logits, labels)
    found = spec.validation["calibration"]
    assert spec.validation["accuracy"] == 0.5, "what stood there stays"
    assert found["ece_before"] == round(calibration_error(4 * logits, labels), 4)
    scaled = 4 * logits / cross_fitted(4 * logits, labels)[:, None]
    assert found["ece_after"] == round(calibration_error(scaled, labels), 4) < found["ece_before"] / 2
    right = logits.argmax(1) == labels
    assert KEPT == 0.95 <= spec.sure(4 * logits[right]).mean() < 0.97, "the share that is promised, in figures"
    assert found["folds"] == 5 and found["temperature"] == round(spec.temperature, 4) != spec.temperature
    assert spec.sure(4 * logits[~right]).mean() < 0.9, "wrong answers are less sure than right ones"


def test_a_settled_spec_travels_as_json() -> None:
    logits, labels = calibrated(50)
    spec = settled(ModelSpec("x", "y", tuple("abcd")), logits.astype(np.float32), labels)
    again = ModelSpec.from_json(spec.to_json())
    assert again == spec and (again.sure(logits) == spec.sure(logits)).all()


def test_without_a_right_answer_there_is_no_rule() -> None:
    labels = np.arange(8) % 4
    spec = settled(ModelSpec("x", "y", tuple("abcd")), -3.0 * np.eye(4)[labels], labels)
    assert spec.rejection is None and spec.sure(np.zeros((2, 4))).all()


def test_each_rule_follows_its_formula_without_overflow() -> None:
    logits, temperature = np.array([[0.0, 1.0, 2.0], [4000.0, 0.0, -4000.0]]), 2.0
    spec = replace(ModelSpec("x", "y", tuple("abc")), temperature=temperature)

    def score(rule: str) -> list[float]:
        return list(replace(spec, rejection=Rejection(rule, 0.0)).score(logits))

    exponents = np.exp(logits[0] / temperature)
    assert score("max_probability") == pytest.approx([exponents[2] / exponents.sum(), 1])
    assert score("energy") == pytest.approx([temperature * np.log(exponents.sum()), 4000])
    assert set(RULES) == {"max_probability", "energy"}, "a new rule wants its formula here"


@pytest.mark.parametrize(("rule", "threshold"), [("max_probability", 0.5), ("energy", 3.0)])
def test_each_photo_of_a_batch_is_sure_by_its_own_score(rule: str, threshold: float) -> None:
    class Brightness:
        def run(self, images: np.ndarray) -> np.ndarray:
            return images.reshape(len(images), -1).mean(1)[:, None] * np.array([[1, 0, 0]]) / 50

    spec = ModelSpec("x", "y", tuple("abc"), Geometry.for_size(8), 1.0, Rejection(rule, threshold))
    classifier = Classifier(spec, Brightness(), Candidate("y", "model.onnx", "fake", "fp32"))
    black, white = (np.full((8, 8, 3), value, np.uint8) for value in (0, 255))
    assert [answer.sure for answer in classifier.classify([black, white, black])] == [False, True, False]


@pytest.mark.parametrize(
    ("rejection", "said"),
    [
        ({"rule": "tarot", "threshold": 0.5}, "'tarot', .* saji knows max_probability, energy"),
        ({"threshold": 0.5}, "saji knows"),
        ("energy", "rejection 'energy'"),
        ({"rule": ["energy"], "threshold": 0.5}, "saji knows"),
        ({"rule": "energy"}, "without a threshold"),
        ({"rule": "energy", "threshold": "high"}, "without a threshold"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused_with_advice(rejection: object, said: str) -> None:
    text = json.dumps(json.loads(ModelSpec("x", "y", ("a", "b")).to_json()) | {"rejection": rejection})
    with pytest.raises(BadModel, match=said) as error:
        ModelSpec.from_json(text, "model.onnx")
    assert str(error.value).startswith("model.onnx has") and "train it again" in str(error.value)
