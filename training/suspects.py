"""`python -m training.suspects DATA`: photos that are likely mislabelled, the likeliest first.

Every photo is judged by a network that never saw it (`training.folds`), and those whose label it believes least come
first. With `--planted FOLDER` the list is put to the test: the photos of that folder, which are known to be
mislabelled, are mixed in, and it is told how many of them come first.
"""

import argparse
import csv
import json
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runtime.errors import exit_with_one_sentence, require_extra

if __name__ == "__main__":  # before the imports that would fail with a traceback
    require_extra("train", "torch", "torchvision", "lightning", "rich", "cv2", "sklearn", "imagehash")

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from runtime.benchmark.rows import append_rows
from runtime.environment import stamp
from runtime.evaluation import wilson_interval
from runtime.files import replacing
from runtime.photos import PhotoSet, read_photo_set
from runtime.preprocess import decode
from training import architectures
from training.dataset import Data, load_data, run_name
from training.findings import printable
from training.progress import bar
from training.recipe import load_recipe, names

FIRST = 60  # suspects on which the list is judged; as many as a person looks through in some minutes
TOLD, SHOWN = 10, 80  # suspects on stdout and on the contact sheet
COLUMNS, CELL, LINE, MARGIN = 8, 160, 16, 8  # pictures a row; side of a picture, line of text, space around in pixels


@dataclass(frozen=True)
class Suspect:
    """A photo, its label, the likeliest other class, and how probable a network that never saw it finds both."""

    photo: Path
    label: str
    confidence: float
    other: str
    likeness: float

    @property
    def row(self) -> list[str]:
        """The cells of the CSV."""
        path = printable(self.photo.as_posix())
        return [path, self.label, f"{self.confidence:.4f}", self.other, f"{self.likeness:.4f}"]


def suspects(data: Data, logits: np.ndarray) -> list[Suspect]:
    """All photos of a set, the likeliest mislabelled first; `logits` float `[len(data.photos), C]`, out of fold.

    The order is that of the normalised margin: the probability of the label less that of the likeliest other class
    (Northcutt et al. 2021, JAIR 70).
    """
    given, others = _probabilities(logits), _probabilities(logits)
    everyone = np.arange(len(given))
    others[everyone, data.labels] = -1
    confidence, other = given[everyone, data.labels], others.argmax(1)
    likeness = given[everyone, other]
    return [
        Suspect(data.photos[i].path, data.photos[i].label, confidence[i], data.classes[other[i]], likeness[i])
        for i in np.argsort(confidence - likeness, kind="stable")
    ]


def likely_mislabelled(logits: np.ndarray, labels: np.ndarray) -> int:
    """How many labels are likely wrong: photos off the diagonal of the confident joint (Northcutt et al. 2021).

    A photo counts for the likeliest of the classes of which it is as probable as that class's own photos are on
    average; where there is none, for its label. Out-of-fold logits `[N, C]`, labels int `[N]`, every class present.
    """
    probabilities = _probabilities(logits)
    typical = [probabilities[labels == k, k].mean() for k in range(probabilities.shape[1])]
    confident = np.where(probabilities >= typical, probabilities, 0)
    return int((confident.any(1) & (confident.argmax(1) != labels)).sum())


def _probabilities(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


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
        writer.writerow(["photo", "label", "confidence", "other", "likeness"])
        writer.writerows(suspect.row for suspect in ranked)


def main() -> None:
    """Read the command line, train the folds that are missing, write the list."""
    arguments = _arguments()
    architectures.check_name(arguments.arch)
    recipe = load_recipe(arguments.recipe)
    recipe = replace(recipe, epochs=arguments.epochs or recipe.epochs)
    found, wrong = read_photo_set(arguments.data), set[Path]()
    if arguments.planted:
        found, wrong = planted(found, read_photo_set(arguments.planted))
    # Lightning takes seconds, which --help and a wrong path need not wait for
    from training.folds import out_of_fold
    from training.train import Place

    cache, folder = arguments.out / "cache", arguments.out / "suspects" / run_name(arguments.data)
    data = load_data(found, recipe.validation_share, recipe.seed, True, cache, bar)
    networks = folder / arguments.arch
    logits = out_of_fold(arguments.arch, data, recipe, arguments.folds, networks, cache, Place(arguments.device), bar)
    ranked = suspects(data, logits)
    write(ranked, folder)
    for suspect in ranked[:TOLD]:
        path, label, confidence, other, likeness = suspect.row
        print(f"{path}: {label} {confidence}, {other} {likeness}")
    trained = {"architecture": arguments.arch, "recipe": asdict(recipe), "folds": arguments.folds}
    row = {"experiment": "suspects", **trained, **figures(data, logits), **recall(ranked, wrong)}
    if arguments.rows:
        append_rows(arguments.rows, [row | stamp()])
    print(json.dumps({"suspects": str(folder / "suspects.csv"), **row}))


def figures(data: Data, logits: np.ndarray) -> dict[str, Any]:
    """What the out-of-fold logits `[len(data.photos), C]` say of the whole set."""
    right, photos = int((logits.argmax(1) == data.labels).sum()), len(data.photos)
    return {
        "data_fingerprint": data.fingerprint,
        "photos": photos,
        "accuracy": round(right / photos, 4),
        "accuracy_interval": [round(edge, 4) for edge in wilson_interval(right, photos)],
        "likely_mislabelled": likely_mislabelled(logits, data.labels),
    }


def recall(ranked: Sequence[Suspect], wrong: Set[Path]) -> dict[str, Any]:
    """How many of the photos known to be mislabelled are among the first; empty where none is known."""
    if not wrong:
        return {}
    ranks = [rank for rank, suspect in enumerate(ranked, 1) if suspect.photo in wrong]
    found = sum(rank <= FIRST for rank in ranks)
    return {
        "planted": len(ranks),
        "first": FIRST,
        "found": found,
        "recall": round(found / len(ranks), 4),
        "ranks": ranks,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.suspects", description="Find mislabelled photos.")
    parser.add_argument("data", type=Path, help="a folder per class, or a CSV with filename,label[,split]")
    parser.add_argument("--arch", default="efficientnet_lite0", help="network to judge by")
    parser.add_argument("--recipe", default="transfer", help=f"{', '.join(names())}, or a path to a .toml file")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each network; 0 = those of the recipe")
    parser.add_argument("--folds", type=int, default=3, help="networks; each is asked about the photos it never saw")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")
    parser.add_argument("--planted", type=Path, help="photos known to be mislabelled, to mix in: is the list any good?")
    parser.add_argument("--rows", type=Path, help="append the figures to this .jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with_one_sentence(main)
