"""The geometry in the graph: `model.embed.onnx`, for apps that cannot or should not reimplement preprocessing.

One upright photo, decoded whole, goes in as uint8 `[height, width, 3]` RGB of any size; out come `probabilities`
float32 `[1, C]` at the spec's temperature, `logits`, and of a model that has it `familiarity` `[1]`. For the ONNX
Runtime family only: OpenVINO ignores the antialiasing of ONNX's Resize without a word, and the gate refuses it there.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import onnx.parser

from export.graph import opset_of
from export.parity import line, with_result
from runtime.backends import open_backend
from runtime.backends.base import outputs_of
from runtime.candidate import Candidate, run_all
from runtime.errors import BadPhoto, SajiError
from runtime.evaluation import ValidationSet
from runtime.files import replacing
from runtime.gate import GATES, Gate, GateResult, apply_gate
from runtime.machine import machine
from runtime.preprocess import decode, fit, pixels
from runtime.spec import Geometry, ModelSpec, side_by_side
from training.photos.photo_set import read_photo_set

# One photo, uint8 [H, W, 3] RGB → the model's outputs side by side, and probabilities, float32 [1, …] each
Run = Callable[[np.ndarray], list[np.ndarray]]

# The same steps as runtime.preprocess.fit. Resize on uint8 rounds as Pillow does; on floats it would not. ONNX's Round
# takes halves to even, as Python does. Types: 7 is int64, 11 double.
_GEOMETRY = """
<ir_version: {ir}, opset_import: ["": {opset}]>
geometry (uint8[height, width, 3] photo) => (uint8[1, {size}, {size}, 3] images)
<int64[1] first = {{0}}, int64[1] one = {{1}}, int64[1] colours = {{3}}, int64[2] crop = {{{size}, {size}}},
 int64[2] shorter_side = {{{resize}, {resize}}}>
{{
    photos = Unsqueeze (photo, first)
    TARGET
    sizes = Concat <axis = 0> (one, target, colours)
    resized = Resize <{filter}> (photos, , , sizes)
    CUT
}}"""
_TARGETS = {
    "squash": "target = Identity (shorter_side)",
    "center": """
    sides = Shape <start = 0, end = 2> (photo)
    shortest = ReduceMin (sides)
    as_many = Mul (sides, shorter_side)
    target = Div (as_many, shortest)""",
    "before 3": """
    sides = Shape <start = 0, end = 2> (photo)
    long_sides = Cast <to = 11> (sides)
    shortest = ReduceMin (long_sides)
    long_target = Cast <to = 11> (shorter_side)
    factor = Div (long_target, shortest)
    scaled = Mul (long_sides, factor)
    rounded = Round (scaled)
    whole = Cast <to = 7> (rounded)
    target = Max (whole, shorter_side)""",
}
_CUT = """
    margins = Sub (target, crop)
    long_margins = Cast <to = 11> (margins)
    two = Constant <value = double {{2}}> ()
    halves = Div (long_margins, two)
    even = Round (halves)
    starts = Cast <to = 7> (even)
    ends = Add (starts, crop)
    axes = Constant <value_ints = [1, 2]> ()
    images = Slice (resized, starts, ends, axes)"""
_CUTS = {"squash": _CUT, "center": _CUT, "before 3": "images = CenterCropPad <axes = [1, 2]> (resized, crop)"}
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
# By what is written: the file that gets its geometry, and its precision
FILES = {"model.embed.onnx": ("model.onnx", "fp32"), "model.embed.int8.onnx": ("model.int8.onnx", "int8")}


def geometry_graph(geometry: Geometry, ir_version: int, opset: int) -> onnx.ModelProto:
    """`runtime.preprocess.fit` as a graph: `photo` uint8 `[height, width, 3]` → `images` uint8 `[1, S, S, 3]`, RGB."""
    crop = geometry.crop if geometry.version >= 3 else "before 3"
    text = _GEOMETRY.replace("TARGET", _TARGETS[crop]).replace("CUT", _CUTS[crop])
    resized_by = f"{_FILTERS[geometry.interpolation]}, antialias = {int(geometry.antialias)}"
    facts = {"size": geometry.size, "resize": geometry.resize, "filter": resized_by}
    return onnx.parser.parse_model(text.format(ir=ir_version, opset=opset, **facts))


def with_geometry(file: Path, spec: ModelSpec, path: Path) -> None:
    """Write to `path` the ONNX file `file` (uint8 `[N, S, S, 3]` → logits), geometry before and a softmax behind it."""
    model = onnx.load(file)
    versions = (model.ir_version, opset_of(model))
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
    outputs = ["probabilities", *spec.outputs]
    whole = onnx.compose.merge_models(whole, tail, io_map=[("logits", "scores")], outputs=outputs)
    del whole.opset_import[:]  # merge_models names each once a part
    whole.opset_import.extend(model.opset_import)
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
    """Write FILES of those ONNX files that passed on ONNX Runtime, and check them on the photo set `source`.

    Returns the verdicts as file checks. Without the original photos they are "unchecked".
    """
    passed = [c.file for c in candidates if (c.backend, c.verdict) == ("ort-cpu", "pass")]
    check = Candidate(spec.architecture, "", "ort-cpu", "", "embed", False, machine=machine(), gate=gates["geometry"])
    files = {name: (file, precision) for name, (file, precision) in FILES.items() if file in passed}
    checks = [replace(check, file=name, precision=precision) for name, (_, precision) in files.items()]
    for name, (file, _) in files.items():
        with_geometry(folder / file, spec, folder / name)
    photos = originals(source, validation, spec.geometry) if source else {}
    if photos:
        checks = check_files(checks, folder, spec, validation, photos)
    else:
        reason = "the original validation photos are not there any more, only their preprocessed pixels; train again"
        checks = [replace(check, reasons=(reason,)) for check in checks]
    for check in checks:
        say(line(check))
    return checks


def originals(source: Path, validation: ValidationSet, geometry: Geometry, most: int = 200) -> dict[int, Path]:
    """Up to `most` validation photos as files, by their place in the set: those that still have its very pixels."""
    # A class may have photos of one name in several folders, as cameras number them
    paths: dict[str, list[Path]] = defaultdict(list)
    try:
        for photo in read_photo_set(source).photos:
            paths[f"{photo.label}/{photo.path.name}"].append(photo.path)
    except SajiError:
        return {}
    found: dict[int, Path] = {}
    for i in np.unique(np.linspace(0, len(validation.names) - 1, most, dtype=int)).tolist():
        for path in paths[validation.names[i]]:
            with suppress(BadPhoto):
                if np.array_equal(pixels(path, geometry), validation.images[i]):
                    found[i] = path
                    break
    return found


def open_with_geometry(path: Path) -> Run:
    """A file with the geometry in the graph on ONNX Runtime's CPU provider."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    outputs = [names[place] for place in outputs_of(names)]

    def run(photo: np.ndarray) -> list[np.ndarray]:
        probabilities, *others = session.run(["probabilities", *outputs], {"photo": photo})
        return [side_by_side(*others), probabilities]

    return run


