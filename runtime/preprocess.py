"""What a pixel is: the one path from a photo to the network's input, in training's evaluation and in serving.

Geometry only; the arithmetic (cast, mean, std) is the first layer of every exported graph.
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from runtime.errors import BadPhoto
from runtime.spec import Geometry

Source = str | os.PathLike | bytes | Image.Image | np.ndarray

# A 43-megapixel photo is honest; at 3 bytes a pixel this bound keeps one request below 600 MB.
MAX_PIXELS = 200_000_000

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decode(source: Source, shorter_side: int | None = None) -> Image.Image:
    """Decode a photo to an upright 8-bit RGB picture.

    `source` is a path, encoded bytes, a PIL image or a uint8 array `[H, W, 3]` in RGB order. With `shorter_side`,
    a JPEG may be decoded at the smallest DCT scale that leaves its shorter side at least that long. EXIF
    orientation is applied, transparency is laid on white, of an animation the first frame is taken.
    Raises BadPhoto when it is no picture, is truncated or has more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise BadPhoto(f"an array must be uint8 [H, W, 3] RGB; this one is {source.dtype} {list(source.shape)}")
        return Image.fromarray(source)
    if isinstance(source, Image.Image):
        return _upright_rgb(source)
    name = "the bytes" if isinstance(source, bytes) else Path(source).name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF or palettes that it nevertheless reads
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            with image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadPhoto(f"{name} has {image.width}×{image.height} pixels, more than {MAX_PIXELS:,}")
                if shorter_side is not None and isinstance(image, ImageFile.ImageFile):
                    _draft(image, shorter_side)
                return _upright_rgb(image)
    except UnidentifiedImageError:
        raise BadPhoto(f"{name} is no picture that can be read (send a JPEG, PNG or WEBP photo)") from None
    except BadPhoto:
        raise
    except OSError as error:
        if error.errno is not None:  # the file system, not the picture: missing, a folder, no permission
            raise BadPhoto(f"{name} cannot be opened: {error.strerror}") from None
        raise BadPhoto(f"{name} is damaged ({error}); send a complete file") from None
    except (SyntaxError, ValueError, EOFError, Image.DecompressionBombError, MemoryError) as error:
        raise BadPhoto(f"{name} is damaged ({error}); send a complete file") from None


def _draft(image: ImageFile.ImageFile, shorter_side: int) -> None:
    # JPEG scales by whole eighths inside the decoder, which costs a quarter of decoding all pixels and dropping them
    scale = shorter_side / min(image.size)
    if image.format == "JPEG" and scale < 1 and image.mode == "RGB":
        image.draft("RGB", (int(image.width * scale), int(image.height * scale)))


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16-bit samples to white instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """Resize and crop an RGB picture; uint8 `[size, size, 3]`, RGB order."""
    scale = geometry.resize / min(image.size)
    width, height = (max(geometry.resize, round(side * scale)) for side in image.size)
    left, top = (width - geometry.size) // 2, (height - geometry.size) // 2
    # Resize only what the crop keeps: the same pixels as resizing everything first, less work on a panorama
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + geometry.size) * across, (top + geometry.size) * down)
    resized = image.resize((geometry.size, geometry.size), FILTERS[geometry.interpolation], box=box)
    return np.asarray(resized)


def pixels(source: Source, geometry: Geometry) -> np.ndarray:
    """A photo as the network sees it: uint8 `[size, size, 3]`, RGB order. Raises BadPhoto."""
    return fit(decode(source, geometry.resize if geometry.decode == "draft" else None), geometry)
