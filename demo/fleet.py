"""The service as a fleet on Ray Serve: engines on any number of nodes answer `/v1`, one page in front of them the rest.

A replica is the whole service of one machine, with its queue, limits, token and problem documents.
"""

import asyncio
import copy
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from demo.service.api import build_api
from demo.service.decoders import Photo
from demo.service.guard import Guard, Hosts
from demo.service.limits import Limits
from demo.service.monitoring import JsonLine
from demo.service.problem import Problem, busy
from demo.service.proxies import LOOPBACK
from demo.service.queue import POLL_SECONDS, Result, Serving
from demo.service.shares import OWN
from runtime.classifier import Classifier, load
from runtime.deployment import Deployment
from runtime.errors import BadModel, GateFailed, Unavailable
from runtime.files import as_record
from runtime.receipt import Receipt
from runtime.verdicts import difference, of_here, same_kind

ENGINES, PAGE = "engines", "page"  # the two applications
DRAIN_SECONDS = 60.0  # what was accepted is answered before a replica ends, up to twice what a request may take

Opener = Callable[[Path], Classifier]


@dataclass(frozen=True)
class Settings:
    """What every replica of a fleet is told, as plain as the config file that `serve deploy` takes.

    `floor` is the accuracy below which a replica refuses to serve, `previous` the deployment before the last update.
    Without a `token` that of the node's variable SAJI_TOKEN holds.
    """

    deployment: str
    previous: str = ""
    floor: float = 0.0
    replicas: tuple[int, ...] = (2,)
    cpus: float = 1.0
    gpus: float = 0.0
    top: int = 5
    host: str = "127.0.0.1"
    allow_host: tuple[str, ...] = ()
    trusted_proxy: tuple[str, ...] = LOOPBACK
    token: str = field(default="", repr=False)
    limits: dict[str, Any] = field(default_factory=dict)

    def guarded(self, app: FastAPI, limits: Limits) -> ASGIApp:
        """`app` behind what stands before the service of one machine, under the paths that it has there."""
        token = self.token or os.environ.get("SAJI_TOKEN", "")
        guard = Guard(app, limits, token, Hosts(self.host, self.allow_host))

        async def under_its_own_paths(scope: Scope, receive: Receive, send: Send) -> None:
            async def named_once(message: Message) -> None:
                if message["type"] == "http.response.start":  # Serve's proxy adds the request's id by itself
                    message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                await send(message)

            await guard({**scope, "root_path": ""}, receive, named_once)  # Serve calls the prefix of a route a mount

        # What uvicorn does for the single service, Serve's proxy does not
        return ProxyHeadersMiddleware(under_its_own_paths, [*self.trusted_proxy])  # type: ignore[arg-type, return-value]


def open_here(path: Path, settings: Settings) -> Classifier:
    """The very choice of a deployment, judged and chosen on this kind of node. Raises SajiError for all others."""
    deployment = Deployment.read(path)
    place, folder = deployment.choice, path.parent / deployment.choice.folder
    receipt = Receipt.read(folder)
    if not same_kind(deployment.machine) or place.candidate.key() not in of_here(folder, receipt):
        why = difference(place.candidate, receipt.versions) or "is kept for another kind of machine"
        raise Unavailable(
            f"{place.name} is not served on this node, for its verdict {why}; judge and choose once on each kind of "
            f"node with: python -m runtime bench --out {path.parent}"
        )
    classifier = load(path, threads=max(1, int(settings.cpus)))
    try:
        if classifier.passed_over:  # what a service of one machine would put up with
            raise BadModel(classifier.passed_over[0])
        figures = classifier.candidate.figures
        if figures is None or figures.accuracy < settings.floor:
            reached = f"{figures.accuracy:.3f}" if figures else "unknown"
            raise GateFailed(
                f"{place.name} has accuracy {reached}, and what the fleet serves now allows no less than "
                f"{settings.floor:.3f}; choose another, or take it all the same with --allow-worse"
            )
    except BaseException:
        classifier.close()
        raise
    return classifier


