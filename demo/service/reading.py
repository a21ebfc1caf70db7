"""A visitor's photo, read within the limits of the service; what is wrong with it becomes a Problem."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import BinaryIO

import numpy as np

from demo.service.limits import Limits
from demo.service.problem import Problem
from runtime.errors import BadPhoto, TooManyPixels
from runtime.preprocess import timed_pixels
from runtime.spec import Geometry

Photo = bytes | BinaryIO  # encoded: the body of a request, or a file of `demo.page.uploads`


def read(photo: Photo, geometry: Geometry, limits: Limits) -> tuple[np.ndarray, dict[str, float]]:
    """A photo as the network sees it, uint8 `[size, size, 3]`, and the milliseconds that decoding and geometry took.

    Raises Problem as `refusing` does.
    """
    with refusing(photo, limits):
        return timed_pixels(photo, geometry, limits.photo)


@contextmanager
def refusing(photo: Photo, limits: Limits) -> Iterator[None]:
    """Turns what is wrong with a photo that is read inside into a Problem.

    422 when it is no picture, 413 when it has more pixels, or a file more bytes, than `limits` let in.
    """
    # bytes were counted as they came in
    if not isinstance(photo, bytes) and os.fstat(photo.fileno()).st_size > limits.bytes:
        raise too_large(PurePath(photo.name).name, limits)
    try:
        yield
    except TooManyPixels as error:
        raise Problem(413, "too-many-pixels", str(error)) from None
    except BadPhoto as error:
        raise Problem(422, "not-a-picture", str(error)) from None


def too_large(name: str, limits: Limits) -> Problem:
    """The refusal of a file with more bytes than a photo may have."""
    return Problem(413, "too-large", f"{name} has more than {limits.bytes:,} bytes; send a smaller photo")
