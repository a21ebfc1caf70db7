"""A photo as viewers show it: upright, its first picture, on white, in what Pillow leaves to its caller."""

from typing import IO, Any

import numpy as np
from PIL import Image, PngImagePlugin

from runtime.photo.colours import Unshown, to_srgb
from runtime.photo.formats import ORIENTATION, bits_of_jpeg2000, orientation_in

_NO_WHITE = "of which it is not told what is white; save it as 8 or 16 bits a colour"
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


def as_shown(image: Any, file: IO[bytes] | None) -> Image.Image:
    """A picture as viewers show its beginning, in what Pillow leaves to its caller. Raises Unshown."""
    tile = getattr(image, "tile", None)
    if image.mode == "F":
        raise Unshown(f"is of floating-point numbers, {_NO_WHITE}")
    if image.format == "TIFF":
        return _tiff_as_shown(image)
    if file and image.format == "JPEG2000" and (bits := bits_of_jpeg2000(file)) != 8:
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
    lower: Any = Image.open(file, formats=("PNG",))
    lower.tile = [lower.tile[0]._replace(args="RGB;16L")]
    bits = np.array(image.info["transparency"], ">u2").reshape(3, 1).view(np.uint8)
    clear = (np.asarray(image) == bits[:, 0]) & (np.asarray(lower) == bits[:, 1])
    found = image.copy()
    found.putalpha(Image.fromarray(np.where(clear.all(2), 0, 255).astype(np.uint8)))
    del found.info["transparency"]
    return found


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


def upright_rgb(image: Image.Image, version: int, profile: bytes | None) -> Image.Image:
    """A picture turned as its EXIF orientation says, as 8-bit sRGB on white, mode "RGB".

    `profile` (ICC) says whose colours its numbers are; in preprocessing `version` 1 it is not heeded.
    """
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
    if isinstance(block, bytes) and (orientation := orientation_in(block.removeprefix(b"Exif\0\0"))):
        return orientation
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever its parser stumbles over: a photo is worth more than what stands beside it
        return 1


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
