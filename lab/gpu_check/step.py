"""A step of the check in a process of its own, so that a crash or a hang costs that step and nothing else."""

import contextlib
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.benchmark.rows import Row
from runtime.errors import SajiError, Unavailable

ROOT = Path(__file__).resolve().parents[2]
OURS = ("runtime", "training", "export", "demo", "lab")
KEPT = "kept"  # the folder in the place whose files are kept beside the rows


@dataclass(frozen=True)
class Place:
    """Where a step works: `folder` is shared by all of them, pictures have a side of `size` pixels.

    `seconds` are what the step has.
    """

    folder: Path
    size: int
    seconds: float

    def keep(self, name: str, text: str) -> str:
        """Keep a text beside the rows; its name, which holds the text's sha256, so that no other run's is replaced."""
        stem, _, kind = name.rpartition(".")
        name = f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.{kind}"
        (self.folder / KEPT).mkdir(exist_ok=True)
        (self.folder / KEPT / name).write_text(text, encoding="utf-8")
        return name


Check = Callable[[Place], Iterator[Row]]


@dataclass(frozen=True)
class Step:
    """`check` yields what it finds; its docstring says what it settles. It is stopped after `limit` seconds.

    Something found is wrong where it has a sentence under "wrong", affirms what the step asks under "says", and tells
    under "lacks" what this machine cannot show. A check that raises Unavailable is skipped, and fails by whatever else
    it raises. It passes where nothing is wrong and something is affirmed.
    """

    check: Check
    limit: float

    @property
    def name(self) -> str:
        """The name of the function, in words."""
        return self.check.__name__.replace("_", " ")


@dataclass(frozen=True)
class Outcome:
    """How a step ended: "PASS", "FAIL" or "SKIP", the reason or what was seen, its seconds, and all that it found."""

    step: str
    verdict: str
    says: str
    seconds: float = 0.0
    found: tuple[Row, ...] = ()

    def row(self) -> Row:
        """As it is kept."""
        return {"experiment": "gpu check", **asdict(self)}


def run(step: Step, place: Place) -> Outcome:
    """Run a step to its end or its limit; whatever it started ends with it."""
    name, log = step.check.__name__, place.folder / "log"
    code = f"from {__name__} import attempt; attempt({step.check.__module__!r}, {name!r}, "
    code += f"{str(place.folder)!r}, {place.size}, {place.seconds})"
    started = time.monotonic()
    with open(log, "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(place.seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # none of them is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = _found(place.folder / f"{name}.jsonl")
    verdict, says = _verdict(found, status, place.seconds, log)
    rows = tuple(row for row in found if "verdict" not in row)
    return Outcome(step.name, verdict, says, round(time.monotonic() - started, 1), rows)


def _found(file: Path) -> list[Row]:
    """The lines that a step wrote; the last may be torn."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _verdict(found: list[Row], status: int | None, seconds: float, log: Path) -> tuple[str, str]:
    how = "" if status is None else f"({signal.Signals(-status).name if status < 0 else f'status {status}'})"
    if found and "verdict" in found[-1]:
        verdict, says = found[-1]["verdict"], found[-1]["says"]
        if verdict != "PASS" or status == 0:
            return verdict, says
        end = f"did not end within {seconds:.0f} s" if status is None else f"died at its end {how}"
        return "FAIL", f"{says}, but its process {end}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")[:200]
    if status is None:
        return "FAIL", f"not done after {seconds:.0f} s and stopped; it was at: {last}"
    return "FAIL", f"its process died {how}: {last}"


def attempt(module: str, name: str, folder: str, size: int, seconds: float) -> None:
    """Run a check in this process; each thing found, and in the end the verdict, is a line of FOLDER/NAME.jsonl."""
    with open(Path(folder) / f"{name}.jsonl", "w", encoding="utf-8") as file:

        def tell(row: Row) -> None:
            file.write(json.dumps(row, default=str) + "\n")
            file.flush()

        found, raised = list[Row](), None
        try:
            for row in getattr(importlib.import_module(module), name)(Place(Path(folder), size, seconds)):
                found.append(row)
                tell(row)
        except Exception as error:
            raised = error
            traceback.print_exc()
        verdict, says = _of_rows(found, raised)
        tell({"verdict": verdict, "says": "; ".join(dict.fromkeys(says))})


def _of_rows(found: list[Row], raised: Exception | None) -> tuple[str, list[str]]:
    """The verdict by what was found until the end, or until something was raised; and why."""
    wrong, says, lacks = ([row[kind] for row in found if row.get(kind)] for kind in ("wrong", "says", "lacks"))
    if raised and not _missing(raised):
        wrong.append(_in_words(raised))
    if wrong:
        return "FAIL", wrong
    if raised:
        return "SKIP", [_in_words(raised)]
    return ("PASS", says + lacks) if says else ("SKIP", lacks or ["nothing was found out"])


def _missing(error: Exception) -> bool:
    """Whether it says that this machine lacks something, and not that what it has does not work."""
    foreign = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in OURS
    return isinstance(error, Unavailable) or foreign


def _in_words(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    told = str(error) if isinstance(error, SajiError) else "".join(traceback.format_exception_only(error))
    return " ".join(told.split())[:400]
