"""Whose colours a photo's numbers are, and how they become those of sRGB."""

import functools
import io
import struct
from typing import IO, Any

import numpy as np
from PIL import Image

from runtime.errors import Unavailable
from runtime.photo.formats import boxes

# CICP (ITU-T H.273): primaries as x and y of red, green, blue and white, table 2; curves, table 3, as exponent or as
# the numbers of ICC's parametric curve of type 3
_D65, _C = (0.3127, 0.3290), (0.310, 0.316)
_SRGB, _SMPTE = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *_D65), (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65)
_PRIMARIES = {1: _SRGB, 4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, *_C), 5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *_D65)}
_PRIMARIES |= {6: _SMPTE, 7: _SMPTE, 9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65)}
_P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
_PRIMARIES |= {11: (*_P3, 0.314, 0.351), 12: (*_P3, *_D65), 22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *_D65)}
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_TELEVISION = (2.4,)  # as screens show it (ITU-R BT.1886); in AVIF and HEIC browsers take the curve of sRGB for it
_CURVES: dict[int, tuple[float, ...]] = dict.fromkeys((1, 6, 14, 15), _TELEVISION)
_CURVES |= {4: (2.2,), 5: (2.8,), 7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 0.0913), 8: (1.0,)}
_HDR = {16: "PQ", 18: "HLG"}
# Bradford: XYZ to the responses of the cones, and the white of ICC profiles (ICC.1:2022, annex E and 7.2.16)
_CONES = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])


class Unshown(ValueError):
    """A photo whose samples say no colours; the message goes on after the file's name."""


def told_colours(image: Image.Image, file: IO[bytes] | None = None) -> bytes | None:
    """The ICC profile of a picture just opened: the embedded one, or one made of what PNG or AVIF tell otherwise.

    None where nothing is told, which means sRGB. Raises Unshown where the numbers are light of high dynamic range.
    """
    embedded, coded = image.info.get("icc_profile") or _embedded(image, file), _coded(image, file)
    if embedded and not (coded and image.format == "PNG"):  # PNG 3, 4.3: cICP comes first; in AVIF browsers take ICC
        return embedded if embedded[16:20] == _space(image) else None
    if coded:
        if coded[1] in _HDR:
            raise Unshown(f"is a photo of high dynamic range ({_HDR[coded[1]]}), which is not read; send it as a JPEG")
        curve = _CURVES.get(coded[1], _SRGB_CURVE)
        as_srgb = image.format != "PNG" and curve == _TELEVISION
        return made_profile(_PRIMARIES.get(coded[0], _SRGB), _SRGB_CURVE if as_srgb else curve)
    if image.format == "PNG" and image.info.get("gamma") and "srgb" not in image.info:
        white_first = image.info.get("chromaticity", (*_D65, *_SRGB[:6]))
        exponent = 1 / image.info["gamma"]
        # As sRGB was told before it had a chunk
        if "chromaticity" not in image.info and abs(2.2 / exponent - 1) <= 0.05:
            return None
        return made_profile((*white_first[2:], *white_first[:2]), (exponent,))
    return None


def _embedded(image: Image.Image, file: IO[bytes] | None) -> bytes | None:
    """What Pillow leaves in the file: a BMP's, or that of the first box colr of a JPEG 2000 (ITU-T T.800, I.5.3.3)."""
    if file and image.format == "JPEG2000":
        for name, start, end in boxes(file, file.seek(0, 2)):
            if name == b"colr":
                file.seek(start)
                content = file.read(end - start)
                return content[3:] if content[:1] in (b"\2", b"\3") else None
    if file and image.format == "BMP":
        return _in_bmp(file)
    return None


def _in_bmp(file: IO[bytes]) -> bytes | None:
    """The profile of a BMP (BITMAPV5HEADER), or one made of its endpoints and gamma, where that is one for all colours.

    As browsers do it, and who writes endpoints, X and Y are x and y, and white is that of sRGB.
    """
    file.seek(14)
    head = file.read(124).ljust(124, b"\0")
    length, kind = int.from_bytes(head[:4], "little"), head[56:60]
    if length >= 124 and kind == b"DEBM":
        start, size = struct.unpack_from("<II", head, 112)
        file.seek(14 + start)
        return file.read(size)
    ends, gammas = struct.unpack_from("<9i", head, 60), set(struct.unpack_from("<3i", head, 96))
    if length < 108 or kind != bytes(4) or len(gammas) > 1 or gammas == {0}:
        return None
    corners = [end / 2**30 for place, end in enumerate(ends) if place % 3 < 2]
    return made_profile((*corners, *_D65), (gammas.pop() / 65536,))


