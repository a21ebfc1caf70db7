"""What a fleet is told, and what follows from it for each of its replicas."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from demo.service.guard import Guard, Hosts
from demo.service.limits import Limits
from demo.service.proxies import LOOPBACK
from runtime.classifier import Classifier, load
from runtime.deployment import Deployment
from runtime.errors import BadModel, GateFailed, Unavailable
from runtime.receipt import Receipt
from runtime.verdicts import difference, of_here, same_kind

DRAIN_SECONDS = 60.0  # what was accepted is answered before a replica ends, up to twice what a request may take


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
    root_path: str = ""
    token: str = field(default="", repr=False)
    limits: dict[str, Any] = field(default_factory=dict)

    @property
    def bounds(self) -> Limits:
        """The limits of a replica, whose queue is no longer than what its engine, as measured, answers in time."""
        limits = Limits(**self.limits)
        milliseconds = max(0.001, Deployment.read(Path(self.deployment)).choice.milliseconds)  # a file may say 0
        in_time = 1000 * limits.seconds / milliseconds
        return replace(limits, queue=max(1, min(limits.queue, int(in_time))))

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


def options(settings: Settings) -> dict[str, Any]:
    """How Serve runs the engines, as both a call and a config file have it.

    A replica itself refuses what is above its queue, in a problem document; Serve, in plain text, what is above twice
    that.
    """
    queue, fewest, most = settings.bounds.queue, settings.replicas[0], settings.replicas[-1]
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
