"""`python -m export diagnose MODEL [FILE]`: why an exported file answers otherwise than the checkpoint.

Two questions. Which of the usual mistakes explains its logits: each is made in the right graph, and the one that gives
the same logits is it. And from which layer on do they differ: layer by layer on the photo that it gets most wrong.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from export.faults import SUSPECTS, NotApplicable, broken
from export.geometry import FILES as WITH_GEOMETRY
from export.geometry import open_with_geometry, with_geometry
from export.graph import LAYERS
from runtime.candidate import Candidate, run_all
from runtime.command_line import Parser, add_gpu, exit_with_one_sentence
from runtime.errors import SajiError
from runtime.evaluation import compare
from runtime.preprocess import decode
from runtime.receipt import Receipt

PHOTOS = 64  # enough to tell one mistake from another
EXPLAINED = 0.2  # a mistake that leaves less than this share of the shift is the one
FILTERS = (("nearest", 0), ("linear", 0), ("linear", 1), ("cubic", 1))  # of ONNX's Resize, with its antialias
COMPARED = (*LAYERS, "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")
SHOWN = 3  # layers from the first that differs on


@dataclass(frozen=True)
class Layer:
    """A layer of both graphs: its name in the candidate, and the RMS of the difference over the reference's."""

    name: str
    number: int
    difference: float


@dataclass(frozen=True)
class Diagnosis:
    """`shift` is the gate's; `mistake` completes "it answers as if …", or is empty where none explains the shift.

    `layers` are those that were compared; `first` is the first of them that differs by more than `bound`, the gate's of
    a shift, or None. `as_written` is the shift of an INT8 file when ONNX Runtime computes each of its operators by
    itself, in floating point between them; None for other files.
    """

    shift: float
    mistake: str
    layers: tuple[Layer, ...]
    first: Layer | None
    as_written: float | None = None
    bound: float = 0.0


def diagnose(folder: Path, candidate: Candidate) -> Diagnosis:
    """Compare a file of a model folder with `model.onnx`, which passed its gate, on the first validation photos.

    Raises SajiError when there is nothing to compare by, or the candidate cannot be opened at all.
    """
    validation = Receipt.read(folder).photos(folder)
    if validation.logits is None:
        raise SajiError(f"{folder / 'validation.npz'} has no reference logits; write them with: make export")
    images, labels, right = validation.images[:PHOTOS], validation.labels[:PHOTOS], validation.outputs[:PHOTOS]
    classes = validation.logits.shape[1]
    # As it is, where the precision check would refuse it
    as_it_is = replace(candidate, precision="fp32") if candidate.backend == "ort-cpu" else candidate
    answers = _answers(as_it_is, folder, images)
    if answers.shape != right.shape:
        raise SajiError(f"{candidate.file} gives outputs {list(answers.shape)}, the checkpoint {list(right.shape)}")
    answers, logits = answers[:, :classes], right[:, :classes]
    shift, mistake, as_written = float("nan"), "", None
    if np.isfinite(answers).all():
        shift = compare(logits, answers, labels).shift
        mistake = explanation(onnx.load(folder / "model.onnx"), images, answers, logits)
    if candidate.precision == "int8":
        plain = replace(candidate, backend="ort-cpu", precision="fp32", variant="as written", servable=False)
        as_written = compare(logits, _answers(plain, folder, images)[:, :classes], labels).shift
    difference = np.nan_to_num(answers) - logits
    worst = int(np.abs(difference - difference.mean(1, keepdims=True)).max(axis=1).argmax())
    bound = candidate.bounds.shift
    layers, first = _compared(folder, candidate, images[worst : worst + 1], bound)
    return Diagnosis(shift, mistake, layers, first, as_written, bound)


def _compared(
    folder: Path, candidate: Candidate, photo: np.ndarray, bound: float
) -> tuple[tuple[Layer, ...], Layer | None]:
    """The layers up to SHOWN from the first on that differs by more than `bound`, and that one."""
    layers: list[Layer] = []
    first = None
    for layer in by_layer(folder / "model.onnx", folder / candidate.file, candidate, photo):
        layers.append(layer)
        if first is None and not layer.difference <= bound:  # NaN differs, too
            first = layer
        if first and layer.number - first.number + 1 >= SHOWN:
            break
    return tuple(layers), first


