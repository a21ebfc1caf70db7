"""What one call at a time needs to run an engine on a GPU, and how calls from many threads share a few of them."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from runtime.backends.base import temporary_cause
from runtime.errors import SajiError, Unavailable
from runtime.spec import FAMILIARITY, side_by_side


class Worker:
    """A stream, buffers on both sides, and execution contexts of one engine; one call at a time, from any thread.

    The largest batch of the engine, `[N, H, W, 3]` uint8, decides the size of the buffers; those of the host are
    pinned, so that copies from and to them run on the stream. `context` makes an execution context. With `capture` each
    batch size has a context and a CUDA graph of its own, as TensorRT asks for; their activations share one piece of
    memory, `shared` bytes, since no two run at once. Where a graph cannot be captured the kernels are launched one by
    one and `otherwise` says why. `familiarity` is whether the engine has that second output.

    Raises Unavailable where the GPU has not enough memory, or is another's for now.
    """

    def __init__(
        self,
        context: Callable[[], Any],
        largest: tuple[int, ...],
        classes: int,
        capture: bool = False,
        shared: int = 0,
        familiarity: bool = False,
    ) -> None:
        from cuda.bindings import runtime as cuda

        self.cuda, self.make, self.capture, self.shared, self.otherwise = cuda, context, capture, shared, ""
        self.contexts: dict[int, Any] = {}
        self.graphs: dict[int, Any] = {}
        self.answers = {"logits": 4 * classes} | ({FAMILIARITY: 4} if familiarity else {})  # bytes for each photo
        self.freed_by: list[tuple[Callable[..., Any], Any]] = []  # in the order of their making
        try:
            # Not ordered after the legacy default stream: what other threads do there would break a capture
            stream = cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)
            self.stream = self._keep(cuda.cudaStreamDestroy, stream)
            pixels, answers = int(np.prod(largest)), {n: largest[0] * each for n, each in self.answers.items()}
            self.images, self.scratch = self._device(pixels), self._device(shared)
            self.outputs = {name: self._device(size) for name, size in answers.items()}
            self.sent, self.received = self._pinned(pixels), {n: self._pinned(size) for n, size in answers.items()}
            self._context(largest[0])
        except BaseException:
            self.close()
            raise

    def run(self, images: np.ndarray, classes: int) -> np.ndarray:
        """Photos uint8 `[N, H, W, 3]` to the GPU, through the engine and back: float32 outputs side by side."""
        context = self.upload(images)
        self.execute(context, len(images))
        return self.download(len(images), classes)

    def upload(self, images: np.ndarray) -> Any:
        """Put the copy of photos to the GPU on the stream; gives the execution context that is set to their shape."""
        context, cuda = self._context(len(images)), self.cuda
        if not context.set_input_shape("images", images.shape):
            raise SajiError(f"the engine takes no photos of shape {list(images.shape)}")
        self.sent[: images.nbytes] = images.reshape(-1).view(np.uint8)
        way = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(cuda.cudaMemcpyAsync(self.images, self.sent.ctypes.data, images.nbytes, way, self.stream))
        return context

    def execute(self, context: Any, batch: int) -> None:
        """Put what computes on the stream: the graph of this batch size, or its kernels one by one."""
        if batch in self.graphs:
            self._check(self.cuda.cudaGraphLaunch(self.graphs[batch], self.stream))
            return
        if not context.execute_async_v3(self.stream):
            raise SajiError("TensorRT refuses to run")
        if self.capture and not self.otherwise:  # only now: a shape's first call allocates, which a capture must not
            self._capture(context, batch)

    def download(self, batch: int, classes: int) -> np.ndarray:
        """Put the copies of the answers on the stream and wait for them; float32 outputs of `batch` photos."""
        way, parts = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost, []
        for name, each in self.answers.items():
            part = self.received[name][: batch * each]
            copy = part.ctypes.data, self.outputs[name], part.nbytes, way, self.stream
            self._check(self.cuda.cudaMemcpyAsync(*copy))
            parts.append(part.view(np.float32))
        self._check(self.cuda.cudaStreamSynchronize(self.stream))
        logits, *more = parts
        return side_by_side(logits.reshape(batch, classes).copy(), *more)

    def timed(self, work: Callable[[], None]) -> float:
        """Milliseconds on the stream from before to after what `work` puts there, by two CUDA events; waits for it."""
        cuda = self.cuda
        began, ended = self._check(cuda.cudaEventCreate()), self._check(cuda.cudaEventCreate())
        try:
            self._check(cuda.cudaEventRecord(began, self.stream))
            work()
            self._check(cuda.cudaEventRecord(ended, self.stream))
            self._check(cuda.cudaEventSynchronize(ended))
            return float(self._check(cuda.cudaEventElapsedTime(began, ended)))
        finally:
            cuda.cudaEventDestroy(began)
            cuda.cudaEventDestroy(ended)

    def close(self) -> None:
        """Free graphs, contexts, buffers and stream, in this order."""
        if self.freed_by:
            self.cuda.cudaStreamSynchronize(self.stream)
        for graph in self.graphs.values():
            self.cuda.cudaGraphExecDestroy(graph)
        self.graphs.clear()
        self.contexts.clear()
        while self.freed_by:
            free, what = self.freed_by.pop()
            free(what)

    def _context(self, batch: int) -> Any:
        """The execution context for a batch size; without captured graphs one serves all."""
        key = batch if self.capture else 0
        if key not in self.contexts:
            context = self.make()
            if context is None:
                raise Unavailable("the GPU has not enough memory left for it; see what holds it with: nvidia-smi")
            if self.shared:
                context.set_device_memory(self.scratch, self.shared)
            context.set_tensor_address("images", self.images)
            for name, address in self.outputs.items():
                context.set_tensor_address(name, address)
            self.contexts[key] = context
        return self.contexts[key]

    def _capture(self, context: Any, batch: int) -> None:
        """Keep what the context puts on the stream as a graph; where that cannot be, say why and go on without."""
        cuda = self.cuda
        self._check(cuda.cudaStreamSynchronize(self.stream))
        # Whatever other threads do with the GPU meanwhile is no part of it, and allowed
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        success, done, graph = cuda.cudaError_t.cudaSuccess, False, None
        (status,) = cuda.cudaStreamBeginCapture(self.stream, mode)
        if status == success:
            done = bool(context.execute_async_v3(self.stream))
            status, graph = cuda.cudaStreamEndCapture(self.stream)  # after a refusal, too, or it goes on
        if done and status == success:
            status, *rest = cuda.cudaGraphInstantiate(graph, 0)
            if status == success:
                self.graphs[batch] = rest[0]
        if batch not in self.graphs:
            why = status.name if status != success else "TensorRT refuses to run in a capture"
            self.otherwise = f"runs without the CUDA graph that it was asked for ({why})"
            cuda.cudaGetLastError()  # reported: it is not to be taken for the next call's
        if graph is not None:
            cuda.cudaGraphDestroy(graph)

    def _device(self, nbytes: int) -> Any:
        return self._keep(self.cuda.cudaFree, self.cuda.cudaMalloc(nbytes)) if nbytes else 0

    def _pinned(self, nbytes: int) -> np.ndarray:
        """Memory of the host that the GPU copies from and to by itself, uint8 `[nbytes]`."""
        import ctypes

        address = self._keep(self.cuda.cudaFreeHost, self.cuda.cudaMallocHost(nbytes))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(address)))

    def _keep(self, free: Callable[..., Any], made: tuple) -> Any:
        """The result of a call that allocates, which `close` frees."""
        what = self._check(made)
        self.freed_by.append((free, what))
        return what

    def _check(self, result: tuple) -> Any:
        status, errors = result[0], self.cuda.cudaError_t
        if status != errors.cudaSuccess:
            kind = Unavailable if temporary_cause(status.name) else SajiError
            raise kind(f"the GPU reports {status.name}; look with: nvidia-smi")
        return result[1] if len(result) > 1 else None


class Workers:
    """At most `most` workers, each lent to one call at a time; a call that finds all of them busy waits."""

    def __init__(self, make: Callable[[], Worker], most: int) -> None:
        self.make, self.most = make, most
        self.all: list[Worker] = []
        self.free: queue.LifoQueue[Worker] = queue.LifoQueue()  # the one that ran last has its data in the caches
        self.lock = threading.Lock()
        self.free.put(self._made())  # at once, so that what cannot be is said when the engine is opened

    @property
    def otherwise(self) -> str:
        """What a worker had to do otherwise than asked for; empty where all do as asked."""
        return next((worker.otherwise for worker in self.all if worker.otherwise), "")

    @contextmanager
    def lent(self) -> Iterator[Worker]:
        """A worker for one call."""
        worker = self._taken()
        try:
            yield worker
        finally:
            self.free.put(worker)

    def _taken(self) -> Worker:
        try:
            return self.free.get_nowait()
        except queue.Empty:
            with self.lock:
                if len(self.all) < self.most:
                    try:
                        return self._made()
                    except Unavailable:  # no room for another: those that are there are shared
                        self.most = len(self.all)
        return self.free.get()

    def _made(self) -> Worker:
        worker = self.make()
        self.all.append(worker)
        return worker

    def close(self) -> None:
        """Free every worker; none may be lent."""
        while self.all:
            self.all.pop().close()
