"""`python -m export`: checkpoints → ONNX, PyTorch and TensorRT files, judged, with a receipt."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runtime.command_line import require_extra

require_extra("export", "torch", "torchvision", "onnx", "onnxscript")

import numpy as np
from PIL import Image

from export import parity
from export.engine import Built, Options, Profile, build_engines
from export.foreign import Foreign, import_foreign
from export.geometry import write_with_geometry
from export.golden import write_golden
from export.heatmap import write_heatmap
from export.triton_repository import write_models
from runtime import environment
from runtime.backends import BuildFacts
from runtime.candidate import Candidate
from runtime.command_line import Parser, add_flags, exit_with_one_sentence, from_flags, say
from runtime.errors import BadModel, GateFailed, SajiError
from runtime.evaluation import GATES, Gate, ValidationSet, read_gates
from runtime.files import replacing_folder, sha256_file
from runtime.receipt import Receipt, file_facts
from runtime.spec import ModelSpec

if TYPE_CHECKING:
    from training.network.classifier import PhotoClassifier

REVISION = 2  # raised when earlier exports are wrong and have to be made anew: 1 had golden vectors of FP16 weights


@dataclass(frozen=True)
class Command:
    """Export trained checkpoints, judge every file against its checkpoint on the validation photos."""

    run: str = ""
    """The training run; may be left out when there is only one."""
    archs: tuple[str, ...] = ()
    """Architectures of the run; all by default."""
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
    triton: Path | None = None
    """Also write what passed as a Triton model repository into this folder."""
    out: Path = Path("artifacts")
    """Folder of all artefacts."""
    force: bool = False
    """Export again even when nothing has changed."""
    gates: Path | None = None
    """A TOML file with other bounds for the verdicts, such as: int8.shift = 0.2"""

    @property
    def wanted(self) -> tuple[str, ...]:
        """The precisions to write: those asked for, or all."""
        return self.precisions or ("fp32", "fp16", "int8")

    @property
    def options(self) -> Options:
        """How engines are built."""
        return Options(
            profile=Profile(*self.batch),
            targets=self.targets,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
            timing_cache=self.out / "cache" / "tensorrt.timings",
        )

    @functools.cached_property
    def bounds(self) -> Mapping[str, Gate]:
        """The gates that verdicts are given by."""
        return read_gates(self.gates) if self.gates else GATES

    def request(self) -> dict[str, Any]:
        """What decides how an export turns out, as JSON values: with the same request it is up to date."""
        from export.graph import OPSET

        built_by = dataclasses.asdict(dataclasses.replace(self.options, timing_cache=None))
        bounds = {name: dataclasses.asdict(gate) for name, gate in self.bounds.items()}
        how = {"recover": self.recover, "overflow_fix": self.overflow_fix}
        request = {"revision": REVISION, "opset": OPSET, "precisions": self.wanted, **how, "gates": bounds, **built_by}
        return dict(json.loads(json.dumps(request)))


def main() -> None:
    """Read the command line and export each architecture; exit 1 when a gate failed."""
    command, foreign = _read()
    if foreign.onnx:
        run, receipts = "", iter([import_foreign(foreign, command.out, say, command.bounds)])
    else:
        run, receipts = _exports(command)
    archs: list[str] = []
    failed: list[Candidate] = []
    refused: list[Candidate] = []
    for receipt in receipts:
        archs.append(receipt.spec.architecture)
        if command.triton:
            write_models(command.out / "models" / receipt.spec.architecture, receipt, command.triton, say)
        for candidate in parity.failures(list(receipt.candidates)):
            asked = candidate.precision in (*command.precisions, "fp32")
            (failed if asked else refused).append(candidate)
        print(f"\n{receipt.spec.architecture}: {receipt.spec.name}\n{parity.table(list(receipt.candidates))}")
    for candidate in refused:
        print(f"refused, never to be served: {candidate.name}: {'; '.join(candidate.reasons)}")
    names = {"failed": [candidate.name for candidate in failed], "refused": [candidate.name for candidate in refused]}
    print(json.dumps({"run": run, "archs": archs, **names}))
    if failed:
        raise GateFailed(
            f"parity failed for {', '.join(candidate.name for candidate in failed)}; the others keep their verdicts, "
            "look into parity.md, or leave the failing precision out with --precisions"
        )


def _read() -> tuple[Command, Foreign]:
    parser = Parser(prog="python -m export", description=Command.__doc__)
    add_flags(parser, Command())
    add_flags(parser.add_argument_group("import", Foreign.__doc__), Foreign())
    typed = parser.parse_args()
    return from_flags(Command(), typed), from_flags(Foreign(), typed)


def _exports(command: Command) -> tuple[str, Iterator[Receipt]]:
    """The run's name, and the receipt of each architecture asked for as soon as it is exported."""
    run = _run_folder(command.out / "runs", command.run)
    archs = command.archs or tuple(sorted(path.parent.name for path in run.glob("*/checkpoint.pt")))
    if not archs:
        raise SajiError(f"{run} holds no checkpoint; train first with: make train")
    models = command.out / "models"
    return run.name, (export_model(run / name, models / name, command, say) for name in archs)


