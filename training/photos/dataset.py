"""From a photo set to arrays: read every file, report what is wrong with it, split it without a leak.

`python -m training.photos.dataset check DATA` writes that report without training.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.command_line import Parser, exit_with_one_sentence, require_extra
from runtime.errors import GateFailed, SajiError

if __name__ == "__main__":  # before the imports that would fail with a traceback
    require_extra("train", "torch", "torchvision", "rich", "cv2", "sklearn", "imagehash")

import numpy as np

from runtime.environment import usable_cores
from runtime.evaluation import ValidationSet, wilson_interval
from runtime.files import replacing_folder, sha256_json, write_json
from runtime.preprocess import pixels
from runtime.spec import Geometry
from training.photos.findings import Progress, Scene, collect, examine, find_scenes
from training.photos.findings_page import contact_sheet, describe, faults, page
from training.photos.photo_set import Photo, PhotoSet, read_photo_set
from training.progress import bar, silent
from training.recipe import Recipe


@dataclass(frozen=True)
class Data:
    """A photo set ready to train on.

    `train` and `val` are indices into `photos`; `labels[i]` is the class index of photo i (sorted class names).
    `scenes[i]` is a number that photo i shares with those that show the same scene, and with no other.
    """

    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    train: np.ndarray
    val: np.ndarray
    hashes: tuple[str, ...]
    scenes: np.ndarray
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identifies the photos' bytes, labels and split, wherever they stand; 16 hexadecimal digits."""
        split = np.isin(np.arange(len(self.photos)), self.val).tolist()
        rows = sorted(zip(self.hashes, (photo.label for photo in self.photos), split, strict=True))
        return sha256_json(rows)[:16]

    @property
    def leaking(self) -> np.ndarray:
        """Those of `val` that show what a training photo shows too; a split made here has none."""
        return self.val[np.isin(self.scenes[self.val], self.scenes[self.train])]


