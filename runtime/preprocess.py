"""What a pixel is: the one path from a photo to the network's input, in training's evaluation and in serving.

Geometry only; the arithmetic (cast, mean, std) is the first layer of every exported graph.
"""

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import struct
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from runtime.errors import BadPhoto, SajiError, TooManyPixels, Unavailable
from runtime.spec import PREPROCESS_VERSION, Geometry

Source = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray

# A 43-megapixel photo is honest, and a phone takes 108. Pillow itself refuses a little above this; to raise its bound
# would raise it for the whole process.
MAX_PIXELS = 178_000_000

# How photos are named, in lower case, and Pillow's names of their formats, the first as it knows them from the start.
# Pillow reads more than photos: stubs for scientific data, PostScript (by running Ghostscript), icons, fonts.
SUFFIXES = frozenset((
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".heic", ".heif", ".hif", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd"),
))  # fmt: skip

_COMMON = ("JPEG", "PNG", "GIF", "BMP", "PPM")
FORMATS = (*_COMMON, "WEBP", "AVIF", "HEIF", "TIFF", "JPEG2000", "DIB", "TGA", "PSD")


@dataclass(frozen=True)
class Bounds:
    """Which photos are decoded: those of at most `max_pixels`, width times height, in one of `formats`."""

    max_pixels: int = MAX_PIXELS
    formats: tuple[str, ...] = FORMATS


ANY_PHOTO = Bounds()

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_ORIENTATION, _SHORT = 0x0112, 3  # the tag's number and its type's
# What turns a photo of that orientation upright (EXIF 2.32, tag 274)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Quiet:
    """While any thread is inside, Pillow's warnings are ignored: of odd EXIF or palettes that it nevertheless reads.

    `warnings.catch_warnings` puts the filters of the whole process back, in whatever order threads leave it.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.ours: Any = None

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")
                self.ours = warnings.filters[0]

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0 and self.ours in warnings.filters:
                warnings.filters.remove(self.ours)  # type: ignore[attr-defined]  # a list, which the stub hides


_PILLOW_IS_QUIET = _Quiet()


def decode(
    source: Source,
    shorter_side: int | None = None,
    version: int = PREPROCESS_VERSION,
    bounds: Bounds = ANY_PHOTO,
) -> Image.Image:
    """Decode a photo to an upright 8-bit sRGB picture, mode "RGB".

    `source` is a path, encoded bytes, an open binary file, which is read from its beginning and left open, a PIL image
    or a uint8 array `[H, W, 3]` in RGB order. With `shorter_side`,
    a JPEG may be decoded at the smallest DCT scale that leaves its shorter side at least that long. EXIF
    orientation is applied, transparency is laid on white, of an animation the first frame is taken, and the colours
    of an embedded profile are converted to sRGB (in preprocessing `version` 1 they were not; see runtime.spec).
    Raises BadPhoto when it is no picture or is truncated, TooManyPixels when it has more than `bounds` let in.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise BadPhoto(f"an array must be uint8 [H, W, 3] RGB; this one is {source.dtype} {list(source.shape)}")
        return Image.fromarray(source)
    if isinstance(source, Image.Image):
        return _upright_rgb(source, version)
    name = "the file" if isinstance(source, bytes) else Path(getattr(source, "name", source)).name  # type: ignore
    try:
        with _PILLOW_IS_QUIET, _file(source) as file, _opened(file, bounds.formats) as image:
            if image.width * image.height > bounds.max_pixels:
                raise Image.DecompressionBombError
            if shorter_side is not None and isinstance(image, ImageFile.ImageFile):
                _draft(image, shorter_side)
            return _upright_rgb(image, version)
    except SajiError:
        raise
    except UnidentifiedImageError:
        with _file(source) as file:
            raise BadPhoto(f"{name} {_why_unidentified(file)}") from None
    except Image.DecompressionBombError:
        megapixels = f"{min(bounds.max_pixels, MAX_PIXELS) / 1e6:g} megapixels"
        raise TooManyPixels(f"{name} has more than {megapixels}; send a smaller copy") from None
    except OSError as error:
        if error.errno is not None:  # the file system, not the picture: missing, a folder, no permission
            raise BadPhoto(f"{name} cannot be opened: {error.strerror}") from None
        raise BadPhoto(f"{name} is damaged ({error}); send a complete file") from None
    except Exception as error:  # Pillow's plugins raise whatever damaged bytes lead them to, also RuntimeError
        raise BadPhoto(f"{name} is damaged ({error}); send a complete file") from None


