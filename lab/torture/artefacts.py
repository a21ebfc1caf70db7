"""Bit flips and truncations in every artefact of a tiny network: refused in one sentence, or answered as before.

Nothing may be executed, written or asked for meanwhile: Python tells an audit hook of each such event.
"""

import io
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import runtime
from export.model import Checkpoint, write_model
from export.settings import Settings
from lab.torture.campaign import Attempt, Found
from runtime import bench
from runtime.benchmark.rows import read_rows
from runtime.errors import SajiError
from runtime.evaluation import ValidationSet
from runtime.files import write_json
from runtime.preprocess import pixels
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec
from training.network.architectures import OURS, Architecture
from training.network.classifier import PhotoClassifier, load_checkpoint, reference_logits, save_checkpoint
from training.photos.drawn import write_sample

ATTEMPTS = 11_000
TRUNCATIONS = 1_000 / ATTEMPTS
NAME = "tiny_of_torture"
# Events that opening a model never causes: see "Audit events" in Python's documentation
_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")

_watching = False
_seen: list[str] = []


def tiny_of_torture(classes: int) -> nn.Module:
    """A network of 10,000 numbers, so that a flipped bit is likely to matter."""
    layers = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 48, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, classes))


@contextmanager
def prepared(folder: Path) -> Iterator[Attempt]:
    """All artefacts as the commands write them, and what each door answers while they are whole."""
    OURS[NAME] = Architecture(tiny_of_torture)
    photo = _made(folder)
    doors = {path: door for path in sorted(folder.rglob("*")) if (door := _door(path, folder, photo))}
    right = {path: door() for path, door in doors.items()}
    sys.addaudithook(_watch)

    def attempt(chance: random.Random) -> str:
        path = chance.choice(list(doors))
        whole = path.read_bytes()
        broken = _broken(chance, whole)
        path.write_bytes(broken)
        try:
            return _came(doors[path], right[path], path, broken)
        finally:
            path.write_bytes(whole)

    try:
        yield attempt
    finally:
        del OURS[NAME]


def _came(door: Callable[[], Any], right: Any, path: Path, broken: bytes) -> str:
    global _watching
    _seen.clear()
    try:
        _watching = True
        with redirect_stderr(io.StringIO()):  # a deployment says what it passes over
            answer = door()
    except SajiError as error:
        if len(str(error)) > 500 or "Traceback" in str(error):
            raise Found(f"{path.name}: {error}", broken) from None
        return f"{path.name}: refused"
    except Exception as error:
        raise Found(f"{path.name}: {error!r}", broken) from None
    finally:
        _watching = False
    if _seen:
        raise Found(f"{path.name}: {_seen[0]}", broken)
    if answer != right:
        raise Found(f"{path.name}: answers {answer!r:.120}, not {right!r:.120}", broken)
    return f"{path.name}: the same answers"


def _broken(chance: random.Random, whole: bytes) -> bytes:
    if chance.random() < TRUNCATIONS:
        return whole[: chance.randrange(len(whole))]
    place, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
    return whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    # Where OUT is, and what a verdict is taken anew in
    inside = writes and Path(str(arguments[0])).is_relative_to(tempfile.gettempdir())
    if event in _FORBIDDEN or (writes and not inside):
        _seen.append(f"{event} {arguments!r:.100}")


def _made(folder: Path) -> np.ndarray:
    """Checkpoint, files, receipt, history and deployment in `folder`; a photo's pixels, uint8 `[32, 32, 3]`."""
    torch.manual_seed(0)
    sample = write_sample(folder / "sample", 16, 48)
    classes = tuple(sorted(path.name for path in sample.iterdir() if path.is_dir()))
    # Its own answers stand for labels, so that all of them are right
    spec = ModelSpec(NAME, NAME, classes, Geometry.for_size(32), validation={"accuracy": 1.0})
    images = np.stack([pixels(file, spec.geometry) for file in sorted(sample.glob("*/*.jpg"))])
    model, run = PhotoClassifier(NAME, len(classes)), folder / "runs" / "it" / NAME
    run.mkdir(parents=True)
    labels = reference_logits(model, images).argmax(1)
    for name in ("validation", "calibration"):
        ValidationSet(images, labels, tuple(map(str, range(len(images))))).save(run / f"{name}.npz")
    write_json(run.parent / "data.json", {"drawn": True})
    save_checkpoint(run / "checkpoint.pt", model, spec)
    write_model(Checkpoint(run), folder / "models" / NAME, Settings(recover=False), lambda line: None)
    before, sys.argv = sys.argv, ["bench", "--out", str(folder), "--seconds", "2", "--cold-starts", "0"]
    try:
        bench.main()
    finally:
        sys.argv = before
    return images[0]


def _door(path: Path, out: Path, photo: np.ndarray) -> Callable[[], Any] | None:
    """What opens a file as the commands do, and what it says; None for what no command opens again."""
    model = out / "models" / NAME

    def asked(where: Path, **how: str) -> Any:
        with runtime.load(where, **how) as classifier:  # type: ignore[arg-type]
            if classifier.passed_over:  # what was chosen is refused, and the next in line serves
                raise SajiError(classifier.passed_over[0])
            [prediction] = classifier.predict(photo[None])
        return prediction.answer, json.dumps(prediction.probabilities)

    def checkpoint() -> Any:
        network, spec = load_checkpoint(path)
        return spec, reference_logits(network, photo[None]).tobytes()

    def judging() -> Any:
        judged = ValidationSet.load(path)
        return judged.images.tobytes(), judged.labels.tobytes(), judged.names

    if path.name == "deployment.json":
        return lambda: asked(path)
    if path.name == "checkpoint.pt":
        return checkpoint
    if path.suffix == ".npz":
        return judging
    if path.name == "bench.jsonl":
        return lambda: len(read_rows(path))
    if path.name == "model.pt2":
        return lambda: asked(model, backend="pytorch")
    if path.name == "model.int8.onnx" or path.suffix == ".engine":
        return lambda: Receipt.read(model).verify(model, path.relative_to(model).as_posix())
    if path in (model / "model.onnx", model / "model.json", model / "golden.json", model / "golden.png"):
        return lambda: asked(model)
    return None
