"""Odd pictures: a file of every kind that is read, and changes of them by who knows how a file is built.

A change keeps what a decoder checks first, lengths and checksums, so that the odd part is reached and not refused
before. All of it is decided by a random generator.
"""

import contextlib
import importlib.util
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from lab.torture import gallery
from lab.torture.gallery import SIZE, picture, png_chunk, saved, scene, tiff, veil

Part = tuple[bytes, bytes]  # a part's name, empty where it has neither name nor length, and its content
Change = Callable[[random.Random, bytes], bytes]

# Where arithmetic on sizes goes wrong: around powers of two, and what fills the memory
NUMBERS = [0, 1, 2, 3, 7, 8, 9, 31, 33, 127, 128, 255, 256, 257, 1000, 4096, 8000, 16383, 16384, 32767, 32768, 65535]
NUMBERS += [65536, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
BOXES_OF = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"jp2h": 0}  # boxes of boxes, and what stands before these
COMPRESSED = {b"IDAT": 0, b"fdAT": 4, b"iCCP": 5, b"zTXt": 9}  # PNG's chunks, and what stands before the stream
STANDALONE = {b"\xff\xd8", b"\xff\xd9", b"\xff\x01"}  # JPEG's markers without a length


@dataclass(frozen=True)
class Format:
    """How a kind of file is a row of parts: `split` one that begins with `magic`, and make a part's bytes by `written`.

    `written` takes name, content and the length that is to be told.
    """

    magic: bytes
    split: Callable[[bytes], list[Part]]
    written: Callable[[bytes, bytes, int], bytes]

    def joined(self, parts: Sequence[Part]) -> bytes:
        """The file of these parts, with the lengths and checksums that belong to them."""
        body = b"".join(content if not name else self.written(name, content, len(content)) for name, content in parts)
        if self.magic == b"RIFF":
            return struct.pack("<4sI", b"RIFF", (len(body) + 4) % 2**32) + b"WEBP" + body
        return (self.magic if self.magic == PNG_MAGIC else b"") + body


def _jpeg_parts(file: bytes) -> list[Part]:
    parts, place = list[Part](), 0
    while place < len(file) - 3 and file[place] == 0xFF:
        name = file[place : place + 2]
        end = place + 2 if name in STANDALONE else place + 2 + int.from_bytes(file[place + 2 : place + 4], "big")
        parts.append((name, file[place + 4 : end]))
        place = end
        while end < len(file) and (file[end] != 0xFF or file[end + 1 : end + 2] in NO_MARKERS):
            end += 1
        if end > place:  # what a scan is made of
            parts.append((b"", file[place:end]))
        place = end
    return [*parts, (b"", file[place:])]


NO_MARKERS = {b"\0", b"", b"\xff", *(bytes([0xD0 + i]) for i in range(8))}  # after 0xFF within a scan


def _jpeg_written(name: bytes, content: bytes, length: int) -> bytes:
    return name if name in STANDALONE else name + struct.pack(">H", (length + 2) % 2**16) + content


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def _chunks(start: int, order: str, behind: int, file: bytes) -> list[Part]:
    """Chunks of a length, a name and a content (`order` ">", PNG), or of name, length and content ("<", RIFF)."""
    parts, place = list[Part](), start
    while place + 8 <= len(file):
        length, name = struct.unpack_from(">I4s", file, place) if order == ">" else _swapped(file, place)
        parts.append((name, file[place + 8 : place + 8 + length]))
        place += 8 + length + behind + (length % 2 if order == "<" else 0)
    return parts


def _swapped(file: bytes, place: int) -> tuple[int, bytes]:
    name, length = struct.unpack_from("<4sI", file, place)
    return length, name


def _png_written(name: bytes, content: bytes, length: int) -> bytes:
    return struct.pack(">I", length % 2**32) + png_chunk(name, content)[4:]


def _riff_written(name: bytes, content: bytes, length: int) -> bytes:
    return name + struct.pack("<I", length % 2**32) + content + b"\0" * (len(content) % 2)


def _boxes(file: bytes) -> list[Part]:
    parts, place = list[Part](), 0
    while place + 8 <= len(file):
        length, name = struct.unpack_from(">I4s", file, place)
        end = place + length if length >= 8 else len(file)
        parts.append((name, file[place + 8 : end]))
        place = end
    return parts


def _box_written(name: bytes, content: bytes, length: int) -> bytes:
    return struct.pack(">I", (length + 8) % 2**32) + name + content


JPEG = Format(b"\xff\xd8", _jpeg_parts, _jpeg_written)
PNG = Format(PNG_MAGIC, partial(_chunks, 8, ">", 4), _png_written)
WEBP = Format(b"RIFF", partial(_chunks, 12, "<", 0), _riff_written)
BOXES = Format(b"\0\0\0", _boxes, _box_written)
FORMATS = (JPEG, PNG, WEBP, BOXES)


# What changes bytes, whatever they are of


def _number(chance: random.Random, width: int) -> int:
    return (chance.choice(NUMBERS) if chance.random() < 0.8 else chance.getrandbits(32)) % 256**width


