"""What a model is: the one description that travels checkpoint → ONNX → receipt → every consumer."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.errors import BadModel
from runtime.files import DAMAGE, as_record

SCHEMA_VERSION = 1
# What runtime.preprocess does to a photo. A model keeps the version that it was trained with, so that its photos stay
# the same pixels: 1 ignored colour profiles, 2 converts what is not sRGB. Photos in sRGB are the same bits in both.
PREPROCESS_VERSION = 2
MOST_PIXELS = 4096  # of a side that a network may see: far above any classifier, and 48 MB a photo
CROPS, INTERPOLATIONS, DECODINGS = ("center",), ("bilinear", "bicubic"), ("draft", "full")


@dataclass(frozen=True)
class Geometry:
    """From a decoded photo to the pixels that the network sees (`runtime.preprocess` carries it out).

    The shorter side is resized to `resize` pixels, then the central `size` × `size` square is cut out.
    mean and std are not here: they are the first layer of every exported graph.
    """

    size: int = 224
    resize: int = 256
    crop: str = "center"
    interpolation: str = "bilinear"
    decode: str = "draft"  # JPEGs may be decoded at a smaller DCT scale; "full" forbids it
    version: int = PREPROCESS_VERSION

    @classmethod
    def for_size(cls, size: int, decode: str = "draft") -> "Geometry":
        """The usual evaluation geometry: resize to 8/7 of the crop (224 from 256, as ImageNet evaluation does)."""
        return cls(size=size, resize=round(size * 8 / 7), decode=decode)


def softmax(scaled: np.ndarray) -> np.ndarray:
    """Probabilities of float logits `[N, C]`, of the same type; rows sum to 1."""
    exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def _log_sum_exp(scaled: np.ndarray) -> np.ndarray:
    top = scaled.max(axis=1)
    return top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))


# How much a photo looks like the known classes, by the rule that a spec may name: from float64 logits / temperature
# [N, C] and the temperature to [N], higher is surer. max_probability is the baseline of Hendrycks and Gimpel 2017;
# energy is the negative free energy T · log Σ exp(logits / T) of Liu et al. 2020.
RULES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "max_probability": lambda scaled, temperature: softmax(scaled).max(axis=1),
    "energy": lambda scaled, temperature: temperature * _log_sum_exp(scaled),
}


@dataclass(frozen=True)
class Rejection:
    """A score below `threshold`, by the `rule` of that name in RULES, means "not sure, perhaps none of these"."""

    rule: str
    threshold: float

    @classmethod
    def from_values(cls, values: Any, origin: str) -> "Rejection":
        """A rejection from its JSON form; raises BadModel naming `origin` when it cannot be followed."""
        if not isinstance(values, dict) or values.get("rule") not in tuple(RULES):
            raise BadModel(f"{origin} has the rejection {values!r}, saji knows {', '.join(RULES)}; train it again")
        if not _is_number(values.get("threshold")):
            raise BadModel(f"{origin} has a rejection rule without a threshold, a number; train it again")
        return as_record(cls, values)


@dataclass(frozen=True)
class ModelSpec:
    """Everything a consumer needs to use a model and to know where it comes from.

    `classes[i]` names logit `i`. Without a `rejection` the model is sure of every photo. Probabilities are
    softmax(logits / temperature).
    """

    name: str
    architecture: str
    classes: tuple[str, ...]
    geometry: Geometry = field(default_factory=Geometry)
    temperature: float = 1.0
    rejection: Rejection | None = None
    validation: dict[str, Any] = field(default_factory=dict)  # accuracy, photos, of the FP32 checkpoint
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)  # fingerprint, drawn, started_from: files and what they had seen
    versions: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Raise BadModel where two classes share a name, of which every consumer would lose one."""
        named = Counter(name for name in self.classes if isinstance(name, str))
        if twice := [name for name, count in named.items() if count > 1]:
            raise BadModel(f"the class {twice[0]!r} is there twice; give each class a name of its own")

    def to_json(self) -> str:
        """The spec as compact JSON, the form stored in checkpoints and ONNX metadata."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, origin: str = "this file") -> "ModelSpec":
        """Read a spec back; raises BadModel naming `origin` when it is damaged or from another schema."""
        try:
            return cls.from_values(json.loads(text), origin)
        except (ValueError, RecursionError) as error:
            raise _damaged(origin, error) from None

    @classmethod
    def from_values(cls, values: Any, origin: str = "this file") -> "ModelSpec":
        """A spec from its JSON form, an object; raises BadModel as `from_json` does."""
        try:
            version = values["schema_version"]
            if version != SCHEMA_VERSION:
                raise BadModel(
                    f"{origin} has spec version {version}, this saji reads {SCHEMA_VERSION}; export it again"
                )
            spec = as_record(cls, values, origin)
        except BadModel as error:
            if origin in str(error):
                raise
            raise BadModel(f"{origin} carries a saji spec that cannot be right: {error}") from None
        except DAMAGE as error:
            raise _damaged(origin, error) from None
        if not _is_count(spec.geometry.version) or spec.geometry.version > PREPROCESS_VERSION:
            raise BadModel(
                f"{origin} expects preprocessing version {spec.geometry.version}, this saji has 1 to "
                f"{PREPROCESS_VERSION}; update saji, or train again"
            )
        for wrong in _faults(spec):
            raise BadModel(f"{origin} carries a saji spec that cannot be right: {wrong}; export the model again")
        return spec

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Softmax of float `[N, C]` logits at the spec's temperature; float64 `[N, C]`, rows sum to 1."""
        return softmax(np.asarray(logits, np.float64) / self.temperature)

    def score(self, logits: np.ndarray) -> np.ndarray:
        """By the rejection rule, how much each photo looks like the known classes; float64 `[N]`, higher is surer.

        Of float `[N, C]` logits. Without a rule it is the highest probability.
        """
        rule = self.rejection.rule if self.rejection else "max_probability"
        return RULES[rule](np.asarray(logits, np.float64) / self.temperature, self.temperature)

    def sure(self, logits: np.ndarray) -> np.ndarray:
        """Which photos the rejection rule keeps, bool `[N]`, of float `[N, C]` logits; without a rule all."""
        return self.score(logits) >= (self.rejection.threshold if self.rejection else -np.inf)


