"""Does the gate catch broken exports and let healthy ones pass?

Each run is exported and broken in every way that we know, and each file held against the gate as always; what the
checks of other tools say of the same file stands beside it. One row per run.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from export import geometry as embed
from export.faults import NotApplicable, broken
from export.graph import export_onnx, export_pt2, layer_facts
from export.layers import faults_of
from export.precision import half_precision, quantise
from lab.faults import FAINT_FAULTS, FAULTS, FP16_FAULTS, INT8_FAULTS
from lab.tables.gate import SHIFT_OF, kind
from runtime.backends import BuildFacts
from runtime.benchmark.rows import Row
from runtime.candidate import Candidate, check_candidate, run_all
from runtime.errors import SajiError, missing_extra
from runtime.evaluation import ValidationSet
from runtime.spec import ModelSpec
from runtime.terminal import say
from training.network.classifier import Normalise, PhotoClassifier, load_checkpoint, reference_outputs

Logits = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A trained network, what its exports are held against, and the folder that they are written into."""

    model: PhotoClassifier
    spec: ModelSpec
    validation: ValidationSet
    calibration: np.ndarray
    folder: Path

    def export(self, module: nn.Module, name: str) -> Path:
        """`module` as an ONNX file in the folder."""
        export_onnx(module, self.spec, self.folder / name)
        return self.folder / name

    def candidate(self, name: str, backend: str, precision: str) -> Candidate:
        """One way to run a file of the folder."""
        if (backend, precision) == ("ort-cpu", "fp16"):  # a file check, as in runtime.backends
            return Candidate(self.spec.architecture, name, backend, precision, "as written", servable=False)
        kept = layer_facts(self.folder / name)["kept"] if precision == "int8" else {}
        return Candidate(self.spec.architecture, name, backend, precision, facts=BuildFacts(kept=kept))


def opened(run: Path, folder: Path) -> Subject:
    """A training run, ready to be broken."""
    model, spec = load_checkpoint(run / "checkpoint.pt")
    validation = ValidationSet.load(run / "validation.npz")
    outputs = reference_outputs(model, validation.images)
    validation = replace(validation, logits=spec.logits(outputs), familiarity=spec.familiarity_of(outputs))
    return Subject(model, spec, validation, ValidationSet.load(run / "calibration.npz").images, folder)


def healthy(subject: Subject) -> Iterator[tuple[str, Candidate]]:
    """Write the files as export does, and name every candidate that runs on a CPU."""
    fp32 = subject.export(subject.model, "model.onnx")
    export_pt2(subject.model, subject.spec, subject.folder / "model.pt2")
    subject.export(half_precision(subject.model), "model.fp16.onnx")
    quantise(fp32, subject.calibration, subject.spec, subject.folder / "model.int8.onnx")
    fixed = subject.folder / "model.int8-fixed.onnx"
    quantise(fp32, subject.calibration, subject.spec, fixed, overflow_fix=True)
    for backend, file, precision in (
        ("ort-cpu", "model.onnx", "fp32"),
        ("openvino", "model.onnx", "fp32"),
        ("pytorch", "model.pt2", "fp32"),
        ("openvino", "model.onnx", "bf16"),
        ("ort-cpu", "model.fp16.onnx", "fp16"),
        ("ort-cpu", "model.int8.onnx", "int8"),
        ("openvino", "model.int8.onnx", "int8"),
    ):
        yield "healthy", subject.candidate(file, backend, precision)
    for backend in ("ort-cpu", "openvino"):
        yield "healthy, overflow fix", subject.candidate(fixed.name, backend, "int8")


def mutants(subject: Subject, stranger: Path | None, only: Sequence[str] = ()) -> Iterator[tuple[str, Candidate]]:
    """Write a broken file after the other, and yield what is broken with how to run it; `healthy` comes first.

    What the network has not cannot be broken and is left out. `stranger`: another checkpoint; `only` these, by name.
    """
    for file, backend, precision, faults in (
        ("model.onnx", "ort-cpu", "fp32", FAULTS),
        ("model.fp16.onnx", "ort-cpu", "fp16", FP16_FAULTS),
        ("model.int8.onnx", "openvino", "int8", (*INT8_FAULTS, *FAINT_FAULTS)),
    ):
        for fault in faults:
            with suppress(NotApplicable):
                if not only or fault.name in only:
                    onnx.save_model(broken(onnx.load(subject.folder / file), fault), subject.folder / "broken.onnx")
                    yield fault.name, subject.candidate("broken.onnx", backend, precision)
    for name, module in _modules(subject.model, stranger):
        if not only or name in only:
            yield name, subject.candidate(subject.export(module, "broken.onnx").name, "ort-cpu", "fp32")
    # Random data as Polygraphy's loader makes them for uint8: zeros and ones, which to this graph is nearly black
    noise = np.random.default_rng(0).integers(0, 2, subject.calibration.shape, np.uint8)
    for name, module, photos in (
        ("INT8 calibrated on noise", subject.model, noise),
        ("INT8 of a strided graph", strided(subject.model), subject.calibration),
    ):
        if not only or name in only:
            fp32 = subject.export(module, "broken.fp32.onnx")
            quantise(fp32, photos, subject.spec, subject.folder / "broken.onnx", recover=False)
            yield name, subject.candidate("broken.onnx", "openvino", "int8")
    if not only or "FP32 passed off as INT8" in only:
        yield "FP32 passed off as INT8", subject.candidate("model.onnx", "openvino", "int8")


