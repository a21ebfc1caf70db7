"""A layer before the calls by which Python writes files, in a process that does nothing else afterwards.

It knows what goes through `open` and `os`: libraries that write by themselves, in C, are not seen by it.
"""

import builtins
import io
import itertools
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from runtime import files

Act = Callable[[int, str], None]  # before each call: its number from 1, and its kind
KINDS = {
    **dict.fromkeys(("mkdir", "chmod"), "make"),
    **dict.fromkeys(("rename", "replace", "link"), "rename"),
    **dict.fromkeys(("unlink", "remove", "rmdir"), "remove"),
    "fsync": "sync",
}
IN_MEMORY = ("/dev/", "/proc/")
ADDS = ("make", "rename", "open", "write", "sync")  # what a full disk may refuse; files can still be removed


def install(act: Act, trace: Path) -> None:
    """Put the layer into this process for good; each call is a line of the file `trace`."""
    lines = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    numbers = itertools.count(1)

    def before(kind: str, name: Any) -> None:
        number = next(numbers)
        os.write(lines, f"{number} {kind} {name}\n".encode(errors="backslashreplace"))
        act(number, kind)

    def guarded(call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def instead(*arguments: Any, **more: Any) -> Any:
            before(kind, arguments[0])
            return call(*arguments, **more)

        return instead

    for name, kind in KINDS.items():
        setattr(os, name, guarded(getattr(os, name), kind))
    files._exchanged = guarded(files._exchanged, "rename")  # type: ignore[assignment]
    builtins.open = io.open = partial(_opened, builtins.open, before)  # type: ignore[assignment]


def _opened(
    plain: Callable[..., Any], before: Callable[[str, Any], None], file: Any, mode: str = "r", *more: Any, **how: Any
) -> Any:
    """As `open`, with each write of the system's told before; what is only read, or no path, is as it was."""
    writes = set(mode) & set("wax+")
    if not writes or isinstance(file, int) or more or how.get("opener") or str(file).startswith(IN_MEMORY):
        return plain(file, mode, *more, **how)
    before("open", file)

    class Told(io.FileIO):
        def write(self, content: Any) -> int:
            before("write", file)
            return super().write(content)

    raw = Told(file, mode.replace("b", "").replace("t", ""))
    if how.get("buffering") == 0:
        return raw
    buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, how.get("encoding"), how.get("errors"), how.get("newline"))


def watch(trace: Path) -> None:
    """Only count."""
    install(lambda number, kind: None, trace)


def kill_at(at: int, trace: Path) -> None:
    """End the whole group of processes before call `at`, as `kill -9` does."""

    def act(number: int, kind: str) -> None:
        if number == at:
            os.killpg(0, 9)

    install(act, trace)


def fail_at(at: int, error: int, lasts: bool, trace: Path) -> None:
    """Let call `at` fail with an `errno`, or the first after it that could; where it `lasts`, all later ones, too."""
    failed = False

    def act(number: int, kind: str) -> None:
        nonlocal failed
        if number >= at and kind in ADDS and (lasts or not failed):
            failed = True
            raise OSError(error, os.strerror(error))

    install(act, trace)


def jump(seed: int, trace: Path) -> None:
    """Let the clock jump by up to a day, forward and back, each time that it is read, and the time zone change."""
    chance, real = random.Random(seed), time.time
    time.time = lambda: real() + chance.uniform(-86400, 86400)
    os.environ["TZ"] = chance.choice(("UTC", "Asia/Jakarta", "America/St_Johns", "Pacific/Apia"))
    time.tzset()
    watch(trace)
