"""What a pixel is: the one path from a photo to the network's input, in training's evaluation and in serving.

Geometry only; the arithmetic (cast, mean, std) is the first layer of every exported graph.
"""

import contextlib
import importlib
import importlib.util
import io
import mmap
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from runtime.errors import BadPhoto, SajiError, TooManyPixels, TooMuchMemory
from runtime.photo.colours import Unshown, told_colours
from runtime.photo.formats import bits_of_jpeg_or_psd, brand_of, is_dct, readable_png, scans
from runtime.photo.shown import as_shown, upright_rgb
from runtime.spec import PREPROCESS_VERSION, Geometry

Source = str | os.PathLike | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray

# A 43-megapixel photo is honest, and a phone takes 108. Pillow itself refuses a little above this; to raise its bound
# would raise it for the whole process.
MAX_PIXELS = 178_000_000

# How photos are named, in lower case, and Pillow's names of their formats, the first as it knows them from the start.
# Pillow reads more than photos: stubs for scientific data, PostScript (by running Ghostscript), icons, fonts.
SUFFIXES = frozenset((
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".heic", ".heif", ".hif", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd"),
))  # fmt: skip

# Of a JPEG. Each makes the decoder walk all pixels again, so that a small file takes minutes ("Two Issues with the JPEG
# Standard", libjpeg-turbo.org); encoders make about ten
MAX_SCANS = 100

LONGEST_NAME = 200  # signs of it in a sentence: who takes bytes for a path names a photo by all of them

_COMMON = ("JPEG", "PNG", "GIF", "BMP", "PPM")
FORMATS = (*_COMMON, "WEBP", "AVIF", "HEIF", "TIFF", "JPEG2000", "DIB", "TGA", "PSD")


@dataclass(frozen=True)
class Bounds:
    """Which photos are decoded: those of at most `max_pixels`, width times height, in one of `formats`."""

    max_pixels: int = MAX_PIXELS
    formats: tuple[str, ...] = FORMATS


ANY_PHOTO = Bounds()

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_UNREAD = ("unsupported", "not supported", "not yet supported", "raw mode")  # how Pillow says what it does not read


