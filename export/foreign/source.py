"""`python -m export --onnx FILE …`: a classifier of another project under our contract."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx

from export.foreign.answers import Network, require_logits, require_same
from export.foreign.batch import with_open_batch
from export.foreign.classes import composed, read_classes
from export.foreign.flags import say_what_fits_better, say_what_its_author_does
from export.foreign.names import require_names, require_own_names
from export.foreign.opening import in_one_line
from export.foreign.reading import dims, lifted, read_foreign, without_softmax
from export.foreign.wrapping import wrapped
from export.graph import opset_of, save_onnx
from export.layers import first_without_answer
from export.model import Say, Source, write_model
from export.settings import Foreign, Settings
from runtime.candidate import Candidate
from runtime.errors import BadModel, BadPhoto, SajiError, some_of
from runtime.evaluation import ValidationSet, accuracy
from runtime.files import as_text, sha256_file, sha256_json
from runtime.preprocess import pixels
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec, faults
from training.photos.photo_set import read_photo_set
from training.photos.seen import Seen, started_from

NAME_EACH = "name each logit on a line of its own, in their order"
LONGEST = 240  # bytes of a model's name: file systems take 255, and what is written for it has more before and behind


def import_foreign(foreign: Foreign, out: Path, say: Say, settings: Settings | None = None) -> Receipt:
    """Write `out/models/NAME`: the foreign file wrapped, its golden vector, verdicts and receipt.

    Raises SajiError for what is missing or does not fit, such as a file that answers otherwise once it is wrapped.
    """
    settings = settings or Settings()
    needed = ("onnx", "FILE"), ("classes", "FILE"), ("mean", "R G B"), ("std", "R G B")
    if lacking := [f"--{name} {kind}" for name, kind in needed if not getattr(foreign, name)]:
        raise SajiError(f"a foreign model needs {' '.join(lacking)}, too; see --help")
    if set(settings.precisions) - {"fp32"}:
        raise SajiError("a foreign model is brought in as it is, in FP32; leave --precisions out")
    source = ForeignModel(foreign, say)
    return write_model(source, out / "models" / source.spec.architecture, settings, say)


class ForeignModel(Source):
    """A file of another project. The reference is that file on ONNX Runtime in FP32, normalised by numpy."""

    described = "the foreign file in ONNX Runtime FP32 on the CPU"

    def __init__(self, foreign: Foreign, say: Say) -> None:
        assert foreign.onnx
        self.foreign, self.file = foreign, foreign.onnx
        as_written = read_foreign(foreign.onnx)
        logits = without_softmax(as_written)
        self.spec, self._network = _spec(as_written, foreign), Network(logits, foreign)
        require_own_names(as_written, self.spec.classes, foreign)
        say_what_its_author_does(as_written, foreign, self.spec.geometry.size, self.spec.geometry.resize, say)
        self._require_fit()
        self.whole = wrapped(with_open_batch(lifted(logits, foreign.onnx)), self.spec, foreign)
        require_logits(self._network, Network(as_written, foreign), self.whole, self.spec.geometry.size)
        require_same(self.file, self.whole, self._network, self.spec.geometry.size)
        self.inputs = {name: str(value) for name, value in asdict(foreign).items()} | {"onnx": str(self.file.resolve())}
        self.photos, self.validation = foreign.data, None
        if foreign.data:
            self.validation, answers, photos = _validation_set(foreign.data, self.spec, self._network, say)
            require_names(answers, self.validation.labels, self.spec.classes, foreign, say)
            say_what_fits_better(self._network, self.validation.images, answers, self.validation.labels, say)
            figures = {"accuracy": round(accuracy(answers, self.validation.labels), 4), "photos": len(answers)}
            seen = Seen(as_text(str(self.file)), sha256_file(self.file), "onnx")  # what it saw is not known
            self.spec = replace(self.spec, validation=figures, data={"fingerprint": photos, **started_from([seen])})

    def _require_fit(self) -> None:
        """Raise SajiError where it does not take photos of its size, or has another number of logits than names."""
        size, names = self.spec.geometry.size, len(self.spec.classes)
        try:
            logits = self._network(np.zeros((1, size, size, 3), np.uint8))
        except Exception as error:  # onnxruntime raises its own classes, which have no public base
            how = "export it anew, or give its --size where it leaves that open"
            raise BadModel(
                f"{self.file} does not run on one photo of {size} px ({in_one_line(error)}); {how}"
            ) from None
        if logits.shape != (1, names):
            got = f"{self.file} has logits of shape {list(logits.shape)} for a photo"
            raise SajiError(f"{self.foreign.classes} names {names} classes, but {got}; {NAME_EACH}")

    def reference(self, images: np.ndarray) -> np.ndarray:
        """The foreign network as it is."""
        return self._network(images)

    def require_right(self, candidates: list[Candidate]) -> None:
        """What is written was held against the foreign file before."""

    def first_without_answer(self, images: np.ndarray) -> str:
        """The first node of the foreign graph."""
        return first_without_answer(self.whole, images)

    def write_graphs(self, folder: Path, settings: Settings, say: Say) -> None:
        """`model.onnx` alone: there is no checkpoint to write others from."""
        save_onnx(self.whole, self.spec, folder / "model.onnx", opset=opset_of(self.whole))


def _spec(model: onnx.ModelProto, foreign: Foreign) -> ModelSpec:
    """The model as all consumers see it. Raises SajiError where what is told and what the file says do not fit."""
    assert foreign.onnx and foreign.classes
    classes = read_classes(foreign.classes)
    logits, sides = dims(model.graph.output[0])[1], dims(model.graph.input[0])[1:]
    channels, height, width = sides if foreign.layout == "nchw" else (sides[2], *sides[:2])
    told = {side for side in (height, width, foreign.size or "open") if isinstance(side, int)}
    if channels != 3 and isinstance(channels, int):
        how = f"by --layout {foreign.layout} of {channels} colours and not of 3"
        raise SajiError(f"{foreign.onnx} takes photos of {sides}, {how}; give the --layout that fits it")
    if height != width and isinstance(height, int) and isinstance(width, int):
        raise SajiError(
            f"{foreign.onnx} takes photos of {sides}; saji gives squares: export it for one, with one --size"
        )
    if len(told) != 1:
        raise SajiError(f"{foreign.onnx} takes photos of {sides}; give the --layout and square --size that fit it")
    if isinstance(logits, int) and logits != len(classes):
        raise SajiError(
            f"{foreign.classes} names {len(classes)} classes, but {foreign.onnx} has {logits} logits; {NAME_EACH}"
        )
    size, seen = told.pop(), (foreign.crop, foreign.interpolation, foreign.antialias)
    resize = foreign.resize or (size if foreign.crop == "squash" else size * 8 // 7)  # timm's floor(size / 0.875)
    geometry = Geometry(size, resize, *seen, decode="full")  # whole, as those decoded who trained it
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in foreign.name or foreign.onnx.stem)
    if len(name.encode()) > LONGEST:
        raise SajiError(f"{name} has more than {LONGEST} bytes, too long for a folder's name; give a shorter --name")
    spec = ModelSpec(name, name, classes, geometry)
    for wrong in faults(spec):
        raise SajiError(f"{foreign.onnx} cannot be brought in so: {wrong}; give other flags, see --help")
    return spec


def _validation_set(data: Path, spec: ModelSpec, network: Network, say: Say) -> tuple[ValidationSet, np.ndarray, str]:
    """The validation photos of `data`, or all where it has no split; the network's logits of them; who they are."""
    everything = read_photo_set(data).photos
    photos = [photo for photo in everything if photo.split == "val"] or list(everything)
    places = {composed(name): place for place, name in enumerate(spec.classes)}
    if unknown := sorted({photo.label for photo in photos if composed(photo.label) not in places}):
        raise SajiError(f"{data} has the labels {some_of(unknown)}, the model {some_of(spec.classes)}; rename one")
    images, right = [], []
    for photo in photos:
        try:
            images.append(pixels(photo.path, spec.geometry))
            right.append(photo)
        except BadPhoto as error:
            say(f"left out: {photo.path}: {error}")
    if not right:
        raise SajiError(f"{data} holds no photo that can be read; without photos leave --data out")
    labels = np.array([places[composed(photo.label)] for photo in right])
    names = tuple(f"{photo.label}/{photo.path.name}" for photo in right)
    stacked = np.stack(images)
    logits = network(stacked)
    fingerprint = sha256_json([[photo.label, sha256_file(photo.path)] for photo in right])
    return ValidationSet(stacked, labels, names, logits), logits, fingerprint