def load_data(
    source: Path | PhotoSet,
    validation_share: float,
    seed: int,
    look_alikes: bool = True,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Data:
    """List, examine and split a photo set; photos of one scene stay on one side of a split that is made here.

    Looking for `look_alikes` takes about a minute per 1000 photos, unless the folder `cache` has what was found
    before; without it only identical files are kept together. Raises SajiError where no training is possible.
    """
    found = source if isinstance(source, PhotoSet) else read_photo_set(source)
    with ThreadPoolExecutor(usable_cores()) as pool:
        examined = pool.map(examine, [photo.path for photo in found.photos])
        facts = list(progress(examined, "reading photos", len(found.photos)))
    good = [(photo, fact.sha256) for photo, fact in zip(found.photos, facts, strict=True) if not fact.unreadable]
    good.sort(key=lambda item: item[0].split == "test")  # last, so that an index means the same with and without them
    photos = tuple(photo for photo, _ in good if photo.split != "test")
    hashes = tuple(digest for _, digest in good)
    classes = tuple(sorted({photo.label for photo in found.photos}))
    _require_enough(photos, classes, found, len(found.photos) - len(good))
    labels = np.array([classes.index(photo.label) for photo in photos])
    given = _given_split(photos)
    scenes = find_scenes([photo.path for photo, _ in good], hashes, look_alikes, cache, progress)
    numbers = scene_numbers(scenes, hashes[: len(photos)])
    train, val = given or _stratified_split(labels, hashes, numbers, validation_share, seed)
    for side, indices in (("training", train), ("validation", val)):
        if missing := sorted(set(range(len(classes))) - set(labels[indices].tolist())):
            names = ", ".join(classes[i] for i in missing)
            why = "" if given else ", as photos of one scene stay together"
            raise SajiError(f"the {side} side of the split has no photo of {names}{why}; add some, or drop the class")
    sides = ["train"] * len(photos) + ["test"] * (len(good) - len(photos))
    for index in val:
        sides[index] = "val"
    report = collect(found, facts, [photo for photo, _ in good], hashes, sides, scenes)
    report["look_alikes"] = look_alikes
    return Data(photos, classes, labels, train, val, hashes[: len(photos)], numbers, report)


def _require_enough(photos: Sequence[Photo], classes: Sequence[str], found: PhotoSet, unreadable: int) -> None:
    counts = Counter(photo.label for photo in photos)
    if len(classes) < 2:
        raise SajiError(f"{found.source} has the one class {classes[0]!r}; a classifier needs at least two")
    for name in classes:
        if counts[name] < 2:
            raise SajiError(
                f"class {name!r} has {counts[name]} readable photos; it needs at least two, one to train on and "
                f"one to check with ({unreadable} of {len(found.photos)} files could not be read)"
            )


def scene_numbers(scenes: Sequence[Scene], hashes: Sequence[str]) -> np.ndarray:
    """A number per photo, int64 `[len(hashes)]`, one for each scene; by content, so that names do not matter.

    Indices in `scenes` from `len(hashes)` on are left out.
    """
    lowest = list(hashes)
    for scene in scenes:
        members = [i for picture in scene for i in picture if i < len(hashes)]
        for i in members:
            lowest[i] = min(hashes[member] for member in members)
    return np.unique(lowest, return_inverse=True)[1]


def _given_split(photos: tuple[Photo, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    unsplit = sum(photo.split is None for photo in photos)
    if unsplit == len(photos):
        return None
    if unsplit:
        raise SajiError(f"{unsplit} of {len(photos)} rows have no split; fill the split column for all or for none")
    val = np.array([photo.split == "val" for photo in photos])
    return np.flatnonzero(~val), np.flatnonzero(val)


def _stratified_split(
    labels: np.ndarray, hashes: Sequence[str], scenes: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whole scenes go to one side, in an order that comes from their hashes and the seed, until each class is full."""
    together: dict[int, list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes.tolist()):
        together[scene].append(index)
    order = sorted(
        together.values(),
        key=lambda group: hashlib.sha256(f"{seed} {min(hashes[i] for i in group)}".encode()).digest(),
    )
    held = [Counter(labels[group].tolist()) for group in order]  # photos per class
    total = Counter(labels.tolist())
    wanted = {label: min(count - 1, max(1, round(share * count))) for label, count in total.items()}
    taken: Counter[int] = Counter()
    chosen = []
    for group, counts in zip(order, held, strict=True):
        if all(taken[label] + count <= wanted[label] for label, count in counts.items()):
            chosen += group
            taken += counts
    for label in total.keys() - taken.keys():  # every scene of it is larger than its share: the smallest one, then
        spare = [g for g, n in enumerate(held) if label in n and all(taken[k] + n[k] < total[k] for k in n)]
        if spare:
            smallest = min(spare, key=lambda g: len(order[g]))
            chosen += order[smallest]
            taken += held[smallest]
    val = np.isin(np.arange(len(labels)), chosen)
    return np.flatnonzero(~val), np.flatnonzero(val)


def main() -> None:
    """Read the command line; `check` reports on a photo set."""
    parser = Parser(prog="python -m training.photos.dataset", description="Look at photos before training.")
    check = parser.add_subparsers(dest="verb", required=True).add_parser(
        "check", help="report duplicates, leaks, odd and unreadable files, class balance and faults of a CSV"
    )
    check.add_argument("data", type=Path, help="a folder per class, or a CSV with filename,label[,split]")
    check.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")
    check.add_argument(
        "--strict", action="store_true", help="exit 1 on a leak, two labels, an unreadable file or a fault"
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    recipe = Recipe()
    data = load_data(arguments.data, recipe.validation_share, recipe.seed, True, arguments.out / "cache", bar)
    folder = arguments.out / "data" / run_name(arguments.data)
    with replacing_folder(folder) as temporary:
        write_json(temporary / "data.json", data.report)
        (temporary / "data.md").write_text(page(data.report), encoding="utf-8")
        if data.report["groups"]:
            contact_sheet(data.report).save(temporary / "duplicates.png")
    print(json.dumps(data.report) if arguments.json else f"{describe(data.report)}\nreport: {folder / 'data.md'}")
    if arguments.strict and (found := faults(data.report)):
        raise GateFailed(f"{arguments.data} is not clean ({', '.join(found)}); see {folder / 'data.md'}")


def run_name(source: Path) -> str:
    """What artefacts made from a photo set are called: its name, in characters that a shell leaves alone."""
    name = source.resolve().stem if source.is_file() else source.resolve().name
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:60] or "run"


def judging_set(data: Data, geometry: Geometry, progress: Progress) -> ValidationSet:
    """The validation photos exactly as serving preprocesses them."""
    return ValidationSet(
        *_pixels(data, data.val, geometry, progress), tuple(photo_name(data.photos[i]) for i in data.val)
    )


def calibration_set(data: Data, geometry: Geometry, most: int, seed: int, progress: Progress) -> ValidationSet:
    """Up to `most` training photos as serving preprocesses them, equally many of each class, for INT8."""
    order = np.random.default_rng(seed).permutation(data.train)
    per_class = math.ceil(most / len(data.classes))
    chosen = np.concatenate([order[data.labels[order] == k][:per_class] for k in range(len(data.classes))])
    chosen = np.random.default_rng(seed).permutation(chosen)  # a prefix holds all classes
    return ValidationSet(*_pixels(data, chosen, geometry, progress), tuple(photo_name(data.photos[i]) for i in chosen))


def without_leaks(data: Data, logits: np.ndarray) -> dict[str, Any]:
    """The accuracy on the validation photos that training does not show too; empty where the split does not leak.

    `logits` is float `[len(data.val), C]`, in the order of `data.val`. The accuracy is None when every photo leaks.
    """
    leaks = np.isin(data.val, data.leaking)
    if not leaks.any():
        return {}
    logits, labels = logits[~leaks], data.labels[data.val[~leaks]]
    right, photos = int((logits.argmax(1) == labels).sum()), len(labels)
    return {
        "leaking": int(leaks.sum()),
        "photos": photos,
        "accuracy": round(right / photos, 4) if photos else None,
        "interval": [round(edge, 4) for edge in wilson_interval(right, photos)],
    }


def photo_name(photo: Photo) -> str:
    """What a photo is called in arrays and tables: its label and file name."""
    return f"{photo.label}/{photo.path.name}"


def _pixels(data: Data, indices: np.ndarray, geometry: Geometry, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(indices), geometry.size, geometry.size, 3), np.uint8)
    with ThreadPoolExecutor(usable_cores()) as pool:
        made = pool.map(lambda i: pixels(data.photos[i].path, geometry), indices)
        for row, image in enumerate(progress(made, "preprocessing", len(indices))):
            images[row] = image
    return images, data.labels[indices]


if __name__ == "__main__":
    exit_with_one_sentence(main)
