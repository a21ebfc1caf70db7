"""Every photo judged by a network that never saw it: k folds.

The photos of a scene stay in one fold, so that no network is asked about a dish that it was trained on.
"""

from dataclasses import replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from runtime.errors import SajiError
from training.photos.dataset import Data


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
