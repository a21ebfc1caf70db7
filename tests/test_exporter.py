"""The exporter itself: the ONNX graph answers as PyTorch does, also for networks that are not ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torchvision.models import get_model

from export import engine
from export.graph import check_contract, export_onnx, export_pt2, multiply_adds
from export.settings import Settings
from runtime.backends import open_backend
from runtime.errors import NotAsAsked
from runtime.preprocess import fit
from runtime.spec import Geometry, ModelSpec
from training.network.classifier import PhotoClassifier, reference_logits
from training.photos.drawn import DISHES, draw_dish


def awake(architecture: str, options: dict[str, int], photos: torch.Tensor) -> PhotoClassifier:
    """A network whose random weights let the photos through: nothing near zero, batch norms that have seen them."""
    torch.manual_seed(0)
    network = PhotoClassifier("resnet18", len(DISHES))
    network.network = get_model(architecture, num_classes=len(DISHES), **options)
    for parameter in network.parameters():  # ViT's head and ConvNeXt's layer scales begin at (almost) zero
        if parameter.std() < 1e-3 and parameter.mean().abs() < 1e-3:
            torch.nn.init.normal_(parameter, std=0.1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(photos)
    return network.eval()


def counted(network: torch.nn.Module, photo: np.ndarray) -> int:
    """Multiply-adds of one photo, counted on the running PyTorch modules: convolutions, linear layers, attention."""
    total = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        if isinstance(module, torch.nn.MultiheadAttention):
            tokens, width = inputs[0].shape[1:]
            total += tokens * 4 * width**2 + 2 * tokens**2 * width  # Q, K, V and out; QKᵀ and its product with V
        else:
            total += module.weight[0].numel() * output[0].numel()

    kinds = torch.nn.Conv2d | torch.nn.Linear | torch.nn.MultiheadAttention
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    network(torch.from_numpy(photo))
    for hook in hooks:
        hook.remove()
    return total


class NamedLikeOperators(torch.nn.Module):
    """Names that operators have, as torchvision's Inception does, and products of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, groups=1), torch.nn.BatchNorm2d(4))
        self.linear = torch.nn.Linear(4, 6)
        self.addmm = torch.nn.Parameter(torch.ones(6, 5))

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        tokens = self.linear(self.conv2d_1a(photos).flatten(2).mT)
        mixed = torch.matmul(torch.matmul(tokens, tokens.mT), tokens)
        return torch.addmm(self.addmm[0], mixed.mean(1), self.addmm)


def test_a_pytorch_program_knows_its_layers_whatever_they_are_called(tmp_path: Path) -> None:
    network = PhotoClassifier("resnet18", 5)
    network.network = NamedLikeOperators()
    spec = ModelSpec("named", "resnet18", tuple("abcde"), Geometry.for_size(8))
    export_pt2(network.eval(), spec, tmp_path / "model.pt2")
    engine = open_backend("pytorch", tmp_path / "model.pt2", "fp32")
    kinds = {kind for _, kind, _ in engine.layers()}
    macs = [macs for _, _, macs in engine.layers()]
    engine.close()
    tokens = 6 * 6
    assert kinds == {"fp32"}
    assert sorted(macs) == sorted([tokens * 4 * 27, tokens * 4 * 6, tokens**2 * 6, tokens**2 * 6, 6 * 5])


class Windows(torch.nn.Module):
    """Attention within windows, which go with the batch as in Swin, of tokens that a layer sees before the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.tokens, self.last = torch.nn.Conv2d(3, 4, 2, 2), torch.nn.Linear(4, 6), torch.nn.Linear(6, 5)

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        windows = self.patches(photos).unflatten(3, (2, 2)).movedim(3, 1).flatten(3).flatten(0, 1)
        tokens = self.tokens(windows.permute(2, 0, 1)).transpose(0, 1)
        attended = (tokens @ tokens.mT).softmax(2) @ tokens
        return self.last(attended.unflatten(0, (-1, 2)).mean((1, 2)))


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[float]]:
    """TensorRT-RTX's, as far as it weighs the layers of a file."""

    def weighed(file: Path) -> list[float]:
        trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'saji[tensorrt-rtx]'")
        found: list[float] = []

        def look(layers: list[Any], *_: object) -> None:
            found.extend(macs for _, _, macs in layers)
            raise NotAsAsked("enough")  # it need not be built

        monkeypatch.setattr(engine, "check_precision", look)
        with pytest.raises(NotAsAsked, match="enough"):
            engine.build_engine(trt, file, file.with_suffix(".engine"), "fp16", Settings())
        return found

    return weighed


@pytest.mark.parametrize("counted_by", ["file", "openvino", "pytorch", "tensorrt-rtx"])
def test_every_engine_weighs_a_layer_by_all_positions_of_a_photo(counted_by: str, tmp_path: Path, builder: Any) -> None:
    """Else a product weighs next to nothing beside a convolution, and its precision is not looked at."""
    network = PhotoClassifier("resnet18", 5)
    network.network = Windows()
    spec = ModelSpec("windows", "resnet18", tuple("abcde"), Geometry.for_size(8))
    export_onnx(network.eval(), spec, file := tmp_path / "model.onnx")
    if counted_by == "file":
        work = multiply_adds(onnx.load(file)).values()
    elif counted_by == "tensorrt-rtx":
        work = builder(file)
    else:
        if counted_by == "pytorch":
            export_pt2(network, spec, file := tmp_path / "model.pt2")
        opened = open_backend(counted_by, file, "fp32")
        work = [macs for _, _, macs in opened.layers()]
        opened.close()
    tokens, window = 4 * 4, 4 * 2
    assert sorted(work) == sorted([tokens * 12 * 4, tokens * 4 * 6, tokens * window * 6, tokens * window * 6, 6 * 5])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "options"),
    [("mobilenet_v3_small", {}), ("efficientnet_b0", {}), ("convnext_tiny", {}), ("vit_b_16", {"image_size": 32})],
)
def test_torchvisions_networks_come_out_as_pytorch_computes_them(
    architecture: str, options: dict[str, int], tmp_path: Path
) -> None:
    spec = ModelSpec(architecture, architecture, tuple(DISHES), Geometry.for_size(32))
    photos = np.stack([fit(draw_dish(dish, seed, 256), spec.geometry) for seed, dish in enumerate(DISHES)])
    network = awake(architecture, options, torch.from_numpy(photos))
    export_onnx(network, spec, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    check_contract(graph, spec)
    assert sum(multiply_adds(graph).values()) == pytest.approx(counted(network, photos[:1]), rel=0.01)
    expected = reference_logits(network, photos)
    spread = (expected - expected.mean(axis=1, keepdims=True)).std()
    assert spread > 1e-3 and np.abs(expected[0] - expected[1]).max() > 1e-3 * spread  # the photos make a difference
    engine = open_backend("ort-cpu", tmp_path / "model.onnx", "fp32")
    for found in (engine.run(photos), np.concatenate([engine.run(photo[None]) for photo in photos])):
        assert np.abs(found - expected).max() <= 1e-3 * spread
    engine.close()
