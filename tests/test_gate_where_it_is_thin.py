"""The gate where its figures are thin: no number, a class that no photo shows, very many classes or photos."""

import json
import tracemalloc
from pathlib import Path

import house
import numpy as np
import pytest
from house import GATES, apply_gate

PHOTOS = 142


def logits(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """What a good network says of photos of all classes but the first, and their labels."""
    random = np.random.default_rng(0)
    labels = random.integers(1, classes, PHOTOS)
    answers = random.normal(size=(PHOTOS, classes))
    answers[np.arange(PHOTOS), labels] += 10
    return answers, labels


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_reference_that_is_no_number_passes_nothing(value: float) -> None:
    candidate = np.random.default_rng(0).normal(size=(40, 3))
    reference = -candidate[::-1]
    reference[0, 0] = value
    assert apply_gate(reference, candidate, candidate.argmax(1), GATES["fp32"]).verdict != "pass"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_candidate_that_is_no_number_fails(value: float) -> None:
    reference, labels = logits(5)
    candidate = reference.copy()
    candidate[3, 2] = value
    assert apply_gate(reference, candidate, labels, GATES["int8"]).verdict == "fail"


@pytest.mark.parametrize("classes", [5, 1000])
@pytest.mark.parametrize("precision", ["int8", "bf16", "fp16"])
def test_a_class_that_has_become_far_too_likely_does_not_pass(precision: str, classes: int) -> None:
    """No photo that judges shows it, and its logit is up by eight standard deviations on all of them."""
    reference, labels = logits(classes)
    candidate = reference.copy()
    candidate[:, 0] += 8
    assert apply_gate(reference, candidate, labels, GATES[precision]).verdict != "pass"


def test_judging_many_photos_takes_little_memory() -> None:
    random = np.random.default_rng(0)
    reference = random.normal(size=(4000, 3))
    labels = reference.argmax(1)
    tracemalloc.start()
    try:
        apply_gate(reference, reference + random.normal(0, 1e-6, reference.shape), labels, GATES["fp32"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.slow
def test_int8_is_repaired_until_it_keeps_the_bounds_that_were_asked_for(run: Path, tmp_path: Path) -> None:
    (tmp_path / "gates.toml").write_text("int8.shift = 0.004\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(run.parent)
    line = ("--run", "tiny", "--precisions", "fp32", "int8", "--out", tmp_path, "--gates", tmp_path / "gates.toml")
    said = house.here("export", *line)
    assert said.status in (0, 1), said
    receipt = json.loads((tmp_path / "models" / "resnet18" / "model.json").read_text())
    repaired = [c["facts"].get("kept") for c in receipt["candidates"] if c["file"] == "model.int8.onnx"]
    assert repaired and all(repaired), said
