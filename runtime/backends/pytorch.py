"""PyTorch: the baseline that everything else is compared with. Runs `model.pt2`, bit-equal to the checkpoint."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.proof import Layer, proved
from runtime.errors import BadModel, missing_extra


def check_available(backend: str) -> None:
    """Raise Unavailable when PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("torch", "train") from None


def open_engine(
    backend: str, path: Path, precision: str, variant: str, threads: int, facts: dict[str, Any], streams: int = 1
) -> "PyTorch":
    """Load a `torch.export` program; variant "channels-last" lays its filters out as NHWC."""
    return PyTorch(path, precision, variant, threads)


class PyTorch:
    """Eager PyTorch on the CPU."""

    def __init__(self, path: Path, precision: str, variant: str, threads: int) -> None:
        import torch

        self.torch = torch
        if threads:
            torch.set_num_threads(threads)
        try:
            self.program = torch.export.load(path)
        except Exception as error:  # the loader's errors are of no common family
            raise BadModel(f"{path} is no PyTorch program ({str(error)[:80]}); write it with: make export") from None
        module = self.program.module()
        self.module = module.to(memory_format=torch.channels_last) if variant == "channels-last" else module
        self.path, self.precision = path, precision
        self.precision_share()

    def run(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 `[N, classes]` logits."""
        images = np.require(images, requirements="W")  # PyTorch warns of read-only memory, which it would not write to
        with self.torch.inference_mode():
            return self.module(self.torch.from_numpy(images)).numpy()

    def precision_share(self) -> dict[str, float]:
        """Share of multiply-adds per number format, from the types in the exported graph."""
        layers: list[Layer] = []
        names = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
        for node in self.program.graph.nodes:
            if any(op in str(node.target) for op in ("conv2d", "convolution", "linear", "addmm", "matmul")):
                out, weight = node.meta["val"], node.args[1].meta["val"]
                dtype = names.get(str(out.dtype), str(out.dtype))
                macs = math.prod(int(n) for n in out.shape[1:]) * math.prod(int(n) for n in weight.shape[1:])
                layers.append((node.name, dtype, macs))
        return proved(layers, self.precision, f"PyTorch on {self.path.name}", {})

    def close(self) -> None:
        """Free the program."""
        del self.module, self.program
