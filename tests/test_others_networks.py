"""Training what other people choose: networks, sizes, weights, encodings; trained right, or refused in one sentence."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import house
import numpy as np
import pytest
from house import Geometry, ModelSpec, Photo, Receipt, Said, SajiError, compare


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of each of two classes, dark ones and light ones."""
    folder = tmp_path_factory.mktemp("photos")
    for number, label in enumerate(("ant", "bee")):
        (folder / label).mkdir()
        for i in range(20):
            picture = house.drawn(100 * number + i, (96, 80))
            picture.point([value // 2 + 120 * number for value in range(256)] * 3).save(folder / label / f"{i}.png")
    return folder


def train(data: Path, out: Path, *more: object, arch: str = "resnet18", size: int = 32, **how: Any) -> Said:
    """`python -m training` for one epoch."""
    line = ["--data", data, "--archs", *arch.split(), "--image-size", size, "--epochs", 1, "--precision", "fp32"]
    return house.here("training", *line, "--batch-size", 8, "--run", "own", "--out", out, *more, **how)


# --- every network of torchvision, which the README promises


# creafz/pytorch-cnn-finetune#4, pytorch/pytorch#1190, damo-cv/TransReID#76
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "size"),
    [("vit_b_16", 128), ("alexnet", 48), ("inception_v3", 64), ("maxvit_t", 128), ("vgg11", 24), ("densenet121", 16)],
)
def test_a_size_that_a_network_does_not_take_is_one_sentence(
    arch: str, size: int, photos: Path, tmp_path: Path
) -> None:
    said = train(photos, tmp_path, arch=arch, size=size)
    assert said.status == 0 or said.refused, said


def test_a_network_of_more_weights_than_an_onnx_file_takes_is_not_trained(photos: Path, tmp_path: Path) -> None:
    said = train(photos, tmp_path, arch="resnet18 vit_h_14", size=56)
    assert said.last == (
        "saji: vit_h_14 has 2.52 GB of weights, and one ONNX file takes 2.13 GB; choose a smaller network"
    )
    assert not (tmp_path / "runs").exists()


ONE_OF_EACH = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "maxvit_t", "mnasnet0_5", "plain34"]
ONE_OF_EACH += ["mobilenet_v3_small", "resnet18", "se_resnet34", "shufflenet_v2_x0_5", "swin_t", "vgg11", "vit_b_16"]


def classes_of_the_last_layer(arch: str) -> int:
    import torch

    with torch.device("meta"):  # shapes alone: nothing is initialised
        network = house.room("architectures").build(arch, 5)
        return len(house.room("architectures").head(network).weight)


@pytest.mark.parametrize("arch", [*ONE_OF_EACH, "squeezenet1_0", "squeezenet1_1"])
def test_the_last_layer_of_a_network_is_found_and_knows_the_classes(arch: str) -> None:
    assert classes_of_the_last_layer(arch) == 5


@pytest.mark.slow
def test_so_it_is_for_every_network() -> None:
    names = house.room("architectures").names()
    walked = [name for name in names if not name.startswith("regnet")]  # which need memory to be built
    assert len(walked) > 50 and {classes_of_the_last_layer(name) for name in walked} == {5}


@pytest.mark.slow
def test_squeezenet_is_trained(photos: Path, tmp_path: Path) -> None:
    said = train(photos, tmp_path, arch="squeezenet1_1", size=64)
    assert said.status == 0, said


# microsoft/onnxruntime#20097, #17022
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("alexnet", 64),
        ("swin_t", 64),
        ("vit_b_16", 224),
        ("convnext_tiny", 64),
    ],
)
def test_networks_with_dense_layers_and_attention_are_exported(
    arch: str, size: int, photos: Path, tmp_path: Path
) -> None:
    assert train(photos, tmp_path, arch=arch, size=size).status == 0
    said = house.here("export", "--run", "own", "--precisions", "fp32", "--no-recover", "--out", tmp_path)
    assert said.status == 0, said
    receipt = Receipt.read(tmp_path / "models" / arch)
    verdicts = {c.backend: c.verdict for c in receipt.candidates if c.precision == "fp32" and not c.variant}
    assert {verdicts["ort-cpu"], verdicts["openvino"]} <= {"pass", "inconclusive"}, verdicts


# --- weights


