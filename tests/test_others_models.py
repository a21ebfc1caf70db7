"""Classifiers as other projects export them: brought in right, or refused in one sentence; never served wrongly.

Each promise was broken in public for somebody else's program; the comments name where.
"""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import house
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from house import Candidate, Geometry, ModelSpec, Receipt, Said
from onnx import helper, numpy_helper
from PIL import Image

import runtime

NAMES = ("ant", "bee", "cat", "dog")
BODY = """
    maps = Conv <pads = [1, 1, 1, 1]> (photo, filters)
    live = Relu (maps)
    means = GlobalAveragePool (live)
    flat = Flatten (means)"""
LINEAR = "scores = Gemm (flat, matrix, bias)"
RAW = "raw = Gemm (flat, matrix, bias)"


def network(
    path: Path,
    end: str = LINEAR,
    body: str = BODY,
    photo: str = "float[N, 3, 24, 24] photo",
    scores: str = "float[N, 4] scores",
    ir: int = 8,
    opset: int = 17,
    **constants: np.ndarray,
) -> Path:
    """A tiny classifier: a convolution, the mean of each map, and what `end` makes four scores of."""
    graph = f'<ir_version: {ir}, opset_import: ["": {opset}]> theirs ({photo}) => ({scores}) {{ {body} {end} }}'
    model, random = onnx.parser.parse_model(graph), np.random.default_rng(0)
    shapes = {"filters": (8, 3, 3, 3), "matrix": (8, 4), "bias": (4,), "inner": (8, 16), "inner_bias": (16,)}
    values = {name: random.normal(0, 1.5, shape) for name, shape in (shapes | {"outer": (16, 4)}).items()}
    used = {name for node in model.graph.node for name in node.input}
    for name, value in (values | constants).items():
        if name in used:
            value = value.astype(np.float32) if value.dtype == np.float64 else value
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.save(model, path)
    return path


def bring(file: Path, *more: object, names: Sequence[str] = NAMES, data: Path | None = None) -> Said:
    """`python -m export --onnx FILE …` into `out` beside the file."""
    classes = file.with_suffix(".txt")
    classes.write_text("\n".join(names) + "\n", encoding="utf-8")
    line = ["--onnx", file, "--classes", classes, "--mean", *["0.5"] * 3, "--std", *["0.25"] * 3]
    line += ["--data", data] if data else []
    return house.here("export", *line, "--out", file.parent / "out", *more)


def brought(file: Path) -> Path:
    return file.parent / "out" / "models" / file.stem


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures of each of the four classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, label in enumerate(NAMES):
        (folder / label).mkdir()
        for i in range(9):
            pixels = np.random.default_rng([number, i]).integers(60 * number, 60 * number + 70, (28, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


# microsoft/onnxruntime#20559, #23602, #14932; notAI-tech/NudeNet#156
def test_a_file_of_an_ir_version_that_is_too_new_is_brought_in_or_refused(tmp_path: Path) -> None:
    """What `onnx.helper.make_model` writes by default is often newer than the ONNX Runtime that is installed."""
    said = bring(network(tmp_path / "newest.onnx", ir=onnx.IR_VERSION))
    assert said.status == 0 or said.refused, said


# huggingface/transformers#18915, qubvel-org/segmentation_models.pytorch#804, onnx/onnx#654
@pytest.mark.parametrize(
    "sides",
    [
        "height, width",
        "24, width",
        "side, side",
    ],
)
def test_the_size_that_a_file_leaves_open_is_told(sides: str, tmp_path: Path) -> None:
    said = bring(network(tmp_path / "open.onnx", photo=f"float[batch, 3, {sides}] photo"), "--size", "24")
    assert said.status == 0, said
    with runtime.load(brought(tmp_path / "open.onnx") / "model.onnx") as classifier:
        assert classifier.logits(np.zeros((2, 24, 24, 3), np.uint8)).shape == (2, 4)


def test_a_network_that_works_out_its_widths_with_tensors_is_tried_like_others() -> None:
    architectures = house.room("architectures")
    assert architectures.smallest_size("regnet_x_400mf", 2, house.room("recipe").Recipe()) == 8


def test_a_size_that_nobody_tells_is_asked_for(tmp_path: Path) -> None:
    said = bring(network(tmp_path / "open.onnx", photo="float[batch, 3, height, width] photo"))
    assert said.refused and "--size" in said.last, said


# huggingface/transformers#35848, michaelfeil/infinity#662, monologg/GoEmotions-pytorch#5
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(f"{LINEAR.replace('scores', 'raw')} scores = Sigmoid (raw)", id="sigmoid"),
        pytest.param(f"{LINEAR.replace('scores', 'raw')} s = Sigmoid (raw) scores = Identity (s)", id="renamed"),
    ],
)
def test_a_network_that_ends_in_a_sigmoid_is_refused_as_one_that_ends_in_a_softmax_is(end: str, tmp_path: Path) -> None:
    """A softmax over the answers of a multi-label network makes every class about equally likely."""
    said = bring(network(tmp_path / "tags.onnx", end))
    assert said.refused and ("igmoid" in said.last or "probabilities" in said.last), said


