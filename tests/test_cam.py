"""Heat maps: what the map says adds up to the logit, or there is no map; and it lies where it belongs on the photo."""

import asyncio
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw
from test_demo import colour_classifier, exported, serving_of
from test_foreign import foreign

from demo.page.tabs.classify import _heatmap, heat_of, look
from demo.service.limits import Limits
from demo.service.problem import Problem
from demo.service.queue import Serving
from export.foreign.source import import_foreign
from export.graph import OPSET, save_onnx
from export.heatmap import add_map, check_heatmap, linear_head, write_heatmap
from runtime.backends import open_backend
from runtime.candidate import run_all
from runtime.errors import BadModel, SajiError
from runtime.evaluation import ValidationSet
from runtime.gate import GATES
from runtime.heatmap import FILE, Heat, Heatmap
from runtime.preprocess import decode, pixels
from runtime.receipt import Receipt, file_facts
from runtime.spec import Geometry, ModelSpec

SPEC = ModelSpec("tiny", "tiny", tuple("abcde"), Geometry(32, 32))
CHANNELS = 6
GEMM = "logits = Gemm (flat, weight, bias)"
LINEAR = {
    "pool, linear": f"averages = GlobalAveragePool (maps) flat = Flatten (averages) {GEMM}",
    "mean without sides, linear without bias": "flat = ReduceMean <keepdims = 0> (maps, sides) "
    "logits = MatMul (flat, matrix)",
    "mean, batch norm, linear": "averages = ReduceMean (maps, sides) found = Flatten (averages) "
    f"flat = BatchNormalization (found, scale, shift, shift, scale) {GEMM}",
    "two linear layers": "averages = GlobalAveragePool (maps) found = Flatten (averages) flat = MatMul (found, square) "
    + GEMM,
    "maps of the classes": "classes = Conv (maps, planes) averages = GlobalAveragePool (classes) "
    "logits = Flatten (averages)",
}
OTHER = {
    "no average": ("flat = Flatten (maps) logits = MatMul (flat, wide)", "not come from an average"),
    "average on the way": (
        "averages = GlobalAveragePool (maps) gated = Mul (maps, averages) flat = Flatten (gated) "
        "logits = MatMul (flat, wide)",
        "depend on more than the average",
    ),
    "activation": (
        f"averages = GlobalAveragePool (maps) found = Flatten (averages) flat = HardSwish (found) {GEMM}",
        "more than linear layers",
    ),
}


