"""Duplicates: every kind of copy is found and named, and nothing else is."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, needs_shared
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from lab.duplicates import drawn as drawn_search
from lab.duplicates import exponent, known, scored
from runtime import environment
from runtime.errors import SajiError
from training.photos.duplicates import Pair, find_duplicates, groups

SIZE = (260, 200)  # width, height
NEAR = SHARED / "near_duplicates"


def drawn(seed: int, shapes: int = 220) -> Image.Image:
    """A picture full of corners, like no other seed's."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", SIZE, tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    for _ in range(shapes):
        corners = rng.integers(0, 40, (rng.integers(3, 6), 2)) + rng.integers(-20, SIZE, 2)
        draw.polygon([tuple(corner) for corner in corners.tolist()], tuple(rng.integers(0, 256, 3).tolist()))
    return picture


def marked(picture: Image.Image) -> Image.Image:
    """The picture under a watermark that covers it all."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    for line in range(7):
        draw.text((line * 9 - 20, line * 29), f"STOCK {line} PHOTO " * 2, "white", font_size=25)
    return picture


def recoloured(picture: Image.Image) -> Image.Image:
    warm = picture.convert("RGB", (1.0, 0.2, 0, 20, 0, 0.9, 0.1, 0, 0.1, 0, 0.5, 0))
    return ImageEnhance.Color(warm).enhance(0.6)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": lambda p: p,
    "enlarged": lambda p: p.resize((520, 400)),
    "shrunk": lambda p: p.resize((150, 115)),
    "squeezed": lambda p: p.resize((200, 200)),
    "cropped": lambda p: p.crop((70, 40, 250, 180)),
    "turned": lambda p: p.rotate(90, expand=True),
    "framed": lambda p: ImageOps.expand(p, 30, "white"),
    "grey": lambda p: p.convert("L"),
    "recoloured": recoloured,
    "dimmed": lambda p: ImageEnhance.Contrast(ImageEnhance.Brightness(p).enhance(0.6)).enhance(0.7),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[frozenset[str], Pair]:
    """All pairs of one photo set, by the two files' names."""
    folder = tmp_path_factory.mktemp("photos")
    pictures = {f"unrelated {seed}": drawn(seed) for seed in range(10, 22)}
    pictures |= {f"marked {seed}": marked(drawn(seed, 40)) for seed in (30, 31)}
    pictures |= {name: make(drawn(0)) for name, make in COPIES.items()}
    for name, background, place in (("dish", 2, (20, 30)), ("dish elsewhere", 3, (90, 60))):
        pictures[name] = drawn(background)
        pictures[name].paste(drawn(1).crop((0, 0, 130, 100)), place)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.jpg", quality=40 if name == "re-encoded" else 90)
    drawn(0).save(folder / "original.png")
    for name in ("twin", "triplet"):
        (folder / f"{name}.jpg").write_bytes((folder / "unrelated 10.jpg").read_bytes())
    (folder / "pointer.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (folder / "truncated.jpg").write_bytes((folder / "unrelated 11.jpg").read_bytes()[:3000])
    (folder / "folder.jpg").mkdir()
    for name in ("black", "white"):
        Image.new("RGB", SIZE, name).save(folder / f"{name}.jpg")
    paths = [*sorted(folder.iterdir()), folder / "missing.jpg"]
    return {frozenset((paths[p.first].stem, paths[p.second].stem)): p for p in find_duplicates(paths)}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_the_same_picture(found: dict[frozenset[str], Pair], name: str) -> None:
    pair = found[frozenset((name, "original"))]
    assert pair.kind == "same picture"
    assert pair.first < pair.second
    assert pair.inliers >= 20
    assert pair.correlation > 0.8


@pytest.mark.parametrize(
    "change",
    [ImageOps.mirror, ImageOps.flip, lambda p: recoloured(ImageOps.mirror(p).rotate(90, expand=True))],
    ids=["mirrored", "upside down", "mirrored, turned and recoloured"],
)
def test_a_mirrored_copy_is_the_same_picture(tmp_path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    for number, picture in enumerate([*map(drawn, range(40, 52)), change(drawn(40))]):
        picture.save(tmp_path / f"{number:02}.png")
    pairs = find_duplicates(sorted(tmp_path.iterdir()))
    certain = [(pair.first, pair.second, pair.kind) for pair in pairs if pair.kind != "perhaps the same plate"]
    assert certain == [(0, 12, "same picture")]


def test_identical_files_are_paired_with_the_first_of_them(found: dict[frozenset[str], Pair]) -> None:
    identical = [names for names, pair in found.items() if pair.kind == "identical"]
    assert sorted(map(sorted, identical)) == [["triplet", "twin"], ["triplet", "unrelated 10"]]


def test_a_dish_on_another_background_is_the_same_scene(found: dict[frozenset[str], Pair]) -> None:
    assert found[frozenset(("dish", "dish elsewhere"))].kind == "same scene"


def test_nothing_else_is_paired_for_certain(found: dict[frozenset[str], Pair]) -> None:
    known = [{"original", *COPIES}, {"dish", "dish elsewhere"}, {"triplet", "twin", "unrelated 10"}]
    certain = [names for names, pair in found.items() if pair.kind != "perhaps the same plate"]
    assert [names for names in certain if not any(names <= same for same in known)] == []


def test_small_and_unreadable_sets(tmp_path: Path) -> None:
    assert find_duplicates([]) == []
    assert find_duplicates([tmp_path / "missing.jpg"] * 3) == []
    drawn(0).save(tmp_path / "only.png")
    assert find_duplicates([tmp_path / "missing.jpg", tmp_path / "only.png"]) == []
    for name in ("black", "white"):
        Image.new("RGB", SIZE, name).save(tmp_path / f"{name}.png")
    assert find_duplicates([tmp_path / "black.png", tmp_path / "white.png"]) == []


def test_progress_sees_every_photo(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        drawn(seed).save(path)
    seen = []

    def progress(items, what, total):
        for item in items:
            seen.append((what, total))
            yield item

    find_duplicates(paths, progress)
    assert seen == [("reading photos", 3)] * 3 + [("comparing look-alikes", 3)] * 3


def test_groups_join_through_the_given_kinds() -> None:
    pairs = [
        Pair(4, 2, "identical", 0, 0, 1.0, 0.9),
        Pair(2, 0, "same picture", 99, 2, 0.99, 0.9),
        Pair(1, 5, "same scene", 25, 30, 0.5, 0.9),
    ]
    assert groups(7, pairs) == [[0, 2, 4], [1, 5]]
    assert groups(7, pairs, ["identical"]) == [[2, 4]]
    assert groups(3, []) == []


def test_recall_and_precision_name_what_is_missed_and_what_is_wrong() -> None:
    pairs = [Pair(0, 1, "same picture", 99, 2, 0.99, 0.9), Pair(1, 2, "same scene", 25, 30, 0.5, 0.9)]
    assert scored("abcd", list("1122"), pairs) == {
        "true_pairs": 2,
        "found_pairs": 3,
        "recall": 0.5,
        "precision": 0.3333,
        "missed": [["c", "d"]],
        "wrong": [["a", "c"], ["b", "c"]],
    }
    assert scored("abcd", [None] * 4, pairs) == {"pairs": [["a", "b", "same picture"], ["b", "c", "same scene"]]}


def test_growth_is_the_power_of_the_number_of_photos() -> None:
    def row(photos: int, seconds: float, size: int = 96, processor: str = "slow") -> dict:
        asked = {"experiment": "e", "image_size": size, "photos": photos}
        return asked | {"cpu_seconds": seconds, "machine_cpu": processor}

    others = [row(400, 999, size=32), row(800, 1, processor="fast")]
    assert exponent([row(100, 2), *others, row(400, 16)]) == pytest.approx(1.5)
    assert exponent([row(400, 999, 32), row(400, 16)]) is None
    read = json.loads(json.dumps(row(100, 2) | environment.stamp()))
    assert exponent([read, row(400, 16) | environment.stamp()]) == pytest.approx(1.5), "one processor, read or at hand"


def test_a_search_of_drawn_photos_is_measured(tmp_path: Path) -> None:
    row = drawn_search(12, 64, tmp_path)
    assert row["photos"] == 12 and row["seconds"] > 0 and row["cpu_seconds"] > 0
    assert row["photos_per_second"] == pytest.approx(12 / row["seconds"], rel=0.1)
    if row["private_memory_mib"]:  # Linux
        assert 50 < row["private_memory_mib"] <= row["peak_memory_mib"] + 1


@pytest.mark.parametrize(
    ("content", "words"), [(None, "does not exist"), ("photo,label\na.jpg,x\n", "names no photos")]
)
def test_a_set_without_a_list_is_one_sentence(tmp_path: Path, content: str | None, words: str) -> None:
    if content:
        (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(SajiError, match=words):
        known(tmp_path)


@needs_shared
def test_recall_and_precision_on_real_near_duplicates() -> None:
    row = known(NEAR)
    assert row["true_pairs"] == 104 and row["recall"] >= 0.90 and row["precision"] >= 0.98
    assert len(row["missed"]) == 104 - round(104 * row["recall"])
