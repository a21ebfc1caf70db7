"""What is wrong with a photo set: faults of files, duplicates, and the leaks they make across a split."""

import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageStat

from runtime.errors import BadPhoto
from runtime.files import DAMAGE, as_text, read_json, sha256_file, sha256_json, write_json
from runtime.preprocess import decode, opened
from training.photos.photo_set import Photo, PhotoSet
from training.progress import Progress

if TYPE_CHECKING:  # OpenCV and scikit-learn take seconds to import, so duplicates are imported where they are needed
    from training.photos.duplicates import Kind, Pair

# What may be one scene: the parts that certainly are, each as its pictures, each as the indexes of the photos of it
Scene = list[list[list[int]]]

SIDES = ("train", "val", "test")
KINDS: tuple["Kind", ...] = ("identical", "same picture", "same scene", "perhaps the same plate")
PERHAPS = KINDS[-1]
LARGEST_FILE = 2 * 10**9  # bytes; a film that strayed into a photo folder must not fill the memory
SMALLEST_SIDE, LONGEST_ASPECT = 64, 3  # pixels; longer over shorter side
# Standard deviation of the liveliest channel, in levels of 255. Measured: 805 food photos have 37 or more
BLANK = 8


@dataclass(frozen=True, slots=True)
class Facts:
    """What one file is: its SHA-256, why it cannot be read ("" when it can be), and what is suspicious about it."""

    sha256: str = ""
    unreadable: str = ""
    suspicious: tuple[str, ...] = ()


def examine(path: Path) -> Facts:
    """Read one file, once."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            return Facts(unreadable=f"has more than {LARGEST_FILE:,} bytes")
        content = path.read_bytes()
        image = decode(content, shorter_side=32)  # the smallest DCT scale still reads the whole file
    except BadPhoto as error:
        return Facts(unreadable=str(error).removeprefix("the file "))
    except OSError as error:
        return Facts(unreadable=error.strerror or str(error))
    return Facts(hashlib.sha256(content).hexdigest(), "", tuple(_suspicious(path.suffix.lower(), content, image)))


def _suspicious(suffix: str, content: bytes, image: Image.Image) -> Iterator[str]:
    with opened(content) as (header, _):
        width, height = header.size
        if min(width, height) < SMALLEST_SIDE:
            yield f"tiny ({width}×{height} pixels)"
        if max(ImageStat.Stat(image).stddev) < BLANK:
            yield "blank (all pixels are nearly the same)"
        if max(width, height) > LONGEST_ASPECT * min(width, height):
            yield f"extreme aspect ({width}×{height} pixels)"
        kind = "JPEG" if header.format == "MPO" else header.format  # a phone's JPEG with a second view in it
        if Image.registered_extensions().get(suffix) != kind:
            yield f"wrong extension (it is {kind}, named {suffix or 'without one'})"
        if header.mode == "CMYK":
            yield "CMYK (its colours are meant for print)"
        with contextlib.suppress(Exception):  # whatever Pillow's many readers raise at a damaged second frame
            if kind != "JPEG" and getattr(header, "is_animated", False):
                yield "animated (the first frame is used)"


def find_scenes(
    paths: Sequence[Path], hashes: Sequence[str], look_alikes: bool, folder: Path | None, progress: Progress
) -> list[Scene]:
    """The scenes that two or more of the readable files may show; of identical files only, without `look_alikes`.

    What was found is kept in `folder`, if given, by the files' hashes. Raises SajiError when the disk is too full, or a
    file is not the one of its hash any more.
    """
    files: dict[str, list[int]] = defaultdict(list)
    for index, digest in enumerate(hashes):
        files[digest].append(index)
    if not look_alikes and len(files) == len(hashes):
        return []
    from training.photos.duplicates import Pair, groups

    pairs = [Pair(same[0], index, "identical", 0, 0, 1.0, 1.0) for same in files.values() for index in same[1:]]
    if look_alikes:
        distinct = sorted(files)  # the order must not depend on names, or renamed files would not be recognised
        first = [files[digest][0] for digest in distinct]
        for pair in _look_alikes([paths[index] for index in first], distinct, folder, progress):
            pairs.append(replace(pair, first=first[pair.first], second=first[pair.second]))
    picture, certain = (
        {i: same[0] for same in groups(len(hashes), pairs, KINDS[:most]) for i in same} for most in (2, 3)
    )
    scenes: list[Scene] = []
    for cluster in groups(len(hashes), pairs):
        parts: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index in cluster:
            parts[certain.get(index, index)][picture.get(index, index)].append(index)
        scenes.append([[*pictures.values()] for pictures in parts.values()])
    return scenes


def _look_alikes(paths: list[Path], hashes: list[str], folder: Path | None, progress: Progress) -> "list[Pair]":
    from training.photos import duplicates

    code = sha256_file(Path(duplicates.__file__))  # what another version of it found would not be found again
    file = folder / f"{sha256_json([code, hashes])[:16]}.duplicates.json" if folder else None
    if file and file.is_file():
        with contextlib.suppress(*DAMAGE):
            return [duplicates.Pair(**pair) for pair in read_json(file)]
    pairs = duplicates.find_duplicates(paths, progress, hashes)
    if file:
        write_json(file, [asdict(pair) for pair in pairs])
    return pairs


@dataclass(frozen=True)
class PhotoFacts:
    """A photo of a group: its name within the set, its label, its side of the split and its file's SHA-256."""

    photo: str
    label: str
    side: str
    sha256: str