def _answers(candidate: Candidate, folder: Path, images: np.ndarray) -> np.ndarray:
    with contextlib.closing(candidate.open(folder)) as engine:
        return run_all(engine, images, 1)


def explanation(model: onnx.ModelProto, images: np.ndarray, answers: np.ndarray, logits: np.ndarray) -> str:
    """The mistake that, made in the right graph `model`, comes closest to the logits `answers` float `[N, C]`.

    `logits` are the right ones of the same images. Empty where no mistake explains most of the difference.
    """
    labels = np.zeros(len(answers), int)
    left = {}
    with tempfile.TemporaryDirectory() as folder:
        for suspect in SUSPECTS:
            with contextlib.suppress(NotApplicable):
                onnx.save_model(broken(model, suspect), Path(folder) / "model.onnx")
                others = _answers(Candidate("", "model.onnx", "ort-cpu", "fp32"), Path(folder), images)
                left[suspect.says] = compare(others, answers, labels).shift
    order = class_order(answers, logits)
    if order != sorted(order):
        mistake = f"its classes were in the order {', '.join(map(str, order))}"
        left[mistake] = compare(logits[:, order], answers, labels).shift
    return _closest(left, compare(logits, answers, labels).shift)


def _closest(left: dict[str, float], shift: float) -> str:
    """The mistake that leaves least of a shift, by what each leaves; empty where that is most of it still."""
    best = min(left, key=lambda mistake: left[mistake], default="")
    return best if left and left[best] < EXPLAINED * shift else ""


