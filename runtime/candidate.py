"""A candidate = architecture × file × backend × precision. Parity checks it, the benchmark measures it."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends import BACKENDS, Backend, BuildFacts, open_backend, unavailable_because
from runtime.errors import NotTold, SajiError, Unavailable
from runtime.evaluation import Figures, ValidationSet
from runtime.files import as_record, is_file
from runtime.gate import GATES, Gate, apply_gate
from runtime.machine import Machine, machine
from runtime.spec import ModelSpec

AT_ONCE = 8  # photos of a batch: of file checks, which keep every layer's output, and beside single ones
VERDICTS = ("pass", "fail", "inconclusive", "unchecked")


@dataclass(frozen=True)
class Candidate:
    """One way to run one model, with the verdict that some machine gave it.

    `verdict` is one of VERDICTS; only "pass" is ever served. A candidate that is not `servable` is a file check: this
    machine can tell whether the file is right, but would not run it in its own precision, or it is no service's file
    (variants "embed" and "cam"). `figures` and `machine` are None where nothing was checked. `facts` say what the file
    was made for. `gate` has the bounds that it must keep; where it is None, those of `gate_of` hold. `faults` are what
    export found wrong with the file, whatever runs it.
    """

    architecture: str
    file: str
    backend: str
    precision: str
    variant: str = ""
    servable: bool = True
    verdict: str = "unchecked"
    reasons: tuple[str, ...] = ()
    figures: Figures | None = None
    precision_share: dict[str, float] = field(default_factory=dict)
    machine: Machine | None = None
    facts: BuildFacts = field(default_factory=BuildFacts)
    gate: Gate | None = None
    faults: tuple[str, ...] = ()

    @classmethod
    def from_values(cls, values: Any, origin: str = "") -> "Candidate":
        """A candidate from its JSON form; one of `runtime.files.DAMAGE` when it is none."""
        # Earlier versions wrote an empty object where there is nothing
        candidate = as_record(cls, {name: value for name, value in values.items() if value != {}}, origin)
        if candidate.verdict == "unjudged":  # what earlier versions called it
            candidate = replace(candidate, verdict="unchecked")
        if candidate.verdict not in VERDICTS or candidate.precision not in GATES:
            raise ValueError(f"there is no verdict {candidate.verdict!r}, or no precision {candidate.precision!r}")
        return candidate

    @property
    def name(self) -> str:
        """How people see it, e.g. "resnet34 · openvino · int8"."""
        return " · ".join(part for part in (self.architecture, self.backend, self.precision, self.variant) if part)

    def name_with(self, threads: int = 0, streams: int = 1) -> str:
        """The name with the engine's settings, where they are not its own: "resnet34 · ort-cpu · fp32 · 1 thread"."""
        parts = [self.name]
        if threads:
            parts.append(f"{threads} thread{'s' if threads > 1 else ''}")
        if streams > 1:
            parts.append(f"{streams} streams")
        return " · ".join(parts)

    def key(self) -> tuple[str, str, str, str, str]:
        """What identifies a candidate, whatever its verdict."""
        return self.architecture, self.file, self.backend, self.precision, self.variant

    @property
    def bounds(self) -> Gate:
        """Those that its verdict was given by, or would be."""
        return self.gate or self.gate_of(GATES)

    def gate_of(self, gates: Mapping[str, Gate]) -> Gate:
        """The bounds that a table, such as GATES, has for its precision on its kind of device."""
        on_gpu = f"{self.precision}-gpu" if BACKENDS[self.backend].gpu else ""
        return gates.get(on_gpu, gates[self.precision])

    def open(self, folder: Path, threads: int = 0, streams: int = 1, sha256: str = "") -> Backend:
        """Open the candidate's file in the model folder `folder`; see `runtime.backends.open_backend`."""
        # ONNX Runtime computes what is written in FP16 so where an ARM processor has the arithmetic, elsewhere in FP32
        precision, facts = (self.precision, self.facts) if self.servable else ("fp32 or fp16", None)
        return open_backend(self.backend, folder / self.file, precision, self.variant, threads, facts, streams, sha256)


