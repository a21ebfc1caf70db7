"""`python -m training.photos.suspects DATA`: photos that are likely mislabelled, the likeliest first.

Nothing is trained but a logistic regression: a network with published weights turns each photo into features, and the
photos of all other folds (`training.photos.folds`) are asked about it. Two answers make
the order, each by its standard score:

- how probable the label is, out of fold. That finds a dish under the name of another one (self-confidence, Northcutt
  et al. 2021, JAIR 70);
- how far away the nearest photos of the label are. That finds what is none of the dishes: a menu, raw ingredients.

With `--planted FOLDER` the list is put to the test: the photos of that folder, which are known to be mislabelled, are
mixed in, and it is told how many of them come first.
"""

import argparse
import csv
import json
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.command_line import Parser, exit_with_one_sentence, require_extra

if __name__ == "__main__":  # before the imports that would fail with a traceback
    require_extra("train", "torch", "torchvision", "lightning", "rich", "cv2", "sklearn", "imagehash")

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from runtime.benchmark.rows import append_rows
from runtime.environment import stamp, usable_cores
from runtime.files import replacing
from runtime.preprocess import decode, pixels
from runtime.spec import Geometry
from training.network import architectures
from training.network.classifier import Normalise
from training.photos.dataset import Data, load_data, run_name
from training.photos.findings import Progress, printable
from training.photos.folds import folds
from training.photos.photo_set import Photo, PhotoSet, read_photo_set
from training.progress import bar

FIRST = 60  # suspects on which the list is judged; as many as a person looks through in some minutes
TOLD, SHOWN = 10, 80  # suspects on stdout and on the contact sheet
COLUMNS, CELL, LINE, MARGIN = 8, 160, 16, 8  # pictures a row; side of a picture, line of text, space around in pixels
SIZE, BATCH = 224, 32  # what published weights were trained with, pixels; photos at once
NEAREST = 3  # photos of the label whose distance counts
LOOSENESS = 10.0  # inverse strength of the logistic regression's L2 penalty, on features of length 1


@dataclass(frozen=True)
class Answers:
    """What the other folds say of each photo: `probabilities` float `[N, C]`, and the mean `distance` float `[N]`, 0 to
    2, of its features from those of the nearest photos of its label."""

    probabilities: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class Suspect:
    """A photo, its label and the likeliest other class, both with their probability, and the distance to its label."""

    photo: Path
    label: str
    confidence: float
    other: str
    likeness: float
    distance: float

    @property
    def row(self) -> list[str]:
        """The cells of the CSV."""
        figures = [f"{value:.4f}" for value in (self.confidence, self.likeness, self.distance)]
        return [printable(self.photo.as_posix()), self.label, figures[0], self.other, *figures[1:]]


