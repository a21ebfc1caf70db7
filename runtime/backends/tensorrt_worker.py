"""What runs a TensorRT engine for one thread: context, stream, buffers and perhaps a CUDA graph."""

from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.errors import SajiError


class Worker:
    """One thread's execution context, stream and device buffers; with `capture`, the graph of one batch size."""

    def __init__(self, context: Any, input_bytes: int, output_bytes: int, capture: bool) -> None:
        from cuda.bindings import runtime as cuda

        self.cuda, self.context, self.capture = cuda, context, capture
        self.graph: Any = None
        self.stream = self._check(cuda.cudaStreamCreate())
        self.images, self.logits = self._check(cuda.cudaMalloc(input_bytes)), self._check(cuda.cudaMalloc(output_bytes))
        self.context.set_tensor_address("images", self.images)
        self.context.set_tensor_address("logits", self.logits)

    def upload(self, images: np.ndarray) -> None:
        """Copy photos to the GPU, on the stream."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self.cuda.cudaMemcpyAsync(self.images, images.ctypes.data, images.nbytes, kind, self.stream))

    def execute(self) -> bool:
        """Run what was uploaded, on the stream; False when TensorRT refuses."""
        if self.graph is not None:
            self._check(self.cuda.cudaGraphLaunch(self.graph, self.stream))
            return True
        done = bool(self.context.execute_async_v3(self.stream))
        if done and self.capture:  # only now: the first call of a shape allocates, which a capture must not
            self.graph = self._captured()
        return done

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

    def _captured(self) -> Any:
        cuda = self.cuda
        self._check(cuda.cudaStreamSynchronize(self.stream))
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(cuda.cudaStreamBeginCapture(self.stream, mode))
        self.context.execute_async_v3(self.stream)
        graph = self._check(cuda.cudaStreamEndCapture(self.stream))
        executable = self._check(cuda.cudaGraphInstantiate(graph, 0))
        self._check(cuda.cudaGraphDestroy(graph))
        return executable

    def download(self, logits: np.ndarray) -> None:
        """Copy the answers back and wait for the stream."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self.cuda.cudaMemcpyAsync(logits.ctypes.data, self.logits, logits.nbytes, kind, self.stream))
        self._check(self.cuda.cudaStreamSynchronize(self.stream))

    def _check(self, result: tuple) -> Any:
        if result[0] != self.cuda.cudaError_t.cudaSuccess:
            raise SajiError(f"the GPU reports {result[0].name}; check it with: nvidia-smi")
        return result[1] if len(result) > 1 else None

    def close(self) -> None:
        """Free graph, buffers and stream."""
        self.cuda.cudaStreamSynchronize(self.stream)
        if self.graph is not None:
            self.cuda.cudaGraphExecDestroy(self.graph)
        self.cuda.cudaFree(self.images)
        self.cuda.cudaFree(self.logits)
        self.cuda.cudaStreamDestroy(self.stream)