def candidates_in(architecture: str, folder: Path, facts: Mapping[str, BuildFacts] | None = None) -> list[Candidate]:
    """Every candidate and file check that the backends offer for the files that exist in a model folder.

    `facts` by file name are what export knows of the files.
    """
    return [
        Candidate(
            architecture,
            offer.file,
            backend,
            offer.precision,
            offer.variant,
            offer.servable,
            facts=(facts or {}).get(offer.file, BuildFacts()),
        )
        for backend, row in BACKENDS.items()
        for offer in row.offers
        if is_file(folder / offer.file)
    ]


def not_run_here(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Why candidates cannot be checked on this machine, from their names and reasons: one line for all that need a GPU,
    and one for each reason of the others.

    A backend of which several are meant is named alone, whatever the architectures.
    """
    meant: dict[str, dict[str, set[str]]] = {}
    without_gpu = set()
    for name, reason in reasons:
        backend, _, how = name.partition(" · ")[2].partition(" · ")
        if backend in BACKENDS and BACKENDS[backend].gpu:
            without_gpu.add(reason)
            reason = ""
        meant.setdefault(reason, {}).setdefault(backend, set()).add(how)
    lines = []
    for reason, backends in meant.items():
        names = ", ".join(f"{name} {min(how)}".strip() if len(how) == 1 else name for name, how in backends.items())
        several = "each needs a GPU that it can use, see python -m runtime doctor"
        lines.append(f"not run here: {names}: {reason or (several if len(without_gpu) > 1 else min(without_gpu))}")
    return lines


def check_candidate(
    candidate: Candidate, folder: Path, validation: ValidationSet, spec: ModelSpec, sha256: str = ""
) -> Candidate:
    """The candidate with the verdict of this machine, given by running the very file on the validation photos.

    They go in one by one, which the figures are of, and because engines differ between batch sizes and services gather
    what comes together, in batches as well. A file check is never served, so it takes what is quicker; it is opened as
    what its backend really computes, FP32 or FP16, and held to the gate of the file's own precision. What cannot be
    opened here is "unchecked" with the reason; what opens as something else is "fail", as is a file without the
    `sha256`, if one is given; what does not tell as what it opens is "inconclusive".
    """
    if validation.logits is None:
        raise SajiError(f"{folder / 'validation.npz'} has no reference logits; write them with: make export")
    candidate = replace(candidate, machine=machine())
    if reason := unavailable_because(candidate.backend):
        return replace(candidate, verdict="unchecked", reasons=(reason,))
    try:
        share, answers, otherwise = _answers(candidate, folder, validation.images, sha256)
    except Unavailable as error:
        return replace(candidate, verdict="unchecked", reasons=(str(error),))
    except NotTold as error:
        return replace(candidate, verdict="inconclusive", reasons=(str(error),))
    except SajiError as error:
        return replace(candidate, verdict="fail", reasons=(str(error),))
    result, *in_batches = (
        apply_gate(validation.outputs, outputs, validation.labels, candidate.bounds, spec, validation.scenes)
        for outputs in answers
    )
    faults = (*candidate.faults, *otherwise)
    if result.verdict == "pass":
        faults += tuple(f"in batches of {AT_ONCE}: {why}" for other in in_batches for why in other.reasons)
    verdict, reasons = "fail" if faults else result.verdict, (*result.reasons, *faults)
    return replace(candidate, verdict=verdict, reasons=reasons, figures=result.figures, precision_share=share)


def _answers(
    candidate: Candidate, folder: Path, images: np.ndarray, sha256: str
) -> tuple[dict[str, float], list[np.ndarray], tuple[str, ...]]:
    """The precision that a candidate computes in, its outputs (of single photos first where it may be served), and what
    it had to do otherwise than asked for."""
    with closing(candidate.open(folder, sha256=sha256)) as backend:
        share = backend.precision_share()
        answers = [run_all(backend, images, batch) for batch in ((1, AT_ONCE) if candidate.servable else (AT_ONCE,))]
        return share, answers, (backend.otherwise,) if backend.otherwise else ()


def run_all(backend: Backend, images: np.ndarray, batch: int) -> np.ndarray:
    """A backend's outputs float32 `[N, …]` of uint8 `[N, S, S, 3]` photos, `batch` at a time."""
    return np.concatenate([backend.run(images[i : i + batch]) for i in range(0, len(images), batch)])