class _PillowAsOurs:
    """While any thread is inside, Pillow warns of nothing that it reads nevertheless, and reads no file cut short.

    Both are settings of the whole process, so that they are put back when the last thread leaves
    (`warnings.catch_warnings` does it in whatever order threads leave).
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.ours: Any = None
        self.patient = False

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")
                self.ours = warnings.filters[0]
                self.patient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                if self.ours in warnings.filters:
                    warnings.filters.remove(self.ours)  # type: ignore[attr-defined]  # a list, which the stub hides
                ImageFile.LOAD_TRUNCATED_IMAGES |= self.patient  # or as it was set meanwhile

    def forked(self) -> None:
        """In a fork, which has one thread, outside: the others took their lock and their count along."""
        self.lock = threading.Lock()
        if self.inside:
            self.inside = 1
            self.__exit__()


_PILLOW_AS_OURS = _PillowAsOurs()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PILLOW_AS_OURS.forked)


def decode(
    source: Source,
    shorter_side: int | None = None,
    version: int = PREPROCESS_VERSION,
    bounds: Bounds = ANY_PHOTO,
) -> Image.Image:
    """Decode a photo to an upright 8-bit sRGB picture, mode "RGB".

    `source` is a path, encoded bytes, an open binary file, which is read from its beginning and left open, a PIL image
    or a uint8 array `[H, W, 3]` in RGB order. A PIL image that was opened and not yet read is decoded as its file is;
    of another one counts what Pillow made of it, so that PNG's cICP and AVIF's numbers are lost. With `shorter_side`, a
    JPEG that is no PIL image may be decoded at the smallest DCT scale that leaves its shorter side at least that long.
    EXIF orientation is applied, transparency is laid on white, of an animation the first frame is taken, or that which
    a PIL image is at, and the colours of an embedded profile are converted to sRGB (in preprocessing `version` 1 they
    were not; see runtime.spec).
    Raises BadPhoto when it is no picture or is truncated, TooManyPixels when it has more than `bounds` let in,
    TooMuchMemory where decoding takes more than there is.
    """
    name = _name(source)
    if isinstance(source, Image.Image):
        shorter_side, source = None, _unread(source)
    try:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
                raise BadPhoto(f"an array must be uint8 [H, W, 3] RGB; this one is {source.dtype} {list(source.shape)}")
            return Image.fromarray(source)
        with opened(source, bounds.formats) as (image, file):
            _measure(image, file, bounds)
            if shorter_side is not None and file:
                _draft(image, file, shorter_side)
            return upright_rgb(as_shown(image, file), version, told_colours(image, file))
    except SajiError:
        raise
    except Unshown as why:
        raise BadPhoto(f"{name} {why}") from None
    except UnidentifiedImageError:
        with _file(source) as file:
            raise BadPhoto(f"{name} {_why_unidentified(file, bounds.formats)}") from None
    except Image.DecompressionBombError:
        pillows = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)  # a program may have set it, lower than ours
        megapixels = f"{min(bounds.max_pixels, MAX_PIXELS, pillows) / 1e6:g} megapixels"
        raise TooManyPixels(f"{name} has more than {megapixels}; send a smaller copy") from None
    except MemoryError:
        raise _too_much(name) from None
    except OSError as error:
        if error.errno is not None:  # the file system, not the picture: missing, a folder, no permission
            raise BadPhoto(f"{name} cannot be opened: {error.strerror}") from None
        raise _damaged(name, error) from None
    except Exception as error:  # Pillow's plugins raise whatever damaged bytes lead them to, also RuntimeError
        raise _damaged(name, error, source) from None


def _name(source: Any) -> str:
    """What a photo is called in a sentence: by its file, where that has a name."""
    if isinstance(source, Image.Image | np.ndarray):
        return "the picture"
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    if not isinstance(name, str | bytes | os.PathLike):
        return "the file"
    named = Path(os.fsdecode(name)).name or os.fsdecode(name)  # such as "."
    return named if len(named) <= LONGEST_NAME else f"{named[: LONGEST_NAME - 1]}…"


def _too_much(name: str) -> BadPhoto:
    return TooMuchMemory(f"{name} takes too much memory to decode; send a smaller copy")


def _damaged(name: str, error: Exception, source: Any = None) -> BadPhoto:
    """The error, TooMuchMemory where the decoder says that it had too little."""
    said = str(error).lower()
    if sys.is_finalizing():
        return BadPhoto(f"{name} cannot be read while Python ends ({error}); ask before that")
    if getattr(source, "tile", None) and getattr(source, "fp", source) is None:  # as `with Image.open(…)` leaves it
        return BadPhoto(f"{name} was closed before it was read; give its path or bytes")
    if isinstance(error, io.UnsupportedOperation) or (isinstance(error, ValueError) and "closed" in said):
        return BadPhoto(f"{name} cannot be read ({error}); give its path or bytes")
    if "memory" in said and "limit" not in said and "invalid" not in said:  # so libheif begins of impossible sizes, too
        return _too_much(name)
    if any(words in said for words in _UNREAD) and not isinstance(error, TypeError):
        return BadPhoto(f"{name} is of a kind that is not read ({error}); save it as JPEG or PNG")
    return BadPhoto(f"{name} is damaged ({error}); send a complete file")


@contextlib.contextmanager
def _file(source: Any) -> Iterator[IO[bytes]]:
    """An encoded photo as an open file, at its beginning."""
    if isinstance(source, str | os.PathLike):
        if not os.fsdecode(source):
            raise BadPhoto("the path is empty; give that of a photo")
        path = Path(os.fsdecode(source))
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BadPhoto(f"{path.name} is no regular file; give a photo")  # a pipe would be waited for
        with path.open("rb") as file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview | mmap.mmap):  # whose seek tells no place before Python 3.13
        yield io.BytesIO(bytes(source))
    elif isinstance(source, io.TextIOBase) or not hasattr(source, "seek"):
        allowed = 'a path, bytes, a file opened as "rb", a PIL image or a uint8 array [H, W, 3]'
        raise BadPhoto(f"a photo is given as {allowed}; this one is of type {type(source).__name__}")
    else:
        source.seek(0)
        yield source


def _unread(image: Image.Image) -> Source:
    """The file of a PIL image that was opened and not yet read, which tells more than the image does; or the image."""
    file: Any = getattr(image, "fp", None)
    unread = file and not file.closed and getattr(image, "tile", None) and image.tell() == 0
    unread = unread and not (getattr(image, "decoderconfig", None) and is_dct(file))  # which the caller wants smaller
    return file if unread and image.format in (*FORMATS, "MPO") else image


@contextlib.contextmanager
def opened(source: Source, formats: Sequence[str] = FORMATS) -> Iterator[tuple[Any, IO[bytes] | None]]:
    """A photo, identified and not yet decoded, and its file; a PIL image is left open.

    Whoever asks for facts of a photo that `decode` reads opens it by this, since Pillow alone reads less.
    """
    with _PILLOW_AS_OURS:
        if isinstance(source, Image.Image):
            yield source, None
            return
        with _file(source) as file:
            file = readable_png(file)
            with _identified(file, formats) as image:
                yield image, file


def _measure(image: Image.Image, file: IO[bytes] | None, bounds: Bounds) -> None:
    """Raises Unshown or DecompressionBombError of a picture that is too small or costs too much to decode."""
    if 0 in image.size:
        raise Unshown("has no pixels; send another one")
    if image.width * image.height > bounds.max_pixels:
        raise Image.DecompressionBombError
    if file and image.format in ("JPEG", "MPO") and scans(image, file) > MAX_SCANS:
        raise Unshown(f"has more than {MAX_SCANS} scans, as no camera makes them; save it anew")


def _identified(file: IO[bytes], formats: Sequence[str]) -> Image.Image:
    """The photo, identified and not yet decoded; pillow-heif is asked in once a HEIC photo needs it."""
    try:
        return Image.open(file, formats=[name for name in _COMMON if name in formats])
    except UnidentifiedImageError:
        Image.init()
        if brand_of(file) == "HEIC" and importlib.util.find_spec("pillow_heif"):
            importlib.import_module("pillow_heif").register_heif_opener()
    file.seek(0)
    return Image.open(file, formats=[name for name in formats if name in Image.OPEN and name not in _COMMON])


def _why_unidentified(file: IO[bytes], formats: Sequence[str]) -> str:
    file.seek(0)
    if not any(file.read(2**16)):  # as clouds and cameras leave it, whose name and size are there before the photo
        return "is empty; get it once more from where it came"
    file.seek(0)
    brand = brand_of(file)
    if brand == "AVIF" and not features.check("avif"):
        return "is an AVIF photo, which this Pillow cannot read; type: pip install --upgrade 'pillow>=11.3'"
    if brand == "HEIC" and not importlib.util.find_spec("pillow_heif"):
        return "is a HEIC photo, as iPhones take them; to read those type: pip install 'pillow-heif>=1.8'"
    file.seek(0)
    if "TIFF" in formats and file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "is a TIFF of a kind that Pillow cannot read; save it as a PNG, or with 8 bits a colour"
    if (bits := bits_of_jpeg_or_psd(file)) != 8:
        return f"keeps {bits}-bit colours, which Pillow reads in no JPEG or PSD; save it with 8 bits, or as PNG"
    return "is no picture that can be read (send a JPEG, PNG or WEBP photo)"


def _draft(image: Any, file: IO[bytes], shorter_side: int) -> None:
    # JPEG scales by whole eighths inside the decoder, which costs a quarter of decoding all pixels and dropping them
    scale = shorter_side / min(image.size)
    if image.format in ("JPEG", "MPO") and scale < 1 and image.mode == "RGB" and is_dct(file):
        image.draft("RGB", (int(image.width * scale), int(image.height * scale)))


def decode_for(source: Source, geometry: Geometry, bounds: Bounds = ANY_PHOTO) -> Image.Image:
    """Decode a photo as a model's geometry asks for: `decode` at its scale, in its version. Raises BadPhoto."""
    return decode(source, geometry.resize if geometry.decode == "draft" else None, geometry.version, bounds)


