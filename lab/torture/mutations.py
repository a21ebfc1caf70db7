"""Files that are wrong in the ways in which files are wrong: bits, numbers, pieces, and the parts of their format.

Every function takes a random generator, which decides all, and the bytes of a file, and gives other bytes.
"""

import random
import struct
import zlib
from collections.abc import Callable

Mutation = Callable[[random.Random, bytes], bytes]

# Where programs miscount: nothing, one, the largest and smallest of each width, and sizes that no memory holds
_NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def flipped(chance: random.Random, data: bytes) -> bytes:
    """Some bits the other way, most often in the head."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        if changed:
            changed[_place(chance, len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def numbered(chance: random.Random, data: bytes) -> bytes:
    """A number of one, two or four bytes, in either order, where another one was."""
    width, order = chance.choice("BHI"), chance.choice("<>")
    number = struct.pack(order + width, chance.choice(_NUMBERS) & (256 ** struct.calcsize(width) - 1))
    place = _place(chance, max(1, len(data) - len(number) + 1))
    return data[:place] + number + data[place + len(number) :]


def cut(chance: random.Random, data: bytes) -> bytes:
    """Only a beginning."""
    return data[: chance.randrange(len(data) + 1)]


def moved(chance: random.Random, data: bytes) -> bytes:
    """A piece left out, said twice, or put somewhere else."""
    start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    end = min(end, start + chance.choice((1, 4, 16, 256, len(data))))
    piece, rest = data[start:end], data[:start] + data[end:]
    place = chance.randrange(len(rest) + 1)
    return chance.choice((rest, data[:end] + piece + data[end:], rest[:place] + piece + rest[place:]))


def filled(chance: random.Random, data: bytes) -> bytes:
    """A piece of other bytes in between."""
    place = _place(chance, len(data) + 1)
    piece = chance.choice((chance.randbytes(chance.choice((1, 4, 64, 1024))), bytes(chance.choice((1, 64, 4096)))))
    return data[:place] + piece + data[place:]


def png_chunks(chance: random.Random, data: bytes) -> bytes:
    """A PNG with a chunk changed, repeated, left out or added, its checksum right (PNG 5.3)."""
    if not data.startswith(b"\x89PNG"):
        return flipped(chance, data)
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    number = chance.randrange(len(chunks) or 1)
    kind, content = chunks[number] if chunks else (b"IHDR", bytes(13))
    added = chance.choice((b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"acTL", b"fcTL", b"gAMA", b"cICP", b"tRNS", b"PLTE"))
    new = chance.choice(((kind, numbered(chance, content)), (kind, content), (added, chance.randbytes(26))))
    chunks[number : number + chance.randrange(2)] = [new] * chance.choice((0, 1, 1, 1, 2, 60))
    body = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return data[:8] + b"".join(body)


def jpeg_segments(chance: random.Random, data: bytes) -> bytes:
    """A JPEG with a marker segment changed, repeated, left out or added (ITU T.81, B.1)."""
    if not data.startswith(b"\xff\xd8"):
        return flipped(chance, data)
    starts = [place for place in range(2, len(data) - 4) if data[place] == 0xFF and data[place + 1] not in (0, 0xFF)]
    start = chance.choice(starts[:20] or [2])
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    marker, content = data[start : start + 2], data[start + 4 : end]
    added = bytes([0xFF, chance.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, 0xFE))])
    new = chance.choice(((marker, numbered(chance, content)), (marker, content), (added, chance.randbytes(40))))
    piece = new[0] + struct.pack(">H", min(len(new[1]) + 2, 0xFFFF)) + new[1]
    return data[:start] + piece * chance.choice((0, 1, 1, 1, 2, 150)) + data[chance.choice((start, end)) :]


def boxes(chance: random.Random, data: bytes) -> bytes:
    """A number close to one of the names of four letters that AVIF, HEIF, JPEG 2000, WebP and ICC have."""
    names = [place for place in range(len(data) - 4) if data[place : place + 4].isalnum()]
    if not names:
        return flipped(chance, data)
    place = max(0, chance.choice(names) + chance.choice((-4, 4, 8)))
    return data[:place] + struct.pack(chance.choice("<>") + "I", chance.choice(_NUMBERS)) + data[place + 4 :]


ANY: tuple[Mutation, ...] = (flipped, numbered, cut, moved, filled)
OF_PICTURES: tuple[Mutation, ...] = (*ANY, png_chunks, jpeg_segments, boxes)


def mutated(chance: random.Random, data: bytes, by: tuple[Mutation, ...] = ANY) -> bytes:
    """One to four mutations, one after another."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        data = chance.choice(by)(chance, data)
    return data


def _place(chance: random.Random, length: int) -> int:
    """A place in so many bytes, half the time among the first of them."""
    return chance.randrange(length if chance.random() < 0.5 else min(length, 128))
