"""A double of cuda.bindings.runtime on host memory: tuples `(status, value…)` as the real one returns them.

Strict: what returns an error on hardware returns it here, what is undefined behaviour there raises TwinError. What
runs when: CUDA Runtime API, "API synchronization behavior".
"""

import contextlib
import ctypes
import enum
import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from saji_twin import counts, fault, machine, memory, misuse, number, serves, streams, visible
from saji_twin.streams import Event, Executable, Graph, Refused, Stream, here

_ERRORS = {
    **{"Success": 0, "InvalidValue": 1, "MemoryAllocation": 2, "InvalidMemcpyDirection": 21, "InsufficientDriver": 35},
    **{"DevicesUnavailable": 46, "SystemNotReady": 802, "MpsConnectionFailed": 805},
    **{"NoDevice": 100, "InvalidDevice": 101, "InvalidResourceHandle": 400, "IllegalState": 401, "NotReady": 600},
    **{"NotPermitted": 800, "NotSupported": 801, "StreamCaptureUnsupported": 900, "StreamCaptureInvalidated": 901},
    **{"StreamCaptureMerge": 902, "StreamCaptureUnmatched": 903, "StreamCaptureUnjoined": 904},
    **{"StreamCaptureIsolation": 905, "StreamCaptureImplicit": 906, "CapturedEvent": 907},
    **{"StreamCaptureWrongThread": 908, "Unknown": 999},
}
cudaError_t = enum.IntEnum(
    "cudaError_t",
    {"cudaSuccess" if name == "Success" else f"cudaError{name}": value for name, value in _ERRORS.items()},
)


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost = 0, 1, 2
    cudaMemcpyDeviceToDevice, cudaMemcpyDefault = 3, 4


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed = 0, 1, 2


class cudaStreamCaptureStatus(enum.IntEnum):
    cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive, cudaStreamCaptureStatusInvalidated = 0, 1, 2


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrMultiProcessorCount, cudaDevAttrIntegrated = 16, 18
    cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor = 75, 76


cudaStreamDefault, cudaStreamNonBlocking, cudaStreamLegacy, cudaStreamPerThread = 0, 1, 1, 2
cudaHostAllocDefault, cudaHostAllocPortable, cudaHostAllocMapped, cudaHostAllocWriteCombined = 0, 1, 2, 4
cudaEventDefault, cudaEventBlockingSync, cudaEventDisableTiming, cudaEventInterprocess = 0, 1, 2, 4
cudaStream_t, cudaEvent_t, cudaGraph_t, cudaGraphExec_t = Stream, Event, Graph, Executable


def _status(name: str) -> cudaError_t:
    here.last = name
    return cudaError_t(_ERRORS[name])


def _api(outputs: int = 0, device: bool = True) -> Callable[[Callable[..., Any]], Callable[..., tuple]]:
    """A function of the API: its answer becomes `(status, value…)`, with None for values where it fails."""

    def decorate(function: Callable[..., Any]) -> Callable[..., tuple]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> tuple:
            with streams.lock:
                try:
                    if device:
                        _require_device()
                    answer = function(*arguments, **named)
                except Refused as refused:
                    return (_status(str(refused)), *[None] * outputs)
            values = () if outputs == 0 else (answer,) if outputs == 1 else answer
            return (cudaError_t.cudaSuccess, *values)

        return call

    return decorate


def _require_device() -> None:
    if not serves(machine().cuda, machine().toolkit):
        raise Refused("InsufficientDriver")
    if not visible():
        raise Refused("NoDevice")


def _address(pointer: Any) -> int:
    """The address that an argument means: a number, or an object with the buffer protocol."""
    if pointer is None:
        return 0
    if hasattr(pointer, "__int__") and not hasattr(pointer, "ndim"):
        return int(pointer)
    view = memoryview(pointer)
    if not view.contiguous:
        misuse("a buffer that is not contiguous was given as an address")
    return ctypes.addressof(ctypes.c_char.from_buffer(view.cast("B")))


# Devices and versions


@_api(1)
def cudaGetDeviceCount() -> int:
    return len(visible())


@_api()
def cudaSetDevice(device: int) -> None:
    _gpu(device)
    here.device = device