@contextlib.contextmanager
def _file(source: str | os.PathLike | bytes | BinaryIO) -> Iterator[BinaryIO]:
    """An encoded photo as an open file, at its beginning."""
    if isinstance(source, str | os.PathLike):
        if Path(source).exists() and not Path(source).is_file() and not Path(source).is_dir():
            raise BadPhoto(f"{Path(source).name} is no regular file; give a photo")  # a pipe would be waited for
        with open(source, "rb") as file:
            yield file
    elif isinstance(source, bytes):
        yield io.BytesIO(source)
    else:
        source.seek(0)
        yield source


def _opened(file: BinaryIO, formats: Sequence[str]) -> Image.Image:
    """The photo, identified and not yet decoded; pillow-heif is asked in once a HEIC photo needs it."""
    try:
        return Image.open(file, formats=[name for name in _COMMON if name in formats])
    except UnidentifiedImageError:
        Image.init()
        if _brand(file) == "HEIC" and importlib.util.find_spec("pillow_heif"):
            importlib.import_module("pillow_heif").register_heif_opener()
    file.seek(0)
    return Image.open(file, formats=[name for name in formats if name in Image.OPEN and name not in _COMMON])


def _brand(file: BinaryIO) -> str:
    """By the brands in a photo's first box, whatever its name: "AVIF", "HEIC" or ""."""
    file.seek(0)
    head = file.read(64)
    if head[4:8] != b"ftyp":
        return ""
    brands = {head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
    return "AVIF" if b"avif" in brands else "HEIC" if brands & {b"heic", b"heix", b"hevc", b"mif1"} else ""


def _why_unidentified(file: BinaryIO) -> str:
    brand = _brand(file)
    if brand == "AVIF" and not features.check("avif"):
        return "is an AVIF photo, which this Pillow cannot read; type: pip install --upgrade 'pillow>=11.3'"
    if brand == "HEIC" and not importlib.util.find_spec("pillow_heif"):
        return "is a HEIC photo, as iPhones take them; to read those type: pip install pillow-heif"
    return "is no picture that can be read (send a JPEG, PNG or WEBP photo)"


def _draft(image: ImageFile.ImageFile, shorter_side: int) -> None:
    # JPEG scales by whole eighths inside the decoder, which costs a quarter of decoding all pixels and dropping them
    scale = shorter_side / min(image.size)
    if image.format in ("JPEG", "MPO") and scale < 1 and image.mode == "RGB":
        image.draft("RGB", (int(image.width * scale), int(image.height * scale)))


def _upright_rgb(image: Image.Image, version: int) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    profile = image.info.get("icc_profile") if version > 1 else None
    grey = image.mode in ("L", "LA", "La") or image.mode.startswith("I")
    rgb = _rgb(image)
    transform = _to_srgb(profile, "CMYK" if image.mode == "CMYK" else "L" if grey else "RGB") if profile else None
    if transform is None:
        return rgb
    # On all pixels that were decoded, though fewer are left after resizing: where colours are clipped, resizing first
    # would give others, up to 33/255 apart. Draft decoding leaves few.
    return transform.apply(image if image.mode == "CMYK" else rgb.convert("L") if grey else rgb)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where nothing tells it.

    By hand first: Pillow reads all entries of the block, and stumbles over a broken or odd one before this.
    """
    block = image.info.get("exif")
    if isinstance(block, bytes) and (orientation := _orientation_in(block.removeprefix(b"Exif\0\0"))):
        return orientation
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever its parser stumbles over: a photo is worth more than what stands beside it
        return 1


def _orientation_in(block: bytes) -> int | None:
    """The orientation in the first directory of a TIFF block (TIFF 6.0, section 2: entries of 12 bytes), if any."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for number in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * number)
            if (tag, kind) == (_ORIENTATION, _SHORT):
                return int(value)
    return None


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB in its own colour space, transparency on white."""
    if image.mode.startswith("I"):  # 16-bit samples ("I": of a PGM), which Pillow's own conversion clips to white
        return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@functools.lru_cache(maxsize=16)  # a camera writes the same profile into each photo; a transform takes 5 ms to build
def _to_srgb(profile: bytes, mode: str) -> Any:
    """The ImageCmsTransform from an embedded profile to sRGB, by perceptual intent; None leaves the colours alone.

    They are left alone where the profile is broken, is for another `mode` ("RGB", "L" or "CMYK"), or is sRGB under
    whatever name: one that moves no colour by more than 2/255.
    """
    from PIL import ImageCms

    try:
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(io.BytesIO(profile), srgb, mode, "RGB")  # type: ignore[arg-type]
    except ImportError:
        raise Unavailable(
            "this Pillow cannot convert colour profiles (no LittleCMS); type: pip install --force-reinstall pillow"
        ) from None
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK":
        return transform
    steps = np.linspace(0, 255, 16).astype(np.uint8)
    probe = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(16, -1, 3)).convert(mode)
    moved = np.asarray(transform.apply(probe), int) - np.asarray(probe.convert("RGB"), int)
    return transform if np.abs(moved).max() > 2 else None


def decode_for(source: Source, geometry: Geometry, bounds: Bounds = ANY_PHOTO) -> Image.Image:
    """Decode a photo as a model's geometry asks for: `decode` at its scale, in its version. Raises BadPhoto."""
    return decode(source, geometry.resize if geometry.decode == "draft" else None, geometry.version, bounds)


def fit(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """Resize and crop an RGB picture; uint8 `[size, size, 3]`, RGB order."""
    # Resize only what the crop keeps: the same pixels as resizing everything first, less work on a panorama
    box = crop_box(image.size, geometry)
    resized = image.resize((geometry.size, geometry.size), FILTERS[geometry.interpolation], box=box)
    return np.asarray(resized)


def crop_box(size: tuple[int, int], geometry: Geometry) -> tuple[float, float, float, float]:
    """What the network sees of a picture of `size` (width, height): left, top, right, bottom in its own pixels."""
    scale = geometry.resize / min(size)
    width, height = (max(geometry.resize, round(side * scale)) for side in size)
    left, top = (width - geometry.size) // 2, (height - geometry.size) // 2
    across, down = size[0] / width, size[1] / height
    return left * across, top * down, (left + geometry.size) * across, (top + geometry.size) * down


def pixels(source: Source, geometry: Geometry, bounds: Bounds = ANY_PHOTO) -> np.ndarray:
    """A photo as the network sees it: uint8 `[size, size, 3]`, RGB order. Raises BadPhoto."""
    return fit(decode_for(source, geometry, bounds), geometry)


def timed_pixels(source: Source, geometry: Geometry, bounds: Bounds = ANY_PHOTO) -> tuple[np.ndarray, dict[str, float]]:
    """`pixels`, and the milliseconds that decode and geometry took. Raises BadPhoto."""
    clock = [time.perf_counter()]
    picture = decode_for(source, geometry, bounds)
    clock.append(time.perf_counter())
    image = fit(picture, geometry)
    clock.append(time.perf_counter())
    parts = zip(("decode", "geometry"), np.diff(clock), strict=True)
    return image, {part: round(1000 * float(seconds), 3) for part, seconds in parts}
