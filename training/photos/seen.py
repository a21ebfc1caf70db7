"""What weights, a teacher or a checkpoint saw before, so that no such photo is held against what comes of them."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import BadModel, SajiError, some_of
from runtime.files import DAMAGE, exists, read_json, sha256_file
from runtime.spec import ModelSpec
from training.photos.split import Data, HeldBack, split
from training.recipe import Recipe

# Hexadecimal digits kept of a photo's SHA-256. Of 80 bits, a million photos held against a million others have a false
# match with a probability of 10^6 × 10^6 / 2^80, which is below 10^-12
DIGITS = 20


@dataclass(frozen=True)
class Seen:
    """What a file of weights saw: those that trained it or chose its epoch, or did so for what it came from.

    `role` is the field of the recipe that names it. `fingerprint` is that of its own photos and split, "" where saji
    did not train it. `photos` are the first DIGITS of their SHA-256, None where that is not known. `moved` are those of
    its own set that what it came from had seen. `settled` are those that it learnt nothing from, but its temperature
    and threshold; none where an earlier saji trained it. `in_part` is whether it came from a file that says nothing.
    """

    name: str
    sha256: str
    role: str = ""
    fingerprint: str = ""
    photos: frozenset[str] | None = None
    moved: frozenset[str] = frozenset()
    settled: frozenset[str] = frozenset()
    in_part: bool = False

    @property
    def unrecorded(self) -> bool:
        """Whether saji trained it before it kept a record."""
        return self.photos is None and bool(self.fingerprint)


def seen_by(path: Path, role: str = "") -> Seen:
    """The record in a checkpoint; nothing is known of a file that is none of ours. Raises BadModel where it is damaged.

    Whether the weights can be used at all is for those to say who load them.
    """
    import torch  # only here: it takes seconds to import, and checking photos needs none

    bare = Seen(str(path), sha256_file(path), role)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        text = content["spec"]
    except Exception:  # every reader of PyTorch's raises its own
        return bare
    try:
        data = ModelSpec.from_json(text, str(path)).data
        fingerprint = str(data.get("fingerprint", "unknown"))
        in_part = any(file.get("seen") == "unknown" for file in data.get("started_from", {}).values())
        if "seen" not in content:
            return replace(bare, fingerprint=fingerprint)
        record = {"settled": (), **content["seen"]}
        photos, moved, settled = (frozenset(record[name]) for name in ("photos", "moved", "settled"))
    except DAMAGE:
        raise BadModel(f"{path} does not say right which photos it has seen; train it again") from None
    return replace(bare, fingerprint=fingerprint, photos=photos, moved=moved, settled=settled, in_part=in_part)


def photos_of(folder: Path) -> Path | None:
    """Where the photos of the network in a folder stood when it was last trained; None where that is not known."""
    for record in (folder / "data.json", folder.parent / "data.json"):  # an earlier saji wrote one for the whole run
        with suppress(OSError, *DAMAGE):
            return Path(read_json(record)["source"])
    return None


def sources(recipe: Recipe) -> list[Seen]:
    """What the files that a recipe starts from have seen."""
    for field, path in recipe.files.items():
        if not path.is_file():
            what = "is no file" if exists(path) else "does not exist"
            raise SajiError(f"{path} {what}; --{field} takes a file of weights, or leave it out")
    return [seen_by(path, field) for field, path in recipe.files.items()]


def started_from(before: Collection[Seen]) -> dict[str, Any]:
    """What the spec of a model that starts from these files says of them, by role; nothing where there are none."""
    known = {each.role: each.photos for each in before if not each.in_part}
    number = {each.role: "unknown" if known.get(each.role) is None else len(known[each.role] or ()) for each in before}
    files = {each.role: {"name": each.name, "sha256": each.sha256, "seen": number[each.role]} for each in before}
    return {"started_from": files} if files else {}


def split_unseen(data: Data, share: float, seed: int, before: Collection[Seen]) -> tuple[Data, list[str]]:
    """The set's own split or ours, but what `before` has seen trains; and a sentence on each that changed something.

    Photos that share a scene with such a photo train, too. Where this is the very split that all of `before` come from,
    it stays as it is: its validation photos taught them nothing, they chose an epoch and may do so again. Raises
    SajiError where a class has no validation photo left.
    """
    free = split(data, share, seed, np.empty(0, np.int64))
    again = split(data, share, seed, _showing(data.hashes, data.scenes, *(each.moved for each in before)))
    ours = split(data, share, seed, barred(again, before))
    gone = np.setdiff1d(free.val, ours.val)
    seen = {each.name: len(np.intersect1d(gone, _seen(data, each))) for each in before}
    names = [name for name, number in seen.items() if number]
    if lost := set(data.labels[free.val].tolist()) - set(data.labels[ours.val].tolist()):
        raise SajiError(
            f"{', '.join(names)} has seen every photo of {some_of([data.classes[k] for k in sorted(lost)])} that could "
            "be a validation photo; add new photos, keep the split that it was trained with, or start without it"
        )
    told = [f"{seen[name]} validation photos were seen by {name} and train instead" for name in names]
    return ours, told + [f"what {each.name} was trained on is not known" for each in before if not each.fingerprint]


def barred(data: Data, before: Collection[Seen]) -> np.ndarray:
    """Indices int of the photos that must not validate beside the others of this split."""
    same = all(each.fingerprint in ("", data.fingerprint) for each in before)
    return _showing(data.hashes, data.scenes, *(each.moved if same else each.photos or () for each in before))


def seen_in(data: Data, before: Collection[Seen]) -> np.ndarray:
    """Indices int of the photos that may have been seen, they or another of their scene; all, where it is not known."""
    return np.unique(np.concatenate([np.empty(0, np.int64), *(_seen(data, each) for each in before)]))


def _seen(data: Data, each: Seen) -> np.ndarray:
    return np.arange(len(data.photos)) if each.unrecorded else _showing(data.hashes, data.scenes, each.photos or ())


def _showing(hashes: Sequence[str], scenes: np.ndarray, *seen: Collection[str]) -> np.ndarray:
    """Indices int of the photos whose scene has a photo in one of the collections."""
    hit = np.array([any(digest[:DIGITS] in some for some in seen) for digest in hashes], bool)
    return np.flatnonzero(np.isin(scenes, scenes[hit]))


def whole_scenes(before: Collection[Seen], hashes: Sequence[str], scenes: np.ndarray) -> list[Seen]:
    """`before` as if it had seen all shots of what it saw, among the photos of all sides of a split: none of them is
    new to it. `scenes` int `[len(hashes)]`."""
    shown = [{hashes[i][:DIGITS] for i in _showing(hashes, scenes, each.photos or ())} for each in before]
    return [replace(each, photos=each.photos and each.photos | more) for each, more in zip(before, shown, strict=True)]


def unknown_to(before: Collection[Seen], held_back: HeldBack, hashes: Sequence[str]) -> HeldBack:
    """Those of some photos, with their SHA-256, that none of `before` has seen."""
    new = np.array(
        [not any(each.unrecorded or digest[:DIGITS] in (each.photos or ()) for each in before) for digest in hashes],
        bool,
    )
    photos = tuple(photo for photo, kept in zip(held_back.photos, new, strict=True) if kept)
    return HeldBack(photos, held_back.labels[new], held_back.scenes[new])


def require_unseen(data: Data, before: list[Seen]) -> list[Seen]:
    """Give `before` back; raise SajiError where one of them has seen validation photos, or may have."""
    bad = barred(data, before)
    for each in before:
        if each.fingerprint in ("", data.fingerprint):
            continue
        if each.unrecorded:
            raise SajiError(
                f"{each.name} learnt from another set or split and keeps no record of it, so it may have seen the "
                "validation photos; train it anew, on this very split, or start without it"
            )
        if number := len(np.intersect1d(data.val, np.intersect1d(bad, _seen(data, each)))):
            raise SajiError(
                f"{number} of {len(data.val)} validation photos were seen by {each.name}, which learnt from another "
                "set or split; let these photos train, or start without it"
            )
    return before


def record(data: Data, before: Collection[Seen], epoch_is_chosen: bool) -> dict[str, list[str]] | None:
    """What a checkpoint keeps of a run on this data: a Seen's `photos`, `moved` and `settled`; None where that is not
    known.

    Validation photos are among them where they chose the released epoch, or show the scene of a training photo.
    """
    if any(each.unrecorded for each in before):
        return None
    own = np.isin(data.scenes, data.scenes[data.train]) | epoch_is_chosen
    seen = {data.hashes[i][:DIGITS] for i in np.flatnonzero(own)}.union(*(each.photos or () for each in before))
    moved = {data.hashes[i][:DIGITS] for i in barred(data, before)}
    settled = {data.hashes[i][:DIGITS] for i in data.val} - seen
    return {"photos": sorted(seen), "moved": sorted(moved), "settled": sorted(settled)}