def network(head: str, spec: ModelSpec = SPEC) -> onnx.ModelProto:
    """A convolution to maps of 8×8 with random filters, and a head in ONNX's text form."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": {OPSET}]>
        tiny (uint8[batch, 32, 32, 3] images) => (float[batch, {len(spec.classes)}] logits)
        {{
            numbers = Cast <to = 1> (images)
            planes_first = Transpose <perm = [0, 3, 1, 2]> (numbers)
            found_maps = Conv <strides = [4, 4], kernel_shape = [4, 4]> (planes_first, filters)
            maps = Relu (found_maps)
            {head}
        }}""")
    n = len(spec.classes)
    shapes = {"filters": (CHANNELS, 3, 4, 4), "weight": (CHANNELS, n), "bias": (n,), "matrix": (CHANNELS, n)}
    shapes |= {"square": (CHANNELS, CHANNELS), "planes": (n, CHANNELS, 1, 1), "wide": (64 * CHANNELS, n)}
    random = np.random.default_rng(0)
    values = {name: random.normal(0, 0.05, shape) for name, shape in shapes.items()}
    values |= {"scale": random.uniform(0.5, 2, CHANNELS), "shift": random.normal(0, 1, CHANNELS)}
    used = {name for node in model.graph.node for name in node.input}
    tensors = {name: value.astype(np.float32) for name, value in values.items()} | {"sides": np.array([2, 3])}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(tensors[name], name) for name in tensors if name in used
    )
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def written(folder: Path, head: str) -> ValidationSet:
    """`model.onnx` with this head, and 40 photos of coloured noise with its own logits as the checkpoint's."""
    save_onnx(network(head), SPEC, folder / "model.onnx")
    random = np.random.default_rng(1)
    images = (random.integers(0, 256, (40, 32, 32, 3)) * random.random((40, 1, 1, 3))).astype(np.uint8)
    engine = open_backend("ort-cpu", folder / "model.onnx", "fp32")
    logits = run_all(engine, images, 1)
    engine.close()
    return ValidationSet(images, logits.argmax(1), tuple(map(str, range(40))), logits)


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize("head", LINEAR.values(), ids=LINEAR)
def test_the_mean_of_a_map_and_the_bias_are_the_logit(head: str, tmp_path: Path) -> None:
    validation = written(tmp_path, head)
    checks, why = write_heatmap(tmp_path, SPEC, validation, silent)
    assert [(check.file, check.verdict, check.servable) for check in checks] == [(FILE, "pass", False)] and not why
    graph = onnx.load(tmp_path / FILE).graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["logits", "cam"]
    logits, maps = Heatmap(tmp_path / FILE, SPEC).maps(validation.images)
    assert maps.dtype == np.float32 and maps.shape == (40, 8, 8) and len(set(logits.argmax(1))) > 1
    np.testing.assert_allclose(logits, validation.logits, rtol=1e-4, atol=1e-4)
    bias = linear_head(onnx.load(tmp_path / "model.onnx")).bias
    found = maps.mean(axis=(1, 2)) + bias[logits.argmax(1)]
    np.testing.assert_allclose(found, logits.max(axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("head", "words"), OTHER.values(), ids=OTHER)
def test_a_head_that_is_not_linear_gets_no_map_and_the_reason(head: str, words: str, tmp_path: Path) -> None:
    said: list[str] = []
    checks, why = write_heatmap(tmp_path, SPEC, written(tmp_path, head), said.append)
    assert not checks and len(why) == 1 and words in why[0] and why[0] in said[0] and not (tmp_path / FILE).exists()


def spoilt(folder: Path, name: str, change: str) -> Path:
    """A copy of the heat map's file in which the values of one tensor change: "turned" (by one class) or "larger"."""
    model = onnx.load(folder / FILE)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(tensor)
    values = np.roll(values, 1, axis=0) if change == "turned" else values * np.float32(1.1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, folder / "spoilt.onnx")
    return folder / "spoilt.onnx"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("cam/weight", "turned", "the map does not add up to its logit"),
        ("cam/weight", "larger", "the map does not add up to its logit"),
        ("filters", "larger", "shift"),
    ],
)
def test_a_map_of_other_weights_is_refused(name: str, change: str, words: str, tmp_path: Path) -> None:
    validation = written(tmp_path, LINEAR["pool, linear"])
    write_heatmap(tmp_path, SPEC, validation, silent)
    head = linear_head(onnx.load(tmp_path / "model.onnx"))
    for path, verdict in ((tmp_path / FILE, "pass"), (spoilt(tmp_path, name, change), "fail")):
        found = check_heatmap(path, head, SPEC, validation, GATES["fp32"])
        assert found.verdict == verdict, found.reasons
    assert words in found.reasons[0]


def test_a_map_that_does_not_pass_is_not_shipped(tmp_path: Path) -> None:
    validation = written(tmp_path, LINEAR["pool, linear"])
    assert validation.logits is not None
    checks, _ = write_heatmap(tmp_path, SPEC, replace(validation, logits=validation.logits[:, ::-1]), silent)
    assert checks[0].verdict == "fail" and checks[0].reasons and not (tmp_path / FILE).exists()