@_api(1)
def cudaGetDevice() -> int:
    return here.device


def _gpu(device: int) -> Any:
    if not 0 <= device < len(visible()):
        raise Refused("InvalidDevice")
    return visible()[device]


@_api(1)
def cudaDeviceGetAttribute(attr: cudaDeviceAttr, device: int) -> int:
    gpu = _gpu(device)
    values = {75: gpu.capability[0], 76: gpu.capability[1], 16: 64, 18: 0}
    return values[int(attr)]


@_api(1)
def cudaGetDeviceProperties(device: int) -> Any:
    gpu = _gpu(device)
    major, minor = gpu.capability
    size = gpu.memory_mib * 2**20
    return SimpleNamespace(name=gpu.name.encode(), major=major, minor=minor, totalGlobalMem=size, integrated=0)


@_api(2)
def cudaMemGetInfo() -> tuple[int, int]:
    return memory.free_of(here.device), _gpu(here.device).memory_mib * 2**20


@_api(1, device=False)
def cudaDriverGetVersion() -> int:
    return number(machine().cuda)


@_api(1, device=False)
def cudaRuntimeGetVersion() -> int:
    return number(machine().toolkit)


@_api(1, device=False)
def getLocalRuntimeVersion() -> int:
    return number(machine().toolkit)


@_api()
def cudaDeviceSynchronize() -> None:
    streams.whole_device()


def cudaGetLastError() -> tuple:
    last, here.last = here.last, "Success"
    return (cudaError_t(_ERRORS[last]),)


def cudaPeekAtLastError() -> tuple:
    return (cudaError_t(_ERRORS[here.last]),)


def cudaGetErrorName(error: cudaError_t) -> tuple:
    return cudaError_t.cudaSuccess, cudaError_t(error).name.encode()


def cudaGetErrorString(error: cudaError_t) -> tuple:
    return cudaError_t.cudaSuccess, f"the twin's words for {cudaError_t(error).name}".encode()


# Memory


@_api(1)
def cudaMalloc(size: int) -> int:
    streams.unsafe()
    try:
        return memory.allocate(int(size), here.device) if size else 0
    except memory.OutOfMemory:
        raise Refused("MemoryAllocation") from None


@_api()
def cudaFree(devPtr: Any) -> None:
    """Waits for the device first (reference of cuMemFree: implicit synchronisation unless stream-ordered)."""
    streams.unsafe()
    if address := _address(devPtr):
        streams.finish_device(here.device)
        memory.release(address, pinned=False)


@_api(1)
def cudaHostAlloc(size: int, flags: int) -> int:
    if int(flags) & ~7:
        raise Refused("InvalidValue")
    streams.unsafe()
    return memory.pin(int(size)) if size else 0


def cudaMallocHost(size: int) -> tuple:
    return cudaHostAlloc(size, cudaHostAllocDefault)


@_api()
def cudaFreeHost(ptr: Any) -> None:
    streams.unsafe()
    if address := _address(ptr):
        piece = memory.find(address, 0, "cudaFreeHost")
        streams.require_unused(address, piece.size if piece else 1)
        memory.release(address, pinned=True)


@_api()
def cudaMemcpyAsync(dst: Any, src: Any, count: int, kind: cudaMemcpyKind, stream: Any) -> None:
    """Pageable memory is read at once and written before the call returns; pinned memory when the copy runs."""
    target = streams.stream_of(stream, "cudaMemcpyAsync")
    to, source = _ends(_address(dst), _address(src), int(count), kind, "cudaMemcpyAsync")
    pageable = [end for end in (to, source) if end.pageable]
    if pageable and target.capture is not None:
        streams.require_not_capturing(target)
    if not target.capture and (to.pageable or source.pageable):
        counts["pageable copies"] += 1
    staged = ctypes.string_at(source.address, int(count)) if source.pageable and not to.pageable else None
    uses = tuple(end.address for end in (to, source) if not end.device)

    def do() -> None:
        data = staged if staged is not None else ctypes.string_at(source.now(), int(count))
        ctypes.memmove(to.now(), data, int(count))

    work = streams.enqueue(target, do, uses, "cudaMemcpyAsync")
    if to.pageable:
        streams.finish(work)


