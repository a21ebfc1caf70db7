"""The worker that runs engines, with a context that copies: each answer is then known, whatever TensorRT does."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lab.gpu_check.step import Place
from runtime.benchmark.rows import Row
from runtime.errors import SajiError

LARGEST, CLASSES = (8, 64, 64, 3), 3072  # so that the answers to a photo are as many bytes as the photo
CAPTURE_SECONDS = 0.3  # that a capture is kept open for other threads to disturb


def worker(_: Place) -> Iterator[Row]:
    """Copies arrive, replayed graphs see new photos, captures bear other threads, and a refusal in one is noticed."""
    from cuda.bindings import runtime as cuda

    for check in (_copies, _replays, _bears_others, _notices_refusal):
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield {"check": name, **check(cuda), "says": name}
        except (AssertionError, SajiError) as error:
            yield {"check": name, "wrong": f"{name}: {error}"}


class Copying:
    """Stands for an execution context: it computes by copying on the GPU from images to logits.

    It refuses from the call `refuse_from` on, the first being 1, and takes `pause` seconds to put itself on the stream.
    """

    def __init__(self, cuda: Any, pause: float = 0.0, refuse_from: int = 0) -> None:
        self.cuda, self.pause, self.refuse_from, self.calls, self.nbytes = cuda, pause, refuse_from, 0, 0
        self.addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: Any) -> bool:
        """Where `images` or `logits` are on the GPU."""
        self.addresses[name] = int(address)
        return True

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        """The shape of the photos, uint8 `[N, H, W, 3]`."""
        self.nbytes = int(np.prod(shape))
        return True

    def set_device_memory(self, _address: Any, _nbytes: int) -> None:
        """It needs no memory of its own."""

    def execute_async_v3(self, stream: Any) -> bool:
        """Put the copy on the stream."""
        self.calls += 1
        if self.refuse_from and self.calls >= self.refuse_from:
            return False
        time.sleep(self.pause)
        way = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        copy = (self.addresses["logits"], self.addresses["images"], self.nbytes, way, stream)
        return bool(self.cuda.cudaMemcpyAsync(*copy)[0] == self.cuda.cudaError_t.cudaSuccess)


def _copies(cuda: Any) -> Row:
    return _answers(lambda: Copying(cuda), capture=False)


def _replays(cuda: Any) -> Row:
    return _answers(lambda: Copying(cuda), capture=True)


def _bears_others(cuda: Any) -> Row:
    """Another thread uses the legacy stream all the while, as freeing and loading an engine may."""
    statuses, stop = set[str](), threading.Event()

    def others() -> None:
        pointer, legacy = cuda.cudaMalloc(1024)[1], 0
        while not stop.is_set():
            statuses.add(cuda.cudaMemsetAsync(pointer, 0, 1024, legacy)[0].name)
            statuses.add(cuda.cudaStreamSynchronize(legacy)[0].name)
        cuda.cudaFree(pointer)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        found = _answers(lambda: Copying(cuda, CAPTURE_SECONDS), capture=True)
    finally:
        stop.set()
        thread.join()
    assert statuses == {"cudaSuccess"}, f"the other thread got {', '.join(sorted(statuses))}"
    return found


def _notices_refusal(cuda: Any) -> Row:
    """The first call of a shape runs, the second, which is in the capture, is refused: nothing stale may be served."""
    from runtime.backends.tensorrt.worker import Worker

    made = Worker(lambda: Copying(cuda, refuse_from=2), LARGEST, CLASSES, capture=True)
    try:
        _require_own(made, seed=0, batch=1)
        assert made.otherwise, "it does not say that it has no graph"
        try:
            _require_own(made, seed=1, batch=1)
        except SajiError as error:
            return {"otherwise": made.otherwise, "then": str(error)}
        raise AssertionError("it answers though the context refuses")
    finally:
        made.close()


def _answers(context: Callable[[], Copying], capture: bool) -> Row:
    """Every answer is to its own photos, for batches of different sizes by turns."""
    from runtime.backends.tensorrt.worker import Worker

    made = Worker(context, LARGEST, CLASSES, capture)
    try:
        for seed, batch in enumerate((1, 8, 1, 3, 8, 1)):
            _require_own(made, seed, batch)
        assert not made.otherwise, made.otherwise
        assert bool(made.graphs) == capture, f"{len(made.graphs)} graphs are kept"
        times = [made.timed(lambda: made.execute(made.upload(_photos(0, 1)), 1)) for _ in range(20)]
        return {"graphs": len(made.graphs), "device_milliseconds": round(sorted(times)[10], 4)}
    finally:
        made.close()


def _require_own(made: Any, seed: int, batch: int) -> None:
    photos = _photos(seed, batch)
    answers = made.run(photos, CLASSES).view(np.uint8).reshape(photos.shape)
    assert np.array_equal(answers, photos), f"photos {seed} ({batch} of them) got another answer"


def _photos(seed: int, batch: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (batch, *LARGEST[1:])).astype(np.uint8)
