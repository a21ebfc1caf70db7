"""What a backend is: the class that each engine's file derives, and the check of the precision that it really got."""

import ctypes
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from runtime.errors import BadModel, NoAnswer, NotAsAsked, NotTold, SajiError, Unavailable
from runtime.spec import FAMILIARITY

# The last layer and the normalisation keep a higher precision on purpose; the rest must be as asked
MINIMUM_SHARE = {"fp32": 1.0, "fp16": 0.95, "bf16": 0.95, "int8": 0.95}

Layer = tuple[str, str, float]  # name, number format, amount of work: multiply-adds where they can be told
UNTOLD = "untold"  # the format of a layer that the engine is silent about
AS_TYPED = " as typed"  # ends a format that the network's types demand, where the engine itself is silent
# How CUDA, the libraries above it and those of the processor say that there is no memory; then CUDA's names, and its
# words (cudaGetErrorString), for a GPU that others have to themselves or whose services do not run yet
_TEMPORARY = re.compile(
    r"out.?of.?memory|not enough memory|(failed to|can't|cannot) allocate|alloc\w*.failed|bad.?alloc|MemoryError"
    r"|cudaError(MemoryAllocation|DevicesUnavailable|SystemNotReady|Mps\w+)"
    r"|busy or unavailable|system not yet initialized|MPS (client|server)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class BuildFacts:
    """What a file was made for, as far as export knows and the receipt keeps it.

    `kept`: the layers of an INT8 file that keep a higher precision, with their share of the work. Of an engine also
    the TensorRT module, version and system that built it, the GPUs it is for (such as "sm86", none for every GPU),
    what it is compatible with, the multiply-adds of each node of the ONNX file, and its number format in the strongly
    typed network.
    """

    kept: dict[str, float] = field(default_factory=dict)
    multiply_adds: dict[str, int] = field(default_factory=dict)
    typed: dict[str, str] = field(default_factory=dict)
    flavour: str = ""
    version: str = ""
    system: str = ""
    targets: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True)
class Request:
    """What is to be opened, by which backend and how.

    `threads` are the processor threads of one call; 0 leaves the count to the engine, which takes all cores it may use.
    `streams` are the calls from several threads that it should be ready to compute side by side. `sha256` is that of
    the file, in hexadecimal digits, where it must be a certain one.
    """

    backend: str
    path: Path
    precision: str = "fp32"
    variant: str = ""
    threads: int = 0
    facts: BuildFacts = field(default_factory=BuildFacts)
    streams: int = 1
    sha256: str = ""

    def content(self) -> bytes:
        """The file's bytes, read once: whoever opens these opens what was checked, whatever the path has become.

        Raises BadModel where they do not have the `sha256`.
        """
        content = self.path.read_bytes()
        if self.sha256 and hashlib.sha256(content).hexdigest() != self.sha256:
            raise BadModel(f"{self.path} changed while it was opened (its sha256 differs); export the model again")
        return content


class Backend(ABC):
    """An opened engine. A backend's author writes the five methods that are abstract here.

    Opening raises Unavailable (library, device or memory missing), NotAsAsked (another provider or precision than asked
    for) or BadModel (a damaged file) rather than falling back. Whatever else an engine raises, at opening or running,
    is a SajiError for who uses it.
    """

    title: str  # the library's name for people
    otherwise = ""  # in words, what an opened engine had to do otherwise than asked for; it then never passes
    # Whether the precision can be read at every opening; where that takes a run of its own, only the gate reads it
    checks_at_opening = True
    where: Callable[[], AbstractContextManager[Any]] = nullcontext  # around all that the engine does: its device
    answers_in_forks = False  # of the process that opened it, where it was idle at the fork; others wait for ever there

    def __init__(self, request: Request) -> None:
        """Open what was asked for and make sure that it computes in that precision."""
        self.request, self.calls = request, set[object]()
        _ENGINES.add(self)
        with self.at_work("opened"):
            self.open()
        if self.checks_at_opening:
            self.precision_share()

    def run(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 outputs `[N, …]`, see `compute`. Raises SajiError."""
        with self.at_work("run"):
            return self.compute(images)

    @contextmanager
    def at_work(self, done: str) -> Iterator[None]:
        """Where an engine does something: what its library raises there comes out as SajiError, or Unavailable."""
        require_here(self)
        self.calls.add(call := object())
        try:
            with self.where():
                yield
        except (Unavailable, OSError):
            raise
        except Exception as error:  # the engines' errors are of no common family
            kind, what = type(error).__name__, f"{self} cannot be {done}"
            if cause := temporary_cause(f"{error} {error.__context__ or ''} {kind}"):
                raise Unavailable(f"{what} now ({cause}); see what else runs on this machine") from error
            if isinstance(error, SajiError):
                raise
            lines = (line.strip() for line in str(error).splitlines())  # OpenVINO begins with places in its code
            why = next((line for line in lines if line and not line.startswith("Exception from")), kind)[:160]
            raise SajiError(f"{what} ({why}); check it here with: make bench ARGS=--force") from error
        finally:
            self.calls.discard(call)

    @classmethod
    @abstractmethod
    def check_available(cls, backend: str) -> None:
        """Raise Unavailable, with the reason, where the library cannot be used; that a GPU is there is checked next."""

    @abstractmethod
    def open(self) -> None:
        """Open `self.request` or raise."""

    @abstractmethod
    def compute(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 `[N, classes]` logits, with a second output `[N, classes + 1]`.

        Side by side, see `runtime.spec.ModelSpec`. May be called from several threads.
        """

    @abstractmethod
    def layers(self) -> Iterable[Layer]:
        """The layers that do the work, each with the number format that the opened engine computes it in."""

    @abstractmethod
    def close(self) -> None:
        """Free the engine; `run` must not be called afterwards."""

    def precision_share(self) -> dict[str, float]:
        """Share of the multiply-adds per number format, e.g. `{"int8": 0.97, "fp32": 0.03}`, read from the engine.

        Raises NotAsAsked when too little is in the precision that was asked for, NotTold when that cannot be known.
        """
        with self.at_work("read"):
            return check_precision(self.layers(), self.request.precision, str(self), self.request.facts.kept)

    def __str__(self) -> str:
        return f"{self.title} on {self.request.path.name}"


_ENGINES: WeakSet[Backend] = WeakSet()
_LEFT_BEHIND: set[int] = set()  # in a fork: those that may wait for threads which it lacks


def _keep_engines() -> None:
    """In a fork, for ever: engines that are freed wait for their threads, which it lacks, and so would its end."""
    for engine in _ENGINES:
        if engine.calls or not engine.answers_in_forks:
            _LEFT_BEHIND.add(id(engine))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_engines)


