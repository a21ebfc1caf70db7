"""Lower precisions of one trained module: FP16 by casting the network, INT8 by calibrating on training photos."""

import contextlib
import logging
import os
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
    try:
        import nncf
    except ImportError:
        raise missing_extra("nncf", "export") from None
    model = onnx.load(fp32)
    with _quiet_nncf():
        quantised = nncf.quantize(
            model,
            nncf.Dataset(calibration, lambda photo: {"images": photo[None]}),
            subset_size=len(calibration),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=_kept(model), validate=False),
        )
    save_onnx(quantised, spec, path)


def _kept(model: onnx.ModelProto) -> list[str]:
    nodes = list(model.graph.node)
    first = next(i for i, node in enumerate(nodes) if node.op_type in ("Conv", "MatMul", "Gemm"))
    last = max(i for i, node in enumerate(nodes) if node.op_type in ("Conv", "MatMul", "Gemm"))
    return [node.name for node in (*nodes[:first], nodes[last])]


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[None]:
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
