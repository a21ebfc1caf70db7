"""How well duplicates are found, and how the search grows.

`known DATA` holds the pairs found inside a photo set against the column `group` of its CSV, which photos of one scene
share; without that column it lists the pairs for a person to look at. `planted DATA` plants copies of a set's photos
and tells which kinds are found. `drawn N` searches N drawn dishes.
"""

import argparse
import csv
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from runtime.benchmark.rows import Row, read_rows
from runtime.benchmark.watch import peak_memory_mib
from runtime.environment import stamp
from runtime.errors import SajiError
from runtime.preprocess import decode
from training.photos.drawn import DISHES, write_sample
from training.photos.duplicates import Kind, Pair, find_duplicates, groups
from training.photos.photo_set import read_photo_set
from training.progress import bar


def _marked(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    for line in range(4):
        draw.text((width * line // 9, height * line // 4), "STOCK PHOTO", "white", font_size=width // 8)
    return picture


def _cropped(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    return picture.crop((width // 5, height // 6, width * 19 // 20, height * 9 // 10))


PLANTED = 100
WARM = (1, 0.2, 0, 20, 0, 0.9, 0.1, 0, 0.1, 0, 0.5, 0)  # a matrix of colours, as Image.convert takes it
COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "turned by 90°": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "cropped": _cropped,
    "mirrored and cropped": lambda picture: _cropped(ImageOps.mirror(picture)),
    "recoloured": lambda picture: ImageEnhance.Color(picture.convert("RGB", WARM)).enhance(0.6),
    "watermarked": _marked,
}
CERTAIN = get_args(Kind)[:-1]  # without "perhaps the same plate", which is for a person to look at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to search."""
    parser.add_argument("kind", choices=["known", "planted", "drawn"], help="where they are known, planted, or drawn")
    parser.add_argument("photos", metavar="DATA|N", help="a CSV, or the folder of a labels.csv; how many to draw")
    parser.add_argument("--size", type=int, default=96, help="width and height of drawn photos, pixels (96)")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """One row; of drawn photos with how the search grows over it and the rows before it."""
    if arguments.kind == "known":
        yield known(Path(arguments.photos))
        return
    if arguments.kind == "planted":
        yield planted(Path(arguments.photos))
        return
    if not arguments.photos.isdecimal():
        raise SajiError(f"drawn takes how many photos to draw, such as 1000, not {arguments.photos}")
    row = drawn(int(arguments.photos), arguments.size, arguments.out)
    earlier = read_rows(arguments.rows) if arguments.rows and arguments.rows.is_file() else []
    yield row | {"growth_exponent": exponent([*earlier, row | stamp()])}


def known(source: Path) -> Row:
    """The pairs found inside a photo set: scored, with the misses, where its CSV has groups; else all of them.

    Photos that pairs join to one cluster count as found pairs, each with each. Raises SajiError without such a CSV.
    """
    table = source / "labels.csv" if source.is_dir() else source
    if not table.is_file():
        raise SajiError(f"{table} does not exist; DATA is a CSV with filename,label[,group], or the folder of one")
    with open(table, encoding="utf-8-sig", newline="") as file:
        photos = list(csv.DictReader(file))
    if not photos or "filename" not in photos[0]:
        raise SajiError(f"{table} names no photos; it needs filename,label[,group]")
    started = time.perf_counter()
    pairs = find_duplicates([table.parent / photo["filename"] for photo in photos], bar)
    seconds = round(time.perf_counter() - started, 2)
    row = {"experiment": "known duplicates", "data": table.parent.name, "photos": len(photos), "seconds": seconds}
    return row | scored([photo["filename"] for photo in photos], [photo.get("group") for photo in photos], pairs)


def planted(source: Path) -> Row:
    """How many copies of each kind are found among a set's photos; one photo of each scene stands for it.

    `precision` is that of all certain pairs.
    """
    photos = [photo.path for photo in read_photo_set(source).photos]
    alike = [set(cluster[1:]) for cluster in groups(len(photos), find_duplicates(photos, bar))]
    photos = [path for index, path in enumerate(photos) if not any(index in cluster for cluster in alike)]
    with tempfile.TemporaryDirectory() as folder:
        originals = photos[:: max(1, len(photos) // PLANTED)][:PLANTED]
        copies = {kind: [_copied(make, path, Path(folder)) for path in originals] for kind, make in COPIES.items()}
        together = [*photos, *(copy for made in copies.values() for copy in made)]
        pairs = find_duplicates(together, bar)
    shown = {path: number for number, path in enumerate(photos)}
    shown |= {copy: shown[original] for made in copies.values() for copy, original in zip(made, originals, strict=True)}
    clusters = groups(len(together), pairs, CERTAIN)
    scene = {together[index]: number for number, cluster in enumerate(clusters) for index in cluster}
    joined = [(together[i], together[j]) for cluster in clusters for i, j in combinations(cluster, 2)]
    right = sum(shown[first] == shown[second] for first, second in joined)
    found = {}
    for kind, made in copies.items():
        joined_too = sum(scene.get(a, -1) == scene.get(b, -2) for a, b in zip(made, originals, strict=True))
        found[kind] = round(joined_too / len(made), 4)
    row = {"experiment": "planted duplicates", "data": source.name, "photos": len(together), "planted": len(originals)}
    return row | {"recall_by_kind": found, "precision": round(right / max(1, len(joined)), 4)}


def _copied(make: Callable[[Image.Image], Image.Image], path: Path, folder: Path) -> Path:
    copy = folder / f"{len([*folder.iterdir()])}.jpg"
    make(decode(path)).save(copy, quality=80)
    return copy


def scored(names: Sequence[str], group: Sequence[str | None], pairs: Sequence[Pair]) -> Row:
    """Recall and precision of certain pairs against the group of each photo; all pairs where there is no group."""
    if None in group:
        return {"pairs": [[names[pair.first], names[pair.second], pair.kind] for pair in pairs]}

    def named(chosen: Set[tuple[int, int]]) -> list[list[str]]:
        return [[names[first], names[second]] for first, second in sorted(chosen)]

    alike = {(i, j) for i, j in combinations(range(len(names)), 2) if group[i] == group[j]}
    joined = {pair for cluster in groups(len(names), pairs, CERTAIN) for pair in combinations(cluster, 2)}
    return {
        "true_pairs": len(alike),
        "found_pairs": len(joined),
        "recall": round(len(alike & joined) / max(1, len(alike)), 4),
        "precision": round(len(alike & joined) / max(1, len(joined)), 4),
        "missed": named(alike - joined),
        "wrong": named(joined - alike),
    }


def drawn(photos: int, size: int, out: Path) -> Row:
    """Search this many drawn dishes, `size` pixels wide and high: photos per second and peak memory, MiB.

    `private_memory_mib` leaves out the pages of files, which the system takes back when it needs them.
    """
    per_class = -(-photos // len(DISHES))
    folder = write_sample(out / f"drawn-{per_class}-{size}", per_class, size)
    paths = sorted(folder.glob("*/*.jpg"))[:photos]
    memory = _PrivateMemory()
    started, worked = time.perf_counter(), time.process_time()
    pairs = find_duplicates(paths, bar)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    return {
        "experiment": "duplicates among drawn photos",
        "photos": len(paths),
        "image_size": size,
        "pairs": len(pairs),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(worked, 2),
        "photos_per_second": round(len(paths) / seconds, 1),
        "peak_memory_mib": peak_memory_mib(),
        "private_memory_mib": memory.peak(),
    }


def exponent(rows: Sequence[Row]) -> float | None:
    """The power of the number of photos with which the work grows; None from a single number.

    By least squares over the logarithms of all rows of the last one's kind and processor. Processor seconds are the
    work: other programs on the machine hardly change them.
    """
    same = ("experiment", "image_size", "machine_cpu", "machine_cpu_features")
    alike = [row for row in rows if all(row.get(key) == rows[-1].get(key) for key in same)]
    if len({row["photos"] for row in alike}) < 2:
        return None
    logs = np.log([[row["photos"], row["cpu_seconds"]] for row in alike])
    return round(float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0]), 3)


class _PrivateMemory:
    """Watches the memory of this process that is no file's, where the system tells it (Linux)."""

    def __init__(self) -> None:
        self._most, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._over.wait(0.1):
            memory = process.memory_info()
            self._most = max(self._most, (memory.rss - getattr(memory, "shared", memory.rss)) / 2**20)

    def peak(self) -> float | None:
        """The most it was, MiB; ends the watch."""
        self._over.set()
        self._thread.join()
        return round(self._most, 1) or None
