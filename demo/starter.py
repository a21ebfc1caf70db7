"""Which deployment `make demo` serves: one of the user's own photos, else the starter, which is made when missing."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from runtime.deployment import Deployment
from runtime.errors import SajiError
from runtime.files import is_file
from runtime.receipt import Receipt
from runtime.terminal import say


def to_serve(out: Path, asked: str) -> Path:
    """The deployment to serve below `out`, as `asked`: "own", the "starter", which is made when missing, or "auto".

    That is one's own if it is of real photos or there is no starter, else the starter. A service asks for its own, so
    that it ends where that is missing instead of serving something else. Raises SajiError where the starter cannot be
    made.
    """
    own, starter = out / "deployment.json", out / "starter" / "deployment.json"
    chosen = is_file(own)
    drawn = chosen and _drawn(own)
    if asked == "own" or (asked == "auto" and chosen and not (drawn and starter.is_file())):
        if drawn and asked == "auto":
            say("serving a network of drawn dishes; for real photos: make demo ARGS='--serve starter'")
        return own
    if not starter.is_file():
        _make_starter(starter.parent)
    other = "your own choice: make demo ARGS='--serve own'" if chosen else "your own dishes: make DATA=my_dishes"
    say(f"serving the starter, which knows some foods; {other}")
    return starter


def _drawn(path: Path) -> bool:
    """Whether what a deployment serves was trained on drawn dishes; what cannot be read is told when it is opened."""
    with contextlib.suppress(SajiError):
        return bool(Receipt.read(path.parent / Deployment.read(path).choice.folder).spec.data.get("drawn"))
    return False


def _make_starter(out: Path) -> None:
    say("making the starter, once, which takes a minute")
    here = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    for module, *more in (
        ("training", "starter"),
        ("export", "--run", "starter", "--precisions", "fp32"),
        ("runtime", "bench", "--seconds", "3", "--cold-starts", "0"),
    ):
        command = [sys.executable, "-m", module, *more, "--out", str(out)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": here}).returncode:
            raise SajiError("the starter could not be made, see above; or choose a model of yours: make DATA=my_dishes")
