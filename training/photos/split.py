"""Which photos train and which validate: the split that a set brings, ours without a leak, and folds.

The photos of a scene stay on one side, so that no network is asked about a dish that it was trained on.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from runtime.errors import SajiError
from runtime.files import sha256_json
from training.photos.findings import Findings, Scene
from training.photos.photo_set import Photo


@dataclass(frozen=True)
class HeldBack:
    """Photos that neither train nor validate and show no scene of those that do: labels int `[N]`, scenes int `[N]`."""

    photos: tuple[Photo, ...] = ()
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    scenes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class Data:
    """A photo set ready to train on.

    `train` and `val` are indices into `photos`; `labels[i]` is the class index of photo i (sorted class names).
    `scenes[i]` is a number that photo i shares with those that may show the same scene, and with no other. `leaking`
    are those of `val` that certainly show what a training photo shows too, none in a split made here. `seen` are
    indices of the photos that what a network starts from may have seen, whole scenes: no fold tests on them.
    """

    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    train: np.ndarray
    val: np.ndarray
    scenes: np.ndarray
    findings: Findings = field(default_factory=Findings)
    leaking: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    seen: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    test: HeldBack = field(default_factory=HeldBack)

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """The SHA-256 of each photo's file."""
        return tuple(photo.sha256 for photo in self.photos)

    @property
    def fingerprint(self) -> str:
        """Identifies the photos' bytes, labels and split, wherever they stand; 16 hexadecimal digits."""
        split: list[Any] = np.isin(np.arange(len(self.photos)), self.val).tolist()
        for index in np.setdiff1d(np.arange(len(self.photos)), np.union1d(self.train, self.val)):
            split[index] = 2  # on neither side
        rows = sorted(zip(self.hashes, (photo.label for photo in self.photos), split, strict=True))
        return sha256_json(rows)[:16]


def scene_numbers(scenes: Sequence[Scene], hashes: Sequence[str]) -> np.ndarray:
    """A number per photo, int64 `[len(hashes)]`, one for each scene; by content, so that names do not matter.

    Indices in `scenes` from `len(hashes)` on are left out.
    """
    lowest = list(hashes)
    for scene in scenes:
        members = [i for part in scene for picture in part for i in picture if i < len(hashes)]
        for i in members:
            lowest[i] = min(hashes[member] for member in members)
    return np.unique(lowest, return_inverse=True)[1]


def split(data: Data, share: float, seed: int, barred: np.ndarray) -> Data:
    """The data by the split that the set brings, or else by ours; photos at the indices `barred` train in both."""
    given = given_split(data.photos)
    _, val = given or stratified_split(data.labels, data.hashes, data.scenes, share, seed, barred)
    val = np.setdiff1d(val, barred)
    return replace(data, train=np.setdiff1d(np.arange(len(data.photos)), val), val=val)


def given_split(photos: tuple[Photo, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """What the set says itself: indices int of the photos to train on and to validate; None where it does not say.

    Raises SajiError where some photos have a side and others none.
    """
    unsplit = sum(photo.split is None for photo in photos)
    if unsplit == len(photos) or not any(photo.split == "val" for photo in photos):
        return None
    if unsplit:
        raise SajiError(f"{unsplit} of {len(photos)} rows have no split; fill the split column for all or for none")
    val = np.array([photo.split == "val" for photo in photos])
    return np.flatnonzero(~val), np.flatnonzero(val)


def stratified_split(
    labels: np.ndarray, hashes: Sequence[str], scenes: np.ndarray, share: float, seed: int, barred: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whole scenes go to one side, in an order that comes from their hashes and the seed, until each class is full.

    The scenes of `barred` photos train; of the others, the share validates.
    """
    together: dict[int, list[int]] = defaultdict(list)
    for index in np.flatnonzero(~np.isin(scenes, scenes[barred])).tolist():
        together[scenes[index]].append(index)
    order = sorted(
        together.values(),
        key=lambda group: hashlib.sha256(f"{seed} {min(hashes[i] for i in group)}".encode()).digest(),
    )
    per_class = [Counter(labels[group].tolist()) for group in order]
    total = Counter(labels.tolist())
    free = Counter(label for counts in per_class for label in counts.elements())
    wanted = {label: min(total[label] - 1, max(1, round(share * count))) for label, count in free.items()}
    taken: Counter[int] = Counter()
    chosen = []
    for group, counts in zip(order, per_class, strict=True):
        if all(taken[label] + count <= wanted[label] for label, count in counts.items()):
            chosen += group
            taken += counts
    for label in free.keys() - taken.keys():  # every scene of it is larger than its share: the smallest one, then
        spare = [g for g, n in enumerate(per_class) if label in n and all(taken[k] + n[k] < total[k] for k in n)]
        if spare:
            smallest = min(spare, key=lambda g: len(order[g]))
            chosen += order[smallest]
            taken += per_class[smallest]
    val = np.isin(np.arange(len(labels)), chosen)
    return np.flatnonzero(~val), np.flatnonzero(val)


def folds(data: Data, k: int, seed: int) -> list[Data]:
    """The photos in k parts of about equal size and class shares; part i validates fold i, the others train it.

    A split that the data came with is set aside; photos that were `seen` train in every part. The same photos and seed
    give the same folds, whatever the photos are called. Raises SajiError where a class has too few scenes for every
    fold to train and to validate it.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # only here: it takes a second to import

    if k < 2:
        raise SajiError(f"{k} folds leave nothing to train on; use at least 2")
    new = ~np.isin(np.arange(len(data.photos)), data.seen)
    for index, name in enumerate(data.classes):
        if (scenes := len(np.unique(data.scenes[new & (data.labels == index)]))) < k:
            what = "scenes that were not seen before" if len(data.seen) else "scenes"
            raise SajiError(f"class {name!r} has {scenes} {what}, too few for {k} folds; use fewer, or add photos")
    order = np.lexsort((data.labels, np.array(data.hashes)))  # by content
    order = order[new[order]]
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    parts = splitter.split(order, data.labels[order], data.scenes[order])
    tests, everything = [np.sort(order[val]) for _, val in parts], np.arange(len(data.photos))
    return [replace(data, train=np.setdiff1d(everything, val), val=val, leaking=everything[:0]) for val in tests]


def set_aside(data: Data, share: float, seed: int) -> Data:
    """The training side split once more; the photos that it validated by neither train nor validate."""
    free = np.setdiff1d(data.train, data.seen)
    hashes = [data.hashes[i] for i in free]
    _, val = stratified_split(data.labels[free], hashes, data.scenes[free], share, seed, free[:0])
    return replace(data, train=np.setdiff1d(data.train, free[val]), val=free[val], leaking=data.leaking[:0])