# What a graph calls its end says little; microsoft/onnxruntime#14731 spells a sigmoid out
BOUNDED = {
    "sigmoid, cast": "h = Cast <to = 10> (raw) p = Sigmoid (h) scores = Cast <to = 1> (p)",
    "sigmoid, flattened": "p = Sigmoid (raw) scores = Flatten (p)",
    "sigmoid, clipped": "p = Sigmoid (raw) scores = Clip (p, zero, one)",
    "sigmoid, spelled out": "n = Neg (raw) e = Exp (n) sum = Add (e, one) scores = Reciprocal (sum)",
    "softmax in per cent": "p = Softmax (raw) scores = Mul (p, hundred)",
    "softmax of the batch": "scores = Softmax <axis = 0> (raw)",
    "softmax of five": "r = Gemm (flat, five) p = Softmax (r) scores = Slice (p, first, last, first)",
    "two softmaxes": """
        a, b = Split <axis = 1> (raw, halves)
        c = Softmax (a)
        d = Softmax (b)
        scores = Concat <axis = 1> (c, d)""",
    "sigmoid in per cent": "p = Sigmoid (raw) scores = Mul (p, hundred)",
    "softmax in whole per cent": "p = Softmax (raw) q = Mul (p, hundred) scores = Floor (q)",
    "softmax, spelled out, in whole per cent": """
        e = Exp (raw)
        sum = ReduceSum <keepdims = 1> (e, one_axis)
        p = Div (e, sum)
        q = Mul (p, hundred)
        scores = Round (q)""",
    "mean of two sigmoids": """
        r = Gemm (flat, other)
        a = Sigmoid (raw)
        b = Sigmoid (r)
        both = Add (a, b)
        scores = Mul (both, hundred)""",
    "logarithm of a sigmoid": "n = Neg (raw) p = Softplus (n) scores = Neg (p)",
    "clipped at six": "scores = Clip (raw, zero, six)",
}
SCALARS = {"zero": np.float32(0), "one": np.float32(1), "hundred": np.float32(100), "six": np.float32(6)}
ENDS = {"halves": np.array([2, 2]), "one_axis": np.array([1]), "other": np.random.default_rng(9).normal(0, 1.5, (8, 4))}
SLICED = {"five": np.linspace(-1, 1, 40).reshape(8, 5), "first": np.array([1]), "last": np.array([5])}


@pytest.mark.parametrize("end", BOUNDED)
def test_probabilities_are_told_from_logits_by_what_they_are(end: str, tmp_path: Path) -> None:
    file = network(tmp_path / "tags.onnx", f"{RAW} {BOUNDED[end]}", **SCALARS, **ENDS, **SLICED)
    said = bring(file)
    assert said.refused and ("probabilities, not logits" in said.last or "Softmax that is not over" in said.last), said


@pytest.mark.parametrize("largest", [0, 1])
def test_answers_that_are_sorted_are_of_no_class(largest: int, tmp_path: Path) -> None:
    end = f"{RAW} scores, places = TopK <axis = 1, largest = {largest}> (raw, all)"
    said = bring(network(tmp_path / "best.onnx", end, all=np.array([4])))
    assert said.refused and "TopK" in said.last, said


# Never below 0 as SqueezeNet's, far above it, never above 0 as distances are, kept within bounds by tanh
@pytest.mark.parametrize(
    "end",
    [
        "scores = Relu (raw)",
        "scores = Add (raw, hundred)",
        "square = Mul (raw, raw) scores = Neg (square)",
        "far = Mul (raw, hundred) square = Mul (far, far) scores = Neg (square)",
        "bound = Tanh (raw) scores = Mul (bound, hundred)",
    ],
)
def test_logits_are_not_taken_for_probabilities(end: str, tmp_path: Path) -> None:
    said = bring(network(tmp_path / "net.onnx", f"{RAW} {end}", **SCALARS))
    assert said.status == 0, said


def test_two_classes_that_are_always_likely_are_not_taken_for_probabilities(tmp_path: Path) -> None:
    """An untrained network that normalises inside answers about the same, however strong the photos are."""
    own = {"least": np.full(8, 0.001), "ones": np.ones(8), "pair": np.array([[0.05, 0.1]] * 4 + [[0.06, 0.09]] * 4)}
    end = "normed = LayerNormalization (flat, least, ones) scores = Gemm (normed, pair)"
    said = bring(network(tmp_path / "net.onnx", end, scores="float[N, 2] scores", **own), names=NAMES[:2])
    assert said.status == 0, said


def test_a_last_layer_of_zeros_is_not_taken_for_probabilities(photos: Path, tmp_path: Path) -> None:
    """As torchvision's vision transformers begin; what it cannot tell apart is said once there are photos."""
    file = network(tmp_path / "vit.onnx", matrix=np.zeros((8, 4)), bias=np.zeros(4))
    assert bring(file).status == 0
    assert "all 36 photos give the same logits" in bring(file, data=photos).last


# pytorch/vision#1734, #4160; sarahpratt/CuPL#2; nottombrown/imagenet-stubs#2
@pytest.mark.parametrize("names", [("crane", "bee", "crane", "dog"), ("maillot", "maillot ", "bee", "dog")])
def test_two_classes_of_one_name_are_refused_by_name(names: tuple[str, ...], tmp_path: Path) -> None:
    """ImageNet's usual list of names has crane and maillot twice."""
    said = bring(network(tmp_path / "net.onnx"), names=names)
    assert said.refused and names[0] in said.last, said


