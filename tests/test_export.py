"""Export: the file that ships keeps the contract and agrees with the checkpoint, or nothing is replaced."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT

from export import __main__ as exporting
from export import model as module
from export import parity, precision
from export.graph import OPSET, check_contract, export_onnx
from export.model import Checkpoint, _require_same_source, _write_examples, up_to_date, write_model
from export.precision import FP16_QDQ_OPSET
from export.settings import Settings
from runtime import files
from runtime.backends import BuildFacts
from runtime.benchmark import run as benchmark_run
from runtime.candidate import Candidate, check_candidate
from runtime.errors import BadModel, GateFailed, SajiError
from runtime.evaluation import ValidationSet, compare
from runtime.files import replacing_folder, sha256_modules
from runtime.gate import GATES, MIN_PHOTOS
from runtime.golden import Golden
from runtime.preprocess import pixels
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec
from training.network.classifier import PhotoClassifier, load_checkpoint, reference_logits


@pytest.mark.parametrize("file", ["model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-trt.onnx"])
def test_every_file_keeps_the_contract(model: Path, file: str) -> None:
    graph = onnx.load(model / file)
    spec = Receipt.read(model).spec
    check_contract(graph, spec, opset=FP16_QDQ_OPSET if file == "model.int8-trt.onnx" else OPSET)
    assert json.loads({p.key: p.value for p in graph.metadata_props}["spec"]) == json.loads(spec.to_json())
    assert not list(model.glob("*.data"))


def test_a_dead_channel_of_a_scale_of_zero_divides_nothing_in_fp16() -> None:
    graph = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 19]>
        network (float[N, 3] images) => (float[N, 3] logits)
        <float[3] scale = {0.0, 1e-7, 0.5}, int8[3] zero = {0, 0, 0}>
        {
            [normalised] normalised = Identity(images)
            [quantised] quantised = QuantizeLinear <axis = 1> (normalised, scale, zero)
            [last] logits = DequantizeLinear <axis = 1> (quantised, scale, zero)
        }""")
    precision._halve(graph)
    [scale] = [onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer if tensor.name == "scale"]
    assert scale.dtype == np.float16 and all(scale[:2] > 0) and all(scale[:2] < 1e-5) and scale[2] == 0.5


def test_no_machine_path_travels_in_the_file(model: Path) -> None:
    here = str(Path(__file__).resolve().parent.parent).encode()
    for file in model.glob("*.onnx"):
        assert here not in file.read_bytes(), file.name


def test_pt2_is_bit_equal_to_the_checkpoint(model: Path, run: Path) -> None:
    validation = ValidationSet.load(model / "validation.npz")
    checkpoint, _ = load_checkpoint(run / "checkpoint.pt")
    program = torch.export.load(model / "model.pt2").module()
    images = torch.from_numpy(validation.images[:8])
    with torch.inference_mode():
        ours, theirs = program(images), checkpoint(images)
    assert len(ours) == 2 and all(map(torch.equal, ours, theirs))


def test_the_golden_vector_is_what_the_checkpoint_answers(model: Path, run: Path) -> None:
    """It was what the weights answer once they are rounded to FP16, until the FP16 export took a copy of them."""
    checkpoint, spec = load_checkpoint(run / "checkpoint.pt")
    for name, answer in Golden.read(model).pictures.items():
        image = pixels(model / name, replace(spec.geometry, decode="full"))[None]
        assert answer.logits == pytest.approx(reference_logits(checkpoint, image)[0].tolist(), abs=1e-6)


def test_every_candidate_is_judged_on_the_whole_validation_set(model: Path) -> None:
    receipt, n = Receipt.read(model), len(ValidationSet.load(model / "validation.npz").labels)
    judged_here = [c for c in receipt.candidates if c.verdict != "unchecked"]
    assert {c.backend for c in judged_here} == {"pytorch", "ort-cpu", "openvino"}
    assert all(c.figures.photos == n and c.machine for c in judged_here if c.figures)
    for c in receipt.candidates:
        if c.verdict == "unchecked":
            assert c.reasons, c.name
    fp32 = [c for c in judged_here if c.precision == "fp32"]
    assert len(fp32) >= 3 and all(c.verdict == "pass" for c in fp32)


def test_the_fp16_file_is_a_file_check_here_never_a_candidate(model: Path) -> None:
    checks = [c for c in Receipt.read(model).candidates if c.file == "model.fp16.onnx" and c.backend == "ort-cpu"]
    assert [c.servable for c in checks] == [False] and checks[0].verdict == "pass"


