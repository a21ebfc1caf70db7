"""From a photo set on disk to arrays: every file read, checked and split; `check` reports on that without training."""

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from runtime.errors import GateFailed, SajiError, some_of
from runtime.evaluation import ValidationSet
from runtime.files import replacing_folder, write_json, write_text
from runtime.preprocess import pixels
from runtime.spec import Geometry
from runtime.terminal import tell
from training.photos.findings import PERHAPS, Scene, collect, examine, find_scenes, leaks
from training.photos.findings_page import contact_sheet, describe, faults, page
from training.photos.photo_set import Photo, PhotoSet, read_photo_set
from training.photos.seen import Seen, seen_in, split_unseen, unknown_to, whole_scenes
from training.photos.split import Data, HeldBack, given_split, scene_numbers, stratified_split
from training.progress import Progress, bar, in_threads, silent
from training.recipe import DEFAULTS


def load_data(
    source: Path | PhotoSet,
    validation_share: float,
    seed: int,
    look_alikes: bool = True,
    cache: Path | None = None,
    progress: Progress = silent,
    before: Collection[Seen] = (),
    test_share: float = 0.0,
) -> Data:
    """List, examine and split a photo set; photos of one scene stay on one side of a split that is made here.

    The photos of its test split, or the share of all photos that `test_share` holds back, are `test`. No photo
    validates that what training starts from, `before`, has seen (`split_unseen` has the exception).
    Looking for `look_alikes` takes about a minute per 1000 photos, unless the folder `cache` has what was found
    before; without it only identical files are kept together. Raises SajiError where there are no two classes of two
    photos each; a class that is missing on a side is one of the findings.
    """
    listed = source if isinstance(source, PhotoSet) else read_photo_set(source)
    facts = list(in_threads(examine, [photo.path for photo in listed.photos], "reading photos", progress))
    examined = [replace(photo, sha256=fact.sha256) for photo, fact in zip(listed.photos, facts, strict=True)]
    good = [photo for photo in examined if photo.sha256]
    good.sort(key=lambda photo: photo.split == "test")  # last, so that an index means the same with and without them
    scenes = find_scenes([photo.path for photo in good], [photo.sha256 for photo in good], look_alikes, cache, progress)
    if test_share:
        good, scenes = _hold_back(good, scenes, test_share, seed)
    photos = tuple(photo for photo in good if photo.split != "test")
    hashes = [photo.sha256 for photo in good]
    classes = tuple(sorted({photo.label for photo in listed.photos if photo.split != "test"}))
    _require_enough(good, classes, listed)
    labels = np.array([classes.index(photo.label) for photo in photos])
    own = scene_numbers(scenes, hashes[: len(photos)])
    bare = Data(photos, classes, labels, np.arange(len(photos)), np.arange(0), own)
    before = whole_scenes(before, hashes, numbers := scene_numbers(scenes, hashes))
    data, told = split_unseen(bare, validation_share, seed, before)
    side_of = dict.fromkeys(data.val.tolist(), "val") | dict.fromkeys(range(len(photos), len(good)), "test")
    sides = [side_of.get(i, "train") for i in range(len(good))]
    findings = collect(listed, facts, good, hashes, sides, scenes, look_alikes)
    shown = leaks(scenes, hashes, sides)
    clean = [i for i in range(len(photos), len(good)) if i not in shown and good[i].label in classes]
    test_labels = np.array([classes.index(good[i].label) for i in clean], int)
    test = HeldBack(tuple(good[i] for i in clean), test_labels, numbers[clean])
    test = unknown_to(before, test, [hashes[i] for i in clean])
    return replace(
        data,
        findings=replace(findings, seen=told, one_sided=_one_sided(data, listed), measuring=len(test.photos)),
        seen=seen_in(data, before),
        leaking=np.intersect1d(data.val, [i for i, kind in shown.items() if kind != PERHAPS]),
        test=test,
    )


def _hold_back(good: list[Photo], scenes: list[Scene], share: float, seed: int) -> tuple[list[Photo], list[Scene]]:
    """The photos and their scenes, where whole scenes are marked as the test split and come last."""
    if any(photo.split == "test" for photo in good):
        raise SajiError("the photos have a test split of their own, which measures the accuracy; leave test_share out")
    hashes, names = [photo.sha256 for photo in good], sorted({photo.label for photo in good})
    labels = np.array([names.index(photo.label) for photo in good], int)
    rest, held = stratified_split(labels, hashes, scene_numbers(scenes, hashes), share, seed, labels[:0])
    place = {old: new for new, old in enumerate([*rest, *held])}
    marked = [good[i] for i in rest] + [replace(good[i], split="test") for i in held]
    return marked, [[[[place[i] for i in picture] for picture in part] for part in scene] for scene in scenes]


