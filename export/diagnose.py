"""`python -m export diagnose MODEL [FILE]`: why an exported file answers otherwise than the checkpoint.

Two questions. Which of the usual mistakes explains its logits: each is made in the right graph, and the one that gives
the same logits is it. And where does it part: layer by layer on the photo that it gets most wrong.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from export.faults import SUSPECTS, NotApplicable, broken
from export.geometry import FILES as EMBEDDED
from export.geometry import open_with_geometry, with_geometry
from export.graph import LAYERS
from runtime.backends import open_backend
from runtime.candidate import Candidate, run_all
from runtime.command_line import Parser
from runtime.errors import SajiError
from runtime.evaluation import GATES, ValidationSet, compare
from runtime.preprocess import decode
from runtime.receipt import Receipt

PHOTOS = 64  # enough to tell one mistake from another
EXPLAINED = 0.2  # a suspect that leaves less than this share of the shift is it
FILTERS = (
    ("nearest", 0),
    ("linear", 0),
    ("linear", 1),
    ("cubic", 1),
)  # ONNX's Resize and its antialias, for embed files
LOOKED_AT = (*LAYERS, "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")
SHOWN = 3  # layers from the first that parts on


@dataclass(frozen=True)
class Layer:
    """A layer of both graphs: its name in the candidate, and the RMS of the difference over the reference's."""

    name: str
    number: int
    difference: float


@dataclass(frozen=True)
class Diagnosis:
    """`shift` is the gate's, `suspect` explains it or is empty.

    `parts` is the first layer that differs by more than `bound`, the gate's of a shift, or None; `layers` are those
    that were looked at, from the first one to a few behind it. `as_written` is the shift of an INT8 file when ONNX
    Runtime computes each of its operators by itself, in floating point between them; None for other files.
    """

    shift: float
    suspect: str
    layers: tuple[Layer, ...]
    parts: Layer | None
    as_written: float | None = None
    bound: float = 0.0


def diagnose(folder: Path, candidate: Candidate) -> Diagnosis:
    """Compare a file of a model folder with `model.onnx`, which has been judged, on the first validation photos.

    Raises SajiError when there is nothing to compare by, or the candidate cannot be opened at all.
    """
    validation = ValidationSet.load(folder / "validation.npz")
    if validation.logits is None:
        raise SajiError(f"{folder / 'validation.npz'} has no reference logits; write them with: make export")
    images, logits, labels = validation.images[:PHOTOS], validation.logits[:PHOTOS], validation.labels[:PHOTOS]
    found = _answers(replace(candidate, precision=_opened_as(candidate)), folder, images)
    if found.shape != logits.shape:
        raise SajiError(f"{candidate.file} gives logits {list(found.shape)}, the checkpoint {list(logits.shape)}")
    finite = bool(np.isfinite(found).all())
    figures = compare(logits, np.nan_to_num(found), labels)
    suspect = explanation(onnx.load(folder / "model.onnx"), images, found, logits) if finite else ""
    centred = (rows - rows.mean(1, keepdims=True) for rows in (np.nan_to_num(found), logits))
    worst = int(np.abs(np.subtract(*centred)).max(axis=1).argmax())
    bound, layers = GATES[candidate.precision].shift, []
    for layer in by_layer(folder / "model.onnx", folder / candidate.file, candidate, images[worst : worst + 1]):
        layers.append(layer)
        parted = [layer for layer in layers if not layer.difference <= bound]  # NaN parts too
        if len(parted) and layer.number - parted[0].number + 1 >= SHOWN:
            break
    shift = figures.shift if finite else float("nan")
    as_written = None
    if candidate.precision == "int8":
        plain = replace(candidate, backend="ort-cpu", precision="fp32", variant="as written", servable=False)
        as_written = compare(logits, _answers(plain, folder, images), labels).shift
    return Diagnosis(shift, suspect, tuple(layers), parted[0] if parted else None, as_written, bound)


def _answers(candidate: Candidate, folder: Path, images: np.ndarray) -> np.ndarray:
    engine = candidate.open(folder)
    logits = run_all(engine, images, 1)
    engine.close()
    return logits


