"""Artefacts with a flipped bit or cut short, opened as commands do: refused in one sentence, or as good as before.

Some files have nothing to be checked by, and answer otherwise when a digit in them is another (UNCHECKED): those are
only to be read or refused. Nothing in any of them is run, and nothing outside of OUT is written: an audit hook of
Python watches the process that opens them, and the folder that it runs in stays empty.
"""

import importlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from lab.torture.apart import Apart
from lab.torture.campaign import Attempt, Found
from runtime.errors import SajiError

ATTEMPTS = 12_000  # of which one in eleven cuts: more than 10,000 flips and 1,000 cuts
CUTS = 1 / 11
SECONDS = 60
COMMITTED = Path(__file__).resolve().parents[2] / "results" / "sample.jsonl"  # rows as a benchmark writes them
NEXT_IN_LINE = 1e-4  # that a probability of another engine may differ by
ENGINE, ROWS = "engines/tensorrt.fp16.engine", "bench.jsonl"
TEMPORARY = Path(tempfile.gettempdir())
MODEL, RUN, PHOTO = "models/tiny", "runs/sample/tiny", "sample/rendang/rendang_000.jpg"


# How commands open what is in OUT, each giving a JSON value that is the same as long as the file is


def _served(file: str, out: Path, **how: Any) -> Any:
    import runtime

    with runtime.load(out / file, threads=1, **how) as classifier:
        answer, passed_over = classifier(out / PHOTO), bool(classifier.passed_over)
        return [passed_over, asdict(classifier.spec.geometry), answer.answer, answer.probabilities]


def _checkpoint(out: Path) -> Any:
    from training.network.classifier import load_checkpoint, reference_outputs

    model, spec = load_checkpoint(out / RUN / "checkpoint.pt")
    return [spec.record(), reference_outputs(model, _photos(out / MODEL)["images"][:2]).tolist()]


def _photos(folder: Path) -> Any:
    from runtime.evaluation import ValidationSet

    return vars(ValidationSet.load(folder / "validation.npz"))


def _judged(folder: str, out: Path) -> Any:
    return {name: np.asarray(each).tolist() for name, each in _photos(out / folder).items()}


def _engine(out: Path) -> Any:
    """What stands before every engine, whose library is not everywhere."""
    from runtime.receipt import Receipt

    Receipt.read(out / MODEL).verify(out / MODEL, ENGINE)
    return "the file of its receipt"


def _history(out: Path) -> Any:
    from training.run.records import GradientNorm, read_csv, read_history

    rows = [*read_history(out / RUN), *read_csv(out / RUN / "gradients.csv", GradientNorm)]
    return [vars(row) for row in rows]


def _bench(out: Path) -> Any:
    from runtime.benchmark.command import side_by_side

    return side_by_side(out / ROWS, out / ROWS)


Open = Callable[[Path], Any]
DOORS: dict[str, Open] = {
    f"{MODEL}/model.onnx": partial(_served, MODEL),
    f"{MODEL}/model.json": partial(_served, MODEL),
    f"{MODEL}/golden.json": partial(_served, MODEL),
    f"{MODEL}/golden.png": partial(_served, MODEL),
    f"{MODEL}/model.pt2": partial(_served, MODEL, backend="pytorch"),
    f"{MODEL}/model.pt2 alone": partial(_served, f"{MODEL}/model.pt2"),
    f"{MODEL}/model.onnx alone": partial(_served, f"{MODEL}/model.onnx"),
    f"{MODEL}/{ENGINE}": _engine,
    f"{MODEL}/validation.npz": partial(_judged, MODEL),
    f"{RUN}/validation.npz": partial(_judged, RUN),
    f"{RUN}/checkpoint.pt": _checkpoint,
    f"{RUN}/history.csv": _history,
    f"{RUN}/gradients.csv": _history,
    "deployment.json": partial(_served, "deployment.json"),
    ROWS: _bench,
}
UNCHECKED = {f"{MODEL}/model.onnx alone", f"{RUN}/history.csv", f"{RUN}/gradients.csv", ROWS}


@contextmanager
def prepared(folder: Path) -> Iterator[Attempt]:
    """A tiny network's artefacts, and a process that opens them in an empty folder."""
    pristine, empty = folder / "pristine", folder / "empty"
    empty.mkdir()
    make(pristine)
    opening = Apart(opened, folder / "empty.log", SECONDS)
    try:
        for door in DOORS:
            opening(b"", door, str(pristine), str(pristine))
        yield lambda chance: _attempt(chance, folder, opening)
    finally:
        opening.close()