def features(architecture: str, photos: Sequence[Photo], progress: Progress) -> np.ndarray:
    """What published weights see in each photo: the input of their last layer at length 1, float32 `[N, D]`.

    Raises SajiError where there are no such weights.
    """
    network = architectures.build(architecture, 2, {}, pretrained=True).to(memory_format=torch.channels_last)
    model = torch.nn.Sequential(Normalise(*architectures.mean_std(architecture, True)), network).eval()
    seen: list[np.ndarray] = []
    architectures.head(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    geometry = Geometry.for_size(SIZE)
    blocks = [photos[start : start + BATCH] for start in range(0, len(photos), BATCH)]
    with torch.inference_mode(), ThreadPoolExecutor(usable_cores()) as pool:
        for block in progress(blocks, "looking at photos", len(blocks)):
            model(torch.from_numpy(np.stack(list(pool.map(lambda photo: pixels(photo.path, geometry), block)))))
    return normalize(np.concatenate(seen))


def answers(vectors: np.ndarray, data: Data, k: int, seed: int) -> Answers:
    """Ask k - 1 folds about the photos of the remaining one, in turn; `vectors` float `[len(data.photos), D]`."""
    probabilities = np.empty((len(vectors), len(data.classes)))
    distance = np.empty(len(vectors))
    for part in folds(data, k, seed):
        known = data.labels[part.train]
        probe = LogisticRegression(C=LOOSENESS, max_iter=1000).fit(vectors[part.train], known)
        probabilities[part.val] = probe.predict_proba(vectors[part.val])
        for label in np.unique(data.labels[part.val]):
            alike = vectors[part.train[known == label]]
            asked = part.val[data.labels[part.val] == label]
            near = NearestNeighbors(n_neighbors=min(NEAREST, len(alike))).fit(alike).kneighbors(vectors[asked])
            distance[asked] = near[0].mean(1)
    return Answers(probabilities, distance)


def suspects(data: Data, told: Answers) -> list[Suspect]:
    """All photos of a set, the likeliest mislabelled first."""
    everyone = np.arange(len(data.photos))
    given, others = told.probabilities, told.probabilities.copy()
    others[everyone, data.labels] = -1
    confidence, other = given[everyone, data.labels], others.argmax(1)
    ranked = np.argsort(_standard(confidence) - _standard(told.distance), kind="stable")
    return [
        Suspect(
            data.photos[i].path,
            data.photos[i].label,
            confidence[i],
            data.classes[other[i]],
            given[i, other[i]],
            told.distance[i],
        )
        for i in ranked
    ]


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(values.std(), 1e-9)


def contact_sheet(ranked: Sequence[Suspect]) -> Image.Image:
    """The first suspects as pictures, with label and likeness below each."""
    chosen, font = ranked[:SHOWN], ImageFont.load_default(12)
    height = CELL + 3 * LINE
    sheet = Image.new("RGB", (MARGIN + COLUMNS * (CELL + MARGIN), MARGIN - len(chosen) // -COLUMNS * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, suspect in enumerate(chosen):
        left, top = MARGIN + number % COLUMNS * (CELL + MARGIN), MARGIN + number // COLUMNS * height
        sheet.paste(ImageOps.pad(decode(suspect.photo, CELL), (CELL, CELL), color="white"), (left, top))
        draw.text((left, top + CELL), f"{number + 1}  {suspect.label[:18]} {suspect.confidence:.2f}", "black", font)
        draw.text((left, top + CELL + LINE), f"or {suspect.other[:18]} {suspect.likeness:.2f}", "#c00000", font)
    return sheet


def planted(found: PhotoSet, wrong: PhotoSet) -> tuple[PhotoSet, set[Path]]:
    """Both sets as one, without a split; and the paths of the photos of `wrong`."""
    together = tuple(replace(photo, split=None) for photo in found.photos + wrong.photos)
    return replace(found, photos=together), {photo.path for photo in wrong.photos}


def write(ranked: Sequence[Suspect], folder: Path) -> None:
    """Write all suspects to `folder/suspects.csv`, and the first ones as pictures to `folder/suspects.png`."""
    with replacing(folder / "suspects.png") as temporary:
        contact_sheet(ranked).save(temporary)
    with replacing(folder / "suspects.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["photo", "label", "confidence", "other", "likeness", "distance"])
        writer.writerows(suspect.row for suspect in ranked)


def main() -> None:
    """Read the command line, look at every photo, write the list."""
    arguments = _arguments()
    architectures.check_name(arguments.arch)
    found, wrong = read_photo_set(arguments.data), set[Path]()
    if arguments.planted:
        found, wrong = planted(found, read_photo_set(arguments.planted))
    data = load_data(found, 0.2, arguments.seed, True, arguments.out / "cache", bar)  # its split is not looked at
    told = answers(features(arguments.arch, data.photos, bar), data, arguments.folds, arguments.seed)
    ranked = suspects(data, told)
    folder = arguments.out / "suspects" / run_name(arguments.data)
    write(ranked, folder)
    for suspect in ranked[:TOLD]:
        path, label, confidence, other, likeness, distance = suspect.row
        print(f"{path}: {label} {confidence}, {other} {likeness}, distance {distance}")
    row = {
        "experiment": "suspects",
        "architecture": arguments.arch,
        "folds": arguments.folds,
        "seed": arguments.seed,
        "data_fingerprint": data.fingerprint,
        "photos": len(ranked),
        "accuracy": round(float((told.probabilities.argmax(1) == data.labels).mean()), 4),
        **recall(ranked, wrong),
    }
    if arguments.rows:
        append_rows(arguments.rows, [row | stamp()])
    print(json.dumps({"suspects": str(folder / "suspects.csv"), **row}))


def recall(ranked: Sequence[Suspect], wrong: Set[Path]) -> dict[str, Any]:
    """How many of the photos known to be mislabelled are among the first, and how many would be if one of the two
    answers made the order alone; empty where none is known."""
    if not wrong:
        return {}
    orders = {
        "found": ranked,
        "found_by_confidence": sorted(ranked, key=lambda suspect: suspect.confidence),
        "found_by_distance": sorted(ranked, key=lambda suspect: -suspect.distance),
    }
    found = {name: sum(suspect.photo in wrong for suspect in order[:FIRST]) for name, order in orders.items()}
    ranks = [rank for rank, suspect in enumerate(ranked, 1) if suspect.photo in wrong]
    return {
        "planted": len(ranks),
        "first": FIRST,
        **found,
        "recall": round(found["found"] / len(ranks), 4),
        "ranks": ranks,
    }


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m training.photos.suspects", description="Find mislabelled photos.")
    parser.add_argument("data", type=Path, help="a folder per class, or a CSV with filename,label[,split]")
    parser.add_argument(
        "--arch", default="efficientnet_lite0", help="network whose published weights look at the photos"
    )
    parser.add_argument("--folds", type=int, default=3, help="parts, each of which is judged by the others")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")
    parser.add_argument("--planted", type=Path, help="photos known to be mislabelled, to mix in: is the list any good?")
    parser.add_argument("--rows", type=Path, help="append the figures to this .jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with_one_sentence(main)
