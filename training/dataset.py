"""From a photo set to arrays: read every file once, report what is wrong with it, split it without a leak."""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from runtime.environment import usable_cores
from runtime.errors import BadPhoto, SajiError
from runtime.evaluation import JudgingSet
from runtime.files import replacing, sha256_json, write_json
from runtime.photos import Photo, PhotoSet, read_photo_set
from runtime.preprocess import FILTERS, decode, pixels
from runtime.spec import Geometry

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


def load_data(source: Path, validation_share: float, seed: int) -> Data:
    """List, check, hash and split a photo set. Raises SajiError where no training is possible."""
    found = read_photo_set(source)
    with ThreadPoolExecutor(usable_cores()) as pool:
        checked = list(pool.map(_check, found.photos))
    good = [(photo, digest) for photo, (digest, problem) in zip(found.photos, checked, strict=True) if not problem]
    unreadable = [problem for _, problem in checked if problem]
    photos = tuple(photo for photo, _ in good if photo.split != "test")
    hashes = tuple(digest for photo, digest in good if photo.split != "test")
    classes = tuple(sorted({photo.label for photo in found.photos}))
    counts = Counter(photo.label for photo in photos)
    if len(classes) < 2:
        raise SajiError(f"{source} has the one class {classes[0]!r}; a classifier needs at least two")
    for name in classes:
        if counts[name] < 2:
            raise SajiError(
                f"class {name!r} has {counts[name]} readable photos; it needs at least two, one to train on and "
                f"one to check with ({len(unreadable)} of {len(found.photos)} files could not be read)"
            )
    labels = np.array([classes.index(photo.label) for photo in photos])
    if any(photo.split for photo in photos):
        train, val = _given_split(photos)
    else:
        train, val = _stratified_split(labels, hashes, validation_share, seed)
    for side, indices in (("training", train), ("validation", val)):
        missing = set(range(len(classes))) - set(labels[indices].tolist())
        if missing:
            names = ", ".join(classes[i] for i in sorted(missing))
            raise SajiError(f"the {side} side of the split has no photo of {names}; add some, or drop the class")
    data = Data(photos, classes, labels, train, val, hashes)
    return Data(photos, classes, labels, train, val, hashes, _report(found, data, unreadable))


def _check(photo: Photo) -> tuple[str, str | None]:
    try:
        content = photo.path.read_bytes()
        decode(content, shorter_side=32)  # the smallest DCT scale still reads the whole file
        return hashlib.sha256(content).hexdigest(), None
    except BadPhoto as error:
        return "", f"{photo.path}: {error}".replace("the bytes ", "")
    except OSError as error:
        return "", f"{photo.path}: {error.strerror}"


def _given_split(photos: tuple[Photo, ...]) -> tuple[np.ndarray, np.ndarray]:
    unsplit = sum(photo.split is None for photo in photos)
    if unsplit:
        raise SajiError(f"{unsplit} of {len(photos)} rows have no split; fill the split column for all or for none")
    val = np.array([photo.split == "val" for photo in photos])
    return np.flatnonzero(~val), np.flatnonzero(val)


def _stratified_split(labels: np.ndarray, hashes: tuple[str, ...], share: float, seed: int) -> tuple:
    """Per class, whole groups of identical files go to one side; the order comes from the hash and the seed."""
    by_hash: dict[str, list[int]] = defaultdict(list)
    for index, digest in enumerate(hashes):
        by_hash[digest].append(index)
    val: list[int] = []
    for label in range(labels.max() + 1):
        groups = [group for group in by_hash.values() if labels[group[0]] == label]
        groups.sort(key=lambda group: hashlib.sha256(f"{seed} {hashes[group[0]]}".encode()).digest())
        wanted = max(1, round(share * sum(map(len, groups))))
        for group in groups[:-1]:  # the last group always stays for training
            if wanted <= 0:
                break
            val += group
            wanted -= len(group)
    chosen = np.isin(np.arange(len(labels)), val)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _report(found: PhotoSet, data: Data, unreadable: list[str]) -> dict[str, Any]:
    copies = [digest for digest, count in Counter(data.hashes).items() if count > 1]
    train = {data.hashes[i] for i in data.train}
    leaked = [str(data.photos[i].path) for i in data.val if data.hashes[i] in train]
    labels_of = defaultdict(set)
    for photo, digest in zip(data.photos, data.hashes, strict=True):
        labels_of[digest].add(photo.label)
    return {
        "source": str(found.source),
        "listed": len(found.photos),
        "used": {"train": len(data.train), "val": len(data.val)},
        "left_out_test": sum(photo.split == "test" for photo in found.photos),
        "per_class": {
            name: {side: int((data.labels[indices] == k).sum()) for side, indices in _sides(data)}
            for k, name in enumerate(data.classes)
        },
        "unreadable": unreadable,
        "problems": list(found.problems),
        "identical_groups": len(copies),
        "identical_across_split": leaked,
        "identical_with_two_labels": sum(len(labels) > 1 for labels in labels_of.values()),
    }


def _sides(data: Data) -> tuple[tuple[str, np.ndarray], ...]:
    return ("train", data.train), ("val", data.val)


def describe(report: dict[str, Any]) -> str:
    """The data report as a few lines for a person."""
    per_class = ", ".join(f"{name} {c['train']}+{c['val']}" for name, c in report["per_class"].items())
    lines = [f"data: {report['used']['train']} to train on + {report['used']['val']} to validate ({per_class})"]
    for key, what in (
        ("unreadable", "files could not be read and are left out"),
        ("problems", "faults in the listing"),
    ):
        if report[key]:
            more = f" … and {len(report[key]) - 5} more, all in data.json" if len(report[key]) > 5 else ""
            lines.append(f"data: {len(report[key])} {what}: {'; '.join(report[key][:5])}{more}")
    if report["identical_across_split"]:
        lines.append(
            f"data: the given split LEAKS: {len(report['identical_across_split'])} validation photos stand "
            "byte for byte among the training photos too, so the accuracy is too high"
        )
    if report["identical_with_two_labels"]:
        lines.append(f"data: {report['identical_with_two_labels']} identical files carry two different labels")
    return "\n".join(lines)


Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


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
