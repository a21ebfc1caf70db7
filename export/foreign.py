"""`python -m export --onnx FILE …`: a classifier of another project under our contract."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import onnx.parser
import onnx.version_converter
import onnxruntime

from export.golden import Reference
from export.graph import OPSET, OUTPUT, save_onnx
from export.layers import first_without_answer
from export.model import Say, Source, write_model
from export.settings import Foreign, Settings
from runtime.backends import open_backend
from runtime.candidate import Candidate
from runtime.errors import BadModel, GateFailed, SajiError
from runtime.evaluation import ValidationSet, accuracy
from runtime.files import sha256_file
from runtime.golden import PICTURE
from runtime.preprocess import pixels
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec
from training.photos.photo_set import read_photo_set
from training.photos.seen import Seen, started_from


def import_foreign(foreign: Foreign, out: Path, say: Say, settings: Settings | None = None) -> Receipt:
    """Write `out/models/NAME`: the foreign file wrapped, its golden vector, verdicts and receipt.

    Raises SajiError for what is missing or does not fit, GateFailed (nothing is replaced) when the wrapped file answers
    otherwise than the foreign one.
    """
    if not (foreign.onnx and foreign.classes and foreign.mean and foreign.std):
        raise SajiError("a foreign model needs --onnx FILE --classes FILE --mean R G B --std R G B; see --help")
    source = ForeignModel(foreign)
    return write_model(source, out / "models" / source.spec.architecture, settings or Settings(), say)


class ForeignModel(Source):
    """A file of another project. The reference is that file on ONNX Runtime in FP32, normalised by numpy."""

    described = "the foreign file in ONNX Runtime FP32 on the CPU"

    def __init__(self, foreign: Foreign) -> None:
        assert foreign.onnx
        self.foreign, self.file, self.core = foreign, foreign.onnx, read_foreign(foreign.onnx)
        self.spec, self._answers = _spec(self.core, foreign), reference_of(self.core, foreign)
        self.inputs = {name: str(value) for name, value in asdict(foreign).items()}
        self.photos, self.validation = foreign.data, None
        if foreign.data:
            self.validation, logits = _validation_set(foreign.data, self.spec, self._answers)
            figures = {"accuracy": round(accuracy(logits, self.validation.labels), 4), "photos": len(logits)}
            origin = started_from([Seen(str(self.file), sha256_file(self.file), "onnx")])  # what it saw is not known
            self.spec = replace(self.spec, validation=figures, data=origin)

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
        """Raise unless the wrapped file answers the golden picture, twice in one batch, as the foreign one."""
        name, images = self.spec.name, np.repeat(pixels(folder / PICTURE, self.spec.geometry)[None], 2, axis=0)
        engine = open_backend("ort-cpu", folder / "model.onnx", "fp32")
        try:
            logits = engine.run(images)
        except Exception as error:  # onnxruntime raises its own classes, which have no public base
            raise BadModel(
                f"{name} takes no batch of two ({str(error)[:120]}); export it with a dynamic batch"
            ) from None
        finally:
            engine.close()
        if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
            raise BadModel(f"{name} answers with probabilities, not logits; export it without what follows its logits")
        if not np.allclose(logits, self.reference(images), rtol=1e-3, atol=1e-3):
            raise GateFailed(f"{name} wrapped does not answer as the foreign file does; nothing was replaced")


def read_foreign(path: Path) -> onnx.ModelProto:
    """The file at our opset: one float32 input `[batch, …]`, one output of logits (a last Softmax is taken off).

    Raises BadModel for anything else, such as an opset that cannot be lifted or external data that is not beside it.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        last = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
        if last.op_type == "Softmax":  # before the opset is lifted, which may write a Softmax in several nodes
            model.graph.output[0].name = last.input[0]
            model.graph.node.remove(last)
        if next(entry.version for entry in model.opset_import if not entry.domain) != OPSET:
            model = onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # protobuf's, onnx's and the system's errors are of no common family
        what = " ".join(str(error).split())[:200]
        raise BadModel(f"{path} cannot be read as ONNX of opset {OPSET} ({what}); export it anew, complete") from None
    graph, constants = model.graph, {tensor.name for tensor in model.graph.initializer}
    values = [*(value for value in graph.input if value.name not in constants), *graph.output]
    signature = ", ".join(f"{value.name} {_type(value)} {_dims(value)}" for value in values)
    if [(_type(value), len(_dims(value))) for value in values] != [("FLOAT", 4), ("FLOAT", 2)]:
        raise BadModel(
            f"{path} has the signature {signature}; float32 photos [N, …] in and logits [N, C] out are needed"
        )
    if isinstance(_dims(values[0])[0], int):
        raise BadModel(f"{path} takes a fixed batch ({signature}); export it anew with a dynamic batch")
    del graph.input[:], graph.value_info[:]
    graph.input.append(values[0])
    return model


