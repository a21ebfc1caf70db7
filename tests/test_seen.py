"""No photo is held against a network that has seen it, however the network came to see it."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import house
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_evaluate import unrecorded
from test_folds import fake

from runtime.errors import BadModel, SajiError
from runtime.files import sha256_file
from training.network.classifier import load_checkpoint, replace_spec
from training.photos import duplicates
from training.photos.dataset import load_data
from training.photos.findings import Findings
from training.photos.findings_page import page
from training.photos.seen import (
    DIGITS,
    Seen,
    record,
    require_unseen,
    seen_by,
    seen_in,
    sources,
    split_unseen,
    started_from,
    whole_scenes,
)
from training.photos.split import Data, folds
from training.recipe import Recipe
from training.run.resume import finished

PHOTOS = fake([(0, 1)] * 20 + [(1, 1)] * 12 + [(1, 4)] * 2)


def keys(data: Data, indices: object = slice(None)) -> frozenset[str]:
    return frozenset(np.array(data.hashes)[indices].tolist())


def first(photos: frozenset[str] | None, fingerprint: str = "of another set", **more: frozenset[str]) -> Seen:
    return Seen("first.pt", "", "weights", fingerprint, photos, **more)


def with_split(data: Data) -> Data:
    """The same photos, whose set now says which of them validate."""
    val = set(data.val.tolist())
    photos = (replace(photo, split="val" if i in val else "train") for i, photo in enumerate(data.photos))
    return replace(data, photos=tuple(photos))


# --- which photos validate


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 39), max_size=25), st.integers(0, 9), st.booleans())
def test_seen_photos_and_their_scenes_never_validate(some: set[int], seed: int, brought: bool) -> None:
    data, before = with_split(PHOTOS) if brought else PHOTOS, [first(keys(PHOTOS, sorted(some)))]
    try:
        made, told = split_unseen(data, 0.2, seed, before)
    except SajiError as error:
        assert "first.pt has seen every photo of" in str(error) and "validation" in str(error)
        return
    scenes = set(data.scenes[sorted(some)].tolist())
    assert not scenes & set(made.scenes[made.val].tolist()) and set(data.labels[made.val]) == {0, 1}
    assert sorted([*made.train, *made.val]) == list(range(len(data.photos)))
    free = split_unseen(data, 0.2, seed, [])[0]
    moved = sum(scene in scenes for scene in data.scenes[free.val].tolist())
    assert told == ([f"{moved} validation photos were seen by first.pt and train instead"] if moved else [])


def test_of_the_new_photos_a_share_validates_and_the_rest_trains() -> None:
    made, _ = split_unseen(PHOTOS, 0.25, 0, [first(keys(PHOTOS, PHOTOS.labels * 0 + np.arange(40) < 12))])
    assert np.bincount(made.labels[made.val]).tolist() == [2, 5]


def test_the_very_split_that_weights_come_from_stays() -> None:
    made, _ = split_unseen(PHOTOS, 0.2, 3, [])
    again, told = split_unseen(PHOTOS, 0.2, 3, [first(keys(PHOTOS), made.fingerprint)])
    assert again.fingerprint == made.fingerprint and not told
    require_unseen(again, [first(keys(PHOTOS), made.fingerprint)])
    with pytest.raises(SajiError, match=r"first\.pt has seen every photo of a, b that could be a validation photo"):
        split_unseen(PHOTOS, 0.2, 4, [first(keys(PHOTOS), made.fingerprint)])


def test_a_split_that_had_to_avoid_photos_is_found_again() -> None:
    """A second network starts from a first, a third from the second, on the second's photos."""
    second, _ = split_unseen(PHOTOS, 0.2, 3, [first(keys(PHOTOS, np.arange(18)))])
    known = record(second, [first(keys(PHOTOS, np.arange(18)))], True)
    assert known
    its = Seen("second.pt", "", "teacher", second.fingerprint, *map(frozenset, (known["photos"], known["moved"])))
    third, told = split_unseen(PHOTOS, 0.2, 3, [its])
    assert third.fingerprint == second.fingerprint != split_unseen(PHOTOS, 0.2, 3, [])[0].fingerprint
    assert told and record(third, [its], True) == known


def test_what_the_first_of_a_chain_has_seen_is_known_to_the_last() -> None:
    """Also photos that are in the set no more."""
    known = record(PHOTOS, [first(frozenset({"long gone"}))], True)
    assert known and {*known["photos"]} == keys(PHOTOS) | {"long gone"} and known["moved"] == []


