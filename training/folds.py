"""Every photo judged by a network that never saw it: k folds, and the out-of-fold answers of k networks.

The photos of a scene stay in one fold, so that no network is asked about a dish that it was trained on.
"""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from runtime.errors import SajiError
from runtime.files import replacing
from training.classifier import finished, load_checkpoint, reference_logits
from training.dataset import Data, judging_set, photo_name
from training.findings import Progress
from training.recipe import Recipe
from training.train import Place, train


def folds(data: Data, k: int, seed: int) -> list[Data]:
    """The photos in k parts of about equal size and class shares; part i validates fold i, the others train it.

    A split that the data came with is set aside. The same photos and seed give the same folds, whatever the photos
    are called. Raises SajiError where a class has too few scenes for every fold to train and to validate it.
    """
    if k < 2:
        raise SajiError(f"{k} folds leave nothing to train on; use at least 2")
    for index, name in enumerate(data.classes):
        if (scenes := len(np.unique(data.scenes[data.labels == index]))) < k:
            raise SajiError(f"class {name!r} has {scenes} scenes, too few for {k} folds; use fewer, or add photos")
    order = np.lexsort((data.labels, np.array(data.hashes)))  # by content
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    parts = splitter.split(order, data.labels[order], data.scenes[order])
    return [replace(data, train=np.sort(order[train]), val=np.sort(order[val])) for train, val in parts]


def out_of_fold(
    architecture: str, data: Data, recipe: Recipe, k: int, folder: Path, cache: Path, place: Place, progress: Progress
) -> np.ndarray:
    """Train k networks into `folder/fold-0` and so on, and ask each about the photos that it never saw.

    Returns logits float32 `[len(data.photos), classes]` and writes them to `folder/out_of_fold.npz` with `labels`,
    `names`, `sha256` and the `fold` of each photo. A fold that is finished is not trained again. The recipe's seed
    makes the folds. Raises what `folds` and `train` raise.
    """
    logits = np.empty((len(data.photos), len(data.classes)), np.float32)
    fold = np.empty(len(data.photos), np.int64)
    for number, part in enumerate(folds(data, k, recipe.seed)):
        run = folder / f"fold-{number}"
        if not finished(run, architecture, asdict(recipe), part.fingerprint):
            train(architecture, part, recipe, run, cache, place, progress)
        model, spec = load_checkpoint(run / "checkpoint.pt")
        logits[part.val] = reference_logits(model, judging_set(part, spec.geometry, progress).images)
        fold[part.val] = number
    names = np.array([photo_name(photo) for photo in data.photos])
    with replacing(folder / "out_of_fold.npz") as temporary:
        np.savez(temporary, logits=logits, labels=data.labels, names=names, sha256=np.array(data.hashes), fold=fold)
    return logits
