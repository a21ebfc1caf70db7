"""Streams, events, captures and graphs: work is queued, and takes effect no sooner than something waits for it.

Everything runs in the thread that waits, as late as the documentation allows, so that a missing wait is always seen.
Rules of capture: CUDA C++ Programming Guide, "Creating a Graph Using Stream Capture", and the reference of
cudaThreadExchangeStreamCaptureMode. Standard library only.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from saji_twin import misuse

NONBLOCKING = 1  # cudaStreamNonBlocking
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2  # cudaStreamCaptureMode
lock = threading.RLock()
_numbers = itertools.count(0x5000_0010, 0x10)  # handles
_captures = itertools.count(1)


class Refused(Exception):
    """A CUDA function returns this error, by its name without "cudaError"."""


class Here(threading.local):
    """What CUDA keeps by thread: the current device, the last error, the mode of captures."""

    device, last, mode = 0, "Success", GLOBAL


here = Here()


def _nothing() -> None:
    """What work that is done still has to do."""


@dataclass(eq=False)
class Work:
    """Something queued on a stream, with what must be done before it elsewhere, and the host memory that it reads."""

    do: Callable[[], None]
    stream: "Stream"
    after: list["Work"] = field(default_factory=list)
    uses: tuple[int, ...] = ()
    done: bool = False


@dataclass(eq=False)
class Capture:
    """A capture in progress: its rules, who began it, and what it holds so far."""

    mode: int
    thread: int
    number: int
    works: list[tuple[Callable[[], None], tuple[int, ...]]] = field(default_factory=list)
    broken: bool = False


@dataclass(eq=False)
class Handle:
    """A CUDA object: its number, and whether it is still there."""

    number: int = field(default_factory=lambda: next(_numbers))
    alive: bool = True

    def __int__(self) -> int:
        return self.number

    __index__ = __int__


@dataclass(eq=False)
class Stream(Handle):
    device: int = 0
    flags: int = 0
    queue: deque[Work] = field(default_factory=deque)
    last: Work | None = None
    capture: Capture | None = None

    @property
    def blocking(self) -> bool:
        return not self.flags & NONBLOCKING


@dataclass(eq=False)
class Event(Handle):
    device: int = 0
    timed: bool = True
    work: Work | None = None
    captured: bool = False
    seconds: float | None = None


@dataclass(eq=False)
class Graph(Handle):
    works: list[tuple[Callable[[], None], tuple[int, ...]]] = field(default_factory=list)


@dataclass(eq=False)
class Executable(Handle):
    works: list[tuple[Callable[[], None], tuple[int, ...]]] = field(default_factory=list)
    device: int = 0


objects: dict[int, Handle] = {}
_legacy: dict[int, Stream] = {}


def add(thing: Any) -> Any:
    """Register a new object."""
    objects[int(thing)] = thing
    return thing


def get(kind: type, handle: Any, what: str) -> Any:
    """The object of a handle; what is none, is gone, or is of another kind is misuse."""
    try:
        thing = objects.get(int(handle))
    except (TypeError, ValueError):
        thing = None
    if not isinstance(thing, kind):
        misuse(f"{what}: {handle!r} is no {kind.__name__.lower()}")
    if not thing.alive:
        misuse(f"{what}: the {kind.__name__.lower()} was destroyed")
    return thing


def stream_of(handle: Any, what: str) -> Stream:
    """The stream of a handle; 0 and 1 are the legacy stream of the current device."""
    if int(handle or 0) in (0, 1):
        return _legacy.setdefault(here.device, Stream(number=0, device=here.device))
    if int(handle) == 2:
        misuse(f"{what}: the twin has no per-thread default stream")
    return get(Stream, handle, what)


def is_legacy(stream: Stream) -> bool:
    return stream.number == 0


def all_streams(device: int) -> list[Stream]:
    """The living ones of a device, without the legacy stream."""
    return [o for o in objects.values() if isinstance(o, Stream) and o.alive and o.device == device]


def enqueue(stream: Stream, do: Callable[[], None], uses: tuple[int, ...] = (), what: str = "") -> Work | None:
    """Queue work; None where it was captured instead. Raises Refused as the rules of captures say."""
    if stream.device != here.device:
        misuse(f"{what}: the stream is of device {stream.device}, current is device {here.device}")
    if is_legacy(stream):
        use_legacy()
    if stream.capture is not None:
        if stream.capture.broken:
            raise Refused("StreamCaptureInvalidated")
        stream.capture.works.append((do, uses))
        return None
    after = []
    if is_legacy(stream):
        after = [s.last for s in all_streams(stream.device) if s.blocking and s.last]
    elif stream.blocking and (legacy := _legacy.get(stream.device)) and legacy.last:
        after = [legacy.last]
    work = Work(do, stream, after, uses)
    stream.queue.append(work)
    stream.last = work
    return work


def finish(work: Work | None) -> None:
    """Let everything happen up to some work, and it."""
    while work is not None and not work.done:
        first = work.stream.queue[0]
        for earlier in first.after:
            finish(earlier)
        if not first.done:
            first.do()
            first.do, first.done = _nothing, True  # what it held is let go
            work.stream.queue.popleft()


def finish_stream(stream: Stream) -> None:
    finish(stream.last)


def finish_device(device: int) -> None:
    for stream in [*all_streams(device), *([_legacy[device]] if device in _legacy else [])]:
        finish_stream(stream)


def require_unused(address: int, size: int) -> None:
    """Pinned memory that queued work still reads or writes must not be freed."""
    for stream in [o for o in objects.values() if isinstance(o, Stream)]:
        for work in stream.queue:
            if any(address <= used < address + size for used in work.uses):
                misuse(f"cudaFreeHost: queued work still uses the memory at {address:#x}; wait for its stream first")


def wait_for(stream: Stream) -> None:
    """cudaStreamSynchronize: of a capturing stream it is invalid, and breaks the capture."""
    if is_legacy(stream):
        use_legacy()
    require_not_capturing(stream)
    finish_stream(stream)


def require_not_capturing(stream: Stream) -> None:
    if stream.capture is not None:
        stream.capture.broken = True
        raise Refused("StreamCaptureUnsupported")


def use_legacy() -> None:
    """The legacy stream is used, by any thread: invalid while a blocking stream of the device is being captured.

    "When any stream in the same context is being captured, and it was not created with cudaStreamNonBlocking, any
    attempted use of the legacy stream is invalid" (programming guide, Prohibited and Unhandled Operations).
    """
    broken = [s for s in all_streams(here.device) if s.capture is not None and s.blocking]
    for stream in broken:
        assert stream.capture
        stream.capture.broken = True
    if broken:
        raise Refused("StreamCaptureImplicit")


def unsafe() -> None:
    """A potentially unsafe call such as cudaMalloc, by the rules of cudaThreadExchangeStreamCaptureMode."""
    prohibiting = []
    for stream in [o for o in objects.values() if isinstance(o, Stream) and o.capture]:
        capture, mine = stream.capture, stream.capture.thread == threading.get_ident()
        by_mine = mine and capture.mode != RELAXED and here.mode != RELAXED
        by_other = not mine and capture.mode == GLOBAL and here.mode == GLOBAL
        if by_mine or by_other:
            prohibiting.append(capture)
    for capture in prohibiting:
        capture.broken = True
    if prohibiting:
        raise Refused("StreamCaptureUnsupported")


def whole_device() -> None:
    """cudaDeviceSynchronize: a handle that encompasses an active capture must not be waited for."""
    capturing = [s for s in all_streams(here.device) if s.capture is not None]
    for stream in capturing:
        assert stream.capture
        stream.capture.broken = True
    if capturing:
        raise Refused("StreamCaptureUnsupported")
    finish_device(here.device)


def begin_capture(stream: Stream, mode: int) -> None:
    if is_legacy(stream):
        raise Refused("StreamCaptureUnsupported")
    if stream.capture is not None:
        raise Refused("IllegalState")
    stream.capture = Capture(mode, threading.get_ident(), next(_captures))


def end_capture(stream: Stream) -> Graph:
    capture = stream.capture
    if capture is None:
        raise Refused("IllegalState")
    if capture.mode != RELAXED and capture.thread != threading.get_ident():
        capture.broken = True
        raise Refused("StreamCaptureWrongThread")
    stream.capture = None
    if capture.broken:
        raise Refused("StreamCaptureInvalidated")
    return add(Graph(works=capture.works))


def record(event: Event, stream: Stream) -> None:
    if event.device != stream.device:
        raise Refused("InvalidResourceHandle")

    def do() -> None:
        event.seconds = time.perf_counter()

    event.seconds = None
    event.work = enqueue(stream, do, what="cudaEventRecord")
    event.captured = event.work is None


def require_own(event: Event) -> None:
    if event.captured:
        for stream in [o for o in objects.values() if isinstance(o, Stream) and o.capture]:
            assert stream.capture
            stream.capture.broken = True
        raise Refused("CapturedEvent")


def let_wait(stream: Stream, event: Event) -> None:
    """cudaStreamWaitEvent."""
    if event.captured or stream.capture is not None:
        misuse("cudaStreamWaitEvent: the twin captures one stream at a time, without forks")
    if event.work is not None and (work := enqueue(stream, lambda: None, what="cudaStreamWaitEvent")):
        work.after.append(event.work)
