"""The golden vector beside a model: two pictures and what the checkpoint says of them, for all consumers to check by.

`golden.png` has no colour profile and is no JPEG, so that every decoder gives the same pixels: `golden.json` holds
their sha256 after preprocessing. `golden.jpg` is as large as a photo; its decoders differ, so it has a slack of its
own. Beside the checkpoint's logits and probabilities stands the tolerance of each engine and precision.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from runtime.backends import Backend
from runtime.candidate import Candidate
from runtime.errors import BadModel, NotAsAsked
from runtime.files import DAMAGE, as_record, in_words, read_json, write_json
from runtime.preprocess import pixels
from runtime.receipt import Receipt
from runtime.spec import ModelSpec

PICTURE, PHOTO, FILE = "golden.png", "golden.jpg", "golden.json"


@dataclass(frozen=True)
class Answer:
    """The checkpoint's answer to one picture, decoded whole.

    `pixels_sha256`: of the uint8 `[size, size, 3]` RGB bytes, empty for a JPEG. `decoding`: what decoders may add to
    the difference of a probability. `answer`: of `runtime.spec.ANSWERS`, for who follows the spec's rule himself.
    `familiarity`: of a model that has this second output.
    """

    pixels_sha256: str
    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    decoding: float = 0.0
    answer: str = ""
    familiarity: float | None = None


@dataclass(frozen=True)
class Golden:
    """`pictures`: by file name. `tolerance`: largest difference of a probability, by engine and precision.

    It also bounds the difference of familiarity over 4 + its size: what a logistic curve of it would move by at most.

    The engines are our backends, and "node" and "web": ONNX Runtime as JavaScript runs it.
    """

    pictures: dict[str, Answer]
    tolerance: dict[str, dict[str, float]]

    def write(self, folder: Path) -> None:
        """Write `golden.json` atomically."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Golden":
        """Read a model folder's golden vector. Raises BadModel when it is missing or damaged."""
        try:
            return as_record(cls, read_json(folder / FILE))
        except (OSError, *DAMAGE) as error:
            raise BadModel(f"{folder / FILE} cannot be read ({in_words(error)}); export the model again") from None

    def expected(self, folder: Path, picture: str, candidate: Candidate) -> tuple[Answer, float]:
        """The answer to a picture, and what `allowed` says. Raises BadModel where the file has none for it."""
        try:
            return self.pictures[picture], self.allowed(picture, candidate.backend, candidate.precision)
        except KeyError as missing:
            raise BadModel(f"{folder / FILE} says nothing of {missing}; export the model again") from None

    def allowed(self, picture: str, engine: str, precision: str) -> float:
        """The largest difference of a probability that is still right."""
        return self.tolerance[engine][precision] + self.pictures[picture].decoding


def difference(engine: Backend, images: np.ndarray, answer: Answer, spec: ModelSpec) -> float:
    """The largest difference from the checkpoint's answer, see `Golden`; images uint8 `[1, size, size, 3]` RGB."""
    outputs = engine.run(images)
    apart = np.abs(spec.probabilities(outputs)[0] - np.array(answer.probabilities))
    if answer.familiarity is not None:
        apart = np.append(apart, abs(outputs[0, -1] - answer.familiarity) / (4 + abs(answer.familiarity)))
    return float(apart.max())  # NaN where one of them is


def check(
    engine: Backend, folder: Path, receipt: Receipt, candidate: Candidate, pictures: Sequence[str] = (PICTURE,)
) -> float:
    """Compare an opened engine with the golden vector; the largest difference of a probability.

    By default one small picture: cheap enough for every start, and the engine is warm afterwards. Raises NotAsAsked
    when the pixels or the answer are not what export wrote down, BadModel when it did not write this vector.
    """
    for file in (FILE, *pictures):
        receipt.verify(folder, file)
    golden, largest = Golden.read(folder), 0.0
    for picture in pictures:
        answer, allowed = golden.expected(folder, picture, candidate)
        images = pixels(folder / picture, receipt.spec.geometry)[None]
        if answer.pixels_sha256 and digest(images) != answer.pixels_sha256:
            raise NotAsAsked(
                f"{folder / picture} becomes other pixels here than at export, so every answer may differ; "
                "install the Pillow version of constraints.txt, or export again"
            )
        apart = difference(engine, images, answer, receipt.spec)
        if not apart <= allowed:
            raise NotAsAsked(
                f"{candidate.name} answers the golden picture otherwise than the checkpoint (in {picture} a "
                f"probability differs by {apart:.3f}, {allowed:.3f} is allowed); check it on this machine with: "
                "make bench ARGS=--force"
            )
        largest = max(largest, apart)
    return largest


def digest(images: np.ndarray) -> str:
    """sha256 of the pixels' bytes, row by row, RGB."""
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
