"""One candidate in a process of its own: engines in one process disturb each other's threads and caches.

Speaks JSON lines. The first on stdin is {"candidate": …, "threads": N, "streams": N, …}; orders follow:
{"do": "check"}, {"do": "classify", "photo": base64} and {"do": "time", "scenario": …, "batch": N, "seconds": S,
"flags": {…}}; it idles in between.
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

import numpy as np

from runtime import golden
from runtime.backends import unavailable_because
from runtime.benchmark.scenarios import SCENARIOS, Bench, Measurement, settle
from runtime.benchmark.watch import Watch, gpu_memory_mib, peak_memory_mib
from runtime.candidate import Candidate, check_candidate
from runtime.classifier import Classifier, Prediction
from runtime.errors import NotAsAsked, SajiError
from runtime.evaluation import ValidationSet, compare
from runtime.files import reading
from runtime.receipt import Receipt

PHOTOS = 64  # that an engine is fed in turn; all of them would count as its memory


def main() -> None:
    """Serve one candidate until stdin closes. Argument: model folder."""
    folder, settings = Path(sys.argv[1]), json.loads(sys.stdin.readline())
    candidate = Candidate.from_values(settings.pop("candidate"))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not break the protocol
    unavailable_because(candidate.backend)  # imports the library while other processes start too, before any clock
    worker: Worker | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            with reading(folder):
                if order.pop("do") == "check":
                    receipt, sha256 = Receipt.read(folder), settings["sha256"]
                    record: Any = check_candidate(candidate, folder, receipt.photos(folder), receipt.spec, sha256)
                else:
                    worker = worker or Worker(folder, candidate, **settings)
                    record = worker.classify(**order) if "photo" in order else worker.measure(**order)
            answer = dataclasses.asdict(record)
        except SajiError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The candidate's engine, opened once, with photos to feed it."""

    def __init__(
        self, folder: Path, candidate: Candidate, threads: int, streams: int, photo: str, seed: int, sha256: str
    ) -> None:
        started = time.perf_counter()
        engine = candidate.open(folder, threads, streams, sha256)
        self.load_seconds = time.perf_counter() - started
        receipt = Receipt.read(folder)
        if not photo:
            receipt.verify(folder, golden.PHOTO)
        self.classifier = Classifier(receipt.spec, engine, candidate)
        self.encoded = Path(photo or folder / golden.PHOTO).read_bytes()
        self.folder, self.streams, self.seed = folder, streams, seed
        self.warm: set[tuple[str, int]] = set()

    @cached_property
    def bench(self) -> Bench:
        """The engine and photos for it; a first label needs none of them."""
        images = ValidationSet.first_images(self.folder / "validation.npz", PHOTOS)
        return Bench(self.classifier, images, self.encoded, self.streams, self.seed)

    def _require_same_answers(self, batch: int) -> None:
        """Raise NotAsAsked where photos get other answers in a batch of this size than each alone gets."""
        if batch > 1:
            photos = self.bench.batch(batch)
            alone = np.concatenate([self.classifier.logits(photo[None]) for photo in photos])
            shift = compare(alone, self.classifier.logits(photos), np.zeros(batch, int)).worst_shift
            if not shift <= self.classifier.candidate.bounds.worst_shift:  # NaN, too
                raise NotAsAsked(f"answers photos in batches of {batch} otherwise than one by one (shift {shift:.2g})")

    def classify(self, photo: str) -> Prediction:
        """What a photo in base64 shows, by default that of end-to-end."""
        return self.classifier(base64.b64decode(photo) or self.encoded)

    def measure(self, scenario: str, batch: int, seconds: float, flags: dict[str, Any]) -> Measurement:
        """Measure once under a load, warmed up, with memory, load time and what else the machine did meanwhile."""
        load = SCENARIOS[scenario]
        if not load.alone:  # one that is, comes after the rounds and takes long
            if (scenario, batch) not in self.warm:
                self._require_same_answers(batch)
                settle(lambda: load.measure(self.bench, batch, 0, **flags), 2)  # of LEAST_CALLS each
                self.warm.add((scenario, batch))
            load.measure(self.bench, batch, 0, **flags)  # the others' measurements have cooled the caches
        watch = Watch()
        measurement = load.measure(self.bench, batch, seconds, **flags)
        if otherwise := self.classifier.backend.otherwise:  # a figure under a name that it does not deserve
            raise NotAsAsked(otherwise)
        return dataclasses.replace(
            measurement,
            disturbance=watch.stop(),
            load_seconds=self.load_seconds,
            peak_memory_mib=peak_memory_mib(),
            gpu_memory_mib=gpu_memory_mib(),
        )


if __name__ == "__main__":
    main()
