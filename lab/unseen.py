"""Does a classifier notice a class that it has never seen?

Each class is left out in turn: a network is trained on the others, then every rule of `runtime.spec` scores the
validation photos of the known classes and all photos of the class left out: the higher, the surer. Pictures that show
nothing of the kind, `--absent`, are asked about, too. One row a class and seed, so that a run that was stopped goes on
where it was.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from lab.tables.study import unseen as table
from runtime.benchmark.rows import Row, read_rows
from runtime.errors import BadPhoto, SajiError
from runtime.evaluation import accuracy
from runtime.preprocess import pixels
from runtime.spec import FAMILIARITY, RULES, Geometry, ModelSpec, Rejection
from runtime.terminal import say
from training.network import architectures
from training.network.classifier import PhotoClassifier, load_checkpoint, reference_outputs
from training.photos.dataset import Data, load_data, run_name
from training.progress import bar
from training.recipe import Recipe, load_recipe
from training.run.confidence import KEPT, fitted_temperature, threshold_keeping
from training.run.resume import finished

ALL_RULES = (*RULES, FAMILIARITY)
BATCH = 32  # photos in memory at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The photos, the network, and which class to leave out."""
    parser.add_argument("data", type=Path, help="a folder per class, or a CSV with filename,label[,split]")
    parser.add_argument("--arch", default="efficientnet_lite0", help="architecture (efficientnet_lite0)")
    parser.add_argument("--recipe", default="transfer", help="recipe by name, or a path to a .toml file (transfer)")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--image-size", type=int, help="instead of the recipe's, pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the training (0)")
    parser.add_argument("--leave", default="", help="only this class; by default each in turn")
    parser.add_argument("--absent", type=Path, nargs="*", default=[], help="folders of pictures without anything of it")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of the classes that have none yet in --rows; the table of all goes to stderr."""
    arguments.arch = architectures.check_name(arguments.arch)
    recipe = load_recipe(arguments.recipe)
    changes = {"epochs": arguments.epochs, "image_size": arguments.image_size, "seed": arguments.seed}
    recipe = replace(recipe, **{name: value for name, value in changes.items() if value is not None})
    cache = arguments.out / "cache"
    data = load_data(arguments.data, recipe.validation_share, 0, True, cache, bar)
    absent = [path for folder in arguments.absent for path in sorted(folder.rglob("*")) if is_photo(path)]
    if len(data.classes) < 3 or arguments.leave not in ("", *data.classes):
        raise SajiError(f"--leave takes one of at least three classes; there are {', '.join(data.classes)}")
    same = {"architecture": arguments.arch, "recipe": asdict(recipe), "data_fingerprint": data.fingerprint}
    for name in [arguments.leave] if arguments.leave else data.classes:
        if name not in _rows(arguments.rows, same):
            folder = arguments.out / "unseen" / run_name(arguments.data) / f"{name}-{recipe.seed}" / arguments.arch
            model = _trained(without(data, name), arguments.arch, recipe, folder, cache)
            figures = compared_with_unseen(model, data, name, Geometry.for_size(recipe.image_size), absent)
            yield {"experiment": "unseen", "unseen": name, **same, **figures}
    say(table([*_rows(arguments.rows, same).values()]))


def is_photo(path: Path) -> bool:
    """Whether a file is one that serving can read."""
    try:
        return path.is_file() and bool(pixels(path, Geometry.for_size(32)).size)
    except BadPhoto:
        return False


def _rows(path: Path, same: dict[str, Any]) -> dict[str, Row]:
    """The rows of this very experiment by the class left out."""
    rows = read_rows(path) if path.is_file() else []
    return {row["unseen"]: row for row in rows if all(row[key] == value for key, value in same.items())}


def without(data: Data, name: str) -> Data:
    """The photo set without the photos of one class; every other photo stays on its side of the split."""
    kept = np.array([photo.label != name for photo in data.photos])
    place = np.cumsum(kept) - 1  # old index → new index
    photos = tuple(photo for photo in data.photos if photo.label != name)
    classes = tuple(other for other in data.classes if other != name)
    return replace(
        data,
        photos=photos,
        classes=classes,
        labels=np.array([classes.index(photo.label) for photo in photos]),
        train=place[data.train[kept[data.train]]],
        val=place[data.val[kept[data.val]]],
        scenes=data.scenes[kept],
    )


def _trained(data: Data, architecture: str, recipe: Recipe, folder: Path, cache: Path) -> PhotoClassifier:
    """The network trained on these photos, from its checkpoint where that is up to date."""
    from training.run.train import Place, train

    if done := finished(folder, architecture, recipe, data.fingerprint):
        return done[0]
    train(architecture, data, recipe, folder, cache, Place(), bar)
    return load_checkpoint(folder / "checkpoint.pt")[0]


def compared_with_unseen(
    model: PhotoClassifier, data: Data, name: str, geometry: Geometry, absent: Sequence[Path] = ()
) -> dict[str, Any]:
    """A model that knows all classes but `name`: its validation photos against all photos of that class.

    The temperature is fitted to the known photos alone, and the threshold behind `unknown_rejected` keeps a share
    of `KEPT` of those that are right: nothing that a rule uses has been set by a photo of the class left out.
    """
    known = without(data, name)
    strangers = [photo.path for photo in data.photos if photo.label == name]
    seen = answers(model, [known.photos[i].path for i in known.val], geometry)
    unseen, nothing = (answers(model, paths, geometry) for paths in (strangers, absent))
    labels, spec = known.labels[known.val], ModelSpec("x", "x", known.classes, familiarity=True, schema_version=3)
    logits = spec.logits(seen)
    right = logits.argmax(1) == labels
    temperature = fitted_temperature(logits, labels)
    rules = {rule: replace(spec, temperature=temperature, rejection=Rejection(rule, 0.0)) for rule in ALL_RULES}
    high, low, none = (
        {name: rule.score(outputs) if len(outputs) else np.empty(0) for name, rule in rules.items()}
        for outputs in (seen, unseen, nothing)
    )
    least = {name: threshold_keeping(scores[right]) for name, scores in high.items()}
    is_known = np.repeat([1, 0], [len(labels), len(strangers)])
    return {
        "known": len(labels),
        "unknown": len(strangers),
        "accuracy": round(accuracy(logits, labels), 4),
        "temperature": round(temperature, 4),
        "auroc": {r: round(float(roc_auc_score(is_known, np.concatenate([high[r], low[r]]))), 4) for r in high},
        "right_kept": KEPT,
        "unknown_rejected": {r: round(float((low[r] < least[r]).mean()), 4) for r in high},
        "absent": len(absent),
        "absent_rejected": {r: round(float((none[r] < least[r]).mean()), 4) for r in high if absent},
    }


def answers(model: PhotoClassifier, paths: Sequence[Path], geometry: Geometry) -> np.ndarray:
    """A model's outputs for photos as serving preprocesses them, batch by batch."""
    starts = range(0, len(paths), BATCH)
    outputs = []
    for start in bar(starts, "scoring", len(starts)):
        images = np.stack([pixels(path, geometry) for path in paths[start : start + BATCH]])
        outputs.append(reference_outputs(model, images))
    return np.concatenate(outputs) if outputs else np.empty((0, 0))
