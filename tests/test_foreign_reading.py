"""Foreign graphs in the forms that their exporters write: read right, or refused in one sentence, never a traceback."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from export.foreign.reading import lifted, read_foreign
from export.foreign.source import ForeignModel
from export.graph import OPSET, multiply_adds
from export.settings import Foreign
from runtime.errors import BadModel

LAST = "flat = Flatten (means) scores = Gemm (flat, matrix)"
FP32 = f"means = GlobalAveragePool (photo) {LAST}"


def written(path: Path, body: str, imports: str = '"": 17, "com.microsoft": 1', functions: str = "") -> Path:
    """A network of three classes, its weights under their names in FP32 and, with an h, in FP16."""
    model = onnx.parser.parse_model(
        f"<ir_version: 8, opset_import: [{imports}]> "
        f"theirs (float[N, 3, 16, 16] photo) => (float[N, 3] scores) {{ {body} }} {functions}"
    )
    random, used = np.random.default_rng(0), {name for node in model.graph.node for name in node.input}
    for name, shape in {"filters": (3, 3, 3, 3), "matrix": (3, 3), "scale": (3,)}.items():
        value = random.normal(0, 1, shape).astype(np.float32)
        for each, as_stored in ((name, value), (f"h_{name}", value.astype(np.float16))):
            if each in used:
                model.graph.initializer.append(numpy_helper.from_array(as_stored, each))
    onnx.save(model, path)
    return path


BACK = f"means = Cast <to = 1> (low) {LAST}"
HALF = {
    "behind an operator of ONNX Runtime": f"""
        h = Cast <to = 10> (photo) q = com.microsoft.QuickGelu (h) c = Conv (q, h_filters)
        low = GlobalAveragePool (c) {BACK}""",
    "by weights alone": f"""
        q = com.microsoft.QuickGelu (photo) h = com.microsoft.Half (q) c = Conv (h, h_filters)
        low = GlobalAveragePool (c) {BACK}""",
    "in an operator of ONNX Runtime": f"""
        h = Cast <to = 10> (photo) c = com.microsoft.FusedConv (h, h_filters)
        low = GlobalAveragePool (c) {BACK}""",
    "in an Einsum": """
        means = GlobalAveragePool (photo) flat = Flatten (means) h = Cast <to = 10> (flat)
        low = Einsum <equation = "ij,jk->ik"> (h, h_matrix) scores = Cast <to = 1> (low)""",
    "in a normalisation": f"""
        h = Cast <to = 16> (photo) s = Cast <to = 16> (scale) n = InstanceNormalization (h, s, s)
        low = GlobalAveragePool (n) {BACK}""",
    "in double": f"""
        d = Cast <to = 11> (photo) w = Cast <to = 11> (filters) c = Conv (d, w)
        low = GlobalAveragePool (c) {BACK}""",
}


@pytest.mark.parametrize("where", HALF)
def test_layers_in_another_format_than_fp32_are_refused(where: str, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"computes \w+ in (float16|bfloat16|double); export it in float32"):
        read_foreign(written(tmp_path / "net.onnx", HALF[where]))


@pytest.mark.parametrize(
    "body",
    [
        FP32,
        f"w = Cast <to = 1> (h_filters) c = Conv (photo, w) means = GlobalAveragePool (c) {LAST}",
        f"""s = Shape (photo) d = Cast <to = 11> (s) half = Constant <value = double {{0.5}}> ()
            h = Mul (d, half) i = Cast <to = 7> (h) means = GlobalAveragePool (photo) {LAST}""",
        f"two = Constant <value = double {{2}}> () p = Pow (photo, two) means = GlobalAveragePool (p) {LAST}",
        f"q = com.microsoft.QuickGelu (photo) means = GlobalAveragePool (q) {LAST}",
    ],
    ids=["plain", "weights stored in half", "sizes in double", "an exponent in double", "of ONNX Runtime"],
)
def test_other_formats_beside_the_layers_are_read(body: str, tmp_path: Path) -> None:
    assert read_foreign(written(tmp_path / "net.onnx", body)).graph.node


def test_a_graph_of_functions_alone_is_read_by_their_opset(tmp_path: Path) -> None:
    """The model itself names no opset of the standard then."""
    function = f"""<domain: "theirs", opset_import: ["": 17]> Net (photo, matrix) => (scores) {{ {FP32} }}"""
    path = written(tmp_path / "net.onnx", "scores = theirs.Net (photo, matrix)", '"theirs": 1', function)
    read = read_foreign(path)
    assert [entry.version for entry in read.opset_import if not entry.domain] == [17]
    assert lifted(read, path).opset_import


def test_a_graph_of_operators_of_onnx_runtime_alone_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", "scores = com.microsoft.Net (photo, matrix)", '"com.microsoft": 1')
    assert [entry.version for entry in lifted(read_foreign(path), path).opset_import if not entry.domain] == [OPSET]


def test_operators_that_give_nothing_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", FP32)
    model = onnx.load(path)
    for outputs in ([], [""]):
        model.graph.node.append(onnx.helper.make_node("Print", ["scores"], outputs, domain="com.microsoft"))
    onnx.save(model, path)
    read = read_foreign(path)
    assert [node.op_type for node in read.graph.node] == ["GlobalAveragePool", "Flatten", "Gemm"]
    assert multiply_adds(read)


@pytest.mark.parametrize("value", ["input", "output"])
def test_a_type_that_onnx_does_not_know_is_one_sentence(value: str, tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", FP32)
    model = onnx.load(path)
    getattr(model.graph, value)[0].type.tensor_type.elem_type = 999
    onnx.save(model, path)
    with pytest.raises(BadModel, match="cannot be read as ONNX"):
        read_foreign(path)


def brought(path: Path) -> ForeignModel:
    path.with_suffix(".txt").write_text("ant\nbee\ncat\n")
    return ForeignModel(Foreign(path, path.with_suffix(".txt"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), print)


def test_the_logarithm_of_a_softmax_is_brought_in_without_a_warning(tmp_path: Path) -> None:
    """It is -inf where a probability is 0, as with its last layer a million times as strong."""
    path = written(tmp_path / "net.onnx", FP32.replace("scores", "raw") + "p = Softmax (raw) scores = Log (p)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert brought(path)


SQUASHED: Mapping[str, str] = {
    "tanh": "scores = Tanh (raw)",
    "softsign": "scores = Softsign (raw)",
    "sigmoid from -1": "p = Sigmoid (raw) two = Add (p, p) scores = Sub (two, one)",
    "sigmoid from -0.5": "p = Sigmoid (raw) scores = Sub (p, half)",
    "softmax from -1": "p = Softmax (raw) two = Add (p, p) scores = Sub (two, one)",
    "clipped": "minus = Neg (one) scores = Clip (raw, minus, one)",
}


@pytest.mark.parametrize("end", SQUASHED)
def test_scores_within_bounds_on_both_sides_of_zero_are_refused(end: str, tmp_path: Path) -> None:
    numbers = "one = Constant <value = float {1}> () half = Constant <value = float {0.5}> ()"
    path = written(tmp_path / "net.onnx", f"{FP32.replace('scores', 'raw')} {numbers} {SQUASHED[end]}")
    with pytest.raises(BadModel, match="not logits"):
        brought(path)


@pytest.mark.parametrize(
    "end", ["t = Tanh (raw) scores = Mul (t, ten)", "scores = Neg (raw)", "scores = Mul (raw, tiny)"]
)
def test_logits_below_zero_are_not_taken_for_such_scores(end: str, tmp_path: Path) -> None:
    numbers = "ten = Constant <value = float {10}> () tiny = Constant <value = float {0.001}> ()"
    assert brought(written(tmp_path / "net.onnx", f"{FP32.replace('scores', 'raw')} {numbers} {end}"))