def require_here(engine: Any) -> None:
    """Raise SajiError in a fork where an engine, which lacks its threads there, may wait for them for ever."""
    if id(engine) in _LEFT_BEHIND:
        raise SajiError("an opened model cannot be used in a fork of its process; open it there with runtime.load")


def require_finite(outputs: np.ndarray, who: str) -> None:
    """Raise NoAnswer where what an engine gives of photos, `[N, …]`, holds NaN or infinity, which is no answer."""
    if not np.isfinite(outputs).all():
        broken = int((~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)).sum())
        told = f"{who} gives NaN or infinity for {broken} of {len(outputs)} photos"
        raise NoAnswer(f"{told}, which is no answer; check it here with: make bench ARGS=--force")


def temporary_cause(words: str) -> str:
    """What in the words of an engine's error a later try may not meet; empty where nothing is of that kind."""
    found = _TEMPORARY.search(words)
    return found[0] if found else ""


def outputs_of(names: list[str]) -> list[int]:
    """The places, among a graph's outputs, of those that answer: logits, then familiarity where it has it."""
    return [names.index(name) for name in ("logits", FAMILIARITY) if name in names] or [0]


def check_precision(layers: Iterable[Layer], precision: str, engine: str, kept: dict[str, float]) -> dict[str, float]:
    """Share of the work per number format; raises NotAsAsked, naming layers, when too little is in `precision`.

    NotTold is raised where it might be enough, were the layers as asked that the engine is silent about; in FP32 they
    are taken to be, since answers that come from less show it at the gate.
    `kept` maps the layers that export declared to keep at a higher precision to their share of the work: they are set
    apart, what remains must be as asked. `engine` names who computes, for the error. `precision` may be
    of several kinds, "fp32 or fp16", each of which is right, to the share of the first.
    """
    layers = list(layers)
    whole = sum(amount for _, _, amount in layers)
    if not whole:  # of no layer is known how much it computes
        layers, whole = [(engine, UNTOLD, 1.0)], 1.0
    shares: dict[str, float] = {}
    for _, kind, amount in layers:
        shares[kind] = shares.get(kind, 0.0) + amount / whole
    kinds = precision.split(" or ")
    needed = MINIMUM_SHARE[kinds[0]] * (1 - sum(kept.values())) - 1e-6
    as_asked = (*kinds, *(kind + AS_TYPED for kind in kinds), *([UNTOLD] if "fp32" in kinds else []))
    reached = sum(shares.get(kind, 0.0) for kind in as_asked)
    if reached < needed:
        listed = ", ".join(f"{100 * share:.0f} % {kind}" for kind, share in shares.items())
        others = sorted((layer for layer in layers if layer[1] not in as_asked), key=lambda layer: -layer[2])
        names = [name for name, _, _ in others[:5]] + (["…"] if len(others) > 5 else [])
        named = f" ({', '.join(names)})" if names else ""
        if reached + shares.get(UNTOLD, 0.0) >= needed:
            raise NotTold(f"{engine} was asked for {precision} and does not tell what it computes in{named}")
        raise NotAsAsked(
            f"{engine} was asked for {precision}, but computes {listed or 'nothing that it reports'}{named}"
        )
    return {kind: round(share, 4) for kind, share in sorted(shares.items())}
