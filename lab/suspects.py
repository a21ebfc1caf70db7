"""How good is the list of photos that are likely mislabelled?

Photos that are known to be mislabelled are mixed in; one row says how many of them come first.
"""

import argparse
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from runtime.benchmark.rows import Row
from training.network import architectures
from training.photos.dataset import load_data
from training.photos.photo_set import PhotoSet, read_photo_set
from training.photos.suspects import Suspect, ask_folds, features, ranking
from training.progress import bar

FIRST = 60  # suspects that count; as many as a person looks through in some minutes


@dataclass(frozen=True)
class Recall:
    """How many of the `planted` photos are among the `first` suspects, and would be if one answer alone made the order.

    `ranks` are the places of the planted photos, from 1.
    """

    planted: int
    first: int
    found: int
    found_by_confidence: int
    found_by_distance: int
    recall: float
    ranks: list[int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is looked at, and how."""
    parser.add_argument("data", type=Path, help="a folder per class, or a CSV with filename,label[,split]")
    parser.add_argument("--planted", type=Path, required=True, help="photos known to be mislabelled, to mix in")
    parser.add_argument("--arch", default="efficientnet_lite0", help="network whose published weights look")
    parser.add_argument("--folds", type=int, default=3, help="parts, each of which the others are asked about")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """One row: how many of the planted photos the list begins with."""
    arguments.arch = architectures.check_name(arguments.arch)
    both, wrong = planted(read_photo_set(arguments.data), read_photo_set(arguments.planted))
    data = load_data(both, 0.2, arguments.seed, True, arguments.out / "cache", bar)  # its split is not looked at
    answers = ask_folds(features(arguments.arch, data.photos, bar), data, arguments.folds, arguments.seed)
    ranked = ranking(data, answers)
    yield {
        "experiment": "suspects",
        "architecture": arguments.arch,
        "folds": arguments.folds,
        "seed": arguments.seed,
        "data_fingerprint": data.fingerprint,
        "photos": len(ranked),
        "accuracy": round(float((answers.probabilities.argmax(1) == data.labels).mean()), 4),
        **asdict(recall(ranked, wrong)),
    }


def planted(listed: PhotoSet, wrong: PhotoSet) -> tuple[PhotoSet, set[Path]]:
    """Both sets as one, without a split; and the paths of the photos of `wrong`."""
    together = tuple(replace(photo, split=None) for photo in listed.photos + wrong.photos)
    return replace(listed, photos=together), {photo.path for photo in wrong.photos}


def recall(ranked: Sequence[Suspect], wrong: Set[Path]) -> Recall:
    """Where the photos known to be mislabelled, one or more, stand in the list."""
    is_wrong = np.array([suspect.photo in wrong for suspect in ranked])
    confidence = np.array([suspect.confidence for suspect in ranked])
    distance = np.array([suspect.distance for suspect in ranked])
    orders = (np.arange(len(ranked)), np.argsort(confidence, kind="stable"), np.argsort(-distance, kind="stable"))
    found, by_confidence, by_distance = (int(is_wrong[order[:FIRST]].sum()) for order in orders)
    ranks = (np.flatnonzero(is_wrong) + 1).tolist()
    return Recall(len(ranks), FIRST, found, by_confidence, by_distance, round(found / len(ranks), 4), ranks)
