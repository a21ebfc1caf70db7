"""Lower precisions of one trained module: FP16 by casting the network, INT8 by calibrating on training photos."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from export.graph import save_onnx
from runtime.errors import missing_extra
from runtime.spec import ModelSpec
from training.classifier import PhotoClassifier


class HalfPrecision(nn.Module):
    """The same module with its network in FP16; normalisation and both ends stay as they are."""

    def __init__(self, model: PhotoClassifier) -> None:
        super().__init__()
        self.normalise = model.normalise
        self.network = model.network.half()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[N, S, S, 3]` RGB → float32 logits `[N, C]`."""
        return self.network(self.normalise(images).half()).float()


def quantise(fp32: Path, calibration: np.ndarray, spec: ModelSpec, path: Path) -> None:
    """Write an INT8 Q/DQ file from an FP32 ONNX file: weights per channel, activations calibrated.

    `calibration` is uint8 `[N, S, S, 3]` training photos (never validation: the gate would judge what it tuned).
    Normalisation and the last layer keep FP32: together far below 1 % of the work, and the most sensitive.
    """
    # NNCF reports usage to its maker unless told not to, before it is imported
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
    model = onnx.load(fp32)
    with _quiet():
        try:
            import nncf
        except ImportError:
            raise missing_extra("nncf", "export") from None
        quantised = nncf.quantize(
            model,
            nncf.Dataset(calibration, lambda photo: {"images": photo[None]}),
            subset_size=len(calibration),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=_kept(model), validate=False),
        )
    save_onnx(_unsigned_activations(quantised), spec, path)


def _unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write every quantised activation as uint8: int8 with its zero point moved by 128, the same arithmetic.

    ONNX Runtime runs a convolution in INT8 only where input and output have one type; squeeze-and-excitation blocks
    come with signed outputs beside unsigned inputs, and half of their convolutions silently stayed FP32.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    signed = {node.input[2] for node in quantisers if constants[node.input[2]].data_type == onnx.TensorProto.INT8}
    for name in signed:
        zero = onnx.numpy_helper.to_array(constants[name]).astype(np.int16) + 128
        constants[name].CopyFrom(onnx.numpy_helper.from_array(zero.astype(np.uint8), name))
    del model.graph.value_info[:]  # holds the old types; shape inference finds the new ones
    return model


def _kept(model: onnx.ModelProto) -> list[str]:
    nodes = list(model.graph.node)
    first = next(i for i, node in enumerate(nodes) if node.op_type in ("Conv", "MatMul", "Gemm"))
    last = max(i for i, node in enumerate(nodes) if node.op_type in ("Conv", "MatMul", "Gemm"))
    return [node.name for node in (*nodes[:first], nodes[last])]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's progress bars off stdout, where results go, and its hints about CUDA off the terminal."""
    for name in ("nncf", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield
