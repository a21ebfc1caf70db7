"""The doors that tests of strangers' photos, models and machines go through; when a room moves, this file is edited.

A command is asked in this process (`here`, quick) or in one of its own (`process`, for what only a fresh one shows).
"""

import contextlib
import functools
import http.server
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from runtime.candidate import Candidate
from runtime.choice import Policy, choose
from runtime.classifier import spec_of
from runtime.deployment import Measured
from runtime.errors import BadModel, BadPhoto, SajiError
from runtime.evaluation import Figures, ValidationSet, compare
from runtime.files import sha256_file
from runtime.gate import GATES, apply_gate
from runtime.preprocess import decode, pixels
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec
from training.photos.photo_set import Photo, read_photo_set

__all__ = ["GATES", "BadModel", "BadPhoto", "Candidate", "Geometry", "Measured", "ModelSpec", "Photo", "ValidationSet"]
__all__ += ["Policy", "Receipt", "SajiError", "apply_gate", "choose", "compare", "decode", "pixels", "read_photo_set"]
__all__ += ["sha256_file", "spec_of"]

# What stands after `python`, and the module whose `main` that runs
COMMANDS = {
    "runtime": (("-m", "runtime"), "runtime.__main__"),
    "training": (("-m", "training"), "training.__main__"),
    "check": (("-m", "training", "check"), "training.__main__"),
    "evaluate": (("-m", "training", "evaluate"), "training.__main__"),
    "export": (("-m", "export"), "export.__main__"),
    "bench": ((str(ROOT / "runtime" / "bench.py"),), "runtime.bench"),
    "demo": (("-m", "demo"), "demo.__main__"),
}
# What imports PyTorch or SciPy, and is imported once a test asks for it
ROOMS = {
    "architectures": "training.network.architectures",
    "classifier": "training.network.classifier",
    "confidence": "training.run.confidence",
    "dataset": "training.photos.dataset",
    "folds": "training.photos.split",
    "recipe": "training.recipe",
}
EMBED = ROOT / "demo" / "embed"
EMBEDDING_EXAMPLE = EMBED / "python" / "classify.py"


@dataclass(frozen=True)
class Said:
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit status {self.status}: {self.out[-1500:]}\n{self.err[-1500:]}"

    @property
    def last(self) -> str:
        """The last line on stderr, where a refusal stands."""
        return (self.err.strip().splitlines() or [""])[-1]

    @property
    def refused(self) -> bool:
        """Whether it ended with one sentence of ours, and no traceback."""
        return self.status in (1, 2) and self.last.startswith("saji: ") and "Traceback" not in self.err


def process(
    command: str, *arguments: object, environment: Mapping[str, str] | None = None, seconds: float = 300
) -> Said:
    """Run a command in a process of its own; `environment` is added to this one's."""
    return python(*COMMANDS[command][0], *arguments, environment=environment, seconds=seconds)


def python(
    *arguments: object, environment: Mapping[str, str] | None = None, seconds: float = 300, cwd: Path = ROOT
) -> Said:
    """Run Python in a process of its own, by default in the checkout, so that its packages are found."""
    line = [sys.executable, *map(str, arguments)]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(line, cwd=cwd, env=variables, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL)
    return Said(done.returncode, *(text.decode(errors="backslashreplace") for text in (done.stdout, done.stderr)))


def here(command: str, *arguments: object, encoding: str = "utf-8") -> Said:
    """Run a command in this process, its output in the given encoding; an exception becomes the traceback it would be.

    The sentence for an expected error is the command's own, `exit_with_one_sentence`.
    """
    from runtime.command_line import exit_with_one_sentence

    line, module = COMMANDS[command]
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", write_through=True)
    status, before = 0, sys.argv
    sys.argv = [module, *line[2:], *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            exit_with_one_sentence(importlib.import_module(module).main)
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except Exception:
        status = 1
        err = io.TextIOWrapper(io.BytesIO(err.buffer.getvalue() + traceback.format_exc().encode()))
    finally:
        sys.argv = before
    return Said(status, *(text.buffer.getvalue().decode(errors="backslashreplace") for text in (out, err)))


def room(name: str) -> ModuleType:
    """One of the ROOMS."""
    return importlib.import_module(ROOMS[name])


def module_at(path: Path) -> ModuleType:
    """A Python file that stands in no package."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def linked(model: Path, folder: Path, *files: str) -> Path:
    """A model folder to be changed: `files` of another, by default all; its JSON is a copy, the rest are links."""
    folder.mkdir(parents=True)
    for file in files or [path.name for path in model.iterdir()]:
        if file.endswith(".json"):
            shutil.copy(model / file, folder)
        else:
            (folder / file).symlink_to((model / file).resolve())
    return folder


def exported_anew(file: Path) -> None:
    """The ONNX file of a model folder becomes one that answers alike and has another sha256."""
    import onnx

    content = onnx.load(file)
    content.doc_string = "exported anew"
    file.unlink()  # it may be a link
    onnx.save(content, file)


def write_deployment(model: Path, path: Path, backend: str, precision: str = "fp32", **changes: Any) -> Path:
    """A `deployment.json` that chooses one candidate of a model folder, as a race that it won alone would write it."""
    receipt = Receipt.read(model)
    candidate = next(
        c for c in receipt.candidates if (c.backend, c.precision, c.servable) == (backend, precision, True)
    )
    facts, folder = receipt.files[candidate.file], os.path.relpath(model, path.parent)
    place = Measured(candidate, folder, facts.sha256, facts.bytes, 1.0, (1.0,) * 6)
    choose([replace(place, **changes)], [], Policy(), candidate.machine, {}).write(path)
    return path


def figures(accuracy: float) -> Figures:
    """Those of a candidate that agrees with its checkpoint, but for its accuracy."""
    return replace(compare(np.eye(4), np.eye(4), np.arange(4)), accuracy=accuracy)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[Any]:
    """The content of a JSON file, to be changed in place; afterwards the file holds what it has become."""
    content = json.loads(path.read_text(encoding="utf-8"))
    yield content
    path.write_text(json.dumps(content), encoding="utf-8")


def drawn(seed: int, size: tuple[int, int] = (96, 80), path: Path | None = None) -> Any:
    """A picture that no other seed gives, or the file that it is written to."""
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))
    if path is None:
        return picture
    picture.save(path)
    return path


def embedding_example(name: str) -> Path:
    """The example's folder with its packages; skipped with a reason where they are not."""
    folder = EMBED / name
    if not (folder / "node_modules" / ".package-lock.json").is_file():
        pytest.skip(f"the packages of demo/embed/{name} are not installed: make examples")
    return folder


@contextlib.contextmanager
def browser_example(model: Path, **others: Path) -> Iterator[str]:
    """The address of the browser example on a plain file server: the page, its packages, this model and others."""
    example = embedding_example("browser")
    with tempfile.TemporaryDirectory() as site:
        for file in ("index.html", "classifier.mjs"):
            shutil.copy(example / file, site)
        for name, folder in {"node_modules": example / "node_modules", "model": model, **others}.items():
            (Path(site) / name).symlink_to(folder)
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}/"
            server.shutdown()
