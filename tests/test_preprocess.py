"""A photo becomes the same pixels everywhere, and a bad one becomes one sentence."""

import hashlib
import io
import mmap
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from conftest import SHARED, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, UnidentifiedImageError, features
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop
from torchvision.transforms.functional import resize as resized

import runtime
from lab.torture.gallery import P3, ink_profile, lossless_jpeg, profile
from runtime.errors import BadModel, BadPhoto, TooManyPixels, TooMuchMemory
from runtime.preprocess import MAX_PIXELS, SUFFIXES, Bounds, decode, decode_for, fit, pixels
from runtime.spec import PREPROCESS_VERSION, Geometry, ModelSpec

GEOMETRY = Geometry.for_size(64)
# A PNG of one 16-bit RGB pixel in mid-grey, which Pillow can read and cannot write
DEEP_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000011002000000c0e78f9d000"
    "0000c49444154789c63681002410006a901b7f66039cf0000000049454e44ae426082"
)


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


@pytest.mark.parametrize("kind", [io.BytesIO, tempfile.TemporaryFile, tempfile.SpooledTemporaryFile])  # as FastAPI's
def test_a_photo_is_read_from_an_open_file_without_a_name(kind: Callable[[], Any]) -> None:
    with kind() as file:
        file.write(encoded(picture()))
        assert np.array_equal(decode(file), picture())


def test_a_photo_is_read_from_a_file_opened_by_bytes_and_from_any_bytes(tmp_path: Path) -> None:
    photo = encoded(picture())
    (tmp_path / "photo.png").write_bytes(photo)
    with open(os.fsencode(tmp_path / "photo.png"), "rb", buffering=0) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for source in (file, mapped, bytearray(photo), memoryview(photo), memoryview(photo + b"end")[:-3]):
            assert np.array_equal(decode(source), picture())


def test_what_is_no_photo_by_its_type_is_told_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(picture()))
    with open(tmp_path / "photo.png", encoding="latin-1") as text:
        for source in (None, 5, [b""], text, io.StringIO("a")):
            with pytest.raises(BadPhoto, match=r'a file opened as "rb", .*; this one is of type \w+$'):
                decode(source)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_read_from_its_beginning_is_not_called_damaged(tmp_path: Path) -> None:
    output, into = os.pipe()
    os.close(into)
    with open(output, "rb") as pipe, pytest.raises(BadPhoto, match=r"^the file cannot be read .*; give its path or"):
        decode(pipe)
    with open(tmp_path / "photo.png", "wb") as file:
        pass
    with pytest.raises(BadPhoto, match=r"^photo\.png cannot be read .*; give its path or bytes"):
        decode(file)


