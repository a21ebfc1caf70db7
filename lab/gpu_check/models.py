"""Model folders of untrained networks: random weights that are the same everywhere, on drawn pictures."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.backends import BACKENDS, BuildFacts
from runtime.candidate import Candidate, candidates_in
from runtime.errors import Unavailable
from runtime.golden import FILE
from runtime.receipt import Receipt, file_facts
from runtime.terminal import say

if TYPE_CHECKING:  # they bring PyTorch
    from export.model import Checkpoint
    from training.network.classifier import PhotoClassifier

ARCHITECTURES = ("plain34", "resnet34", "se_resnet34")
PHOTOS = 40  # above runtime.gate.MIN_PHOTOS, so that the gate gives a verdict


def network(architecture: str) -> "PhotoClassifier":
    """An untrained network of five classes, of which INT8 files keep the gate's bounds on a processor."""
    import torch

    from training.network.classifier import PhotoClassifier

    torch.manual_seed(0)
    model = PhotoClassifier(architecture, 5).eval()
    for name, value in model.named_parameters():
        if name.endswith("bn2.weight") and architecture != "plain34":
            # At full weight sums grow along resnet34's shortcuts, and INT8 shifts its logits by 0.24 instead of 0.08
            torch.nn.init.constant_(value, 0.5)
    return model


def drawn(size: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """PHOTOS drawn pictures, uint8 `[N, size, size, 3]` RGB, and their classes `[N]`; `first` is a seed."""
    from training.photos.drawn import DISHES, draw_dish

    labels = np.arange(PHOTOS) % len(DISHES)
    pictures = [np.asarray(draw_dish(DISHES[label], first + i, size)) for i, label in enumerate(labels)]
    return np.stack(pictures), labels


def model_folder(out: Path, architecture: str, size: int) -> Path:
    """The network's model folder OUT/models/ARCHITECTURE, with all portable files; written where there is none.

    Without NNCF there is no INT8 file. Its candidates are those that need a GPU, all unchecked.
    """
    from export.golden import write_golden
    from export.graph import OPSET
    from export.model import Checkpoint
    from runtime.environment import versions
    from runtime.files import replacing_folder, sha256_file

    folder = out / "models" / architecture
    if not (folder / "model.json").is_file():
        source = Checkpoint(_run(out / "runs" / "untrained" / architecture, architecture, size))
        with replacing_folder(folder, "model.json") as new:
            _write_graphs(source, new)
            source.validation.save(new / "validation.npz")
            write_golden(source.reference, source.spec, new, [])
            checkpoint, graph = sha256_file(source.file), {"opset": OPSET}
            receipt = Receipt(source.spec, {}, (), checkpoint, {}, graph, versions=versions())
            keep_receipt(receipt, new, {}, [])
    return folder


def _write_graphs(source: "Checkpoint", folder: Path) -> None:
    from export.settings import Settings

    try:
        source.write_graphs(folder, Settings(recover=False), say)
    except Unavailable as error:
        say(str(error))
        source.write_graphs(folder, Settings(precisions=("fp16",)), say)


def keep_receipt(
    receipt: Receipt, folder: Path, engines: Mapping[str, BuildFacts], checked: Iterable[Candidate]
) -> Receipt:
    """Write the receipt of a folder as it now is, with the candidates that were checked; what it had before stays.

    `engines` are the facts of those that were built since, by file name, of which no verdict holds any more.
    """
    known = {candidate.file: candidate.facts for candidate in receipt.candidates} | dict(engines)
    earlier = (candidate for candidate in receipt.candidates if candidate.file not in engines)
    verdicts = {candidate.key(): candidate for candidate in (*earlier, *checked)}
    candidates = [c for c in candidates_in(receipt.spec.architecture, folder, known) if BACKENDS[c.backend].gpu]
    parts = (".onnx", ".pt2", ".npz", ".engine", ".png", ".jpg")  # not what runs leave: caches, verdicts
    files = (path for path in folder.rglob("*") if path.suffix in parts or path.name == FILE)
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    verdicts_now = tuple(verdicts.get(candidate.key(), candidate) for candidate in candidates)
    kept = replace(receipt, files=file_facts(folder, names), candidates=verdicts_now)
    kept.write(folder)
    return kept


def _run(folder: Path, architecture: str, size: int) -> Path:
    """What training would leave of the network."""
    from runtime.evaluation import ValidationSet
    from runtime.spec import Geometry, ModelSpec
    from training.network.classifier import save_checkpoint
    from training.photos.drawn import DISHES

    facts = {"drawn": True, "fingerprint": "untrained"}
    spec = ModelSpec(f"{architecture} untrained", architecture, DISHES, Geometry.for_size(size), data=facts)
    folder.mkdir(parents=True, exist_ok=True)
    for name, first in (("validation", 0), ("calibration", 1000)):
        images, labels = drawn(size, first)
        ValidationSet(images, labels, tuple(map(str, range(PHOTOS)))).save(folder / f"{name}.npz")
    save_checkpoint(folder / "checkpoint.pt", network(architecture), replace(spec, validation={"accuracy": 0.2}))
    return folder
