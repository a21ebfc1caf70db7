"""What engines raise, in their own classes and words: a full memory is for now, all else is one sentence."""

import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException
from PIL import Image
from twin.product import place

import runtime
from runtime.backends import open_backend
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.backends.openvino import OpenVino
from runtime.backends.pytorch import PyTorch
from runtime.backends.tensorrt.logger import collecting_logger
from runtime.backends.tensorrt.runtime_cache import RuntimeCache
from runtime.candidate import check_candidate
from runtime.choice import Policy, choose
from runtime.classify import classify
from runtime.errors import BadModel, GateFailed, SajiError, Unavailable
from runtime.evaluation import ValidationSet
from runtime.heatmap import Heatmap
from runtime.machine import machine
from runtime.receipt import Receipt

ORT = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : "
WHERE = "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:129 std::conditional_t<THRW, void, Status> " * 2
FULL = [
    (OnnxRuntime, RuntimeException(f"{ORT}{WHERE}CUDA failure 2: out of memory ; GPU=0"), "out of memory"),
    (OnnxRuntime, RuntimeException(f"{ORT}Failed to allocate memory for requested buffer of size 9"), "Failed to"),
    (PyTorch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "out of memory"),
    (PyTorch, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …"), "ALLOC_FAILED"),
    (PyTorch, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."), "can't"),
    (PyTorch, RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), "busy"),
    (OpenVino, RuntimeError("Exception from src/inference.cpp:66:\nstd::bad_alloc"), "bad_alloc"),
    (OpenVino, MemoryError(), "MemoryError"),
]
BROKEN = RuntimeException(f"{ORT}Non-zero status code returned while running Conv node.\nmore lines")


def fail(monkeypatch: pytest.MonkeyPatch, of: Any, name: str, error: Exception) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(of, name, failing)


def opened(kind: type, model: Path) -> Any:
    backend, file = {OnnxRuntime: ("ort-cpu", "model.onnx"), OpenVino: ("openvino", "model.onnx")}.get(
        kind, ("pytorch", "model.pt2")
    )
    return open_backend(backend, model / file, "fp32")


@pytest.mark.parametrize(("kind", "error", "words"), FULL, ids=lambda value: getattr(value, "__name__", None))
def test_a_full_memory_is_for_now_at_running_and_at_opening(
    kind: type, error: Exception, words: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(kind, model)
    fail(monkeypatch, kind, "compute", error)
    with pytest.raises(Unavailable, match=rf"on model\.\w+ cannot be run now \({words}.*see what else runs"):
        engine.run(np.zeros((1, 32, 32, 3), np.uint8))
    fail(monkeypatch, kind, "open", error)
    with pytest.raises(Unavailable, match=rf"on model\.\w+ cannot be opened now \({words}"):
        opened(kind, model)


def test_it_is_told_from_a_file_that_does_not_open(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, onnxruntime, "InferenceSession", BROKEN)
    with pytest.raises(BadModel, match="cannot be opened by ONNX Runtime"):
        opened(OnnxRuntime, model)
    fail(
        monkeypatch, onnxruntime, "InferenceSession", FULL[0][1]
    )  # whose cause comes after what a sentence has room for
    with pytest.raises(Unavailable, match="out of memory"):
        opened(OnnxRuntime, model)


def test_what_is_no_want_of_memory_is_one_sentence(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(OnnxRuntime, model)
    fail(monkeypatch, OnnxRuntime, "compute", BROKEN)
    with pytest.raises(SajiError, match=r"cannot be run .*while running Conv node") as raised:
        engine.run(np.zeros((1, 32, 32, 3), np.uint8))
    assert type(raised.value) is SajiError and "\n" not in str(raised.value) and raised.value.__cause__ is BROKEN


@pytest.mark.parametrize(("error", "verdict"), [(FULL[0][1], "unchecked"), (BROKEN, "fail")])
def test_a_full_memory_is_no_verdict(
    error: Exception, verdict: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt, photos = Receipt.read(model), ValidationSet.load(model / "validation.npz")
    candidate = next(c for c in receipt.candidates if (c.backend, c.precision) == ("ort-cpu", "fp32"))
    fail(monkeypatch, OnnxRuntime, "compute", error)
    assert check_candidate(candidate, model, photos, receipt.spec).verdict == verdict


@pytest.mark.parametrize("error", [FULL[0][1], BROKEN])
def test_the_next_in_line_takes_the_place_of_an_engine_that_does_not_run(
    error: Exception, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt, folder = Receipt.read(model), os.path.relpath(model, tmp_path)
    candidates = {c.backend: c for c in receipt.candidates if c.precision == "fp32" and c.servable and not c.variant}
    places = [place(candidates[name], receipt, folder, ms) for name, ms in (("ort-cpu", 1), ("openvino", 9))]
    choose(places, [], Policy(), machine(), {}).write(tmp_path / "deployment.json")
    fail(monkeypatch, OnnxRuntime, "compute", error)
    with runtime.load(tmp_path / "deployment.json") as classifier:
        assert classifier.candidate.backend == "openvino" and "cannot be run" in classifier.passed_over[0]


def test_a_bare_file_is_not_blamed_for_a_full_memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, OnnxRuntime, "compute", FULL[0][1])
    with pytest.raises(Unavailable, match="out of memory"):
        runtime.load(model / "model.onnx")
    fail(monkeypatch, OnnxRuntime, "compute", BROKEN)
    with pytest.raises(BadModel, match="opens, but does not compute"):
        runtime.load(model / "model.onnx")


class TestNoNumbers:
    """NaN and infinity are no answer, from whichever output of whichever photo, once an engine was right at opening."""

    def spoil(self, monkeypatch: pytest.MonkeyPatch, value: float, which: Any) -> None:
        right = OnnxRuntime.compute

        def compute(engine: OnnxRuntime, images: np.ndarray) -> np.ndarray:
            outputs = right(engine, images).copy()
            outputs[images.mean(axis=(1, 2, 3)) > 250, which] = value  # the answer to a white photo
            return outputs

        monkeypatch.setattr(OnnxRuntime, "compute", compute)

    @pytest.mark.parametrize("which", [slice(None), 0, -1], ids=["all", "a logit", "familiarity"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_they_are_never_handed_on(
        self, value: float, which: Any, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = np.stack([np.full((32, 32, 3), shade, np.uint8) for shade in (9, 90, 255)])
        with runtime.load(model) as classifier:
            self.spoil(monkeypatch, value, which)
            for ask in (classifier.outputs, classifier.logits, classifier.predict):
                with pytest.raises(SajiError, match="gives NaN or infinity for 1 of 3 photos, which is no answer"):
                    ask(images)
            assert len(classifier.predict(images[:2])) == 2

    @pytest.mark.parametrize("kind", ["csv", "jsonl"])
    def test_no_row_is_written_of_them_and_other_photos_have_theirs(
        self,
        kind: str,
        model: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for name, shade in (("a", 9), ("b", 255), ("c", 90)):
            Image.new("RGB", (40, 40), (shade,) * 3).save(tmp_path / f"{name}.png")
        rows = tmp_path / f"rows.{kind}"
        with monkeypatch.context() as patched:
            self.spoil(patched, np.nan, 0)
            with pytest.raises(GateFailed, match="1 of 3 photos could not be read and were skipped"):
                classify([str(tmp_path)], model, "", rows)
        assert f"{tmp_path / 'b.png'}: resnet18 · ort-cpu · fp32 gives NaN" in capsys.readouterr().err
        assert rows.read_text().count(".png") == 2 and "nan" not in rows.read_text().lower()
        classify([str(tmp_path)], model, "", rows)
        assert all(rows.read_text().count(f"{name}.png") == 1 for name in "abc")

    def test_a_heat_map_of_them_is_none(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        heatmap = Heatmap.of_model(model)
        monkeypatch.setattr(heatmap, "maps", lambda images: (np.zeros((1, 5)), np.full((1, 2, 2), np.nan)))
        with pytest.raises(SajiError, match="gives NaN or infinity"):
            heatmap.of(np.zeros((32, 32, 3), np.uint8))


def test_the_reason_of_tensorrt_is_its_last_two_errors() -> None:
    kinds = {name: name for name in ("INTERNAL_ERROR", "ERROR", "WARNING")}
    logger = collecting_logger(cast(ModuleType, SimpleNamespace(ILogger=type("ILogger", (), kinds))))
    assert logger.reason() == "TensorRT gave no reason"
    for severity, message in (("ERROR", "a"), ("INTERNAL_ERROR", " b\n"), ("ERROR", "c"), ("WARNING", "d")):
        logger.log(severity, message)
    assert logger.errors == ["a", "b", "c"] and logger.reason() == "b; c"


@pytest.mark.parametrize("fits", [True, False])
def test_compiled_kernels_are_kept_for_the_next_start(fits: bool, tmp_path: Path) -> None:
    """A cache that fits is written anew where it has grown; one that does not fit is replaced, however long it was."""
    file, given, serialised = tmp_path / "model.engine.cache", list[bytes](), [b"kernels"]
    cache = SimpleNamespace(deserialize=lambda kept: given.append(kept) or fits, serialize=lambda: serialised[-1])
    settings = SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=given.append)

    RuntimeCache(tmp_path / "model.engine", settings).keep()
    assert given == [cache] and file.read_bytes() == b"kernels"
    again = RuntimeCache(tmp_path / "model.engine", settings)
    assert given == [cache, b"kernels", cache]
    for content in (b"as long", b"longer than that"):
        serialised.append(content)
        again.keep()
        assert file.read_bytes() == (b"kernels" if fits and content == b"as long" else content)
