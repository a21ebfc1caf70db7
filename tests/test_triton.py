"""The Triton model repository is what Triton's own definitions say it must be, and holds only what passed."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from export.triton_repository import config, write_models
from runtime.backends import BuildFacts
from runtime.candidate import Candidate
from runtime.errors import BadModel, SajiError
from runtime.receipt import Receipt, file_facts


@pytest.fixture(scope="module")
def definitions():
    """Triton's protobuf for config.pbtxt; its package would import gRPC, the file alone does not."""
    pytest.importorskip("tritonclient", reason="tritonclient is not installed: pip install 'saji[dev]'")
    root = importlib.util.find_spec("tritonclient").submodule_search_locations[0]
    found = importlib.util.spec_from_file_location("model_config_pb2", Path(root) / "grpc" / "model_config_pb2.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def read(definitions, path: Path):
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(encoding="utf-8"), definitions.ModelConfig())


def test_every_file_that_passed_and_triton_runs_is_a_model(definitions, model: Path, tmp_path: Path) -> None:
    receipt = Receipt.read(model)
    names = write_models(model, receipt, tmp_path, lambda line: None)
    passed = {c.precision for c in receipt.candidates if c.backend == "ort-cpu" and c.servable and c.verdict == "pass"}
    portable = {name for name in names if "tensorrt" not in name}  # whose plans are there where there is a GPU
    assert "fp32" in passed and portable == {f"resnet18-ort-cpu-{precision}" for precision in passed}
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    parsed = read(definitions, tmp_path / "resnet18-ort-cpu-fp32" / "config.pbtxt")
    (given,), (result, familiarity) = parsed.input, parsed.output
    assert (given.name, given.data_type, list(given.dims)) == ("images", definitions.TYPE_UINT8, [32, 32, 3])
    assert (result.name, result.data_type, list(result.dims)) == ("logits", definitions.TYPE_FP32, [5])
    assert (familiarity.name, list(familiarity.dims), list(familiarity.reshape.shape)) == ("familiarity", [1], [])
    assert parsed.backend == "onnxruntime" and parsed.max_batch_size == 32
    assert parsed.HasField("dynamic_batching") and parsed.dynamic_batching.max_queue_delay_microseconds > 0
    folder = tmp_path / parsed.name
    assert (folder / "1" / parsed.default_model_filename).read_bytes() == (model / "model.onnx").read_bytes()
    labels = (folder / result.label_filename).read_text(encoding="utf-8").splitlines()
    assert labels == list(receipt.spec.classes)
    assert json.loads(parsed.parameters["spec"].string_value) == json.loads(receipt.spec.to_json())


def test_plans_of_enterprise_tensorrt_go_in_and_those_of_rtx_stay_out(definitions, model: Path, tmp_path: Path) -> None:
    receipt = Receipt.read(model)
    copy = tmp_path / "model"
    plans = {backend: f"engines/{backend}.fp16.engine" for backend in ("tensorrt", "tensorrt-rtx")}
    for file in plans.values():
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_bytes(b"plan")
    judged = tuple(Candidate("resnet18", file, backend, "fp16", verdict="pass") for backend, file in plans.items())
    failed = Candidate("resnet18", "engines/tensorrt.int8.engine", "tensorrt", "int8", verdict="fail")
    # Triton's backend for ONNX has no setting for CUDA graphs
    captured = Candidate("resnet18", plans["tensorrt"], "ort-cuda", "fp32", "CUDA graph", verdict="pass")
    engines = {plans["tensorrt"]: {"profile": [1, 4, 16]}}
    facts = file_facts(copy, list(plans.values()))
    told = replace(receipt, candidates=(*judged, failed, captured), engines=engines, files=facts)
    said: list[str] = []
    assert write_models(copy, told, tmp_path / "models", said.append) == ["resnet18-tensorrt-fp16"] and len(said) == 1
    parsed = read(definitions, tmp_path / "models" / "resnet18-tensorrt-fp16" / "config.pbtxt")
    assert (parsed.backend, parsed.default_model_filename, parsed.max_batch_size) == ("tensorrt", "model.plan", 16)
    assert parsed.instance_group[0].kind == definitions.ModelInstanceGroup.KIND_GPU
    compatible = replace(judged[0], facts=BuildFacts(version_compatible=True))
    write_models(copy, replace(told, candidates=(compatible,)), tmp_path / "models", said.append)
    assert said[-1].endswith("with: --backend-config=tensorrt,version-compatible=true")
    (copy / plans["tensorrt"]).write_bytes(b"another plan")
    with pytest.raises(BadModel, match="sha256 differs"):
        write_models(copy, told, tmp_path / "models", lambda line: None)


