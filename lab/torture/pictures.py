"""Pictures of every format that saji reads, broken, to the processes that decode for the service.

Each is decoded, or refused with one of the answers that the API's document names; the process that decodes may end,
which costs the photo alone. Found is anything else: an exception, a wrong shape, a path in an answer, time.
"""

import io
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.service.decoders import Decoders
from demo.service.limits import Limits
from demo.service.problem import Problem
from lab.torture.campaign import Attempt, Found
from lab.torture.mutations import OF_PICTURES, mutated
from runtime.spec import Geometry

ATTEMPTS = 200_000
SECONDS = 2  # that decoding may take here: a real deadline would make every hang cost ten
REFUSALS = {"not-a-picture", "too-many-pixels", "too-much-memory", "decodes-too-long", "too-large"}
GEOMETRY = Geometry.for_size(32)


@contextmanager
def prepared(folder: Path) -> Iterator[Attempt]:
    """Two decoders: one as the service has it, one for every format."""
    files = corpus()
    limits = [Limits(decoders=1, decode_seconds=SECONDS, all_formats=all_formats) for all_formats in (False, True)]
    with ExitStack() as stack:
        decoders = [stack.enter_context(closing(Decoders(each))) for each in limits]

        def attempt(chance: random.Random) -> str:
            data = mutated(chance, chance.choice(files), OF_PICTURES)
            return decoded(chance.choice(decoders), data)

        yield attempt


def decoded(decoders: Decoders, data: bytes) -> str:
    """What becomes of a picture, in two words. Raises Found."""
    started = time.monotonic()
    try:
        image, _ = decoders.pixels(data, GEOMETRY)
        came = "decoded"
    except Problem as problem:
        came = "the decoder ended" if "ends the program" in problem.detail else problem.cause
        if problem.cause not in REFUSALS or "/" in problem.detail.replace("RGB/", ""):
            raise Found(f"{problem.cause}: {problem.detail}", data) from None
    except Exception as error:
        raise Found(repr(error), data) from None
    if came == "decoded" and (image.shape, image.dtype) != ((GEOMETRY.size, GEOMETRY.size, 3), np.uint8):
        raise Found(f"a picture of {image.shape} {image.dtype}", data)
    if (seconds := time.monotonic() - started) > SECONDS + 5:
        raise Found(f"{came} after {seconds:.1f} s", data)
    return came


def corpus() -> list[bytes]:
    """Small pictures in every format that Pillow writes here, in the modes and with the extras that matter."""
    y, x = np.mgrid[0:40, 0:56]
    photo = Image.fromarray(np.stack([x * 4, y * 6, 255 - x * 2 - y], 2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    extras: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": _profile()}
    files = []

    def add(kind: str, mode: str = "RGB", **options: Any) -> None:
        encoded = io.BytesIO()
        try:
            photo.convert(mode).save(encoded, kind, **options)
        except (KeyError, OSError, ValueError):  # this Pillow does not write it
            return
        files.append(encoded.getvalue())

    for mode in ("RGB", "L", "CMYK"):
        for progressive in (False, True):
            add("JPEG", mode, progressive=progressive, **extras)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        add("PNG", mode, **extras)
    add("PNG", save_all=True, append_images=[photo.rotate(90)])
    add("WEBP", "RGBA", lossless=True)
    add("WEBP", "RGBA", quality=60, **extras)
    add("WEBP", "RGBA", save_all=True, append_images=[photo])
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        add("TIFF", compression=compression, **extras)
    for mode in ("I;16", "F", "CMYK"):
        add("TIFF", mode)
    for kind in ("AVIF", "HEIF", "GIF", "BMP", "JPEG2000", "MPO", "PPM", "TGA", "ICO"):
        add(kind)
    return files


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