def test_cropping_while_resizing_equals_resizing_then_cropping() -> None:
    image = picture(300, 100)
    whole = image.resize((300 * 73 // 100, 73), Image.Resampling.BILINEAR)
    left, top = round((whole.width - 64) / 2), round((whole.height - 64) / 2)
    slow = np.asarray(whole.crop((left, top, left + 64, top + 64)), int)
    assert np.abs(fit(image, GEOMETRY).astype(int) - slow).max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    *(st.integers(20, 900), st.integers(20, 900), st.sampled_from([(32, 36), (64, 73), (64, 64), (61, 70)])),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_the_crop_lies_where_torchvisions_does(width: int, height: int, sides: tuple[int, int], how: str) -> None:
    """Each pixel of a ramp tells its place, so that a crop half a pixel beside it differs everywhere."""
    size, resize = sides
    places = np.mgrid[:height, :width] * (250 / max(width, height))
    ramp = Image.fromarray(np.stack([*places, np.zeros((height, width))], 2).round().astype(np.uint8))
    theirs = center_crop(resized(ramp, resize, InterpolationMode(how)), size)
    difference = np.abs(fit(ramp, Geometry(size, resize, interpolation=how)).astype(int) - np.asarray(theirs))
    assert difference.max() <= 1


@pytest.mark.parametrize("resize", [64, 71])
def test_a_squashed_photo_is_made_square_and_then_cropped(resize: int) -> None:
    image = picture(300, 100)
    expected = np.asarray(center_crop(image.resize((resize, resize), Image.Resampling.BILINEAR), [64, 64]))
    assert np.abs(fit(image, Geometry(64, resize, "squash")).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("crop", ["center", "squash"])
@pytest.mark.parametrize("size", [(640, 427), (333, 500), (90, 71), (40, 30)])
def test_without_antialias_a_photo_is_what_opencv_makes_of_it(crop: str, size: tuple[int, int]) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    width, height = (73, 73) if crop == "squash" else (73 * side // min(size) for side in size)
    theirs = Image.fromarray(cv2.resize(np.asarray(noise), (width, height), interpolation=cv2.INTER_LINEAR))
    seen = fit(noise, Geometry(64, 73, crop, antialias=False))
    assert np.abs(seen.astype(int) - np.asarray(center_crop(theirs, [64, 64]))).max() <= 2


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied_and_illegal_values_are_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = decode(encoded(picture(), "JPEG", exif=exif)).size
    assert size == ((90, 120) if orientation in (5, 6, 7, 8) else (120, 90))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr", "LAB", "HSV"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    image = picture(20, 10).convert("LA" if mode == "La" else mode.removesuffix(";16")).convert(mode)
    assert decode(image).mode == "RGB"


def gone(image: Image.Image) -> Image.Image:
    image.close()
    return image


def left() -> Image.Image:
    with Image.open(io.BytesIO(encoded(picture(), "JPEG"))) as image:
        return image


NO_PICTURES = {
    "fractions": (picture().convert("F"), "is of floating-point numbers"),
    "32-bit numbers": (picture().convert("I"), "is of 32-bit numbers"),
    "cut short": (Image.open(io.BytesIO(encoded(picture(), "JPEG")[:800])), "is damaged .*; send a complete file"),
    "of no size": (Image.new("RGB", (0, 5)), "has no pixels"),
    "closed": (gone(picture()), "cannot be read .*closed"),
    "left before it was read": (left(), "was closed before it was read; give its path or bytes"),
    "closed before it was read": (gone(Image.open(io.BytesIO(encoded(picture())))), "was closed before it was read"),
}


@pytest.mark.parametrize(("image", "why"), NO_PICTURES.values(), ids=NO_PICTURES)
def test_a_pil_image_that_cannot_be_shown_is_one_sentence(image: Image.Image, why: str) -> None:
    with pytest.raises(BadPhoto, match=f"^the picture {why}"):
        pixels(image, GEOMETRY)


def test_a_path_that_is_empty_or_without_end_is_one_short_sentence() -> None:
    with pytest.raises(BadPhoto, match=r"^the path is empty; give that of a photo$"):
        decode("")
    with pytest.raises(BadPhoto, match=r"^\. cannot be opened"):
        decode(".")
    with pytest.raises(BadPhoto, match=f"^{'x' * 199}… cannot be opened"):
        decode("x" * 100_000)


def test_a_pil_image_has_no_more_pixels_than_a_file() -> None:
    image = picture()
    assert decode(image, bounds=Bounds(max_pixels=image.width * image.height)).size == image.size
    with pytest.raises(TooManyPixels, match=r"^the picture has more than 0\.01 megapixels"):
        decode(picture(), bounds=Bounds(max_pixels=10_000))


def test_a_pil_image_is_shown_as_the_frame_that_it_is_at() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "red")
    blue.paste("blue", (2, 2, 5, 5))
    with Image.open(io.BytesIO(encoded(red, "GIF", save_all=True, append_images=[blue]))) as image:
        for frame, colour in ((0, [255, 0, 0]), (1, [0, 0, 255]), (0, [255, 0, 0])):
            image.seek(frame)
            found = np.asarray(decode(image))
            assert found[3, 3].tolist() == colour and found[0, 0].tolist() == [255, 0, 0]


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    assert np.asarray(decode(encoded(Image.new("I;16", (4, 4), 0x8000))))[0, 0].tolist() == [128, 128, 128]


def test_16_bit_samples_of_any_file_are_scaled_not_clipped() -> None:
    pgm = b"P5 4 4 65535\n" + b"\x80\x00" * 16
    transparent = encoded(Image.new("I;16", (4, 4), 0x8000), transparency=5)
    for data in (pgm, transparent, DEEP_PNG):
        assert np.asarray(decode(data))[0, 0].tolist() == [128, 128, 128]


def test_an_inverted_cmyk_jpeg_as_adobe_writes_it_keeps_its_colours() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 200, 200, 0)), "JPEG")
    assert b"Adobe" in data and Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(np.asarray(decode(data))[8, 8].astype(int) - [255, 55, 55]).max() <= 3