@_api()
def cudaMemcpy(dst: Any, src: Any, count: int, kind: cudaMemcpyKind) -> None:
    """On the legacy stream, and done when it returns."""
    streams.unsafe()
    to, source = _ends(_address(dst), _address(src), int(count), kind, "cudaMemcpy")
    target = streams.stream_of(0, "cudaMemcpy")
    size = int(count)
    work = streams.enqueue(target, lambda: ctypes.memmove(to.now(), source.now(), size) and None, what="cudaMemcpy")
    streams.finish(work)


@_api()
def cudaMemsetAsync(devPtr: Any, value: int, count: int, stream: Any) -> None:
    target, address = streams.stream_of(stream, "cudaMemsetAsync"), _address(devPtr)
    memory.device_bytes(address, int(count), "cudaMemsetAsync")

    def do() -> None:
        ctypes.memset(memory.device_bytes(address, int(count), "cudaMemsetAsync"), int(value), int(count))

    streams.enqueue(target, do, what="cudaMemsetAsync")


class _End:
    """One end of a copy: where it is, and of what kind."""

    def __init__(self, address: int, size: int, what: str) -> None:
        piece = memory.find(address, size, what)
        self.address, self.size, self.what = address, size, what
        self.pageable = piece is None
        self.device = piece is not None and piece.device is not None

    def now(self) -> int:
        """Its address in this process at the moment of the copy, unless it was freed meanwhile."""
        if self.pageable:
            return self.address
        piece = memory.find(self.address, self.size, self.what)
        assert piece
        return piece.host(self.address)


def _ends(dst: int, src: int, count: int, kind: cudaMemcpyKind, what: str) -> tuple[_End, _End]:
    to, source = _End(dst, count, what), _End(src, count, what)
    real = (source.device * 2 + to.device * 1) if source.device ^ to.device else 3 * source.device
    if int(kind) != cudaMemcpyKind.cudaMemcpyDefault and int(kind) != real:
        asked = cudaMemcpyKind(kind).name
        misuse(f"{what}: asked for {asked}, the addresses are {cudaMemcpyKind(real).name}, which is undefined")
    return to, source


# Streams and events


@_api(1)
def cudaStreamCreate() -> Stream:
    """A blocking stream: it synchronises with the legacy stream."""
    return streams.add(Stream(device=here.device))


@_api(1)
def cudaStreamCreateWithFlags(flags: int) -> Stream:
    if int(flags) not in (cudaStreamDefault, cudaStreamNonBlocking):
        raise Refused("InvalidValue")
    return streams.add(Stream(device=here.device, flags=int(flags)))


@_api()
def cudaStreamDestroy(stream: Any) -> None:
    """Returns at once, what is queued still runs (its reference); the twin runs it now."""
    found = streams.get(Stream, stream, "cudaStreamDestroy")
    if found.capture is not None:
        misuse("cudaStreamDestroy: the stream is being captured")
    streams.finish_stream(found)
    found.alive = False


@_api()
def cudaStreamSynchronize(stream: Any) -> None:
    streams.wait_for(streams.stream_of(stream, "cudaStreamSynchronize"))


@_api()
def cudaStreamQuery(stream: Any) -> None:
    found = streams.stream_of(stream, "cudaStreamQuery")
    streams.require_not_capturing(found)
    if found.queue:
        streams.finish_stream(found)  # it would be ready some day; the next question finds it so
        raise Refused("NotReady")


@_api(1)
def cudaStreamGetFlags(hStream: Any) -> int:
    return streams.stream_of(hStream, "cudaStreamGetFlags").flags


@_api()
def cudaStreamWaitEvent(stream: Any, event: Any, flags: int) -> None:
    found = streams.stream_of(stream, "cudaStreamWaitEvent")
    streams.let_wait(found, streams.get(Event, event, "cudaStreamWaitEvent"))


@_api(1)
def cudaEventCreate() -> Event:
    return streams.add(Event(device=here.device))


@_api(1)
def cudaEventCreateWithFlags(flags: int) -> Event:
    return streams.add(Event(device=here.device, timed=not int(flags) & cudaEventDisableTiming))


@_api()
def cudaEventRecord(event: Any, stream: Any) -> None:
    found = streams.get(Event, event, "cudaEventRecord")
    streams.record(found, streams.stream_of(stream, "cudaEventRecord"))