def _log_to_stderr() -> None:
    """Our lines as JSON into the file that Ray keeps of a worker."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLine())
    logger = logging.getLogger("saji")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


@serve.ingress()
class Engine:
    """A replica that answers `/v1` by the engine that its node's deployment chose."""

    def __init__(self, settings: Settings, opener: Opener | None = None) -> None:
        _log_to_stderr()
        self.settings = settings
        limits = Limits(**settings.limits)
        self.serving = Serving(Path(settings.deployment), opener or (lambda path: open_here(path, settings)), limits)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self.settings.guarded(build_api(self.serving, self.settings.top), self.serving.limits)

    async def answers(self, photos: list[tuple[bytes, str]]) -> Result | dict[str, Any]:
        """What photos of the page show, by content and name, the classifier without its engine; or a Problem's values.

        An exception would come as one of Ray's.
        """
        try:
            with self.serving.place(OWN):  # the page has asked whose share it is
                result = await self.serving.classify([_named(*photo) for photo in photos])
        except Problem as problem:
            values = {"status": problem.status_code, "cause": problem.cause, "detail": problem.detail}
            return {**values, **{name.replace("-", "_"): text for name, text in (problem.headers or {}).items()}}
        return Result(result.predictions, _without_engine(result.classifier))

    async def facts(self) -> tuple[Settings, float]:
        """What this replica was told, and the accuracy of what it serves."""
        figures = self.serving.engine.classifier.candidate.figures
        return self.settings, figures.accuracy if figures else 0.0

    async def metrics(self) -> tuple[str, bytes]:
        """The name of this replica and its metrics."""
        return serve.get_replica_context().replica_tag, await self.serving.metrics()

    def check_health(self) -> None:
        """Raise where the engine hangs, so that Serve puts another replica in this one's place."""
        if self.serving.stuck:
            raise Unavailable("no photo has been answered for too long")


def _without_engine(classifier: Classifier) -> Classifier:
    described = copy.copy(classifier)
    described.backend = None  # type: ignore[assignment]
    return described


def _named(content: bytes, name: str) -> Photo:
    if not name:
        return content
    file = io.BytesIO(content)
    file.name = name
    return file


class Fleet(Serving):
    """The queue of the page: photos to name go to the engines of the fleet, all else is done beside it."""

    def __init__(self, engines: DeploymentHandle, path: Path, opener: Opener, limits: Limits) -> None:
        super().__init__(path, opener, limits)
        self._engines, self._answering = engines, True

    async def classify(self, photos: Sequence[Photo]) -> Result:
        """As Serving; an engine that dies meanwhile is asked once more, which is another one by then."""
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
            return answer
        raise busy(503, "engines-lost", "two engines of the fleet were lost at this photo; try again soon")

    @property
    def stuck(self) -> bool:
        """Whether no engine of the fleet answers."""
        return not self._answering

    async def watch(self) -> None:
        """As Serving, and ask the engines each second whether one answers."""
        watching = asyncio.create_task(super().watch())
        try:
            while True:
                await asyncio.sleep(POLL_SECONDS)
                try:
                    await asyncio.wait_for(self._engines.facts.remote(), self.limits.seconds)
                    self._answering = True
                except Exception:  # lost, full or late: whatever it is, nobody answered
                    self._answering = False
        finally:
            watching.cancel()

    async def metrics(self) -> bytes:
        """Those of all replicas together."""
        return gathered(await self.texts(), apart=False)

    async def texts(self) -> list[tuple[str, bytes]]:
        """The name and the metrics of each replica that answers, the page's own first."""
        own = serve.get_replica_context().replica_tag, await super().metrics()
        asked = self._engines.broadcast("metrics")
        answers = await asked.results_async(timeout_s=self.limits.seconds, return_exceptions=True)
        return [own, *(answer for answer in answers if isinstance(answer, tuple))]