def export_model(run: Path, folder: Path, command: Command, say: Callable[[str], None]) -> Receipt:
    """Export one checkpoint into `folder`, which is replaced whole once the files are complete and judged.

    Raises GateFailed, leaving an earlier export untouched, when the FP32 file does not agree with the checkpoint.
    """
    from export.graph import OPSET, operators
    from training.network.classifier import load_checkpoint, reference_logits

    model, spec = load_checkpoint(run / "checkpoint.pt")
    digest, request = sha256_file(run / "checkpoint.pt"), command.request()
    earlier = None if command.force else _up_to_date(folder, digest, request)
    if earlier:
        say(f"{spec.architecture}: up to date in {folder}, --force to redo")
        return earlier
    validation = _validation_set(run, spec)
    say(f"{spec.architecture}: reference logits of {len(validation.labels)} validation photos")
    validation = dataclasses.replace(validation, logits=reference_logits(model, validation.images))
    with replacing_folder(folder) as new:
        validation.save(new / "validation.npz")
        _write_graphs(model, spec, run / "calibration.npz", new, command, say)
        engines, skipped = build_engines(new, command.wanted, command.precisions, command.options, say)
        for reason in skipped:
            say(f"{spec.architecture}: {reason}")
        candidates = parity.check_folder(spec, new, validation, say, _facts(new, engines), command.bounds)
        _require_right_fp32(candidates, run / "checkpoint.pt")
        write_golden(functools.partial(reference_logits, model), spec, new, candidates)
        candidates += write_with_geometry(new, spec, candidates, validation, _source(run), say, command.bounds)
        maps, without = write_heatmap(new, spec, validation, say, command.bounds)
        candidates, skipped = candidates + maps, skipped + without
        _write_examples(new / "examples", validation, spec)
        report = parity.report(spec, candidates, validation, skipped, command.bounds)
        (new / "parity.md").write_text(report, encoding="utf-8")
        names = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
        receipt = Receipt(
            spec=spec,
            files=file_facts(new, names),
            candidates=tuple(candidates),
            checkpoint_sha256=digest,
            request=request,
            graph={"opset": OPSET, "operators": operators(new / "model.onnx")},
            engines={name: dataclasses.asdict(built) for name, built in engines.items()},
            skipped=tuple(skipped),
            versions=environment.versions(),
        )
        receipt.write(new)
    return receipt


def _validation_set(run: Path, spec: ModelSpec) -> ValidationSet:
    validation = ValidationSet.load(run / "validation.npz")
    size, classes = spec.geometry.size, len(spec.classes)
    if validation.images.shape[1:] != (size, size, 3) or not set(validation.labels.tolist()) <= set(range(classes)):
        raise BadModel(f"{run}/validation.npz is not of checkpoint.pt ({size} px, {classes} classes); train again")
    return validation


