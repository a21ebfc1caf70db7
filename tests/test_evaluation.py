"""The gate: healthy candidates pass, broken ones fail, too few photos give no verdict."""

from pathlib import Path

import numpy as np
import pytest

from runtime.errors import BadModel, SajiError
from runtime.evaluation import (
    ValidationSet,
    accuracy,
    calibration_error,
    confusion,
    mcnemar_p,
    paired_bootstrap,
    wilson_interval,
)
from runtime.gate import GATES, apply_gate, read_gates
from runtime.spec import ModelSpec, Rejection


@pytest.fixture
def reference() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.arange(140) % 5
    logits = random.normal(0, 1, (140, 5)).astype(np.float32)
    logits[np.arange(140), labels] += 3
    return logits, labels


@pytest.mark.parametrize("precision", GATES)
def test_the_same_logits_pass(reference: tuple, precision: str) -> None:
    logits, labels = reference
    verdict = apply_gate(logits, logits.copy(), labels, GATES[precision])
    assert verdict.verdict == "pass" and verdict.figures.agreement == 1 and not verdict.figures.flipped


@pytest.mark.parametrize("precision", GATES)
def test_rounding_of_the_precision_passes_and_ten_times_the_bound_fails(reference: tuple, precision: str) -> None:
    logits, labels = reference
    noise = np.random.default_rng(1).normal(0, logits.std() * GATES[precision].shift, logits.shape)
    assert apply_gate(logits, logits + noise / 3, labels, GATES[precision]).verdict == "pass"
    assert apply_gate(logits, logits + noise * 10, labels, GATES[precision]).verdict == "fail"


def test_the_cosine_is_of_the_photo_whose_logits_turn_most(reference: tuple) -> None:
    logits, labels = reference
    turned = np.where(np.arange(len(logits))[:, None] == 7, -logits, 2 * logits)
    assert apply_gate(logits, turned, labels, GATES["fp32"]).figures.lowest_cosine == -1
    assert apply_gate(logits, 2 * logits, labels, GATES["fp32"]).figures.lowest_cosine == 1


def test_a_constant_added_to_all_logits_of_a_photo_changes_nothing(reference: tuple) -> None:
    logits, labels = reference
    assert apply_gate(logits, logits + 100, labels, GATES["fp32"]).verdict == "pass"


@pytest.mark.parametrize(
    "broken",
    [
        lambda logits: logits[:, [1, 0, 2, 3, 4]],
        lambda logits: np.zeros_like(logits),
        lambda logits: -logits,
        lambda logits: logits * 1.5,
        lambda logits: np.where(np.arange(len(logits))[:, None] == 7, np.nan, logits),
        lambda logits: logits[:, :4],
        lambda logits: np.where(np.arange(len(logits))[:, None] == 7, -logits, logits),
    ],
    ids=["classes swapped", "zeros", "negated", "scaled", "one NaN", "a class missing", "one photo wrong"],
)
@pytest.mark.parametrize("precision", GATES)
def test_broken_candidates_fail_at_every_precision(reference: tuple, broken, precision: str) -> None:
    logits, labels = reference
    verdict = apply_gate(logits, broken(logits), labels, GATES[precision])
    assert verdict.verdict == "fail" and verdict.reasons


def test_flips_are_listed_with_the_references_margin(reference: tuple) -> None:
    logits, labels = reference
    close = logits.copy()
    close[3] = [1.0, 0.999, -1, -1, -1]
    flipped = close.copy()
    flipped[3, 1] += 0.002
    verdict = apply_gate(close, flipped, labels, GATES["bf16"])
    assert verdict.verdict == "pass"
    assert [flip.photo for flip in verdict.figures.flipped] == [3]
    assert verdict.figures.flipped[0].margin < 0.01


def test_too_few_photos_are_inconclusive(reference: tuple) -> None:
    logits, labels = reference
    assert apply_gate(logits[:10], logits[:10], labels[:10], GATES["fp32"]).verdict == "inconclusive"


def test_wilson_interval_against_published_values() -> None:
    # Brown, Cai, DasGupta (2001): 0 of 10 gives (0, 0.2775), 5 of 10 gives (0.2366, 0.7634)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(0, 0) == (0, 1)


def test_accuracy_and_confusion() -> None:
    logits, labels = np.eye(3)[[0, 1, 1, 2]], np.array([0, 1, 2, 2])
    assert accuracy(logits, labels) == 0.75
    assert confusion(logits, labels).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_judging_set_survives_the_disk_and_damage_is_one_sentence(tmp_path) -> None:
    validation = ValidationSet(
        np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), ("a", "bé"), np.ones((2, 2), np.float32)
    )
    file = tmp_path / "validation.npz"
    validation.save(file)
    again = ValidationSet.load(file)
    assert again.names == ("a", "bé") and np.array_equal(again.logits, validation.logits)
    # A name in the archive's directory, which no checksum covers: without it the part would be taken for missing
    renamed = file.read_bytes()[::-1].replace(b"ypn.stigol", b"9pn.stigol", 1)[::-1]
    for content in (file.read_bytes()[:300], b"", b"hello", renamed):
        file.write_bytes(content)
        with pytest.raises(BadModel):
            ValidationSet.load(file)
    with pytest.raises(BadModel):
        ValidationSet.load(tmp_path / "gone.npz")