def make(out: Path) -> None:
    """Artefacts of every kind: the tiny network's, an engine that no library would open, and a benchmark's rows."""
    from lab.torture import tiny
    from runtime.benchmark.rows import append_rows, read_rows
    from runtime.receipt import Receipt, file_facts

    tiny.train_and_export(out)
    (out / MODEL / ENGINE).parent.mkdir()
    (out / MODEL / ENGINE).write_bytes(random.Random(0).randbytes(20_000))
    receipt = Receipt.read(out / MODEL)
    replace(receipt, files=receipt.files | file_facts(out / MODEL, [ENGINE])).write(out / MODEL)
    append_rows(out / ROWS, read_rows(COMMITTED)[:4])
    for other in [out / "cache", *(path for path in (out / "sample").glob("*/*") if path != out / PHOTO)]:
        shutil.rmtree(other) if other.is_dir() else other.unlink()  # each attempt has a copy of all


def _attempt(chance: random.Random, folder: Path, opening: Apart) -> str:
    door, out = chance.choice([*DOORS]), folder / "out"
    name, cut = door.partition(" ")[0], chance.random() < CUTS
    shutil.copytree(folder / "pristine", out)
    try:
        content = damaged(chance, (out / name).read_bytes(), cut)
        (out / name).write_bytes(content)
        came = opening(content, door, str(out), str(folder / "pristine"))
    finally:
        shutil.rmtree(out)
    if any((folder / "empty").iterdir()) or len([*folder.iterdir()]) > 3:
        raise Found(f"opening {door} left something outside of OUT", content)
    return f"{'cut' if cut else 'flipped'}: {came}"


def damaged(chance: random.Random, content: bytes, cut: bool) -> bytes:
    """With one bit flipped, or cut short."""
    if cut:
        return content[: chance.randrange(len(content))]
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


# In the process that opens


def opened(door: str, out: str, pristine: str) -> str:
    """What came of opening by a door what is in the folder `out`. Raises Found; whatever else is raised is a fault."""
    expected, watched = _expected(door, pristine), _watched()
    watched.clear()
    try:
        answer = json.dumps(DOORS[door](Path(out)))
    except SajiError as error:
        if "\n" in str(error) or len(str(error)) < 20:
            raise Found(f"{door} is refused without a sentence: {error!r}") from None
        answer = ""
    if strange := _strange(watched, out):
        raise Found(f"opening {door} led to {strange[0]}")
    if answer in ("", expected):
        return "the same answer" if answer else "refused"
    if door in UNCHECKED:
        return "read otherwise"
    if door == "deployment.json" and _by_the_next(json.loads(answer), json.loads(expected)):
        return "the next in line"
    raise Found(f"{door} answers otherwise: {answer[:200]}")


def _by_the_next(answer: list[Any], expected: list[Any]) -> bool:
    """Whether a deployment passed over its choice, and what came next answers as an engine of that network does."""
    (passed_over, *same, theirs), (_, *said, ours) = answer, expected
    close = theirs.keys() == ours.keys() and all(abs(theirs[name] - ours[name]) < NEXT_IN_LINE for name in ours)
    return passed_over and same == said and close


@cache
def _expected(door: str, pristine: str) -> str:
    """The answer to what is whole; asked first, it also imports what opening needs."""
    importlib.import_module("lab.torture.tiny")  # the architecture, by its name
    return json.dumps(DOORS[door](Path(pristine)))


# By Python's table of audit events
RUNS = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"}
RUNS |= {"socket.connect", "socket.bind", "pickle.find_class", "os.link", "os.symlink", "os.chmod", "os.chown"}
CHANGES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.truncate", "shutil.rmtree"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _strange(watched: list[tuple[str, str]], out: str) -> list[str]:
    """What ran, or changed anything but OUT and temporary folders that are gone again.

    A judgement anew, where the machine in a receipt is another one by a bit, keeps its verdict and has such a folder.
    """
    passing = [what for event, what in watched if event == "os.mkdir" and _is_temporary(what)]

    def may(event: str, what: str) -> bool:
        emptied = bool(passing) and event in ("os.remove", "os.rmdir") and not Path(what).is_absolute()
        return event not in RUNS and (emptied or any(_lies_in(folder, what) for folder in (out, *passing)))

    return [f"{event} {what}" for event, what in watched if not may(event, what)]


def _is_temporary(folder: str) -> bool:
    return Path(folder).parent == TEMPORARY and not Path(folder).exists()


def _lies_in(folder: str, file: str) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))


@cache
def _watched() -> list[tuple[str, str]]:
    """What this process has run, changed, or opened to write since the list was cleared: events, and of what."""
    events = list[tuple[str, str]]()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in RUNS | CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
            for what in arguments[: 2 if event == "os.rename" else 1]:
                events.append((event, os.fsdecode(what) if isinstance(what, bytes) else str(what)))

    sys.addaudithook(watch)
    return events
