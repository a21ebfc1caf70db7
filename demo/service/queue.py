"""What serves now: a bounded queue in front of the engine, and another deployment without a pause."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from prometheus_client import generate_latest

from demo.service.decoders import Decoders, Photo
from demo.service.engine import Engine, one_core_each
from demo.service.limits import Limits
from demo.service.monitoring import ENGINE, QUEUE_DEPTH, RELOADS
from demo.service.problem import Problem, busy
from demo.service.shares import OWN, Holdings
from runtime.classifier import Classifier, Prediction
from runtime.deployment import Deployment
from runtime.errors import SajiError
from runtime.files import sha256_file

POLL_SECONDS = 1.0

log = logging.getLogger("saji.serving")

T = TypeVar("T")


def _note(engine: Engine, done: Future) -> None:
    """Note that a photo is done, whatever came of it; one that was given up is not."""
    if not done.cancelled():
        engine.moved = time.monotonic()


@dataclass(frozen=True)
class Result:
    """What the photos of a request show, in their order, and the classifier that answered."""

    predictions: list[Prediction]
    classifier: Classifier


class Serving(AbstractContextManager["Serving"]):
    """The queue that page and API share, in front of the engine that `deployment.json` names now.

    `open_classifier` opens what the file at `path` chooses, as `runtime.load` does. Each photo has a thread, in which
    it is decoded beside others and then waits for its turn on the engine, of which `workers` have one at a time; with
    0 one photo has all cores while it is alone, and each has one where there are others. Raises SajiError when nothing
    can be opened; use it as a context manager.
    """

    def __init__(
        self,
        path: Path,
        open_classifier: Callable[..., Classifier],
        limits: Limits,
        workers: int = 1,
        batch: int = 1,
    ) -> None:
        self.path, self.limits = path, limits
        self._open_classifier, self._workers, self._batch = open_classifier, workers, batch
        self._places = Holdings("places of the queue", limits.share_of(limits.queue))
        self._reload_wanted, self._retiring = False, set[asyncio.Task[None]]()
        self._stamp = self._stamp_now()
        self.engine = self._open()
        self.decoders = Decoders(limits)
        self.engine.threads.submit(self.decoders.warm)  # nobody waits for it: it tells itself whether it can be done

    @contextmanager
    def place(self, visitor: str = OWN) -> Iterator[None]:
        """A place in the queue, held until the answer is sent. Raises Problem 429 when all are taken, or his share."""
        if self._places.all >= self.limits.queue:
            raise busy(429, "queue-full", f"all {self.limits.queue} places of the queue are taken; try again soon")
        with self._places.held(visitor), QUEUE_DEPTH.track_inprogress():
            yield

    async def classify(self, photos: Sequence[Photo]) -> Result:
        """Answer photos, each a path or encoded bytes, within a `place`.

        Raises Problem: 422 for what is no picture, 413 for too many pixels or bytes, 503 for an answer too late.
        """
        engine, now = self.engine, time.perf_counter()
        results = await self.outcomes(engine, [partial(engine.answer, p, self.decoders, now) for p in photos])
        for number, result in enumerate(results, 1):
            if isinstance(result, Problem) and len(results) > 1:
                result.detail = f"photo {number} of {len(results)}: {result.detail}"
            if isinstance(result, BaseException):
                raise result
        return Result(list(results), engine.classifier)  # type: ignore[arg-type]  # no exception is left in it

    async def outcomes(self, engine: Engine, works: Sequence[Callable[[], T]]) -> list[T | BaseException]:
        """What each work gives or raises, done in a thread of its own, within a `place`; `engine` is held until then.

        Raises Problem 503 when it takes too long.
        """
        if not engine.requests:
            engine.moved = time.monotonic()
        futures = [engine.threads.submit(work) for work in works]
        for future in futures:
            future.add_done_callback(partial(_note, engine))
        done = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        engine.requests.add(done)
        done.add_done_callback(engine.requests.discard)
        try:
            return await asyncio.wait_for(asyncio.shield(done), self.limits.seconds)
        except TimeoutError:
            for future in futures:
                future.cancel()  # what has begun cannot be stopped, and holds the engine until it ends
            seconds = self.limits.seconds
            raise busy(503, "too-slow", f"no answer within {seconds} s, so many are waiting; try again soon") from None

    @property
    def stuck(self) -> bool:
        """Whether no photo can be decoded, or the engine has failed at what it was asked last, or for as long as a
        request may take has answered none of the photos that wait."""
        engine = self.engine
        waits = bool(engine.requests) and time.monotonic() - engine.moved > self.limits.seconds
        return waits or engine.failing or self.decoders.failing

    def look_again(self) -> None:
        """Open the deployment anew though it seems unchanged: what it names may have changed. For a signal handler."""
        self._reload_wanted = True

    async def watch(self) -> None:
        """Look for another deployment each second, for ever; whoever waits meanwhile is answered by the old one.

        What has failed is tried again as well: nobody else may ask while we are not ready.
        """
        trial: Future[None] | None = None
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if trial is None or trial.done():
                failing = [each for each in (self.decoders, self.engine) if each.failing]
                trial = self.engine.threads.submit(failing[0].warm) if failing else None
            # In a thread: a disk may be slow, or that of another machine
            if self._reload_wanted or await asyncio.to_thread(self._stamp_now) != self._stamp:
                await self.reload()

    async def reload(self) -> None:
        """Serve what the file says now, if it differs and opens; if not, the old one goes on and the log says why."""
        wanted, self._reload_wanted = self._reload_wanted, False
        self._stamp = await asyncio.to_thread(self._stamp_now)
        try:
            if not wanted and await asyncio.to_thread(self._sha256_now) == self.engine.sha256:
                return
            fresh = await asyncio.to_thread(self._open)
        except Exception as error:  # whatever is wrong with the new one, the old one serves
            expected = isinstance(error, SajiError | OSError)
            facts = {"reason": str(error), "serving": self.engine.classifier.candidate.name}
            log.error("deployment refused", exc_info=not expected, extra={"facts": facts})
            RELOADS.labels("refused").inc()
            return
        old, self.engine = self.engine, fresh
        RELOADS.labels("served").inc()
        log.info("deployment served", extra={"facts": {"serving": fresh.classifier.candidate.name}})
        retiring = asyncio.create_task(self._retire(old))  # which takes for ever where it hangs
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    async def _retire(self, old: Engine) -> None:
        ending = asyncio.create_task(old.retire())
        await asyncio.wait({ending}, timeout=self.limits.seconds)
        if not ending.done():
            facts = {"engine": old.classifier.candidate.name, "requests": len(old.requests)}
            log.error("an engine hangs that serves no more; restart the service to free it", extra={"facts": facts})
        await ending

    async def metrics(self) -> bytes:
        """What `/metrics` says."""
        return generate_latest()

    def examples(self) -> list[Path]:
        """The example pictures that export put beside the model that serves; none is fine."""
        with suppress(SajiError):
            return sorted((self.engine.exported(self.path.parent)[0] / "examples").glob("*.png"))
        return []

    def _open(self) -> Engine:
        sha256 = self._sha256_now()  # first: what is replaced from here on differs from it, and is opened anew
        deployment = Deployment.read(self.path)
        with ExitStack() as opened:
            classifier = opened.enter_context(self._open_classifier(self.path))
            crowd = None if self._workers else one_core_each(self.path, classifier, self._open_classifier)
            engine = Engine(classifier, deployment, sha256, self._workers or 1, self._batch, crowd)
            opened.callback(engine.close)
            engine.warm()
            opened.pop_all()
        return self.announced(engine)

    def announced(self, engine: Engine) -> Engine:
        """An engine that serves from now on, told to `/metrics`."""
        candidate = engine.classifier.candidate
        ENGINE.info(
            {
                "architecture": candidate.architecture,
                "backend": candidate.backend,
                "precision": candidate.precision,
                "variant": candidate.variant,
                "deployment_sha256": engine.sha256,
            }
        )
        return engine

    def _sha256_now(self) -> str:
        try:
            return sha256_file(self.path)
        except OSError:  # why, who reads it tells
            return ""

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def close(self) -> None:
        """Finish what is being answered, then free the engine."""
        self.engine.close()
        self.decoders.close()

    def __exit__(self, *_: object) -> None:
        self.close()
