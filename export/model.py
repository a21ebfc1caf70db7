"""The one sequence that makes a model folder: write the files, check each, describe them, receipt last.

`write_model` takes a `Source`: a checkpoint of ours (here) or another project's ONNX file (`export.foreign`).
"""

import dataclasses
import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from export import parity
from export.engine import Built, Options, Profile, build_engines, buildable
from export.geometry import write_with_geometry
from export.golden import write_golden
from export.graph import OPSET, export_onnx, export_pt2, layer_facts, operators
from export.heatmap import write_heatmap
from export.precision import HalfPrecision, quantise, quantise_for_tensorrt
from runtime.backends import BuildFacts
from runtime.candidate import Candidate, candidates_in
from runtime.environment import versions
from runtime.errors import BadModel, GateFailed
from runtime.evaluation import GATES, Gate, ValidationSet, read_gates
from runtime.files import replacing_folder, sha256_file
from runtime.machine import machine
from runtime.receipt import Receipt, file_facts
from runtime.spec import ModelSpec
from training.network.classifier import load_checkpoint, reference_logits

Say = Callable[[str], None]
ROOT = Path(__file__).resolve().parent.parent
# The modules that decide what is written and how it is checked: an export by other code is not up to date
DECISIVE = (
    *("export/model.py", "export/graph.py", "export/precision.py", "export/engine.py", "export/parity.py"),
    *("export/golden.py", "export/geometry.py", "export/heatmap.py", "training/network/classifier.py"),
    *("runtime/backends/*.py", "runtime/candidate.py", "runtime/evaluation.py", "runtime/preprocess.py"),
)


@dataclass(frozen=True)
class Settings:
    """What decides how an export turns out, beside its source."""

    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ()
    """Precisions that must pass: exit status 1 when one fails. By default all are tried, and a lower one that fails is
    refused without failing the export. fp32 is always written and must always pass."""
    recover: bool = True
    """Return the layers that INT8 hurts most to a higher precision where it would lose too much; takes minutes."""
    overflow_fix: bool = False
    """INT8 weights of 7 bits: right on x86 processors without VNNI, too, and a little less exact on all."""
    targets: tuple[str, ...] = ("sm86", "sm89", "sm120")
    """GPU architectures that TensorRT-RTX builds for ahead of time."""
    batch: tuple[int, int, int] = (1, 1, 32)
    """Smallest, typical and largest batch of TensorRT engines."""
    version_compatible: bool = False
    """Enterprise TensorRT: engines that later minor versions can run too."""
    hardware_compatible: bool = False
    """Enterprise TensorRT: engines that every GPU from Ampere on can run, somewhat slower."""
    gates: Path | None = None
    """A TOML file with other bounds for the verdicts, such as: int8.shift = 0.2"""

    @property
    def wanted(self) -> tuple[str, ...]:
        """The precisions to write: those asked for, or all."""
        return self.precisions or ("fp32", "fp16", "int8")

    @functools.cached_property
    def bounds(self) -> Mapping[str, Gate]:
        """The gates that verdicts are given by."""
        return read_gates(self.gates) if self.gates else GATES

    def options(self, timing_cache: Path | None = None) -> Options:
        """How engines are built."""
        compatible = self.version_compatible, self.hardware_compatible
        return Options(Profile(*self.batch), self.targets, *compatible, timing_cache)

    def request(self) -> dict[str, Any]:
        """The settings, and the code and engines that an export depends on, as JSON values for the receipt."""
        bounds = {name: dataclasses.asdict(gate) for name, gate in self.bounds.items()}
        depends = {"opset": OPSET, "code": _code(), "engines": buildable(), "gates": bounds}
        return dict(
            json.loads(json.dumps({**dataclasses.asdict(self), "precisions": self.wanted, **depends}, default=str))
        )


@functools.cache
def _code() -> str:
    """SHA-256 over the DECISIVE modules."""
    files = sorted(file for pattern in DECISIVE for file in ROOT.glob(pattern))
    return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()