class Always:
    """An engine that gives the same logits whatever it is shown."""

    def run(self, images: np.ndarray) -> np.ndarray:
        return np.tile(np.float32([5, 1, 0]), (len(images), 1))

    def precision_share(self) -> dict[str, float]:
        return {"fp32": 1.0}

    def close(self) -> None: ...


def test_no_probability_is_lost_where_two_classes_share_a_name() -> None:
    try:
        spec = ModelSpec("x", "x", ("crane", "crane", "cat"), Geometry.for_size(8))
        classifier = runtime.Classifier(spec, Always(), Candidate("x", "model.onnx", "ort-cpu", "fp32"))
    except house.BadModel:
        return
    (answer,) = classifier.predict(np.zeros((1, 8, 8, 3), np.uint8))
    assert sum(answer.probabilities.values()) == pytest.approx(1)


# tensorflow/hub#574, ageron/handson-ml#61, tensorflow/tpu#521
@pytest.mark.parametrize("names", [NAMES[:3], (*NAMES, "elk"), ("background", *NAMES)])
def test_another_number_of_names_than_logits_is_refused_though_the_file_leaves_it_open(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    said = bring(network(tmp_path / "net.onnx", scores="float[N, K] scores"), names=names)
    assert said.refused and "4" in said.last, said
    assert not brought(tmp_path / "net.onnx").exists()


# microsoft/onnxruntime#26584, Samsung/ONE#12087, davidsandberg/facenet#278
NORMED = {
    "batch norm": """
        maps = Conv <pads = [1, 1, 1, 1]> (photo, filters)
        normed, m, v = BatchNormalization <training_mode = 1> (maps, gamma, beta, mean, variance)
        live = Relu (normed)
        means = GlobalAveragePool (live)
        flat = Flatten (means)""",
    "mean of the batch": f"""{BODY.replace("flat", "own")}
        others = ReduceMean <axes = [0]> (own)
        flat = Sub (own, others)""",
}


@pytest.mark.parametrize("how", NORMED)
def test_a_photos_answer_does_not_depend_on_its_neighbours(how: str, photos: Path, tmp_path: Path) -> None:
    """Exported in training mode a batch norm takes its statistics from the batch."""
    random = np.random.default_rng(1)
    own = {name: random.normal(0, 1.5, 8) for name in ("gamma", "beta", "mean")} | {"variance": np.ones(8)}
    file = network(tmp_path / "train.onnx", body=NORMED[how], **own)
    said = bring(file)
    if said.refused:
        return
    assert said.status == 0, said
    first, second = photos / "ant" / "0.png", photos / "dog" / "0.png"
    with runtime.load(brought(file) / "model.onnx") as classifier:
        alone, beside = classifier(first).probabilities, classifier.classify([first, second])[0].probabilities
    assert beside == pytest.approx(alone, abs=0.001)


# onnx/onnx#5985
def with_branch(path: Path) -> Path:
    """A graph whose `If` uses a value of the outer graph in its branches, as TorchScript writes it."""
    model = onnx.load(network(path))
    nodes = model.graph.node
    at = next(number for number, node in enumerate(nodes) if node.op_type == "Flatten")
    nodes[at].output[0] = "before"
    branches = {}
    for name, operator in (("then_branch", "Identity"), ("else_branch", "Neg")):
        out = helper.make_tensor_value_info(name, 1, ["N", 8])
        branches[name] = helper.make_graph([helper.make_node(operator, ["before"], [name])], name, [], [out])
    nodes.insert(at + 1, helper.make_node("If", ["condition"], ["flat"], **branches))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


CONVOLVED = "c = Conv <pads = [1, 1, 1, 1]> ({0}, {1}) r = Relu (c) m = GlobalAveragePool (r)"
BRANCHES = {
    "fp32": f"{CONVOLVED.format('photo', 'filters')} o = Flatten (m)",
    "half": f"""
        h = Cast <to = 10> (photo) w = Cast <to = 10> (filters)
        {CONVOLVED.format("h", "w")} f = Flatten (m) o = Cast <to = 1> (f)""",
    "quantised": f"""
        q = QuantizeLinear (photo, tenth, middle) p = DequantizeLinear (q, tenth, middle)
        {CONVOLVED.format("p", "filters")} o = Flatten (m)""",
}


def with_layers_in_a_branch(path: Path, kind: str) -> Path:
    model = onnx.load(network(path))
    one = onnx.parser.parse_graph(f"one () => (float[N, 8] o) {{ {BRANCHES[kind]} }}")
    other = onnx.parser.parse_graph(f"other () => (float[N, 8] o) {{ {BRANCHES['fp32']} }}")
    gemm = model.graph.node[-1]
    branch = helper.make_node("If", ["condition"], ["flat"], then_branch=one, else_branch=other)
    del model.graph.node[:]
    model.graph.node.extend([branch, gemm])
    constants = {"condition": np.array(True), "tenth": np.float32(0.1), "middle": np.uint8(128)}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("kind", "words"), [("half", "computes c in float16"), ("quantised", "is quantised already")])
def test_what_a_branch_computes_in_another_format_is_refused(kind: str, words: str, tmp_path: Path) -> None:
    said = bring(with_layers_in_a_branch(tmp_path / "branch.onnx", kind))
    assert said.refused and words in said.last, said


