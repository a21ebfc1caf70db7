"""Does a classifier hold for photos of another collection? And what does averaging with published weights do for it?

Each source of photos is left out in turn, a network is fine-tuned on the others and asked about those; last, the set's
own split says what it does on its own collections. A photo's source is its file name up to the first underscore. Each
network is asked as it was trained, then averaged with the weights it started from by several shares (see
`training.run.release`), which takes no other training. One row a source, so that a run that was stopped goes on.
"""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lab.tables.study import sources as table
from runtime.benchmark.rows import Row, read_rows
from runtime.errors import SajiError
from runtime.evaluation import ValidationSet
from runtime.spec import Geometry
from runtime.terminal import say
from training.network.classifier import PhotoClassifier, load_checkpoint, reference_logits
from training.photos.dataset import load_data
from training.photos.split import Data
from training.progress import bar
from training.recipe import Recipe, load_recipe
from training.run.records import Share
from training.run.release import release
from training.run.resume import finished
from training.run.train import Place, train

SHARES = (0.0, 0.25, 0.5, 0.75)  # of the weights that training started from; at 0 the last layer alone is new
AS_TRAINED = "as trained"
NONE = "none"  # is left out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The photos, the network, and which source to leave out."""
    parser.add_argument("data", type=Path, help="photos whose names begin with their source and an underscore")
    parser.add_argument("--arch", default="efficientnet_lite0", help="architecture (efficientnet_lite0)")
    parser.add_argument("--recipe", default="transfer", help="recipe by name, or a path to a .toml file (transfer)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (0)")
    parser.add_argument("--leave", default="", help=f"only this source, or {NONE!r}; by default each in turn")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of the sources that have none yet in --rows; the table of all goes to stderr."""
    recipe = replace(load_recipe(arguments.recipe), seed=arguments.seed, start_share=0.0)
    data = load_data(arguments.data, recipe.validation_share, 0, True, arguments.out / "cache", bar)
    names = sources_of(data)
    every = [*sorted(set(names)), NONE]
    if arguments.leave not in ("", *every) or len(every) < 3:
        raise SajiError(f"--leave takes one of at least two sources, or {NONE}; there are {', '.join(every)}")
    same = {"architecture": arguments.arch, "recipe": asdict(recipe), "data_fingerprint": data.fingerprint}
    for name in [arguments.leave] if arguments.leave else every:
        if name not in _rows(arguments.rows, same):
            part = data if name == NONE else without_source(data, names == name)
            folder = arguments.out / "sources" / f"{name}-{recipe.seed}" / arguments.arch
            figures = _measured(part, arguments.arch, recipe, folder, arguments.out / "cache")
            yield {"experiment": "sources", "left_out": name, **same, **figures}
    say(table([*_rows(arguments.rows, same).values()]))


def _rows(path: Path, same: dict[str, Any]) -> dict[str, Row]:
    """The rows of this very experiment by the source left out."""
    rows = read_rows(path) if path.is_file() else []
    return {row["left_out"]: row for row in rows if all(row[key] == value for key, value in same.items())}


def sources_of(data: Data) -> np.ndarray:
    """The source of each photo, text `[N]`."""
    return np.array([photo.path.name.partition("_")[0] for photo in data.photos])


def without_source(data: Data, left_out: np.ndarray) -> Data:
    """Photos to train on without those of a source, bool `[N]`, which are to validate on; no scene is on both sides."""
    train = np.flatnonzero(~left_out)
    asked = np.flatnonzero(left_out & ~np.isin(data.scenes, data.scenes[train]))
    return replace(data, train=train, val=asked)


def _measured(data: Data, architecture: str, recipe: Recipe, folder: Path, cache: Path) -> dict[str, Any]:
    if not finished(folder, architecture, recipe, data.fingerprint):
        train(architecture, data, recipe, folder, cache, Place("cpu"), bar)
    model, _ = load_checkpoint(folder / "checkpoint.pt")
    start = PhotoClassifier(architecture, len(data.classes), recipe, recipe.pretrained).network.state_dict()
    asked = ValidationSet.load(folder / "validation.npz")
    accuracies = {AS_TRAINED: _accuracy(model, asked, data)}
    for share in SHARES:
        averaged = copy.deepcopy(model)
        release(averaged, start, share, data, Geometry.for_size(recipe.image_size))
        accuracies[f"{share:g}"] = _accuracy(averaged, asked, data)
    return {"trained_on": len(data.train), "photos": len(data.val), "accuracy": accuracies}


def _accuracy(model: PhotoClassifier, asked: ValidationSet, data: Data) -> dict[str, Any]:
    hits = reference_logits(model, asked.images).argmax(1) == asked.labels
    share = Share.of(hits, data.scenes[data.val])
    return {"share": share.share, "interval": share.interval, "hits": "".join(map(str, hits.astype(int)))}