def _write_graphs(
    model: "PhotoClassifier",
    spec: ModelSpec,
    calibration: Path,
    folder: Path,
    command: Command,
    say: Callable[[str], None],
) -> None:
    """The portable files of every precision that is wanted; `calibration` holds training photos."""
    from export.graph import export_onnx, export_pt2
    from export.precision import HalfPrecision, quantise, quantise_for_tensorrt

    say(f"{spec.architecture}: writing model.onnx and model.pt2")
    export_onnx(model, spec, folder / "model.onnx")
    export_pt2(model, spec, folder / "model.pt2")
    if "int8" in command.wanted:
        say(f"{spec.architecture}: calibrating model.int8.onnx")
        photos = ValidationSet.load(calibration).images
        int8 = folder / "model.int8.onnx"
        quantise(
            folder / "model.onnx",
            photos,
            spec,
            int8,
            command.recover,
            command.overflow_fix,
            command.bounds["int8"].shift,
        )
        quantise_for_tensorrt(int8, spec, folder / "model.int8-trt.onnx")
    if "fp16" in command.wanted:
        say(f"{spec.architecture}: writing model.fp16.onnx")
        export_onnx(HalfPrecision(model), spec, folder / "model.fp16.onnx")


def _require_right_fp32(candidates: list[Candidate], checkpoint: Path) -> None:
    for candidate in parity.failures(candidates):
        if candidate.file in ("model.onnx", "model.pt2") and candidate.precision == "fp32":
            raise GateFailed(
                f"the FP32 file does not agree with {checkpoint} ({candidate.name}: {candidate.reasons[0]}); "
                "nothing was replaced"
            )


def _facts(folder: Path, engines: dict[str, Built]) -> dict[str, BuildFacts]:
    """By file, what candidates know of it: an engine's facts, and the layers that an INT8 file keeps above INT8."""
    from export.graph import layer_facts

    facts = {name: built.facts() for name, built in engines.items()}
    for file in folder.glob("*int8*.onnx"):
        kept = layer_facts(file)["kept"]
        if kept:
            facts[file.name] = BuildFacts(kept=kept)
    return facts


def _run_folder(runs: Path, name: str) -> Path:
    there = sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    if name and name not in there:
        raise SajiError(
            f"there is no run {name!r} in {runs}; it has {', '.join(there) or 'none'}; train with: make train"
        )
    if not name and len(there) != 1:
        raise SajiError(f"{runs} has {len(there)} runs ({', '.join(there) or 'none'}); choose one with --run, or train")
    return runs / (name or there[0])


def _source(run: Path) -> Path | None:
    """Where the photos of a run stood when it was trained."""
    try:
        return Path(json.loads((run.parent / "data.json").read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError):
        return None


def _up_to_date(folder: Path, checkpoint_sha256: str, request: dict) -> Receipt | None:
    try:
        receipt = Receipt.read(folder)
        for file in receipt.files:
            receipt.verify(folder, file)
    except BadModel:
        return None
    same = receipt.checkpoint_sha256 == checkpoint_sha256 and receipt.request == request
    same_libraries = _of_result(receipt.versions) == _of_result(environment.versions())
    # A verdict holds for the machine that gave it, and another one may build other engines
    here = all(candidate.machine == environment.machine() for candidate in receipt.candidates)
    return receipt if same and same_libraries and here else None


def _of_result(versions: dict[str, str]) -> dict[str, str]:
    """The libraries that an export's result depends on."""
    return {name: version for name, version in versions.items() if name not in ("gradio", "scikit-learn")}


def _write_examples(folder: Path, validation: ValidationSet, spec: ModelSpec) -> None:
    """One picture per class to show in a demo: the validation photo that the checkpoint is surest of, as it sees it."""
    assert validation.logits is not None
    probabilities = spec.probabilities(validation.logits)
    folder.mkdir()
    for label, name in enumerate(spec.classes):
        of_class = np.flatnonzero(validation.labels == label)
        best = of_class[probabilities[of_class, label].argmax()]
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        Image.fromarray(validation.images[best]).save(folder / f"{label:03d}_{safe}.png")


if __name__ == "__main__":
    exit_with_one_sentence(main)
