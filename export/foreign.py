"""`python -m export --onnx FILE …`: a classifier of another project under our contract."""

import contextlib
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnxruntime
from onnx import helper, numpy_helper

from export.golden import Reference
from export.graph import INPUT, OPSET, OUTPUT, save_onnx
from export.layers import first_without_answer
from export.model import Say, Source, write_model
from export.settings import Foreign, Settings
from runtime.backends import open_backend
from runtime.candidate import Candidate
from runtime.errors import BadModel, BadPhoto, GateFailed, SajiError
from runtime.evaluation import ValidationSet, accuracy
from runtime.files import sha256_file, sha256_json
from runtime.golden import PICTURE
from runtime.preprocess import pixels
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec
from training.photos.photo_set import read_photo_set
from training.photos.seen import Seen, started_from

NEWEST_IR = 10  # of ONNX 1.16 to 1.17, which every ONNX Runtime that we allow reads; newer ones add types, not meaning


def import_foreign(foreign: Foreign, out: Path, say: Say, settings: Settings | None = None) -> Receipt:
    """Write `out/models/NAME`: the foreign file wrapped, its golden vector, verdicts and receipt.

    Raises SajiError for what is missing or does not fit, GateFailed (nothing is replaced) when the wrapped file answers
    otherwise than the foreign one.
    """
    if not (foreign.onnx and foreign.classes and foreign.mean and foreign.std):
        raise SajiError("a foreign model needs --onnx FILE --classes FILE --mean R G B --std R G B; see --help")
    source = ForeignModel(foreign, say)
    folder = out / "models" / source.spec.architecture
    _require_its_own(folder, foreign.onnx)
    return write_model(source, folder, settings or Settings(), say)


def _require_its_own(folder: Path, file: Path) -> None:
    """Raise SajiError where an import would replace a model that was trained here."""
    with contextlib.suppress(BadModel):
        if "onnx" not in Receipt.read(folder).request.get("inputs", {}):
            raise SajiError(f"{folder} holds a model that was trained here; rename {file.name} and bring it in again")


class ForeignModel(Source):
    """A file of another project. The reference is that file on ONNX Runtime in FP32, normalised by numpy."""

    described = "the foreign file in ONNX Runtime FP32 on the CPU"

    def __init__(self, foreign: Foreign, say: Say) -> None:
        assert foreign.onnx
        self.foreign, self.file = foreign, foreign.onnx
        as_written = read_foreign(foreign.onnx)
        self.spec, self._answers = _spec(as_written, foreign), reference_of(as_written, foreign)
        self._require_fit()
        self.core = lifted(as_written, foreign.onnx)
        self.inputs = {name: str(value) for name, value in asdict(foreign).items()}
        self.photos, self.validation = foreign.data, None
        if foreign.data:
            self.validation, logits, photos = _validation_set(foreign.data, self.spec, self._answers, say)
            figures = {"accuracy": round(accuracy(logits, self.validation.labels), 4), "photos": len(logits)}
            origin = started_from([Seen(str(self.file), sha256_file(self.file), "onnx")])  # what it saw is not known
            self.spec = replace(self.spec, validation=figures, data={"fingerprint": photos, **origin})

    def _require_fit(self) -> None:
        """Raise SajiError where it does not take photos of its size, or has another number of logits than names."""
        size, names = self.spec.geometry.size, len(self.spec.classes)
        try:
            logits = self._answers(np.zeros((1, size, size, 3), np.uint8))
        except Exception as error:  # onnxruntime raises its own classes, which have no public base
            what = " ".join(str(error).split())[:200]
            raise BadModel(f"{self.file} does not run on photos of {size} px ({what}); give its --size") from None
        if logits.shape != (1, names):
            got = f"{self.file} has logits of shape {list(logits.shape)} for a photo"
            raise SajiError(f"{self.foreign.classes} names {names} classes, but {got}; name each logit, in their order")

    def reference(self, images: np.ndarray) -> np.ndarray:
        """The foreign network as it is."""
        return self._answers(images)

    def first_without_answer(self, images: np.ndarray) -> str:
        """The first node of the foreign graph."""
        return first_without_answer(wrapped(self.core, self.spec, self.foreign), images)

    def write_graphs(self, folder: Path, settings: Settings, say: Say) -> None:
        """`model.onnx` alone: there is no checkpoint to write others from."""
        save_onnx(wrapped(self.core, self.spec, self.foreign), self.spec, folder / "model.onnx")

    def require_right(self, folder: Path, candidates: list[Candidate]) -> None:
        """Raise unless the wrapped file answers as the foreign one, and two photos side by side as each alone."""
        name, picture = self.spec.name, pixels(folder / PICTURE, self.spec.geometry)
        images = np.stack([picture, 255 - picture[:, ::-1]])
        engine = open_backend("ort-cpu", folder / "model.onnx", "fp32")
        try:
            alone = np.concatenate([engine.run(image[None]) for image in images])
            logits = engine.run(images)
        except Exception as error:  # onnxruntime raises its own classes, which have no public base
            raise BadModel(
                f"{name} takes no batch of two ({str(error)[:120]}); export it with a dynamic batch"
            ) from None
        finally:
            engine.close()
        if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
            raise BadModel(f"{name} answers with probabilities, not logits; export it without what follows its logits")
        if not np.allclose(logits, alone, rtol=1e-3, atol=1e-3):
            raise BadModel(
                f"{name} answers a photo otherwise when another stands beside it, as a batch norm in training does; "
                "export it in evaluation mode, model.eval()"
            )
        if not np.allclose(alone, self.reference(images), rtol=1e-3, atol=1e-3):
            raise GateFailed(f"{name} wrapped does not answer as the foreign file does; nothing was replaced")


