"""Verdicts hold where they were given: on that kind of machine, with those versions of the engine.

A model folder's receipt has those of the machine that exported it. What another kind of machine finds, or another
environment with other versions, is kept beside it in `verdicts/`, a file for each, as long as the receipt stays as it
is: it has the sha256 of every file, and the bounds. Another model copied over this one brings its own.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from runtime import environment, signature
from runtime.backends import BACKENDS, distributions, unavailable_because
from runtime.candidate import Candidate, check_candidate
from runtime.errors import BadModel
from runtime.evaluation import EARLIER, PHOTOS
from runtime.files import is_file, read_record, sha256_json, write_record
from runtime.machine import Machine, machine
from runtime.receipt import VERDICTS, Receipt
from runtime.terminal import say

SCHEMA_VERSION = 2  # 1 did not say of which receipt


@dataclass(frozen=True)
class Verdicts:
    """What one kind of machine found, with the versions that it had, of the folder whose receipt has this sha256."""

    of: str
    machine: Machine
    versions: dict[str, str]
    candidates: tuple[Candidate, ...]


def of_here(folder: Path, receipt: Receipt) -> dict[tuple[str, ...], Candidate]:
    """The candidates of a model folder with a verdict that holds here, by their key."""
    known = [(candidate, receipt.versions) for candidate in receipt.candidates]
    with contextlib.suppress(BadModel):  # none yet, or damaged
        if not signature.required():  # nobody signed what lies beside the receipt
            kept = read_record(_file(folder), Verdicts, SCHEMA_VERSION, "it is taken anew")
            if kept.of == _of(receipt):
                known += [(candidate, kept.versions) for candidate in kept.candidates]
    return {  # what was kept goes before the receipt's, but only where both hold
        candidate.key(): candidate
        for candidate, versions in known
        if not difference(candidate, versions) and not _can_be_checked_now(candidate)
    }


def judged_here(candidate: Candidate, folder: Path, receipt: Receipt) -> Candidate:
    """The candidate with a verdict that holds here; where there is none it is taken now, which is said, and kept."""
    if (known := of_here(folder, receipt).get(candidate.key())) is not None:
        return known
    why = difference(candidate, receipt.versions) or f"was left open ({'; '.join(candidate.reasons)})"
    if not any(is_file(folder / name) for name in (PHOTOS, EARLIER)):
        alone = f"its verdict {why}, and {folder} has no validation.npz to judge it here by; copy the folder whole"
        return replace(candidate, verdict="unchecked", reasons=candidate.reasons or (alone,))
    say(f"saji: judging {candidate.name} anew on this machine: its verdict {why}")
    sha256 = receipt.files[candidate.file].sha256
    fresh = check_candidate(candidate, folder, receipt.photos(folder), receipt.spec, sha256)
    keep(folder, receipt, [fresh])
    return fresh


def keep(folder: Path, receipt: Receipt, fresh: list[Candidate]) -> None:
    """Keep verdicts that were given here for the next time, where the folder can be written to."""
    found = of_here(folder, receipt) | {candidate.key(): candidate for candidate in fresh}
    try:
        _file(folder).parent.mkdir(exist_ok=True)
        record = Verdicts(_of(receipt), machine(), environment.versions(), tuple(found.values()))
        write_record(_file(folder), record, SCHEMA_VERSION)
    except OSError:  # a folder that is only to be read: judged again at the next start
        pass


def _can_be_checked_now(candidate: Candidate) -> bool:
    """Whether what kept it from being checked may be gone: a GPU whose memory was full."""
    on_gpu = candidate.servable and candidate.backend in BACKENDS and BACKENDS[candidate.backend].gpu
    return candidate.verdict == "unchecked" and on_gpu and not unavailable_because(candidate.backend)


def difference(candidate: Candidate, versions: Mapping[str, str]) -> str:
    """What here is other than where a verdict was given with some `versions`; empty where it holds here.

    In words that go on from "its verdict".
    """
    if candidate.machine is None:
        return "names no machine"
    if candidate.backend not in BACKENDS:
        return f"is of a backend {candidate.backend!r} that there is not"
    installed = environment.versions()
    libraries = [(name, versions.get(name), installed.get(name)) for name in distributions(candidate.backend)]
    facts = [*zip(("processor", "system", "GPU"), _kind(candidate.machine), _kind(machine()), strict=True)]
    if not BACKENDS[candidate.backend].gpu:
        del facts[-1]
    others = [f"{name} {theirs}, here {ours}" for name, theirs, ours in (*facts, *libraries) if theirs != ours]
    return f"was given elsewhere ({'; '.join(others)})" if others else ""


def same_kind(other: Machine | None) -> bool:
    """Whether what is computed on another machine is computed alike here."""
    return other is not None and _kind(other) == _kind(machine())


def _kind(of: Machine) -> tuple[str, str, str | None]:
    """What decides how numbers come out: the processor's formats or, where they are not told, its name; system; GPU."""
    return " ".join(of.cpu_features) or of.cpu, of.system, of.gpu


def _of(receipt: Receipt) -> str:
    return sha256_json(asdict(receipt))


def _file(folder: Path) -> Path:
    """Of this kind of machine with these versions of the engines: environments may share a folder."""
    installed = environment.versions()
    here = _kind(machine()), [installed.get(name) for name in distributions()]
    return folder / VERDICTS / f"{sha256_json(here)[:16]}.json"
