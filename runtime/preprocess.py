"""What a pixel is: the one path from a photo to the network's input, in training's evaluation and in serving.

Geometry only; the arithmetic (cast, mean, std) is the first layer of every exported graph.
"""

import contextlib
import importlib
import importlib.util
import io
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError, features

from runtime.colours import Unshown, boxes, to_srgb, told_colours
from runtime.errors import BadPhoto, SajiError, TooManyPixels, TooMuchMemory
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
_SCAN = b"\xff\xda\0"  # the marker, and the upper byte of its length
# The markers of frames (ITU-T T.81, table B.1), and of those that are kept as DCT: a lossless one has nothing to scale,
# and writes beyond the memory that Pillow reserves for a smaller picture
_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
_DCT_FRAMES = frozenset((0xFFC0, 0xFFC1, 0xFFC2, 0xFFC9, 0xFFCA))

_COMMON = ("JPEG", "PNG", "GIF", "BMP", "PPM")
FORMATS = (*_COMMON, "WEBP", "AVIF", "HEIF", "TIFF", "JPEG2000", "DIB", "TGA", "PSD")


@dataclass(frozen=True)
class Bounds:
    """Which photos are decoded: those of at most `max_pixels`, width times height, in one of `formats`."""

    max_pixels: int = MAX_PIXELS
    formats: tuple[str, ...] = FORMATS


ANY_PHOTO = Bounds()

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_NO_WHITE = "of which it is not told what is white; save it as 8 or 16 bits a colour"
_UNREAD = ("unsupported", "not supported", "not yet supported", "raw mode")  # how Pillow says what it does not read
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
        with _PILLOW_IS_QUIET, _opened(source, bounds.formats) as (image, file):
            _measure(image, file, bounds)
            if shorter_side is not None and file:
                _draft(image, file, shorter_side)
            return _upright_rgb(_as_shown(image, file), version, told_colours(image, file))
    except SajiError:
        raise
    except Unshown as why:
        raise BadPhoto(f"{name} {why}") from None
    except UnidentifiedImageError:
        with _file(source) as file:
            raise BadPhoto(f"{name} {_why_unidentified(file, bounds.formats)}") from None
    except Image.DecompressionBombError:
        megapixels = f"{min(bounds.max_pixels, MAX_PIXELS) / 1e6:g} megapixels"
        raise TooManyPixels(f"{name} has more than {megapixels}; send a smaller copy") from None
    except MemoryError:
        raise _too_much(name) from None
    except OSError as error:
        if error.errno is not None:  # the file system, not the picture: missing, a folder, no permission
            raise BadPhoto(f"{name} cannot be opened: {error.strerror}") from None
        raise _damaged(name, error) from None
    except Exception as error:  # Pillow's plugins raise whatever damaged bytes lead them to, also RuntimeError
        raise _damaged(name, error) from None


def _name(source: Any) -> str:
    """What a photo is called in a sentence: by its file, where that has a name."""
    if isinstance(source, Image.Image | np.ndarray):
        return "the picture"
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    return Path(os.fsdecode(name)).name if isinstance(name, str | bytes | os.PathLike) else "the file"


def _too_much(name: str) -> BadPhoto:
    return TooMuchMemory(f"{name} takes too much memory to decode; send a smaller copy")


def _damaged(name: str, error: Exception) -> BadPhoto:
    """The error, TooMuchMemory where the decoder says that it had too little."""
    said = str(error).lower()
    if isinstance(error, io.UnsupportedOperation) or (isinstance(error, ValueError) and "closed" in said):
        return BadPhoto(f"{name} cannot be read ({error}); give its path or bytes")
    if "memory" in said and "limit" not in said and "invalid" not in said:  # so libheif begins of impossible sizes, too
        return _too_much(name)
    if any(words in said for words in _UNREAD):
        return BadPhoto(f"{name} is of a kind that is not read ({error}); save it as JPEG or PNG")
    return BadPhoto(f"{name} is damaged ({error}); send a complete file")