def _require_enough(readable: Sequence[Photo], classes: Sequence[str], listed: PhotoSet) -> None:
    counts = Counter(photo.label for photo in readable if photo.split != "test")
    held_back = Counter(photo.label for photo in readable if photo.split == "test")
    if not classes:
        told = f"{listed.source} has photos of the test split alone"
        raise SajiError(f"{told}; add others to learn from, in train/ or with the split train, or leave the split out")
    if len(classes) < 2:
        raise SajiError(f"{listed.source} has the one class {''.join(classes)!r}; a classifier needs at least two")
    unreadable = len(listed.photos) - len(readable)
    if few := [name for name in classes if counts[name] < 2]:
        notes = [f"{unreadable} of {len(listed.photos)} files could not be read"] if unreadable else []
        if held := sum(held_back[name] for name in few):
            notes.append(f"a test split or --test-share holds {held} back")
        found = some_of([f"{name!r} ({counts[name]})" for name in few])
        raise SajiError(
            f"too few readable photos of {found}; a class needs at least two, one to train on and one to check with: "
            f"add some, or drop the class{f' ({some_of(notes)})' if notes else ''}"
        )


def _one_sided(data: Data, listed: PhotoSet) -> list[str]:
    """A sentence on each side of the split that a class is missing on; one of the test split may be trained nowhere."""
    why = "" if given_split(data.photos) else ", as photos of one scene stay together"
    sentences = []
    for side, indices in (("training", data.train), ("validation", data.val)):
        if missing := sorted(set(range(len(data.classes))) - set(data.labels[indices].tolist())):
            names = some_of([repr(data.classes[i]) for i in missing])
            sentences.append(f"the {side} side of the split has no photo of {names}{why}; add some, or drop the class")
    if strange := sorted({photo.label for photo in listed.photos if photo.split == "test"}.difference(data.classes)):
        names = some_of([*map(repr, strange)])
        sentences.append(f"the test split's photos of {names} measure nothing, as no others have that label; rename it")
    return sentences


def check(source: Path, out: Path, strict: bool, as_json: bool) -> None:
    """Report on a photo set, into `out/data/NAME` and on stdout.

    Raises GateFailed after that where it is to be `strict` and something is wrong with the set.
    """
    data = load_data(source, DEFAULTS.validation_share, DEFAULTS.seed, True, out / "cache", bar)
    findings, folder = data.findings, out / "data" / run_name(source)
    if folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise SajiError(f"the report would take the place of the photos in {folder}; name another --out")
    with replacing_folder(folder, "data.json", "data.md") as temporary:
        write_json(temporary / "data.json", asdict(findings))
        write_text(temporary / "data.md", page(findings))
        if findings.groups:
            contact_sheet(findings).save(temporary / "duplicates.png")
    if as_json:
        print(json.dumps(asdict(findings)))
    else:
        tell(f"{describe(findings)}\nreport: {folder / 'data.md'}")
    if strict and (wrong := faults(findings)):
        raise GateFailed(f"{source} is not clean ({', '.join(wrong)}); see {folder / 'data.md'}")


def run_name(source: Path) -> str:
    """What artefacts made from a photo set are called: its name, in characters that a shell leaves alone."""
    name = source.resolve().stem if source.is_file() else source.resolve().name
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:60] or "run"


def validation_set(data: Data, geometry: Geometry, progress: Progress) -> ValidationSet:
    """The validation photos exactly as serving preprocesses them."""
    return _preprocessed(data, data.val, geometry, progress)


def calibration_set(data: Data, geometry: Geometry, most: int, seed: int, progress: Progress) -> ValidationSet:
    """Up to `most` training photos as serving preprocesses them, equally many of each class, for INT8."""
    order = np.random.default_rng(seed).permutation(data.train)
    per_class = math.ceil(most / len(data.classes))
    chosen = np.concatenate([order[data.labels[order] == k][:per_class] for k in range(len(data.classes))])
    chosen = np.random.default_rng(seed).permutation(chosen)  # a prefix holds all classes
    return _preprocessed(data, chosen, geometry, progress)


def _preprocessed(data: Data, indices: np.ndarray, geometry: Geometry, progress: Progress) -> ValidationSet:
    """The photos at these indices, each named by its label and file name."""
    photos = [data.photos[i] for i in indices]
    images = np.empty((len(photos), geometry.size, geometry.size, 3), np.uint8)
    decoded = in_threads(lambda photo: pixels(photo.source(), geometry), photos, "preprocessing", progress)
    for row, image in enumerate(decoded):
        images[row] = image
    names = tuple(f"{photo.label}/{photo.path.name}" for photo in photos)
    return ValidationSet(images, data.labels[indices], names, scenes=data.scenes[indices])
