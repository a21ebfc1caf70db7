"""Photos are decoded in processes of their own, each ended where a photo takes too long or too much, or crashes it.

What reads strangers' bytes are libraries in C, which nothing else stops: the service and its other visitors go on.
"""

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from demo.service import decoding
from demo.service.limits import Limits
from demo.service.pipes import widen
from demo.service.problem import Problem, busy, too_large
from runtime.spec import Geometry

Photo = bytes | BinaryIO  # encoded: the body of a request, or a file of `demo.page.uploads`

ROOT = Path(__file__).resolve().parents[2]
ENDING_SECONDS = 0.5  # in which a decoder whose answer broke off has ended, or never will
NO_ANSWER = (OSError, ValueError, KeyError, TypeError)  # of what has ended, or is no longer itself
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # more would take memory, with nothing to do

log = logging.getLogger("saji.decoding")


class Decoders:
    """Up to `limits.decoders` processes, each started once there is a photo and none is free; close them at the end.

    They are `failing` once none could be started, until there is one again.

    Everything raises Problem: 422 for what is no picture, 413 for what takes more bytes, pixels, memory or time than
    the `limits` let a photo have.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self.failing = limits, False
        # None stands for a process that is yet to be started; the one that was used last is warm
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(limits.decoders):
            self._free.put(None)

    def pixels(self, photo: Photo, geometry: Geometry) -> tuple[np.ndarray, dict[str, float]]:
        """What a model sees, uint8 `[size, size, 3]` RGB, and the milliseconds that decode and geometry took."""
        answer, image = self._ask(photo, {"geometry": decoding.as_text(geometry)}, geometry.size)
        return image, answer["milliseconds"]

    def picture(self, photo: Photo, side: int) -> Image.Image:
        """The photo upright, mode "RGB", no side of it longer than `side`."""
        return Image.fromarray(self._ask(photo, {"side": side}, side)[1])

    def _ask(self, photo: Photo, order: dict[str, Any], side: int) -> tuple[dict[str, Any], np.ndarray]:
        content, name = self.read(photo)
        order |= {"name": name, "bounds": decoding.as_text(self._limits.photo)}
        for again in (False, True):
            with contextlib.suppress(_Blameless), self._process(again) as process:
                answer, picture = process.ask(order, content, 3 * side * side)
                break
        else:
            raise _no_decoder("two have ended by themselves")
        if "refused" in answer:
            raise Problem(*answer["refused"])
        return answer, picture

    def warm(self) -> None:
        """Have one started where none is free. Raises Problem 503."""
        with self._process(fresh=False):
            pass

    def read(self, photo: Photo) -> tuple[bytes, str]:
        """The content of a photo, and the name of its file if it is one."""
        if isinstance(photo, bytes):  # they were counted as they came in
            return photo, ""
        name = PurePath(photo.name).name
        photo.seek(0)
        content = photo.read(self._limits.bytes + 1)
        if len(content) > self._limits.bytes:
            raise too_large(name, self._limits.bytes)
        return content, name

    @contextmanager
    def _process(self, fresh: bool) -> Iterator["_Process"]:
        """A process that nobody else uses meanwhile. After any exception another one takes its place."""
        process = self._free.get()
        try:
            if process and (fresh or process.ended):
                process.close()
                process = None
            process = process or _Process(self._limits)
            self.failing = False
            yield process
        except BaseException:
            if process:
                process.close()
            else:
                self.failing = True
            process = None
            raise
        finally:
            self._free.put(process)

    def close(self) -> None:
        """End the processes; one that is still decoding has its deadline."""
        for _ in range(self._limits.decoders):
            with contextlib.suppress(queue.Empty):
                if process := self._free.get_nowait():
                    process.close()


class _Blameless(Exception):
    """A decoder ended and the photo need not be the cause: from outside, as by a system that is out of memory, or by
    what an earlier photo did to its memory.
    """


def _no_decoder(reason: str) -> Problem:
    log.error("no decoder", extra={"facts": {"reason": reason}})
    return busy(503, "no-decoder", "photos cannot be decoded at the moment; try again soon")


class _Process:
    """A decoder as its service sees it. Raises Problem 503 where it cannot be started."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._used = limits, False
        bounds = map(str, (limits.decode_seconds, limits.decode_memory, limits.bytes))
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", decoding.__name__, *bounds],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ | ONE_THREAD,
                start_new_session=True,  # Ctrl-C is for the service alone
            )  # fmt: skip
        except OSError as error:
            raise _no_decoder(f"none can be started ({error.strerror})") from None
        assert self._popen.stdin and self._popen.stdout
        for pipe in (self._popen.stdin, self._popen.stdout):
            widen(pipe)  # so that a photo is handed over in a few pieces
        try:
            decoding.read(self._popen.stdout, 0)
        except NO_ANSWER:
            self.close()
            raise _no_decoder("one has ended before it was ready") from None

    def ask(self, order: dict[str, Any], photo: bytes, most: int) -> tuple[dict[str, Any], np.ndarray]:
        """The answer, and its picture of up to `most` bytes. Raises Problem where there is none, or _Blameless."""
        assert self._popen.stdin and self._popen.stdout
        try:
            decoding.write(self._popen.stdin, order, photo)
            answer, content = decoding.read(self._popen.stdout, most)
            picture = np.frombuffer(content, np.uint8).reshape(answer["shape"])
            self._used = True
            return answer, picture
        except NO_ANSWER:
            name, status = order["name"] or "the file", self._ended_by_itself()
            if hasattr(signal, "SIGALRM") and status == -signal.SIGALRM:
                detail = f"{name} takes more than {self._limits.decode_seconds} s to decode; send a smaller copy"
                raise Problem(413, "decodes-too-long", detail) from None
            if self._used:
                raise _Blameless from None
            detail = f"{name} is damaged (it ends the program that decodes it); send a complete file"
            raise Problem(422, "not-a-picture", detail) from None

    def _ended_by_itself(self) -> int:
        """The exit status of one that is no longer of use. Raises _Blameless."""
        try:
            status = self._popen.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()
        if hasattr(signal, "SIGKILL") and status == -signal.SIGKILL:
            raise _Blameless
        return status

    @property
    def ended(self) -> bool:
        """Whether it has ended since it was last asked, as where the system is out of memory."""
        return self._popen.poll() is not None

    def close(self) -> None:
        """End it, whatever it is at."""
        self._popen.kill()
        self._popen.communicate()
