"""A photo becomes the same pixels everywhere, and a bad one becomes one sentence."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, needs_shared
from PIL import Image

from runtime.errors import BadPhoto
from runtime.preprocess import decode, fit, pixels
from runtime.spec import Geometry

GEOMETRY = Geometry.for_size(64)


def picture(width: int = 120, height: int = 90) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width], 2).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_path_bytes_image_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    image = picture()
    file = tmp_path / "photo.png"
    file.write_bytes(encoded(image))
    expected = pixels(image, GEOMETRY)
    assert expected.shape == (64, 64, 3) and expected.dtype == np.uint8
    for source in (file, str(file), file.read_bytes(), np.asarray(image)):
        assert np.array_equal(pixels(source, GEOMETRY), expected)


def test_cropping_while_resizing_equals_resizing_then_cropping() -> None:
    image = picture(300, 100)
    whole = image.resize((round(300 * 73 / 100), 73), Image.Resampling.BILINEAR)
    left, top = (whole.width - 64) // 2, (whole.height - 64) // 2
    slow = np.asarray(whole.crop((left, top, left + 64, top + 64)), int)
    assert np.abs(fit(image, GEOMETRY).astype(int) - slow).max() <= 1


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied_and_illegal_values_are_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = decode(encoded(picture(), "JPEG", exif=exif)).size
    assert size == ((90, 120) if orientation in (5, 6, 7, 8) else (120, 90))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB", "HSV"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("I;16", (20, 10), 30000) if mode == "I;16" else picture(20, 10).convert(mode)
    assert decode(image).mode == "RGB"


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    assert np.asarray(decode(encoded(Image.new("I;16", (4, 4), 0x8000))))[0, 0].tolist() == [128, 128, 128]


def test_transparency_is_laid_on_white() -> None:
    assert np.asarray(decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))))[0, 0].tolist() == [255, 255, 255]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert np.asarray(decode(data))[0, 0].tolist() == [255, 0, 0]


def test_draft_decoding_stays_near_full_decoding() -> None:
    data = encoded(picture(2000, 1500).resize((2000, 1500)), "JPEG", quality=92)
    full = pixels(data, Geometry.for_size(64, decode="full")).astype(int)
    draft = pixels(data, Geometry.for_size(64)).astype(int)
    assert decode(data, 73).size < (2000, 1500)
    assert np.abs(full - draft).mean() < 1.5


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (63, 65)])
def test_extreme_sizes_fit(size: tuple[int, int]) -> None:
    assert fit(Image.new("RGB", size, "red"), GEOMETRY).tolist()[0][0] == [255, 0, 0]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"hello",
        b"<html>",
        encoded(picture(), "JPEG")[:200],
        encoded(picture())[:100],
        encoded(picture(), "GIF")[:60],
        encoded(picture(), "WEBP")[:50],
    ],
    ids=["empty", "text", "html", "cut jpeg", "cut png", "cut gif", "cut webp"],
)
def test_bad_bytes_are_one_sentence(bad: bytes) -> None:
    with pytest.raises(BadPhoto) as error:
        pixels(bad, GEOMETRY)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_an_array_that_is_no_rgb_picture_is_refused(array: np.ndarray) -> None:
    with pytest.raises(BadPhoto, match=r"uint8 \[H, W, 3\]"):
        pixels(array, GEOMETRY)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadPhoto, match=r"gone\.jpg cannot be opened"):
        pixels(tmp_path / "gone.jpg", GEOMETRY)
    with pytest.raises(BadPhoto, match="cannot be opened"):
        pixels(tmp_path, GEOMETRY)


@needs_shared
def test_odd_files_of_real_users() -> None:
    for file in sorted((SHARED / "odd_files" / "format").iterdir()):
        if file.name == "git_lfs_pointer.png":
            with pytest.raises(BadPhoto):
                pixels(file, GEOMETRY)
        else:
            assert pixels(file, GEOMETRY).shape == (64, 64, 3), file.name