def test_transparency_is_laid_on_white() -> None:
    assert np.asarray(decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))))[0, 0].tolist() == [255, 255, 255]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert np.asarray(decode(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("how", "size"), [("draft", (160, 120)), ("full", (640, 480))])
def test_a_photo_is_decoded_smaller_where_the_geometry_says_so(how: str, size: tuple[int, int]) -> None:
    data, geometry = encoded(picture(640, 480), "JPEG"), Geometry.for_size(64, decode=how)
    assert decode_for(data, geometry).size == size


def test_draft_decoding_stays_near_full_decoding() -> None:
    data = encoded(picture(2000, 1500).resize((2000, 1500)), "JPEG", quality=92)
    full = pixels(data, Geometry.for_size(64, decode="full")).astype(int)
    draft = pixels(data, Geometry.for_size(64)).astype(int)
    assert decode(data, 73).size < (2000, 1500)
    assert np.abs(full - draft).mean() < 1.5


def test_a_lossless_jpeg_is_decoded_whole_as_it_cannot_be_made_smaller() -> None:
    """Pillow reserves the memory of the smaller picture, and libjpeg writes the whole one into it."""
    image = picture()
    data = lossless_jpeg(np.asarray(image))
    with Image.open(io.BytesIO(data)) as asked_smaller:
        asked_smaller.draft("RGB", (15, 12))
        for source, side in ((data, 12), (asked_smaller, None)):
            assert np.array_equal(decode(source, side), image)
    assert decode(encoded(image, "JPEG", progressive=True), 12).width < image.width


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


@pytest.mark.parametrize("size", [0, 1, 200_000])
def test_a_file_that_was_never_filled_is_told_as_empty(size: int) -> None:
    with pytest.raises(BadPhoto, match="is empty; get it once more"):
        pixels(bytes(size), GEOMETRY)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadPhoto, match=r"gone\.jpg cannot be opened"):
        pixels(tmp_path / "gone.jpg", GEOMETRY)
    with pytest.raises(BadPhoto, match="cannot be opened"):
        pixels(tmp_path, GEOMETRY)


