"""A candidate that ends the process that runs it costs itself, not the export."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from export.own_process import OwnProcess
from runtime.candidate import Candidate, check_candidate
from runtime.evaluation import ValidationSet
from runtime.receipt import Receipt

FP32 = Candidate("resnet18", "model.onnx", "ort-cpu", "fp32")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system that tells by which signal a process ended")
def test_what_ends_the_process_fails_and_the_next_candidate_is_checked_in_another(model: Path) -> None:
    validation, spec = ValidationSet.load(model / "validation.npz"), Receipt.read(model).spec
    with OwnProcess(model, validation, spec) as process:
        right = process.check(FP32)
        assert right.verdict == "pass" and right == check_candidate(FP32, model, validation, spec)
        assert process.process
        process.process.send_signal(signal.SIGSEGV)
        died = process.check(FP32)
        assert (died.verdict, died.figures) == ("fail", None) and "SIGSEGV" in died.reasons[0]
        assert died.machine == right.machine
        assert process.check(FP32) == right
        ended = process.process
    assert ended and ended.poll() is not None


def test_a_fault_of_ours_in_the_process_is_told_by_its_status(model: Path) -> None:
    validation, spec = ValidationSet.load(model / "validation.npz"), Receipt.read(model).spec
    with OwnProcess(model, replace(validation, labels=None), spec) as process:  # type: ignore[arg-type]
        assert process.check(FP32).reasons == ("it ended the process that ran it (status 1)",)


def test_reasons_name_files_by_their_place_in_the_folder(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("no model")
    validation, spec = ValidationSet.load(model / "validation.npz"), Receipt.read(model).spec
    with OwnProcess(tmp_path, validation, spec) as process:
        failed = process.check(FP32)
    assert failed.verdict == "fail" and failed.reasons[0].startswith("model.onnx ")
