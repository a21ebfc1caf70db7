"""Many seeded attempts to break one thing, which may be interrupted, and begun again at any of them.

A campaign is a module of this folder with `ATTEMPTS`, how many it makes, and `prepared(folder)`, a context manager that
gives the attempt: a function of a random generator, which decides all that is done, to what came of it, in a word or
two ("refused", "the same answer"). What ought not to have happened is raised as Found, and kept with its number.
An attempt may be an object with `told`: what that gives in the end, figures of all attempts, is in the row, unless it
raises Found.
"""

import argparse
import importlib
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, cast

from runtime.benchmark.rows import Row
from runtime.errors import SajiError
from runtime.files import write_json
from runtime.terminal import quiet, say

FOLDER = Path("artifacts/torture")
SAVE_SECONDS = 10.0
# In the order of `make torture`; a new one is a module and its name
CAMPAIGNS: tuple[str, ...] = ("pictures", "service", "http", "artefacts", "parsers", "kills", "disks", "troubles")

Attempt = Callable[[random.Random], str]


class Found(Exception):
    """A fault. `evidence`, if any, is what caused it: the bytes that were sent or written."""

    def __init__(self, what: str, evidence: bytes = b"") -> None:
        super().__init__(what)
        self.evidence = evidence


class Campaign(Protocol):
    """What a module of this folder has."""

    ATTEMPTS: int

    def prepared(self, folder: Path) -> AbstractContextManager[Attempt]:
        """Make what the attempts need; the empty `folder` goes when the campaign ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which campaigns, and how much of them."""
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=f"of {', '.join(CAMPAIGNS)} (all)")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other attempts (0)")
    parser.add_argument("--attempts", type=int, help="of each campaign; by default as many as it says")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this attempt alone, to see again what it found")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each campaign that comes to its end."""
    for name in arguments.campaigns or CAMPAIGNS:
        if name not in CAMPAIGNS:
            raise SajiError(f"there is no campaign {name}; choose from {', '.join(CAMPAIGNS)}")
        campaign = cast(Campaign, importlib.import_module(f"lab.torture.{name}"))
        attempts = campaign.ATTEMPTS if arguments.attempts is None else arguments.attempts
        if arguments.only is None:
            yield run(name, campaign, FOLDER, arguments.seed, range(attempts))
        else:
            numbers = range(arguments.only, arguments.only + 1)
            yield run(name, campaign, FOLDER / "again", arguments.seed, numbers)


def run(name: str, campaign: Campaign, folder: Path, seed: int, numbers: range) -> Row:
    """Make the attempts of these numbers, but for those that an interrupted run has made, and count what came of them.

    The faults are kept in `folder`, each as NAME.SEED.NUMBER with what caused it.
    """
    state = folder / f"{name}.{seed}.json"
    record = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else None
    if record is None or record["numbers"] != [numbers.start, numbers.stop]:
        record = {
            "numbers": [numbers.start, numbers.stop],
            "next": numbers.start,
            "came": {},
            "found": [],
            "seconds": 0.0,
        }
    came, saved = Counter(record["came"]), time.monotonic()
    say(f"{name}: {numbers.stop - record['next']:,} attempts")
    folder.mkdir(parents=True, exist_ok=True)
    log = quiet(folder / f"{name}.log")  # what libraries say of what is broken
    with log, tempfile.TemporaryDirectory() as work, campaign.prepared(Path(work)) as attempt:
        for number in range(record["next"], numbers.stop):
            try:
                came[attempt(random.Random(f"{name} {seed} {number}"))] += 1
            except Found as found:
                say(f"{name} {number}: {found}")
                (folder / f"{name}.{seed}.{number}").write_bytes(found.evidence)
                record["found"].append({"number": number, "what": str(found)[:300]})
            if (now := time.monotonic()) - saved > SAVE_SECONDS or number + 1 == numbers.stop:
                record |= {"next": number + 1, "came": came, "seconds": record["seconds"] + now - saved}
                write_json(state, record)
                saved = now
        figures: Row = {}
        try:
            figures = getattr(attempt, "told", dict)()
        except Found as found:
            record["found"].append({"number": None, "what": str(found)[:300]})
    state.unlink(missing_ok=True)
    return {
        "experiment": "torture",
        "campaign": name,
        "seed": seed,
        "attempts": len(numbers),
        "came": dict(sorted(came.items())),
        **figures,
        "found": record["found"],
        "seconds": round(record["seconds"], 1),
    }