@pytest.mark.parametrize("name", [b"\xff.png", b"a\nb.png", b"\x1b[31m.png", b"\xe2\x80\xae.png"])
def test_a_sentence_is_printed_anywhere_whatever_the_name_in_it(name: bytes, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(name)
    with pytest.raises(BadPhoto, match=r"^\S+\.png cannot be opened") as photo:
        decode(file)
    file.mkdir()
    with pytest.raises(BadModel, match=r"\S+\.png has no model\.json") as model:
        runtime.load(file)
    for error in (photo.value, model.value):
        assert str(error).isprintable() and str(error).encode()


# What a pixel is, pinned: a change here changes every model's answers, so it needs a new PREPROCESS_VERSION. Pillow
# resizes in integers and decodes these losslessly, so nothing but a major change of Pillow may move them.
GOLDEN = {
    "1": ("bd406db57cb49420", "fdf694ad012e4045"),
    "L": ("cc536b8da7974f19", "13382a639e697da5"),
    "LA": ("cc536b8da7974f19", "13382a639e697da5"),
    "P": ("62104f3b67782b46", "a46cea9e7c0b7989"),
    "RGB": ("c0a767d07424841b", "cfd5dd7bbe861938"),
    "RGBA": ("2438dd6b55847642", "b286d778db079688"),
    "CMYK": ("c0a767d07424841b", "cfd5dd7bbe861938"),
}


@pytest.mark.parametrize("mode", GOLDEN)
def test_the_crop_of_a_drawn_picture_is_bit_for_bit_what_it_was(mode: str) -> None:
    """By preprocessing version 2 and 3."""
    drawn = picture(150, 100).convert(mode)
    if mode == "RGBA":
        drawn.putalpha(picture(150, 100).convert("L"))
    data = encoded(drawn, "TIFF" if mode == "CMYK" else "PNG")
    for version, golden in zip((2, 3), GOLDEN[mode], strict=True):
        found = pixels(data, Geometry(64, 73, version=version))
        assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == golden


def from_p3(colour: list[int]) -> np.ndarray:
    """Display P3 → sRGB by the definition of both: linear light, another basis, gamma, clipped."""
    light = np.array(colour) / 255
    light = np.where(light > 0.04045, ((light + 0.055) / 1.055) ** 2.4, light / 12.92)
    srgb = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    light = np.clip(np.linalg.solve(srgb, np.array([*P3.values()]).T @ light), 0, 1)
    return 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_colours_of_a_wide_profile_become_srgb(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    for colour in ([200, 100, 50], [10, 128, 240], [128, 128, 128]):
        data = encoded(Image.new("RGB", (64, 64), tuple(colour)), kind, icc_profile=profile(**P3), **options)
        found = np.asarray(decode(data))[8, 8]
        assert np.abs(found - from_p3(colour)).max() <= 2.5, colour
        assert np.array_equal(np.asarray(decode(Image.open(io.BytesIO(data))))[8, 8], found)
        assert np.array_equal(np.asarray(decode(decode(data)))[8, 8], found), "converted twice"


def test_a_profile_counts_with_transparency_and_after_draft_decoding() -> None:
    clear = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    clear.paste((200, 100, 50, 255), (0, 0, 4, 8))
    found = np.asarray(decode(encoded(clear, icc_profile=profile(**P3))))
    assert np.abs(found[0, 0] - from_p3([200, 100, 50])).max() <= 2 and found[0, 7].tolist() == [255, 255, 255]
    large = encoded(Image.new("RGB", (1600, 1200), (200, 100, 50)), "JPEG", icc_profile=profile(**P3))
    assert np.abs(pixels(large, GEOMETRY)[0, 0] - from_p3([200, 100, 50])).max() <= 3


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_profiles_of_srgb_broken_ones_and_those_of_another_mode_change_no_bit(mode: str) -> None:
    image = picture().convert(mode)
    plain, other = decode(encoded(image, "TIFF")), {"RGB": "LAB", "P": "LAB"}.get(mode, "sRGB")
    mismatched = ImageCms.ImageCmsProfile(ImageCms.createProfile(other)).tobytes()
    nearly = profile(rXYZ=(0.4385, 0.2235, 0.0145))  # as camera makers write it
    for icc in (profile(), nearly, mismatched, b"", b"junk", profile(**P3)[:200]):
        assert np.array_equal(decode(encoded(image, "TIFF", icc_profile=icc)), plain)


def test_inks_are_converted_by_their_profile() -> None:
    """By the profile of a printer whose colours all are the grey of L* 50, which in sRGB is 119, and darker with K."""
    colours = np.full((2, 2, 2, 2, 3), 128, np.uint8)
    colours[..., 1, 0] = 0
    printer = ink_profile(colours)
    photo = Image.new("CMYK", (8, 8), (0, 200, 200, 0))
    for kind in ("JPEG", "TIFF"):
        found = np.asarray(decode(encoded(photo, kind, icc_profile=printer)))[4, 4]
        assert np.abs(found.astype(int) - 119).max() <= 2, kind


def test_a_model_of_preprocessing_version_1_keeps_its_pixels() -> None:
    data = encoded(picture(), icc_profile=profile(**P3))
    first = Geometry(64, 73, version=1)
    assert np.array_equal(pixels(data, first), pixels(encoded(picture()), first))
    assert not np.array_equal(pixels(data, Geometry(64, 73, version=2)), pixels(data, first))
    spec = ModelSpec("old", "resnet18", ("a", "b"), first)
    assert ModelSpec.from_json(spec.to_json()) == spec
    newer = spec.to_json().replace('"version": 1}', f'"version": {PREPROCESS_VERSION + 1}}}')
    with pytest.raises(BadModel, match=r"preprocessing version 4, this saji has 1 to 3; update saji"):
        ModelSpec.from_json(newer)


def test_16_threads_convert_colours_as_one_does() -> None:
    photos = [encoded(picture(90 + i, 80), "JPEG", icc_profile=profile(**P3)) for i in range(8)] * 8
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda photo: pixels(photo, GEOMETRY), photos))
    assert all(np.array_equal(found, pixels(photo, GEOMETRY)) for photo, found in zip(photos, together, strict=True))


def test_every_suffix_is_one_that_pillow_reads() -> None:
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    # .mpo is opened as the JPEG that it begins with, .heic by pillow-heif, .avif by Pillow from 11.3 on
    assert SUFFIXES - readable <= {".mpo", ".heic", ".heif", ".hif", ".avif"}


HEIC = bytes.fromhex("0000001c66747970") + b"heic\0\0\0\0mif1heicmiaf" + bytes(40)


def test_heic_and_avif_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "photo.jpg").write_bytes(HEIC)  # as some programs name it
    for source in (HEIC, tmp_path / "photo.jpg"):
        with pytest.raises(BadPhoto, match=r"is a HEIC photo, .* type: pip install 'pillow-heif>=1.8'"):
            decode(source)
    assert features.check("avif")
    avif = encoded(picture(), "AVIF")
    assert decode(avif).size == (120, 90)

    def unidentified(*_: object, **__: object) -> Image.Image:
        raise UnidentifiedImageError

    monkeypatch.setattr(Image, "open", unidentified)
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(BadPhoto, match=r"is an AVIF photo, .* type: pip install --upgrade 'pillow>=11.3'"):
        decode(avif)


def test_heic_opens_where_pillow_heif_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    opened = Image.open
    plugin = SimpleNamespace(
        register_heif_opener=lambda: monkeypatch.setattr(Image, "open", lambda *_, **__: picture())
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "pillow_heif")
    assert decode(HEIC).size == (120, 90) and Image.open is not opened