def _damaged(origin: str, error: Exception) -> BadModel:
    return BadModel(f"{origin} carries a damaged saji spec ({error!r}); export the model again")


def _faults(spec: ModelSpec) -> Iterator[str]:
    """What no spec of ours says, in words."""
    geometry = spec.geometry
    texts = (spec.name, spec.architecture, *spec.classes)
    if not all(isinstance(text, str) and text for text in texts):
        yield "its name, its architecture and its classes are to be text"
    elif len(spec.classes) < 2:
        yield "it has fewer than two classes"
    elif strange := [text for text in texts if not text.isprintable()]:
        yield f"the name {strange[0]!r} cannot be printed"
    if not _is_number(spec.temperature) or spec.temperature <= 0:
        yield f"the temperature is {spec.temperature!r}, no number above 0"
    sides = (geometry.size, geometry.resize)
    if not all(map(_is_count, sides)) or not geometry.size <= geometry.resize <= MOST_PIXELS:
        yield f"it cuts {geometry.size!r} pixels out of {geometry.resize!r} (at most {MOST_PIXELS:,} a side)"
    if not _tells(spec.validation.get("held_out"), len(spec.classes)):
        yield "what it says of photos that chose nothing cannot be read"
    for name, known in (("crop", CROPS), ("interpolation", INTERPOLATIONS), ("decode", DECODINGS)):
        if getattr(geometry, name) not in known:
            yield f"{name} is {getattr(geometry, name)!r}, not {' or '.join(known)}"


def _tells(held_out: Any, classes: int) -> bool:
    """Whether the figures of photos that chose nothing are there as training writes them, or not at all."""
    if held_out is None:
        return True
    try:
        numbers = [held_out[name] for name in ("accuracy", "photos", "calibration_error")] + [*held_out["recalls"]]
        pairs = [held_out["interval"], *held_out["recall_intervals"]]
        bins = [each[name] for each in held_out["reliability"] for name in ("photos", "confidence", "accuracy")]
        numbers += bins + [edge for pair in pairs for edge in pair]
        whole = len(held_out["recalls"]) == len(pairs) - 1 == classes and all(len(pair) == 2 for pair in pairs)
        return whole and isinstance(held_out["how"], str) and all(map(_is_number, numbers))
    except (TypeError, KeyError):
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
