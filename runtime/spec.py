"""What a model is: the one description that travels checkpoint → ONNX → receipt → every consumer."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from runtime.errors import BadModel
from runtime.files import DAMAGE, as_record, in_words, is_number
from runtime.markdown import is_printable

# Where an older reader would go wrong: 2 has a guard, without which its classes would be taken for names; 3 has a
# second output, without which its rejection rule cannot be followed. A model has the lowest that tells all of it
SCHEMA_VERSIONS = (1, 2, 3)
# What runtime.preprocess does to a photo. A model keeps the version that it was trained with, so that its photos stay
# the same pixels: 1 ignored colour profiles, 2 converts what is not sRGB, 3 rounds the resized sides and the crop's
# place as torchvision's Resize and CenterCrop do, by which most networks of others learnt.
PREPROCESS_VERSION = 3
# Of weights in one ONNX file: protobuf writes no message of 2 GiB or more (protobuf.dev/programming-guides/encoding),
# and 16 MiB are for the rest of the graph
MOST_WEIGHTS = 2**31 - 2**24  # bytes
MOST_PIXELS = 4096  # of a side that a network may see: far above any classifier, and 48 MB a photo
CROPS, INTERPOLATIONS, DECODINGS = ("center", "squash"), ("bilinear", "bicubic"), ("draft", "full")


def require_one_file(name: str, weights: int) -> None:
    """Raise BadModel where a network has more bytes of weights, in FP32, than one ONNX file takes."""
    if weights > MOST_WEIGHTS:
        raise BadModel(
            f"{name} has {weights / 1e9:.2f} GB of weights, and one ONNX file takes {MOST_WEIGHTS / 1e9:.2f} GB; "
            "choose a smaller network"
        )


@dataclass(frozen=True)
class Geometry:
    """From a decoded photo to the pixels that the network sees (`runtime.preprocess` carries it out).

    The shorter side is resized to `resize` pixels, by the crop "squash" (timm's word) each side, whatever the photo's
    shape; then the central `size` × `size` square is cut out.
    mean and std are not here: they are the first layer of every exported graph.
    """

    size: int = 224
    resize: int = 256
    crop: str = "center"
    interpolation: str = "bilinear"
    antialias: bool = True  # without it one pixel of four neighbours, however small the photo becomes, as OpenCV does
    decode: str = "draft"  # JPEGs may be decoded at a smaller DCT scale; "full" forbids it
    version: int = PREPROCESS_VERSION

    @classmethod
    def for_size(cls, size: int, decode: str = "draft") -> "Geometry":
        """The usual evaluation geometry: resize to 8/7 of the crop (224 from 256, as ImageNet evaluation does)."""
        return cls(size=size, resize=round(size * 8 / 7), decode=decode)


# Far behind the most likely class a probability is 0, also where the program around us has NumPy raise
_AS_USUAL = np.errstate(under="ignore")


@_AS_USUAL
def softmax(scaled: np.ndarray) -> np.ndarray:
    """Probabilities of float logits `[N, C]`, of the same type; rows sum to 1."""
    exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


@_AS_USUAL
def _log_sum_exp(scaled: np.ndarray) -> np.ndarray:
    top = scaled.max(axis=1)
    return top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))


# How much a photo looks like the classes that have a name, by the rule that a spec may name: from float64 logits /
# temperature [N, C], the temperature and which classes those are (all, or bool [C]) to [N], higher is surer.
# max_probability is the baseline of Hendrycks and Gimpel 2017; energy is the negative free energy
# T · log Σ exp(logits / T) of Liu et al. 2020. A third rule, FAMILIARITY, is the model's own second output.
EVERY: Any = slice(None)
RULES: dict[str, Callable[..., np.ndarray]] = {
    "max_probability": lambda scaled, temperature, named=EVERY: softmax(scaled)[:, named].max(axis=1),
    "energy": lambda scaled, temperature, named=EVERY: temperature * _log_sum_exp(scaled[:, named]),
}
FAMILIARITY = "familiarity"
# What a photo may be answered: the name of a class; not sure, perhaps none of these; nothing of the kind is there
Answer = Literal["named", "unknown", "absent"]
NAMED, UNKNOWN, ABSENT = ANSWERS = get_args(Answer)


def side_by_side(logits: np.ndarray, familiarity: np.ndarray | None = None) -> np.ndarray:
    """A model's outputs as they are passed on: logits `[N, C]`, and behind them familiarity `[N]` if there is one."""
    return logits if familiarity is None else np.column_stack([logits, familiarity])


@dataclass(frozen=True)
class Rejection:
    """A score below `threshold`, by a `rule` of RULES or FAMILIARITY, means "not sure, perhaps none of these"."""

    rule: str
    threshold: float

    @classmethod
    def from_values(cls, values: Any, origin: str) -> "Rejection":
        """A rejection from its JSON form; raises BadModel naming `origin` when it cannot be followed."""
        known = (*RULES, FAMILIARITY)
        if not isinstance(values, dict) or values.get("rule") not in known:
            raise BadModel(f"{origin} has the rejection {values!r}, saji knows {', '.join(known)}; train it again")
        if not is_number(values.get("threshold")):
            raise BadModel(f"{origin} has a rejection rule without a threshold, a number; train it again")
        return as_record(cls, values)


@dataclass(frozen=True)
class Guard:
    """Two classes that are no name: `absent`, nothing of the kind, and `unnamed`, of the kind, but without a name.

    Where all others together have a probability below `presence`, nothing of the kind is there. What is there, and has
    no name that the rejection rule is sure of, is unknown.
    """

    absent: str
    unnamed: str
    presence: float


@dataclass(frozen=True)
class ModelSpec:
    """Everything a consumer needs to use a model and to know where it comes from.

    `classes[i]` names logit `i`. Without a `rejection` the model is sure of every photo, without a `guard` every class
    is a name. Probabilities are softmax(logits / temperature). `translations` has the classes by language, as in "id".

    A model's outputs are passed on side by side, float `[N, C]`, or `[N, C + 1]` where it has the second output,
    `familiarity`: how much a photo is like those that it learnt from, higher is more.
    """

    name: str
    architecture: str
    classes: tuple[str, ...]
    geometry: Geometry = field(default_factory=Geometry)
    temperature: float = 1.0
    rejection: Rejection | None = None
    guard: Guard | None = None
    familiarity: bool = False
    translations: dict[str, tuple[str, ...]] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)  # accuracy, photos, of the FP32 checkpoint
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)  # fingerprint, drawn, started_from: files and what they had seen
    versions: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSIONS[0]

    def __post_init__(self) -> None:
        """Raise BadModel where two classes share a name, of which every consumer would lose one."""
        if twice := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise BadModel(f"the class {twice[0]!r} is there twice; give each class a name of its own")

    def record(self) -> dict[str, Any]:
        """The spec as JSON values; without `guard` and the like where it has none, as before there were any."""
        values, newer = dataclasses.asdict(self), ("guard", "familiarity", "translations")
        return {name: value for name, value in values.items() if value or name not in newer}

    def to_json(self) -> str:
        """The spec as compact JSON, the form stored in checkpoints and ONNX metadata."""
        return json.dumps(self.record(), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, origin: str = "this file") -> "ModelSpec":
        """Read a spec back; raises BadModel naming `origin` when it is damaged or from another schema."""
        try:
            return cls.from_values(json.loads(text), origin)
        except (ValueError, TypeError, RecursionError) as error:  # TypeError: it is not even text
            raise _damaged(origin, error) from None

    @classmethod
    def from_values(cls, values: Any, origin: str = "this file") -> "ModelSpec":
        """A spec from its JSON form, an object; raises BadModel as `from_json` does."""
        try:
            version = values["schema_version"]
            if version not in SCHEMA_VERSIONS:
                raise BadModel(
                    f"{origin} has spec version {version}, this saji reads {', '.join(map(str, SCHEMA_VERSIONS))}; "
                    "export it again"
                )
            spec = as_record(cls, values, origin)
        except BadModel as error:
            if origin in error.args[0]:  # str(error) escapes names
                raise
            raise BadModel(f"{origin} carries a saji spec that cannot be right: {error}") from None
        except DAMAGE as error:
            raise _damaged(origin, error) from None
        if not 0 < spec.geometry.version <= PREPROCESS_VERSION:
            raise BadModel(
                f"{origin} expects preprocessing version {spec.geometry.version}, this saji has 1 to "
                f"{PREPROCESS_VERSION}; update saji, or train again"
            )
        for wrong in faults(spec):
            raise BadModel(f"{origin} carries a saji spec that cannot be right: {wrong}; export the model again")
        return spec

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs, in the order in which they stand side by side."""
        return ("logits", FAMILIARITY) if self.familiarity else ("logits",)

    def logits(self, outputs: np.ndarray) -> np.ndarray:
        """The logits `[N, C]` among a model's outputs."""
        return outputs[:, : len(self.classes)]

    def familiarity_of(self, outputs: np.ndarray) -> np.ndarray | None:
        """The familiarity `[N]` among a model's outputs; None where it has none."""
        return outputs[:, len(self.classes)] if self.familiarity else None

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Softmax of the logits among float outputs at the spec's temperature; float64 `[N, C]`, rows sum to 1."""
        return softmax(np.asarray(self.logits(outputs), np.float64) / self.temperature)

    @property
    def published(self) -> dict[str, Any]:
        """The figure that others published of this model, of which no accuracy was measured here; mostly empty.

        Its files were checked on pictures without labels, for which the checkpoint's own answers stand.
        """
        return dict(self.data.get("published", {}))

    @functools.cached_property
    def named(self) -> np.ndarray:
        """Which classes are a name that a photo may be given, bool `[C]`."""
        others = (self.guard.absent, self.guard.unnamed) if self.guard else ()
        return np.array([name not in others for name in self.classes])

    def score(self, outputs: np.ndarray) -> np.ndarray:
        """By the rejection rule, how much each photo looks like the named classes; float64 `[N]`, higher is surer.

        Without a rule it is the highest probability.
        """
        rule, outputs = self.rejection.rule if self.rejection else "max_probability", np.asarray(outputs, np.float64)
        if rule == FAMILIARITY:
            return outputs[:, len(self.classes)]
        return RULES[rule](self.logits(outputs) / self.temperature, self.temperature, self.named)

    def sure(self, outputs: np.ndarray) -> np.ndarray:
        """Which photos get the name of their most likely class, bool `[N]`.

        Those that the rejection rule keeps, without a rule all, but none of the guard's two classes.
        """
        kept = self.score(outputs) >= (self.rejection.threshold if self.rejection else -np.inf)
        return kept & self.named[self.logits(np.asarray(outputs)).argmax(axis=1)]

    def answers(self, outputs: np.ndarray) -> list[Answer]:
        """What each photo is answered, of ANSWERS, by a model's float outputs: the one rule of all consumers.

        Where the guard finds nothing of the kind it is "absent", else what is `sure` is "named", the rest "unknown".
        """
        nothing = np.zeros(len(outputs), bool)
        if self.guard:
            absent = self.probabilities(outputs)[:, self.classes.index(self.guard.absent)]
            nothing = absent > 1 - self.guard.presence
        unsure = np.where(nothing, ABSENT, UNKNOWN)
        return np.where(self.sure(outputs), NAMED, unsure).tolist()


