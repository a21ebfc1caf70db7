"""Folds: every photo is judged once, by a network that saw neither it nor its scene."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.study import FOLDS, Job, first_fold
from runtime.errors import SajiError
from training.photos.photo_set import Photo
from training.photos.split import Data, folds
from training.recipe import Recipe

RECIPE = Recipe(seed=3)


def fake(scenes: list[tuple[int, int]]) -> Data:
    """A photo set without files: of each scene its class and the number of its photos."""
    labels = np.array([label for label, photos in scenes for _ in range(photos)])
    numbers = np.array([number for number, (_, photos) in enumerate(scenes) for _ in range(photos)])
    classes = tuple("abc"[: labels.max() + 1])
    hashes = [f"{(7 * i + 5) % 1009:04d}" for i in range(len(labels))]  # in another order than the names
    photos = tuple(Photo(Path(f"{i}.jpg"), classes[label], None, hashes[i]) for i, label in enumerate(labels))
    everything = np.arange(len(labels))
    return Data(photos, classes, labels, everything[::2], everything[1::2], numbers)


def shuffled(data: Data, order: np.ndarray) -> Data:
    photos = tuple(data.photos[i] for i in order)
    return Data(photos, data.classes, data.labels[order], data.train, data.val, data.scenes[order])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=30),
    st.integers(2, 4),
    st.integers(0, 99),
)
def test_each_photo_is_validated_once_and_scenes_stay_whole(extra: list[tuple[int, int]], k: int, seed: int) -> None:
    data = fake([(label, 1) for label in (0, 1, 2) for _ in range(k)] + extra)
    parts = folds(data, k, seed)
    assert sorted(i for part in parts for i in part.val) == list(range(len(data.photos)))
    for part in parts:
        assert sorted([*part.train, *part.val]) == list(range(len(data.photos)))
        assert len(part.leaking) == 0 and set(data.labels[part.train]) == {0, 1, 2}


def test_folds_are_stratified_and_seeded() -> None:
    data = fake([(0, 1)] * 60 + [(1, 1)] * 30 + [(1, 3)] * 10)
    parts = folds(data, 3, 0)
    assert [np.bincount(data.labels[part.val]).tolist() for part in parts] == [[20, 20]] * 3
    again, other = folds(data, 3, 0), folds(data, 3, 1)
    assert [p.fingerprint for p in parts] == [p.fingerprint for p in again] != [p.fingerprint for p in other]


def test_folds_do_not_depend_on_names() -> None:
    data = fake([(0, 1)] * 30 + [(1, 2)] * 20)
    order = np.random.default_rng(0).permutation(len(data.photos))
    renamed = folds(shuffled(data, order), 3, 0)
    assert [part.fingerprint for part in folds(data, 3, 0)] == [part.fingerprint for part in renamed]


@pytest.mark.parametrize(("k", "words"), [(4, "class 'a' has 3 scenes, too few for 4 folds"), (1, "at least 2")])
def test_too_many_or_too_few_folds_are_one_sentence(k: int, words: str) -> None:
    with pytest.raises(SajiError, match=words):
        folds(fake([(0, 5)] * 3 + [(1, 1)] * 9), k, 0)


@pytest.mark.parametrize("release", ["best", "last"])
@pytest.mark.parametrize("share", [1, 0.5])
def test_the_study_asks_about_scenes_that_neither_trained_nor_chose_an_epoch(release: Any, share: float) -> None:
    data = fake([(label, 1 + number % 2) for label in (0, 1, 2) for number in range(20)])
    asked, own = first_fold(data, Job("seeds", "resnet34", replace(RECIPE, release=release), share))
    assert sorted(asked) == sorted(folds(data, FOLDS, RECIPE.seed)[0].val)
    chose = own.val if release == "best" else own.val[:0]
    assert not set(data.scenes[asked]) & set(data.scenes[[*own.train, *chose]])
    assert len(chose) == 0 or not set(data.scenes[chose]) & set(data.scenes[own.train])
    assert len(own.train) + len(chose) == pytest.approx(share * (len(data.photos) - len(asked)), abs=5)