@pytest.mark.parametrize("arch", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_a_network_with_published_weights_reloads_as_the_same_network(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published weights are random ones here: what is asked is whether the module is built the same again."""
    import torch
    from torchvision.models import get_model, get_model_weights

    torch.manual_seed(0)
    state = get_model(arch, weights=None, init_weights=False, aux_logits=True).state_dict()
    monkeypatch.setattr(get_model_weights(arch), "get_state_dict", lambda self, *args, **options: state)
    rooms, recipe = house.room("classifier"), replace(house.room("recipe").Recipe(), pretrained=True)
    module = rooms.PhotoClassifier(arch, 5, recipe, True)
    images = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), np.uint8)
    module.train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():  # batch norms see the photos
        module.network.training = False  # the wrapper itself: no auxiliary answers
        module(torch.from_numpy(images))
    before = rooms.reference_logits(module, images)
    spec = ModelSpec("x", arch, tuple("abcde"), Geometry.for_size(96), recipe=asdict(recipe), data={"fingerprint": "x"})
    rooms.save_checkpoint(tmp_path / "checkpoint.pt", module, spec)
    after = rooms.reference_logits(rooms.load_checkpoint(tmp_path / "checkpoint.pt")[0], images)
    figures = compare(before, after, np.zeros(8, int))
    assert figures.shift < 0.001 and figures.agreement == 1


@pytest.mark.slow
def test_weights_that_have_seen_the_validation_photos_are_refused(photos: Path, tmp_path: Path) -> None:
    assert train(photos, tmp_path / "first").status == 0
    own = tmp_path / "first" / "runs" / "own" / "resnet18" / "checkpoint.pt"
    said = train(photos, tmp_path / "second", "--weights", own, "--seed", 1)
    assert said.refused and "validation" in said.last, said


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--teacher", "--weights"])
def test_another_file_under_the_same_name_is_not_up_to_date(flag: str, photos: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.pt"
    for seed in (0, 1):
        assert train(photos, tmp_path / f"given{seed}", "--epochs", 1 + seed).status == 0
    first, second = (tmp_path / f"given{seed}" / "runs" / "own" / "resnet18" / "checkpoint.pt" for seed in (0, 1))
    shutil.copy(first, given)
    assert train(photos, tmp_path, flag, given).status == 0
    assert "up to date" in train(photos, tmp_path, flag, given).err
    shutil.copy(second, given)
    assert "up to date" not in train(photos, tmp_path, flag, given).err


# --- batches: scverse/scvi-tools#2314, fastai/fastai#1352, open-mmlab/mmsegmentation#272


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(("--batch-size", 1), id="one"),
        pytest.param(("--batch-size", 3, "--validation-share", 0.225), id="one left"),
    ],
)
def test_a_batch_of_one_photo_is_trained_or_refused(asked: tuple[object, ...], photos: Path, tmp_path: Path) -> None:
    said = train(photos, tmp_path, *asked)
    assert said.status == 0 or said.refused, said


# --- encodings: coqui-ai/TTS#394, xinjli/allosaurus#73, JoshPaulie/NanoEncoder#15


@pytest.mark.slow
def test_two_networks_are_trained_whatever_the_encoding_of_the_output(photos: Path, tmp_path: Path) -> None:
    """Output that is redirected to a file on Windows is cp1252."""
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    (data / "ant").rename(data / "café")
    said = train(data, tmp_path, arch="shufflenet_v2_x0_5 mobilenet_v3_small", encoding="cp1252")
    assert said.status == 0, said
    assert len(list((tmp_path / "runs").glob("*/*/checkpoint.pt"))) == 2


@pytest.fixture
def commands(run: Path, model: Path, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """Lines that print names and signs of all kinds, with two photos of a class called café."""
    for label in ("café", "soto_ayam", "rendang"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(3):
            house.drawn(i + 100 * len(label), (40, 30), tmp_path / "set" / label / f"{i}.png")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(run.parent)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet18").symlink_to(model)
    out = ("--out", tmp_path)
    return {
        "show": ("runtime", "show", model),
        "classify": ("runtime", "classify", tmp_path / "set" / "café" / "0.png", "--model", model),
        "doctor": ("runtime", "doctor"),
        "check": ("check", tmp_path / "set", *out),
        "evaluate": ("evaluate", run / "checkpoint.pt", tmp_path / "set"),
        "export": ("export", "--run", "tiny", "--no-recover", *out),
        "bench": ("bench", *out, "--candidates", "ort-cpu int8", "--seconds", "0.1", "--cold-starts", "0"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "check",
        "evaluate",
        "export",
        "bench",
        "show",
        "classify",
        "doctor",
    ],
)
def test_every_command_ends_well_where_the_output_is_ascii(name: str, commands: dict[str, tuple[object, ...]]) -> None:
    command, *arguments = commands[name]
    said = house.here(str(command), *arguments, encoding="ascii")
    assert said.status == 0, said


# --- shares


@pytest.mark.parametrize("count", [20, 40, 100, 1000])
def test_the_threshold_keeps_the_share_that_it_says(count: int) -> None:
    scores = np.random.default_rng(0).permutation(count) / count
    threshold = house.room("confidence").threshold_keeping(scores, 0.95)
    assert (scores >= threshold).sum() == round(0.95 * count)


def scattered(seed: int, k: int) -> Any:
    """A photo set without files: two classes of k scenes, two of many, each scene of 1 to 11 photos."""
    random, labels, scenes = np.random.default_rng(seed), list[int](), list[int]()
    for label, count in enumerate((k, k, 40, 60)):
        for _ in range(count):
            photos = int(random.integers(1, 12))
            labels += [label] * photos
            scenes += [max(scenes, default=-1) + 1] * photos
    classes, everything = tuple("abcd"), np.arange(len(labels))
    hashes = [f"{(7 * i + 5) % 10007:05d}" for i in range(len(labels))]
    files = tuple(Photo(Path(f"{i}.jpg"), classes[label], None, hashes[i]) for i, label in enumerate(labels))
    return house.room("dataset").Data(
        files, classes, np.array(labels), everything[::2], everything[1::2], np.array(scenes)
    )


@pytest.mark.parametrize("seed", range(6))
def test_every_fold_trains_and_validates_every_class_or_says_that_it_cannot(seed: int) -> None:
    data = scattered(seed, 3)
    try:
        parts = house.room("folds").folds(data, 3, seed)
    except SajiError as error:
        assert "\n" not in str(error)
        return
    for part in parts:
        assert set(data.labels[part.train]) == set(data.labels[part.val]) == {0, 1, 2, 3}


def test_networks_that_ask_for_the_version_of_their_layers_are_read_back(tmp_path: Path) -> None:
    """As MNASNet does, which is trained and could not be exported without."""
    classifier = house.room("classifier")
    model = classifier.PhotoClassifier("mnasnet0_5", 2).eval()
    spec = house.ModelSpec("mnasnet0_5", "mnasnet0_5", ("a", "b"), house.Geometry.for_size(32))
    classifier.save_checkpoint(tmp_path / "checkpoint.pt", model, spec)
    found, _ = classifier.load_checkpoint(tmp_path / "checkpoint.pt")
    assert all(map(np.array_equal, found.state_dict().values(), model.state_dict().values()))