def fit(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """Resize and crop an RGB picture; uint8 `[size, size, 3]`, RGB order."""
    # Only what the crop keeps: less work on a panorama, and within 2 of 255 what resizing everything first gives
    box, size, how = crop_box(image.size, geometry), (geometry.size, geometry.size), FILTERS[geometry.interpolation]
    if geometry.antialias:
        return np.asarray(image.resize(size, how, box=box))
    return np.asarray(image.transform(size, Image.Transform.EXTENT, box, how))


def crop_box(size: tuple[int, int], geometry: Geometry) -> tuple[float, float, float, float]:
    """What the network sees of a picture of `size` (width, height): left, top, right, bottom in its own pixels."""
    shorter = size if geometry.crop == "squash" else 2 * (min(size),)
    (left, right), (top, bottom) = (_cut(*sides, geometry) for sides in zip(size, shorter, strict=True))
    return left, top, right, bottom


def _cut(side: int, shorter: int, geometry: Geometry) -> tuple[float, float]:
    """Where the crop begins and ends on a side of a picture whose shorter side becomes `geometry.resize`."""
    size, resize = geometry.size, geometry.resize
    if geometry.version < 3:
        resized = max(resize, round(side * (resize / shorter)))
        start = (resized - size) // 2
    else:  # torchvision 0.29, transforms.functional: _compute_resized_image_output_size and center_crop
        resized = resize * side // shorter
        start = round((resized - size) / 2)
    return start * (side / resized), (start + size) * (side / resized)


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
