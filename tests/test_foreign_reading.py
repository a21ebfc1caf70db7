"""Foreign graphs in the forms that their exporters write: read right, or refused in one sentence, never a traceback."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from export.foreign.reading import lifted, read_foreign
from export.foreign.source import ForeignModel
from export.graph import OPSET, all_graphs, multiply_adds
from export.settings import Foreign
from runtime.errors import BadModel

RULE = r"breaks a rule of ONNX .* until onnx\.checker\.check_model takes it"
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


def test_what_onnx_cannot_convert_is_told_with_the_opset_to_export_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "net.onnx", FP32)
    monkeypatch.setattr(onnx.version_converter, "convert_version", Mock(side_effect=RuntimeError("no adapter")))
    with pytest.raises(BadModel, match=r"converted to opset 18 \(no adapter\); export it with opset_version=18"):
        lifted(read_foreign(path), path)


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
    with pytest.raises(BadModel, match=RULE):
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


def same_answers(path: Path, plain: Path) -> bool:
    """Whether two files, brought in, answer alike."""
    return np.allclose(brought(path).reference(PICTURES), brought(plain).reference(PICTURES), atol=1e-6)


PICTURES = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8)
DENSE = f'<domain: "theirs", opset_import: ["": 17]> Dense (means, matrix) => (scores) {{ {LAST} }}'
INNER = "(float[N, 3, 16, 16] inner) { inner = Relu (photo) }"
BRANCHES = f"""yes = Constant <value = bool {{1}}> ()
    live = If (yes) <then_branch = one () => {INNER}, else_branch = two () => {INNER}>
    means = GlobalAveragePool (live)"""
# The name that is in another encoding, what it is of, and what the file imports and has for functions
NAMED = {
    "input": ("photo", FP32, '"": 17', ""),
    "output": ("scores", FP32, '"": 17', ""),
    "tensor": ("means", FP32, '"": 17', ""),
    "weight": ("matrix", FP32, '"": 17', ""),
    "batch": ("N", FP32, '"": 17', ""),
    "in branches": ("inner", f"{BRANCHES} {LAST}", '"": 17', ""),
    "function": (
        "Dense", "means = GlobalAveragePool (photo) scores = theirs.Dense (means, matrix)", '"": 17, "theirs": 1', DENSE
    ),
    "in a function": (
        "flat", "means = GlobalAveragePool (photo) scores = theirs.Dense (means, matrix)", '"": 17, "theirs": 1', DENSE
    ),
}  # fmt: skip


@pytest.mark.parametrize("beside", [False, True], ids=["", "weights beside it"])
@pytest.mark.parametrize("which", NAMED)
def test_a_name_in_another_encoding_is_a_name(which: str, beside: bool, tmp_path: Path) -> None:
    """protobuf gives what is no UTF-8 as bytes."""
    name, *rest = NAMED[which]
    plain, path = written(tmp_path / "plain.onnx", *rest), tmp_path / "latin.onnx"
    onnx.save(onnx.load(plain), path, save_as_external_data=beside, location="weights.bin", size_threshold=0)
    content = path.read_bytes()
    path.write_bytes(content.replace(bytes([len(name)]) + name.encode(), bytes([len(name)]) + b"\xe9" * len(name)))
    assert path.read_bytes() != content
    assert same_answers(path, plain)


def test_names_in_another_encoding_stay_apart(tmp_path: Path) -> None:
    """Also from one that is spelled as they are then."""
    names = {b"first": b"caf\xe9s", b"other": b"caf\xe8s", b"likeness": rb"caf\xe9s"}
    parts = "first = Relu (photo) other = Neg (first) likeness = Exp (other) sum = Sum (first, other, likeness)"
    plain = written(tmp_path / "plain.onnx", f"{parts} {FP32.replace('photo', 'sum')}")
    content = plain.read_bytes()
    for name, other in names.items():
        content = content.replace(name, other)
    (tmp_path / "latin.onnx").write_bytes(content)
    assert same_answers(tmp_path / "latin.onnx", plain)
    read = read_foreign(tmp_path / "latin.onnx")
    outputs = [name for node in read.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs) and all(isinstance(name, str) for name in outputs)


SOFTMAX = (
    "s = Softmax <axis = 1> (photo) means = GlobalAveragePool (s) scores = Flatten (means)"  # otherwise from 13 on
)


@pytest.mark.parametrize(
    "imports",
    [
        {"": 12, "ai.onnx": 12},
        {"": 12, "ai.onnx": 13},
        {"": 13, "ai.onnx": 12},
        {"ai.onnx": 13, "": 12},
        [("", 12), ("", 12)],
        [("", 12), ("", 13)],
        [("", 18), ("", 9)],
    ],
)
def test_of_two_opsets_it_is_the_one_that_onnx_runtime_takes(imports: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", SOFTMAX, '"": 12')
    model = onnx.load(path)
    del model.opset_import[:]
    pairs = imports.items() if isinstance(imports, dict) else imports
    model.opset_import.extend(onnx.helper.make_opsetid(*pair) for pair in pairs)
    onnx.save(model, path)
    read = read_foreign(path)
    photo = np.random.default_rng(1).normal(0, 1, (1, 3, 16, 16)).astype(np.float32)
    as_given, as_read = (
        onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"photo": photo})[0]
        for graph in (model, lifted(read, path))
    )
    assert np.allclose(as_given, as_read, atol=1e-6)
    assert len(read.opset_import) == 1


def unnamed(model: onnx.ModelProto) -> None:
    for graph in all_graphs(model.graph):
        graph.ClearField("name")


def unsorted(model: onnx.ModelProto) -> None:
    for part in reversed([*all_graphs(model.graph), *model.functions]):
        nodes = [*part.node][::-1]
        del part.node[:]
        part.node.extend(nodes)


def with_a_key_twice(model: onnx.ModelProto) -> None:
    for _ in range(2):
        model.metadata_props.add(key="author", value="somebody")


def with_the_long_domain_inside(model: onnx.ModelProto) -> None:
    parts = [*all_graphs(model.graph), *model.functions]
    for node in [node for part in parts for node in part.node if not node.domain]:
        node.domain = "ai.onnx"
    for entry in [entry for whole in (model, *model.functions) for entry in whole.opset_import if not entry.domain]:
        entry.domain = "ai.onnx"


def with_nodes_of_one_name(model: onnx.ModelProto) -> None:
    for node in [node for part in (*all_graphs(model.graph), *model.functions) for node in part.node]:
        node.name = "node"


CARELESS = (unnamed, unsorted, with_a_key_twice, with_the_long_domain_inside, with_nodes_of_one_name)
TWO_STEPS = INNER.replace("inner = Relu (photo)", "before = Relu (photo) inner = Neg (before)")
DEEP = f"""start = Neg (photo) {BRANCHES.replace(INNER, TWO_STEPS).replace("photo", "start")}
    scores = theirs.Dense (means, matrix)"""


@pytest.mark.parametrize("change", CARELESS)
def test_what_leaves_no_doubt_of_the_network_is_mended(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    plain = written(tmp_path / "plain.onnx", DEEP, '"": 17, "theirs": 1', DENSE)
    model, path = onnx.load(plain), tmp_path / "net.onnx"
    change(model)
    onnx.save(model, path)
    assert same_answers(path, plain)


def with_two_values_of_a_key(model: onnx.ModelProto) -> None:
    for value in ("one", "two"):
        model.metadata_props.add(key="author", value=value)


def in_a_circle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[1].output[0]


def without_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def with_a_weight_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def without_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_two_values_of_a_key, "has 'author' twice in its metadata, with two values; write it with one"),
        (in_a_circle, RULE),
        (without_opset, RULE),
        (with_a_weight_twice, RULE),
        (without_nodes, "holds no layer of ONNX.*; export the network to ONNX"),
    ],
)
def test_what_cannot_be_mended_is_told_with_a_step_that_fits(
    change: Callable[[onnx.ModelProto], None], words: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "net.onnx", FP32)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    with pytest.raises(BadModel, match=words) as refused:
        read_foreign(path)
    assert "complete file" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", [".onnxtxt", ".json", ".pbtxt"])
def test_the_text_forms_of_onnx_are_read(suffix: str, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.onnx", FP32)
    onnx.save(onnx.load(plain), tmp_path / f"net{suffix}")
    assert same_answers(tmp_path / f"net{suffix}", plain)
    (tmp_path / f"net{suffix}").rename(tmp_path / "misnamed.onnx")
    with pytest.raises(BadModel, match=r"is no ONNX but a text .* call it \.onnxtxt"):
        read_foreign(tmp_path / "misnamed.onnx")
