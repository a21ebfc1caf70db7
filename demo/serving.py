"""The classifier that serves now: a bounded queue in front of its workers, and another deployment without a pause."""

import asyncio
import io
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from demo.limits import Limits
from demo.metrics import BATCH_SIZE, ENGINE, PART_SECONDS, QUEUE_DEPTH, RELOADS
from demo.problem import Problem, busy
from runtime.classifier import Classifier, Prediction
from runtime.deployment import Deployment
from runtime.errors import BadPhoto, SajiError
from runtime.files import sha256_file
from runtime.preprocess import decode, fit
from runtime.spec import Geometry

WARM_UP = 3  # first calls allocate memory and, on some engines, compile kernels
POLL_SECONDS = 1.0
# What cameras, phones and browsers write. Pillow knows more, and some of it (EPS) starts other programs
Image.init()
FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.OPEN)

log = logging.getLogger("saji.serving")

Photo = bytes | str | os.PathLike


@dataclass(frozen=True)
class Answer:
    """What the photos of a request show, in their order, and the classifier that said so."""

    predictions: list[Prediction]
    classifier: Classifier


class Engine:
    """An opened classifier with `workers` threads, each of which takes up to `batch` of the waiting photos at a time.

    Nobody waits for a batch to fill: only what has queued up while the engine was busy goes through together.
    """

    def __init__(self, classifier: Classifier, deployment: Deployment, sha256: str, workers: int, batch: int) -> None:
        self.classifier, self.deployment, self.sha256, self.batch = classifier, deployment, sha256, batch
        self.since = datetime.now(UTC)
        self.users = 0  # requests that hold this engine; counted on the event loop alone
        self._waiting: deque[tuple[np.ndarray, float, Future]] = deque()
        self._workers = ThreadPoolExecutor(workers, "engine")

    def submit(self, image: np.ndarray) -> "Future[tuple[np.ndarray, float]]":
        """Queue one preprocessed photo, uint8 `[size, size, 3]`; its logits `[C]` and the engine's seconds."""
        future: Future[tuple[np.ndarray, float]] = Future()
        self._waiting.append((image, time.perf_counter(), future))
        self._workers.submit(self._run_waiting)
        return future

    def _run_waiting(self) -> None:
        turns = list(self._take())
        if not turns:  # an earlier batch took them
            return
        started = time.perf_counter()
        try:
            logits = self.classifier.logits(np.stack([image for image, *_ in turns]))
        except BaseException as error:  # the requests report it; the worker has to live on
            for *_, future in turns:
                future.set_exception(error)
            return
        seconds = time.perf_counter() - started
        BATCH_SIZE.observe(len(turns))
        for row, (_, queued, future) in zip(logits, turns, strict=True):
            PART_SECONDS.labels("queue").observe(started - queued)
            future.set_result((row, seconds))

    def _take(self) -> Iterator[tuple[np.ndarray, float, Future]]:
        taken = 0
        while taken < self.batch:
            try:
                turn = self._waiting.popleft()
            except IndexError:
                return
            if turn[-1].set_running_or_notify_cancel():  # not given up by its request meanwhile
                taken += 1
                yield turn

    def warm(self) -> None:
        """Answer a few blank photos, so that the first visitor's latency is everybody's."""
        size = self.classifier.spec.geometry.size
        for _ in range(WARM_UP):
            self.submit(np.zeros((size, size, 3), np.uint8)).result()

    def close(self) -> None:
        """Let the workers finish, then free the classifier."""
        self._workers.shutdown()
        self.classifier.close()


class Serving:
    """The queue that page and API share, in front of the engine that `deployment.json` names now.

    `open_classifier` opens what the file at `path` chooses. A photo is decoded in a thread of its own request, as many
    at a time as there are cores, and only its inference waits for a worker. Raises SajiError when nothing can be
    opened; use it as a context manager.
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
        self._readers = ThreadPoolExecutor(os.cpu_count(), "reader")
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

        Raises Problem: 422 for what is no picture, 413 for too many pixels, 503 when the answer takes too long.
        """
        engine = self.engine
        engine.users += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                results = await asyncio.gather(*(self._one(engine, photo) for photo in photos), return_exceptions=True)
        except TimeoutError:
            seconds = self.limits.seconds
            raise busy(503, "too-slow", f"no answer within {seconds} s, so many are waiting; try again soon") from None
        finally:
            engine.users -= 1
        for number, result in enumerate(results, 1):
            if isinstance(result, Problem) and len(results) > 1:
                result.detail = f"photo {number} of {len(results)}: {result.detail}"
            if isinstance(result, BaseException):
                raise result
        return Answer(list(results), engine.classifier)  # type: ignore[arg-type]  # no exception is left in it

    async def _one(self, engine: Engine, photo: Photo) -> Prediction:
        spec, loop = engine.classifier.spec, asyncio.get_running_loop()
        image, parts = await loop.run_in_executor(self._readers, read, photo, spec.geometry, self.limits.pixels)
        row, parts["inference"] = await asyncio.wrap_future(engine.submit(image))
        for part, seconds in parts.items():
            PART_SECONDS.labels(part).observe(seconds)
        probabilities = spec.probabilities(row[None])[0]
        return Prediction(
            {spec.classes[i]: float(probabilities[i]) for i in np.argsort(-probabilities, kind="stable")},
            bool(spec.sure(row[None])[0]),
            {part: round(1000 * seconds, 3) for part, seconds in parts.items()},
        )

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
        while old.users:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(old.close)

    def _open(self) -> Engine:
        deployment, sha256 = Deployment.read(self.path), sha256_file(self.path)
        engine = Engine(self._open_classifier(self.path), deployment, sha256, self._workers, self._batch)
        try:
            engine.warm()
        except BaseException:
            engine.close()
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
        """Finish what is being read and answered, then free the engine."""
        self._readers.shutdown()
        self.engine.close()

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(photo: Photo, geometry: Geometry, most_pixels: int) -> tuple[np.ndarray, dict[str, float]]:
    """A photo as the network sees it, uint8 `[size, size, 3]`, and the seconds that decoding and geometry took.

    Raises Problem 422 when it is no picture, 413 when it has more than `most_pixels` pixels.
    """
    clock = [time.perf_counter()]
    try:
        _check_header(photo, most_pixels)
        picture = decode(photo, geometry.resize if geometry.decode == "draft" else None)
        clock.append(time.perf_counter())
        image = fit(picture, geometry)
    except BadPhoto as error:
        raise Problem(422, "not-a-picture", str(error)) from None
    clock.append(time.perf_counter())
    return image, {"decode": clock[1] - clock[0], "geometry": clock[2] - clock[1]}


def _check_header(photo: Photo, most_pixels: int) -> None:
    """Refuse by its first bytes what is no photo, or would fill the memory once it is unpacked."""
    name = "the file" if isinstance(photo, bytes) else Path(photo).name
    too_many = Problem(413, "too-many-pixels", f"{name} has more than {most_pixels:,} pixels; send a smaller photo")
    try:
        with Image.open(io.BytesIO(photo) if isinstance(photo, bytes) else photo, formats=FORMATS) as image:
            if image.width * image.height > most_pixels:
                raise too_many
    except UnidentifiedImageError:
        raise BadPhoto(f"{name} is no picture that can be read (send a JPEG, PNG or WEBP photo)") from None
    except Image.DecompressionBombError:
        raise too_many from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError):
        return  # decode says what is damaged