def _flipped(chance: random.Random, content: bytes) -> bytes:
    """Up to eight bits are others."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8)) if content else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _overwritten(chance: random.Random, content: bytes) -> bytes:
    """A number of 1, 2 or 4 bytes is another; the beginning, where headers are, is hit as often as all the rest."""
    width = chance.choice((1, 2, 4))
    most = min(len(content), 64) if chance.random() < 0.5 else len(content)
    place = chance.randrange(max(1, most - width + 1))
    number = _number(chance, width).to_bytes(width, chance.choice(("big", "little")))
    return content[:place] + number + content[place + width :]


def _shortened(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _cut(chance: random.Random, content: bytes) -> bytes:
    place = chance.randrange(len(content) + 1)
    return content[:place] + content[place + chance.choice((1, 2, 4, 16, 256)) :]


def _repeated(chance: random.Random, content: bytes) -> bytes:
    place = chance.randrange(len(content) + 1)
    return content[:place] + content[place : place + 64] * chance.choice((2, 3, 50)) + content[place + 64 :]


def _resized(chance: random.Random, content: bytes) -> bytes:
    """A width or a height is another, wherever the corpus' own stands as formats write it."""
    found = []
    for letters in (">HH", "<HH", ">II", "<II"):
        for sides in (SIZE, SIZE[::-1], (SIZE[0] - 1, SIZE[1] - 1)):
            place = content.find(struct.pack(letters, *sides))
            if place >= 0:
                found.append((letters, place, sides))
    if not found:
        return _overwritten(chance, content)
    letters, place, sides = chance.choice(found)
    width = struct.calcsize(letters) // 2
    fresh = struct.pack(letters, *(_number(chance, width) if chance.random() < 0.6 else side for side in sides))
    return content[:place] + fresh + content[place + 2 * width :]


def _retagged(chance: random.Random, content: bytes) -> bytes:
    """An entry of a TIFF directory is another: of a TIFF, or of the EXIF block of any other file."""
    starts = [place for mark in (b"II*\0", b"MM\0*") if (place := content.find(mark)) >= 0]
    with contextlib.suppress(struct.error, IndexError):
        start, changed = chance.choice(starts), bytearray(content)
        order = "<" if content[start : start + 1] == b"I" else ">"
        directory = start + struct.unpack_from(f"{order}I", content, start + 4)[0]
        (count,) = struct.unpack_from(f"{order}H", content, directory)
        entry = directory + 2 + 12 * chance.randrange(min(count, 64) or 1)
        letter, place = chance.choice((("H", 0), ("H", 2), ("I", 4), ("I", 8), ("I", 8)))
        struct.pack_into(f"{order}{letter}", changed, entry + place, _number(chance, 2 if letter == "H" else 4))
        return bytes(changed)
    return _flipped(chance, content)


def _reprofiled(chance: random.Random, content: bytes) -> bytes:
    """A number in the head or the table of an ICC profile is another."""
    start = content.find(b"acsp") - 36
    if start < 0 or len(content) < start + 132:
        return _flipped(chance, content)
    changed, places = bytearray(content), (0, 12, 16, 20, 128, *range(132, 252, 4))
    with contextlib.suppress(struct.error):
        struct.pack_into(">I", changed, start + chance.choice(places), _number(chance, 4))
    return bytes(changed)


OF_BYTES: tuple[Change, ...] = (_flipped, _overwritten, _shortened, _cut, _repeated, _resized, _retagged, _reprofiled)


# What changes a file of parts


def _inside(chance: random.Random, name: bytes, content: bytes) -> bytes:
    """A part's content changed, below its compression and in one of its boxes."""
    if name in COMPRESSED and chance.random() < 0.7:
        start = COMPRESSED[name]
        with contextlib.suppress(zlib.error):
            return content[:start] + zlib.compress(_inside(chance, b"", zlib.decompress(content[start:])), 1)
    if name in BOXES_OF and chance.random() < 0.9:
        start = BOXES_OF[name]
        return content[:start] + _of_parts(chance, BOXES, _boxes(content[start:]), [])
    return chance.choice(OF_BYTES)(chance, content)


def _of_parts(chance: random.Random, format: Format, parts: list[Part], others: Sequence[Part]) -> bytes:
    """The file with one of its parts changed, dropped, moved, doubled, told a wrong length, or `others`' put in."""
    if not parts:
        return b""
    parts, place = list(parts), chance.randrange(len(parts))
    name, content = parts[place]
    what = chance.choice(("inside",) * 6 + ("drop", "move", "double", "lie", "rename", "borrow"))
    if what == "inside":
        parts[place] = name, _inside(chance, name, content)
    elif what == "drop":
        del parts[place]
    elif what == "move":
        parts.insert(chance.randrange(len(parts)), parts.pop(place))
    elif what == "double":
        parts[place:place] = parts[place : place + chance.choice((1, 2, 5))] * chance.choice((1, 2, 40))
    elif what == "lie" and name:
        length = chance.choice((len(content) + 1, len(content) - 1, _number(chance, 4)))
        parts[place] = b"", format.written(name, content, max(0, length))
    elif what == "rename":
        parts[place] = chance.choice(parts)[0], content
    elif others:
        parts.insert(place, chance.choice(others))
    return format.joined(parts)


