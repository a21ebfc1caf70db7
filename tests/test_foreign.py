"""A classifier of another project under our contract, judged against itself; what does not fit is one sentence."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from PIL import Image
from torchvision import transforms

import runtime
from export import __main__ as exporting
from export.foreign.answers import Network
from export.foreign.flags import say_what_fits_better
from export.foreign.source import ForeignModel, import_foreign
from export.graph import OPSET, check_contract
from export.settings import Foreign
from runtime.errors import SajiError
from runtime.evaluation import ValidationSet
from runtime.preprocess import fit, pixels
from runtime.receipt import Receipt
from runtime.spec import Geometry
from training.photos.drawn import DISHES, draw_dish

CLASSES = ("bakso", "gado_gado", "nasi_goreng", "rendang", "soto_ayam")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.3, 0.35)
PHOTOS = {"nchw": "N, 3, 24, 24", "nhwc": "N, 24, 24, 3"}
FIRST = {"nchw": "Identity", "nhwc": "Transpose <perm = [0, 3, 1, 2]>"}


def foreign_file(path: Path, layout: str = "nchw", softmax: bool = True, opset: int = 13, **changes: Any) -> Path:
    """A small network with names of its own: a 3×3 convolution, the mean of each map, five classes."""
    photos = changes.get("photos", f"float[{PHOTOS[layout]}]")
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        theirs ({photos} images) => (float[{changes.get("batch", "N")}, 5] scores)
        {{
            photo = {FIRST[layout]} (images)
            maps = Conv <pads = [1, 1, 1, 1]> (photo, filters)
            means = {changes.get("pool", "GlobalAveragePool")} (maps)
            flat = Flatten (means)
            logits = MatMul (flat, weights)
            scores = {"Softmax <axis = 1>" if softmax else "Identity"} (logits)
        }}""")
    random = np.random.default_rng(0)
    for name, shape in (("filters", (8, 3, 3, 3)), ("weights", (8, 5))):
        values = random.normal(0, 2, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return path


def foreign(folder: Path, **changes: Any) -> Foreign:
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    file = foreign_file(folder / "their net.onnx", **changes)
    return Foreign(file, folder / "classes.txt", MEAN, STD, layout=changes.get("layout", "nchw"))


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize(("layout", "opset"), [("nchw", OPSET), ("nhwc", 9)])
def test_a_foreign_file_is_wrapped_and_judged_against_itself(
    layout: str, opset: int, sample: Path, tmp_path: Path
) -> None:
    asked = replace(foreign(tmp_path, layout=layout, opset=opset), data=sample)
    receipt = import_foreign(asked, tmp_path, silent)
    folder = tmp_path / "models" / "their_net"
    check_contract(onnx.load(folder / "model.onnx"), receipt.spec)
    verdicts = {(c.backend, c.precision, c.variant): c.verdict for c in Receipt.read(folder).candidates}
    assert {verdicts[engine, "fp32", ""] for engine in ("ort-cpu", "openvino")} == {"pass"}
    assert verdicts["ort-cpu", "fp32", "embed"] == verdicts["ort-cpu", "fp32", "cam"] == "pass"
    photo = next((sample / "rendang").glob("*.jpg"))
    x = (pixels(photo, Geometry.for_size(24, "full"))[None] / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    x = x.transpose(0, 3, 1, 2) if layout == "nchw" else x
    theirs = onnxruntime.InferenceSession(asked.onnx, providers=["CPUExecutionProvider"]).run(None, {"images": x})[0][0]
    with runtime.load(folder) as classifier:  # their file ends in a softmax, ours in logits: the answers are the same
        answer = classifier(photo).probabilities
    assert [answer[name] for name in CLASSES] == pytest.approx(theirs.tolist(), abs=1e-4)
    assert len(ValidationSet.load(folder / "validation.npz").labels) == receipt.spec.validation["photos"] == 80
    origin = {"onnx": {"name": str(asked.onnx), "sha256": receipt.checkpoint_sha256, "seen": "unknown"}}
    assert Receipt.read(folder).spec.data["started_from"] == origin, "it may have been trained on these photos"


@pytest.mark.parametrize("crop", ["center", "squash"])
@pytest.mark.parametrize(("interpolation", "theirs"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")])
def test_a_foreign_network_sees_photos_as_where_it_was_trained(
    interpolation: Any, theirs: str, crop: Any, sample: Path, tmp_path: Path
) -> None:
    """By torchvision's transforms, on a large photo whose resized sides and margins are no whole pixels."""
    asked = replace(foreign(tmp_path, opset=OPSET), data=sample, crop=crop, interpolation=interpolation)
    import_foreign(asked, tmp_path, silent)
    draw_dish(DISHES[0], seed=3, size=700).resize((1283, 855)).save(tmp_path / "photo.jpg")
    resize = transforms.Resize((24, 24) if crop == "squash" else 27, transforms.InterpolationMode[theirs])
    expected = np.asarray(transforms.CenterCrop(24)(resize(Image.open(tmp_path / "photo.jpg"))))
    seen = pixels(tmp_path / "photo.jpg", Receipt.read(tmp_path / "models" / "their_net").spec.geometry)
    assert np.abs(seen.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resize": 20}, "it cuts 24 pixels out of 20"),
        ({"interpolation": "bicubic", "antialias": False}, "it resizes by bicubic without antialias, which only"),
    ],
)
def test_a_geometry_that_is_none_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SajiError, match=f"{words}.*; give other flags"):
        import_foreign(replace(foreign(tmp_path), **changes), tmp_path, silent)


def test_without_photos_nothing_of_it_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    asked = foreign(tmp_path, softmax=False)
    numbers = [*map(str, MEAN)], [*map(str, STD)]
    line = ["--onnx", str(asked.onnx), "--classes", str(asked.classes), "--mean", *numbers[0], "--std", *numbers[1]]
    monkeypatch.setattr("sys.argv", ["export", *line, "--out", str(tmp_path)])
    exporting.main()
    assert '"archs": ["their_net"], "failed": []' in capsys.readouterr().out
    folder = tmp_path / "models" / "their_net"
    assert {candidate.verdict for candidate in Receipt.read(folder).candidates} == {"unchecked"}
    with pytest.raises(SajiError, match="verdict is unchecked: there were no photos to check it by"):
        runtime.load(folder)


def with_external_data(asked: Foreign, location: str) -> Foreign:
    model = onnx.load(asked.onnx)
    onnx.external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, asked.onnx)
    model = onnx.load(asked.onnx, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    Path(asked.onnx).write_bytes(model.SerializeToString())
    return asked


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"photos": "float[4, 3, 24, 24]", "batch": "4"},
            "takes a fixed batch of 4 .*export it anew with a dynamic batch",
        ),
        ({"photos": "float[N, 3, 24, 20]"}, r"takes photos of \[3, 24, 20\]; saji gives squares"),
        ({"photos": "float16[N, 3, 24, 24]"}, "breaks a rule of ONNX|export it in float32"),
        ({"photos": "float[N, 3, 24, 24] other, float[N, 3, 24, 24]"}, "has the signature other FLOAT"),
        ({"opset": 99}, "is not run by ONNX Runtime|breaks a rule of ONNX"),
    ],
)
def test_a_foreign_graph_that_does_not_fit_is_one_sentence(changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(SajiError, match=words) as error:
        import_foreign(foreign(tmp_path, **changes), tmp_path, silent)
    assert "\n" not in str(error.value) and not (tmp_path / "models").exists()


def test_more_weights_than_an_onnx_file_takes_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rest of them beside it, as exporters write such a graph."""
    asked = with_external_data(foreign(tmp_path), "weights.bin")
    monkeypatch.setattr("runtime.spec.MOST_WEIGHTS", 300)
    with pytest.raises(SajiError, match=r"net.onnx has 0.00 GB of weights, and one ONNX file takes 0.00 GB; choose a"):
        import_foreign(asked, tmp_path, silent)


def test_foreign_files_beside_the_graph_that_do_not_fit_are_one_sentence(sample: Path, tmp_path: Path) -> None:
    asked = foreign(tmp_path)
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    (tmp_path / "others.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "half.onnx").write_bytes(Path(asked.onnx).read_bytes()[:600])
    cases = [
        (replace(asked, std=None), "a foreign model needs --std R G B, too; see --help"),
        (replace(asked, classes=tmp_path / "few.txt"), "names 2 classes, but .* has 5 logits"),
        (replace(asked, classes=tmp_path / "others.txt", data=sample), "has the labels bakso, .*, the model a, b"),
        (replace(asked, onnx=tmp_path / "half.onnx"), "cannot be read as ONNX"),
        (replace(asked, size=32), "give the --layout and square --size"),
        (replace(asked, layout="nhwc"), "by --layout nhwc of 24 colours .* give the --layout that fits it"),
    ]
    (tmp_path / "weights.bin").write_bytes(bytes(10_000))
    for name, location in (("gone", "gone.bin"), ("outside", "../weights.bin")):
        (tmp_path / name).mkdir()
        cases.append(
            (with_external_data(foreign(tmp_path / name), location), "cannot be read as ONNX .*(gone|weights).bin")
        )
    for wrong, words in cases:
        with pytest.raises(SajiError, match=words) as error:
            import_foreign(wrong, tmp_path, silent)
        assert "\n" not in str(error.value) and not list(tmp_path.glob("models/*")), words


def test_probabilities_passed_off_as_logits_are_refused(tmp_path: Path) -> None:
    asked = foreign(tmp_path)
    model = onnx.load(asked.onnx)
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(onnx.helper.make_node("Relu", ["inner"], ["scores"]))
    onnx.save(model, asked.onnx)
    with pytest.raises(SajiError, match="answers with probabilities, not logits"):
        import_foreign(asked, tmp_path, silent)


def test_a_graph_that_only_looks_dynamic_is_refused_and_the_earlier_import_stays(tmp_path: Path) -> None:
    asked = foreign(tmp_path)
    before = import_foreign(asked, tmp_path, silent)
    model = onnx.load(asked.onnx)
    shape = onnx.numpy_helper.from_array(np.array([1, 8], np.int64), "one_photo")
    model.graph.initializer.append(shape)
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    flatten.op_type = "Reshape"
    flatten.input.append("one_photo")
    onnx.save(model, asked.onnx)
    with pytest.raises(SajiError, match="takes no batch of two"):
        import_foreign(asked, tmp_path, silent)
    assert Receipt.read(tmp_path / "models" / "their_net") == before


def known(tmp_path: Path, **right: Any) -> tuple[Foreign, Network, np.ndarray, np.ndarray]:
    """A network, and photos whose labels are what it answers with the flags `right`."""
    asked = foreign(tmp_path, softmax=False)
    images = np.stack([fit(draw_dish(dish, seed, 60), Geometry.for_size(24)) for dish in DISHES for seed in range(30)])
    network = Network(onnx.load(asked.onnx), asked)
    return asked, network, images, network.shown(replace(asked, **right))(images).argmax(1)


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ({"channels": "bgr"}, "with --channels bgr, about"),
        ({"mean": (0, 0, 0), "std": (1, 1, 1)}, "with --mean 0 0 0 --std 1 1 1, about"),
    ],
)
def test_photos_that_another_flag_fits_better_say_so(right: dict[str, Any], words: str, tmp_path: Path) -> None:
    asked, network, images, labels = known(tmp_path, **right)
    said: list[str] = []
    say_what_fits_better(network, images, network(images), labels, said.append)
    [line] = said
    assert f"{asked.onnx} is right about 1.000 of 100 photos {words}" in line, line
    rightly = network.shown(replace(asked, **right))
    say_what_fits_better(rightly, images, rightly(images), labels, said.append)
    assert said == [line], "the right flags are not doubted"


def test_a_scale_that_was_typed_is_to_be_left_out(tmp_path: Path) -> None:
    _, network, images, labels = known(tmp_path, mean=(0, 0, 0), std=(1, 1, 1))
    said: list[str] = []
    typed = replace(network.foreign, mean=(120, 120, 120), std=(60, 60, 60), scale=1.0)
    scaled = network.shown(typed)
    say_what_fits_better(scaled, images, scaled(images), labels, said.append)
    assert "with --mean 0 0 0 --std 1 1 1, without --scale, about" in said[0]


def test_the_flags_of_ultralytics_are_told_where_others_were_typed(tmp_path: Path) -> None:
    asked = foreign(tmp_path, softmax=False)
    model = onnx.load(asked.onnx)
    onnx.helper.set_model_props(model, {"author": "Ultralytics"})
    onnx.save(model, asked.onnx)
    said: list[str] = []
    ForeignModel(asked, said.append)
    assert said == [
        f"{asked.onnx} is by Ultralytics, whose classifiers see photos by --mean 0 0 0 --std 1 1 1 --resize 24 and "
        "without --scale, --channels and --crop unless they were told otherwise"
    ]
    ForeignModel(replace(asked, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize=24), said.append)
    assert len(said) == 1
    ForeignModel(replace(asked, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize=24, channels="bgr"), said.append)
    assert len(said) == 2


def test_a_flag_by_which_all_photos_are_of_the_largest_class_fits_none_better(tmp_path: Path) -> None:
    images, labels = np.zeros((100, 24, 24, 3), np.uint8), np.array([0] * 80 + [1] * 20)
    asked = foreign(tmp_path, softmax=False)
    half_right = np.eye(5)[np.where(np.arange(100) % 2, labels, 2)]

    class LargestClass:
        foreign = asked

        def shown(self, _: Foreign) -> Any:
            return lambda images: np.eye(5)[np.zeros(len(images), int)]

    said: list[str] = []
    say_what_fits_better(cast(Any, LargestClass()), images, half_right, labels, said.append)
    assert said == []
