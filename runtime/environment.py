"""The conditions of a measurement: which machine, which versions, which commit."""

import dataclasses
import datetime
import platform
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime.backends import distributions
from runtime.machine import Machine, machine, output_of, usable_cores

__all__ = ["Machine", "commit", "machine", "saji_version", "stamp", "usable_cores", "versions"]

# Beside the backends' own
_LIBRARIES = "numpy pillow torchvision onnx nncf gradio opencv-python-headless scikit-learn"


def versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result, and Python's."""
    installed = {"python": platform.python_version()}
    for name in (*_LIBRARIES.split(), *distributions()):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def saji_version() -> str:
    """The version of saji that runs: of its package, or of the checkout."""
    try:
        return metadata.version("saji")
    except metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def commit() -> tuple[str | None, bool]:
    """The repository's commit and whether files differ from it; (None, False) outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # git looks further up, at the repository of whoever installed us in his
        return None, False
    head = output_of("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    dirty = output_of("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return head or None, bool(dirty)


def stamp() -> dict[str, Any]:
    """What every measured row carries, as JSON has it: when, of which commit, on which machine, with which versions."""
    head, dirty = commit()
    here = dataclasses.asdict(machine())
    here["cpu_features"] = [*here["cpu_features"]]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": head,
        "dirty": dirty,
        **{f"machine_{name}": value for name, value in here.items()},
        "versions": versions(),
    }
