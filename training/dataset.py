"""From a photo set to arrays: read every file, report what is wrong with it, split it without a leak.

`python -m training.dataset check DATA` writes that report without training.
"""

import argparse
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import GateFailed, SajiError, exit_with_one_sentence, require_extra

if __name__ == "__main__":  # before the imports that would fail with a traceback
    require_extra("train", "torch", "torchvision", "rich", "cv2", "sklearn", "imagehash")

import numpy as np
import torch
from torchvision.transforms import v2

from runtime.environment import usable_cores
from runtime.evaluation import JudgingSet
from runtime.files import replacing, replacing_folder, sha256_json, write_json
from runtime.photos import Photo, read_photo_set
from runtime.preprocess import FILTERS, decode, pixels
from runtime.spec import Geometry
from training.findings import Progress, Scene, collect, examine, find_scenes
from training.findings_page import contact_sheet, describe, faults, page
from training.progress import bar
from training.recipe import Recipe

# Photos are kept this much larger than evaluation needs, so that random crops still find detail
TRAIN_MARGIN = 1.125


@dataclass(frozen=True)
class Data:
    """A photo set ready to train on.

    `train` and `val` are indices into `photos`; `labels[i]` is the class index of photo i (sorted class names).
    """

    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    train: np.ndarray
    val: np.ndarray
    hashes: tuple[str, ...]
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identifies the photos' bytes, labels and split, wherever they stand; 16 hexadecimal digits."""
        split = np.isin(np.arange(len(self.photos)), self.val).tolist()
        rows = sorted(zip(self.hashes, (photo.label for photo in self.photos), split, strict=True))
        return sha256_json(rows)[:16]


def load_data(
    source: Path,
    validation_share: float,
    seed: int,
    look_alikes: bool = True,
    cache: Path | None = None,
    progress: Progress = lambda items, what, total: items,
) -> Data:
    """List, examine and split a photo set; photos of one scene stay on one side of a split that is made here.

    Looking for `look_alikes` takes about a minute per 1000 photos, unless the folder `cache` has what was found
    before; without it only identical files are kept together. Raises SajiError where no training is possible.
    """
    found = read_photo_set(source)
    with ThreadPoolExecutor(usable_cores()) as pool:
        examined = pool.map(examine, [photo.path for photo in found.photos])
        facts = list(progress(examined, "reading photos", len(found.photos)))
    good = [(photo, fact.sha256) for photo, fact in zip(found.photos, facts, strict=True) if not fact.unreadable]
    good.sort(key=lambda item: item[0].split == "test")  # last, so that an index means the same with and without them
    photos = tuple(photo for photo, _ in good if photo.split != "test")
    hashes = tuple(digest for _, digest in good)
    classes = tuple(sorted({photo.label for photo in found.photos}))
    counts = Counter(photo.label for photo in photos)
    if len(classes) < 2:
        raise SajiError(f"{source} has the one class {classes[0]!r}; a classifier needs at least two")
    for name in classes:
        if counts[name] < 2:
            raise SajiError(
                f"class {name!r} has {counts[name]} readable photos; it needs at least two, one to train on and "
                f"one to check with ({len(found.photos) - len(good)} of {len(found.photos)} files could not be read)"
            )
    labels = np.array([classes.index(photo.label) for photo in photos])
    given = _given_split(photos)
    scenes = find_scenes([photo.path for photo, _ in good], hashes, look_alikes, cache, progress)
    train, val = given or _stratified_split(labels, hashes, scenes, validation_share, seed)
    for side, indices in (("training", train), ("validation", val)):
        missing = set(range(len(classes))) - set(labels[indices].tolist())
        if missing:
            names = ", ".join(classes[i] for i in sorted(missing))
            why = "" if given else ", as photos of one scene stay together"
            raise SajiError(f"the {side} side of the split has no photo of {names}{why}; add some, or drop the class")
    sides = ["train"] * len(photos) + ["test"] * (len(good) - len(photos))
    for index in val:
        sides[index] = "val"
    report = collect(found, facts, [photo for photo, _ in good], hashes, sides, scenes)
    return Data(photos, classes, labels, train, val, hashes[: len(photos)], report | {"look_alikes": look_alikes})


