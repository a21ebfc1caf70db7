"""The images of demo/containers as they were built here: how large they are, and the service in one as it is deployed.

Read-only, without capabilities, with 512 MiB, one core, and as process 1 without an init: small photos and some of
20 MB are sent, a decoder is killed, and it is stopped while it serves and while it opens the model. The engine of
containers is `docker` or `podman`; --options are more of its `run`, where a machine needs them.
"""

import argparse
import io
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from lab.load.server import peak_memory_mib
from runtime.benchmark.rows import Row
from runtime.errors import SajiError, Unavailable

TARGETS = ("serve-cpu", "serve-gpu", "train")
MEMORY_MIB, CORES, START_SECONDS, STOP_SECONDS = 512, 1, 120, 70
NAME = "saji-measured"
APART = f"--read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp:size=64m --memory {MEMORY_MIB}m"
FLAGS = "--threads 1 --max-decoders 1 --max-decode-memory 200 --max-upload 25000000 --max-uploads 50000000"
LARGE, SMALL = (2700, 2600), (512, 384)  # pixels of noise; as PNG 20 MB and half a MB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which engine of containers, and what is served."""
    parser.add_argument("--engine", default="docker", help="the command of the engine, such as podman (docker)")
    parser.add_argument("--options", default="", help="more options of its `run`, in one text")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")
    parser.add_argument("--photos", type=int, default=300, help="small photos that are sent (300)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each image of TARGETS that is there, and one for the service. Raises SajiError, or Unavailable."""
    engine = shlex.split(arguments.engine)
    if not shutil.which(engine[0]):
        raise Unavailable(f"{engine[0]} is not here; name another engine with --engine, such as podman")
    if not (arguments.out / "deployment.json").is_file():
        raise SajiError(
            f"{arguments.out} has no deployment.json to serve; give another folder with --out, or type: make"
        )
    base = _said([*engine, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).split()
    tags = {target: next((tag for tag in base if tag.endswith(f"saji:{target}")), "") for target in TARGETS}
    for target, tag in tags.items():
        if tag:
            size = int(_said([*engine, "image", "inspect", "--format", "{{.Size}}", tag]))
            yield {"experiment": "containers", "what": "image", "target": target, "bytes": size}
    if not tags["serve-cpu"]:
        raise SajiError("there is no image saji:serve-cpu; build it as docs/containers.md says")
    options = [*shlex.split(APART), "--cpus", str(CORES), *shlex.split(arguments.options)]
    mounted = ["--network", "host", "--volume", f"{arguments.out.resolve()}:/artifacts:ro"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run = [*engine, "run", "--detach", "--name", NAME, *options, *mounted, tags["serve-cpu"], *shlex.split(FLAGS)]
    yield {
        "experiment": "containers",
        "what": "service",
        **_served(engine, [*run, "--port", str(port)], port, arguments),
    }


def _served(engine: list[str], run: list[str], port: int, arguments: argparse.Namespace) -> Row:
    """How the service did within its bounds, and how it ended."""
    try:
        started = time.perf_counter()
        _said(run)
        address = f"http://127.0.0.1:{port}"
        _await(f"{address}/readyz", started)
        ready = time.perf_counter() - started
        first = psutil.Process(int(_said([*engine, "inspect", "--format", "{{.State.Pid}}", NAME])))
        statuses, peak = _asked(f"{address}/v1/classify", first, arguments.photos)
        left = sum(child.status() == psutil.STATUS_ZOMBIE for child in first.children(recursive=True))
        serving = _stopped(engine)
        _said([*engine, "rm", NAME])
        _said(run)
        time.sleep(1)  # it imports and opens the model
        starting = _stopped(engine)
    finally:
        subprocess.run([*engine, "rm", "--force", NAME], capture_output=True)
    return {
        **{"memory_limit_mib": MEMORY_MIB, "cores_limit": CORES, "ready_seconds": round(ready, 1)},
        **{"statuses": dict(statuses), "peak_memory_mib": peak, "left_unreaped": left},
        **{"stop_serving": serving, "stop_starting": starting},
    }


def _asked(address: str, first: psutil.Process, photos: int) -> tuple[Counter[str], float]:
    """How answers ended, and the sum of the most memory that each process took, decoders included, in MiB."""
    large, small = _noise(LARGE), _noise(SMALL)
    statuses, peak = Counter[str](), 0.0
    for number in range(photos):
        if number == photos // 2:
            for child in first.children(recursive=True):
                child.kill()
        body = small if number % 30 else large
        request = urllib.request.Request(address, body, {"content-type": "image/png"})
        try:
            with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
                statuses[str(answer.status)] += 1
        except OSError as error:
            statuses[str(getattr(error, "code", "broken"))] += 1
        if number % 10 == 0:
            peak = max(peak, sum(map(peak_memory_mib, (first, *first.children(recursive=True)))))
    return statuses, round(peak, 1)


def _noise(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _await(address: str, since: float) -> None:
    while time.perf_counter() < since + START_SECONDS:
        with suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise SajiError(f"the container did not get ready within {START_SECONDS} s; see what it says without --detach")


def _stopped(engine: list[str]) -> dict[str, float]:
    """Seconds from SIGTERM to the end, and the exit status, which is 137 where the engine had to kill."""
    started = time.perf_counter()
    _said([*engine, "stop", "--time", str(STOP_SECONDS), NAME])
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "status": int(_said([*engine, "inspect", "--format", "{{.State.ExitCode}}", NAME]))}


def _said(command: list[str]) -> str:
    """What a command of the engine prints. Raises SajiError with the last line of its complaint."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SajiError(f"{command[0]} failed ({last}); type the same yourself: {shlex.join(command)}")
    return done.stdout.strip()