def _damaged(origin: str, error: Exception) -> BadModel:
    return BadModel(f"{origin} carries a damaged saji spec ({in_words(error)}); export the model again")


def faults(spec: ModelSpec) -> Iterator[str]:
    """What no spec of ours says, in words."""
    geometry = spec.geometry
    texts = (spec.name, spec.architecture, *spec.classes)
    if not all(texts):
        yield "its name, its architecture and its classes are to be text"
    elif len(spec.classes) < 2:
        yield "it has fewer than two classes"
    elif strange := [text for text in texts if not is_printable(text)]:
        yield f"the name {strange[0]!r} cannot be printed"
    if spec.temperature <= 0:
        yield f"the temperature is {spec.temperature!r}, no number above 0"
    if not 0 < geometry.size <= geometry.resize <= MOST_PIXELS:
        yield f"it cuts {geometry.size!r} pixels out of {geometry.resize!r} (at most {MOST_PIXELS:,} a side)"
    if geometry.version < 3 and (geometry.crop, geometry.antialias) != ("center", True):
        yield f"it has a crop or filter that preprocessing version {geometry.version} had not"
    if geometry.interpolation != "bilinear" and not geometry.antialias:
        yield f"it resizes by {geometry.interpolation} without antialias, which only bilinear does here"
    if not _tells(spec.validation.get("held_out"), len(spec.classes)):
        yield "what it says of photos that chose nothing cannot be read"
    if spec.guard and (wrong := _wrong_with(spec.guard, spec)):
        yield wrong
    if spec.familiarity and spec.schema_version < 3:
        yield "it has the output familiarity, which is of version 3"
    elif spec.rejection and spec.rejection.rule == FAMILIARITY and not spec.familiarity:
        yield "it rejects by a familiarity that it does not have"
    if not all(len(names) == len(spec.classes) for names in spec.translations.values()):
        yield "its translations do not name each class"
    for name, known in (("crop", CROPS), ("interpolation", INTERPOLATIONS), ("decode", DECODINGS)):
        if getattr(geometry, name) not in known:
            yield f"{name} is {getattr(geometry, name)!r}, not {' or '.join(known)}"


