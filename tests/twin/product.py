"""The product on a machine of the twin: what tests of the GPU path share."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from runtime.evaluation import ValidationSet
from twin.machines import SHAPES, Machine, installed

GRAPHS = ("model.onnx", "model.fp16.onnx", "model.int8-trt.onnx")
CAPTURED = "CUDA graph"


@dataclass(frozen=True)
class Built:
    """An engine in a folder of its own, and what opens it."""

    twin: Any
    backend: str
    precision: str
    folder: Path
    facts: Any
    validation: ValidationSet

    @property
    def file(self) -> str:
        return f"engines/{self.backend}.{self.precision}.engine"

    def open(self, variant: str = "", streams: int = 1) -> Any:
        """As the product opens it; raises what that raises."""
        from runtime.backends import open_backend

        path = self.folder / self.file
        return open_backend(self.backend, path, self.precision, variant, facts=self.facts, streams=streams)

    def judged(self, variant: str = "") -> Any:
        """The candidate with the verdict that the gate gives it here."""
        from runtime.candidate import Candidate, check_candidate

        candidate = Candidate("resnet18", self.file, self.backend, self.precision, variant, facts=self.facts)
        return check_candidate(candidate, self.folder, self.validation, spec_of(self.folder))

    def right(self, outputs: np.ndarray, start: int = 0) -> bool:
        """Whether these are the outputs of the photos from `start` on, within the room of the precision."""
        reference = self.validation.outputs[start : start + len(outputs)]
        room = {"fp16": 0.02, "int8": 0.5}[self.precision]
        return bool(np.abs(outputs - reference).max() <= room * np.abs(reference).max())


def spec_of(folder: Path) -> Any:
    """What model the file is."""
    from runtime.classifier import spec_of

    return spec_of(folder / "model.onnx")


@contextlib.contextmanager
def built(
    model: Path, folder: Path, shape: str = "10.14", precision: str = "fp16", machine: str | Machine = "rtx4090",
    **changes: Any,
) -> Iterator[Built]:  # fmt: skip
    """One engine of a model folder, built by the product on a machine, which the block then is on."""
    backend, distributions = SHAPES[shape]
    with installed(machine, **{"installed": distributions, **changes}) as twin:
        (folder / "engines").mkdir(parents=True, exist_ok=True)
        for file in GRAPHS:
            shutil.copy(model / file, folder / file)
        validation = ValidationSet.load(model / "validation.npz")
        yield Built(twin, backend, precision, folder, engine_in(folder, backend, precision), validation)


def engine_in(folder: Path, backend: str, precision: str, cache: Path | None = None, **settings: Any) -> Any:
    """Build one engine in a folder, by the product's settings but for some; its facts."""
    from export.engine import SOURCES, build_engine, module_for
    from export.settings import Settings

    file = f"engines/{backend}.{precision}.engine"
    return build_engine(
        module_for(backend), folder / SOURCES[precision], folder / file, precision, Settings(**settings), cache
    ).facts()


def export(run: Path, model: Path, folder: Path, say: list[str], precisions: tuple[str, ...] = ("fp16",)) -> Any:
    """The receipt of a whole export of a run, as `python -m export` makes it but for two things.

    The portable files are those of `model`, and beside the engines ONNX Runtime's FP32 alone is judged: both take
    minutes elsewhere and have nothing to do with a GPU. What is made of geometry and heat maps is left out likewise,
    and this process checks every candidate: the twin is in no other.
    """
    from export import model as exporting
    from export.own_process import OwnProcess
    from export.settings import Settings
    from runtime.backends import BACKENDS
    from runtime.candidate import check_candidate

    class Written(exporting.Checkpoint):
        def write_graphs(self, folder: Path, settings: Settings, say: Any) -> None:
            for file in GRAPHS:
                shutil.copy(model / file, folder / file)

    few = {name: BACKENDS[name] for name in ("ort-cpu", "tensorrt", "tensorrt-rtx")}
    few["ort-cpu"] = replace(few["ort-cpu"], offers=few["ort-cpu"].offers[:1])
    settings = Settings(recover=False, precisions=precisions)  # type: ignore[arg-type]
    with (
        patch.dict(BACKENDS, few, clear=True),
        patch.object(exporting, "write_with_geometry", lambda *_: []),
        patch.object(exporting, "write_heatmap", lambda *_: ([], [])),
        patch.object(OwnProcess, "check", lambda self, candidate: check_candidate(candidate, *self.given)),
    ):
        return exporting.write_model(Written(run), folder, settings, say.append, folder.parent / "cache")


def place(candidate: Any, receipt: Any, folder: str, milliseconds: float) -> Any:
    """A candidate as a benchmark would have measured it: the time is the test's, the twin's clock tells nothing."""
    from runtime.deployment import Measured

    facts = receipt.files[candidate.file]
    rounds = tuple(milliseconds * (1 + 0.001 * number) for number in range(6))
    return Measured(candidate, folder, facts.sha256, facts.bytes, milliseconds, rounds)