def read_foreign(path: Path) -> onnx.ModelProto:
    """The file as it was written, a last Softmax taken off: one float32 input `[batch, …]`, one output of logits.

    Its functions are written out where they are used. Raises BadModel for anything else, such as external data that is
    not beside it, or answers that no softmax makes probabilities of.
    """
    try:
        model = onnx.load(path)
        model.ir_version = min(model.ir_version, NEWEST_IR)
        onnx.checker.check_model(model)
        model = onnx.inliner.inline_local_functions(model)
        end = _without_softmax(model)
    except Exception as error:  # protobuf's, onnx's and the system's errors are of no common family
        what = " ".join(str(error).split())[:200]
        raise BadModel(f"{path} cannot be read as ONNX ({what}); export it anew, complete") from None
    graph, constants = model.graph, {tensor.name for tensor in model.graph.initializer}
    values = [*(value for value in graph.input if value.name not in constants), *graph.output]
    signature = ", ".join(f"{value.name} {_type(value)} {_dims(value)}" for value in values)
    if [(_type(value), len(_dims(value))) for value in values] != [("FLOAT", 4), ("FLOAT", 2)]:
        raise BadModel(
            f"{path} has the signature {signature}; float32 photos [N, …] in and logits [N, C] out are needed"
        )
    if isinstance(_dims(values[0])[0], int):
        raise BadModel(f"{path} takes a fixed batch ({signature}); export it anew with a dynamic batch")
    if end in ("Sigmoid", "HardSigmoid"):
        raise BadModel(
            f"{path} ends in a {end}, which answers for each class alone; saji names one of them: export it without, "
            "if its classes exclude each other"
        )
    del graph.input[:], graph.value_info[:]
    graph.input.append(values[0])
    return model


def _without_softmax(model: onnx.ModelProto) -> str:
    """Take a last Softmax off a graph; the operator that its output comes from now, renaming left aside."""
    graph, output = model.graph, model.graph.output[0]
    made_by = {name: node for node in graph.node for name in node.output}
    last = made_by[output.name]
    while last.op_type in ("Identity", "Dropout") and last.input[0] in made_by:
        last = made_by[last.input[0]]
    if last.op_type == "Softmax":
        output.name = last.input[0]
        graph.node.remove(last)
        used = {name for node in graph.node for name in node.input}
        for node in [node for node in graph.node if node.op_type == "Identity" and node.input[0] == last.output[0]]:
            if node.output[0] not in used:
                graph.node.remove(node)
    return last.op_type


