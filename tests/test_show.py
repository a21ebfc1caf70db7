"""`python -m runtime show` tells what a model is from whatever names it, and whether its files are unchanged."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from export.graph import OPSET
from runtime.__main__ import main
from runtime.choice import Policy, choose
from runtime.deployment import Measured
from runtime.errors import BadModel, GateFailed, SajiError
from runtime.receipt import Receipt
from runtime.show import _graph, describe, lines


def text(path: Path) -> str:
    return "\n".join(lines(describe(path)))


@pytest.mark.parametrize("verb", ["show", "inspect"])
def test_a_folder_shows_spec_files_graph_and_verdicts(
    verb: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = Receipt.read(model)
    monkeypatch.setattr(sys, "argv", ["runtime", verb, "--json", str(model / "model.json")])
    main()
    told = json.loads(capsys.readouterr().out)
    assert told["spec"] == json.loads(receipt.spec.to_json())
    assert {file["name"] for file in told["files"]} == set(receipt.files)
    assert {file["receipt"] for file in told["files"]} == {"same"}
    assert told["graph"]["operators"]["Conv"] == 20 and told["graph"]["opset"] == OPSET
    assert told["graph"]["inputs"] == [{"name": "images", "type": "uint8", "shape": ["batch", 32, 32, 3]}]
    logits, familiarity = told["graph"]["outputs"]
    assert logits == {"name": "logits", "type": "float32", "shape": ["batch", 5]}
    assert familiarity == {"name": "familiarity", "type": "float32", "shape": ["batch"]}
    assert [entry["verdict"] for entry in told["candidates"]] == [entry.verdict for entry in receipt.candidates]
    shown = text(model)
    for candidate in receipt.candidates:
        assert f"{candidate.name}: {'; '.join([candidate.verdict, *candidate.reasons])}" in shown
    assert "openvino · int8: pass; 0 % fp32, 100 % int8" in shown and "20 Conv" in shown


def test_files_that_are_not_those_of_the_receipt_fail(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "copy" / "model.pt2").unlink()
    (tmp_path / "copy" / "parity.md").write_text("all is well")
    monkeypatch.setattr(sys, "argv", ["runtime", "show", str(tmp_path / "copy")])
    with pytest.raises(GateFailed, match=r"model\.pt2, parity\.md: not as in the receipt"):
        main()
    shown = capsys.readouterr().out
    assert "NOT the file of the receipt" in shown and "MISSING" in shown


def test_a_bare_file_is_told_by_itself(model: Path) -> None:
    told = describe(model / "model.int8.onnx")
    assert told["spec"]["classes"] == Receipt.read(model).spec.classes
    assert told["graph"]["operators"]["QuantizeLinear"] > 20 and told["graph"]["parameters"]["int8"] > 10**7
    assert describe(model / "model.pt2")["spec"] == told["spec"]


def test_a_model_of_another_project_is_told_too(model: Path, tmp_path: Path) -> None:
    import onnx

    bare = onnx.load(model / "model.onnx")
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    assert "no saji spec" in text(tmp_path / "bare.onnx") and "20 Conv" in text(tmp_path / "bare.onnx")


def test_what_a_model_started_from_is_told(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "copy"))
    receipt, files = Receipt.read(folder), {"weights": "unknown", "teacher": 30}
    started_from = {role: {"name": f"{role}.pt", "sha256": 64 * "a", "seen": seen} for role, seen in files.items()}
    replace(receipt, spec=replace(receipt.spec, data={"started_from": started_from})).write(folder)
    shown = text(folder)
    assert "started from weights weights.pt (sha256 aaaaaaaaaaaa…): what it was trained on is not known" in shown
    assert "started from teacher teacher.pt (sha256 aaaaaaaaaaaa…): it had seen 30 photos" in shown
    assert "started from" not in text(model)


def test_a_deployment_shows_its_choice_and_what_was_not_chosen(model: Path) -> None:
    receipt = Receipt.read(model)
    served = {c.backend: c for c in receipt.candidates if c.precision == "fp32" and c.verdict == "pass"}
    entries = [
        Measured(served[name], "models/resnet18", receipt.files[served[name].file].sha256, 1, ms, rounds=(ms,) * 5)
        for name, ms in (("pytorch", 1.0), ("openvino", 3.0))
    ]
    path = model.parents[1] / "shown.json"
    choose(entries, [], Policy(), None, {}).write(path)
    shown = text(path)
    assert shown.startswith("choice: resnet18 · pytorch · fp32") and "\nreason: fastest of 2" in shown
    assert "not chosen: resnet18 · openvino · fp32" in shown and "slower: 3.00 ms against 1.00 ms" in shown
    assert f"model.onnx, opset {OPSET}" in shown  # the graph that model.pt2 was exported beside
    assert "\n  input      images: " in shown and "\n  output     logits: " in shown


def test_without_onnx_one_line_says_so_and_the_receipt_knows_the_operators(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    shown = text(model)
    assert "are read by onnx; install it with: pip install" in shown and "20 Conv" in shown
    assert "5 classes" in text(model / "model.onnx")


def test_what_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    for name, content in {"empty.onnx": b"", "text.onnx": b"no model at all", "notes.txt": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SajiError, match=r"is no (ONNX )?model") as error:
            describe(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(BadModel, match=r"has no model\.json"):
        describe(tmp_path)
    with pytest.raises(SajiError, match="gone does not exist"):
        describe(tmp_path / "gone")


def test_what_is_no_onnx_file_is_told_apart_from_one_that_is_not_there(tmp_path: Path) -> None:
    assert _graph(tmp_path / "model.onnx") == {"unread": "there is no ONNX file to read"}
    assert _graph(tmp_path / "model.pt2") == {"unread": "only ONNX files are read"}
