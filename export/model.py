"""The one sequence that makes a model folder: write the files, check each, describe them, receipt last.

`write_model` takes a `Source`: a checkpoint of ours (here) or another project's ONNX file (`export.foreign.source`).
"""

import contextlib
import dataclasses
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export import parity
from export.engine import Built, build_engines, buildable
from export.geometry import write_with_geometry
from export.golden import write_golden
from export.graph import OPSET, export_onnx, export_pt2, graph_facts, layer_facts
from export.heatmap import write_heatmap
from export.layers import faults_of, first_module_without_answer
from export.precision import half_precision, quantise, quantise_for_tensorrt
from export.settings import Settings
from runtime.backends import BuildFacts
from runtime.candidate import Candidate, candidates_in
from runtime.environment import versions
from runtime.errors import BadModel, GateFailed, SajiError
from runtime.evaluation import ValidationSet
from runtime.files import DAMAGE, replacing_folder, sha256_file, sha256_modules, write_text
from runtime.gate import Gate, no_logits, widened
from runtime.machine import machine
from runtime.receipt import Receipt, file_facts
from runtime.spec import ModelSpec
from training.network.classifier import load_checkpoint, reference_outputs, require_own, rounding
from training.photos.seen import photos_of

Say = Callable[[str], None]
# The modules that decide what is written and how it is checked: an export by other code is not up to date
DECISIVE = (
    *("export/model.py", "export/graph.py", "export/precision.py", "export/engine.py", "export/parity.py"),
    *("export/golden.py", "export/geometry.py", "export/heatmap.py", "export/layers.py", "export/own_process.py"),
    "export/foreign/*.py",
    *(
        "training/network/architectures.py",
        "training/network/classifier.py",
        "training/network/familiarity.py",
        "training/photos/drawn.py",
    ),
    *("runtime/backends/**/*.py", "runtime/candidate.py", "runtime/evaluation.py", "runtime/gate.py"),
    *("runtime/golden.py", "runtime/heatmap.py", "runtime/photo/*.py", "runtime/preprocess.py", "runtime/spec.py"),
)


