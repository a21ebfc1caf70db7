"""A candidate = architecture × file × backend × precision. Parity judges it, the benchmark measures it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from runtime.backends import BACKENDS, Backend, open_backend, unavailable_because
from runtime.environment import machine
from runtime.errors import SajiError, Unavailable
from runtime.evaluation import GATES, Gate, ValidationSet, apply_gate
from runtime.spec import ModelSpec

CHECKED_AT_ONCE = 8  # photos: more would not be quicker, and every layer's output is kept
VERDICTS = ("pass", "fail", "inconclusive", "unchecked")


@dataclass(frozen=True)
class Candidate:
    """One way to run one model, with the verdict that some machine gave it.

    `verdict` is one of VERDICTS; only "pass" is ever served. A candidate that is not `servable` is a file check:
    this machine can tell whether the file is right, but would not run it in its own precision. `facts` say what the
    file was made for: an engine's TensorRT and GPU, and the layers of an INT8 file that keep a higher precision.
    `gate` holds the bounds of `runtime.evaluation.Gate` that it is judged by; where there are none, those of its
    precision.
    """

    architecture: str
    file: str
    backend: str
    precision: str
    variant: str = ""
    servable: bool = True
    verdict: str = "unchecked"
    reasons: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    precision_share: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How people see it, e.g. "resnet34 · openvino · int8"."""
        return " · ".join(part for part in (self.architecture, self.backend, self.precision, self.variant) if part)

    def name_with(self, threads: int = 0, streams: int = 1) -> str:
        """The name with the engine's settings, where they are not its own: "resnet34 · ort-cpu · fp32 · 1 thread"."""
        settings = [f"{threads} thread{'s' * (threads > 1)}"] * bool(threads) + [f"{streams} streams"] * (streams > 1)
        return " · ".join([self.name, *settings])

    def key(self) -> tuple[str, str, str, str, str]:
        """What identifies a candidate, whatever its verdict."""
        return self.architecture, self.file, self.backend, self.precision, self.variant

    def open(self, folder: Path, threads: int = 0, streams: int = 1) -> Backend:
        """Open the candidate's file in the model folder `folder`; see `runtime.backends.open_backend`."""
        precision, facts = (self.precision, self.facts) if self.servable else ("fp32", {})
        return open_backend(self.backend, folder / self.file, precision, self.variant, threads, facts, streams)


def candidates_in(
    architecture: str, folder: Path, facts: Mapping[str, dict[str, Any]] = MappingProxyType({})
) -> list[Candidate]:
    """Every candidate and file check that the backends offer for the files that exist in a model folder.

    `facts` by file name are what export knows of the files, see `Candidate`.
    """
    return [
        Candidate(
            architecture,
            offer.file,
            backend,
            offer.precision,
            offer.variant,
            offer.servable,
            facts=facts.get(offer.file, {}),
        )
        for backend, row in BACKENDS.items()
        for offer in row.offers
        if (folder / offer.file).is_file()
    ]


def check_candidate(
    candidate: Candidate, folder: Path, validation: ValidationSet, spec: ModelSpec, batch: int = 1
) -> Candidate:
    """The candidate with the verdict of this machine, given by running the very file on the validation photos.

    `batch` photos go in at a time: the batch that will be served, because engines differ between batch sizes. A file
    check is never served, so it takes what is quickest; it is opened as the FP32 that its backend really computes, and
    held to the gate of the file's own precision. What cannot be opened here is "unchecked" with the reason; what opens
    as something else is "fail".
    """
    if validation.logits is None:
        raise SajiError(f"{folder / 'validation.npz'} has no reference logits; write them with: make export")
    reason = unavailable_because(candidate.backend)
    if reason:
        return replace(candidate, verdict="unchecked", reasons=(reason,), machine=machine())
    try:
        backend = candidate.open(folder)
    except Unavailable as error:
        return replace(candidate, verdict="unchecked", reasons=(str(error),), machine=machine())
    except SajiError as error:
        return replace(candidate, verdict="fail", reasons=(str(error),), machine=machine())
    try:
        share = backend.precision_share()
        logits = run_all(backend, validation.images, batch if candidate.servable else CHECKED_AT_ONCE)
    except SajiError as error:
        return replace(candidate, verdict="fail", reasons=(str(error),), machine=machine())
    finally:
        backend.close()
    gate = Gate(**candidate.gate) if candidate.gate else GATES[candidate.precision]
    verdict = apply_gate(validation.logits, logits, validation.labels, gate, spec)
    return replace(
        candidate,
        verdict=verdict.verdict,
        reasons=verdict.reasons,
        figures=verdict.figures,
        precision_share=share,
        machine=machine(),
    )


def run_all(backend: Backend, images: np.ndarray, batch: int) -> np.ndarray:
    """Logits float32 `[N, C]` of uint8 `[N, S, S, 3]` photos, `batch` at a time."""
    return np.concatenate([backend.run(images[i : i + batch]) for i in range(0, len(images), batch)])
