"""One candidate in a process of its own: engines in one process disturb each other's threads and caches.

Speaks JSON lines. Commands on stdin: {"do": "judge"}, {"do": "time", "batch": N, "seconds": S}; it idles in between.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends import unavailable_because
from runtime.candidate import Candidate, judged
from runtime.errors import SajiError
from runtime.evaluation import JudgingSet
from runtime.receipt import Receipt, candidate_from

WARM_UP_CALLS = 5


def main() -> None:
    """Serve one candidate until stdin closes. Arguments: model folder, candidate as JSON, threads."""
    folder, candidate = Path(sys.argv[1]), candidate_from(json.loads(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not break the protocol
    unavailable_because(candidate.backend)  # imports the library while other processes start too, before any clock
    worker: Worker | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "judge":
                judging = JudgingSet.load(folder / "judging.npz")
                answer = dataclasses.asdict(judged(candidate, folder, judging, Receipt.read(folder).spec))
            else:
                worker = worker or Worker(folder, candidate, int(sys.argv[3]))
                answer = worker.time(order["batch"], order["seconds"])
        except SajiError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The candidate's engine, opened once, with photos to feed it."""

    def __init__(self, folder: Path, candidate: Candidate, threads: int) -> None:
        started = time.perf_counter()
        self.backend = candidate.open(folder, threads)
        self.load_seconds = time.perf_counter() - started
        self.images = JudgingSet.load(folder / "judging.npz").images
        self.warm: set[int] = set()

    def time(self, batch: int, seconds: float) -> dict[str, Any]:
        """One turn of about `seconds`, at least 3 calls: milliseconds of each call, peak memory, load time.

        A call: a uint8 batch in host memory in, float32 logits in host memory out.
        """
        photos = np.ascontiguousarray(self.images[np.arange(batch) % len(self.images)])
        for _ in range(1 if batch in self.warm else WARM_UP_CALLS):
            self.backend.run(photos)
        self.warm.add(batch)
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while len(samples) < 3 or time.perf_counter() < end:
            started = time.perf_counter()
            self.backend.run(photos)
            samples.append(1000 * (time.perf_counter() - started))
        return {"samples": samples, "load_seconds": self.load_seconds, "peak_memory_mib": peak_memory_mib()}


def peak_memory_mib() -> float | None:
    """Largest resident memory of this process so far, MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


if __name__ == "__main__":
    main()
