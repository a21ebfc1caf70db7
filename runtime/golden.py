"""The golden vector beside a model: one picture and what the checkpoint says of it, for every consumer to check by.

`golden.png` has no colour profile and is no JPEG, so that every decoder gives the same pixels. `golden.json` holds
their sha256 after preprocessing, the checkpoint's logits and probabilities, and the tolerance of each precision.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from runtime.backends import Backend
from runtime.errors import BadModel, NotAsAsked
from runtime.files import write_json
from runtime.preprocess import pixels
from runtime.spec import ModelSpec

PICTURE, FILE = "golden.png", "golden.json"


@dataclass(frozen=True)
class Golden:
    """`pixels_sha256`: of the uint8 `[size, size, 3]` RGB bytes. `tolerance`: largest difference of a probability."""

    pixels_sha256: str
    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    tolerance: dict[str, float]

    def write(self, folder: Path) -> None:
        """Write `golden.json` atomically."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Golden":
        """Read a model folder's golden vector. Raises BadModel when it is missing or damaged."""
        try:
            content = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return cls(**{**content, **{name: tuple(content[name]) for name in ("logits", "probabilities")}})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadModel(f"{folder / FILE} cannot be read ({error}); export the model again") from None


def golden_pixels(folder: Path, spec: ModelSpec) -> np.ndarray:
    """The golden picture as the network sees it; uint8 `[1, size, size, 3]` RGB."""
    return pixels(folder / PICTURE, spec.geometry)[None]


def difference(engine: Backend, images: np.ndarray, golden: Golden, spec: ModelSpec) -> float:
    """The largest difference of a probability from the checkpoint's."""
    return float(np.abs(spec.probabilities(engine.run(images))[0] - np.array(golden.probabilities)).max())


def check(engine: Backend, folder: Path, spec: ModelSpec, precision: str, name: str) -> float:
    """Compare an opened engine with the golden vector; the difference of probabilities.

    One small picture: cheap enough for every start, and the engine is warm afterwards. Raises NotAsAsked when the
    pixels or the answer are not what export wrote down.
    """
    golden = Golden.read(folder)
    images = golden_pixels(folder, spec)
    if digest(images) != golden.pixels_sha256:
        raise NotAsAsked(
            f"{folder / PICTURE} becomes other pixels here than at export, so every answer may differ; "
            "install the Pillow version of constraints.txt, or export again"
        )
    found, allowed = difference(engine, images, golden, spec), golden.tolerance[precision]
    if not found <= allowed:
        raise NotAsAsked(
            f"{name} answers the golden picture otherwise than the checkpoint (a probability differs by {found:.3f}, "
            f"{allowed:.3f} is allowed); judge it on this machine with: make bench ARGS=--force"
        )
    return found


def digest(images: np.ndarray) -> str:
    """sha256 of the pixels' bytes, row by row, RGB."""
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
