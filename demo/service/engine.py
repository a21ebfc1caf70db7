"""The engine that answers: a photo is read within the limits, then waits for its turn on an opened classifier.

A photo that is alone gets all cores. Where several are there each gets one: a small network on all of them wastes a
third of their time on waiting for one another.
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from demo.service.decoders import Decoders, Photo
from demo.service.monitoring import BATCH_SIZE, PART_SECONDS
from demo.service.problem import Problem
from runtime.backends import BACKENDS
from runtime.classifier import Classifier, Prediction
from runtime.deployment import Deployment
from runtime.errors import NoAnswer, SajiError
from runtime.machine import usable_cores
from runtime.receipt import Receipt

WARM_UP = 3  # first calls allocate memory and, on some engines, compile kernels


def one_core_each(path: Path, classifier: Classifier, load: Callable[..., Classifier]) -> Classifier | None:
    """What the deployment at `path` serves, opened once more, for as many calls as there are cores, on one core each.

    `load` takes what `runtime.load` does. None where all calls share their threads, as PyTorch's do, or none is on the
    processor. Raises SajiError.
    """
    candidate, cores = classifier.candidate, usable_cores()
    if cores == 1 or BACKENDS[candidate.backend].gpu or candidate.backend == "pytorch":
        return None
    same = {"backend": candidate.backend, "precision": candidate.precision}
    other = load(path, **same, threads=1, streams=cores)
    if other.sha256 == classifier.sha256:
        return other
    other.close()  # the deployment has changed meanwhile, and will be opened anew
    return None


@dataclass(eq=False)
class _Job:
    """A preprocessed photo, uint8 `[size, size, 3]`, on its way through the engine."""

    image: np.ndarray
    queued: float = field(default_factory=time.perf_counter)
    result: "Future[tuple[np.ndarray, float]]" = field(default_factory=Future)


class Engine:
    """An opened classifier on which `workers` threads work at a time, each on up to `batch` of the waiting photos.

    A photo has one of its `threads` from decoding on, because handing it to another takes longer than a small network:
    the thread whose turn it is takes along the photos that wait behind its own. Nobody waits for a batch to fill.

    With a `crowd`, the same opened by `one_core_each`, that one works wherever several photos are being answered.
    """

    def __init__(
        self,
        classifier: Classifier,
        deployment: Deployment,
        sha256: str,
        workers: int,
        batch: int,
        crowd: Classifier | None = None,
    ) -> None:
        self.classifier, self.deployment, self.sha256 = classifier, deployment, sha256
        self._crowd, self._answering = crowd or classifier, 0
        self.since = datetime.now(UTC)
        self.requests: set[asyncio.Future] = set()  # that hold this engine, until their last thread is done
        self.moved = 0.0  # when a photo was done last, or began where there was none; by time.monotonic()
        self.failing = False  # whether what it was asked last has failed
        # Enough to decode on all cores while the engine is busy and its next batch waits. Where it hangs they do,
        # and the next engine has others
        self.threads = ThreadPoolExecutor((os.cpu_count() or 1) + workers * batch, "photo")
        self._batch, self._free = batch, threading.Semaphore(usable_cores() if crowd else workers)
        self._waiting: deque[_Job] = deque()
        self._taking = threading.Lock()

    def exported(self, out: Path) -> tuple[Path, Receipt]:
        """The model folder below `out` that this engine was opened from, and its receipt.

        Raises SajiError where another export lies there by now, which tells of another network.
        """
        candidate = self.classifier.candidate
        place = self.deployment.place_of(candidate)
        if not place:
            raise SajiError(f"{candidate.name} is not in the deployment here; choose again with: make bench")
        folder = out / place.folder
        receipt = Receipt.read(folder)
        receipt.require_same(folder, candidate.file, self.classifier.sha256)
        return folder, receipt

    def answer(self, photo: Photo, decoders: Decoders, arrival: float) -> Prediction:
        """Name one photo in the thread of the caller; it came at `time.perf_counter()` `arrival`. Raises Problem."""
        PART_SECONDS.labels("wait").observe(time.perf_counter() - arrival)
        with self._counted():
            image, milliseconds = decoders.pixels(photo, self.classifier.spec.geometry)
            try:
                outputs, seconds = self.run(image)
            except NoAnswer:
                detail = "the model has no answer to this photo: it computes NaN or infinity"
                raise Problem(500, "no-answer", detail) from None
        milliseconds["inference"] = round(1000 * seconds, 3)
        for part, value in milliseconds.items():
            PART_SECONDS.labels(part).observe(value / 1000)
        return self.classifier.predictions(outputs[None], milliseconds)[0]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._taking:
            self._answering += 1
        try:
            yield
        finally:
            with self._taking:
                self._answering -= 1

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """The model's outputs for a preprocessed photo, uint8 `[size, size, 3]`, and the seconds the engine took."""
        job = _Job(image)
        self._waiting.append(job)
        with self._free:
            together = self._take(job)
            if together:
                self._run_together(together)
        return job.result.result()

    def _take(self, own: _Job) -> list[_Job]:
        with self._taking:
            if own not in self._waiting:  # another took it along
                return []
            self._waiting.remove(own)
            return [own, *(self._waiting.popleft() for _ in range(min(self._batch - 1, len(self._waiting))))]

    def _run_together(self, jobs: list[_Job]) -> None:
        classifier, started = self.classifier if self._answering < 2 else self._crowd, time.perf_counter()
        try:
            images = np.stack([job.image for job in jobs]) if len(jobs) > 1 else jobs[0].image[None]
            outputs = classifier.outputs(images)
        except NoAnswer as error:
            self._without_answer(jobs, error)
            return
        except Exception as error:  # for each of them to report
            self.failing = True
            for job in jobs:
                job.result.set_exception(error)
            return
        self.failing, seconds = False, time.perf_counter() - started
        BATCH_SIZE.observe(len(jobs))
        for job, row in zip(jobs, outputs, strict=True):
            PART_SECONDS.labels("queue").observe(started - job.queued)
            job.result.set_result((row, seconds))

    def _without_answer(self, jobs: list[_Job], error: NoAnswer) -> None:
        """Give the other photos their answers; a photo that has none is no failure of an engine that has others."""
        if len(jobs) > 1:
            for job in jobs:
                self._run_together([job])
            return
        try:
            self.classifier.outputs(self._blank[None])
            self.failing = False
        except SajiError:
            self.failing = True
        jobs[0].result.set_exception(error)

    def warm(self) -> None:
        """Answer a few blank photos, alone and in a crowd, so that the first visitor's latency is everybody's."""
        for _ in range(WARM_UP):
            self.run(self._blank)
        with self._counted(), self._counted():
            for _ in range(WARM_UP):
                self.run(self._blank)

    @property
    def _blank(self) -> np.ndarray:
        size = self.classifier.spec.geometry.size
        return np.zeros((size, size, 3), np.uint8)

    async def retire(self) -> None:
        """Close once the last request that holds this engine is done."""
        if self.requests:
            await asyncio.wait(self.requests)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Finish what is being answered, then free the engine."""
        self.threads.shutdown()
        self._crowd.close()
        self.classifier.close()