def _wrong_with(guard: Guard, spec: ModelSpec) -> str:
    """What is wrong with a guard, in words; empty where nothing is."""
    if spec.schema_version < 2:
        return "it has a guard, which is of version 2"
    if len({guard.absent, guard.unnamed} & set(spec.classes)) < 2 or len(spec.classes) < 3:
        return f"its guard speaks of {guard.absent!r} and {guard.unnamed!r}, which are to be two of its classes"
    if not 0 < guard.presence <= 0.5:
        return f"its guard's presence is {guard.presence!r}, no number above 0 and up to 0.5"
    return ""


def _tells(held_out: Any, classes: int) -> bool:
    """Whether the figures of photos that chose nothing are there as training writes them, or not at all."""
    if held_out is None:
        return True
    try:
        figures = [held_out[name] for name in ("accuracy", "photos", "macro_f1", "calibration_error")]
        pairs = [held_out["interval"], *held_out["recall_intervals"]]
        bins = [each[name] for each in held_out["reliability"] for name in ("photos", "confidence", "accuracy")]
        numbers = [*figures, *held_out["recalls"], *bins, *(edge for pair in pairs for edge in pair)]
        whole = len(held_out["recalls"]) == len(pairs) - 1 == classes and all(len(pair) == 2 for pair in pairs)
        return whole and isinstance(held_out["how"], str) and all(map(is_number, numbers))
    except (TypeError, KeyError):
        return False
