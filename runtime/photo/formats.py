"""What the bytes of a photo's file tell that Pillow does not, or only where nothing beside it is broken."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any

from PIL import PngImagePlugin

_PNG = b"\x89PNG\r\n\x1a\n"
_PACKED = (b"zTXt", b"iTXt", b"iCCP")
_SCAN = b"\xff\xda\0"  # the marker, and the upper byte of its length
# The markers of frames (ITU-T T.81, table B.1), and of those that are kept as DCT: a lossless one has nothing to scale,
# and writes beyond the memory that Pillow reserves for a smaller picture
_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
_DCT_FRAMES = frozenset((0xFFC0, 0xFFC1, 0xFFC2, 0xFFC9, 0xFFCA))
ORIENTATION, _SHORT = 0x0112, 3  # the tag's number and its type's
# What is before the boxes in a box that holds others: on the way to the colours of a photo, and of a sequence's track
_HOLDING = {b"jp2h": 0, b"meta": 4, b"iprp": 0, b"ipco": 0, b"stsd": 8, b"av01": 78}
_HOLDING |= dict.fromkeys((b"moov", b"trak", b"mdia", b"minf", b"stbl"), 0)


def scans(image: Any, file: IO[bytes]) -> int:
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


def is_dct(file: IO[bytes]) -> bool:
    """Whether a JPEG is surely made of DCT blocks, which alone can be decoded smaller."""
    frames = {marker for marker, _ in _segments(file) if marker in _FRAMES}
    return bool(frames) and frames <= _DCT_FRAMES


def bits_of_jpeg_or_psd(file: IO[bytes]) -> int:
    """How many bits the colours have; 8 too where it is neither of them."""
    file.seek(0)
    head = file.read(26)
    if head.startswith(b"8BPS\0\1"):
        return int.from_bytes(head[22:24])
    is_jpeg = head.startswith(b"\xff\xd8\xff")
    return next((first for marker, first in _segments(file) if is_jpeg and marker in _FRAMES), 8)


def bits_of_jpeg2000(file: IO[bytes]) -> int:
    """How many bits the colours of a JPEG 2000 have (ITU-T T.800, A.5.1); 8 too where Pillow makes those of them."""
    start = next((start for name, start, _ in boxes(file, file.seek(0, 2)) if name == b"jp2c"), 0)
    file.seek(start)
    if file.read(4) != b"\xff\x4f\xff\x51":  # which the decoder will tell
        return 8
    file.seek(start + 40)
    colours = int.from_bytes(file.read(2), "big")
    bits = {(each & 0x7F) + 1 for each in file.read(3 * colours)[::3]} - set(range(8, 17) if colours == 1 else (8,))
    return max(bits, default=8)


def brand_of(file: IO[bytes]) -> str:
    """By the brands in a photo's first box, whatever its name: "AVIF", "HEIC" or ""."""
    file.seek(0)
    head = file.read(64)
    if head[4:8] != b"ftyp":
        return ""
    brands = {head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
    return "AVIF" if b"avif" in brands else "HEIC" if brands & {b"heic", b"heix", b"hevc", b"mif1"} else ""


def orientation_in(block: bytes) -> int | None:
    """The orientation in the first directory of a TIFF block (TIFF 6.0, section 2: entries of 12 bytes), if any."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for number in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * number)
            if (tag, kind) == (ORIENTATION, _SHORT):
                return int(value)
    return None


def readable_png(file: IO[bytes]) -> IO[bytes]:
    """A PNG without what stands beside its picture and stops Pillow; anything else as it is.

    That is a chunk with a wrong checksum (PNG 3, 13.2), or one that Pillow's own reader of its kind refuses: of a wrong
    length, or text and profiles of more than a megabyte, as programs keep their whole history in.
    """
    file.seek(0)
    if file.read(8) != _PNG:
        return file
    pillow, stopping, place = PngImagePlugin.PngStream(io.BytesIO()), list[tuple[int, int]](), 8
    while len(head := file.read(8)) == 8:
        kind, size = head[4:], int.from_bytes(head[:4])
        beside = kind[0] & 0x20
        if beside or kind == b"IHDR":  # by which Pillow reads others
            content, checksum = file.read(size), file.read(4)
            whole = zlib.crc32(kind + content).to_bytes(4) == checksum
            enough = len(stopping) > 16 and kind in _PACKED  # each may take a megabyte to look into
            if (enough or _stops(pillow, kind, content) or not whole) and beside:
                stopping.append((place, place + 12 + size))
        place += 12 + size
        file.seek(place)
    if not stopping:
        file.seek(0)
        return file
    kept, place = [], 0
    for begin, end in [*stopping, (file.seek(0, 2), 0)]:
        file.seek(place)
        kept.append(file.read(begin - place))
        place = end
    return io.BytesIO(b"".join(kept))


def _stops(pillow: PngImagePlugin.PngStream, kind: bytes, content: bytes) -> bool:
    read = getattr(pillow, f"chunk_{kind.decode('latin-1')}", None)
    pillow.fp = io.BytesIO(content)
    try:
        if read:
            read(0, len(content))
    except EOFError:  # how it tells that pixels begin
        return False
    except Exception:  # whatever damaged bytes lead it to
        return True
    return False


def boxes(file: IO[bytes], end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of a file of `end` bytes (ISO/IEC 14496-12, 4.2), and in others: name, begin and end of the content."""
    place, size = 0, 8
    while place + 16 <= end and size >= 8:
        file.seek(place)
        size, name, large = struct.unpack(">I4sQ", file.read(16))
        start = place + (16 if size == 1 else 8)
        size = large if size == 1 else size or end - place  # 0: it is the last one
        yield name, start, place + size
        place = start + _HOLDING[name] if name in _HOLDING else place + size