def test_validation_photos_that_chose_nothing_are_new() -> None:
    of_a_training_scene = np.array([*range(len(PHOTOS.photos))])
    of_a_training_scene[PHOTOS.val[0]] = PHOTOS.train[0]
    known = record(replace(PHOTOS, scenes=of_a_training_scene), [], epoch_is_chosen=False)
    assert known and {*known["photos"]} == keys(PHOTOS, [*PHOTOS.train, PHOTOS.val[0]])


def test_two_files_one_of_another_split_are_both_avoided() -> None:
    made, _ = split_unseen(PHOTOS, 0.2, 3, [])
    same, other = first(keys(PHOTOS, made.train[:15]), made.fingerprint), first(keys(PHOTOS, made.val[:2]))
    again, _ = split_unseen(PHOTOS, 0.2, 3, [same, replace(other, name="other.pt")])
    assert not set(again.val) & {*made.train[:15], *made.val[:2]}


def test_of_a_file_that_is_not_ours_it_is_said_that_nothing_is_known() -> None:
    made, told = split_unseen(PHOTOS, 0.2, 3, [Seen("timm.pth", "", "weights")])
    assert told == ["what timm.pth was trained on is not known"]
    require_unseen(made, [Seen("timm.pth", "", "weights")])
    assert made.fingerprint == split_unseen(PHOTOS, 0.2, 3, [])[0].fingerprint
    assert len(seen_in(PHOTOS, [Seen("timm.pth", "", "weights")])) == 0


def test_a_checkpoint_without_a_record_may_start_its_own_split_only() -> None:
    made, _ = split_unseen(PHOTOS, 0.2, 3, [])
    require_unseen(made, [first(None, made.fingerprint)])
    with pytest.raises(SajiError, match=r"first\.pt learnt from another set or split and keeps no record"):
        require_unseen(made, [first(None)])
    assert len(seen_in(PHOTOS, [first(None, made.fingerprint)])) == len(PHOTOS.photos), "for folds"
    assert record(made, [first(None, made.fingerprint)], True) is None, "who starts from it does not know either"


def test_a_split_made_elsewhere_that_validates_on_seen_photos_is_refused() -> None:
    with pytest.raises(SajiError, match=r"1 of 20 validation photos were seen by first\.pt"):
        require_unseen(PHOTOS, [first(keys(PHOTOS, PHOTOS.val[:1]))])
    require_unseen(PHOTOS, [first(keys(PHOTOS, [0]))])


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 39), max_size=15), st.integers(2, 3))
def test_no_fold_tests_on_a_seen_photo_and_each_other_is_tested_once(some: set[int], k: int) -> None:
    seen = seen_in(PHOTOS, [first(keys(PHOTOS, sorted(some)))])
    data = replace(PHOTOS, seen=seen)
    scenes = [len(set(data.scenes[np.setdiff1d(np.flatnonzero(data.labels == k), seen)])) for k in (0, 1)]
    if min(scenes) < k:
        with pytest.raises(SajiError, match=f"{min(scenes)} scenes that were not seen before, too few"):
            folds(data, k, 0)
        return
    parts = folds(data, k, 0)
    assert sorted(i for part in parts for i in part.val) == sorted(set(range(40)) - set(seen.tolist()))
    assert all(sorted([*part.train, *part.val]) == list(range(40)) for part in parts)


def test_what_a_test_photo_shows_must_not_have_been_seen_either(tmp_path: Path) -> None:
    """On whichever side of the split another shot of it stands, and whichever of the two the weights saw."""
    rng = np.random.default_rng(0)
    for side, numbers in (("train", "012"), ("val", "345"), ("test", "678")):
        for label in "ab":
            (tmp_path / side / label).mkdir(parents=True)
            for number in numbers:
                noise = Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).resize((72, 72))
                noise.save(tmp_path / side / label / f"{number}.png")
                if number == "6":  # the same pixels in another file
                    noise.save(tmp_path / side / label / "6.bmp")

    def measuring(*seen: str) -> set[str]:
        digests = frozenset(sha256_file(tmp_path / "test" / "a" / name)[:DIGITS] for name in seen)
        data = load_data(tmp_path, 0.2, 0, True, before=[first(digests)])
        return {f"{photo.label}/{photo.path.name}" for photo in data.test.photos}

    everything = measuring()
    assert everything >= {"a/6.png", "a/6.bmp", "a/7.png"}
    assert measuring("6.png") == measuring("6.bmp") == everything - {"a/6.png", "a/6.bmp"}


