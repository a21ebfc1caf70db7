"""`python -m demo.scale`: page and API as a fleet on Ray Serve, on this machine or a cluster."""

import argparse
import dataclasses
import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

from demo.scale import rollout
from demo.service.libraries import require_libraries
from demo.service.limits import Limits, bounds, flag_of
from demo.service.network import Way
from demo.service.proxies import LOOPBACK, networks_of, require_path
from demo.starter import to_serve
from runtime import cluster
from runtime.command_line import Parser, exit_with_one_sentence
from runtime.errors import SajiError, missing_extra
from runtime.files import as_text
from runtime.terminal import say

DROP = 0.01  # accuracy that an update may cost, as `runtime.choice.Policy` has it


def main() -> None:
    """Read the command line, then start or update a fleet."""
    arguments = _arguments()
    if importlib.util.find_spec("ray") is None:
        raise missing_extra("ray", "scale")
    require_libraries()
    if arguments.write_config:
        return write(arguments)
    if arguments.update or arguments.rollback:
        return change(arguments)
    start(arguments)


def write(arguments: argparse.Namespace) -> None:
    """Write the fleet as a file."""
    values, file = _settings(arguments), arguments.write_config
    if image := arguments.kuberay:
        text, then = rollout.kuberay(values, arguments.port, image), f"kubectl apply -f {file}"
    else:
        text, then = rollout.config(values, arguments.port), f"serve deploy {file}"
    file.write_bytes(as_text(text).encode())
    say(f"wrote {file}; on a running cluster: {then}")


def start(arguments: argparse.Namespace) -> None:
    """Serve a fleet: embedded until a signal, or on the cluster at --address, which keeps it."""
    values = _settings(arguments)
    with rollout.fleet(values, arguments.port, arguments.address, arguments.dashboard):
        where = Way((arguments.host,), arguments.port)
        say(f"serving {values['deployment']} by {values['replicas'][0]} replicas on {where.address}")
        if arguments.address:
            return say("the cluster keeps it; end it with: serve shutdown")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            say("stopping: what was accepted is answered first")


def change(arguments: argparse.Namespace) -> None:
    """Roll the running fleet over to another deployment, or back to the one before."""
    if not arguments.address:  # one that `start` has started here
        os.environ.update(cluster.WITH_TOKEN)
    rollout.join(arguments.address or "auto")
    settings, accuracy = rollout.running()
    fresh = settings.previous if arguments.rollback else str(arguments.update.resolve())
    if not fresh:
        raise SajiError("this fleet has served one deployment only; roll over to another with --update FILE")
    floor = 0.0 if arguments.rollback or arguments.allow_worse else max(0.0, accuracy - DROP)
    values = dataclasses.asdict(settings)
    rollout.require_room(values, settings.replicas[0] + 1, arguments.address)  # the new one stands beside the others
    try:
        rollout.deploy(values | {"deployment": fresh, "previous": settings.deployment, "floor": floor})
    except (SajiError, KeyboardInterrupt) as error:
        rollout.deploy(values)  # so that what Serve calls wanted is what goes on
        if isinstance(error, KeyboardInterrupt):
            raise
        raise SajiError(f"refused, and the fleet goes on with {settings.deployment}: {error}") from None
    say(f"the fleet serves {fresh}; back with: python -m demo.scale --rollback")


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of `demo.scale.settings.Settings`. Raises SajiError for what cannot be."""
    from demo.service.guard import Hosts

    if min(arguments.replicas) < 1 or len(arguments.replicas) > 2 or arguments.replicas != sorted(arguments.replicas):
        raise SajiError("--replicas takes how many, or the fewest and the most, such as: --replicas 2 8")
    shares = arguments.cpus, arguments.gpus
    if shares[0] <= 0 or shares[1] < 0 or any(share > 1 and share % 1 for share in shares):  # as Ray has it
        raise SajiError("--cpus and --gpus take a share of one, such as 0.5, or a whole number; of cores more than 0")
    limits = {bound.name: getattr(arguments, f"max_{bound.name}") for bound in bounds()}
    Limits(**limits)
    Hosts(arguments.host, arguments.allow_host)
    networks_of(arguments.trusted_proxy)
    require_path(arguments.root_path)
    return {
        "deployment": str((arguments.deployment or to_serve(arguments.out, arguments.serve)).resolve()),
        "replicas": arguments.replicas,
        "cpus": arguments.cpus,
        "gpus": arguments.gpus,
        "top": arguments.top,
        "host": arguments.host,
        "allow_host": arguments.allow_host,
        "trusted_proxy": arguments.trusted_proxy,
        "root_path": arguments.root_path,
        "token": arguments.token.strip(),
        "limits": limits,
    }


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m demo.scale", description=(__doc__ or "").partition(": ")[2])
    add = parser.add_argument
    add("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")
    add("--deployment", type=Path, help="the choice to serve, on every node under this path (OUT/deployment.json)")
    add(
        "--serve", choices=["own", "starter", "auto"], default="own", help="your own choice, the starter, or auto (own)"
    )
    add("--address", default="", help="the Ray cluster to serve on (none: Ray is started on this machine)")
    add("--host", default="127.0.0.1", help="address that every node listens on (127.0.0.1)")
    add("--port", type=int, default=8000, help="port that every node listens on (8000)")
    add("--allow-host", nargs="+", default=[], metavar="NAME", help="names that browsers reach the fleet by; * for any")
    what = f"addresses of proxies that are believed about whom they ask for ({' '.join(LOOPBACK)})"
    add("--trusted-proxy", nargs="+", default=[*LOOPBACK], metavar="ADDRESS", help=what)
    add("--root-path", default="", metavar="PATH", help="path such as /saji, which a proxy in front takes away")
    add("--dashboard", default="", metavar="HOST", help="start Ray's dashboard on this address (none)")
    add("--replicas", type=int, nargs="+", default=[2], metavar="N", help="engines, or the fewest and the most (2)")
    add("--cpus", type=float, default=1.0, help="cores of a replica, and threads of its engine (1)")
    add("--gpus", type=float, default=0.0, help="share of a GPU of a replica (0)")
    add("--top", type=int, default=5, help="classes that an answer shows (5)")
    token = os.environ.get("SAJI_TOKEN", "")
    add("--token", default=token, help="only who sends it comes in; better in the variable SAJI_TOKEN, unseen by ps")
    add("--update", type=Path, metavar="FILE", help="roll the running fleet over to this deployment")
    add("--allow-worse", action="store_true", help=f"also where it is less accurate by more than {DROP}")
    add("--write-config", type=Path, metavar="FILE", help="write the file that `serve deploy` takes, and end")
    add("--kuberay", metavar="IMAGE", help="write it as a RayService for KubeRay instead, whose pods run this image")
    add("--rollback", action="store_true", help="roll it back to the deployment before")
    for bound in bounds():
        default = 1 if bound.name == "decoders" else bound.default  # of a replica that has one core
        what = f"{bound.metadata['what']}, of a replica ({default:,})"
        add(flag_of(bound), dest=f"max_{bound.name}", type=int, default=default, help=what)
    return parser.parse_args()


if __name__ == "__main__":
    exit_with_one_sentence(main)