def test_what_another_model_wrote_is_never_replaced_and_what_passes_no_more_goes(model: Path, tmp_path: Path) -> None:
    receipt, said = Receipt.read(model), []
    passed = tuple(replace(c, verdict="pass") if c.backend == "ort-cpu" else c for c in receipt.candidates)
    receipt = replace(receipt, candidates=passed)
    names = write_models(model, receipt, tmp_path, said.append)
    assert len(names) > 1 and len(said) == 1

    def files() -> dict[str, bytes]:
        return {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.*")}

    before = files()
    for another in ({"classes": ("crack", "dent", "ok", "rust", "scratch")}, {"name": "resnet18 on defects"}):
        with pytest.raises(SajiError, match=r"resnet18-\S+ is not of .*; move it away, or name another folder"):
            write_models(model, replace(receipt, spec=replace(receipt.spec, **another)), tmp_path, said.append)
        assert files() == before
    unchecked = tuple(c if c.precision == "fp32" else replace(c, verdict="unchecked") for c in receipt.candidates)
    write_models(model, replace(receipt, candidates=unchecked), tmp_path, said.append)
    assert files() == before and "resnet18-ort-cpu-int8 is of an earlier export and stays" in said.pop()
    said.pop()
    # Beside it others, by name or by what they hold; and the model trained anew, which passes in FP32 alone
    neighbours = ("resnet18-ort-cpu-own", "food", "resnet18-food-ort-cpu-fp32")
    for name in neighbours:
        (tmp_path / name).mkdir()
    (tmp_path / "resnet18-ort-cpu-own" / "config.pbtxt").write_text('backend: "python"')
    config_there = (tmp_path / names[0] / "config.pbtxt").read_text("utf-8")
    (tmp_path / "resnet18-food-ort-cpu-fp32" / "config.pbtxt").write_text(
        config_there.replace(receipt.spec.name, "resnet18 on food"), "utf-8"
    )
    anew = replace(
        receipt,
        spec=replace(receipt.spec, temperature=2.0),
        candidates=tuple(c if c.precision == "fp32" else replace(c, verdict="fail") for c in receipt.candidates),
    )
    kept = write_models(model, anew, tmp_path, said.append)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, *neighbours} and "resnet18-ort-cpu-fp32" in kept
    assert [line.split(" is removed")[0] for line in said[2:]] == [str(tmp_path / "resnet18-ort-cpu-int8")]


def test_class_names_with_quotes_and_letters_survive(definitions, model: Path, tmp_path: Path) -> None:
    classes = ('nasi "goreng"', "crème brûlée", "back\\slash", "a", "b")
    spec = replace(Receipt.read(model).spec, classes=classes)
    (tmp_path / "config.pbtxt").write_text(
        config("x", spec, Candidate("x", "model.onnx", "ort-cpu", "fp32"), 8), encoding="utf-8"
    )
    parsed = read(definitions, tmp_path / "config.pbtxt")
    assert tuple(json.loads(parsed.parameters["spec"].string_value)["classes"]) == classes


def test_fp32_on_a_gpu_is_computed_without_tf32_as_it_was_judged(definitions, model: Path, tmp_path: Path) -> None:
    """By the README of Triton's onnxruntime_backend, "ONNX Runtime with CUDA Execution Provider optimization"."""
    spec, file = Receipt.read(model).spec, tmp_path / "config.pbtxt"
    for backend, options in (("ort-cuda", [("cuda", {"use_tf32": "0"})]), ("ort-cpu", [])):
        file.write_text(config("x", spec, Candidate("x", "model.onnx", backend, "fp32"), 8), encoding="utf-8")
        accelerators = read(definitions, file).optimization.execution_accelerators.gpu_execution_accelerator
        assert [(each.name, dict(each.parameters)) for each in accelerators] == options