def _type(value: onnx.ValueInfoProto) -> str:
    return onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _spec(core: onnx.ModelProto, foreign: Foreign) -> ModelSpec:
    assert foreign.onnx and foreign.classes
    classes = tuple(line.strip() for line in foreign.classes.read_text(encoding="utf-8").splitlines() if line.strip())
    logits, sides = _dims(core.graph.output[0])[1], _dims(core.graph.input[0])[1:]
    channels, height, width = sides if foreign.layout == "nchw" else (sides[2], *sides[:2])
    size = foreign.size or height
    if channels != 3 or height != width or not isinstance(size, int) or (isinstance(height, int) and size != height):
        raise SajiError(f"{foreign.onnx} takes photos of {sides}; give the --layout and square --size that fit it")
    if isinstance(logits, int) and logits != len(classes):
        raise SajiError(f"{foreign.classes} names {len(classes)} classes, but {foreign.onnx} has {logits} logits")
    geometry = Geometry.for_size(size)
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in foreign.onnx.stem)
    return ModelSpec(name, name, classes, replace(geometry, resize=foreign.resize or geometry.resize))


def reference_of(core: onnx.ModelProto, foreign: Foreign) -> Reference:
    """The foreign network as it is, photo by photo, on pixels that numpy normalises."""
    session = onnxruntime.InferenceSession(core.SerializeToString(), providers=["CPUExecutionProvider"])
    mean, std = (np.array(triple, np.float32) for triple in (foreign.mean, foreign.std))

    def answer(image: np.ndarray) -> np.ndarray:
        photo = (image[None].astype(np.float32) * np.float32(foreign.scale) - mean) / std
        photo = photo.transpose(0, 3, 1, 2) if foreign.layout == "nchw" else photo
        return session.run(None, {core.graph.input[0].name: photo})[0]

    return lambda images: np.concatenate([answer(image) for image in images])


_NORMALISE = """
<ir_version: {ir}, opset_import: ["": {opset}]>
normalise (uint8[batch, {size}, {size}, 3] images) => (float[{shape}] normalised)
<float scale = {{{scale}}}, float[3] mean = {{{mean}}}, float[3] std = {{{std}}}>
{{
    pixels = Cast <to = 1> (images)
    scaled = Mul (pixels, scale)
    centred = Sub (scaled, mean)
    divided = Div (centred, std)
    normalised = {last} (divided)
}}"""


def wrapped(core: onnx.ModelProto, spec: ModelSpec, foreign: Foreign) -> onnx.ModelProto:
    """The foreign graph under the contract: uint8 `[batch, S, S, 3]` RGB in, float32 logits `[batch, C]` out."""
    assert foreign.mean and foreign.std
    size, (mean, std) = spec.geometry.size, (", ".join(f"{v:.9g}" for v in t) for t in (foreign.mean, foreign.std))
    last, shape = "Transpose <perm = [0, 3, 1, 2]>", f"batch, 3, {size}, {size}"
    if foreign.layout == "nhwc":
        last, shape = "Identity", f"batch, {size}, {size}, 3"
    facts = {"size": size, "scale": f"{foreign.scale:.9g}", "mean": mean, "std": std, "last": last, "shape": shape}
    first = onnx.parser.parse_model(_NORMALISE.format(ir=core.ir_version, opset=OPSET, **facts))
    core = onnx.compose.add_prefix(core, "foreign/")  # its own names may be "images" and "logits" too
    entry, exit_ = core.graph.input[0], core.graph.output[0]
    whole = onnx.compose.merge_models(first, core, io_map=[("normalised", entry.name)])
    whole.graph.node.append(onnx.helper.make_node("Identity", [exit_.name], [OUTPUT], name="logits"))
    whole.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(OUTPUT, 1, ["batch", len(spec.classes)]))
    for number, node in enumerate(whole.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"  # multiply-adds are listed by the node's name
    return whole


def _validation_set(data: Path, spec: ModelSpec, reference: Reference) -> tuple[ValidationSet, np.ndarray]:
    """The validation photos of `data`, or all where it has no split, and the reference's logits of them."""
    everything = read_photo_set(data).photos
    photos = [photo for photo in everything if photo.split == "val"] or list(everything)
    if unknown := sorted({photo.label for photo in photos} - set(spec.classes)):
        raise SajiError(f"{data} has the labels {', '.join(unknown)}, the model {', '.join(spec.classes)}; rename one")
    images = np.stack([pixels(photo.path, spec.geometry) for photo in photos])
    labels = np.array([spec.classes.index(photo.label) for photo in photos])
    names, logits = tuple(f"{photo.label}/{photo.path.name}" for photo in photos), reference(images)
    return ValidationSet(images, labels, names, logits), logits