def test_a_validation_photo_beside_a_seen_test_photo_trains() -> None:
    hashes, scenes = (*PHOTOS.hashes, "test"), np.append(PHOTOS.scenes, PHOTOS.scenes[-1])
    [widened] = whole_scenes([first(frozenset({"test"}))], hashes, scenes)
    assert {*seen_in(PHOTOS, [widened])} == {*np.flatnonzero(PHOTOS.scenes == PHOTOS.scenes[-1])}
    assert whole_scenes([first(None)], hashes, scenes) == [first(None)]


# --- what a checkpoint carries


def test_a_checkpoint_carries_the_photos_it_was_trained_with(run: Path, sample: Path) -> None:
    """The last epoch is released, so validation photos had no say in it."""
    seen = seen_by(run / "checkpoint.pt")
    data = load_data(sample, 0.5, 0, look_alikes=False)
    assert seen.photos == {data.hashes[i][:DIGITS] for i in data.train} and not seen.moved
    assert seen.settled == {data.hashes[i][:DIGITS] for i in data.val}
    _, spec = load_checkpoint(run / "checkpoint.pt")
    assert seen.fingerprint == spec.data["fingerprint"] and "started_from" not in spec.data
    assert not any(digest in spec.to_json() for digest in seen.photos), "an ONNX file's metadata stay small"


@pytest.mark.parametrize("field", ["weights", "teacher"])
def test_a_folder_is_no_file_of_weights(field: str, tmp_path: Path) -> None:
    with pytest.raises(SajiError, match=rf"is no file; --{field} takes a file of weights"):
        sources(Recipe(**{field: str(tmp_path)}))
    with pytest.raises(SajiError, match=rf"gone does not exist; --{field} takes"):
        sources(Recipe(**{field: str(tmp_path / "gone")}))


def test_files_without_a_record(run: Path, tmp_path: Path) -> None:
    old = unrecorded(run / "checkpoint.pt", tmp_path / "old.pt")
    assert seen_by(old).unrecorded and seen_by(old).fingerprint == seen_by(run / "checkpoint.pt").fingerprint
    torch.save({"layer": torch.zeros(2)}, tmp_path / "theirs.pt")
    (tmp_path / "text.safetensors").write_text("no weights")
    for file in ("theirs.pt", "text.safetensors"):
        assert seen_by(tmp_path / file) == Seen(str(tmp_path / file), sha256_file(tmp_path / file))
    torch.save(torch.load(old, weights_only=True) | {"seen": 3}, tmp_path / "damaged.pt")
    with pytest.raises(BadModel, match=r"damaged\.pt does not say right which photos it has seen"):
        seen_by(tmp_path / "damaged.pt")


def test_what_came_of_an_unknown_file_is_not_known_at_the_next_step_either(run: Path, tmp_path: Path) -> None:
    """Of what trained theirs.pt nothing is told, so that nothing is claimed of a network that its pupil starts."""
    shutil.copyfile(run / "checkpoint.pt", second := tmp_path / "second.pt")
    assert started_from([seen_by(second, "weights")])["started_from"]["weights"]["seen"] > 0
    _, spec = load_checkpoint(second)
    theirs = Seen("theirs.pt", "0" * 64, "weights")
    replace_spec(second, replace(spec, data=spec.data | started_from([theirs])))
    assert started_from([seen_by(second, "weights")])["started_from"]["weights"]["seen"] == "unknown"


# --- the command