def _given_split(photos: tuple[Photo, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    unsplit = sum(photo.split is None for photo in photos)
    if unsplit == len(photos):
        return None
    if unsplit:
        raise SajiError(f"{unsplit} of {len(photos)} rows have no split; fill the split column for all or for none")
    val = np.array([photo.split == "val" for photo in photos])
    return np.flatnonzero(~val), np.flatnonzero(val)


def _stratified_split(
    labels: np.ndarray, hashes: Sequence[str], scenes: Sequence[Scene], share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whole scenes go to one side, in an order that comes from their hashes and the seed, until each class is full."""
    together = [[i for picture in scene for i in picture if i < len(labels)] for scene in scenes]
    alone = set(range(len(labels))).difference(*together)
    order = sorted(
        [*filter(None, together), *([i] for i in alone)],
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
    parser = argparse.ArgumentParser(prog="python -m training.dataset", description="Look at photos before training.")
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


def judging_set(data: Data, geometry: Geometry, progress: Progress) -> JudgingSet:
    """The validation photos exactly as serving preprocesses them."""
    return JudgingSet(*_pixels(data, data.val, geometry, progress), tuple(_name(data.photos[i]) for i in data.val))


def calibration_set(data: Data, geometry: Geometry, most: int, seed: int, progress: Progress) -> JudgingSet:
    """Up to `most` training photos as serving preprocesses them, equally many of each class, for INT8."""
    order = np.random.default_rng(seed).permutation(data.train)
    per_class = math.ceil(most / len(data.classes))
    chosen = np.concatenate([order[data.labels[order] == k][:per_class] for k in range(len(data.classes))])
    chosen = np.random.default_rng(seed).permutation(chosen)  # a prefix holds all classes
    return JudgingSet(*_pixels(data, chosen, geometry, progress), tuple(_name(data.photos[i]) for i in chosen))


def _name(photo: Photo) -> str:
    return f"{photo.label}/{photo.path.name}"


def _pixels(data: Data, indices: np.ndarray, geometry: Geometry, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(indices), geometry.size, geometry.size, 3), np.uint8)
    with ThreadPoolExecutor(usable_cores()) as pool:
        made = pool.map(lambda i: pixels(data.photos[i].path, geometry), indices)
        for row, image in enumerate(progress(made, "preprocessing", len(indices))):
            images[row] = image
    return images, data.labels[indices]


class TrainPhotos(torch.utils.data.Dataset):
    """The training photos, decoded and resized once into one file on disk, augmented anew each epoch.

    Item i: (uint8 `[size, size, 3]` RGB, class index). The file is memory-mapped, so memory stays bounded and
    workers share it.
    """

    def __init__(self, data: Data, size: int, augmentation: str, smallest_crop: float, cache: Path, progress: Progress):
        self.labels = data.labels[data.train].tolist()
        self.transform = _augmentation(augmentation, size, smallest_crop)
        self.path, self.shapes, self.offsets = _cached(data, size, cache, progress)
        self._flat: np.memmap | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self._flat is None:  # opened in each worker: a memory map does not travel between processes
            self._flat = np.memmap(self.path, np.uint8, mode="c")
        height, width = self.shapes[index]
        start = self.offsets[index]
        photo = self._flat[start : start + height * width * 3].reshape(height, width, 3)
        channels_first = torch.from_numpy(photo).permute(2, 0, 1)
        return self.transform(channels_first).permute(1, 2, 0).contiguous(), self.labels[index]


def _augmentation(kind: str, size: int, smallest_crop: float) -> v2.Compose:
    crop = v2.RandomResizedCrop(size, scale=(smallest_crop, 1.0), antialias=True)
    still = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
    steps = {
        "none": still,
        "flip": [*still, v2.RandomHorizontalFlip()],
        "crop": [crop, v2.RandomHorizontalFlip()],
        "trivial": [crop, v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()],
    }
    return v2.Compose(steps[kind])


def _cached(data: Data, size: int, cache: Path, progress: Progress) -> tuple[Path, list, list]:
    """Decoded training photos with a shorter side of about `size` × 8/7 × margin, as one flat file and its index."""
    shorter = round(Geometry.for_size(size).resize * TRAIN_MARGIN)
    hashes = [data.hashes[i] for i in data.train]
    path = cache / f"{sha256_json([hashes, shorter, Geometry.version])[:16]}.rgb"
    index = path.with_suffix(".json")
    if not index.is_file():
        shapes = []
        with replacing(path) as temporary, open(temporary, "wb") as flat, ThreadPoolExecutor(usable_cores()) as pool:
            made = pool.map(lambda i: _shrunk(data.photos[i].path, shorter), data.train)
            for photo in progress(made, "decoding", len(hashes)):
                flat.write(photo.tobytes())
                shapes.append(photo.shape[:2])
        write_json(index, shapes)  # written last: its presence says that the pixels are complete
    shapes = [tuple(shape) for shape in json.loads(index.read_text(encoding="utf-8"))]
    sizes = [height * width * 3 for height, width in shapes]
    return path, shapes, [0, *np.cumsum(sizes).tolist()]


def _shrunk(path: Path, shorter: int) -> np.ndarray:
    image = decode(path, shorter)
    scale = shorter / min(image.size)
    if scale < 1:
        width, height = (max(shorter, round(side * scale)) for side in image.size)
        image = image.resize((width, height), FILTERS["bilinear"])
    return np.asarray(image)


if __name__ == "__main__":
    exit_with_one_sentence(main)
