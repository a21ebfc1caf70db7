"""Folds: every photo is judged once, by a network that saw neither it nor its scene."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import BadModel, SajiError
from runtime.photos import Photo
from runtime.spec import Geometry
from training import folds as module
from training.dataset import Data
from training.folds import folds, out_of_fold
from training.progress import silent
from training.recipe import Recipe
from training.train import Place

RECIPE = Recipe(seed=3)


def fake(scenes: list[tuple[int, int]]) -> Data:
    """A photo set without files: of each scene its class and the number of its photos."""
    labels = np.array([label for label, photos in scenes for _ in range(photos)])
    numbers = np.array([number for number, (_, photos) in enumerate(scenes) for _ in range(photos)])
    classes = tuple("abc"[: labels.max() + 1])
    photos = tuple(Photo(Path(f"{i}.jpg"), classes[label]) for i, label in enumerate(labels))
    hashes = tuple(f"{(7 * i + 5) % 1009:04d}" for i in range(len(labels)))  # in another order than the names
    everything = np.arange(len(labels))
    return Data(photos, classes, labels, everything[::2], everything[1::2], hashes, numbers)


def shuffled(data: Data, order: np.ndarray) -> Data:
    photos, hashes = (tuple(items[i] for i in order) for items in (data.photos, data.hashes))
    return Data(photos, data.classes, data.labels[order], data.train, data.val, hashes, data.scenes[order])


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


@pytest.fixture()
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Fake networks, each of which answers with the number of photos it trained on; what was trained so far."""
    done: list[str] = []
    specs: dict[Path, SimpleNamespace] = {}

    def train(architecture, data, recipe, folder, *_):
        done.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("judging.npz", "calibration.npz"):
            (folder / name).touch()
        record = {"fingerprint": data.fingerprint, "seen": data.train}
        specs[folder / "checkpoint.pt"] = SimpleNamespace(
            architecture=architecture, recipe=vars(recipe), data=record, geometry=Geometry()
        )

    def load_checkpoint(path):
        if path not in specs:
            raise BadModel("none")
        return specs[path].data["seen"], specs[path]

    def judging_set(data, geometry, progress):
        return SimpleNamespace(images=data.val)

    def logits(seen, images):
        return np.isin(images, seen)[:, None] * [1.0, 1.0] + images[:, None]

    for name, fake_one in (("train", train), ("load_checkpoint", load_checkpoint), ("judging_set", judging_set)):
        monkeypatch.setattr(module, name, fake_one)
    monkeypatch.setattr(module, "reference_logits", logits)
    monkeypatch.setattr("training.classifier.load_checkpoint", load_checkpoint)  # which `finished` calls
    return lambda: [done.pop(0) for _ in list(done)]


def test_out_of_fold_answers_come_from_the_network_that_never_saw_the_photo(trained, tmp_path: Path) -> None:
    data = fake([(0, 1)] * 12 + [(1, 2)] * 6)
    logits = out_of_fold("net", data, RECIPE, 3, tmp_path, tmp_path, Place("cpu"), silent)
    assert logits.dtype == np.float32 and logits[:, 0].tolist() == list(range(24))  # + 1 for a photo that was seen
    with np.load(tmp_path / "out_of_fold.npz") as saved:
        assert np.array_equal(saved["logits"], logits) and np.array_equal(saved["labels"], data.labels)
        assert saved["names"][0] == "a/0.jpg" and tuple(saved["sha256"]) == data.hashes
        for number, part in enumerate(folds(data, 3, RECIPE.seed)):
            assert np.array_equal(np.flatnonzero(saved["fold"] == number), part.val)


def test_only_what_is_not_finished_is_trained(trained, tmp_path: Path) -> None:
    data, more = (fake([(0, 1)] * count + [(1, 2)] * 6) for count in (12, 13))
    longer = Recipe(seed=3, epochs=2)

    def trains(architecture: str, data: Data, recipe: Recipe) -> int:
        out_of_fold(architecture, data, recipe, 3, tmp_path, tmp_path, Place("cpu"), silent)
        return len(trained())

    assert trains("net", data, RECIPE) == 3 and trains("net", data, RECIPE) == 0
    assert (
        trains("net", data, longer) == 3 and trains("other", data, longer) == 3 and trains("other", more, longer) == 3
    )
    assert trains("other", more, longer) == 0