def test_the_documents_example_lays_the_map_over_a_photo(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [snippet] = re.findall(r"```python\n([^`]*Heatmap[^`]*)```", (ROOT / "docs" / "serve.md").read_text("utf-8"))
    shutil.copytree(model, tmp_path / "artifacts" / "models" / "resnet34")
    Image.new("RGB", (70, 50), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    assert Image.open("looked_at.png").size == (70, 50)


def test_the_receipt_lists_the_map_and_nothing_else_is_opened(model: Path, tmp_path: Path) -> None:
    receipt = Receipt.read(model)
    check = next(candidate for candidate in receipt.candidates if candidate.file == FILE)
    assert (check.verdict, check.variant, check.servable) == ("pass", "cam", False) and FILE in receipt.files
    assert check.figures.photos == len(ValidationSet.load(model / "validation.npz").labels)
    for name in ("model.json", FILE):
        shutil.copy(model / name, tmp_path)
    photo = model / "golden.jpg"
    assert Heatmap.of_model(tmp_path).of(pixels(photo, receipt.spec.geometry)).label in receipt.spec.classes
    data = bytearray((tmp_path / FILE).read_bytes())
    data[len(data) // 2] ^= 1  # a bit of some weight
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(BadModel, match="its sha256 differs"):
        Heatmap.of_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"skipped": (f"{FILE} is left out: it has no average",)}, "it has no average"),
        ({"candidates": ("failed",)}, "shift 1 is above 0.001"),
        ({}, "exported without; type: make export"),
    ],
)
def test_a_model_without_a_map_says_why(changes: dict, words: str, model: Path, tmp_path: Path) -> None:
    receipt = Receipt.read(model)
    if "candidates" in changes:
        failed = next(candidate for candidate in receipt.candidates if candidate.file == FILE)
        changes = {"candidates": (replace(failed, verdict="fail", reasons=("shift 1 is above 0.001",)),)}
    shutil.copy(model / "model.onnx", tmp_path)
    files = file_facts(tmp_path, ["model.onnx"])
    replace(receipt, **{"candidates": (), "skipped": (), **changes}, files=files).write(tmp_path)
    with pytest.raises(SajiError, match=words) as error:
        Heatmap.of_model(tmp_path)
    assert "\n" not in str(error.value)


def test_the_receipt_says_why_a_network_has_no_map(sample: Path, tmp_path: Path) -> None:
    receipt = import_foreign(replace(foreign(tmp_path, pool="GlobalMaxPool"), data=sample), tmp_path, silent)
    assert FILE not in receipt.files and not [c for c in receipt.candidates if c.file == FILE]
    folder = tmp_path / "models" / "their_net"
    assert "do not come from an average" in (folder / "parity.md").read_text()
    with pytest.raises(SajiError, match="do not come from an average over its last maps"):
        Heatmap.of_model(folder)


