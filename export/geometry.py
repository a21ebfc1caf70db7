"""`model.embed.onnx`: a model with its geometry inside, for apps that cannot or should not reimplement preprocessing.

One upright photo, decoded whole, goes in as uint8 `[height, width, 3]` RGB of any size; out come `probabilities`
float32 `[1, C]` at the spec's temperature, and `logits`. For the ONNX Runtime family only: OpenVINO ignores the
antialiasing of ONNX's Resize without a word, and the gate below refuses it.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.parser

from runtime import environment
from runtime.backends import open_backend
from runtime.benchmark.rows import append_rows
from runtime.candidate import Candidate, run_all
from runtime.command_line import exit_with_one_sentence
from runtime.errors import SajiError
from runtime.evaluation import GATES, Gate, GateResult, ValidationSet, apply_gate
from runtime.files import replacing
from runtime.preprocess import decode, fit, pixels
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec
from training.photos.photo_set import read_photo_set

# One photo, uint8 [H, W, 3] RGB → logits and probabilities, float32 [1, C] each
Run = Callable[[np.ndarray], list[np.ndarray]]

# The same steps as runtime.preprocess.fit, in double precision like Python's, with Python's rounding of halves to even.
# Resize on uint8 rounds as Pillow does; on floats it would not. Types: 7 is int64, 11 double.
_GEOMETRY = """
<ir_version: {ir}, opset_import: ["": {opset}]>
geometry (uint8[height, width, 3] photo) => (uint8[1, {size}, {size}, 3] images)
<int64[1] first = {{0}}, int64[1] one = {{1}}, int64[1] colours = {{3}},
 int64[2] shorter_side = {{{resize}, {resize}}}, int64[2] crop = {{{size}, {size}}}>
{{
    photos = Unsqueeze (photo, first)
    sides = Shape <start = 0, end = 2> (photo)
    long_sides = Cast <to = 11> (sides)
    shortest = ReduceMin (long_sides)
    target = Cast <to = 11> (shorter_side)
    factor = Div (target, shortest)
    scaled = Mul (long_sides, factor)
    rounded = Round (scaled)
    whole = Cast <to = 7> (rounded)
    at_least = Max (whole, shorter_side)
    sizes = Concat <axis = 0> (one, at_least, colours)
    resized = Resize <{filter}, antialias = 1> (photos, , , sizes)
    images = CenterCropPad <axes = [1, 2]> (resized, crop)
}}"""
_PROBABILITIES = """
<ir_version: {ir}, opset_import: ["": {opset}]>
tail (float[1, {classes}] scores) => (float[1, {classes}] probabilities)
<float temperature = {{{temperature}}}>
{{
    tempered = Div (scores, temperature)
    probabilities = Softmax <axis = 1> (tempered)
}}"""

_FILTERS = {"bilinear": 'mode = "linear"', "bicubic": 'mode = "cubic", cubic_coeff_a = -0.5, exclude_outside = 1'}

BOUND = 0.02  # what the geometry inside may add to the difference of a probability
FILES = {"model.embed.onnx": ("model.onnx", "fp32"), "model.embed.int8.onnx": ("model.int8.onnx", "int8")}


def geometry_graph(geometry: Geometry, ir_version: int, opset: int) -> onnx.ModelProto:
    """`runtime.preprocess.fit` as a graph: `photo` uint8 `[height, width, 3]` → `images` uint8 `[1, S, S, 3]`, RGB."""
    facts = {"size": geometry.size, "resize": geometry.resize, "filter": _FILTERS[geometry.interpolation]}
    return onnx.parser.parse_model(_GEOMETRY.format(ir=ir_version, opset=opset, **facts))


def with_geometry(file: Path, spec: ModelSpec, path: Path) -> None:
    """Write the ONNX file `file` (uint8 `[N, S, S, 3]` → logits) with its geometry before and a softmax behind it."""
    model = onnx.load(file)
    versions = (model.ir_version, next(entry.version for entry in model.opset_import if not entry.domain))
    geometry = geometry_graph(spec.geometry, *versions)
    facts = {"classes": len(spec.classes), "temperature": f"{spec.temperature:.9g}"}
    tail = onnx.parser.parse_model(_PROBABILITIES.format(ir=versions[0], opset=versions[1], **facts))
    del model.graph.value_info[:]  # says that the batch is dynamic
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    # Names of their own between the ends: the model may use the same ones
    geometry, tail = (
        onnx.compose.add_prefix(part, "embed/", rename_inputs=False, rename_outputs=False) for part in (geometry, tail)
    )
    whole = onnx.compose.merge_models(geometry, model, io_map=[("images", "images")])
    whole = onnx.compose.merge_models(whole, tail, io_map=[("logits", "scores")], outputs=["probabilities", "logits"])
    onnx.helper.set_model_props(whole, {"spec": spec.to_json()})
    onnx.checker.check_model(whole, full_check=True)
    with replacing(path) as temporary:
        onnx.save_model(whole, temporary)


def write_with_geometry(
    folder: Path,
    spec: ModelSpec,
    candidates: list[Candidate],
    validation: ValidationSet,
    source: Path | None,
    say: Callable[[str], None],
    gates: Mapping[str, Gate] = GATES,
) -> list[Candidate]:
    """Write the embed file of each ONNX file that passed on ONNX Runtime, and judge it on the photo set `source`.

    Returns the verdicts as file checks. Without the original photos they are "unchecked".
    """
    gate, here = gates["geometry"], environment.machine()
    passed = {
        candidate.file for candidate in candidates if (candidate.backend, candidate.verdict) == ("ort-cpu", "pass")
    }
    checks = [
        Candidate(spec.architecture, name, "ort-cpu", precision, "embed", servable=False, machine=here, gate=gate)
        for name, (file, precision) in FILES.items()
        if file in passed
    ]
    for check in checks:
        with_geometry(folder / FILES[check.file][0], spec, folder / check.file)
    photos = originals(source, validation, spec.geometry) if source else {}
    if photos:
        checks = _checked(checks, folder, spec, validation, photos)
    else:
        reason = "the original validation photos are not there any more, only their preprocessed pixels; train again"
        checks = [replace(check, reasons=(reason,)) for check in checks]
    for check in checks:
        say(f"{check.name}: {check.verdict}" + "".join(f"; {reason}" for reason in check.reasons))
    return checks


def originals(source: Path, validation: ValidationSet, geometry: Geometry, most: int = 200) -> dict[int, Path]:
    """Up to `most` validation photos as files, by their index: those whose pixels are the judged ones to the bit."""
    try:
        paths = {f"{photo.label}/{photo.path.name}": photo.path for photo in read_photo_set(source).photos}
    except SajiError:
        return {}
    spread = np.unique(np.linspace(0, len(validation.names) - 1, most, dtype=int))
    there = {int(i): paths[validation.names[i]] for i in spread if validation.names[i] in paths}
    return {i: path for i, path in there.items() if np.array_equal(pixels(path, geometry), validation.images[i])}


def open_with_geometry(path: Path) -> Run:
    """An embed file on ONNX Runtime's CPU provider."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda photo: session.run(["logits", "probabilities"], {"photo": photo})


