"""A verdict is used where it was given: on that kind of machine, with that version of the engine."""

import errno
import io
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import house
import pytest

import runtime
from runtime import environment, verdicts
from runtime.deployment import Deployment
from runtime.errors import SajiError
from runtime.evaluation import ValidationSet
from runtime.machine import Machine, machine
from runtime.receipt import FileFacts, Receipt


def given_by(folder: Path, **facts: Any) -> Receipt:
    """The folder's receipt, its verdicts given by a machine that differs from this one in some facts."""
    receipt = Receipt.read(folder)
    other = replace(machine(), **facts)
    changed = replace(receipt, candidates=tuple(replace(c, machine=other) for c in receipt.candidates))
    changed.write(folder)
    return changed


@pytest.fixture
def moved(model: Path, tmp_path: Path) -> Path:
    """A model folder that came from a machine with another processor."""
    folder = house.linked(model, tmp_path / "resnet18")
    given_by(folder, cpu_features=("avx512f",))
    return folder


def test_it_is_taken_anew_once_for_each_kind_of_machine(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with runtime.load(moved) as classifier:
        assert classifier.candidate.machine == machine() and classifier.candidate.verdict == "pass"
    said = capsys.readouterr().err
    assert "judging resnet18 · ort-cpu · fp32 anew on this machine" in said and "processor avx512f, here" in said
    runtime.load(moved).close()
    assert "anew" not in capsys.readouterr().err
    (moved / "verdicts" / next((moved / "verdicts").iterdir()).name).write_text("damaged")
    runtime.load(moved).close()
    assert "anew" in capsys.readouterr().err


def test_environments_that_share_a_folder_each_keep_their_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The receipt's verdict holds where it was given, whatever another version of the engine found in between."""
    folder, own = house.linked(model, tmp_path / "resnet18"), environment.versions()
    receipt = Receipt.read(folder)
    candidate = next(c for c in receipt.candidates if (c.backend, c.precision) == ("ort-cpu", "fp32"))

    def judged(onnxruntime: str, verdict: str) -> tuple[str, str]:
        monkeypatch.setattr(environment, "versions", lambda: own | {"onnxruntime": onnxruntime})
        monkeypatch.setattr(verdicts, "check_candidate", lambda *_: replace(candidate, verdict=verdict))
        return verdicts.judged_here(candidate, folder, receipt).verdict, capsys.readouterr().err

    for version, other in (("98.0", "inconclusive"), ("99.0", "fail")):
        verdict, said = judged(version, other)
        assert verdict == other and f"onnxruntime {own['onnxruntime']}, here {version}" in said
    for version, verdict in ((own["onnxruntime"], "pass"), ("98.0", "inconclusive"), ("99.0", "fail")) * 2:
        assert judged(version, "unchecked") == (verdict, "")


def test_what_was_left_open_says_why_it_is_judged_anew(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = Receipt.read(model)
    engine = next(c for c in receipt.candidates if c.backend == "tensorrt-rtx")
    engine = replace(engine, verdict="unchecked", reasons=("the GPU's memory was full",))
    for name, value in (("unavailable_because", None), ("check_candidate", engine), ("keep", None)):
        monkeypatch.setattr(verdicts, name, lambda *_, value=value: value)
    verdicts.judged_here(engine, model, replace(receipt, candidates=(engine,)))
    assert "anew on this machine: its verdict was left open (the GPU's memory was full)" in capsys.readouterr().err


def refusing(error: OSError) -> Any:
    """A stream that takes nothing."""

    def write(_: str) -> None:
        raise error

    return SimpleNamespace(write=write, flush=lambda: None, isatty=lambda: False)


def closed() -> Any:
    stream = io.StringIO()
    stream.close()
    return stream


NO_TERMINALS: dict[str, Any] = {
    "none, as of a windowed program": None,
    "a log": SimpleNamespace(write=lambda _: None, flush=lambda: None),
    "a pipe without a reader": refusing(BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "a full disk": refusing(OSError(errno.ENOSPC, "No space left on device")),
    "closed": closed(),
    "a file in ASCII": io.TextIOWrapper(io.BytesIO(), "ascii"),
}


@pytest.mark.parametrize("stderr", NO_TERMINALS.values(), ids=NO_TERMINALS)
def test_whatever_stands_for_stderr_the_model_opens(
    stderr: Any, moved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = house.write_deployment(moved, moved.parent / "deployment.json", "ort-cpu")
    deployment = Deployment.read(file)
    stale = replace(deployment.choice, sha256="0" * 64)
    replace(deployment, choice=stale, fallbacks=(deployment.choice,)).write(file)
    monkeypatch.setattr(sys, "stderr", stderr)
    with runtime.load(file) as classifier:  # of which two things are said
        assert len(classifier.passed_over) == 1 and classifier.candidate.machine == machine()
    assert not capsys.readouterr().out


def test_a_log_that_stands_for_stderr_has_what_is_said(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=said.append, flush=lambda: None))
    runtime.load(moved).close()
    assert "judging resnet18 · ort-cpu · fp32 anew on this machine" in "".join(said)


def test_what_fails_here_is_not_served_though_it_passed_elsewhere(moved: Path, monkeypatch: Any) -> None:
    def fails(candidate: Any, *_: Any) -> Any:
        return replace(candidate, machine=machine(), verdict="fail", reasons=("shift 1 is above 0.1",))

    monkeypatch.setattr(verdicts, "check_candidate", fails)
    with pytest.raises(SajiError, match="not served, its verdict is fail: shift 1"):
        runtime.load(moved)


def test_a_folder_that_cannot_be_written_to_is_judged_and_served(moved: Path, monkeypatch: Any) -> None:
    def refuses(*_: Any) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(verdicts, "write_record", refuses)
    runtime.load(moved).close()


def test_without_photos_to_judge_by_it_is_refused(moved: Path) -> None:
    (moved / "validation.npz").unlink()
    with pytest.raises(SajiError, match=r"given elsewhere .* no validation\.npz .* copy the folder whole"):
        runtime.load(moved)


def test_it_is_judged_by_the_photos_of_the_export_alone(moved: Path, model: Path) -> None:
    photos = ValidationSet.load(model / "validation.npz")
    (moved / "validation.npz").unlink()
    replace(photos, labels=photos.labels[::-1]).save(moved / "validation.npz")
    with pytest.raises(SajiError, match=r"validation\.npz is not the file that was checked"):
        runtime.load(moved)


@pytest.mark.parametrize(
    ("facts", "holds"),
    [
        ({}, True),
        ({"cores": 64, "memory_gib": 512.0, "cpu": "another name"}, True),
        ({"gpu": "NVIDIA L4, 580.95.05"}, True),  # which has no part in what the processor computes
        ({"cpu_features": ()}, False),
        ({"system": "Windows AMD64"}, False),
    ],
)
def test_what_makes_another_kind_of_machine(facts: dict[str, Any], holds: bool, model: Path, tmp_path: Path) -> None:
    receipt = given_by(house.linked(model, tmp_path / "resnet18"), **facts)
    of_processor = next(c for c in receipt.candidates if c.backend == "ort-cpu")
    assert (verdicts.difference(of_processor, receipt.versions) == "") == holds


def test_a_processor_that_tells_no_formats_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "machine", lambda: Machine("Neoverse-V2"))
    assert verdicts.same_kind(Machine("Neoverse-V2")) and not verdicts.same_kind(Machine("Cortex-A53"))


def test_on_a_gpu_its_name_and_driver_and_the_version_of_the_engine_count(model: Path) -> None:
    receipt = Receipt.read(model)
    engine = next(c for c in receipt.candidates if c.backend == "tensorrt-rtx")
    assert not verdicts.difference(engine, receipt.versions)
    other = replace(engine, machine=replace(machine(), gpu="NVIDIA L4, 580.95.05"))
    assert "GPU NVIDIA L4, 580.95.05, here None" in verdicts.difference(other, receipt.versions)
    older = {**receipt.versions, "tensorrt-rtx-cu13": "1.4.0.76"}
    assert "tensorrt-rtx-cu13 1.4.0.76, here" in verdicts.difference(engine, older)
    assert verdicts.difference(replace(engine, machine=None), receipt.versions) == "names no machine"
    assert not verdicts.same_kind(None) and verdicts.same_kind(machine()) and not verdicts.same_kind(Machine("x"))


@pytest.mark.parametrize(
    ("verdict", "why_not", "holds"), [("unchecked", None, False), ("unchecked", "no GPU", True), ("pass", None, True)]
)
def test_what_a_gpu_was_too_full_to_check_is_checked_where_it_runs(
    verdict: str, why_not: str | None, holds: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = Receipt.read(model)
    engine = replace(next(c for c in receipt.candidates if c.backend == "tensorrt-rtx"), verdict=verdict)
    monkeypatch.setattr(verdicts, "unavailable_because", lambda backend: why_not)
    assert (engine.key() in verdicts.of_here(tmp_path, replace(receipt, candidates=(engine,)))) == holds


def test_what_was_kept_of_another_model_does_not_hold_for_the_one_that_was_copied_over_it(
    moved: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.load(moved).close()
    refused = house.linked(model, tmp_path / "refused")
    receipt = Receipt.read(refused)
    failed = tuple(replace(c, verdict="fail", reasons=("shift 1 is above 0.1",)) for c in receipt.candidates)
    replace(receipt, candidates=failed).write(refused)
    shutil.copy(refused / "model.json", moved)
    with pytest.raises(SajiError, match="its verdict is fail: shift 1"):
        runtime.load(moved)
    given_by(moved, cpu_features=("avx512f",))  # and none is taken along to the next
    runtime.load(moved).close()
    assert capsys.readouterr().err.count("anew") == 2


@pytest.mark.parametrize("part", ["file", "photos", "gate", "spec"])
def test_a_kept_verdict_holds_for_what_it_was_given_by(part: str, moved: Path) -> None:
    runtime.load(moved).close()
    receipt = Receipt.read(moved)
    key = next(iter(verdicts.of_here(moved, receipt)))
    tight = tuple(replace(c, gate=replace(c.bounds, shift=1e-9)) for c in receipt.candidates)
    other = {name: FileFacts("0" * 64, 9) for name in ("model.onnx", "validation.npz")}
    changed = {
        "file": replace(receipt, files=receipt.files | {"model.onnx": other["model.onnx"]}),
        "photos": replace(receipt, files=receipt.files | {"validation.npz": other["validation.npz"]}),
        "gate": replace(receipt, candidates=tight),
        "spec": replace(receipt, spec=replace(receipt.spec, temperature=9.0)),
    }
    assert key not in verdicts.of_here(moved, changed[part])


def test_no_verdict_is_taken_of_a_file_that_has_become_another(moved: Path) -> None:
    receipt = Receipt.read(moved)
    candidate = next(c for c in receipt.candidates if (c.backend, c.precision) == ("ort-cpu", "fp32"))
    house.exported_anew(moved / "model.onnx")
    judged = verdicts.judged_here(candidate, moved, receipt)
    assert judged.verdict == "fail" and "changed while it was opened" in judged.reasons[0]


def test_a_deployment_is_judged_by_the_bounds_of_the_receipt(moved: Path, tmp_path: Path) -> None:
    file = house.write_deployment(moved, tmp_path / "deployment.json", "ort-cpu")
    receipt = Receipt.read(moved)
    tight = tuple(replace(c, gate=replace(c.bounds, shift=-1.0)) for c in receipt.candidates)
    replace(receipt, candidates=tight).write(moved)
    with pytest.raises(SajiError, match="none of the 1 choices"):
        runtime.load(file)