@_api()
def cudaEventSynchronize(event: Any) -> None:
    found = streams.get(Event, event, "cudaEventSynchronize")
    streams.require_own(found)
    streams.finish(found.work)


@_api()
def cudaEventQuery(event: Any) -> None:
    found = streams.get(Event, event, "cudaEventQuery")
    streams.require_own(found)
    if found.work is not None and not found.work.done:
        streams.finish(found.work)
        raise Refused("NotReady")


@_api(1)
def cudaEventElapsedTime(start: Any, end: Any) -> float:
    began, ended = (streams.get(Event, event, "cudaEventElapsedTime") for event in (start, end))
    if not began.timed or not ended.timed or None in (began.work, ended.work):
        raise Refused("CapturedEvent" if began.captured or ended.captured else "InvalidResourceHandle")
    if began.seconds is None or ended.seconds is None:
        raise Refused("NotReady")
    return 1000 * (ended.seconds - began.seconds)


@_api()
def cudaEventDestroy(event: Any) -> None:
    streams.get(Event, event, "cudaEventDestroy").alive = False


# Captures and graphs


@_api()
def cudaStreamBeginCapture(stream: Any, mode: cudaStreamCaptureMode) -> None:
    if fault("capture") == "refused":
        raise Refused("StreamCaptureUnsupported")
    streams.begin_capture(streams.stream_of(stream, "cudaStreamBeginCapture"), int(mode))
    if fault("legacy"):
        _in_another_thread(streams.use_legacy)


def _in_another_thread(do: Callable[[], None]) -> None:
    """What PyTorch or anybody else in this process may do at any time; their own error is their affair."""

    def run() -> None:
        with contextlib.suppress(Refused):
            do()

    other = threading.Thread(target=run)
    other.start()
    other.join()


@_api(1)
def cudaStreamEndCapture(stream: Any) -> Graph:
    return streams.end_capture(streams.stream_of(stream, "cudaStreamEndCapture"))


@_api(1)
def cudaStreamIsCapturing(stream: Any) -> cudaStreamCaptureStatus:
    found = streams.stream_of(stream, "cudaStreamIsCapturing")
    if streams.is_legacy(found) and any(s.capture and s.blocking for s in streams.all_streams(here.device)):
        raise Refused("StreamCaptureImplicit")
    return cudaStreamCaptureStatus(0 if found.capture is None else 2 if found.capture.broken else 1)


@_api(1)
def cudaThreadExchangeStreamCaptureMode(mode: cudaStreamCaptureMode) -> cudaStreamCaptureMode:
    before, here.mode = here.mode, int(mode)
    return cudaStreamCaptureMode(before)


@_api(2)
def cudaGraphGetNodes(graph: Any, numNodes: int = 0) -> tuple[list[Any], int]:
    count = len(streams.get(Graph, graph, "cudaGraphGetNodes").works)
    return list(range(1, count + 1))[: int(numNodes)], int(numNodes) or count


@_api(1)
def cudaGraphInstantiate(graph: Any, flags: int) -> Executable:
    found = streams.get(Graph, graph, "cudaGraphInstantiate")
    return streams.add(Executable(works=list(found.works), device=here.device))


@_api()
def cudaGraphUpload(graphExec: Any, stream: Any) -> None:
    streams.get(Executable, graphExec, "cudaGraphUpload")
    streams.enqueue(streams.stream_of(stream, "cudaGraphUpload"), lambda: None, what="cudaGraphUpload")


@_api()
def cudaGraphLaunch(graphExec: Any, stream: Any) -> None:
    found = streams.get(Executable, graphExec, "cudaGraphLaunch")
    target = streams.stream_of(stream, "cudaGraphLaunch")
    for do, uses in found.works:
        streams.enqueue(target, do, uses, "cudaGraphLaunch")


@_api()
def cudaGraphDestroy(graph: Any) -> None:
    found = streams.get(Graph, graph, "cudaGraphDestroy")
    found.alive, found.works = False, []


@_api()
def cudaGraphExecDestroy(graphExec: Any) -> None:
    found = streams.get(Executable, graphExec, "cudaGraphExecDestroy")
    found.alive, found.works = False, []
