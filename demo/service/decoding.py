"""The program that decodes a stranger's photo, in a process that `demo.service.decoders` starts and ends.

An order is a line of JSON and a photo's bytes, an answer one and a picture's. It is no pickle: what a photo has taken
over is no longer to be trusted. Windows knows neither the signal nor the bounds that this needs; there pixels and bytes
alone are bounded.
"""

import contextlib
import io
import json
import os
import signal
import sys
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from runtime.errors import BadPhoto, TooManyPixels, TooMuchMemory
from runtime.files import as_record
from runtime.preprocess import Bounds, decode, timed_pixels
from runtime.spec import Geometry

LONGEST_HEAD = 64 * 2**10  # bytes of a line of JSON
NOTHING = np.empty(0, np.uint8)


@lru_cache(maxsize=8)
def as_text(record: Geometry | Bounds) -> str:
    """A record as JSON, as orders have it."""
    return json.dumps(asdict(record))


def write(to: IO[bytes], head: dict[str, Any], content: bytes) -> None:
    """Send a line of JSON and the bytes that it announces."""
    to.write(json.dumps({**head, "bytes": len(content)}).encode() + b"\n")
    to.write(content)
    to.flush()


def read(source: IO[bytes], most: int) -> tuple[dict[str, Any], bytes]:
    """What `write` sent. Raises ValueError, TypeError or KeyError for more than `most` bytes, and for anything else."""
    head = json.loads(source.readline(LONGEST_HEAD))
    length = int(head["bytes"])
    if not 0 <= length <= most:
        raise ValueError(f"{length} bytes are announced")
    content = source.read(length)
    if len(content) < length:
        raise ValueError("it ended in between")
    return head, content


def main() -> None:
    """Say that all is ready, then decode until stdin closes.

    Arguments: the seconds, MiB of memory and bytes that a photo may take.
    """
    seconds, megabytes, most = map(int, sys.argv[1:])
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print must not break the protocol
    _bound(megabytes)
    write(answers, {}, b"")
    with contextlib.suppress(ValueError):
        while True:
            order, photo = read(orders, most)
            _alarm(seconds)  # nobody catches it: it ends the process, in whatever code that is
            answer, picture = answered(order, photo)
            _alarm(0)
            write(answers, {**answer, "shape": picture.shape}, picture.tobytes())


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _bound(megabytes: int) -> None:
    """Let this process take so much more memory than it has, write no file, and leave no picture of its memory."""
    with contextlib.suppress(ImportError):
        import resource

        with contextlib.suppress(OSError, ValueError, StopIteration):  # only Linux tells a process's data
            lines = Path("/proc/self/status").read_text().splitlines()
            data = next(int(line.split()[1]) for line in lines if line.startswith("VmData"))  # KiB
            resource.setrlimit(resource.RLIMIT_DATA, ((data << 10) + (megabytes << 20),) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answered(order: dict[str, Any], photo: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """The answer to an order: the picture, or a refusal with its status, cause and sentence."""
    source: Any = photo
    if order["name"]:
        source = io.BytesIO(photo)
        source.name = order["name"]
    bounds = _record(Bounds, order["bounds"])
    try:
        if "side" in order:
            side = order["side"]
            picture = decode(source, side, bounds=bounds)
            picture.thumbnail((side, side))
            return {}, np.ascontiguousarray(picture)
        image, milliseconds = timed_pixels(source, _record(Geometry, order["geometry"]), bounds)
        return {"milliseconds": milliseconds}, np.ascontiguousarray(image)
    except TooManyPixels as error:
        return _refused(413, "too-many-pixels", str(error))
    except TooMuchMemory as error:
        return _refused(413, "too-much-memory", str(error))
    except BadPhoto as error:
        return _refused(422, "not-a-picture", str(error))
    except MemoryError:  # once it is decoded
        return _refused(413, "too-much-memory", "the photo takes too much memory; send a smaller copy")


@lru_cache(maxsize=8)  # to read a record takes longer than to send a small photo
def _record(kind: Any, text: str) -> Any:
    return as_record(kind, json.loads(text))


def _refused(status: int, cause: str, detail: str) -> tuple[dict[str, Any], np.ndarray]:
    return {"refused": [status, cause, detail]}, NOTHING


if __name__ == "__main__":
    main()