@dataclass(frozen=True)
class Group:
    """Photos of what may be one scene, by their pictures, part by part; `kind` is the loosest likeness among them.

    `leaks` counts those that an earlier side of the split shows too.
    """

    kind: "Kind"
    leaks: int
    two_labels: bool
    pictures: list[list[PhotoFacts]]


@dataclass(frozen=True)
class Findings:
    """All that was found in a photo set; as JSON it is `data.json`.

    `used` and `per_class` count the readable photos of each side, `measuring` those of the test split whose accuracy is
    told: they show a class that is trained, and no scene of another side. `leaks` has the closest likeness of each
    held-out photo that an earlier side of the split shows too; `perhaps` names those that perhaps do. `two_labels` has
    the photos of each picture that has several. `seen` has a sentence on each file that training starts from and that
    saw validation photos, or may have, `one_sided` one on each side of the split that a class is missing on. `drawn`
    photos are saji's own sample. Without `look_alikes` only identical files were looked for.
    """

    source: str = ""
    listed: int = 0
    used: dict[str, int] = field(default_factory=dict)
    per_class: dict[str, dict[str, int]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    suspicious: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    leaks: dict[str, "Kind"] = field(default_factory=dict)
    perhaps: list[str] = field(default_factory=list)
    two_labels: list[list[str]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    one_sided: list[str] = field(default_factory=list)
    measuring: int = 0
    look_alikes: bool = True
    drawn: bool = False


def collect(
    listed: PhotoSet,
    facts: Sequence[Facts],
    photos: Sequence[Photo],
    hashes: Sequence[str],
    sides: Sequence[str],
    scenes: Sequence[Scene],
    look_alikes: bool,
) -> Findings:
    """All findings, from the facts of each listed photo and the hash and side of each readable one."""
    names = [_name(photo, listed) for photo in photos]
    photo_facts = [PhotoFacts(*each) for each in zip(names, (p.label for p in photos), sides, hashes, strict=True)]
    of_file = {_name(photo, listed): fact for photo, fact in zip(listed.photos, facts, strict=True)}
    leaking = leaks(scenes, hashes, sides)
    two_labels: list[list[str]] = []
    groups: list[Group] = []
    for scene in scenes:
        pictures = [[photo_facts[index] for index in picture] for part in scene for picture in part]
        mixed = [picture for picture in pictures if len({photo.label for photo in picture}) > 1]
        files = {photo.sha256 for picture in pictures for photo in picture}
        differ = len(scene) > 1, len(pictures) > 1, len(files) > 1
        kind: Kind = next((kind for kind, true in zip(KINDS[:0:-1], differ, strict=True) if true), KINDS[0])
        certain = sum(leaking.get(i, PERHAPS) != PERHAPS for part in scene for picture in part for i in picture)
        groups.append(Group(kind, certain, bool(mixed), pictures))
        two_labels += [[f"{photo.photo} ({photo.label})" for photo in picture] for picture in mixed]
    # What matters most first: the contact sheet has room for so many
    groups.sort(key=lambda group: (-group.leaks, not group.two_labels, KINDS.index(group.kind)))
    per_class = Counter((photo.label, photo.side) for photo in photo_facts)
    labels, used = sorted({photo.label for photo in photo_facts}), Counter(sides)
    return Findings(
        source=as_text(str(listed.source)),
        listed=len(listed.photos),
        used={side: used[side] for side in SIDES},
        per_class={label: {side: per_class[label, side] for side in SIDES} for label in labels},
        unreadable=[f"{name}: {fact.unreadable}" for name, fact in of_file.items() if fact.unreadable],
        suspicious={name: list(fact.suspicious) for name, fact in of_file.items() if fact.suspicious},
        problems=list(listed.problems),
        notes=list(listed.notes),
        leaks={names[i]: kind for i, kind in leaking.items() if kind != PERHAPS},
        perhaps=[names[i] for i, kind in leaking.items() if kind == PERHAPS],
        two_labels=two_labels,
        groups=groups,
        look_alikes=look_alikes,
    )


def _name(photo: Photo, listed: PhotoSet) -> str:
    root = listed.source if listed.source.is_dir() else listed.source.parent
    return as_text(Path(os.path.relpath(photo.path, root)).as_posix())


def leaks(scenes: Sequence[Scene], hashes: Sequence[str], sides: Sequence[str]) -> "dict[int, Kind]":
    """The photos that an earlier side of the split may show too, each with the closest likeness of that."""
    rank = [SIDES.index(side) for side in sides]
    found: dict[int, Kind] = {}
    for scene in scenes:
        perhaps = min(rank[i] for part in scene for picture in part for i in picture)
        for part in scene:
            certain = min(rank[i] for picture in part for i in picture)
            for picture in part:
                by_file: dict[str, int] = {}
                for i in picture:
                    by_file[hashes[i]] = min(rank[i], by_file.get(hashes[i], rank[i]))
                for i in picture:
                    earliest = by_file[hashes[i]], min(by_file.values()), certain, perhaps
                    closest = [kind for kind, other in zip(KINDS, earliest, strict=True) if other < rank[i]]
                    if closest:
                        found[i] = closest[0]
    return found