def test_the_receipt_describes_every_file_and_notices_a_change(model: Path, tmp_path: Path) -> None:
    receipt = Receipt.read(model)
    there = {str(p.relative_to(model)) for p in model.rglob("*") if p.is_file()} - {"model.json"}
    assert set(receipt.files) == there
    for file in receipt.files:
        receipt.verify(model, file)
    copy = tmp_path / "model.onnx"
    copy.write_bytes((model / "model.onnx").read_bytes()[:-1] + b"x")
    with pytest.raises(BadModel, match="sha256 differs"):
        receipt.verify(tmp_path, "model.onnx")
    with pytest.raises(BadModel, match="not in its receipt"):
        receipt.verify(model, "other.engine")


def test_another_models_file_fails_parity(model: Path) -> None:
    receipt, validation = Receipt.read(model), ValidationSet.load(model / "validation.npz")
    stranger = PhotoClassifier("resnet18", 5).eval()
    wrong = replace(validation, logits=reference_logits(stranger, validation.images))
    result = check_candidate(Candidate("resnet18", "model.onnx", "ort-cpu", "fp32"), model, wrong, receipt.spec)
    assert result.verdict == "fail"
    assert parity.failures([result]) == [result] and "shift" in parity.table([result])


def test_an_fp32_file_passed_off_as_int8_is_a_failure(model: Path) -> None:
    validation = ValidationSet.load(model / "validation.npz")
    for backend in ("ort-cpu", "openvino"):
        result = check_candidate(
            Candidate("resnet18", "model.onnx", backend, "int8"), model, validation, Receipt.read(model).spec
        )
        assert result.verdict == "fail" and "asked for int8" in result.reasons[0]