def open_in_openvino(path: Path) -> Run:
    """An embed file on OpenVINO in FP32: not to be used, here to show that the gate refuses it."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(photo: np.ndarray) -> list[np.ndarray]:
        answer = compiled(photo)
        return [answer["logits"], answer["probabilities"]]

    return run


def answer_originals(
    paths: list[Path], geometry: Geometry, runs: dict[str, Run]
) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """Decode each photo whole, once: its pixels by `runtime.preprocess`, and what each run makes of it.

    Returns uint8 `[N, S, S, 3]` RGB, and by the run's name its logits and probabilities, float32 `[N, C]` each.
    """
    images = []
    answers: dict[str, list[list[np.ndarray]]] = {name: [] for name in runs}
    for path in paths:
        photo = decode(path, version=geometry.version)
        images.append(fit(photo, geometry))
        for name, run in runs.items():
            answers[name].append(run(np.asarray(photo)))
    joined = {name: [np.concatenate(part) for part in zip(*found, strict=True)] for name, found in answers.items()}
    return np.stack(images), joined


def check_geometry(
    inner: np.ndarray, answer: list[np.ndarray], labels: np.ndarray, spec: ModelSpec, gate: Gate = GATES["geometry"]
) -> GateResult:
    """What the geometry inside changes: its gate, and BOUND on every probability.

    `inner`: logits `[N, C]` of the same file without its geometry, which has passed its own gate, on the pixels of
    `runtime.preprocess`; `answer`: the embed file's logits and probabilities on the photos; labels int `[N]`.
    """
    logits, probabilities = answer
    verdict = apply_gate(inner, logits, labels, gate, spec)
    largest = float(np.abs(probabilities - spec.probabilities(inner)).max())
    figures = verdict.figures and replace(verdict.figures, largest_probability_difference=round(largest, 5))
    if largest <= BOUND:
        return replace(verdict, figures=figures)
    reason = f"a probability changes by {largest:.3f}, {BOUND} is allowed"
    return GateResult("fail", (*verdict.reasons, reason), figures)


def _checked(
    checks: list[Candidate],
    folder: Path,
    spec: ModelSpec,
    validation: ValidationSet,
    photos: dict[int, Path],
    opened: Callable[[Path], Run] = open_with_geometry,
) -> list[Candidate]:
    runs = {check.file: opened(folder / check.file) for check in checks}
    images, answers = answer_originals(list(photos.values()), spec.geometry, runs)
    rows, results = list(photos), []
    for check in checks:
        engine = open_backend("ort-cpu", folder / FILES[check.file][0], check.precision)
        inner = run_all(engine, images, 1)
        engine.close()
        verdict = check_geometry(
            inner, answers[check.file], validation.labels[rows], spec, check.gate or GATES["geometry"]
        )
        figures = verdict.figures
        if figures:  # what the report names is the photo's place in the validation set
            figures = replace(figures, flipped=tuple(replace(f, photo=rows[f.photo]) for f in figures.flipped))
        results.append(replace(check, verdict=verdict.verdict, reasons=verdict.reasons, figures=figures))
    return results


def main() -> None:
    """Judge a model's embed files again on its original photos, on ONNX Runtime and, to be refused, on OpenVINO."""
    parser = argparse.ArgumentParser(prog="python -m export.geometry", description=main.__doc__)
    parser.add_argument("model", type=Path, help="a folder with model.json")
    parser.add_argument("data", type=Path, help="the photo set that it was trained on")
    parser.add_argument("--rows", type=Path, help="append a row for each verdict to this .jsonl")
    arguments = parser.parse_args()
    receipt, validation = Receipt.read(arguments.model), ValidationSet.load(arguments.model / "validation.npz")
    checks = [candidate for candidate in receipt.candidates if candidate.file in FILES]
    photos = originals(arguments.data, validation, receipt.spec.geometry)
    if not checks or not photos:
        raise SajiError(
            f"{arguments.model} has {len(checks)} embed files and {arguments.data} {len(photos)} of its photos"
        )
    rows = []
    for engine, opened in (("ort-cpu", open_with_geometry), ("openvino", open_in_openvino)):
        for check in _checked(checks, arguments.model, receipt.spec, validation, photos, opened):
            check = replace(check, backend=engine)
            rows.append(_row(check, receipt))
            print(f"{check.name}: {check.verdict}; {rows[-1]['largest_probability_difference']} in a probability")
    if arguments.rows:
        append_rows(arguments.rows, rows)


def _row(check: Candidate, receipt: Receipt) -> dict[str, Any]:
    figures = check.figures
    return {
        "experiment": "embed",
        "candidate": check.name,
        "file": check.file,
        "sha256": receipt.files[check.file].sha256,
        "image_size": receipt.spec.geometry.size,
        "drawn": bool(receipt.spec.data.get("drawn")),
        "data_fingerprint": receipt.spec.data.get("fingerprint"),
        "verdict": check.verdict,
        "reasons": check.reasons,
        "photos": figures and figures.photos,
        "flips": len(figures.flipped) if figures else 0,
        "largest_flip_margin": max((flip.margin for flip in figures.flipped), default=0.0) if figures else 0.0,
        **{name: getattr(figures, name, None) for name in ("shift", "worst_shift", "largest_probability_difference")},
        **environment.stamp(),
    }


if __name__ == "__main__":
    exit_with_one_sentence(main)