class Source(ABC):
    """What a model folder is made from; `reference` is what every file in it is held against.

    `file`: where it comes from. `described`: the reference in words, for the report. `validation`: photos with the
    reference's logits; None where there are none, and nothing can be served. `photos`: where the original photos are,
    if they still are. `inputs`: what else decides the result, as JSON values.
    """

    spec: ModelSpec
    file: Path
    described: str
    validation: ValidationSet | None
    photos: Path | None
    inputs: dict[str, Any]
    engines = False  # whether TensorRT engines are built of it

    @abstractmethod
    def reference(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, S, S, 3]` RGB → float32 outputs side by side, logits `[N, C]` first."""

    @abstractmethod
    def write_graphs(self, folder: Path, settings: Settings, say: Say) -> None:
        """Write the portable files into a folder."""

    @abstractmethod
    def first_without_answer(self, images: np.ndarray) -> str:
        """The first layer of the reference that gives NaN, infinity or the same for all photos; empty where none."""

    def bounds(self, settings: Settings) -> Mapping[str, Gate]:
        """The gates that the files are held to where an FP32 file does not keep those of the settings."""
        return settings.bounds

    def int8_faults(self, folder: Path) -> tuple[str, ...]:
        """What `export.layers.faults_of` finds in the INT8 file; none where there is no such file, or none of ours."""
        return ()

    @abstractmethod
    def require_right(self, candidates: list[Candidate]) -> None:
        """Raise GateFailed, before anything is replaced, where the FP32 file is not the reference's."""


class Checkpoint(Source):
    """A checkpoint of a training run. Raises BadModel when it or its validation set is missing or damaged."""

    described = "the checkpoint in PyTorch FP32 on the CPU"
    engines = True

    def __init__(self, run: Path) -> None:
        self.run, self.file, self.photos = run, run / "checkpoint.pt", photos_of(run)
        self.model, self.spec = load_checkpoint(self.file)
        self.inputs = {path.name: sha256_file(path) for path in sorted(run.glob("*.npz"))}
        require_own(self.file)

    @functools.cached_property
    def validation(self) -> ValidationSet:  # type: ignore[override]  # always there, and costly: read when needed
        """The run's validation photos with the checkpoint's outputs."""
        validation = ValidationSet.load(self.run / "validation.npz")
        size, classes = self.spec.geometry.size, len(self.spec.classes)
        if validation.images.shape[1:] != (size, size, 3) or not set(validation.labels.tolist()) <= set(range(classes)):
            raise BadModel(
                f"{self.run}/validation.npz is not of checkpoint.pt ({size} px, {classes} classes); train again"
            )
        outputs = self.reference(validation.images)
        logits, familiarity = self.spec.logits(outputs), self.spec.familiarity_of(outputs)
        return dataclasses.replace(validation, logits=logits, familiarity=familiarity)

    def reference(self, images: np.ndarray) -> np.ndarray:
        """The checkpoint in PyTorch, FP32 on the CPU."""
        return reference_outputs(self.model, images)

    def write_graphs(self, folder: Path, settings: Settings, say: Say) -> None:
        """`model.onnx`, `model.pt2`, and the lower precisions that are wanted."""
        name = self.spec.architecture
        say(f"{name}: writing model.onnx and model.pt2")
        export_onnx(self.model, self.spec, folder / "model.onnx")
        export_pt2(self.model, self.spec, folder / "model.pt2")
        if "int8" in settings.wanted:
            say(f"{name}: calibrating model.int8.onnx")
            photos = ValidationSet.load(self.run / "calibration.npz").images  # training photos
            how = settings.recover, settings.overflow_fix, settings.bounds["int8"].shift
            quantise(folder / "model.onnx", photos, self.spec, folder / "model.int8.onnx", *how)
            quantise_for_tensorrt(folder / "model.int8.onnx", self.spec, folder / "model.int8-trt.onnx")
        if "fp16" in settings.wanted:
            say(f"{name}: writing model.fp16.onnx")
            export_onnx(half_precision(self.model), self.spec, folder / "model.fp16.onnx")

    def bounds(self, settings: Settings) -> Mapping[str, Gate]:
        """The gates, FP32's with room for how far rounding moves this very checkpoint; or those that the user set."""
        if settings.gates:
            return settings.bounds
        assert self.validation.logits is not None
        moved = rounding(self.model, self.validation.images, self.validation.logits)
        return {**settings.bounds, "fp32": widened(settings.bounds["fp32"], moved)}

    def first_without_answer(self, images: np.ndarray) -> str:
        """The first module of the checkpoint."""
        return first_module_without_answer(self.model, images)

    def int8_faults(self, folder: Path) -> tuple[str, ...]:
        """Layer by layer against `model.onnx`, on training photos."""
        if not (folder / "model.int8.onnx").is_file():
            return ()
        photos = ValidationSet.load(self.run / "calibration.npz").images
        return faults_of(folder / "model.onnx", folder / "model.int8.onnx", photos)

    def require_right(self, candidates: list[Candidate]) -> None:
        """Raise GateFailed when an FP32 file does not agree with the checkpoint, by the engine that is its measure.

        What another engine makes of the file is that candidate's verdict.
        """
        for candidate in parity.failures(candidates):
            if parity.is_measure(candidate):
                raise GateFailed(
                    f"the FP32 file does not agree with {self.file} ({candidate.name}: {candidate.reasons[0]}); "
                    "nothing was replaced"
                )


def write_model(source: Source, folder: Path, settings: Settings, say: Say, cache: Path | None = None) -> Receipt:
    """Make a model folder of a source; `folder` is replaced whole once the files are complete and checked.

    Enterprise TensorRT keeps the timings of its builds in the folder `cache`. Raises GateFailed or BadModel, leaving an
    earlier folder untouched, when the FP32 file does not agree with the reference, or SajiError where it is of another
    source.
    """
    spec, validation = source.spec, source.validation
    same_source = functools.partial(_require_same_source, folder, source)
    if validation:
        _require_answer(source, validation)
    with replacing_folder(folder, "model.json", "model.onnx", require=same_source) as new:
        source.write_graphs(new, settings, say)
        engines, skipped = dict[str, Built](), list[str]()
        if source.engines:
            engines, skipped = build_engines(new, settings, say, cache)
        if validation:
            validation.save(new / "validation.npz")
            candidates, bounds = _judged(source, new, engines, settings, say)
        else:
            why = ("there were no photos to check it by; import it again with --data",)
            candidates = [dataclasses.replace(c, reasons=why) for c in candidates_in(spec.architecture, new)]
        write_golden(source.reference, spec, new, candidates)
        source.require_right(candidates)
        if validation:
            candidates += write_with_geometry(new, spec, candidates, validation, source.photos, say, bounds)
            heatmaps, without = write_heatmap(new, spec, validation, say, bounds)
            candidates, skipped = candidates + heatmaps, skipped + without
            if not spec.published:  # of pictures that show what it can name
                _write_examples(new / "examples", validation, spec)
            report = parity.report(spec, source.described, candidates, validation, skipped, bounds)
            write_text(new / "parity.md", report)
        files = (
            path for path in new.rglob("*") if path.is_file() and path.suffix != ".cache"
        )  # which every start adds to
        names = sorted(path.relative_to(new).as_posix() for path in files)
        receipt = Receipt(
            spec=spec,
            files=file_facts(new, names),
            candidates=tuple(candidates),
            checkpoint_sha256=sha256_file(source.file),
            request=request(source, settings),
            graph=graph_facts(new / "model.onnx"),
            engines={name: dataclasses.asdict(built) for name, built in engines.items()},
            skipped=tuple(skipped),
            versions=versions(),
        )
        receipt.write(new)
    return receipt


def _require_same_source(folder: Path, source: Source) -> None:
    """Raise SajiError where an export would replace a model that was made of something else than this source."""
    with contextlib.suppress(BadModel, *DAMAGE):
        there, here = (each.get("onnx", "") for each in (Receipt.read(folder).request.get("inputs", {}), source.inputs))
        as_typed = not Path(there).is_absolute()  # in an earlier version
        if there != here and not (as_typed and Path(there).name == Path(here).name):
            held = f"the model brought in from {there}" if there else "a model that was trained here"
            other = ", or give this one another --name" if here else " and export again"
            raise SajiError(f"{folder} holds {held}; move that folder away{other}")


def _judged(
    source: Source, folder: Path, engines: dict[str, Built], settings: Settings, say: Say
) -> tuple[list[Candidate], Mapping[str, Gate]]:
    """Every candidate of the folder with its verdict, and the gates by which."""
    assert source.validation
    facts, faults, bounds = _facts(folder, engines), source.int8_faults(folder), settings.bounds
    check = functools.partial(parity.check_folder, source.spec, folder, source.validation, say, facts)
    candidates = check(bounds, faults)
    failed = any(candidate.precision == "fp32" for candidate in parity.failures(candidates))
    if failed and (wider := source.bounds(settings)) != bounds:
        say(f"{source.spec.architecture}: once more, by a wider gate for FP32 ({wider['fp32'].source})")
        candidates, bounds = check(wider, faults), wider
    return candidates, bounds


def _require_answer(source: Source, validation: ValidationSet) -> None:
    """Raise GateFailed where the reference tells nothing about the photos: no file could be held against it."""
    assert validation.logits is not None
    if (validation.images == validation.images[0]).all():  # one photo, many times
        return
    if why := no_logits(validation.logits):
        layer = source.first_without_answer(validation.images)
        first = f", the first layer without an answer is {layer}" if layer else ""
        raise GateFailed(f"{source.file}: {why}{first}; train it again, nothing was replaced")


def up_to_date(folder: Path, source: Source, settings: Settings) -> Receipt | None:
    """The receipt of an earlier export that the same source, settings, code, libraries and machine would make."""
    try:
        receipt = Receipt.read(folder)
        for file in receipt.files:
            receipt.verify(folder, file)
    except BadModel:
        return None
    same = receipt.checkpoint_sha256 == sha256_file(source.file) and receipt.request == request(source, settings)
    same_libraries = _of_result(receipt.versions) == _of_result(versions())
    # A verdict holds for the machine that gave it, and another one may build other engines
    here = all(candidate.machine == machine() for candidate in receipt.candidates)
    return receipt if same and same_libraries and here else None


def request(source: Source, settings: Settings) -> dict[str, Any]:
    """What decides how an export turns out, beside source, libraries and machine, as JSON values for the receipt."""
    bounds = {name: dataclasses.asdict(gate) for name, gate in settings.bounds.items()}
    depends = {"opset": OPSET, "code": sha256_modules(*DECISIVE), "engines": buildable(), "inputs": source.inputs}
    values = {**dataclasses.asdict(settings), "precisions": settings.wanted, "gates": bounds, **depends}
    return dict(json.loads(json.dumps(values)))


def _of_result(libraries: dict[str, str]) -> dict[str, str]:
    """The libraries that an export's result depends on."""
    return {name: version for name, version in libraries.items() if name not in ("gradio", "scikit-learn")}


def _facts(folder: Path, engines: dict[str, Built]) -> dict[str, BuildFacts]:
    """By file, what candidates know of it: an engine's facts, and the layers that an INT8 file keeps above INT8."""
    facts = {name: built.facts() for name, built in engines.items()}
    for file in folder.glob("*int8*.onnx"):
        kept = layer_facts(file)["kept"]
        if kept:
            facts[file.name] = BuildFacts(kept=kept)
    return facts


def _write_examples(folder: Path, validation: ValidationSet, spec: ModelSpec) -> None:
    """One picture per class to show in a demo: the validation photo that the checkpoint is surest of, as it sees it.

    Serving crops what it shows, so around that stands what is cropped: the picture's own edge, mirrored.
    """
    assert validation.logits is not None
    edge = spec.geometry.resize - spec.geometry.size
    around = (edge // 2, edge - edge // 2)
    probabilities = spec.probabilities(validation.logits)
    folder.mkdir()
    for label, name in enumerate(spec.classes):
        of_class = np.flatnonzero(validation.labels == label)
        if len(of_class):
            best = of_class[probabilities[of_class, label].argmax()]
            safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
            safe = safe.encode()[:200].decode(errors="ignore")  # a file's name has 255 bytes at most
            framed = np.pad(validation.images[best], (around, around, (0, 0)), "symmetric")
            Image.fromarray(framed).save(folder / f"{label:03d}_{safe}.png")
