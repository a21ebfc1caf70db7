"""Odd pictures through the service's decoders: each becomes pixels or one sentence, within its seconds and its memory.

They go through `demo.service.decoders`, a process that lives until a picture ends it: the next one has another, so that
what crashes or hangs is known by its number, and 200,000 take a quarter of an hour.
"""

import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from demo.service.decoders import Decoders
from demo.service.limits import Limits
from demo.service.problem import Problem
from lab.torture.campaign import Attempt, Found
from lab.torture.odd_pictures import OddPictures
from runtime.spec import Geometry

ATTEMPTS = 200_000
LIMITS = Limits(decoders=1, all_formats=True)  # what the service does by default, of more formats than it takes
GEOMETRIES = [Geometry(32, 36), Geometry(224, 256), Geometry(64, 64, interpolation="bicubic", decode="full")]
GEOMETRIES += [Geometry(32, 36, version=1), Geometry(64, 64, "squash")]
SIDES = (32, 1024)  # of pictures that the page shows
LATE_SECONDS = 3.0  # beyond the deadline, for a decoder to be ended
IDLE_MIB = 128  # that a decoder takes before its first picture, at most, with what it keeps of earlier ones
CAUSES = {"not-a-picture", "too-many-pixels", "too-much-memory", "decodes-too-long"}
TELLS_TOO_MUCH = re.compile(r"Traceback|0x[0-9a-f]{6}|(?<!\w)/(home|usr|work|tmp|opt|proc|var|etc)/")


@contextmanager
def prepared(folder: Path) -> Iterator[Attempt]:
    """Decoders as the service has them."""
    decoding = _Decoding()
    try:
        yield decoding
    finally:
        decoding.decoders.close()


class _Decoding:
    """An attempt: an odd picture, decoded."""

    def __init__(self) -> None:
        self.decoders, self._pictures = Decoders(LIMITS), OddPictures()

    def __call__(self, chance: random.Random) -> str:
        photo, started = self._pictures(chance), time.monotonic()
        try:
            self._decode(chance, photo)
            came = "decoded"
        except Problem as problem:
            came = answer_of(problem, photo)
        if (seconds := time.monotonic() - started) > LIMITS.decode_seconds + LATE_SECONDS:
            raise Found(f"took {seconds:.1f} s", photo)
        if (mebibytes := _peak_memory()) > IDLE_MIB + LIMITS.decode_memory:
            self.decoders.close()  # the next picture is not to be blamed for it
            self.decoders = Decoders(LIMITS)
            raise Found(f"its decoder held {mebibytes:.0f} MiB", photo)
        return came

    def _decode(self, chance: random.Random, photo: bytes) -> None:
        geometry, side = chance.choice(GEOMETRIES), chance.choice(SIDES)
        if chance.random() < 0.1:
            picture = self.decoders.picture(photo, side)
            if picture.mode != "RGB" or not 0 < max(picture.size) <= side:
                raise Found(f"became {picture.mode} {picture.size}", photo)
            return
        image, _ = self.decoders.pixels(photo, geometry)
        if image.dtype != np.uint8 or image.shape != (geometry.size, geometry.size, 3):
            raise Found(f"became {image.dtype} {list(image.shape)}", photo)


def answer_of(problem: Problem, evidence: bytes) -> str:
    """A refusal's cause. Raises Found where it is not among those that are documented, or no sentence for a visitor."""
    if "ends the program" in problem.detail:
        raise Found("its decoder crashed", evidence)
    if problem.cause not in CAUSES or not is_sentence(problem.detail):
        raise Found(f"was answered {problem.status_code} {problem.cause}: {problem.detail}", evidence)
    return problem.cause


def is_sentence(detail: str) -> bool:
    """Whether what a visitor is told is one line, and tells nothing of this machine."""
    return len(detail) <= 300 and "\n" not in detail and not TELLS_TOO_MUCH.search(detail)


def _peak_memory() -> float:
    """MiB that the decoder has held at most; 0 where there is none, or no Linux."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.is_file():
        return 0.0
    statuses = [Path(f"/proc/{child}/status").read_text() for child in children.read_text().split()]
    return max((int(status.partition("VmHWM:")[2].split()[0]) / 1024 for status in statuses if "VmHWM" in status),
               default=0.0)  # fmt: skip
