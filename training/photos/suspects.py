"""Photos that are likely mislabelled, the likeliest first: `python -m training suspects`.

Nothing is trained but a logistic regression: a network with published weights turns each photo into features, and the
photos of all other folds (`training.photos.split`) are asked about it. Two answers make the order, each by its standard
score:

- how probable the label is, out of fold. That finds a dish under the name of another one (self-confidence, Northcutt
  et al. 2021, JAIR 70);
- how far away the nearest photos of the label are. That finds what is none of the dishes: a menu, raw ingredients.

`lab/suspects.py` measures how good the list is. Where it finds 19 of 26, cleanlab's ranking of labels (2.9.0) finds 14.
With its outlier scores added as our distances are, by fold, both find 54 of 78 over three seeds: that would spare
only the search for neighbours below, for a library that brings pandas (results/suspects.jsonl).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from runtime.files import replacing, write_text
from runtime.preprocess import pixels
from runtime.rowfile import csv_line
from runtime.spec import Geometry
from runtime.terminal import printable, say, tell, tell_programs
from training.network import architectures
from training.photos.dataset import load_data, run_name
from training.photos.features import Backbone
from training.photos.findings_page import CELL, COLUMNS, LINE, MARGIN, RED, thumbnail
from training.photos.photo_set import Photo
from training.photos.split import Data, folds
from training.progress import Progress, bar, in_threads
from training.recipe import DEFAULTS

LISTED, SHOWN = 10, 80  # suspects on stdout and on the contact sheet
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
        return [self.photo.as_posix(), self.label, figures[0], self.other, *figures[1:]]


def features(architecture: str, photos: Sequence[Photo], progress: Progress) -> np.ndarray:
    """What published weights see in each photo: unit vectors, float32 `[N, D]`; SajiError where there are none."""
    backbone, geometry = Backbone(architecture), Geometry.for_size(SIZE)
    blocks = [photos[start : start + BATCH] for start in range(0, len(photos), BATCH)]
    seen = [
        backbone(np.stack(list(in_threads(lambda photo: pixels(photo.source(), geometry), block))))
        for block in progress(blocks, "looking at photos", len(blocks))
    ]
    return np.concatenate(seen)


def ask_folds(vectors: np.ndarray, data: Data, k: int, seed: int) -> Answers:
    """Ask k - 1 folds about the photos of the remaining one, in turn; `vectors` float `[len(data.photos), D]`."""
    probabilities = np.empty((len(vectors), len(data.classes)))
    distance = np.empty(len(vectors))
    for part in folds(data, k, seed):
        labels = data.labels[part.train]
        probe = LogisticRegression(C=LOOSENESS, max_iter=1000).fit(vectors[part.train], labels)
        probabilities[part.val] = probe.predict_proba(vectors[part.val])
        for label in np.unique(data.labels[part.val]):
            alike = vectors[part.train[labels == label]]
            chosen = part.val[data.labels[part.val] == label]
            near = NearestNeighbors(n_neighbors=min(NEAREST, len(alike))).fit(alike).kneighbors(vectors[chosen])
            distance[chosen] = near[0].mean(1)
    return Answers(probabilities, distance)


def ranking(data: Data, answers: Answers) -> list[Suspect]:
    """All photos of a set, the likeliest mislabelled first."""
    everyone = np.arange(len(data.photos))
    probabilities, others = answers.probabilities, answers.probabilities.copy()
    others[everyone, data.labels] = -1
    confidence, other = probabilities[everyone, data.labels], others.argmax(1)
    ranked = np.argsort(_standard(confidence) - _standard(answers.distance), kind="stable")
    return [
        Suspect(
            data.photos[i].path,
            data.photos[i].label,
            confidence[i],
            data.classes[other[i]],
            probabilities[i, other[i]],
            answers.distance[i],
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
        sheet.paste(thumbnail(suspect.photo), (left, top))
        draw.text((left, top + CELL), f"{number + 1}  {suspect.label[:18]} {suspect.confidence:.2f}", "black", font)
        draw.text((left, top + CELL + LINE), f"or {suspect.other[:18]} {suspect.likeness:.2f}", RED, font)
    return sheet


def write(ranked: Sequence[Suspect], folder: Path) -> None:
    """Write all suspects to `folder/suspects.csv`, and the first ones as pictures to `folder/suspects.png`."""
    with replacing(folder / "suspects.png") as temporary:
        contact_sheet(ranked).save(temporary)
    head = ["photo", "label", "confidence", "other", "likeness", "distance"]
    write_text(folder / "suspects.csv", "".join(map(csv_line, [head, *(suspect.row for suspect in ranked)])))


def suspects(source: Path, architecture: str, k: int, seed: int, out: Path) -> None:
    """Look at every photo, write the list into `out/suspects/NAME`, print its first lines."""
    architecture = architectures.check_name(architecture)
    # The split that this makes is not looked at
    data = load_data(source, DEFAULTS.validation_share, seed, True, out / "cache", bar)
    ranked = ranking(data, ask_folds(features(architecture, data.photos, bar), data, k, seed))
    folder = out / "suspects" / run_name(source)
    write(ranked, folder)
    for suspect in ranked[:LISTED]:
        path, label, confidence, other, likeness, distance = suspect.row
        tell(printable(f"{path}: {label} {confidence}, {other} {likeness}, distance {distance}"))
    say(f"all of them: {folder / 'suspects.csv'}, the first as pictures beside it")
    tell_programs({"suspects": str(folder / "suspects.csv"), "photos": len(ranked)})