def lifted(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The graph at our opset. Raises BadModel where onnx cannot convert it."""
    if next(entry.version for entry in model.opset_import if not entry.domain) == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        raise BadModel(f"{path} cannot be converted to opset {OPSET} ({what}); export it with that opset") from None


def _type(value: onnx.ValueInfoProto) -> str:
    return onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _spec(core: onnx.ModelProto, foreign: Foreign) -> ModelSpec:
    assert foreign.onnx and foreign.classes
    classes = _classes(foreign.classes)
    logits, sides = _dims(core.graph.output[0])[1], _dims(core.graph.input[0])[1:]
    channels, height, width = sides if foreign.layout == "nchw" else (sides[2], *sides[:2])
    told = {side for side in (height, width, foreign.size or "open") if isinstance(side, int)}
    if channels != 3 or len(told) != 1:
        raise SajiError(f"{foreign.onnx} takes photos of {sides}; give the --layout and square --size that fit it")
    if isinstance(logits, int) and logits != len(classes):
        raise SajiError(f"{foreign.classes} names {len(classes)} classes, but {foreign.onnx} has {logits} logits")
    geometry = Geometry.for_size(told.pop())
    resize, how = foreign.resize or geometry.resize, foreign.interpolation
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in foreign.onnx.stem)
    return ModelSpec(name, name, classes, replace(geometry, resize=resize, interpolation=how))


def _classes(path: Path) -> tuple[str, ...]:
    """The names in a text file, one a line; blank lines are left out."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise SajiError(f"{path} cannot be read as UTF-8 text ({error}); it needs a class a line") from None
    if strange := [line for line in lines if not line.isprintable()]:
        raise SajiError(f"{path} has the class {strange[0]!r}, whose name cannot be printed; rename it")
    for name, count in Counter(filter(None, lines)).items():
        if count > 1:
            at = ", ".join(str(number) for number, line in enumerate(lines, 1) if line == name)
            raise SajiError(f"{path} names {name!r} {count} times (lines {at}); tell them apart, such as {name!r} (2)")
    return tuple(filter(None, lines))


def reference_of(core: onnx.ModelProto, foreign: Foreign) -> Reference:
    """The foreign network as it is, photo by photo, on pixels that numpy normalises.

    Raises BadModel where ONNX Runtime does not run it.
    """
    try:
        session = onnxruntime.InferenceSession(core.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes, which have no public base
        what = " ".join(str(error).split())[:200]
        raise BadModel(f"{foreign.onnx} is not run by ONNX Runtime ({what}); export it anew") from None
    mean, std = (np.array(triple, np.float32) for triple in (foreign.mean, foreign.std))

    def answer(image: np.ndarray) -> np.ndarray:
        photo = (image[None].astype(np.float32) * np.float32(foreign.scale) - mean) / std
        photo = photo[..., ::-1] if foreign.channels == "bgr" else photo
        photo = photo.transpose(0, 3, 1, 2) if foreign.layout == "nchw" else photo
        return session.run(None, {core.graph.input[0].name: photo})[0]

    return lambda images: np.concatenate([answer(image) for image in images])


def wrapped(core: onnx.ModelProto, spec: ModelSpec, foreign: Foreign) -> onnx.ModelProto:
    """The foreign graph under the contract: uint8 `[batch, S, S, 3]` RGB in, float32 logits `[batch, C]` out."""
    whole, size = onnx.ModelProto(), spec.geometry.size
    whole.CopyFrom(core)
    graph = whole.graph
    _rename(graph, "foreign/")  # its own names may be "images" and "logits", too
    entry = graph.input[0].name
    exit_ = graph.output[0].name
    first = _normalisation(foreign, entry)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in first.constants.items())
    nodes = [*first.nodes, *graph.node, helper.make_node("Identity", [exit_], [OUTPUT], name="logits")]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, ["batch", size, size, 3]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", len(spec.classes)]))
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"  # multiply-adds are listed by the node's name
    return whole


@dataclass(frozen=True)
class Prefix:
    """Nodes that come before a graph, and their constants by name."""

    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]


def _normalisation(foreign: Foreign, output: str) -> Prefix:
    """From photos as the contract has them to what the foreign network takes: (pixels × scale − mean) / std."""
    constants = {f"saji/{name}": np.array(getattr(foreign, name), np.float32) for name in ("scale", "mean", "std")}
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Cast", [], {"to": onnx.TensorProto.FLOAT}),
        ("Mul", ["saji/scale"], {}),
        ("Sub", ["saji/mean"], {}),
        ("Div", ["saji/std"], {}),
    ]
    if foreign.channels == "bgr":
        constants["saji/bgr"] = np.array([2, 1, 0])
        steps.append(("Gather", ["saji/bgr"], {"axis": 3}))
    steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}) if foreign.layout == "nchw" else ("Identity", [], {}))
    names = [INPUT, *(f"saji/{number}" for number in range(1, len(steps))), output]
    nodes = [
        helper.make_node(kind, [names[i], *more], [names[i + 1]], name=f"saji/{kind}", **attributes)
        for i, (kind, more, attributes) in enumerate(steps)
    ]
    return Prefix(nodes, constants)


def _rename(graph: onnx.GraphProto, prefix: str) -> None:
    """Put a prefix before the name of every tensor of a graph, and of the branches and loops inside it."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name and prefix + name for name in names]  # an empty name is an input left out
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _rename(inner, prefix)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = prefix + value.name


def _validation_set(
    data: Path, spec: ModelSpec, reference: Reference, say: Say
) -> tuple[ValidationSet, np.ndarray, str]:
    """The validation photos of `data`, or all where it has no split; the reference's logits of them; who they are."""
    everything = read_photo_set(data).photos
    photos = [photo for photo in everything if photo.split == "val"] or list(everything)
    if unknown := sorted({photo.label for photo in photos} - set(spec.classes)):
        raise SajiError(f"{data} has the labels {', '.join(unknown)}, the model {', '.join(spec.classes)}; rename one")
    images, right = [], []
    for photo in photos:
        try:
            images.append(pixels(photo.path, spec.geometry))
            right.append(photo)
        except BadPhoto as error:
            say(f"left out: {photo.path}: {error}")
    if not right:
        raise SajiError(f"{data} holds no photo that can be read; without photos leave --data out")
    labels = np.array([spec.classes.index(photo.label) for photo in right])
    names = tuple(f"{photo.label}/{photo.path.name}" for photo in right)
    stacked = np.stack(images)
    logits = reference(stacked)
    fingerprint = sha256_json([[photo.label, sha256_file(photo.path)] for photo in right])
    return ValidationSet(stacked, labels, names, logits), logits, fingerprint