class OddPictures:
    """Makes odd pictures of `files`, by default the whole corpus; what a generator decides is the same each time."""

    def __init__(self, files: Sequence[bytes] = ()) -> None:
        self.files = list(files or corpus().values())
        self._formats = [next((each for each in FORMATS if file.startswith(each.magic)), None) for file in self.files]
        self._parts = [each.split(file) if each else [] for each, file in zip(self._formats, self.files, strict=True)]
        self._others: dict[Format | None, list[Part]] = {}
        for each, parts in zip(self._formats, self._parts, strict=True):
            self._others.setdefault(each, []).extend(parts)

    def __call__(self, chance: random.Random) -> bytes:
        """A picture that is not what it seems, one in fifty as it was."""
        place = chance.randrange(len(self.files))
        file, format = self.files[place], self._formats[place]
        if chance.random() < 0.02:
            return file
        if format and chance.random() < 0.75:
            file = _of_parts(chance, format, self._parts[place], self._others[format])
        else:
            file = chance.choice(OF_BYTES)(chance, file)
        if chance.random() < 0.3:
            file = chance.choice(OF_BYTES)(chance, file)
        if chance.random() < 0.05:  # the end of another
            other = chance.choice(self.files)
            file = _shortened(chance, file) + other[chance.randrange(len(other)) :]
        return file


def corpus() -> dict[str, bytes]:
    """A file of every kind that `runtime.preprocess` reads here, by name, each of a few kilobytes."""
    kinds = gallery.jpegs() | gallery.colours_told() | gallery.pngs(False) | gallery.pngs(True) | gallery.others()
    photo = Image.fromarray(scene()).resize((640, 480), Image.Resampling.BICUBIC)
    kinds |= {f"JPEG of {w}": saved(photo, "JPEG", quality=60, progressive=w == "scans") for w in ("scans", "one scan")}
    for suffix, mode in (("ppm", "RGB"), ("pgm", "L"), ("pbm", "1"), ("pgm", "I;16")):
        kinds[f"{suffix} {mode}"] = saved(picture(mode), "PPM")
    kinds |= {f"TGA {mode} {rle}": saved(picture(mode), "TGA", rle=rle) for mode in ("RGB", "L", "P", "RGBA", "LA")
              for rle in (False, True)}  # fmt: skip
    kinds |= {"DIB": saved(picture(), "DIB"), "PSD": psd(), "PSD, packed": psd(packed=True)}
    for mode in ("RGB", "L", "RGBA", "LA"):
        kinds[f"JP2 {mode}"] = saved(picture(mode), "JPEG2000")
    kinds["J2K, lossy"] = saved(picture(), "JPEG2000", no_jp2=True, irreversible=True, quality_layers=[20])
    kinds["J2K, tiles"] = saved(picture(), "JPEG2000", no_jp2=True, tile_size=(16, 16), progression="RPCL")
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
        kinds["HEIF"] = saved(picture(), "HEIF")
    return kinds | _tiffs()


def _tiffs() -> dict[str, bytes]:
    grey, rgb, opacity = np.asarray(picture("L"))[..., None], scene(), veil()[..., None]
    packings = [("jpeg", "RGB"), ("jpeg", "CMYK"), ("tiff_lzw", "RGB"), ("tiff_adobe_deflate", "P"), ("packbits", "L")]
    packings += [("group3", "1"), ("group4", "1"), ("tiff_ccitt", "1")]
    kinds = {f"TIFF, {packing} {mode}": saved(picture(mode), "TIFF", compression=packing) for packing, mode in packings}
    for order in "<>":
        deep = rgb.astype(np.uint16) * 257
        kinds |= {f"TIFF, 16 bits {order}": tiff(deep, 2, order), f"TIFF, white {order}": tiff(grey, 0, order)}
        for about in ({"planes": 2}, {"orientation": 6}):
            kinds[f"TIFF, {about} {order}"] = tiff(rgb, 2, order, **about)
        kinds[f"TIFF, alpha {order}"] = tiff(np.concatenate([rgb, opacity], 2), 2, order, extra=2)
        kinds[f"TIFF, floats {order}"] = tiff((grey / 255).astype(np.float32), 1, order)
    return kinds | {"TIFF, pages": saved(picture(), "TIFF", save_all=True, append_images=[picture("L")])}


def psd(packed: bool = False) -> bytes:
    """A Photoshop file of version 1 with its merged picture only, by Adobe's description; `packed` by PackBits."""
    planes = np.moveaxis(scene(), 2, 0)
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, SIZE[1], SIZE[0], 8, 3) + bytes(12)
    if not packed:
        return head + b"\0\0" + planes.tobytes()
    rows = [bytes([len(row) - 1]) + row.tobytes() for row in planes.reshape(-1, SIZE[0])]
    return head + b"\0\1" + b"".join(struct.pack(">H", len(row)) for row in rows) + b"".join(rows)
