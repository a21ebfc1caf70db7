"""Steps of `make gpu-check` with engines, processes and tools that a few lines stand for: what is lost is told."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from twin.machines import installed

from lab.claims import workloads
from lab.gpu_check import engines, training
from lab.gpu_check.models import keep_receipt
from lab.gpu_check.step import Place, _of_rows
from runtime.backends import BuildFacts
from runtime.backends.cuda import first_gpu
from runtime.benchmark import contestant, rows
from runtime.candidate import Candidate
from runtime.errors import SajiError, Unavailable
from runtime.evaluation import ValidationSet
from runtime.receipt import Receipt

FILE = "engines/tensorrt.fp16.engine"
PAIR = [Candidate("plain34", FILE, "tensorrt", "fp16", variant) for variant in ("", "CUDA graph")]
PASSED = [replace(candidate, verdict="pass") for candidate in PAIR]
NO_MEMORY = "tensorrt.fp16.engine cannot be opened: the GPU has not enough memory left for it"


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Candidate]], None]:
    """Lets the model folder, which is nowhere, have these candidates and 40 photos."""
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)

    def use(found: list[Candidate]) -> None:
        receipt = SimpleNamespace(candidates=found, spec=None)
        monkeypatch.setattr(engines, "model_folder", lambda *_: Path("nowhere"))
        monkeypatch.setattr(engines, "keep_receipt", lambda *_: receipt)
        monkeypatch.setattr(engines, "Receipt", SimpleNamespace(read=lambda _: receipt))
        monkeypatch.setattr(engines, "ValidationSet", SimpleNamespace(load=lambda _: SimpleNamespace(images=images)))

    return use


@pytest.mark.parametrize(
    ("required", "reason", "verdict"),
    [
        (True, NO_MEMORY, "FAIL"),
        (False, NO_MEMORY, "FAIL"),  # of this machine at another time
        (True, "it was built for sm86", "FAIL"),
        (False, "onnxruntime-gpu is not installed", "SKIP"),
    ],
)
def test_a_candidate_that_cannot_be_opened_passes_nothing(
    required: bool, reason: str, verdict: str, candidates: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates(PAIR)
    monkeypatch.setattr(engines, "check_candidate", lambda candidate, *_: replace(candidate, reasons=(reason,)))
    found = list(engines._checked(Path("nowhere"), lambda _: True, required))
    told, says = _of_rows(found, None)
    assert told == verdict and reason in says[0]


@pytest.mark.parametrize(("name", "kind"), [("Unknown", SajiError), ("DevicesUnavailable", Unavailable)])
def test_a_broken_gpu_is_told_from_one_that_is_anothers_for_now(
    name: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed("rtx4090"):
        from cuda.bindings import runtime as cuda

        monkeypatch.setattr(cuda, "cudaSetDevice", lambda _: (cuda.cudaError_t[f"cudaError{name}"],))
        with pytest.raises(SajiError, match=f"the GPU reports cudaError{name}") as raised, first_gpu():
            pass
    assert type(raised.value) is kind


@pytest.mark.parametrize("lost", [PASSED[:1], PASSED])
def test_who_is_lost_in_the_benchmark_is_wrong(
    lost: list[Candidate], candidates: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(self: Any, *_: Any) -> str:
        if self.candidate in lost and len(self.measurements) > 1:
            raise SajiError("its process died with status -9")
        return "measured"

    def rows_of(measured: Any, *_: Any) -> list[rows.Row]:
        asked = {name: getattr(measured.candidate, name) for name in ("backend", "precision", "variant")}
        return [{"candidate": measured.name, "batch": batch, "milliseconds": 1.0, **asked} for batch in engines.BATCHES]

    candidates(PASSED)
    monkeypatch.setattr(engines, "_built", lambda *_, **__: iter(()))
    monkeypatch.setattr(engines, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(contestant.Contestant, "start", lambda _: None)
    monkeypatch.setattr(contestant.Contestant, "measure", measure)
    monkeypatch.setattr(rows, "rows_of", rows_of)
    found = list(engines._latency("plain34", Place(tmp_path, 32, 60)))
    verdict, says = _of_rows(found, None)
    assert verdict == "FAIL" and says == [f"{candidate.name}: its process died with status -9" for candidate in lost]


@dataclass
class Engine:
    """Answers with the photos' first bytes, and as `spoil` makes them."""

    spoil: Callable[[np.ndarray], np.ndarray]

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.spoil(images.reshape(len(images), -1)[:, :5].astype(np.float32))

    def device_milliseconds(self, images: np.ndarray) -> float:
        return float(len(images))

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda answers: answers, ""),
        (lambda answers: answers * (np.nan if len(answers) == 32 else 1), "CUDA graph gives NaN or infinity for 64 of"),
        (lambda answers: answers[::-1], "answers otherwise with a graph"),
    ],
)
def test_a_graph_that_answers_otherwise_or_not_at_all_is_wrong(
    spoil: Callable, wrong: str, candidates: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates(PASSED)
    monkeypatch.setattr(Candidate, "open", lambda self, _: Engine(spoil if self.variant else lambda answers: answers))
    verdict, says = _of_rows(list(engines.cuda_graphs(Place(tmp_path, 8, 60))), None)
    assert verdict == ("FAIL" if wrong else "PASS") and wrong in says[0]


def test_graphs_without_engines_say_that_none_was_built(candidates: Callable, tmp_path: Path) -> None:
    candidates([])
    with pytest.raises(Unavailable, match="no engine was built yet; build them with: --only tensorrt graphs"):
        list(engines.cuda_graphs(Place(tmp_path, 8, 60)))


def test_an_engine_whose_inspector_ends_the_process_is_there_for_the_next_step(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import engine

    folder, built = tmp_path / "model", list[Path]()
    shutil.copytree(model, folder)

    def build(trt: Any, source: Path, file: Path, *_: Any) -> SimpleNamespace:
        built.append(file)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"an engine")
        return SimpleNamespace(
            flavour="tensorrt", version="1", targets=("sm89",), facts=lambda: BuildFacts(flavour="tensorrt")
        )

    def end(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(engines, "model_folder", lambda *_: folder)
    monkeypatch.setattr(engine, "module_for", lambda _: None)
    monkeypatch.setattr(engine, "targets_of", lambda *_: ())
    monkeypatch.setattr(engine, "build_engine", build)
    monkeypatch.setattr(engines, "_inspector", end)
    monkeypatch.setattr("runtime.backends.cuda.compute_capability", lambda: "sm89")
    (folder / FILE).parent.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(b"of a step that was stopped before it kept the facts")
    keep_receipt(Receipt.read(folder), folder, {}, [])
    for _ in range(2):
        with pytest.raises(SystemExit):
            list(engines._built("tensorrt", "resnet18", Place(tmp_path, 32, 60)))
    assert [file.name for file in built] == ["tensorrt.fp16.engine", "tensorrt.int8.engine"]
    facts = {candidate.file: candidate.facts.flavour for candidate in Receipt.read(folder).candidates}
    assert facts[FILE] == "tensorrt" and ValidationSet.load(folder / "validation.npz")


def test_a_tool_of_another_tensorrt_is_no_fault_of_the_engine(
    candidates: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text("#!/bin/sh\necho '[E] expecting library version 10.13.2.6'\necho '&&&& FAILED'\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(workloads, "_candidate", lambda *_: PASSED[0])
    monkeypatch.setattr(workloads, "_spec", lambda _: SimpleNamespace(geometry=SimpleNamespace(size=224)))
    receipt: Any = SimpleNamespace(candidates=PASSED[:1])
    [row] = engines._by_nvidias_tool(tmp_path, receipt, Place(tmp_path, 224, 60))
    assert row["lacks"] == "trtexec refuses: [E] expecting library version 10.13.2.6" and "wrong" not in row


@pytest.mark.parametrize(("capability", "used"), [((7, 5), "fp32"), ((8, 0), "fp32, convolutions in tf32")])
def test_the_plain_loop_is_called_what_it_computes_in(
    capability: tuple[int, int], used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(training, "require_torch_gpu", lambda: None)
    monkeypatch.setattr(training, "_sample", lambda folder: folder)
    monkeypatch.setattr("lab.claims.training.photos_per_second", lambda *_: {"photos_per_second": 1.0})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = {row["loop"]: row["precision"] for row in training._rates("fp16", Place(tmp_path, 32, 60)) if "loop" in row}
    assert found == {"ours": "fp16", "plain": used}