class Source(ABC):
    """What a model folder is made from; `reference` is what every file in it is held against.

    `digest`: sha256 of the file that it comes from. `validation`: photos with the reference's logits; None where there
    are none, and nothing can be served. `photos`: where the original photos are, if they still are.
    """

    spec: ModelSpec
    digest: str
    validation: ValidationSet | None
    photos: Path | None
    engines = False  # whether TensorRT engines are built of it

    @abstractmethod
    def reference(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, S, S, 3]` RGB → float32 logits `[N, C]`."""

    @abstractmethod
    def write_graphs(self, folder: Path, settings: Settings, say: Say) -> None:
        """Write the portable files into a folder."""

    @abstractmethod
    def require_right(self, folder: Path, candidates: list[Candidate]) -> None:
        """Raise GateFailed or BadModel, before anything is replaced, where the FP32 file is not the reference's."""


class Checkpoint(Source):
    """A checkpoint of a training run. Raises BadModel when it or its validation set is missing or damaged."""

    engines = True

    def __init__(self, run: Path) -> None:
        self.run, self.file = run, run / "checkpoint.pt"
        self.model, self.spec = load_checkpoint(self.file)
        self.digest, self.photos = sha256_file(self.file), _photos_of(run)

    @functools.cached_property
    def validation(self) -> ValidationSet:  # type: ignore[override]  # always there, and costly: read when needed
        """The run's validation photos with the checkpoint's logits."""
        validation = ValidationSet.load(self.run / "validation.npz")
        size, classes = self.spec.geometry.size, len(self.spec.classes)
        if validation.images.shape[1:] != (size, size, 3) or not set(validation.labels.tolist()) <= set(range(classes)):
            raise BadModel(
                f"{self.run}/validation.npz is not of checkpoint.pt ({size} px, {classes} classes); train again"
            )
        return dataclasses.replace(validation, logits=self.reference(validation.images))

    def reference(self, images: np.ndarray) -> np.ndarray:
        """The checkpoint in PyTorch, FP32 on the CPU."""
        return reference_logits(self.model, images)

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
            int8 = folder / "model.int8.onnx"
            quantise(folder / "model.onnx", photos, self.spec, int8, *how)
            quantise_for_tensorrt(int8, self.spec, folder / "model.int8-trt.onnx")
        if "fp16" in settings.wanted:
            say(f"{name}: writing model.fp16.onnx")
            export_onnx(HalfPrecision(self.model), self.spec, folder / "model.fp16.onnx")

    def require_right(self, folder: Path, candidates: list[Candidate]) -> None:
        """Raise GateFailed when an FP32 file does not agree with the checkpoint."""
        for candidate in parity.failures(candidates):
            if candidate.file in ("model.onnx", "model.pt2") and candidate.precision == "fp32":
                raise GateFailed(
                    f"the FP32 file does not agree with {self.file} ({candidate.name}: {candidate.reasons[0]}); "
                    "nothing was replaced"
                )


def write_model(
    source: Source,
    folder: Path,
    settings: Settings,
    say: Say,
    request: dict[str, Any] | None = None,
    timing_cache: Path | None = None,
) -> Receipt:
    """Make a model folder of a source; `folder` is replaced whole once the files are complete and checked.

    `request` is what the receipt keeps of the settings, by default `settings.request()`. Raises GateFailed or BadModel,
    leaving an earlier folder untouched, when the FP32 file does not agree with the reference.
    """
    spec, validation = source.spec, source.validation
    with replacing_folder(folder) as new:
        source.write_graphs(new, settings, say)
        engines, skipped = dict[str, Built](), list[str]()
        if source.engines:
            options = settings.options(timing_cache)
            engines, skipped = build_engines(new, settings.wanted, settings.precisions, options, say)
            for reason in skipped:
                say(f"{spec.architecture}: {reason}")
        if validation:
            validation.save(new / "validation.npz")
            candidates = parity.check_folder(spec, new, validation, say, _facts(new, engines), settings.bounds)
        else:
            why = ("there were no photos to check it by; import it again with --data",)
            candidates = [dataclasses.replace(c, reasons=why) for c in candidates_in(spec.architecture, new)]
        write_golden(source.reference, spec, new, candidates)
        source.require_right(new, candidates)
        if validation:
            candidates += write_with_geometry(new, spec, candidates, validation, source.photos, say, settings.bounds)
            heatmaps, without = write_heatmap(new, spec, validation, say, settings.bounds)
            candidates, skipped = candidates + heatmaps, skipped + without
            _write_examples(new / "examples", validation, spec)
            report = parity.report(spec, candidates, validation, skipped, settings.bounds)
            (new / "parity.md").write_text(report, encoding="utf-8")
        receipt = _receipt(source, new, candidates, engines, skipped, request or settings.request())
        receipt.write(new)
    return receipt


def _receipt(
    source: Source,
    folder: Path,
    candidates: list[Candidate],
    engines: dict[str, Built],
    skipped: list[str],
    request: dict[str, Any],
) -> Receipt:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Receipt(
        spec=source.spec,
        files=file_facts(folder, names),
        candidates=tuple(candidates),
        checkpoint_sha256=source.digest,
        request=request,
        graph={"opset": OPSET, "operators": operators(folder / "model.onnx")},
        engines={name: dataclasses.asdict(built) for name, built in engines.items()},
        skipped=tuple(skipped),
        versions=versions(),
    )


def up_to_date(folder: Path, digest: str, settings: Settings) -> Receipt | None:
    """The receipt of an earlier export that the same checkpoint, settings, code, libraries and machine would make."""
    try:
        receipt = Receipt.read(folder)
        for file in receipt.files:
            receipt.verify(folder, file)
    except BadModel:
        return None
    same = receipt.checkpoint_sha256 == digest and receipt.request == settings.request()
    same_libraries = _of_result(receipt.versions) == _of_result(versions())
    # A verdict holds for the machine that gave it, and another one may build other engines
    here = all(candidate.machine == machine() for candidate in receipt.candidates)
    return receipt if same and same_libraries and here else None


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


def _photos_of(run: Path) -> Path | None:
    """Where the photos of a run stood when it was trained."""
    try:
        return Path(json.loads((run.parent / "data.json").read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError):
        return None


def _write_examples(folder: Path, validation: ValidationSet, spec: ModelSpec) -> None:
    """One picture per class to show in a demo: the validation photo that the checkpoint is surest of, as it sees it."""
    assert validation.logits is not None
    probabilities = spec.probabilities(validation.logits)
    folder.mkdir()
    for label, name in enumerate(spec.classes):
        of_class = np.flatnonzero(validation.labels == label)
        if len(of_class):
            best = of_class[probabilities[of_class, label].argmax()]
            safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
            Image.fromarray(validation.images[best]).save(folder / f"{label:03d}_{safe}.png")