def test_the_layers_of_a_branch_count(photos: Path, tmp_path: Path) -> None:
    file = with_layers_in_a_branch(tmp_path / "branch.onnx", "fp32")
    said = bring(file, data=photos)
    assert said.status == 0, said
    facts = {entry.key: entry.value for entry in onnx.load(brought(file) / "model.onnx").metadata_props}
    convolution = 24 * 24 * 8 * 3 * 3 * 3
    assert sorted(json.loads(facts["multiply_adds"]).values()) == [8 * 4, convolution, convolution]
    verdicts = {c.backend: c.verdict for c in Receipt.read(brought(file)).candidates if c.file == "model.onnx"}
    assert verdicts["ort-cpu"] == "pass", verdicts


def test_a_graph_with_a_branch_is_brought_in_or_refused(photos: Path, tmp_path: Path) -> None:
    said = bring(with_branch(tmp_path / "branch.onnx"), data=photos)
    assert said.status == 0 or said.refused, said


# microsoft/onnxruntime#20097, #17022, #10987: what is joined goes by another name in a profile
JOINED = {
    "keras": """
        hidden0 = MatMul (flat, inner)
        hidden1 = Add (hidden0, inner_bias)
        hidden = Relu (hidden1)
        dense = MatMul (hidden, outer)
        raw = Add (dense, bias)
        scores = Softmax (raw)""",
    "vgg": "hidden0 = Gemm (flat, inner, inner_bias) hidden = Relu (hidden0) scores = Gemm (hidden, outer, bias)",
    "attention": """
        three = Unsqueeze (flat, one)
        turned = Transpose <perm = [0, 2, 1]> (three)
        each = MatMul (three, turned)
        scaled = Mul (each, half)
        shares = Softmax <axis = -1> (scaled)
        mixed = MatMul (shares, three)
        back = Squeeze (mixed, one)
        scores = Gemm (back, matrix, bias)""",
}


@pytest.mark.parametrize("style", JOINED)
def test_layers_that_engines_join_pass_in_fp32(style: str, photos: Path, tmp_path: Path) -> None:
    file = network(tmp_path / f"{style}.onnx", JOINED[style], one=np.array([1]), half=np.array(0.5))
    said = bring(file, data=photos)
    assert said.status == 0, said
    verdicts = {
        c.backend: c.verdict for c in Receipt.read(brought(file)).candidates if c.precision == "fp32" and not c.variant
    }
    assert (verdicts["ort-cpu"], verdicts["openvino"]) == ("pass", "pass"), verdicts


# neuralmagic/sparseml#1972, jankrepl/mltype#33
def test_an_import_does_not_replace_a_model_that_was_trained_here(model: Path, tmp_path: Path) -> None:
    """Somebody's file may be called resnet18.onnx, as the network that was trained here."""
    file = network(tmp_path / "resnet18.onnx")
    own = house.linked(model, brought(file), "model.json", "model.onnx")
    said = bring(file)
    assert Receipt.read(own) == Receipt.read(model)
    assert said.refused and "was trained here" in said.last and "another --name" in said.last, said


def test_a_file_does_not_replace_another_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes from Hugging Face is always called model.onnx, and may be named by a path from where it lies."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        network(tmp_path / name / "model.onnx")
    first = tmp_path / "one" / "model.onnx"
    assert bring(first).status == 0
    before = Receipt.read(brought(first))
    monkeypatch.chdir(tmp_path / "other")
    said = bring(Path("model.onnx"), "--out", first.parent / "out", names=[name.upper() for name in NAMES])
    assert said.refused and str(first) in said.last and "another --name" in said.last, said
    assert Receipt.read(brought(first)) == before
    named = "--name", "the/other", "--out", first.parent / "out"
    assert bring(Path("model.onnx"), *named, names=[name.upper() for name in NAMES]).status == 0
    other = Receipt.read(brought(first).parent / "the_other").spec
    assert (other.name, other.architecture) == ("the_other", "the_other")
    assert other.classes == tuple(name.upper() for name in NAMES) and Receipt.read(brought(first)) == before
    monkeypatch.chdir(tmp_path / "one")
    assert bring(Path("model.onnx"), "--out", first.parent / "out").status == 0, "it is the same file"


def test_of_two_imports_of_one_name_at_a_time_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.foreign.source import ForeignModel

    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        network(tmp_path / place / "model.onnx")
    out, write_graphs = tmp_path / "out", ForeignModel.write_graphs

    def beside_another(*given: Any) -> None:
        monkeypatch.setattr(ForeignModel, "write_graphs", write_graphs)
        assert bring(tmp_path / "other" / "model.onnx", "--out", out).status == 0
        write_graphs(*given)

    monkeypatch.setattr(ForeignModel, "write_graphs", beside_another)
    said = bring(tmp_path / "one" / "model.onnx", "--out", out)
    kept = str(tmp_path / "other" / "model.onnx")
    assert said.refused and kept in said.last and "another --name" in said.last, said
    assert Receipt.read(out / "models" / "model").request["inputs"]["onnx"] == kept
    assert [folder.name for folder in (out / "models").iterdir()] == ["model"]


