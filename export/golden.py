"""Write the golden vector of a model, once its candidates have their verdicts."""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from runtime.backends import BACKENDS
from runtime.candidate import Candidate
from runtime.errors import NotTold
from runtime.golden import PHOTO, PICTURE, Answer, Golden, difference, digest
from runtime.preprocess import pixels
from runtime.spec import ModelSpec
from training.photos.drawn import DISHES, draw_dish

Reference = Callable[[np.ndarray], np.ndarray]  # uint8 [N, S, S, 3] RGB → float32 outputs side by side

# What the formats' rounding may do to a probability, whatever these pictures happen to show; see `tolerances`
FLOOR = {"fp32": 0.001, "fp16": 0.01, "bf16": 0.03, "int8": 0.05}
# JavaScript runs the same files: Node on the very kernels of ort-cpu; the browser's WebAssembly sums INT8 in other
# steps, so its INT8 may err once on its own account and once on ort-cpu's
JAVASCRIPT = {"node": {}, "web": {"int8": 2.0}}
# JPEG decoders differ in the inverse transform and in how they smooth colour: a few steps of 255 before resizing
DECODING_FLOOR = 0.02


def write_golden(reference: Reference, spec: ModelSpec, folder: Path, candidates: list[Candidate]) -> Golden:
    """Write `golden.png`, `golden.jpg` (1600×1200), both drawn, and `golden.json` with the reference's answers."""
    draw_dish(DISHES[0], seed=0, size=320).crop((0, 40, 320, 280)).save(folder / PICTURE)
    photo = draw_dish(DISHES[1], seed=1, size=1600).crop((0, 200, 1600, 1400))
    photo.save(folder / PHOTO, quality=80)
    images = {name: pixels(folder / name, replace(spec.geometry, decode="full"))[None] for name in (PICTURE, PHOTO)}
    answers = {name: _answer(reference, spec, image) for name, image in images.items()}
    scaled = pixels(folder / PHOTO, replace(spec.geometry, decode="draft"))[None]  # a decoder that differs
    change = np.abs(spec.probabilities(reference(scaled))[0] - np.array(answers[PHOTO].probabilities)).max()
    decoding = max(DECODING_FLOOR, round(2 * float(change), 4))
    answers[PHOTO] = replace(answers[PHOTO], pixels_sha256="", decoding=decoding)
    golden = Golden(answers, tolerances(answers[PICTURE], spec, folder, candidates, images[PICTURE]))
    golden.write(folder)
    return golden


def _answer(reference: Reference, spec: ModelSpec, images: np.ndarray) -> Answer:
    outputs = reference(images)
    logits, probabilities = (
        tuple(map(float, row)) for row in (spec.logits(outputs)[0], spec.probabilities(outputs)[0])
    )
    familiarity = float(outputs[0, -1]) if spec.familiarity else None
    return Answer(digest(images), logits, probabilities, answer=spec.answers(outputs)[0], familiarity=familiarity)


def tolerances(
    answer: Answer, spec: ModelSpec, folder: Path, candidates: list[Candidate], images: np.ndarray
) -> dict[str, dict[str, float]]:
    """By engine and precision: twice what the candidates that passed differ by here, and at least FLOOR.

    For FP32 just FLOOR: it differs by nothing but the order of sums.
    """
    allowed = {backend: dict(FLOOR) for backend in BACKENDS}
    for candidate in candidates:
        if candidate.verdict == "pass" and candidate.precision != "fp32":
            with suppress(NotTold), closing(candidate.open(folder)) as engine:  # which opened when it was judged
                twice = round(2 * difference(engine, images, answer, spec), 4)
                bounds = allowed[candidate.backend]
                bounds[candidate.precision] = max(bounds[candidate.precision], twice)
    native = allowed["ort-cpu"]
    for engine_name, factors in JAVASCRIPT.items():
        allowed[engine_name] = {name: factors.get(name, 1.0) * value for name, value in native.items()}
    return allowed