@contextlib.contextmanager
def _file(source: Any) -> Iterator[IO[bytes]]:
    """An encoded photo as an open file, at its beginning."""
    if isinstance(source, str | os.PathLike):
        path = Path(os.fsdecode(source))
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BadPhoto(f"{path.name} is no regular file; give a photo")  # a pipe would be waited for
        with path.open("rb") as file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview):
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
    unread = unread and not (getattr(image, "decoderconfig", None) and _is_dct(file))  # which the caller wants smaller
    return file if unread and image.format in (*FORMATS, "MPO") else image


@contextlib.contextmanager
def _opened(source: Source, formats: Sequence[str]) -> Iterator[tuple[Any, IO[bytes] | None]]:
    """A photo, identified and not yet decoded, and its file; a PIL image is left open."""
    if isinstance(source, Image.Image):
        yield source, None
        return
    with _file(source) as file:
        try:
            image = _identified(file, formats)
        except UnidentifiedImageError:
            file = _without_broken_chunks(file)
            image = _identified(file, formats)
        with image:
            yield image, file


def _measure(image: Image.Image, file: IO[bytes] | None, bounds: Bounds) -> None:
    """Raises Unshown or DecompressionBombError of a picture that is too small or costs too much to decode."""
    if 0 in image.size:
        raise Unshown("has no pixels; send another one")
    if image.width * image.height > bounds.max_pixels:
        raise Image.DecompressionBombError
    if file and image.format in ("JPEG", "MPO") and _scans(image, file) > MAX_SCANS:
        raise Unshown(f"has more than {MAX_SCANS} scans, as no camera makes them; save it anew")


def _identified(file: IO[bytes], formats: Sequence[str]) -> Image.Image:
    """The photo, identified and not yet decoded; pillow-heif is asked in once a HEIC photo needs it."""
    try:
        return Image.open(file, formats=[name for name in _COMMON if name in formats])
    except UnidentifiedImageError:
        Image.init()
        if _brand(file) == "HEIC" and importlib.util.find_spec("pillow_heif"):
            importlib.import_module("pillow_heif").register_heif_opener()
    file.seek(0)
    return Image.open(file, formats=[name for name in formats if name in Image.OPEN and name not in _COMMON])


def _without_broken_chunks(file: IO[bytes]) -> IO[bytes]:
    """A PNG without what stands beside its picture and has a wrong checksum (PNG 3, 13.2), at which Pillow gives up."""
    file.seek(0)
    content, kept, place = file.read(8), [], 8
    if content != b"\x89PNG\r\n\x1a\n":
        raise UnidentifiedImageError
    content += file.read()
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        beside, whole = content[place + 4] & 0x20, zlib.crc32(content[place + 4 : end - 4])
        if not beside or whole == int.from_bytes(content[end - 4 : end]):
            kept.append(content[place:end])
        place = end
    return io.BytesIO(content[:8] + b"".join(kept))


def _scans(image: Any, file: IO[bytes]) -> int:
    """How many scans a JPEG has at most; the decoder finds its place in the file again.

    Nothing is decoded behind a first scan of all colours, unless it is progressive. Other files are read, in pieces.
    """
    colours = next((first for marker, first in _segments(file) if marker == 0xFFDA), 0)
    if not image.info.get("progressive") and colours == image.layers:
        return 1
    last, count = b"", 0
    file.seek(0)
    while piece := file.read(2**20):
        count += (last + piece).count(_SCAN)
        last = piece[-2:]
    return count