@pytest.mark.parametrize("part", ["images", "labels", "names", "logits", "scenes", "familiarity", "all of them"])
def test_a_validation_set_without_photos_or_with_parts_of_others_is_refused(part: str, tmp_path: Path) -> None:
    parts = {"labels": np.zeros(2, int), "logits": np.ones((2, 2)), "scenes": np.arange(2), "familiarity": np.ones(2)}
    parts |= {"images": np.zeros((2, 4, 4, 3), np.uint8), "names": np.array(["a", "b"])}
    for name in parts if part == "all of them" else [part]:
        parts[name] = parts[name][:0]
    ValidationSet(**parts).save(tmp_path / "validation.npz")
    with pytest.raises(BadModel, match="holds no photos, or not as many of each part"):
        ValidationSet.load(tmp_path / "validation.npz")


def test_mcnemar_and_bootstrap_against_known_values() -> None:
    # exact binomial: 1 against 9 discordant gives 2·(1 + 10)/1024; no discordant pair is no evidence
    assert mcnemar_p(1, 9) == mcnemar_p(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar_p(0, 0) == 1 and mcnemar_p(3, 3) == 1
    low, high = paired_bootstrap(np.array([-1] * 10 + [0] * 80 + [1] * 10))
    assert low == pytest.approx(-1.96 * (0.2 / 100) ** 0.5, abs=0.015) and high == pytest.approx(-low, abs=0.02)


def test_calibration_error_of_a_known_case() -> None:
    sure = np.array([[100.0, 0], [100, 0], [100, 0], [100, 0]])
    assert calibration_error(sure, np.array([0, 0, 0, 1])) == pytest.approx(0.25)


def test_a_loss_of_accuracy_by_close_calls_is_inconclusive_until_it_is_significant() -> None:
    """Only near-ties change, so shift and margins are healthy; what decides is whether the loss can be chance."""

    def verdict(lost: int, n: int = 200) -> str:
        reference = np.tile([1.0, 0.999, -2.0], (n, 1))
        reference[lost:, 1] = -1.0
        candidate = reference.copy()
        candidate[:lost, 1] = 1.001
        return apply_gate(reference, candidate, np.zeros(n, int), GATES["int8"]).verdict

    assert [verdict(lost) for lost in (3, 5, 8)] == ["pass", "inconclusive", "fail"]


def test_a_changed_decision_is_another_class_or_another_not_sure(reference: tuple) -> None:
    logits, labels = np.tile([3.0, 1.0, 0.0], (40, 1)), np.zeros(40, int)
    logits[2] = [3.0, 1.0, 0.5]
    candidate = logits.copy()
    candidate[0] = [1.0, 3.0, 0.0]  # another class
    candidate[1] = [1.0, 0.9, 0.8]  # the same class, no longer sure
    spec = ModelSpec("x", "y", ("a", "b", "c"), rejection=Rejection("max_probability", 0.6))
    assert apply_gate(logits, candidate, labels, GATES["int8"], spec).figures.decisions_changed == 2
    unlimited = ModelSpec("x", "y", ("a", "b", "c"))
    assert apply_gate(logits, candidate, labels, GATES["int8"], unlimited).figures.decisions_changed == 1


def test_own_bounds_replace_those_of_the_table_and_say_so(tmp_path, reference: tuple) -> None:
    logits, labels = reference
    noise = np.random.default_rng(1).normal(0, logits.std() * GATES["fp32"].shift, logits.shape)
    (tmp_path / "own.toml").write_text("fp32.shift = 0.02\nfp32.worst_shift = 0.1\nfp32.flip_margin = 0.1\n")
    gates = read_gates(tmp_path / "own.toml")
    assert apply_gate(logits, logits + 10 * noise, labels, GATES["fp32"]).verdict == "fail"
    assert apply_gate(logits, logits + 10 * noise, labels, gates["fp32"]).verdict == "pass"
    assert "own.toml" in gates["fp32"].source and gates["int8"] == GATES["int8"]


@pytest.mark.parametrize(
    "text",
    [
        *("[int4]\nshift = 1", "[int8]\nshft = 1", "[int8]\nshift = 'a'", "shift = 1", "[int8", "[int8]\nshift = true"),
        *("[int8]\nshift = inf", "[int8]\nshift = nan", f"[int8]\nshift = 1{'0' * 400}", "a = " + "[" * 10_000),
    ],
)
def test_gates_that_do_not_exist_are_refused(tmp_path, text: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(SajiError, match="own"):
        read_gates(tmp_path / "own.toml")
    with pytest.raises(SajiError, match="gone"):
        read_gates(tmp_path / "gone.toml")
