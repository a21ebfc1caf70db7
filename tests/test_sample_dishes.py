"""The drawn sample set: the same seed gives the same pixels, and a folder is either whole or not there."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from runtime.errors import SajiError
from training.photos import drawn as sample_dishes
from training.photos.drawn import DISHES, DRAWN, draw_dish, write_sample


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("dish", DISHES)
def test_same_seed_same_pixels_whatever_the_global_random_state(dish: str) -> None:
    np.random.seed(1)
    first = draw_dish(dish, 3, 64)
    np.random.seed(2)
    assert first.tobytes() == draw_dish(dish, 3, 64).tobytes()
    assert first.tobytes() != draw_dish(dish, 4, 64).tobytes()


@pytest.mark.parametrize("size", [1, 33, 96])
@pytest.mark.parametrize("dish", DISHES)
def test_every_dish_is_rgb_of_the_asked_size(dish: str, size: int) -> None:
    picture = draw_dish(dish, 0, size)
    assert (picture.mode, picture.size) == ("RGB", (size, size))


@pytest.mark.parametrize("dish", DISHES)
def test_many_seeds_draw_a_picture_with_contrast(dish: str) -> None:
    for seed in range(-2, 20):  # optional ingredients include "none at all"
        assert np.asarray(draw_dish(dish, seed, 32)).std() > 10


def test_unknown_dish_is_refused_in_one_sentence_that_lists_the_dishes() -> None:
    with pytest.raises(ValueError, match="pizza") as refusal:
        draw_dish("pizza", 0)
    message = str(refusal.value)
    assert all(dish in message for dish in DISHES)
    assert "\n" not in message


def test_sample_is_complete_marked_as_drawn_and_repeatable(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "deep" / "sample", per_class=2, size=32, seed=5)
    pictures = {f"{dish}/{dish}_{i:03d}.jpg" for dish in DISHES for i in range(2)}
    assert set(contents(folder)) == pictures | {"sample.json"}
    assert json.loads((folder / "sample.json").read_text())["drawn"] is True
    for name in pictures:
        with Image.open(folder / name) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (32, 32))
            assert picture.info["comment"] == DRAWN.encode()
            assert picture.getexif()[ExifTags.Base.ImageDescription] == DRAWN
    assert contents(write_sample(tmp_path / "again", per_class=2, size=32, seed=5)) == contents(folder)
    other = contents(write_sample(tmp_path / "other", per_class=2, size=32, seed=6))
    assert not {other[name] for name in pictures} & set(contents(folder).values())


def test_a_complete_folder_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(tmp_path / "sample", per_class=1, size=16)
    monkeypatch.setattr(sample_dishes, "draw_dish", lambda *_: pytest.fail("drew again"))
    assert write_sample(tmp_path / "sample", per_class=1, size=16) == tmp_path / "sample"


@pytest.mark.parametrize("change", ["settings", "missing picture", "someone else's folder"])
def test_anything_else_in_the_folder_is_left_alone(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "sample"
    if change == "someone else's folder":
        folder.mkdir()
        (folder / "photo.jpg").write_bytes(b"mine")
    else:
        write_sample(folder, per_class=1, size=16, seed=int(change == "settings"))
    if change == "missing picture":
        (folder / "rendang" / "rendang_000.jpg").unlink()
    before = contents(folder)
    with pytest.raises(SajiError, match="sample"):
        write_sample(folder, per_class=1, size=16)
    assert contents(folder) == before


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(dish: str, seed: int, size: int) -> Image.Image:
        if dish == DISHES[-1]:
            raise KeyboardInterrupt
        return draw_dish(dish, seed, size)

    monkeypatch.setattr(sample_dishes, "draw_dish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "sample", per_class=1, size=16)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(contents(write_sample(tmp_path / "sample", per_class=1, size=16))) == len(DISHES) + 1


@pytest.mark.parametrize(("per_class", "size"), [(0, 16), (1, 0)])
def test_an_empty_sample_is_refused(tmp_path: Path, per_class: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        write_sample(tmp_path / "sample", per_class, size)
    assert list(tmp_path.iterdir()) == []