def test_an_export_does_not_replace_a_model_that_was_brought_in(tmp_path: Path) -> None:
    from export.model import write_model
    from export.settings import Settings

    file = network(tmp_path / "resnet18.onnx")
    assert bring(file).status == 0
    run: Any = SimpleNamespace(spec=None, validation=None, inputs={"validation.npz": "0" * 64})
    with pytest.raises(house.SajiError, match=f"brought in from {re.escape(str(file))}; move that folder away"):
        write_model(run, brought(file), Settings(), print)


def test_an_import_replaces_its_own_earlier_one(tmp_path: Path) -> None:
    file = network(tmp_path / "net.onnx")
    assert bring(file).status == 0
    said = bring(file, names=[name.upper() for name in NAMES])
    assert said.status == 0, said
    assert Receipt.read(brought(file)).spec.classes == ("ANT", "BEE", "CAT", "DOG")


# microsoft/Biodiversity#94, #658; python-pillow/Pillow#4678
def test_bad_photos_among_those_that_judge_are_named_and_left_out(tmp_path: Path) -> None:
    for number, label in enumerate(NAMES):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (30, 28), (60 * number, 200, 40 * i)).save(tmp_path / "set" / label / f"{i}.png")
    whole = io.BytesIO()
    Image.effect_noise((96, 80), 60).convert("RGB").save(whole, "JPEG")
    (tmp_path / "set" / "cat" / "cut.jpg").write_bytes(whole.getvalue()[:600])
    (tmp_path / "set" / "dog" / "empty.jpg").touch()
    file = network(tmp_path / "net.onnx")
    said = bring(file, data=tmp_path / "set")
    assert said.status == 0 and "cut.jpg" in said.err and "empty.jpg" in said.err, said
    assert json.loads((brought(file) / "model.json").read_text())["spec"]["validation"]["photos"] == 8


# --- forms that exporters write


def answers(folder: Path, images: np.ndarray) -> np.ndarray:
    with runtime.load(folder / "model.onnx") as classifier:
        return classifier.logits(images)


PICTURES = np.random.default_rng(3).integers(0, 256, (3, 24, 24, 3), np.uint8)


def with_function(path: Path) -> Path:
    """Its end is a local function, as PyTorch's exporter writes a module."""
    model = onnx.load(network(path))
    gemm = model.graph.node[-1]
    body = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("theirs", "Dense", ["x", "w", "b"], ["y"], [body], opset))
    gemm.op_type, gemm.domain = "Dense", "theirs"
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    onnx.save(model, path)
    return path


def with_function_of_another_opset(path: Path) -> Path:
    model = onnx.load(with_function(path))
    model.functions[0].opset_import[0].version = 13
    onnx.save(model, path)
    return path


def with_the_long_domain(path: Path) -> Path:
    """ "ai.onnx" is the standard's other name for "", also of single nodes."""
    model = onnx.load(network(path))
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
    onnx.save(model, path)
    return path


def with_channels_left_open(path: Path) -> Path:
    """As Hugging Face's optimum declares them."""
    return network(path, photo="float[batch_size, num_channels, 24, 24] photo")


def with_a_batch_of_minus_one(path: Path) -> Path:
    model = onnx.load(network(path))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, path)
    return path


def of_the_model_zoo(path: Path) -> Path:
    """IR 3, of which each initialiser is an input, too."""
    model = onnx.load(with_weights_among_inputs(path))
    model.ir_version, model.opset_import[0].version = 3, 11
    onnx.save(model, path)
    return path


def with_names_of_ours(path: Path) -> Path:
    """Its input is called images and a tensor inside logits, as in our contract."""
    model = onnx.load(network(path))
    for node in model.graph.node:
        for places in (node.input, node.output):
            places[:] = [{"photo": "images", "maps": "logits"}.get(name, name) for name in places]
    model.graph.input[0].name = "images"
    onnx.save(model, path)
    return path


def with_nodes_of_our_names(path: Path) -> Path:
    """As a last layer called logits."""
    model = onnx.load(network(path))
    for node, name in zip(model.graph.node, ("saji/Mul", "embed/x", "cam/top", "Flatten_8", "logits"), strict=True):
        node.name = name
    onnx.save(model, path)
    return path


def with_weights_among_inputs(path: Path) -> Path:
    model = onnx.load(network(path))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, 1, list(tensor.dims)))
    onnx.save(model, path)
    return path


FORMS = (with_function, with_function_of_another_opset, with_the_long_domain, with_channels_left_open)
MORE_FORMS = (with_a_batch_of_minus_one, of_the_model_zoo, with_weights_among_inputs, with_branch)
NAMES_OF_OURS = (with_names_of_ours, with_nodes_of_our_names)


@pytest.mark.parametrize("form", [*FORMS, *MORE_FORMS, *NAMES_OF_OURS])
def test_other_forms_of_one_network_answer_alike(form: Any, tmp_path: Path) -> None:
    said = bring(form(tmp_path / "form.onnx"))
    assert said.status == 0, said
    assert bring(network(tmp_path / "plain.onnx")).status == 0
    expected = answers(brought(tmp_path / "plain.onnx"), PICTURES)
    assert np.abs(answers(brought(tmp_path / "form.onnx"), PICTURES) - expected).max() < 1e-4


def test_no_file_is_lost_to_the_names_of_layers(photos: Path, tmp_path: Path) -> None:
    file = with_nodes_of_our_names(tmp_path / "named.onnx")
    assert bring(file, data=photos).status == 0
    verdicts = {c.file: c.verdict for c in Receipt.read(brought(file)).candidates if c.backend == "ort-cpu"}
    assert {verdicts[f"model{kind}.onnx"] for kind in ("", ".embed", ".cam")} == {"pass"}, verdicts


