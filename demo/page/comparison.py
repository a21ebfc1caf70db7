"""The same photo through every candidate that passed on this machine, one after another.

Each is opened in a process of its own, as in the race, because engines in one process disturb each other.
"""

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from runtime.benchmark.contestant import Contestant
from runtime.candidate import Candidate
from runtime.deployment import Deployment
from runtime.environment import machine
from runtime.errors import BadModel, SajiError
from runtime.receipt import Receipt

CALLS_SECONDS = 0.3  # of calls after the warm-up, as long as a turn of the race


@dataclass(frozen=True)
class Row:
    """What one candidate said, or in one sentence why it could not.

    `milliseconds` are the median of an inference; `difference` is the largest of a probability from the reference's,
    None where the architecture has no reference that answered.
    """

    name: str
    candidate: Candidate
    probabilities: dict[str, float] = field(default_factory=dict)
    sure: bool = True
    milliseconds: float = 0.0
    difference: float | None = None
    problem: str = ""

    @property
    def label(self) -> str:
        """The most likely class; empty where there is no answer."""
        return next(iter(self.probabilities), "")

    @property
    def is_reference(self) -> bool:
        """Whether the others of its architecture are compared with it."""
        return is_reference(self.candidate)


def contenders(path: Path, deployment: Deployment) -> list[Contestant]:
    """The candidates that passed here: of the deployment at `path`, and of the receipts of all models beside its own.

    The architecture that serves comes first, and within each the reference, which the others are compared with.
    """
    places = (deployment.choice, *deployment.fallbacks)
    entrants = [Contestant(p.candidate, path.parent / p.folder, p.threads, p.streams) for p in places]
    models = {entrant.folder.parent for entrant in entrants}
    for folder in sorted(file.parent for parent in models for file in parent.glob("*/model.json")):
        entrants += [Contestant(candidate, folder) for candidate in _passed_here(folder)]
    once: dict[object, Contestant] = {}
    for entrant in entrants:
        once.setdefault((entrant.folder, entrant.candidate.key()), entrant)
    folders = list(dict.fromkeys(entrant.folder for entrant in once.values()))
    return sorted(once.values(), key=lambda e: (folders.index(e.folder), not is_reference(e.candidate)))


def _passed_here(folder: Path) -> list[Candidate]:
    with contextlib.suppress(BadModel):  # a neighbour that is being exported again
        here = [candidate for candidate in Receipt.read(folder).candidates if candidate.machine == machine()]
        return [candidate for candidate in here if candidate.verdict == "pass" and candidate.servable]
    return []


def is_reference(candidate: Candidate) -> bool:
    """Whether it is PyTorch in FP32, as the network was trained."""
    return (candidate.backend, candidate.precision, candidate.variant) == ("pytorch", "fp32", "")


async def compare(photo: bytes, entrants: list[Contestant], seconds: float) -> AsyncGenerator[Row, None]:
    """A row for each entrant as soon as it is there; none takes longer than `seconds`.

    `photo` is encoded, and known to be a picture of a bearable size. Close the iterator: it ends the process.
    """
    references: dict[Path, Row] = {}
    for entrant in entrants:
        row = await _apart(entrant, seconds, references.get(entrant.folder), photo)
        if row.is_reference and not row.problem:
            references[entrant.folder] = row
        yield row


async def _apart(entrant: Contestant, seconds: float, reference: Row | None, photo: bytes) -> Row:
    """`measured` in a thread, which is over when this is, whatever happens."""
    job = asyncio.ensure_future(asyncio.to_thread(measured, entrant, seconds, reference, photo))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:  # the visitor has gone, or the server stops
        if entrant.process:
            entrant.process.kill()
        await asyncio.wait([job])
        raise


def measured(entrant: Contestant, seconds: float, reference: Row | None = None, photo: bytes = b"") -> Row:
    """Open the entrant in its process, let it answer an encoded photo, time its inference, and end the process.

    Without a photo it is the golden one.
    """
    started = time.monotonic()
    row = Row(entrant.name, entrant.candidate)
    try:
        Receipt.read(entrant.folder).verify(entrant.folder, entrant.candidate.file)
        with _killed_after(seconds, entrant):
            answer = entrant.classify(photo)
            milliseconds = statistics.median(entrant.measure("single-stream", 1, CALLS_SECONDS).samples)
    except SajiError as error:
        late = time.monotonic() - started >= seconds
        reason = str(error).replace(str(entrant.folder), entrant.folder.name)  # no visitor needs our paths
        return replace(row, problem=f"no answer within {seconds:g} s" if late else reason)
    finally:
        entrant.close()
    row = replace(row, probabilities=answer.probabilities, sure=answer.sure, milliseconds=milliseconds)
    return replace(row, difference=_difference(row, reference)) if reference else row


@contextlib.contextmanager
def _killed_after(seconds: float, entrant: Contestant) -> Iterator[None]:
    late = threading.Timer(seconds, entrant.start().kill)
    late.start()
    try:
        yield
    finally:
        late.cancel()


def _difference(row: Row, reference: Row) -> float:
    return max(abs(row.probabilities[name] - value) for name, value in reference.probabilities.items())
