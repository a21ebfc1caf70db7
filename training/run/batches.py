"""Batches of training photos: decoded once, augmented anew each epoch, the same batches whatever the machine does.

Order and augmentation depend on (seed, epoch, photo) alone. So a resumed run sees what an uninterrupted one would have
seen, with or without worker processes, and where several devices share an epoch no photo is seen twice, except a few
so that all devices get equally many.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.transforms import v2

from runtime.environment import usable_cores
from runtime.errors import BadModel, SajiError
from runtime.evaluation import ValidationSet
from runtime.files import read_record, replacing, sha256_json, write_record
from runtime.preprocess import FILTERS, decode
from runtime.spec import Geometry
from training.photos.photo_set import Photo
from training.photos.split import Data
from training.progress import Progress, in_threads, silent
from training.recipe import Recipe

# Photos are kept this much larger than evaluation needs, so that random crops still find detail
TRAIN_MARGIN = 1.125
CACHE_VERSION = 1  # of what stands beside the decoded photos


def mixed_seed(*numbers: int) -> int:
    """One seed of 64 bits from several numbers, such that neighbours share nothing (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def share_of(batch: int, processes: int) -> int:
    """Photos of a batch that each of several processes takes: together they take the recipe's batch in every step."""
    if batch % processes:
        fits = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0 and n < 2 * processes)
        raise SajiError(
            f"a batch of {batch} photos cannot be shared by {processes} processes; type --devices with one of {fits}, "
            f"or --batch-size {processes * math.ceil(batch / processes)}"
        )
    return batch // processes


class TrainPhotos(Dataset):
    """The training photos, decoded and resized once into one file on disk, augmented anew each epoch.

    Item (epoch, i): (uint8 `[size, size, 3]` RGB, class index). The file is memory-mapped, so memory stays bounded and
    workers share it.
    """

    def __init__(self, data: Data, recipe: Recipe, cache: Path, progress: Progress = silent):
        self.labels = data.labels[data.train].tolist()
        self.seed = recipe.seed
        self.transform = _augmentation(recipe.augmentation, recipe.image_size, recipe.smallest_crop)
        self.path, self.shapes, self.offsets = _cached(data, recipe.image_size, cache, progress)
        self._flat: np.memmap | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, index = item
        if self._flat is None:  # opened in each worker: a memory map does not travel between processes
            self._flat = np.memmap(self.path, np.uint8, mode="c")
        height, width = self.shapes[index]
        start = self.offsets[index]
        photo = self._flat[start : start + height * width * 3].reshape(height, width, 3)
        channels_first = torch.from_numpy(photo).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers must not depend on where this runs
            torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, index))
            return self.transform(channels_first).permute(1, 2, 0).contiguous(), self.labels[index]


class EpochSampler(DistributedSampler):
    """This process's share of an epoch's photos, shuffled; yields (epoch, index), so that workers know the epoch."""

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        return iter([(self.epoch, index) for index in super().__iter__()])


class Batches(L.LightningDataModule):
    """The loaders of one run: shuffled training batches; validation photos and as many training photos to check on.

    `start` is the epoch that training begins with, 0 unless it is resumed.
    """

    def __init__(
        self, photos: TrainPhotos, validation: ValidationSet, seen: ValidationSet, recipe: Recipe, start: int
    ) -> None:
        super().__init__()
        self.photos, self.validation, self.seen, self.recipe, self.start = photos, validation, seen, recipe, start

    def train_dataloader(self) -> DataLoader:
        """Items are (uint8 `[N, S, S, 3]` RGB, int64 `[N]`)."""
        assert self.trainer
        world, rank = self.trainer.world_size, self.trainer.global_rank
        batch = share_of(self.recipe.batch_size, world)
        sampler: Any = EpochSampler(self.photos, world, rank, seed=self.recipe.seed)
        sampler.set_epoch(self.start)  # Lightning makes the first iterator before it tells the epoch
        # A last batch of one photo would break batch norm, so it is dropped where there is another
        drop_last = len(sampler) % batch == 1 and len(sampler) > batch
        return DataLoader(self.photos, batch, sampler=sampler, drop_last=drop_last, **self._loading())

    def val_dataloader(self) -> list[DataLoader]:
        """The validation photos, and as many training photos without augmentation; each process has its own part."""
        return [self._part(self.validation), self._part(self.seen)]

    def _part(self, photos: ValidationSet) -> DataLoader:
        assert self.trainer
        share = slice(self.trainer.global_rank, None, self.trainer.world_size)  # without padding: the metrics are exact
        tensors = torch.from_numpy(photos.images[share]), torch.from_numpy(photos.labels[share])
        return DataLoader(TensorDataset(*tensors), max(32, self.recipe.batch_size), pin_memory=self._beside_gpu())

    def _loading(self) -> dict[str, Any]:
        assert self.trainer
        cuda, each = self._beside_gpu(), max(1, usable_cores() // self.trainer.num_devices)
        workers = self.recipe.workers if self.recipe.workers >= 0 else (min(8, each) if cuda else 0)
        return {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": cuda}

    def _beside_gpu(self) -> bool:
        assert self.trainer
        return isinstance(self.trainer.accelerator, L.pytorch.accelerators.CUDAAccelerator)


def _augmentation(kind: str, size: int, smallest_crop: float) -> v2.Compose:
    crop = v2.RandomResizedCrop(size, scale=(smallest_crop, 1.0), antialias=True)
    still = [v2.Resize(Geometry.for_size(size).resize, antialias=True), v2.CenterCrop(size)]  # as serving crops
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
    decoded = _kept(path, index)
    if decoded is None:
        shapes: list[tuple[int, int]] = []
        photos = [data.photos[i] for i in data.train]
        with replacing(path) as temporary, open(temporary, "wb") as flat:
            for photo in in_threads(lambda each: _shrunk(each, shorter), photos, "decoding", progress):
                flat.write(photo.tobytes())
                shapes.append((photo.shape[0], photo.shape[1]))
        decoded = _Decoded(tuple(shapes), _checksum(path, tuple(shapes)))
        write_record(index, decoded, CACHE_VERSION)  # last: what a kill leaves without it is decoded again
    sizes = [height * width * 3 for height, width in decoded.shapes]
    return path, list(decoded.shapes), [0, *np.cumsum(sizes).tolist()]


@dataclass(frozen=True)
class _Decoded:
    """What lies in a file of decoded photos: height and width of each, and the checksum of that and all pixels."""

    shapes: tuple[tuple[int, int], ...]
    crc32: int


def _kept(path: Path, index: Path) -> _Decoded | None:
    """What was decoded before, where all of it is still as it was written."""
    with suppress(BadModel, OSError):
        decoded = read_record(index, _Decoded, CACHE_VERSION, "decode the photos again")
        if decoded.crc32 == _checksum(path, decoded.shapes):
            return decoded
    return None


def _checksum(path: Path, shapes: tuple[tuple[int, int], ...]) -> int:
    """Of a file of pixels, in about a second for a gigabyte."""
    checksum = zlib.crc32(repr(shapes).encode())
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _shrunk(photo: Photo, shorter: int) -> np.ndarray:
    image = decode(photo.source(), shorter)
    scale = shorter / min(image.size)
    if scale < 1:
        width, height = (max(shorter, round(side * scale)) for side in image.size)
        image = image.resize((width, height), FILTERS["bilinear"])
    return np.asarray(image)
