"""The classifier that serves now: a bounded queue in front of its workers, and another deployment without a pause."""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from demo.limits import Limits
from demo.metrics import BATCH_SIZE, ENGINE, PART_SECONDS, QUEUE_DEPTH, RELOADS
from demo.problem import Problem, busy
from runtime.classifier import Classifier, Prediction
from runtime.deployment import Deployment
from runtime.errors import BadPhoto, SajiError, TooManyPixels
from runtime.files import sha256_file
from runtime.preprocess import timed_pixels
from runtime.spec import Geometry

WARM_UP = 3  # first calls allocate memory and, on some engines, compile kernels
POLL_SECONDS = 1.0

log = logging.getLogger("saji.serving")

Photo = bytes | str | os.PathLike
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What the photos of a request show, in their order, and the classifier that said so."""

    predictions: list[Prediction]
    classifier: Classifier


@dataclass(eq=False)
class _Turn:
    """A preprocessed photo, uint8 `[size, size, 3]`, on its way through the engine."""

    image: np.ndarray
    queued: float = field(default_factory=time.perf_counter)
    result: "Future[tuple[np.ndarray, float]]" = field(default_factory=Future)


class Engine:
    """An opened classifier on which `workers` threads work at a time, each on up to `batch` of the waiting photos.

    There are no threads of its own, for handing a photo over costs more than a small network: whoever comes to its
    turn takes along what waits behind it. Nobody waits for a batch to fill.
    """

    def __init__(self, classifier: Classifier, deployment: Deployment, sha256: str, workers: int, batch: int) -> None:
        self.classifier, self.deployment, self.sha256 = classifier, deployment, sha256
        self.since = datetime.now(UTC)
        self.requests: set[asyncio.Future] = set()  # that hold this engine, until their last thread is done
        self._batch, self._free = batch, threading.Semaphore(workers)
        self._waiting: deque[_Turn] = deque()
        self._taking = threading.Lock()

    def answer(self, photo: Photo, limits: Limits, asked: float) -> Prediction:
        """Name one photo, in the thread of the caller, who `asked` at that `time.perf_counter()`. Raises Problem."""
        PART_SECONDS.labels("wait").observe(time.perf_counter() - asked)
        image, milliseconds = read(photo, self.classifier.spec.geometry, limits)
        logits, seconds = self.run(image)
        milliseconds["inference"] = round(1000 * seconds, 3)
        for part, value in milliseconds.items():
            PART_SECONDS.labels(part).observe(value / 1000)
        return self.classifier.predictions(logits[None], milliseconds)[0]

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """Logits `[C]` of one preprocessed photo, uint8 `[size, size, 3]`, and the seconds that the engine took."""
        turn = _Turn(image)
        self._waiting.append(turn)
        with self._free:
            together = self._take(turn)
            if together:
                self._run_together(together)
        return turn.result.result()

    def _take(self, own: _Turn) -> list[_Turn]:
        with self._taking:
            if own not in self._waiting:  # another took it along
                return []
            self._waiting.remove(own)
            return [own, *(self._waiting.popleft() for _ in range(min(self._batch - 1, len(self._waiting))))]

    def _run_together(self, turns: list[_Turn]) -> None:
        started = time.perf_counter()
        try:
            logits = self.classifier.logits(np.stack([turn.image for turn in turns]))
        except Exception as error:  # for each of them to report
            for turn in turns:
                turn.result.set_exception(error)
            return
        seconds = time.perf_counter() - started
        BATCH_SIZE.observe(len(turns))
        for turn, row in zip(turns, logits, strict=True):
            PART_SECONDS.labels("queue").observe(started - turn.queued)
            turn.result.set_result((row, seconds))

    def warm(self) -> None:
        """Answer a few blank photos, so that the first visitor's latency is everybody's."""
        size = self.classifier.spec.geometry.size
        for _ in range(WARM_UP):
            self.run(np.zeros((size, size, 3), np.uint8))

    async def retire(self) -> None:
        """Close once the last request that holds this engine is done."""
        if self.requests:
            await asyncio.wait(self.requests)
        await asyncio.to_thread(self.classifier.close)


class Serving:
    """The queue that page and API share, in front of the engine that `deployment.json` names now.

    `open_classifier` opens what the file at `path` chooses. Each photo has a thread, in which it is decoded beside
    others and then waits for its turn on the engine. Raises SajiError when nothing can be opened; use it as a context
    manager.
    """

    def __init__(
        self,
        path: Path,
        open_classifier: Callable[[Path], Classifier],
        limits: Limits,
        workers: int = 1,
        batch: int = 1,
    ) -> None:
        self.path, self.limits = path, limits
        self._open_classifier, self._workers, self._batch = open_classifier, workers, batch
        self._taken, self._asked = 0, False
        # Enough to decode on all cores while the engine is busy and its next batch waits
        self._threads = ThreadPoolExecutor((os.cpu_count() or 1) + workers * batch, "photo")
        self._stamp = self._stamp_now()
        self.engine = self._open()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, held until the answer is sent. Raises Problem 429 when all are taken."""
        if self._taken >= self.limits.queue:
            raise busy(429, "queue-full", f"all {self.limits.queue} places of the queue are taken; try again soon")
        self._taken += 1
        QUEUE_DEPTH.inc()
        try:
            yield
        finally:
            self._taken -= 1
            QUEUE_DEPTH.dec()

    async def classify(self, photos: Sequence[Photo]) -> Answer:
        """Answer photos, each a path or encoded bytes, within a `place`.

        Raises Problem: 422 for what is no picture, 413 for too many pixels or bytes, 503 for an answer too late.
        """
        engine, now = self.engine, time.perf_counter()
        results = await self.finished(engine, [partial(engine.answer, p, self.limits, now) for p in photos])
        for number, result in enumerate(results, 1):
            if isinstance(result, Problem) and len(results) > 1:
                result.detail = f"photo {number} of {len(results)}: {result.detail}"
            if isinstance(result, BaseException):
                raise result
        return Answer(list(results), engine.classifier)  # type: ignore[arg-type]  # no exception is left in it

    async def finished(self, engine: Engine, works: Sequence[Callable[[], T]]) -> list[T | BaseException]:
        """What each work gives or raises, done in a thread of its own, within a `place`; `engine` is held until then.

        Raises Problem 503 when it takes too long.
        """
        jobs = [self._threads.submit(work) for work in works]
        done = asyncio.gather(*map(asyncio.wrap_future, jobs), return_exceptions=True)
        engine.requests.add(done)
        done.add_done_callback(engine.requests.discard)
        try:
            return await asyncio.wait_for(asyncio.shield(done), self.limits.seconds)
        except TimeoutError:
            for job in jobs:
                job.cancel()  # what has begun cannot be stopped, and holds the engine until it ends
            seconds = self.limits.seconds
            raise busy(503, "too-slow", f"no answer within {seconds} s, so many are waiting; try again soon") from None

    def look_again(self) -> None:
        """Open the deployment anew though it seems unchanged: what it names may have changed. For a signal handler."""
        self._asked = True

    async def watch(self) -> None:
        """Look for another deployment each second, for ever; whoever waits meanwhile is answered by the old one."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._asked or self._stamp_now() != self._stamp:
                await self.reload()

    async def reload(self) -> None:
        """Serve what the file says now, if it differs and opens; if not, the old one goes on and the log says why."""
        asked, self._asked, self._stamp = self._asked, False, self._stamp_now()
        try:
            if not asked and sha256_file(self.path) == self.engine.sha256:
                return
            fresh = await asyncio.to_thread(self._open)
        except Exception as error:  # whatever is wrong with the new one, the old one serves
            known = isinstance(error, SajiError | OSError)
            facts = {"reason": str(error), "serving": self.engine.classifier.candidate.name}
            log.error("deployment refused", exc_info=not known, extra={"facts": facts})
            RELOADS.labels("refused").inc()
            return
        old, self.engine = self.engine, fresh
        RELOADS.labels("served").inc()
        log.info("deployment served", extra={"facts": {"serving": fresh.classifier.candidate.name}})
        await old.retire()

    def _open(self) -> Engine:
        deployment, sha256 = Deployment.read(self.path), sha256_file(self.path)
        engine = Engine(self._open_classifier(self.path), deployment, sha256, self._workers, self._batch)
        try:
            engine.warm()
        except BaseException:
            engine.classifier.close()
            raise
        candidate = engine.classifier.candidate
        ENGINE.info(
            {
                "architecture": candidate.architecture,
                "backend": candidate.backend,
                "precision": candidate.precision,
                "variant": candidate.variant,
                "deployment_sha256": sha256,
            }
        )
        return engine

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def close(self) -> None:
        """Finish what is being answered, then free the engine."""
        self._threads.shutdown()
        self.engine.classifier.close()

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(photo: Photo, geometry: Geometry, limits: Limits) -> tuple[np.ndarray, dict[str, float]]:
    """A photo as the network sees it, uint8 `[size, size, 3]`, and the milliseconds that decoding and geometry took.

    Raises Problem as `refusing` does.
    """
    with refusing(photo, limits):
        return timed_pixels(photo, geometry, limits.pixels)


@contextmanager
def refusing(photo: Photo, limits: Limits) -> Iterator[None]:
    """Turns what is wrong with a photo that is read inside into a Problem.

    422 when it is no picture, 413 when it has more pixels, or a file more bytes, than `limits` let in.
    """
    if not isinstance(photo, bytes):  # bytes were counted as they came in
        file = Path(photo)
        if file.is_file() and file.stat().st_size > limits.bytes:
            raise too_large(file.name, limits)
    try:
        yield
    except TooManyPixels as error:
        raise Problem(413, "too-many-pixels", str(error)) from None
    except BadPhoto as error:
        raise Problem(422, "not-a-picture", str(error)) from None


def too_large(name: str, limits: Limits) -> Problem:
    """The refusal of a file with more bytes than a photo may have."""
    return Problem(413, "too-large", f"{name} has more than {limits.bytes:,} bytes; send a smaller photo")