def _coded(image: Image.Image, file: IO[bytes] | None) -> tuple[int, int] | None:
    """CICP's numbers of the primaries and of the curve, where the file has them."""
    if image.format == "HEIF":
        told = image.info.get("nclx_profile")
        return told and (told["color_primaries"], told["transfer_characteristics"])
    walk = {"PNG": _in_chunks, "AVIF": _in_boxes}.get(image.format or "")
    if walk is None or file is None:
        return None
    place = file.tell()
    try:
        return walk(file, file.seek(0, 2))
    finally:
        file.seek(place)


def _in_chunks(file: IO[bytes], end: int) -> tuple[int, int] | None:
    """By the chunk cICP of a PNG (PNG 3, 11.3.2.6), where browsers heed it: before palette and pixels, and whole."""
    place, name = 8, b""
    while place + 16 <= end and name not in (b"PLTE", b"IDAT", b"cICP"):
        file.seek(place)
        length, name, primaries, curve, matrix, full = struct.unpack(">I4s4B", file.read(12))
        known = primaries in _PRIMARIES or curve in _HDR
        if name == b"cICP" and (length, matrix, full) == (4, 0, 1) and known:
            return primaries, curve
        place += 12 + length
    return None


def _in_boxes(file: IO[bytes], end: int) -> tuple[int, int] | None:
    """By the first box colr of an AVIF that tells numbers (ISO/IEC 14496-12, 12.1.5)."""
    for name, start, _ in boxes(file, end):
        file.seek(start)
        if name == b"colr" and file.read(4) == b"nclx":
            return int.from_bytes(file.read(2), "big"), int.from_bytes(file.read(2), "big")
    return None


@functools.lru_cache(maxsize=16)
def made_profile(corners: tuple[float, ...], curve: tuple[float, ...]) -> bytes | None:
    """An ICC profile (ICC.1:2022, matrix and curves) of primaries x, y of red, green, blue, white, and of `_CURVES`.

    None where these are no colours that an eye or a profile knows.
    """
    try:
        numbers = (round(value * 65536) for value in curve)
        tag = struct.pack(f">4s4xH2x{len(curve)}i", b"para", 3 if len(curve) > 1 else 0, *numbers)
        xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in zip(*[iter(corners)] * 2, strict=True)])
        light = xyz[:3].T * np.linalg.solve(xyz[:3].T, xyz[3])
        adapted = np.linalg.solve(_CONES, np.diag(_CONES @ _D50 / (_CONES @ xyz[3])) @ _CONES) @ light
        tags = {b"wtpt": _xyz(_D50)}
        for name, column in zip((b"r", b"g", b"b"), adapted.T, strict=True):
            tags |= {name + b"XYZ": _xyz(column), name + b"TRC": tag}
    except (ArithmeticError, ValueError, struct.error, np.linalg.LinAlgError):
        return None
    return _profile_of(tags)


def _profile_of(tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of these tags, each of a multiple of four bytes, for RGB."""
    start, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(content), len(tag))
        content += tag
    kinds, white = (4 << 24, b"mntr", b"RGB ", b"XYZ ", b"acsp"), (round(value * 65536) for value in _D50)
    return struct.pack(">I4xI4s4s4s12x4s28x3i48x", start + len(content), *kinds, *white) + table + content


def _xyz(value: np.ndarray) -> bytes:
    return struct.pack(">4s4x3i", b"XYZ ", *(round(float(each) * 65536) for each in value))


def _space(image: Image.Image) -> bytes:
    """What a profile for such a picture calls its colours (ICC.1:2022, table 19)."""
    grey = image.format != "BMP" and (image.mode in ("L", "LA", "La") or image.mode.startswith("I"))
    return b"CMYK" if image.mode == "CMYK" else b"GRAY" if grey else b"RGB "


def to_srgb(image: Image.Image, rgb: Image.Image, profile: bytes) -> Image.Image:
    """`rgb`, which is `image` as RGB in its own colours, with those of sRGB by the profile.

    On all pixels that were decoded, though fewer are left after resizing: where colours are clipped, resizing first
    would give others, up to 33/255 apart. Draft decoding leaves few.
    """
    mode = {b"CMYK": "CMYK", b"GRAY": "L"}.get(profile[16:20], "RGB")
    transform = _transform(profile, mode)
    return rgb if transform is None else transform.apply(image if mode == "CMYK" else rgb.convert(mode))


@functools.lru_cache(maxsize=16)  # a camera writes the same profile into each photo; a transform takes 5 ms to build
def _transform(profile: bytes, mode: str) -> Any:
    """The ImageCmsTransform from an embedded profile to sRGB, by perceptual intent; None leaves the colours alone.

    They are left alone where the profile is broken, or is sRGB under whatever name: one that moves no colour by more
    than 2/255. `mode` is "RGB", "L" or "CMYK".
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
