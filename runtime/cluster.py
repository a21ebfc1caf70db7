"""Ray, joined or started here: what goes beyond one machine begins with it (extra `scale`)."""

import logging
import os
from typing import Any

from runtime.errors import Unavailable

# Ray reads these on import, and hands them to all processes that it starts
NOTHING_REPORTED = {"RAY_USAGE_STATS_ENABLED": "0"}
WITH_TOKEN = {"RAY_AUTH_MODE": "token"}  # of this user, ~/.ray/auth_token, which is made at the first start


def join(address: str, here: dict[str, Any], **anywhere: Any) -> None:
    """Join the cluster at `address`, or start Ray on this machine where that is "", which takes the words of `here`.

    `here` and `anywhere` are of `ray.init`. Nothing is reported, and nobody without a token comes in by a door of what
    is started here, unless the environment says otherwise; a cluster's own doors are as it was started. Raises
    Unavailable where Ray is not to be had.
    """
    for name, value in (NOTHING_REPORTED | ({} if address else WITH_TOKEN)).items():
        os.environ.setdefault(name, value)
    import ray

    alone = {"_node_ip_address": "127.0.0.1", "include_dashboard": False, **here}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address or "local", namespace="saji", **quiet, **({} if address else alone), **anywhere)
    except Exception as error:  # Ray raises Exception itself where a node does not come up in time
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        what = f"reached at {address}" if address else "started"
        advice = "see there with: ray status" if address else "a machine with other work may need a second try"
        raise Unavailable(f"Ray cannot be {what} ({line[:160]}); {advice}") from None


def room(cpus: float, gpus: float) -> int:
    """How many processes of so many cores and GPUs the nodes of Ray could hold. Where none, one waits for ever."""
    shares = {name: share for name, share in (("CPU", cpus), ("GPU", gpus)) if share}
    return sum(min(int(node.get(name, 0) / share + 1e-9) for name, share in shares.items()) for node in _nodes())


def there() -> str:
    """What the nodes of Ray have between them, in words."""
    nodes = _nodes()
    sums = (f"{sum(node.get(name, 0) for node in nodes):g} {name}" for name in ("CPU", "GPU"))
    return f"{' and '.join(sums)} on {len(nodes)} node{'s' * (len(nodes) != 1)}"


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
