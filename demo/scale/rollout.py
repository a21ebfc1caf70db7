"""A fleet as a whole: Ray for it, its applications brought to what is wanted, and the same as a file.

Ray is imported where it is needed, for it comes with the extra `scale`.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.app import listen
from runtime import cluster
from runtime.errors import SajiError, Unavailable
from runtime.terminal import say

if TYPE_CHECKING:
    from demo.scale.settings import Settings

POD_GIB = 4  # of memory: Ray takes one, an engine and its decoders one or two
PATIENCE = {  # Serve kills a proxy that is not up within 5 s, which a machine with other work does not keep
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
}


@contextmanager
def fleet(
    values: dict[str, Any], port: int, address: str = "", dashboard: str = "", opener: Callable | None = None
) -> Iterator[None]:
    """A fleet of these values of Settings: here for as long as this context, or left to the cluster at `address`.

    Raises SajiError where Ray, or the first replica, does not start.
    """
    if not address:
        listen(values["host"], port).close()  # a port that is taken is told before anything takes time
    spare = values["replicas"][-1] + 1  # in an update a new replica stands beside the old ones
    shown = {"include_dashboard": True, "dashboard_host": dashboard} if dashboard else {}
    join(address, num_cpus=math.ceil(spare * values["cpus"]), **shown)
    import ray
    from ray import serve

    try:
        require_room(values, values["replicas"][0], address)
        try:
            serve.start(http_options={"host": values["host"], "port": port}, proxy_location="EveryNode")
        except (RuntimeError, ray.exceptions.RayError) as error:  # of a proxy that does not come up
            raise Unavailable(f"Ray Serve cannot be started ({_refusal(str(error))}); is port {port} free?") from None
        deploy(values, opener)
        yield
    finally:
        if not address:
            serve.shutdown()
        ray.shutdown()


def join(address: str, **here: Any) -> None:
    """Join the cluster at `address`, or start Ray on this machine where that is "". Raises Unavailable."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    cluster.join(address, here)


def require_room(values: dict[str, Any], replicas: int, address: str) -> None:
    """Raise Unavailable where so many replicas fit on no nodes of Ray; at an `address`, which may get more, say so."""
    if (room := cluster.room(values["cpus"], values["gpus"])) < replicas:
        lack = (
            f"{replicas} engines of {values['cpus']:g} CPU and {values['gpus']:g} GPU each are needed, and there is "
            f"room for {room}: Ray counts {cluster.there()}"
        )
        if not address:
            raise Unavailable(f"{lack}; give fewer --replicas, or a smaller share of a GPU with --gpus")
        say(f"{lack}; waiting for nodes to be added, Ctrl-C gives up")


def deploy(values: dict[str, Any], opener: Callable | None = None) -> None:
    """Bring a fleet to these values: Serve puts each new replica beside the old ones, which go when it is ready.

    Raises SajiError with what the first new replica refused; the old ones then go on.
    """
    from ray import serve

    from demo.scale import replicas

    for name, build, route in replicas.APPLICATIONS:
        try:
            serve.run(build(values, opener), name=name, route_prefix=route)
        except RuntimeError as error:
            told = serve.status().applications.get(name)
            said = [each.message for each in told.deployments.values()] if told else []
            raise SajiError(_refusal("\n".join([str(error), *said]))) from None


def _refusal(text: str) -> str:
    """The sentence of ours in what Serve says of a replica that did not start, or else its last line."""
    ours = re.findall(r"(?:runtime|demo)\.\w+(?:\.\w+)*: (.+)", text)
    return ours[-1] if ours else text.strip().splitlines()[-1]


def running() -> tuple["Settings", float]:
    """What the fleet that runs was told, and the accuracy of what it serves. Raises Unavailable where there is none."""
    from ray import serve

    from demo.scale import replicas

    try:
        facts = serve.get_app_handle(replicas.ENGINES).facts.remote().result(timeout_s=60)
    except Exception as error:  # of several kinds: no Serve, no application, nobody who answers
        raise Unavailable(f"no fleet answers ({str(error).splitlines()[0]}); start one with: make scale") from None
    figures = facts.served["candidate"].figures
    return facts.settings, figures.accuracy if figures else 0.0


def config(values: dict[str, Any], port: int) -> str:
    """The one file that `serve deploy` takes, YAML. It has no token: that is each node's variable SAJI_TOKEN."""
    import yaml

    from demo.scale import replicas

    told = {name: value for name, value in values.items() if name != "token"}
    applications = [
        {"name": name, "route_prefix": prefix, "import_path": f"demo.scale.replicas:{build.__name__}", "args": told}
        for name, build, prefix in replicas.APPLICATIONS
    ]
    where = {"host": values["host"], "port": port}
    content = {"proxy_location": "EveryNode", "http_options": where, "applications": applications}
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def kuberay(values: dict[str, Any], port: int, image: str) -> str:
    """The same as a RayService for KubeRay, YAML: pods of `image`, which find the model in the claim saji-models.

    A pod has a replica. SAJI_TOKEN comes from the secret saji, where there is one.
    """
    import ray
    import yaml

    folder = str(Path(values["deployment"]).parent)
    cores, gpus = math.ceil(values["cpus"]), math.ceil(values["gpus"])
    fewest, most = values["replicas"][0], values["replicas"][-1]

    def pod(cpu: int, gpu: int) -> dict[str, Any]:
        limits = {"cpu": str(cpu), "memory": f"{POD_GIB}Gi", **({"nvidia.com/gpu": str(gpu)} if gpu else {})}
        token = {"secretKeyRef": {"name": "saji", "key": "token", "optional": True}}
        container = {
            "name": "ray",
            "image": image,
            "env": [{"name": "SAJI_TOKEN", "valueFrom": token}, {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
            "resources": {"limits": limits, "requests": limits},
            "volumeMounts": [{"name": "models", "mountPath": folder}],
        }
        volume = {"name": "models", "persistentVolumeClaim": {"claimName": "saji-models"}}
        return {"spec": {"containers": [container], "volumes": [volume]}}

    head = {"rayStartParams": {"num-cpus": "0"}, "template": pod(2, 0)}
    workers = {"groupName": "engines", "replicas": fewest, "minReplicas": fewest, "maxReplicas": most + 1}
    content = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "saji"},
        "spec": {
            "serveConfigV2": config(values | {"host": "0.0.0.0"}, port),  # a pod's own network
            "rayClusterConfig": {
                "rayVersion": ray.__version__,
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": True,  # also for the one engine more of an update
                "headGroupSpec": head,
                "workerGroupSpecs": [{**workers, "rayStartParams": {}, "template": pod(cores, gpus)}],
            },
        },
    }
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text