@pytest.fixture
def written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export finds its FP32 files written: those of `model`, to save the time."""

    def write(source: object, folder: Path, *_: object) -> None:
        for file in ("model.onnx", "model.pt2"):
            shutil.copy(model / file, folder)

    monkeypatch.setattr(Checkpoint, "write_graphs", write)


@pytest.mark.usefixtures("written")
def test_up_to_date_export_is_left_alone_and_a_failed_one_leaves_the_old(
    model: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (model / "model.json").read_bytes()
    source = Checkpoint(run)
    assert up_to_date(model, source, Settings(recover=False)) and not up_to_date(model, source, Settings())
    source.inputs = {**source.inputs, "calibration.npz": "other photos"}
    assert not up_to_date(model, source, Settings(recover=False))
    monkeypatch.setattr(Checkpoint, "reference", lambda _, images: np.zeros((len(images), 5 + 1), np.float32))
    with pytest.raises(GateFailed, match="nothing was replaced"):
        write_model(Checkpoint(run), model, Settings(precisions=("fp32",)), lambda line: None)
    assert (model / "model.json").read_bytes() == before
    assert not [p for p in model.parent.iterdir() if p.name.startswith(".")]


def test_a_checkpoint_of_more_weights_than_an_onnx_file_takes_is_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.spec.MOST_WEIGHTS", 40_000_000)
    with pytest.raises(BadModel, match=r"^resnet18.* has 0.04 GB of weights, and one ONNX file takes 0.04 GB; choose"):
        write_model(Checkpoint(run), tmp_path / "resnet18", Settings(precisions=("fp32",)), lambda line: None)


@pytest.mark.parametrize("what", ["OPSET", "sha256_modules", "buildable", "versions", "machine"])
def test_an_export_by_other_code_for_another_machine_or_without_an_engine_is_not_up_to_date(
    model: Path, run: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"OPSET": 17, "versions": lambda: {"numpy": "1"}}.get(what, lambda *_: ["another"])
    monkeypatch.setattr(module, what, other)
    assert not up_to_date(model, Checkpoint(run), Settings(recover=False))


def test_another_checkpoint_is_not_up_to_date(model: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Checkpoint(run)
    source.file = run / "validation.npz"
    assert not up_to_date(model, source, Settings(recover=False))


def test_a_change_of_any_module_that_decides_the_result_changes_the_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decisive = (*module.DECISIVE, *benchmark_run.DECISIVE)
    assert all(list(ROOT.glob(pattern)) for pattern in decisive)  # none was renamed
    written = {file for pattern in module.DECISIVE for file in ROOT.glob(pattern)}
    rest = {file.stem for file in (ROOT / "export").rglob("*.py")} - {file.stem for file in written}
    assert rest == {"__main__", "diagnose", "faults", "settings", "side_by_side", "triton_repository"}
    before = sha256_modules.__wrapped__(*decisive)
    for file in {file for pattern in decisive for file in ROOT.glob(pattern)}:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "runtime" / "files.py"))
    assert sha256_modules.__wrapped__(*decisive) == before
    (tmp_path / "runtime" / "choice.py").write_text("TIE = 0.5\n")
    assert sha256_modules.__wrapped__(*decisive) != before


def test_the_command_line_is_imported_without_the_libraries_of_export() -> None:
    """So that what is missing is said in one sentence."""
    text = "import sys, export.__main__; sys.exit(bool({'torch', 'onnx', 'onnxruntime', 'nncf'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", text], cwd=ROOT).returncode == 0


@pytest.mark.usefixtures("written")
def test_every_verdict_carries_the_bounds_it_was_given_by(model: Path, run: Path, tmp_path: Path) -> None:
    """So that the benchmark, which judges again on its own machine, judges by the same."""
    checked = [c for c in Receipt.read(model).candidates if c.variant != "embed"]
    assert checked and all(c.gate == c.gate_of(GATES) for c in checked)
    (tmp_path / "own.toml").write_text("[fp32]\nshift = 1e-12\n")
    strict = Settings(precisions=("fp32",), recover=False, gates=tmp_path / "own.toml")
    with pytest.raises(GateFailed, match="above 1e-12"):
        write_model(Checkpoint(run), tmp_path / "model", strict, lambda line: None)
    openvino = next(c for c in Receipt.read(model).candidates if (c.backend, c.precision) == ("openvino", "int8"))
    tightened = replace(openvino, gate=replace(GATES["int8"], shift=1e-12))
    result = check_candidate(tightened, model, ValidationSet.load(model / "validation.npz"), Receipt.read(model).spec)
    assert result.verdict == "fail" and "above 1e-12" in result.reasons[0]


def test_names_of_photos_and_models_are_no_markup_in_the_parity_report() -> None:
    spec = ModelSpec("_m_", "y", ("a", "b"), validation={"accuracy": 1.0})
    logits, other = np.array([[1.0, 0.9], [0.0, 9.0]]), np.array([[0.9, 1.0], [0.0, 9.0]])
    figures = compare(logits, other, np.array([0, 1]))
    candidate = Candidate("y", "model.onnx", "ort-cpu", "fp32", verdict="fail", reasons=("<b>",), figures=figures)
    validation = ValidationSet(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), ("a/<i>.jpg", "b/0.jpg"))
    text = parity.report(spec, "*this*", [candidate], validation, ["~~no~~"], GATES)
    for markup in ("_m_", "*this*", "<b>", "<i>", "~~no"):
        assert markup not in text


def test_the_report_tells_what_is_served_from_file_checks_and_how_much_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = ModelSpec("m", "y", ("a", "b"), validation={"accuracy": 1.0})
    logits, other = np.array([[1.0, 0.9], [0.0, 9.0]]), np.array([[0.9, 1.0], [0.0, 9.0]])
    validation = ValidationSet(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), ("a/1.jpg", "b/0.jpg"))
    served = Candidate("y", "model.onnx", "ort-cpu", "int8", verdict="pass", facts=BuildFacts(kept={"conv": 0.25}))
    served = replace(served, figures=compare(logits, other, validation.labels))
    right = replace(served, variant="as written", servable=False, figures=compare(logits, logits, validation.labels))
    text = parity.report(spec, "it", [served, right], validation, [], GATES)
    assert text.count("(file check)") == 1 and f"{right.name} (file check)" in text
    assert "| 50.0 %" in text and text.count("less than 99 %") == text.count(f"- {served.name} has less than 99 %") == 1
    assert f"{served.name} flips a/1.jpg" in text
    assert f"{served.name} keeps 1 layers above INT8 (25 % of the multiply-adds): conv" in text
    shown: list[str] = []
    monkeypatch.setattr(parity, "show_table", lambda head, rows, *_: shown.extend(row[0] for row in rows))
    parity.show([served, right, replace(right, verdict="fail", variant="cam")], Path("parity.md"))
    assert shown == [served.name, f"{replace(right, variant='cam').name} (file check)"]


def test_a_class_of_any_length_has_an_example(tmp_path: Path) -> None:
    names = ("\u0e02" * 90, "a" * 300, "b" * 199 + "\u0e02")
    spec = ModelSpec("x", "y", names, Geometry.for_size(16))
    validation = ValidationSet(np.zeros((3, 16, 16, 3), np.uint8), np.arange(3), names, np.eye(3, dtype=np.float32))
    _write_examples(tmp_path / "examples", validation, spec)
    written = sorted(path.stem for path in (tmp_path / "examples").glob("*.png"))
    assert [stem[:3] for stem in written] == ["000", "001", "002"]
    assert all(name.startswith(stem[4:]) and stem[4:] for stem, name in zip(written, names, strict=True))


def test_examples_are_one_picture_per_class(model: Path) -> None:
    spec, validation = Receipt.read(model).spec, ValidationSet.load(model / "validation.npz")
    seen = [pixels(picture, spec.geometry) for picture in sorted((model / "examples").glob("*.png"))]
    assert len(seen) == 5
    for label, image in enumerate(seen):  # what is served sees what the checkpoint saw
        assert any((image == known).all() for known in validation.images[validation.labels == label])


def test_run_that_does_not_exist_is_named(tmp_path: Path) -> None:
    for folder in ("a", "refused"):  # whose training never began
        (tmp_path / "runs" / folder / "resnet18").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "resnet18" / "checkpoint.pt").touch()
    with pytest.raises(SajiError, match="it has a; train"):
        exporting._run_folder(tmp_path / "runs", "b")
    with pytest.raises(SajiError, match="0 runs"):
        exporting._run_folder(tmp_path / "none", "")


def test_exit_status_1_when_a_candidate_fails_and_the_others_keep_their_verdicts(
    model: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = Receipt.read(model)
    bad = replace(receipt.candidates[2], verdict="fail", reasons=("shift 9 is above 1",))
    spoilt = replace(receipt, candidates=(*receipt.candidates[:2], bad, *receipt.candidates[3:]))
    monkeypatch.setattr(exporting, "_export", lambda *args: [spoilt])
    monkeypatch.setattr("sys.argv", ["export", "--out", str(run.parents[2])])
    low = replace(bad, precision="int8")  # tried by default, not asked for: refused, and the export goes on
    spared = replace(receipt, candidates=(*receipt.candidates[:2], low))
    monkeypatch.setattr(exporting, "_export", lambda *args: [spared])
    exporting.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["refused"] == [low.name]
    monkeypatch.setattr("sys.argv", ["export", "--out", str(run.parents[2]), "--precisions", "int8"])
    with pytest.raises(GateFailed):
        exporting.main()
    monkeypatch.setattr(exporting, "_export", lambda *args: [spoilt])
    with pytest.raises(GateFailed, match="the others keep their verdicts") as error:
        exporting.main()
    assert error.value.exit_status == 1
    printed = capsys.readouterr().out
    assert "shift 9 is above 1" in printed and bad.name in json.loads(printed.splitlines()[-1])["failed"]


@pytest.mark.parametrize("photos", [8, 100])
def test_what_may_not_be_served_is_told_and_fails_a_precision_asked_for_but_not_for_want_of_photos(
    photos: int, model: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = Receipt.read(model)
    doubted = tuple(
        replace(each, verdict="inconclusive", reasons=("no verdict",), figures=replace(each.figures, photos=photos))
        for each in receipt.candidates
        if each.figures
    )
    monkeypatch.setattr(exporting, "_export", lambda *args: [replace(receipt, candidates=doubted)])
    monkeypatch.setattr("sys.argv", ["export", "--out", str(run.parents[2])])
    exporting.main()
    assert f"nothing of {receipt.spec.name} may be served: no verdict" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["export", "--out", str(run.parents[2]), "--precisions", "int8"])
    passes = contextlib.nullcontext(), "refused"
    fails = pytest.raises(GateFailed, match="parity did not pass for resnet18 · ort-cpu · int8"), "failed"
    ends, named = passes if photos < MIN_PHOTOS else fails
    with ends:
        exporting.main()
    told = capsys.readouterr().out
    assert f"not sure, so not served: {next(c.name for c in doubted if c.precision == 'int8')}: no verdict" in told
    names = json.loads(told.splitlines()[-1])
    assert all("int8" in name for name in names[named]) and len(names[named]) == len(names["failed"] + names["refused"])


def test_a_folder_replaced_whole_keeps_the_old_one_when_the_disk_is_full(tmp_path: Path) -> None:
    old = tmp_path / "model"
    old.mkdir()
    (old / "model.json").write_text("old")

    def write() -> None:
        with replacing_folder(old, "model.json") as new:
            (new / "model.onnx").write_text("new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert (old / "model.json").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_activations_are_unsigned_so_that_every_convolution_runs_in_int8(model: Path) -> None:
    graph = onnx.load(model / "model.int8.onnx").graph
    zero_points = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {zero_points[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {onnx.TensorProto.UINT8}


def requantised(kind: Any, zero: int, rewrite: Callable[[onnx.ModelProto], object]) -> tuple[np.ndarray, ...]:
    """Activations in a calibrated range, before and after Q and DQ with steps of 0.1, as they are and rewritten."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    constants = {"scale": np.float32(0.1), "zero": kind(zero)}
    value = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None])  # noqa: E731
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])]
    nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]))
    tensors = [numpy_helper.from_array(np.array(each), name) for name, each in constants.items()]
    model = helper.make_model(helper.make_graph(nodes, "pair", [value("x")], [value("y")], tensors))
    lowest, highest = (0.1 * (end - zero) for end in (np.iinfo(kind).min, np.iinfo(kind).max))
    x = np.linspace(lowest, highest, 1001, dtype=np.float32)
    before = ReferenceEvaluator(model).run(None, {"x": x})[0]
    rewrite(model)
    return x, before, ReferenceEvaluator(model).run(None, {"x": x})[0]