def _segments(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """A JPEG's segments up to its first scan (ITU-T T.81, annex B), as far as they are sure: marker and first byte."""
    place, marker = 2, 0
    with contextlib.suppress(struct.error):
        while marker != 0xFFDA:
            file.seek(place)
            marker, length, first = struct.unpack(">HHB", file.read(5))
            if marker < 0xFFC0 or 0xFFD0 <= marker <= 0xFFD9 or marker == 0xFFFF:  # no segment, or one of no length
                return
            yield marker, first
            place += 2 + length


def _is_dct(file: IO[bytes]) -> bool:
    """Whether a JPEG is surely made of DCT blocks, which alone can be decoded smaller."""
    frames = {marker for marker, _ in _segments(file) if marker in _FRAMES}
    return bool(frames) and frames <= _DCT_FRAMES


def _brand(file: IO[bytes]) -> str:
    """By the brands in a photo's first box, whatever its name: "AVIF", "HEIC" or ""."""
    file.seek(0)
    head = file.read(64)
    if head[4:8] != b"ftyp":
        return ""
    brands = {head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
    return "AVIF" if b"avif" in brands else "HEIC" if brands & {b"heic", b"heix", b"hevc", b"mif1"} else ""


def _why_unidentified(file: IO[bytes], formats: Sequence[str]) -> str:
    brand = _brand(file)
    if brand == "AVIF" and not features.check("avif"):
        return "is an AVIF photo, which this Pillow cannot read; type: pip install --upgrade 'pillow>=11.3'"
    if brand == "HEIC" and not importlib.util.find_spec("pillow_heif"):
        return "is a HEIC photo, as iPhones take them; to read those type: pip install 'pillow-heif>=1.8'"
    file.seek(0)
    if "TIFF" in formats and file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "is a TIFF of a kind that Pillow cannot read; save it as a PNG, or with 8 bits a colour"
    if (bits := _bits_of_jpeg_or_psd(file)) != 8:
        return f"keeps {bits}-bit colours, which Pillow reads in no JPEG or PSD; save it with 8 bits, or as PNG"
    return "is no picture that can be read (send a JPEG, PNG or WEBP photo)"


def _bits_of_jpeg_or_psd(file: IO[bytes]) -> int:
    """How many bits the colours have; 8 too where it is neither of them."""
    file.seek(0)
    head = file.read(26)
    if head.startswith(b"8BPS\0\1"):
        return int.from_bytes(head[22:24])
    is_jpeg = head.startswith(b"\xff\xd8\xff")
    return next((first for marker, first in _segments(file) if is_jpeg and marker in _FRAMES), 8)


def _draft(image: Any, file: IO[bytes], shorter_side: int) -> None:
    # JPEG scales by whole eighths inside the decoder, which costs a quarter of decoding all pixels and dropping them
    scale = shorter_side / min(image.size)
    if image.format in ("JPEG", "MPO") and scale < 1 and image.mode == "RGB" and _is_dct(file):
        image.draft("RGB", (int(image.width * scale), int(image.height * scale)))


def _as_shown(image: Any, file: IO[bytes] | None) -> Image.Image:
    """A picture as viewers show its beginning, in what Pillow leaves to its caller. Raises Unshown."""
    tile = getattr(image, "tile", None)
    if image.mode == "F":
        raise Unshown(f"is of floating-point numbers, {_NO_WHITE}")
    if image.format == "TIFF":
        return _tiff_as_shown(image)
    if file and image.format == "JPEG2000" and (bits := _bits_of_jpeg2000(file)) != 8:
        raise Unshown(f"keeps {bits}-bit colours, which Pillow misreads in JPEG 2000; save it as PNG")
    if image.mode == "I" and image.format not in ("PPM", "PNG"):  # whose numbers have 16 bits in this mode
        raise Unshown(f"is of 32-bit numbers, {_NO_WHITE}")
    if image.format in ("BMP", "DIB", "TGA") and image.mode in ("RGBA", "LA"):
        image.load()
        if image.getbbox() is None:  # clear everywhere: a byte that its writer left unused
            return image.convert(image.mode[:-1])
    if image.tell() or not tile:  # a later frame, or what the caller has read and perhaps changed
        return image
    if image.format == "PNG" and image.info.get("default_image"):  # of an APNG: what stands in where nothing moves
        image.seek(1)
        image.blend_op = PngImagePlugin.Blend.OP_SOURCE  # otherwise Pillow lays the frame on that
    elif image.format == "PNG" and image.mode == "L" and isinstance(image.info.get("transparency"), int):
        bits = int(str(tile[0].args).partition(";")[2] or 8)  # the transparent grey is told in samples of so many bits
        image.info["transparency"] *= 255 // (2**bits - 1)
    elif file and image.format == "PNG" and tile[0].args == "RGB;16B" and "transparency" in image.info:
        image = _with_a_deep_colour_clear(image, file)
    box = getattr(image, "dispose_extent", None)  # of the first frame of a GIF or an APNG
    if box and box != (0, 0, *image.size):
        frame = image.convert("RGBA").crop(box)  # around it neither a ground nor another picture is shown
        image = Image.new("RGBA", image.size)
        image.paste(frame, box)
    return image


def _with_a_deep_colour_clear(image: Any, file: IO[bytes]) -> Image.Image:
    """A PNG of 16-bit colours and its clear one, of which Pillow keeps the upper bits; the lower ones are read anew."""
    image.load()
    lower: Any = _identified(file, ("PNG",))
    lower.tile = [lower.tile[0]._replace(args="RGB;16L")]
    bits = np.array(image.info["transparency"], ">u2").reshape(3, 1).view(np.uint8)
    clear = (np.asarray(image) == bits[:, 0]) & (np.asarray(lower) == bits[:, 1])
    found = image.copy()
    found.putalpha(Image.fromarray(np.where(clear.all(2), 0, 255).astype(np.uint8)))
    del found.info["transparency"]
    return found


def _bits_of_jpeg2000(file: IO[bytes]) -> int:
    """How many bits the colours of a JPEG 2000 have (ITU-T T.800, A.5.1); 8 too where Pillow makes those of them."""
    start = next((start for name, start, _ in boxes(file, file.seek(0, 2)) if name == b"jp2c"), 0)
    file.seek(start)
    if file.read(4) != b"\xff\x4f\xff\x51":  # which the decoder will tell
        return 8
    file.seek(start + 40)
    colours = int.from_bytes(file.read(2), "big")
    bits = {(each & 0x7F) + 1 for each in file.read(3 * colours)[::3]} - set(range(8, 17) if colours == 1 else (8,))
    return max(bits, default=8)


def _tiff_as_shown(image: Any) -> Image.Image:
    """A TIFF's first page by what its tags say of the samples (TIFF 6.0, section 8 and 19)."""
    bits, signed = max(image.tag_v2.get(258, (1,))), 2 in image.tag_v2.get(339, ())
    if signed or bits > 16:
        raise Unshown(f"is of {'signed' * signed or f'{bits}-bit'} numbers, {_NO_WHITE}")
    if bits == 16 and image.tag_v2.get(284) == 2 and len(image.getbands()) > 1:
        raise Unshown("keeps 16-bit colours one after the other, which Pillow misreads; save it as 16-bit PNG")
    if not image.mode.startswith("I;16") or (bits == 16 and image.tag_v2.get(262) != 0):
        return image
    samples = np.asarray(image).astype(np.uint32) * 0xFFFF // (2**bits - 1)
    found = Image.fromarray((0xFFFF - samples if image.tag_v2.get(262) == 0 else samples).astype(np.uint16))
    found.info = image.info
    return found


def _upright_rgb(image: Image.Image, version: int, profile: bytes | None) -> Image.Image:
    image.load()  # first: Pillow turns a TIFF as it loads it, and then its orientation is gone
    turn = _TURNS.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    rgb, opacity = _rgb(upright)
    if profile and version > 1:
        rgb = to_srgb(upright, rgb, profile)
    if opacity is not None:
        rgb.putalpha(opacity)
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
    if rgb is not image:
        rgb.info = {}  # which would turn and convert it again, if it is given to `decode`
    return rgb


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


def _rgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Any mode as 8-bit RGB in its own colour space, and how opaque it is, mode "L", None where it is so everywhere."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit samples ("I": of a PGM), which Pillow's own conversion clips to white
        samples = np.asarray(image)
        opacity = None if clear is None else Image.fromarray(np.where(samples == clear, 0, 255).astype(np.uint8))
        return Image.fromarray((samples.clip(0, 0xFFFF) >> 8).astype(np.uint8)).convert("RGB"), opacity
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or clear is not None:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    return (image if image.mode == "RGB" else image.convert("RGB")), None  # which would copy it


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
