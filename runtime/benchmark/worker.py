"""One candidate in a process of its own: engines in one process disturb each other's threads and caches.

Speaks JSON lines. Commands on stdin: {"do": "check"}, {"do": "time", "scenario": …, "batch": N, "seconds": S},
{"do": "serve", "rate": R, "queries": N, "seed": I} and {"do": "classify", "photo": base64}; it idles in between.
"""

import base64
import dataclasses
import json
import os
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime import golden
from runtime.backends import unavailable_because
from runtime.benchmark.disturbance import Watch
from runtime.benchmark.scenarios import SCENARIOS, Bench, server, settle
from runtime.candidate import Candidate, check_candidate
from runtime.classifier import Classifier
from runtime.errors import SajiError
from runtime.evaluation import ValidationSet
from runtime.receipt import Receipt


def main() -> None:
    """Serve one candidate until stdin closes. Arguments: model folder; as JSON candidate, threads, streams, photo."""
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    candidate = Candidate.from_values(asked.pop("candidate"))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not break the protocol
    unavailable_because(candidate.backend)  # imports the library while other processes start too, before any clock
    worker: Worker | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "check":
                validation = ValidationSet.load(folder / "validation.npz")
                answer = dataclasses.asdict(check_candidate(candidate, folder, validation, Receipt.read(folder).spec))
            else:
                worker = worker or Worker(folder, candidate, **asked)
                answer = worker.classify(order.get("photo", "")) if order["do"] == "classify" else worker.answer(order)
        except SajiError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The candidate's engine, opened once, with photos to feed it."""

    def __init__(self, folder: Path, candidate: Candidate, threads: int, streams: int, photo: str) -> None:
        started = time.perf_counter()
        engine = candidate.open(folder, threads, streams)
        self.load_seconds = time.perf_counter() - started
        self.classifier = Classifier(Receipt.read(folder).spec, engine, candidate)
        self.encoded = Path(photo or folder / golden.PHOTO).read_bytes()
        self.folder, self.streams = folder, streams
        self.warm: set[tuple[str, int]] = set()

    @cached_property
    def bench(self) -> Bench:
        """The engine and photos for it; a first label needs none of them."""
        images = ValidationSet.load(self.folder / "validation.npz").images
        return Bench(self.classifier, images, self.encoded, self.streams)

    def classify(self, photo: str = "") -> dict[str, Any]:
        """What a photo in base64 shows, by default that of end-to-end: a `runtime.classifier.Prediction`."""
        return dataclasses.asdict(self.classifier(base64.b64decode(photo) or self.encoded))

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """One turn of a scenario, with peak memory, load time and what else the machine did meanwhile."""
        watch = Watch()
        if order["do"] == "serve":
            measured: dict[str, Any] = {"samples": server(self.bench, order["rate"], order["queries"], order["seed"])}
        else:
            scenario, batch = order["scenario"], order["batch"]
            turn = SCENARIOS[scenario].turn
            if (scenario, batch) not in self.warm:
                settle(lambda: turn(self.bench, batch, 0), 2)  # of LEAST_CALLS each
                self.warm.add((scenario, batch))
            turn(self.bench, batch, 0)  # the others' turns have cooled the caches
            watch = Watch()
            measured = turn(self.bench, batch, order["seconds"])
        meanwhile = watch.stop()
        memory = {"peak_memory_mib": peak_memory_mib(), "gpu_memory_mib": gpu_memory_mib()}
        return {**measured, "load_seconds": self.load_seconds, **memory, "meanwhile": meanwhile}


def peak_memory_mib() -> float | None:
    """Largest resident memory of this process so far, MiB; None where the system does not tell."""
    status = Path("/proc/self/status")  # Linux: getrusage counts what the parent had before it became this process
    lines = status.read_text(encoding="utf-8", errors="replace").splitlines() if status.is_file() else []
    if largest := [line.split()[1] for line in lines if line.startswith("VmHWM:")]:
        return round(int(largest[0]) / 2**10, 1)
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def gpu_memory_mib() -> float | None:
    """What this process holds of the first GPU's memory, MiB, by NVML; None without a GPU or where NVML does not tell.

    In a container whose processes have numbers of their own, NVML knows them by others and does not tell.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        held = {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device)}.get(os.getpid())
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
    return round(held / 2**20, 1) if held else None


if __name__ == "__main__":
    main()