@pytest.fixture(scope="module")
def grown(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of ten photos of each of two dishes, and the folder to which six of each have been added since."""
    folder = tmp_path_factory.mktemp("grown")
    dishes = ("bakso", "rendang")
    for dish in dishes:
        (folder / "photos" / dish).mkdir(parents=True)
        for photo in sorted((sample / dish).glob("*.jpg"))[:10]:
            shutil.copy(photo, folder / "photos" / dish)
    assert train(folder / "photos", folder / "first").status == 0
    for dish in dishes:
        shutil.copytree(sample / dish, folder / "photos" / dish, dirs_exist_ok=True)
    return folder / "first" / "runs" / "r" / "resnet18" / "checkpoint.pt", folder / "photos"


def train(data: Path, out: Path, *more: object) -> house.Said:
    line = ["--data", data, "--archs", "resnet18", "--image-size", 32, "--epochs", 1, "--precision", "fp32"]
    line += ["--release", "best"]  # so validation photos have their say, too
    with pytest.MonkeyPatch.context() as patch:  # drawn dishes have no look-alikes, and looking takes seconds
        patch.setattr(duplicates, "find_duplicates", lambda *_: [])
        return house.here("training", *line, "--batch-size", 8, "--run", "r", "--out", out, *more)


@pytest.mark.parametrize("flag", ["--weights", "--teacher"])
def test_what_was_added_validates_and_what_was_seen_trains(flag: str, grown: tuple[Path, Path], tmp_path: Path) -> None:
    before, photos = grown
    said = train(photos, tmp_path, flag, before)
    assert said.status == 0, said
    findings = json.loads((tmp_path / "runs" / "r" / "resnet18" / "data.json").read_text())
    assert findings["used"] == {"train": 30, "val": 2, "test": 0}
    [told] = findings["seen"]
    assert f"validation photos were seen by {before} and train instead" in told and f"data: {told}" in said.err
    assert f"## Seen before: 1\n\n- {told}" in page(Findings(**findings))
    after = tmp_path / "runs" / "r" / "resnet18" / "checkpoint.pt"
    _, spec = load_checkpoint(after)
    facts = {"name": str(before), "sha256": sha256_file(before), "seen": 20}
    assert spec.data["started_from"] == {flag.removeprefix("--"): facts}
    assert (len(seen_by(after).photos or ()), len(seen_by(after).moved)) == (32, 20)
    assert "up to date" in train(photos, tmp_path, flag, before).err
    (tmp_path / "elsewhere").mkdir()
    assert "up to date" in train(photos, tmp_path, flag, shutil.copy(before, tmp_path / "elsewhere" / "w.pt")).err


def test_weights_of_the_same_photos_go_on_with_their_own_split(grown: tuple[Path, Path], tmp_path: Path) -> None:
    before, photos = grown
    assert train(photos, tmp_path / "second", "--weights", before).status == 0
    second = tmp_path / "second" / "runs" / "r" / "resnet18" / "checkpoint.pt"
    assert train(photos, tmp_path / "third", "--weights", second).status == 0
    third = tmp_path / "third" / "runs" / "r" / "resnet18" / "checkpoint.pt"
    assert seen_by(third).fingerprint == seen_by(second).fingerprint
    said = train(photos, tmp_path / "other", "--weights", second, "--seed", 1)
    assert said.refused and "every photo of bakso, rendang that could be a validation photo" in said.last, said


def test_a_checkpoint_without_a_record_is_refused_for_other_photos(grown: tuple[Path, Path], tmp_path: Path) -> None:
    before, photos = grown
    for flag in ("--weights", "--teacher"):
        said = train(photos, tmp_path, flag, unrecorded(before, tmp_path / "old.pt"))
        assert said.refused and "keeps no record" in said.last, said
    said = train(photos, tmp_path, "--weights", tmp_path / "gone.pt")
    assert said.refused and "gone.pt does not exist" in said.last, said


def test_a_run_is_told_by_the_content_of_the_files_that_it_starts_from(run: Path, tmp_path: Path) -> None:
    given, elsewhere = tmp_path / "given.pt", tmp_path / "elsewhere.pt"
    for file in (given, elsewhere):
        file.write_bytes(b"one")
    recipe, moved = Recipe(weights=str(given)), Recipe(weights=str(elsewhere))
    files = {"weights": sha256_file(given)}
    then = asdict(recipe)
    assert recipe.by_content() == moved.by_content() and moved.same_settings(then, files)
    assert moved.same_settings(then | {"name": "of another file", "workers": 3}, files), "which change no weight"
    given.write_bytes(b"two")
    assert not recipe.same_settings(then, files) and recipe.by_content() != moved.by_content()
    assert not Recipe().same_settings(then, files)
    assert recipe.same_settings(then) and not moved.same_settings(then), "an earlier saji kept the path alone"
    _, spec = load_checkpoint(run / "checkpoint.pt")
    assert finished(run, "resnet18", Recipe.from_record(spec.recipe), spec.data["fingerprint"])