def test_a_heat_map_that_no_engine_opens_is_left_out(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import export.heatmap

    def opened(*_: object) -> None:
        raise house.BadModel("it is not opened")

    monkeypatch.setattr(export.heatmap, "Heatmap", opened)
    said = bring(network(tmp_path / "net.onnx"), data=photos)
    assert said.status == 0 and "model.cam.onnx is left out" in said.err, said
    assert not (brought(tmp_path / "net.onnx") / "model.cam.onnx").exists()


@pytest.mark.parametrize(
    "end",
    [
        *(f"last = {end} (raw) scores = Identity (last)" for end in ("LogSoftmax", "Softmax", "Identity")),
        "scores = Softmax (raw) unused = ArgMax (scores)",
        "last = Softmax (raw) scores = Dropout (last)",
        "maps4 = Reshape (raw, as_maps) last = Softmax <axis = 1> (maps4) scores = Flatten (last)",
    ],
)
def test_what_follows_the_logits_changes_no_probability(end: str, tmp_path: Path) -> None:
    file = network(tmp_path / "end.onnx", f"{RAW} {end}", as_maps=np.array([0, 4, 1, 1]))
    assert bring(file).status == 0
    assert bring(network(tmp_path / "plain.onnx")).status == 0
    both = [answers(brought(tmp_path / name), PICTURES) for name in ("end.onnx", "plain.onnx")]
    first, second = (ModelSpec("x", "x", NAMES).probabilities(logits) for logits in both)
    assert np.abs(first - second).max() < 1e-5


def test_blue_green_red_is_told(tmp_path: Path) -> None:
    assert bring(network(tmp_path / "bgr.onnx"), "--channels", "bgr").status == 0
    assert bring(network(tmp_path / "rgb.onnx")).status == 0
    turned = answers(brought(tmp_path / "rgb.onnx"), np.ascontiguousarray(PICTURES[..., ::-1]))
    assert np.abs(answers(brought(tmp_path / "bgr.onnx"), PICTURES) - turned).max() < 1e-4


ONE_PHOTO = "float[1, 3, 24, 24] photo"
AS_ONE = {
    "of convolutions alone": BODY,
    "sizes in full": BODY.replace("Flatten (means)", "Reshape (means, own)"),
    "the last size left over": BODY.replace("Flatten (means)", "Reshape <allowzero = 1> (means, one_row)"),
    "sizes as a layer": BODY.replace("Flatten (means)", "Reshape (means, written)").replace(
        "maps =", "written = Constant <value = int64[2] {1, 8}> () maps ="
    ),
    "windows of each photo": """
        maps = Conv <pads = [1, 1, 1, 1]> (photo, filters)
        windows = Reshape (maps, four)
        all = GlobalAveragePool (windows)
        mixed = Reshape (all, whole)
        means = ReduceMean <axes = [2], keepdims = 0> (mixed)
        flat = Flatten (means)""",
    "a token of the class": """
        maps = Conv <pads = [1, 1, 1, 1]> (photo, filters)
        rows = Reshape (maps, each_map)
        tokens = Transpose <perm = [0, 2, 1]> (rows)
        shown = Expand (token, like_one)
        both = Concat <axis = 1> (shown, tokens)
        mixed = Softmax <axis = 1> (both)
        spread = Mul (mixed, both)
        flat = ReduceMean <axes = [1], keepdims = 0> (spread)""",
}
SIZES = {
    **{"own": np.array([1, 8]), "one_row": np.array([1, -1]), "four": np.array([4, 8, 12, 12])},
    **{"whole": np.array([1, 8, 4]), "each_map": np.array([1, 8, 576]), "like_one": np.array([1, 1, 8])},
    **{"token": np.linspace(-1, 1, 8).reshape(1, 1, 8)},
}


# ultralytics' and PyTorch's own default: the batch of the example, which is one photo
@pytest.mark.parametrize("body", AS_ONE.values(), ids=AS_ONE)
def test_a_file_for_one_photo_is_brought_in_for_any_number(body: str, tmp_path: Path) -> None:
    file = network(tmp_path / "one.onnx", body=body, photo=ONE_PHOTO, scores="float[1, 4] scores", **SIZES)
    assert bring(file).status == 0
    given = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    photos = (PICTURES / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    alone = [given.run(None, {"photo": photo.transpose(2, 0, 1)[None]})[0] for photo in photos]
    assert len(alone) > 2 and np.ptp(alone) > 1e-3
    assert answers(brought(file), PICTURES) == pytest.approx(np.concatenate(alone), abs=1e-4)


def test_a_network_that_answers_next_to_nothing_is_no_logarithm(tmp_path: Path) -> None:
    """As Keras' networks do before they are trained."""
    matrix = 1e-12 * np.random.default_rng(0).normal(0, 1, (8, 4))
    assert bring(network(tmp_path / "untrained.onnx", matrix=matrix, bias=np.zeros(4))).status == 0


# What torch.onnx.export writes by default since PyTorch 2.9
def test_a_newer_opset_stays_as_it_is(tmp_path: Path) -> None:
    """A Gelu of opset 20 has no older version."""
    file = network(tmp_path / "new.onnx", body=BODY.replace("Relu", "Gelu"), opset=20, ir=10)
    assert bring(file).status == 0
    assert [entry.version for entry in onnx.load(brought(file) / "model.onnx").opset_import] == [20]
    assert "opset 20" in house.here("runtime", "show", str(brought(file))).out


HALVES = {"filters": (8, 3, 3, 3), "matrix": (8, 4), "bias": (4,)}
CONSTANTS = {
    **{"one_row": np.array([1, -1]), "own": np.array([1, 8]), "two": np.array([2, -1])},
    **{"nan": np.array(np.nan), "step": np.array(0.1), "zero": np.array(0, np.uint8)},
    **{"slim": np.ones((8, 1)), "slim_bias": np.ones(1), "bytes": np.ones((8, 4), np.uint8)},
}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"scores": "float16[N, 4] scores", "end": f"{RAW} scores = Cast <to = 10> (raw)"},
         "has the signature .* scores FLOAT16 .*; float32 photos .* are needed: export it in float32"),
        ({"scores": "int64[N] scores", "end": f"{RAW} scores = ArgMax <axis = 1, keepdims = 0> (raw)"},
         "has the signature .* scores INT64"),
        ({"photo": "float[N, 8] flat", "body": ""}, "has the signature flat .*, such as scikit-learn's, cannot be"),
        ({"scores": "float[N, 4] scores, float[N, 8] flat"}, "has the signature .* flat FLOAT"),
        ({"photo": "float[N, 3, 24, 24] photo, float[N, 3, 24, 24] second"}, "has the signature .* second FLOAT"),
        ({"photo": "float[N, 1, 24, 24] photo", "filters": np.zeros((8, 1, 3, 3))}, "of 1 colours and not of 3"),
        ({"photo": "float[N, 3, 24, 32] photo"}, "saji gives squares"),
        ({"end": f"{RAW} scores = Reshape (raw, one_row)"}, r"two photos with \[1, 8\] logits"),
        ({"body": BODY.replace("Flatten (means)", "Reshape (means, own)")}, "takes no batch of two .* dynamic batch"),
        ({"body": BODY.replace("Flatten (means)", "Reshape (means, two)")}, "export it anew, or give its --size"),
        ({"end": f"{RAW} noise = RandomNormalLike (raw) scores = Add (raw, noise)"}, "otherwise each time"),
        ({"end": f"{RAW} scores = Add (raw, nan)"}, "with NaN or infinity, from .* on"),
        ({"end": f"{RAW} q = QuantizeLinear (raw, step, zero) scores = DequantizeLinear (q, step, zero)"},
         r"is quantised already \(QuantizeLinear\); bring in the FP32 file"),
        ({"end": f"small = DequantizeLinear (bytes, step, zero) {LINEAR.replace('matrix', 'small')}"},
         r"is quantised already \(DequantizeLinear\); bring in the FP32 file"),
        ({"body": "half = Cast <to = 10> (photo)" + BODY.replace("(photo,", "(half,"),
          "end": f"{RAW.replace('raw', 'low')} scores = Cast <to = 1> (low)",
          **{name: np.ones(shape, np.float16) for name, shape in HALVES.items()}},
         "computes maps in float16; export it in float32"),
        ({"end": "scores = Gemm (flat, slim, slim_bias)", "scores": "float[N, 1] scores"}, "has 1 logits"),
    ],
)  # fmt: skip
def test_what_is_no_classifier_of_photos_is_refused_with_its_signature(
    asked: dict[str, Any], words: str, tmp_path: Path
) -> None:
    said = bring(network(tmp_path / "net.onnx", **CONSTANTS | asked))
    assert said.refused and re.search(words, said.last), said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mean", *["123.7"] * 3], "--mean 123.7 is above white, which is 1 by --scale; try --scale 1"),
        (["--scale", "1"], "--std 0.25 is far below white, which is 255"),
        (["--std", *["255"] * 3], "--std 255 is above white, which is 1 by --scale; try --scale 1"),
        (["--std", "0", "0", "0"], "--std and --scale are to be above 0"),
        (["--mean", "nan", "0", "0"], "--mean: nan is no finite number"),
        (["--resize", "10"], "cuts 24 pixels out of 10"),
        (["--resize", "-40"], "cuts 24 pixels out of -40"),
        (["--resize", "9999"], "cuts 24 pixels out of 9999"),
        (["--precisions", "int8"], "leave --precisions out"),
    ],
)
def test_what_a_file_cannot_be_brought_in_by_is_refused_before_anything_is_written(
    flags: list[str], words: str, tmp_path: Path
) -> None:
    said = bring(network(tmp_path / "net.onnx"), *flags)
    assert said.refused and words in said.last, said
    assert not brought(tmp_path / "net.onnx").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04\x14\0", "a zip archive"),
        (b"\n<!DOCTYPE html><html>", "a page of the web"),
        (b"\xef\xbb\xbf\r\n<html lang=en>", "a page of the web"),
        (b'<?xml version="1.0"?>\n<!-- made by ovc -->\n<net name="m" version="11">', "a model of OpenVINO"),
        (
            b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>',
            "a text (<?xml … Denied",
        ),
        (b'{"error":"Repository not found"}', "a text ( … Repository not found … ; download the file itself"),
        ("Недействительный ключ".encode()[:-1], "a text (Недействительный клю"),
        (b" \0\0\0TFL3", "of TensorFlow Lite"),
        (b"\x18\0\0\0ORTM\0\0", "in ONNX Runtime's own format … give the ONNX file that it was made from"),
        (b"ftrt\0\0", "an engine of TensorRT"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as those of Keras are; export the network to ONNX"),
        (b'\x40\0\0\0\0\0\0\0{"weight":{}}', "weights without a network (safetensors)"),
        (pickle.dumps({"a": 1}, 2), "a pickle"),
        (pickle.dumps([1]), "a pickle"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a pickle"),  # of torch.save, before its zip
        (gzip.compress(b"\x08\x08"), "packed (gzip); unpack it first"),
        (b"net.onnx".ljust(257, b"\0") + b"ustar\0", "packed (tar)"),
        (b"", "an empty file; fetch it again"),
        (bytes(5000), "zeros, as a download that broke off leaves them"),
        (None, "is not there"),
    ],
)
def test_what_is_no_onnx_is_called_by_its_name(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "net.onnx").write_bytes(content)
    said = bring(tmp_path / "net.onnx")
    assert said.refused and all(part in said.last for part in words.split(" … ")), said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.onnx")
    assert "is no regular file" in bring(tmp_path / "net.onnx").last


