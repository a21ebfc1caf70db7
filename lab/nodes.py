"""A Ray cluster whose nodes are network namespaces of this machine, each with an address and a small disk of its own.

Needs root, `ip` and `mount`. What is shared is the kernel and the files: a real node has its own copy of the model.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from runtime import cluster
from runtime.errors import SajiError, Unavailable

HEAD, PORT = "10.77.0.1", 6391
BRIDGE = "saji"
DISK_MIB = 256


class Node:
    """A namespace with a bridge to the others; Ray runs in it from `start` to `kill`."""

    def __init__(self, number: int) -> None:
        self.name, self.address = f"{BRIDGE}{number}", f"10.77.0.{10 + number}"
        self.disk = Path(f"/tmp/{self.name}")

    @contextmanager
    def made(self) -> Iterator["Node"]:
        """The namespace and the disk, for a while."""
        inside, outside = f"{self.name}in", f"{self.name}out"
        with ExitStack() as undo:
            _type(f"ip netns add {self.name}")
            undo.callback(_type, f"ip netns del {self.name}")
            _type(f"ip link add {outside} master {BRIDGE} up type veth peer name {inside} netns {self.name}")
            for line in (f"addr add {self.address}/24 dev {inside}", f"link set {inside} up", "link set lo up"):
                _type(f"ip -n {self.name} {line}")
            self.disk.mkdir(exist_ok=True)
            undo.callback(shutil.rmtree, self.disk, ignore_errors=True)
            _type(f"mount -t tmpfs -o size={DISK_MIB}m saji {self.disk}")
            undo.callback(_type, f"umount --lazy {self.disk}")
            undo.callback(self.kill)
            yield self

    def start(self) -> None:
        """Let Ray join the head here, with a core."""
        words = f"--address={HEAD}:{PORT} --node-ip-address={self.address} --num-cpus=1 --temp-dir={self.disk}"
        _ray(["ip", "netns", "exec", self.name], words)

    def kill(self) -> None:
        """End all processes of the node at once, as a loss of power does."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """What runs in it."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [*map(int, found.stdout.split())]

    def fill(self) -> None:
        """Leave no byte free on the disk."""
        with (self.disk / "filling").open("wb", buffering=0) as file:
            try:
                while file.write(b"0" * 4096):
                    pass
            except OSError:
                return

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.disk / "filling").unlink(missing_ok=True)


@contextmanager
def nodes(count: int) -> Iterator[list[Node]]:
    """A head without a core at HEAD:PORT and so many nodes with one each. Raises Unavailable where that may not be."""
    if os.name != "posix" or os.geteuid() or not shutil.which("ip"):
        raise Unavailable("nodes are network namespaces, which take root and iproute2; run this as root on Linux")
    os.environ.update(cluster.NOTHING_REPORTED | cluster.WITH_TOKEN | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    with ExitStack() as undo:
        _type(f"ip link add {BRIDGE} type bridge")
        undo.callback(_type, f"ip link del {BRIDGE}")
        _type(f"ip addr add {HEAD}/24 dev {BRIDGE}")
        _type(f"ip link set {BRIDGE} up")
        made = [undo.enter_context(Node(number).made()) for number in range(count)]
        folder = Path(f"/tmp/{BRIDGE}head")
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        undo.callback(subprocess.run, [*_ray_line(), "stop", "--force"], capture_output=True, check=False)
        words = f"--head --port={PORT} --node-ip-address={HEAD} --num-cpus=0 --include-dashboard=false"
        _ray([], f"{words} --temp-dir={folder}")
        for node in made:
            node.start()
        yield made


def _ray_line() -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts"]


def _ray(where: list[str], words: str) -> None:
    for _ in range(2):  # on cores that are loaded Ray gives up after 30 s
        done = subprocess.run(
            [*where, *_ray_line(), "start", *words.split()], capture_output=True, text=True, check=False
        )
        if not done.returncode:
            return
        time.sleep(1)
    raise SajiError(f"ray start {words} failed: {done.stderr.strip()[-300:]}")


def _type(line: str) -> None:
    done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SajiError(f"{line} failed: {done.stderr.strip()}")
