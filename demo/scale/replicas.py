"""The processes of a fleet on Ray Serve: engines answer `/v1`, one page in front of them all the rest.

A replica is the whole service of one machine, with its queue, limits, token and problem documents.
"""

import asyncio
import io
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from demo.scale.metrics import gathered
from demo.scale.remote_classifier import elsewhere, told
from demo.scale.settings import Settings, open_here, options
from demo.service.api import build_api
from demo.service.decoders import Photo
from demo.service.engine import Engine as Opened
from demo.service.limits import Limits
from demo.service.monitoring import JsonLine
from demo.service.problem import Problem, busy
from demo.service.queue import POLL_SECONDS, Result, Serving
from demo.service.shares import OWN
from runtime.classifier import Classifier, Prediction, load
from runtime.deployment import Deployment
from runtime.errors import SajiError, Unavailable
from runtime.files import as_record

ENGINES, PAGE = "engines", "page"  # the two applications

Opener = Callable[[Path], Classifier]


def _log_to_stderr() -> None:
    """Our lines as JSON into the file that Ray keeps of a worker."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLine())
    logger = logging.getLogger("saji")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


@dataclass(frozen=True)
class Facts:
    """What a replica was told; and the sha256 of the deployment that it serves, and what `told` tells of it."""

    settings: Settings
    sha256: str
    served: dict[str, Any]


@serve.ingress()
class Engine:
    """A replica that answers `/v1` by the engine that its node's deployment chose."""

    def __init__(self, settings: Settings, opener: Opener | None = None) -> None:
        _log_to_stderr()
        self.settings = settings
        opener = opener or (lambda path: open_here(path, settings))
        self.serving = Serving(Path(settings.deployment), opener, settings.bounds)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self.settings.guarded(build_api(self.serving, self.settings.top), self.serving.limits)

    async def answers(
        self, photos: list[tuple[bytes, str]]
    ) -> tuple[list[Prediction], dict[str, Any]] | dict[str, Any]:
        """What photos of the page show, by content and name, and what the classifier is; or a Problem's values.

        An exception would come as one of Ray's.
        """
        try:
            with self.serving.place(OWN):  # the page has asked whose share it is
                result = await self.serving.classify([_named(*photo) for photo in photos])
        except Problem as problem:
            values = {"status": problem.status_code, "cause": problem.cause, "detail": problem.detail}
            return {**values, **{name.replace("-", "_"): text for name, text in (problem.headers or {}).items()}}
        return result.predictions, told(result.classifier)

    async def facts(self) -> Facts:
        """What this replica was told, and what it serves."""
        engine = self.serving.engine
        return Facts(self.settings, engine.sha256, told(engine.classifier))

    async def metrics(self) -> tuple[str, bytes]:
        """The name of this replica and its metrics."""
        return serve.get_replica_context().replica_tag, await self.serving.metrics()

    def check_health(self) -> None:
        """Raise where the engine hangs, so that Serve puts another replica in this one's place."""
        if self.serving.stuck:
            raise Unavailable("no photo has been answered for too long")


def _named(content: bytes, name: str) -> Photo:
    if not name:
        return content
    file = io.BytesIO(content)
    file.name = name
    return file


class Fleet(Serving):
    """The queue of the page: photos to name go to the engines of the fleet, all else is done beside it.

    It opens no engine, and so may stand on a node that has no GPU, or another one: the engines tell what they serve.
    """

    def __init__(self, engines: DeploymentHandle, path: Path, limits: Limits) -> None:
        self._engines, self._answering = engines, True
        super().__init__(path, load, limits)

    def _open(self) -> Opened:
        with ThreadPoolExecutor(1) as pool:  # in an event loop, as this is, Ray waits for nothing
            return self._told(pool.submit(lambda: self._engines.facts.remote().result()).result())

    def _told(self, facts: Facts) -> Opened:
        return self.announced(Opened(elsewhere(facts.served), Deployment.read(self.path), facts.sha256, 1, 1))

    async def classify(self, photos: Sequence[Photo]) -> Result:
        """As Serving; if an engine dies meanwhile, the photos are sent once more, to another engine."""
        sent = [await asyncio.to_thread(self.decoders.read, photo) for photo in photos]
        for _ in range(2):
            try:
                answer = await asyncio.wait_for(self._engines.answers.remote(sent), self.limits.seconds)
            except RayActorError:
                continue
            except TimeoutError:
                raise busy(503, "too-slow", f"no answer within {self.limits.seconds} s; try again soon") from None
            if isinstance(answer, dict):
                raise Problem(**answer)
            predictions, served = answer
            return Result(predictions, elsewhere(served))
        raise busy(503, "engines-lost", "two engines of the fleet were lost at this photo; try again soon")

    @property
    def stuck(self) -> bool:
        """Whether no engine of the fleet answers."""
        return not self._answering

    async def watch(self) -> None:
        """Ask the engines each second, for ever, whether one answers, and what it serves: they look at the file."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                facts = await asyncio.wait_for(self._engines.facts.remote(), self.limits.seconds)
            except Exception:  # lost, full or late: whatever it is, nobody answered
                self._answering = False
                continue
            self._answering = True
            if facts.sha256 != self.engine.sha256 and facts.settings.deployment == str(self.path):
                with suppress(SajiError, OSError):  # of a file that is not yet here
                    self.engine = self._told(facts)

    async def metrics(self) -> bytes:
        """Those of each replica that answers, and the page's own."""
        own = serve.get_replica_context().replica_tag, await super().metrics()
        asked = self._engines.broadcast("metrics")
        answers = await asked.results_async(timeout_s=self.limits.seconds, return_exceptions=True)
        return gathered([own, *(answer for answer in answers if isinstance(answer, tuple))])


@serve.ingress()
class Page:
    """The page and what is asked of the fleet as a whole: metrics, readiness, the description of the API."""

    def __init__(self, settings: Settings) -> None:
        _log_to_stderr()
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="saji-demo-")
        self.settings = settings
        self.serving = Fleet(serve.get_app_handle(ENGINES), Path(settings.deployment), Limits(**settings.limits))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from demo.page.frame import build
        from demo.page.mount import mount

        serving, below = self.serving, self.settings.root_path
        app = build_api(serving, self.settings.top, below)

        mount(build(serving, self.settings.top, serving.examples()), app, serving.limits, below)
        return self.settings.guarded(app, serving.limits)


def _settings(values: dict[str, Any]) -> Settings:
    return as_record(Settings, {name: [*each] if isinstance(each, tuple) else each for name, each in values.items()})


def engines(values: dict[str, Any], opener: Opener | None = None) -> serve.Application:
    """The application that answers `/v1`; `values` are those of Settings."""
    settings = _settings(values)
    return serve.deployment(Engine).options(name="Engine", **options(settings)).bind(settings, opener)


def page(values: dict[str, Any], _: Opener | None = None) -> serve.Application:
    """The application in front: one replica, which keeps what visitors have uploaded, and needs no core of its own."""
    settings = _settings(values)
    queue = Limits(**settings.limits).connections
    how: dict[str, Any] = {"num_replicas": 1, "max_ongoing_requests": queue, "ray_actor_options": {"num_cpus": 0}}
    return serve.deployment(Page).options(name="Page", max_constructor_retry_count=1, **how).bind(settings)


# In the order in which they start: the page asks the engines. By name, what builds it, and the paths that it answers
APPLICATIONS = ((ENGINES, engines, "/v1"), (PAGE, page, "/"))