@serve.ingress()
class Page:
    """The page and what is asked of the fleet as a whole: metrics, readiness, the description of the API."""

    def __init__(self, settings: Settings, opener: Opener | None = None) -> None:
        _log_to_stderr()
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="saji-demo-")
        self.settings = settings
        engines = serve.get_app_handle(ENGINES)
        opener = opener or (lambda path: open_here(path, settings))
        self.serving = Fleet(engines, Path(settings.deployment), opener, Limits(**settings.limits))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from demo.page.frame import build
        from demo.page.mount import mount

        serving = self.serving
        app = build_api(serving, self.settings.top)

        @app.get("/metrics/replicas", response_class=Response, summary="Prometheus metrics of each replica")
        async def replicas() -> Response:
            return Response(gathered(await serving.texts(), apart=True), headers={"content-type": CONTENT_TYPE_LATEST})

        mount(build(serving, self.settings.top, serving.examples()), app, serving.limits)
        return self.settings.guarded(app, serving.limits)


class _Families:
    """What `generate_latest` takes for a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def gathered(texts: Iterable[tuple[str, bytes]], apart: bool) -> bytes:
    """Our metrics of several processes, each by its name and text: summed, or apart with the label `replica`."""
    families: dict[str, Metric] = {}
    sums: dict[str, dict[tuple, float]] = {}
    for replica, text in texts:
        for family in text_string_to_metric_families(text.decode()):
            if not family.name.startswith("saji_") or family.name.endswith("_created"):
                continue
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            values = sums.setdefault(family.name, {})
            for sample in family.samples:
                labels = {**sample.labels, "replica": replica} if apart else sample.labels
                key = sample.name, tuple(labels.items())
                values[key] = values.get(key, 0.0) + sample.value
    for name, family in families.items():
        for (sample, labels), value in sums[name].items():
            family.add_sample(sample, dict(labels), value)
    return generate_latest(_Families(families.values()))  # type: ignore[arg-type]


def options(settings: Settings) -> dict[str, Any]:
    """How Serve runs the engines, as both a call and a config file have it.

    A replica itself refuses what is above its queue, in a problem document; Serve, in plain text, what is above twice
    that.
    """
    queue, fewest, most = Limits(**settings.limits).queue, settings.replicas[0], settings.replicas[-1]
    scaling = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": 2 * max(1, int(settings.cpus))}
    return {
        **({"num_replicas": fewest} if fewest == most else {"autoscaling_config": scaling}),
        "ray_actor_options": {"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        "max_ongoing_requests": 2 * queue,
        "max_queued_requests": queue,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1.0},
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_timeout_s": DRAIN_SECONDS,
        "max_constructor_retry_count": 1,
        "max_surge_percent": 50,
    }


def _settings(values: dict[str, Any]) -> Settings:
    return as_record(Settings, {name: [*each] if isinstance(each, tuple) else each for name, each in values.items()})


def engines(values: dict[str, Any], opener: Opener | None = None) -> serve.Application:
    """The application that answers `/v1`; `values` are those of Settings."""
    settings = _settings(values)
    return serve.deployment(Engine, name="Engine", **options(settings)).bind(settings, opener)


def page(values: dict[str, Any], opener: Opener | None = None) -> serve.Application:
    """The application in front: one replica, which keeps what visitors have uploaded."""
    settings = _settings(values)
    queue = Limits(**settings.limits).connections
    how = {"num_replicas": 1, "max_ongoing_requests": queue, "ray_actor_options": {"num_cpus": 0}}
    return serve.deployment(Page, name="Page", max_constructor_retry_count=1, **how).bind(settings, opener)


# In the order in which they start: the page asks the engines. By name, what builds it, and the paths that it answers
APPLICATIONS = ((ENGINES, engines, "/v1"), (PAGE, page, "/"))