@pytest.fixture(scope="module")
def brightness(tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    """A network whose class "bright" is the brightness of each 4×4 square."""
    spec = replace(SPEC, classes=("bright", "dark"), geometry=Geometry(32, 36))
    graph = network(LINEAR["pool, linear"], spec)
    for tensor in graph.graph.initializer:
        fill = {"filters": 0.01, "weight": [1, -1], "bias": [0, 1]}[tensor.name]
        values = np.broadcast_to(fill, list(tensor.dims)).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    add_map(graph, linear_head(graph), spec)
    path = tmp_path_factory.mktemp("brightness") / FILE
    onnx.save(graph, path)
    return Heatmap(path, spec)


def with_lamp(size: tuple[int, int], at: tuple[int, int], radius: int) -> Image.Image:
    photo = Image.new("RGB", size, (20, 20, 20))
    x, y = at
    ImageDraw.Draw(photo).ellipse((x - radius, y - radius, x + radius, y + radius), fill=(250, 240, 200))
    return photo


@pytest.mark.parametrize("at", [(30, 40), (130, 40), (40, 125), (120, 120)])
def test_the_map_peaks_on_the_one_bright_object(at: tuple[int, int], brightness: Heatmap) -> None:
    found = brightness.of(pixels(with_lamp((160, 160), at, 12), brightness.spec.geometry))
    heat = found.heat
    assert found.label == "bright" and heat.shape == (32, 32) and heat.dtype == np.float32
    assert heat.min() >= 0 and heat.max() == pytest.approx(1)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    left = (160 - 160 * 32 / 36) / 2  # of the crop, in the photo
    there = (left + (column + 0.5) * 160 / 36, left + (row + 0.5) * 160 / 36)
    assert np.abs(np.subtract(there, at)).max() < 12


def test_the_map_lies_on_the_upright_photo_and_outside_the_crop_nothing_changes(
    brightness: Heatmap, tmp_path: Path
) -> None:
    upright = with_lamp((180, 320), (150, 200), 14)  # a portrait, as a phone stores it: lying, and to be turned
    orientation = Image.Exif()
    orientation[0x0112] = 6
    path = tmp_path / "portrait.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=orientation)
    assert decode(path).size == upright.size
    shown = brightness.of(pixels(path, brightness.spec.geometry)).over(decode(path))
    before, after = np.asarray(upright, int), np.asarray(shown, int)
    assert after.shape == (320, 180, 3)
    changed = np.argwhere((before != after).any(axis=2))
    side = 180 * 32 / 36  # the crop is this large and in the middle
    assert changed.min(axis=0).tolist() == [(320 - side) / 2, (180 - side) / 2]
    assert changed.max(axis=0).tolist() == [(320 + side) / 2 - 1, (180 + side) / 2 - 1]
    coloured = 2 * after[80:240, 10:170] - before[80:240, 10:170]  # half photo, half colour
    row, column = np.unravel_index(coloured.sum(axis=2).argmax(), (160, 160))
    assert np.hypot(row + 80 - 200, column + 10 - 150) < 14


def test_without_evidence_the_map_is_dark() -> None:
    heat = Heat("a", np.full((4, 4), -1, np.float32), Geometry(32, 32)).heat
    assert heat.shape == (32, 32) and not heat.any()


# In the demo


@pytest.fixture
def served(brightness: Heatmap, tmp_path: Path) -> Iterator[Serving]:
    """A demo that serves a model whose folder holds the map of brightness."""
    folder = tmp_path / "models" / "resnet34"
    folder.mkdir(parents=True)
    shutil.copy(brightness.path, folder / FILE)
    exported(folder, files=[FILE], spec=brightness.spec)
    with serving_of(colour_classifier(), tmp_path, Limits(pixels=100_000)) as serving:
        yield serving


def test_a_visitor_sees_the_map_over_the_photo(served: Serving, tmp_path: Path) -> None:
    with_lamp((200, 300), (140, 200), 12).save(tmp_path / "photo.png")
    seen = asyncio.run(look(served, (tmp_path / "photo.png").read_bytes()))
    picture = Image.open(io.BytesIO(seen.jpeg))
    assert (seen.label, picture.format, picture.size) == ("bright", "JPEG", (200, 300))
    html = heat_of(seen, "<bright>", "en")
    assert 'alt="the photo under a heat map of what speaks for &lt;bright&gt;"' in html
    assert "persegi" in heat_of(seen, "terang", "id")


def refusal(serving: Serving, photo: Any) -> tuple[int, str]:
    with pytest.raises(Problem) as problem:
        asyncio.run(look(serving, photo))
    return problem.value.status_code, problem.value.detail


def test_a_visitor_is_told_why_there_is_no_map(served: Serving, tmp_path: Path) -> None:
    with_lamp((400, 300), (140, 200), 12).save(tmp_path / "large.png")
    assert refusal(served, (tmp_path / "large.png").read_bytes())[0] == 413
    assert refusal(served, b"no picture")[0] == 422
    folder = tmp_path / "models" / "resnet34"
    receipt = Receipt.read(folder)
    spoilt(folder, "cam/weight", "larger").replace(folder / FILE)
    _heatmap.cache_clear()  # as after another deployment
    status, detail = refusal(served, b"")
    assert status == 404 and "cannot be opened" in detail and str(tmp_path) not in detail
    files = {name: facts for name, facts in receipt.files.items() if name != FILE}
    replace(receipt, files=files, skipped=(f"{FILE} is left out: its head is not linear",)).write(folder)
    status, detail = refusal(served, b"")
    assert status == 404 and "its head is not linear" in detail


def test_a_map_is_never_of_another_network_than_the_one_that_answers(served: Serving, tmp_path: Path) -> None:
    """Which an export beside the service put into the folder."""
    with_lamp((200, 300), (140, 200), 12).save(tmp_path / "photo.png")
    photo = (tmp_path / "photo.png").read_bytes()
    before = asyncio.run(look(served, photo))
    exported(tmp_path / "models" / "resnet34", files=[FILE], by="another network {}")
    assert asyncio.run(look(served, photo)) == before, "what was opened goes on"
    _heatmap.cache_clear()
    assert refusal(served, photo) == (
        404,
        "resnet34 was exported again after it was chosen; choose again with: make bench",
    )
