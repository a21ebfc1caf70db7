"""Write the golden vector of a model, once its candidates are judged."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from runtime.candidate import Candidate
from runtime.golden import PICTURE, Golden, difference, digest, golden_pixels
from runtime.spec import ModelSpec
from training.classifier import PhotoClassifier, reference_logits
from training.sample_dishes import DISHES, draw_dish

# What the formats' rounding may do to a probability, whatever this one picture happens to show; see `tolerances`
FLOOR = {"fp32": 0.001, "fp16": 0.01, "bf16": 0.03, "int8": 0.05}


def write_golden(model: PhotoClassifier, spec: ModelSpec, folder: Path, candidates: list[Candidate]) -> Golden:
    """Write `golden.png`, a drawn dish that is no square, and `golden.json` with the checkpoint's answer to it."""
    draw_dish(DISHES[0], seed=0, size=320).crop((0, 40, 320, 280)).save(folder / PICTURE)
    images = golden_pixels(folder, spec)
    logits = reference_logits(model, images)
    probabilities = spec.probabilities(logits)[0]
    golden = Golden(digest(images), tuple(map(float, logits[0])), tuple(map(float, probabilities)), {})
    golden = replace(golden, tolerance=tolerances(golden, spec, folder, candidates, images))
    golden.write(folder)
    return golden


def tolerances(
    golden: Golden, spec: ModelSpec, folder: Path, candidates: list[Candidate], images: np.ndarray
) -> dict[str, float]:
    """Per precision: twice what the candidates that passed differ by here, and at least FLOOR (for FP32 just that)."""
    allowed = dict(FLOOR)
    for candidate in candidates:
        if candidate.verdict == "pass" and candidate.precision != "fp32":
            engine = candidate.open(folder)
            found = 2 * difference(engine, images, golden, spec)
            engine.close()
            allowed[candidate.precision] = max(allowed[candidate.precision], round(found, 4))
    return allowed