def test_a_name_that_is_no_text_is_brought_in(photos: Path, tmp_path: Path) -> None:
    file = network(tmp_path / "net.onnx").rename(tmp_path / os.fsdecode(b"caf\xe9.onnx"))
    said = bring(file, data=photos)
    assert said.status == 0, said


def test_a_folder_of_somebody_is_not_replaced_by_an_import(tmp_path: Path) -> None:
    file = network(tmp_path / "mine.onnx")
    brought(file).mkdir(parents=True)
    (brought(file) / "thesis.txt").write_text("years of work")
    said = bring(file)
    assert said.refused and "was not written by saji" in said.last and (brought(file) / "thesis.txt").is_file(), said


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_names_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    file, names = network(tmp_path / "net.onnx"), tmp_path / "names.txt"
    names.write_text("ant\ncrème\n\ncat\ndog\n", encoding=encoding)
    said = bring(file, "--classes", names)
    assert said.status == 0, said
    assert Receipt.read(brought(file)).spec.classes == ("ant", "crème", "cat", "dog")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_class_is_the_folder_whose_name_looks_the_same(form: Any, tmp_path: Path) -> None:
    """An accent may be a part of its letter or stand behind it, as macOS writes names."""
    names = ("crème", "bee", "cat", "dog")
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    for label in names:
        folder = tmp_path / "set" / unicodedata.normalize(other, label)
        folder.mkdir(parents=True)
        house.drawn(len(label), path=folder / "0.png")
    file = network(tmp_path / "net.onnx")
    said = bring(file, names=[unicodedata.normalize(form, name) for name in names], data=tmp_path / "set")
    assert said.status == 0, said


