"""Our own parsers, of zips, listings, TOML, JSON, specs and receipts, fed by atheris: read, or refused in one sentence.

An attempt is RUNS inputs for one of them, in a process of its own that begins with what is right. Where atheris is not
installed, changes that nothing guides take its place, and the row says so; `make torture` installs it.
"""

import importlib.util
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.torture import guided
from lab.torture.campaign import Attempt, Found

ATTEMPTS = 48
RUNS = 20_000
PATIENCE = 900  # seconds of an attempt
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def prepared(folder: Path) -> Iterator[Attempt]:
    """Nothing but a folder to work in."""
    yield lambda chance: _attempt(chance, folder / "run")


def _attempt(chance: random.Random, folder: Path) -> str:
    name, how = chance.choice([*guided.PARSERS]), "guided" if importlib.util.find_spec("atheris") else "unguided"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    line = [sys.executable, "-m", guided.__name__, name, str(chance.getrandbits(31)), str(RUNS), str(folder)]
    try:
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Found(f"{name}: it did not end within {PATIENCE} s") from None
    if done.returncode:
        inputs = [file.read_bytes() for file in folder.glob("*-*") if file.is_file()]
        said = [
            text for text in done.stderr.splitlines() if ": " in text and not text.startswith((" ", "#", "INFO", "=="))
        ]
        raise Found(f"{name}: {said[0] if said else done.stderr[-200:]}", inputs[0] if inputs else b"")
    return f"{name}, {how}: {RUNS:,} inputs"