@pytest.mark.parametrize("zero", [-128, -28, 0, 127])
def test_signed_activations_are_the_same_numbers_as_unsigned_ones(zero: int) -> None:
    _, before, after = requantised(np.int8, zero, precision._unsigned_activations)
    assert np.array_equal(before, after)


@pytest.mark.parametrize("zero", [0, 100, 128, 200, 255])
def test_activations_about_zero_keep_the_calibrated_range_in_steps_at_most_twice_as_wide(zero: int) -> None:
    x, _, after = requantised(np.uint8, zero, precision._about_zero)
    assert np.abs(after - x).max() <= 1.01 * max(zero, 255 - zero) / 127 * 0.1 / 2


@pytest.mark.slow
def test_squeeze_and_excitation_runs_in_int8_on_every_engine(tmp_path: Path) -> None:
    """Signed outputs of its convolutions beside unsigned inputs once left two thirds of the work in FP32."""
    from export.engine import build_engine
    from export.precision import quantise, quantise_for_tensorrt
    from runtime.backends import open_backend

    network = PhotoClassifier("se_resnet34", 5).eval()
    for stage in ("layer1", "layer2", "layer3", "layer4"):  # a block of each kind is enough
        setattr(network.network, stage, getattr(network.network, stage)[:1])
    spec = ModelSpec("x", "se_resnet34", tuple("abcde"), Geometry.for_size(64))
    export_onnx(network, spec, tmp_path / "model.onnx")
    photos = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8)
    quantise(tmp_path / "model.onnx", photos, spec, tmp_path / "model.int8.onnx", recover=False)
    for backend in ("ort-cpu", "openvino"):
        engine = open_backend(backend, tmp_path / "model.int8.onnx", "int8")
        assert engine.precision_share()["int8"] > 0.99
        engine.close()
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'saji[tensorrt-rtx]'")
    quantise_for_tensorrt(tmp_path / "model.int8.onnx", spec, tmp_path / "model.int8-trt.onnx")
    settings = Settings(targets=("sm86",))
    built = build_engine(trt, tmp_path / "model.int8-trt.onnx", tmp_path / "x.engine", "int8", settings)
    assert built.precision_share["int8"] > 0.99


@pytest.mark.parametrize("inputs", [None, 5, {"onnx": 5}, {"onnx": "net.onnx"}, {"onnx": "/x/net.onnx"}])
def test_only_what_tells_of_another_source_keeps_a_model(inputs: Any, model: Path, tmp_path: Path) -> None:
    """A damaged receipt does not; an earlier version wrote the path as it was typed."""
    receipt = Receipt.read(model)
    replace(receipt, request={**receipt.request, "inputs": inputs}).write(tmp_path)
    _require_same_source(tmp_path, SimpleNamespace(inputs={"onnx": "/x/net.onnx"}, file=Path("net.onnx")))  # type: ignore[arg-type]
    other = SimpleNamespace(inputs={"onnx": "/x/other.onnx"}, file=Path("other.onnx"))
    if isinstance(inputs, dict) and str(inputs["onnx"]).endswith("net.onnx"):
        with pytest.raises(SajiError, match="holds the model brought in from"):
            _require_same_source(tmp_path, other)  # type: ignore[arg-type]