def test_two_classes_that_look_the_same_are_refused(tmp_path: Path) -> None:
    twice = [unicodedata.normalize(form, "crème") for form in ("NFC", "NFD")]
    said = bring(network(tmp_path / "net.onnx"), names=[*twice, "cat", "dog"])
    assert said.refused and "2 times (lines 1, 2)" in said.last, said


def test_joiners_and_spaces_that_do_not_break_are_parts_of_names(photos: Path, tmp_path: Path) -> None:
    names = ("خورش\u200cقیمه", "crème\u00a0brûlée", "क्\u200dष", "dog")
    for label, folder in zip(names, NAMES, strict=True):
        (tmp_path / "set" / label).mkdir(parents=True)
        shutil.copy(photos / folder / "0.png", tmp_path / "set" / label)
    file = network(tmp_path / "net.onnx")
    assert bring(file, names=names, data=tmp_path / "set").status == 0
    said = house.here("runtime", "show", brought(file))
    assert said.status == 0 and all(name in said.out for name in names), said


@pytest.mark.parametrize("which", ["input", "output"])
def test_a_shape_that_is_not_told_is_asked_for(which: str, tmp_path: Path) -> None:
    model = onnx.load(network(tmp_path / "net.onnx"))
    (value,) = getattr(model.graph, which)
    value.type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "net.onnx")
    said = bring(tmp_path / "net.onnx")
    assert said.refused and f"does not say the shape of {value.name}" in said.last, said


@pytest.mark.parametrize("length", [241, 246])
def test_a_name_that_is_too_long_for_a_folder_is_refused(length: int, tmp_path: Path) -> None:
    file = network(tmp_path / f"{'n' * length}.onnx")
    said = bring(file)
    assert said.refused and file.stem in said.last and said.last.endswith("give a shorter --name"), said


@pytest.mark.parametrize("content", [b"ant\ncr\xe8me\ncat\ndog", "a\nb\nc\nd".encode("utf-16-le"), b"a\n\x1b[2J\nc\nd"])
def test_names_that_cannot_be_read_or_printed_are_one_sentence(content: bytes, tmp_path: Path) -> None:
    file, names = network(tmp_path / "net.onnx"), tmp_path / "names.txt"
    names.write_bytes(content)
    said = bring(file, "--classes", names)
    assert said.refused and "names.txt" in said.last and said.last.isprintable(), said