def class_order(answers: np.ndarray, logits: np.ndarray) -> list[int]:
    """For each column of `answers` the column of `logits` most like it, each taken once (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    classes = answers.shape[1]
    likeness = np.nan_to_num(np.corrcoef(answers.T, logits.T)[:classes, classes:])
    return [int(i) for i in linear_sum_assignment(-likeness)[1]]


def by_layer(reference: Path, file: Path, candidate: Candidate, photo: np.ndarray) -> Iterator[Layer]:
    """How far the outputs of each convolution, pooling and matrix product differ, in the order of the graph.

    The two graphs' layers are paired by their order, so both must have the same. `photo` is uint8 `[1, S, S, 3]`. The
    candidate's are read one at a time: an engine does not fuse what it must give out, and a fault of fusions would be
    gone.
    """
    right, wrong = onnx.load(reference), onnx.load(file)
    ours, theirs = ([node for node in model.graph.node if node.op_type in COMPARED] for model in (right, wrong))
    if [node.op_type for node in ours] != [node.op_type for node in theirs]:
        raise SajiError(f"{file} has {len(theirs)} layers, {reference} {len(ours)}: they are two different networks")
    expected = _outputs(right, [node.output[0] for node in ours], "ort-cpu", photo)
    for number, (node, value) in enumerate(zip(theirs, expected, strict=True), 1):
        output = _outputs(wrong, [node.output[0]], candidate.backend, photo)[0]
        yield Layer(node.name, number, _difference(value, output))


def _difference(expected: np.ndarray, output: np.ndarray) -> float:
    if expected.shape != output.shape:
        return float("inf")
    spread = float(np.sqrt((expected.astype(np.float64) ** 2).mean())) or 1.0
    return float(np.sqrt(((output.astype(np.float64) - expected) ** 2).mean())) / spread


def _outputs(model: onnx.ModelProto, names: Sequence[str], backend: str, photo: np.ndarray) -> list[np.ndarray]:
    """The values of some tensors of a graph, which is run on OpenVINO, or else on ONNX Runtime."""
    inner = [name for name in names if name not in {value.name for value in model.graph.output}]
    if backend == "openvino":
        import openvino

        core = openvino.Core()
        network = core.read_model(model.SerializeToString())
        for name in inner:
            network.add_outputs(name)
        values = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(photo)
        return [values[name] for name in names]
    import onnxruntime

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"images": photo}))


def resize_of(folder: Path, file: str, photo: Path) -> str:
    """The filter of the resize that comes closest to the logits of a file with the geometry in the graph.

    `photo` is decoded whole. Empty where no filter explains most of the difference.
    """
    spec, pixels = Receipt.read(folder).spec, np.asarray(decode(photo))
    logits = open_with_geometry(folder / file)(pixels)[0]
    left = {}
    with tempfile.TemporaryDirectory() as temporary:
        right, other = Path(temporary) / "right.onnx", Path(temporary) / "other.onnx"
        with_geometry(folder / WITH_GEOMETRY.get(file, ("model.onnx",))[0], spec, right)
        shift = _apart(open_with_geometry(right)(pixels)[0], logits)
        for mode, antialias in FILTERS:
            model = onnx.load(right)
            resize = next(node for node in model.graph.node if node.op_type == "Resize")
            del resize.attribute[:]
            values = {"mode": mode, "antialias": antialias}
            resize.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in values.items())
            onnx.save_model(model, other)
            mistake = f"it resized by {mode} {'with' if antialias else 'without'} antialiasing"
            left[mistake] = _apart(open_with_geometry(other)(pixels)[0], logits)
    return _closest(left, shift)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs((a - a.mean()) - (b - b.mean())).max())


def main(arguments: list[str]) -> None:
    """The verb `diagnose`: explain one file, or every ONNX file of the folder that failed its gate."""
    parser = Parser(prog="python -m export diagnose", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="a folder with model.json, such as artifacts/models/resnet34")
    parser.add_argument("file", nargs="?", default="", help="an ONNX file in it; by default all that failed their gate")
    parser.add_argument("--backend", choices=["ort-cpu", "openvino"], default="ort-cpu", help="what runs the file")
    whose = "whose bounds say where layers differ"
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16", "int8"], default="fp32", help=whose)
    add_gpu(parser)
    typed = parser.parse_args(arguments)
    receipt = Receipt.read(typed.model)
    if typed.file and not (typed.model / typed.file).is_file():
        raise SajiError(f"{typed.model} has no {typed.file}; name an ONNX file in that folder")
    chosen = [c for c in receipt.candidates if c.verdict == "fail" and c.backend in ("ort-cpu", "openvino")]
    chosen = [candidate for candidate in chosen if candidate.file.endswith(".onnx")]
    if typed.file:
        chosen = [Candidate(receipt.spec.architecture, typed.file, typed.backend, typed.precision)]
    for candidate in chosen:
        print(f"{candidate.name} ({candidate.file})")
        if "embed" in candidate.file:
            mistake = resize_of(typed.model, candidate.file, typed.model / "golden.jpg")
            print(f"  it answers as if {mistake}" if mistake else "  no filter of its resize explains it")
        else:
            print("\n".join(f"  {line}" for line in lines(diagnose(typed.model, candidate))))
    print(json.dumps({"diagnosed": [candidate.name for candidate in chosen]}))


def lines(diagnosis: Diagnosis) -> list[str]:
    """A diagnosis in words."""
    why = "none of the usual mistakes explains it (channel order, axes, normalisation, class order)"
    if diagnosis.mistake:
        why = f"it answers as if {diagnosis.mistake}"
    elif diagnosis.as_written is not None and diagnosis.as_written <= diagnosis.bound < diagnosis.shift:
        why = (
            f"the file is right: computed as written its shift is {diagnosis.as_written:.2g}; the engine computes it "
            "otherwise. On x86 without VNNI (python -m runtime doctor) sums of INT8 products overflow 16 bits; "
            "weights of 7 bits cannot: make export ARGS=--overflow-fix"
        )
    words, first = [f"logit shift {diagnosis.shift:.2g}", why], diagnosis.first
    if first is None:
        last = diagnosis.layers[-1]
        return [*words, f"all {last.number} layers agree; the last, {last.name}, differs by {last.difference:.2g}"]
    shown = [layer for layer in diagnosis.layers if layer.number >= first.number - 1]
    words.append(f"the first layer that differs is number {first.number}, {first.name}:")
    return words + [f"  {layer.number} {layer.name} differs by {layer.difference:.2g}" for layer in shown]


if __name__ == "__main__":  # the earlier spelling `python -m export.diagnose`
    exit_with_one_sentence(lambda: main(sys.argv[1:]))