def answer_originals(
    paths: list[Path], geometry: Geometry, runs: dict[str, Run]
) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """Decode each photo whole, once: its pixels by `runtime.preprocess`, and what each run answers.

    Returns uint8 `[N, S, S, 3]` RGB, and by the run's name its outputs and probabilities, float32 `[N, …]` each.
    """
    images = []
    answers: dict[str, list[list[np.ndarray]]] = {name: [] for name in runs}
    for path in paths:
        photo = decode(path, version=geometry.version)
        images.append(fit(photo, geometry))
        for name, run in runs.items():
            answers[name].append(run(np.asarray(photo)))
    joined = {name: [np.concatenate(part) for part in zip(*parts, strict=True)] for name, parts in answers.items()}
    return np.stack(images), joined


def check_geometry(
    inner: np.ndarray, answer: list[np.ndarray], labels: np.ndarray, spec: ModelSpec, gate: Gate = GATES["geometry"]
) -> GateResult:
    """What the geometry inside changes: its gate, and BOUND on every probability.

    `inner`: outputs of the same file without its geometry, which has passed its own gate, on the pixels of
    `runtime.preprocess`; `answer`: outputs and probabilities of the file with it on the photos; labels int `[N]`.
    """
    outputs, probabilities = answer
    result = apply_gate(inner, outputs, labels, gate, spec)
    largest = float(np.abs(probabilities - spec.probabilities(inner)).max())
    if result.figures:
        result = replace(result, figures=replace(result.figures, largest_probability_difference=round(largest, 5)))
    if largest <= BOUND:
        return result
    reason = f"a probability changes by {largest:.3f}, {BOUND} is allowed"
    return replace(result, verdict="fail", reasons=(*result.reasons, reason))


def check_files(
    checks: list[Candidate],
    folder: Path,
    spec: ModelSpec,
    validation: ValidationSet,
    photos: dict[int, Path],
    opened: Callable[[Path], Run] = open_with_geometry,
) -> list[Candidate]:
    """Checks of FILES with their verdicts on the photos of `originals`, run by what `opened` gives for each file."""
    runs = {check.file: opened(folder / check.file) for check in checks}
    images, answers = answer_originals(list(photos.values()), spec.geometry, runs)
    places, results = list(photos), []
    for check in checks:
        with closing(open_backend("ort-cpu", folder / FILES[check.file][0], check.precision)) as engine:
            inner = run_all(engine, images, 1)
        gate = check.gate or GATES["geometry"]
        result = check_geometry(inner, answers[check.file], validation.labels[places], spec, gate)
        if result.figures:  # flips are named by the photo's place in the validation set
            flips = tuple(replace(flip, photo=places[flip.photo]) for flip in result.figures.flipped)
            result = replace(result, figures=replace(result.figures, flipped=flips))
        results.append(with_result(check, result))
    return results