def _modules(model: PhotoClassifier, stranger: Path | None) -> Iterator[tuple[str, nn.Module]]:
    """What can only be broken before batch norms are folded into convolutions, and another checkpoint."""
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    middle, norm = norms[len(norms) // 2]
    grown = copy.deepcopy(model)
    with torch.no_grad():
        grown.get_parameter(f"{middle}.weight").mul_(1.1)
    yield "a batch norm's gamma × 1.1", grown
    training = copy.deepcopy(model)
    training.set_submodule(middle, InTraining(norm))
    yield "a batch norm left in training", training
    if stranger:
        yield "another checkpoint", load_checkpoint(stranger / "checkpoint.pt")[0]


class InTraining(nn.Module):
    """A batch norm that normalises by what it sees, as in training mode."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 `[N, C, H, W]` to the same."""
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        weight, bias = (parameter.view(1, -1, 1, 1) for parameter in (self.norm.weight, self.norm.bias))
        return (x - mean) / torch.sqrt(var + self.norm.eps) * weight + bias


class _StridedNormalise(Normalise):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[N, H, W, 3]` RGB → float32 `[N, 3, H, W]`, with the strides of the input."""
        return self.scaled(images.float().permute(0, 3, 1, 2))


def strided(model: PhotoClassifier) -> PhotoClassifier:
    """Without the copy that `training.network.classifier.planes` makes: right on PyTorch and ONNX Runtime."""
    changed = copy.deepcopy(model)
    changed.normalise = _StridedNormalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    changed.normalise.load_state_dict(model.normalise.state_dict())
    return changed


# What other tools check, on input of random bytes; each returns True where it would report success.


def polygraphy(reference: Logits, candidate: Logits, size: int) -> bool:
    """Polygraphy's own defaults: its random input (of 0 and 1 for uint8), every element within 1e-5."""
    try:
        from polygraphy.common import TensorMetadata
        from polygraphy.comparator import DataLoader, IterationResult, SimpleCompareFunc
        from polygraphy.logger import G_LOGGER
    except ImportError:
        raise missing_extra("polygraphy", "dev") from None
    asked = TensorMetadata().add("images", np.uint8, (1, size, size, 3))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        photo = next(iter(DataLoader(input_metadata=asked)))["images"]
        ours, theirs = (IterationResult({"logits": run(photo)}) for run in (reference, candidate))
        return bool(SimpleCompareFunc()(ours, theirs)["logits"])


def optimum(reference: Logits, candidate: Logits, size: int) -> bool:
    """As optimum's validation of an exported ResNet: every element within 1e-3 (its ATOL_FOR_VALIDATION)."""
    photos = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    return bool(np.allclose(reference(photos), candidate(photos), rtol=0, atol=1e-3))


def finite(reference: Logits, candidate: Logits, size: int) -> bool:
    """As Triton Model Navigator: the difference is recorded, any finite one passes."""
    photos = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    return bool(np.isfinite(candidate(photos) - reference(photos)).all())


PEERS = {"polygraphy": polygraphy, "optimum": optimum, "finite": finite}


def outcome(subject: Subject, name: str, candidate: Candidate) -> Row:
    """Our verdict of one file with its figures, and by other checks whether they would report success."""
    if candidate.precision == "int8":
        fp32, file = subject.folder / "model.onnx", subject.folder / candidate.file
        wrong = faults_of(fp32, file, subject.calibration)
        candidate = replace(candidate, faults=wrong)
    result = check_candidate(candidate, subject.folder, subject.validation, subject.spec)
    # The others take the file as it is; none of them asks what precision it computes in
    engine = (
        candidate.open(subject.folder) if result.figures else replace(candidate, precision="fp32").open(subject.folder)
    )
    reference = lambda photos: reference_outputs(subject.model, photos)  # noqa: E731
    run = lambda photos: run_all(engine, photos, 1)  # noqa: E731
    peers = {peer: check(reference, run, subject.spec.geometry.size) for peer, check in PEERS.items()}
    engine.close()
    return as_row(name, result) | peers


FAINT = {fault.name for fault in FAINT_FAULTS}


def as_row(name: str, result: Candidate) -> Row:
    """One file's verdict by our gate, under the name of what was done to it, with what decided it."""
    figures = result.figures
    flips = [flip.margin for flip in figures.flipped] if figures else []
    return {
        "name": name,
        "kind": "healthy" if name.startswith("healthy") else "faint" if name in FAINT else "broken",
        "backend": result.backend,
        "precision": result.precision,
        "verdict": result.verdict,
        "reason": result.reasons[0] if result.reasons else "",
        "shift": figures and figures.shift,
        "worst_shift": figures and figures.worst_shift,
        "flips": len(flips),
        "largest_flip_margin": max(flips, default=0.0),
        "accuracy_difference": figures and figures.accuracy_difference,
    }


def unantialiased(subject: Subject, source: Path) -> Iterator[Row]:
    """The geometry inside the graph with and without antialiasing, on the original photos."""
    photos = embed.originals(source, subject.validation, subject.spec.geometry)
    if not photos:
        return
    whole = Candidate(subject.spec.architecture, "embed.onnx", "ort-cpu", "fp32", "embed", servable=False)
    embed.with_geometry(subject.folder / "model.onnx", subject.spec, subject.folder / "embed.onnx")
    model = onnx.load(subject.folder / "embed.onnx")
    next(a for node in model.graph.node for a in node.attribute if a.name == "antialias").i = 0
    onnx.save_model(model, subject.folder / "aliased.onnx")
    runs = {name: embed.open_with_geometry(subject.folder / f"{name}.onnx") for name in ("embed", "aliased")}
    images, answers = embed.answer_originals(list(photos.values()), subject.spec.geometry, runs)
    inner, labels = reference_outputs(subject.model, images), subject.validation.labels[list(photos)]
    noise = np.random.default_rng(0).integers(0, 256, (384, 384, 3), np.uint8)
    for name, title in (("embed", "healthy"), ("aliased", "resized without antialias")):
        verdict = embed.check_geometry(inner, answers[name], labels, subject.spec)
        result = replace(whole, verdict=verdict.verdict, reasons=verdict.reasons, figures=verdict.figures)
        # For the others a graph without preprocessing is another graph: they can only compare it with its equals
        ours, theirs = runs["embed"](noise)[0], runs[name](noise)[0]
        close = {"polygraphy": 1e-5, "optimum": 1e-3, "finite": np.inf}
        peers = {peer: bool(np.abs(ours - theirs).max() <= bound) for peer, bound in close.items()}
        yield as_row(title, replace(result, precision="geometry")) | peers


def examined(run: Path, stranger: Path | None, source: Path | None, only: Sequence[str] = ()) -> Row:
    """The row of one run: every healthy candidate and every mutant, by our gate and by the others' checks.

    `only` these, by name, among them "healthy".
    """
    with tempfile.TemporaryDirectory() as folder:
        subject = opened(run, Path(folder))
        files = list(healthy(subject))  # written even where only broken ones are asked for, which are made of them
        outcomes = [outcome(subject, *trial) for trial in files if not only or "healthy" in only]
        outcomes += [outcome(subject, *trial) for trial in mutants(subject, stranger, only)]
        outcomes += unantialiased(subject, source) if source else []
    spec = subject.spec
    return {
        "experiment": "mutants",
        "run": "/".join(run.parts[-2:]),
        "architecture": spec.architecture,
        "seed": spec.recipe.get("seed"),
        "image_size": spec.geometry.size,
        "drawn": bool(spec.data.get("drawn")),
        "data_fingerprint": spec.data.get("fingerprint"),
        "photos": len(subject.validation.labels),
        "shift_of": SHIFT_OF,
        "outcomes": outcomes,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which runs, and what of them."""
    parser.add_argument("runs", type=Path, nargs="+", help="folders with a checkpoint.pt, of one or more networks")
    parser.add_argument("--data", type=Path, help="the photo set they were trained on, for the resize filter")
    only = 'examine these alone, broken files or "healthy"'
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=only)


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Break every run and tell what got past the gate."""
    for run in arguments.runs:
        if not (run / "checkpoint.pt").is_file():
            raise SajiError(f"{run} holds no checkpoint.pt; train one with: make train")
    for run in arguments.runs:
        same = [other for other in arguments.runs if other.name == run.name]
        stranger = same[(same.index(run) + 1) % len(same)]
        row = examined(run, None if stranger == run else stranger, arguments.data, arguments.only)
        say(f"{row['run']}: {in_words(row['outcomes'])}")
        yield row


def in_words(outcomes: Sequence[Row]) -> str:
    """How many got the right verdict, and by name those that did not; what is faint may pass."""
    broken, healthy = ([trial for trial in outcomes if kind(trial) == wanted] for wanted in ("broken", "healthy"))
    missed = [trial for trial in broken if trial["verdict"] != "fail"]
    refused = [trial for trial in healthy if trial["verdict"] != "pass"]
    counts = f"{len(broken) - len(missed)} of {len(broken)} broken files caught, "
    counts += f"{len(healthy) - len(refused)} of {len(healthy)} healthy ones passed"
    wrong = (f"{t['name']} ({t['backend']} {t['precision']}): {t['verdict']}" for t in (*missed, *refused))
    return "; ".join([counts, *wrong])