def _opened_as(candidate: Candidate) -> str:
    """The precision to open a file by: a diagnosis takes it as it is where proof would refuse it."""
    return "fp32" if candidate.backend == "ort-cpu" else candidate.precision


def explanation(model: onnx.ModelProto, images: np.ndarray, found: np.ndarray, logits: np.ndarray) -> str:
    """The mistake that, made in the right graph `model`, comes closest to the logits `found` float `[N, C]`.

    `logits` are the right ones of the same images. Empty where no mistake explains most of the difference.
    """
    labels = np.zeros(len(found), int)
    left = {}
    for suspect in SUSPECTS:
        with contextlib.suppress(NotApplicable):
            left[suspect.says] = compare(_logits(broken(model, suspect), images), found, labels).shift
    order = class_order(found, logits)
    if order != sorted(order):
        said = f"its classes were in the order {', '.join(map(str, order))}"
        left[said] = compare(logits[:, order], found, labels).shift
    return _closest(left, compare(logits, found, labels).shift)


def _closest(left: dict[str, float], shift: float) -> str:
    """The explanation that leaves least of a shift, by what each leaves; empty where that is most of it still."""
    best = min(left, key=lambda said: left[said], default="")
    return best if left and left[best] < EXPLAINED * shift else ""


def class_order(found: np.ndarray, logits: np.ndarray) -> list[int]:
    """For each column of `found` the column of `logits` that it is likest to, each taken once (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    classes = found.shape[1]
    likeness = np.nan_to_num(np.corrcoef(found.T, logits.T)[:classes, classes:])
    return [int(i) for i in linear_sum_assignment(-likeness)[1]]


def _logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        onnx.save_model(model, Path(folder) / "model.onnx")
        engine = open_backend("ort-cpu", Path(folder) / "model.onnx", "fp32")
        logits = run_all(engine, images, 8)
        engine.close()
    return logits


def by_layer(reference: Path, file: Path, candidate: Candidate, photo: np.ndarray) -> Iterator[Layer]:
    """How far the outputs of each convolution, pooling and matrix product are apart, in the order of the graph.

    The two graphs' layers are paired by their order, so both must have the same. `photo` is uint8 `[1, S, S, 3]`. The
    candidate's are looked at one at a time: an engine does not fuse what it must give out, and a fault of fusions
    would be gone.
    """
    right, wrong = onnx.load(reference), onnx.load(file)
    ours, theirs = ([node for node in model.graph.node if node.op_type in LOOKED_AT] for model in (right, wrong))
    if [node.op_type for node in ours] != [node.op_type for node in theirs]:
        raise SajiError(f"{file} has {len(theirs)} layers, {reference} {len(ours)}: they are two different networks")
    expected = _outputs(right, [node.output[0] for node in ours], "ort-cpu", photo)
    for number, (node, value) in enumerate(zip(theirs, expected, strict=True), 1):
        found = _outputs(wrong, [node.output[0]], candidate.backend, photo)[0]
        yield Layer(node.name, number, _difference(value, found))


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return float("inf")
    spread = float(np.sqrt((expected.astype(np.float64) ** 2).mean())) or 1.0
    return float(np.sqrt(((found.astype(np.float64) - expected) ** 2).mean())) / spread


def _outputs(model: onnx.ModelProto, names: Sequence[str], backend: str, photo: np.ndarray) -> list[np.ndarray]:
    """The values of some tensors of a graph, which is run on OpenVINO, or else on ONNX Runtime."""
    there = {value.name for value in model.graph.output}
    if backend == "openvino":
        import openvino

        core = openvino.Core()
        network = core.read_model(model.SerializeToString())
        for name in names:
            if name not in there:
                network.add_outputs(name)
        answer = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(photo)
        return [answer[name] for name in names]
    import onnxruntime

    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    asked.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in there)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"images": photo}))


def diagnose_embedded(folder: Path, file: str, photo: Path) -> str:
    """The filter of the resize that comes closest to an embed file's logits of one photo, decoded whole.

    Empty where none explains most of the difference.
    """
    spec, pixels = Receipt.read(folder).spec, np.asarray(decode(photo))
    found = open_with_geometry(folder / file)(pixels)[0]
    left = {}
    with tempfile.TemporaryDirectory() as temporary:
        right, other = Path(temporary) / "right.onnx", Path(temporary) / "other.onnx"
        with_geometry(folder / EMBEDDED.get(file, ("model.onnx",))[0], spec, right)
        shift = _apart(open_with_geometry(right)(pixels)[0], found)
        for mode, antialias in FILTERS:
            onnx.save_model(_resized_by(onnx.load(right), mode, antialias), other)
            said = f"it resized by {mode} {'with' if antialias else 'without'} antialiasing"
            left[said] = _apart(open_with_geometry(other)(pixels)[0], found)
    return _closest(left, shift)


def _resized_by(model: onnx.ModelProto, mode: str, antialias: int) -> onnx.ModelProto:
    node = next(node for node in model.graph.node if node.op_type == "Resize")
    del node.attribute[:]
    node.attribute.extend(
        [onnx.helper.make_attribute("mode", mode), onnx.helper.make_attribute("antialias", antialias)]
    )
    return model


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs((a - a.mean()) - (b - b.mean())).max())


def _candidates(folder: Path, receipt: Receipt, file: str, backend: str, precision: str) -> list[Candidate]:
    if file:
        return [Candidate(receipt.spec.architecture, file, backend, precision)]
    return [
        candidate
        for candidate in receipt.candidates
        if candidate.verdict == "fail"
        and candidate.file.endswith(".onnx")
        and candidate.backend in ("ort-cpu", "openvino")
    ]


def main(arguments: list[str]) -> None:
    """The verb `diagnose`: explain one file, or every ONNX file of the folder that failed its gate."""
    parser = Parser(prog="python -m export diagnose", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder with model.json, such as artifacts/models/resnet34")
    parser.add_argument("file", nargs="?", default="", help="an ONNX file in it; by default all that failed their gate")
    parser.add_argument("--backend", choices=["ort-cpu", "openvino"], default="ort-cpu", help="what runs the file")
    parser.add_argument("--precision", choices=[*GATES], default="fp32", help="whose bounds say where layers part")
    typed = parser.parse_args(arguments)
    receipt = Receipt.read(typed.model)
    if typed.file and not (typed.model / typed.file).is_file():
        raise SajiError(f"{typed.model} has no {typed.file}; name an ONNX file in that folder")
    chosen = _candidates(typed.model, receipt, typed.file, typed.backend, typed.precision)
    for candidate in chosen:
        print(f"{candidate.name} ({candidate.file})")
        if "embed" in candidate.file:
            filtered = diagnose_embedded(typed.model, candidate.file, typed.model / "golden.jpg")
            print(f"  it answers as if {filtered}" if filtered else "  no filter of its resize explains it")
            continue
        found = diagnose(typed.model, candidate)
        print("\n".join(f"  {line}" for line in lines(found)))
    print(json.dumps({"diagnosed": [candidate.name for candidate in chosen]}))


def lines(found: Diagnosis) -> list[str]:
    """A diagnosis in words."""
    said = "none of the usual mistakes explains it (channel order, axes, normalisation, class order)"
    if found.suspect:
        said = f"it answers as if {found.suspect}"
    elif found.as_written is not None and found.as_written <= found.bound < found.shift:
        said = (
            f"the file is right: computed as written its shift is {found.as_written:.2g}; the engine computes it "
            "otherwise. On x86 without VNNI (python -m runtime doctor) sums of INT8 products overflow 16 bits; "
            "weights of 7 bits cannot: make export ARGS=--overflow-fix"
        )
    if found.parts is None:
        last = found.layers[-1]
        where = f"none of its {last.number} layers parts; the last, {last.name}, differs by {last.difference:.2g}"
        return [f"logit shift {found.shift:.2g}", said, where]
    shown = [layer for layer in found.layers if layer.number >= found.parts.number - 1]
    return [
        f"logit shift {found.shift:.2g}",
        said,
        f"the first layer to part is number {found.parts.number}, {found.parts.name}:",
        *(f"  {layer.number} {layer.name} differs by {layer.difference:.2g}" for layer in shown),
    ]