def test_what_is_no_photo_is_not_opened_though_pillow_could() -> None:
    postscript = encoded(picture(), "EPS")  # which Pillow gives to Ghostscript
    with Image.open(io.BytesIO(postscript)) as opened:
        assert opened.format == "EPS"
    with pytest.raises(BadPhoto, match="is no picture that can be read"):
        decode(postscript)


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    for side in (13_400, 60_000):  # just above our bound, and above Pillow's own
        bomb = bytearray(encoded(Image.new("1", (8, 8))))
        bomb[16:24] = struct.pack(">II", side, side)
        bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
        with pytest.raises(BadPhoto, match=f"has more than {MAX_PIXELS // 10**6} megapixels; send a smaller copy"):
            decode(bytes(bomb))


def test_the_bound_that_is_told_is_the_one_that_the_program_gave_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(TooManyPixels, match=r"has more than 0\.002 megapixels; send a smaller copy"):
        decode(encoded(picture()))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(encoded(picture())).size == (120, 90)


def test_python_that_ends_is_no_damage_of_a_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a photo is asked about as modules are taken away, Pillow's plugins can no longer be imported."""
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    monkeypatch.setattr(Image, "open", Mock(side_effect=ImportError("sys.meta_path is None")))
    with pytest.raises(BadPhoto, match=r"^the file cannot be read while Python ends .*; ask before that$"):
        decode(encoded(picture()))


def test_a_jpeg_of_too_many_scans_is_refused_whether_progressive_or_not() -> None:
    photo = encoded(picture(), "JPEG", subsampling=0)
    start = photo.index(b"\xff\xda")
    scans = [b"\xff\xda\0\x08\1" + bytes([colour, 0x11 * (colour > 1), 0, 63, 0]) for colour in (1, 2, 3)]
    assert decode(photo[:start] + b"".join(scans) + b"\xff\xd9").size == (120, 90)
    for between in (b"", b"\xff", b"\xff\xe5\0\0"):  # before the first one, what a decoder passes over
        with pytest.raises(BadPhoto, match=r"has more than 100 scans, .*; save it anew"):
            decode(photo[:start] + between + b"".join(scans) * 40 + b"\xff\xd9")


@pytest.mark.parametrize("kind", [{"format": "JPEG"}, {"format": "JPEG", "progressive": True}, {"format": "MPO"}])
def test_a_film_behind_a_photo_is_not_taken_for_scans(kind: dict[str, Any]) -> None:
    file = io.BytesIO()
    picture().save(file, **kind)
    film = b"\xff\xda" + (b"\xff\xda\1" if kind.get("progressive") else b"\xff\xda\0") * 200
    assert decode(file.getvalue() + film).size == (120, 90)


def test_a_jpeg_that_its_owner_wants_smaller_is_not_read_in_full() -> None:
    image = Image.open(io.BytesIO(encoded(picture(800, 600), "JPEG")))
    image.draft("RGB", (200, 150))
    assert decode(image).size == (200, 150)


def test_a_picture_that_memory_does_not_hold_is_a_bad_photo_as_any_other() -> None:
    tags = {256: 178_000_000, 257: 1, 258: 8, 259: 1, 262: 2, 273: 300, 277: 3, 278: 1, 279: 64}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    wide = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)  # Pillow holds no line of that length
    with pytest.raises(TooMuchMemory, match="the file takes too much memory to decode; send a"):
        decode(wide)


def test_an_array_that_takes_too_much_memory_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "fromarray", Mock(side_effect=MemoryError))
    with pytest.raises(TooMuchMemory, match="the picture takes too much memory to decode"):
        decode(np.zeros((4, 4, 3), np.uint8))


def test_a_damaged_avif_is_one_sentence_too() -> None:
    data = bytearray(encoded(picture(), "AVIF"))
    data[data.index(b"mdat") + 4 :] = b""
    data += bytes(400)  # libavif fails while decoding, with a RuntimeError
    with pytest.raises(BadPhoto, match="is damaged"):
        decode(bytes(data))


@needs_shared
def test_odd_files_of_real_users() -> None:
    files = [file for file in sorted((SHARED / "odd_files").rglob("*")) if file.is_file()]
    assert len(files) > 50
    for file in files:
        if file.name == "git_lfs_pointer.png" or file.suffix in (".csv", ".md"):
            with pytest.raises(BadPhoto):
                pixels(file, GEOMETRY)
        else:
            assert pixels(file, GEOMETRY).shape == (64, 64, 3), file.name
