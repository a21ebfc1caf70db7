"""How closely do healthy FP32 files of other people's networks agree with PyTorch on a processor?

A dozen networks of 1000 classes at their usual size, exported by the older exporter and imported as `python -m export
--onnx` does, with their opset lifted and our normalisation in front. EfficientNet-Lite0 has its published weights; the
others have random ones, and batch norms that have seen the photos. One row per network; the bounds of FP32 on
processors come from them and from those of `python -m lab mutants`.
"""

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models import get_model

from export.foreign.reading import lifted, read_foreign
from export.foreign.wrapping import wrapped
from export.graph import save_onnx
from export.parity import with_result
from export.settings import Foreign
from lab.mutants import PEERS, Logits, as_row
from lab.tables.gate import SHIFT_OF
from runtime.backends import open_backend
from runtime.benchmark.rows import Row
from runtime.candidate import Candidate
from runtime.gate import GATES, apply_gate
from runtime.preprocess import pixels
from runtime.spec import Geometry, ModelSpec
from runtime.terminal import say
from training.network.architectures import IMAGENET_MEAN, IMAGENET_STD
from training.network.classifier import Normalise, reference_logits
from training.photos.drawn import write_sample
from training.photos.photo_set import read_photo_set

SIZE, CLASSES, PER_DISH = 224, 1000, 7
PUBLISHED = "efficientnet_lite0"
NETWORKS = (
    *("alexnet", "googlenet", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "densenet121"),
    *("regnet_y_400mf", "efficientnet_b0", "convnext_tiny", "vit_tiny_patch16_224", PUBLISHED),
)


class Whole(nn.Module):
    """A network with its normalisation in front: uint8 `[N, S, S, 3]` RGB → logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.normalise, self.network = Normalise(IMAGENET_MEAN, IMAGENET_STD), network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[N, S, S, 3]` RGB → float32 `[N, 1000]`."""
        return self.network(self.normalise(images))


def built(name: str, images: np.ndarray) -> Whole:
    """A network that tells photos apart: `images` are uint8 `[N, S, S, 3]`."""
    torch.manual_seed(0)
    if name == PUBLISHED:
        from training.network.architectures import efficientnet_lite0

        return Whole(efficientnet_lite0(CLASSES, pretrained=True)).eval()
    if name.startswith("vit_tiny"):
        import timm

        return settled(Whole(timm.create_model(name)), images)
    more = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    return settled(Whole(get_model(name, weights=None, **more)), images)


def settled(model: Whole, images: np.ndarray) -> Whole:
    """With batch norms that know the photos, as after training: otherwise random layers let next to nothing through."""
    model.eval()
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.momentum = None  # what it has seen counts, and not what it began with
        norm.train()
    with torch.no_grad():
        model(torch.from_numpy(images))
    return model.eval()


def imported(model: Whole, name: str, spec: ModelSpec, folder: Path) -> None:
    """Write `model.onnx`, as the older exporter and then our import make it."""
    foreign = Foreign(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    photo, axes = torch.zeros(2, 3, SIZE, SIZE), {"photo": {0: "batch"}, "scores": {0: "batch"}}
    names: dict[str, Any] = {"input_names": ["photo"], "output_names": ["scores"], "dynamic_axes": axes}
    file = folder / "foreign.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.network, (photo,), file, dynamo=False, opset_version=17, **names)
    save_onnx(wrapped(lifted(read_foreign(file), file), spec, foreign), spec, folder / "model.onnx")


def engines(file: Path) -> dict[str, Logits]:
    """A file on each engine of a processor, one photo at a time, without the check of the precision it computes in.

    That check does not know yet how engines join the layers of a transformer.
    """
    import openvino

    session = open_backend("ort-cpu", file, "fp32")
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    one_by_one = {"ort-cpu": session.run, "openvino": lambda images: compiled(images)[0]}
    return {name: partial(_one_by_one, run) for name, run in one_by_one.items()}


def _one_by_one(run: Logits, images: np.ndarray) -> np.ndarray:
    return np.concatenate([run(image[None]) for image in images])


def outcome(model: Whole, logits: np.ndarray, engine: str, run: Logits, images: np.ndarray, labels: np.ndarray) -> Row:
    """One engine's verdict, and whether the others' checks would report success."""
    candidate = Candidate("", "model.onnx", engine, "fp32")
    result = apply_gate(logits, run(images), labels, GATES["fp32"])
    peers = {peer: check(partial(reference_logits, model), run, SIZE) for peer, check in PEERS.items()}
    return as_row("healthy", with_result(candidate, result)) | peers


def examined(name: str, photos: Path) -> Row:
    """The row of one network: its FP32 file on the engines of a processor, by our gate and by the others' checks."""
    chosen = read_photo_set(photos).photos
    dishes = sorted({photo.label for photo in chosen})
    classes = (*dishes, *(f"class {i}" for i in range(len(dishes), CLASSES)))
    spec = ModelSpec(name, name, classes, Geometry.for_size(SIZE))
    images = np.stack([pixels(photo.path, spec.geometry) for photo in chosen])
    labels = np.array([classes.index(photo.label) for photo in chosen])
    model = built(name, images)
    with tempfile.TemporaryDirectory() as folder:
        imported(model, name, spec, Path(folder))
        logits, runs = reference_logits(model, images), engines(Path(folder) / "model.onnx")
        outcomes = [outcome(model, logits, engine, run, images, labels) for engine, run in runs.items()]
    network = {"run": f"foreign/{name}", "architecture": name, "image_size": SIZE, "classes": CLASSES}
    facts = {"experiment": "foreign", **network, "drawn": True, "photos": len(labels), "shift_of": SHIFT_OF}
    return {**facts, "outcomes": outcomes}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which networks."""
    parser.add_argument("networks", nargs="*", default=NETWORKS, help=f"by default {', '.join(NETWORKS)}")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Import each network and tell how far its file is from PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        photos = write_sample(Path(folder) / "sample", per_class=PER_DISH, size=256)
        for name in arguments.networks:
            row = examined(name, photos)
            shifts = ", ".join(f"{trial['backend']} {trial['shift']:.2g}" for trial in row["outcomes"])
            say(f"{name}: {shifts}")
            yield row
