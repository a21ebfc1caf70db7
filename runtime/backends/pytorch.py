"""PyTorch: the baseline that everything else is compared with. Runs `model.pt2`, bit-equal to the checkpoint."""

import io
import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.base import Backend, Layer
from runtime.errors import BadModel, missing_extra

# The members of an archive that torch.export.save writes for a program of tensors
_HARMLESS = re.compile(
    r"[^/]+/(\.data/\w+|archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment|extra/spec"
    r"|models/model\.json|data/(weights|constants)/(weight_\d+|tensor_\d+|model_(weights|constants)_config\.json)"
    r"|data/sample_inputs/model\.pt)"
)
# The size of a tensor, such as Symbol('s34', positive=True, integer=True)
_SIZE = re.compile(r"(?:(?:Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|FloorDiv)\(|\)|'\w++'|\w++=\w++|\d++|[\s,*/+-])*+")
_TENSOR = re.compile(r"(weight|tensor)_\d+")


def spec_text(path: Path) -> str:
    """The spec in a `.pt2` file as JSON text, read without opening the program; empty where there is none."""
    with _archive(path) as archive:
        specs = [name for name in archive.namelist() if name.endswith("/extra/spec")]
        return archive.read(specs[0]).decode(errors="replace") if specs else ""


def require_no_code(path: Path) -> None:
    """Raise BadModel when opening a `.pt2` file could run more than the operators of PyTorch.

    `torch.export.load` unpickles, takes any function that can be reached from `torch` by name for an operator, and
    evaluates the sizes of tensors as Python. A program that we wrote needs none of it: raw tensors, JSON, and one
    pickle, the example that it was traced with, which PyTorch's unpickler of plain tensors has to read.
    """
    with _archive(path) as archive:
        names = archive.namelist()
        strange = [name for name in names if not _HARMLESS.fullmatch(name)]
        if strange or len(set(names)) < len(names):
            raise _no_program(path, f"it holds {ascii(strange[0])[:80]}" if strange else "it holds a name twice")
        for name in names:
            try:
                danger = _danger_in(name, archive.read(name))
            except (ValueError, RecursionError) as error:
                raise _no_program(path, f"{name}: {error}"[:120]) from None
            if danger:
                raise _no_program(path, f"{danger}, which may run any code")


def _danger_in(name: str, content: bytes) -> str:
    """What in a member of the archive could run code, in words; empty when nothing could."""
    if name.endswith(".pt"):
        import torch

        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception:  # of no common family
            return f"{name} holds pickled objects"
    if name.endswith("_config.json"):
        entries = json.loads(content)["config"].values()
        if any(entry["use_pickle"] is not False or not _TENSOR.fullmatch(entry["path_name"]) for entry in entries):
            return f"{name} names pickled tensors"
    if name.endswith("model.json"):
        for key, value in _texts(json.loads(content)):
            if key == "target" and not value.startswith("torch.ops.aten."):
                return f"it calls {ascii(value)[:60]}"
            if key == "expr_str" and not _SIZE.fullmatch(value):
                return f"it evaluates {ascii(value)[:60]}"
    return ""


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with the key that it has in its object."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise _no_program(path, str(error)[:80]) from None


def _no_program(path: Path, why: str) -> BadModel:
    return BadModel(f"{path} is no PyTorch program that is opened ({why}); write it with: make export")


class PyTorch(Backend):
    """Eager PyTorch on the CPU; variant "channels-last" lays the filters of the program out as NHWC."""

    title = "PyTorch"

    @classmethod
    def check_available(cls, backend: str) -> None:
        """Raise Unavailable when PyTorch is not installed."""
        try:
            import torch  # noqa: F401
        except ImportError:
            raise missing_extra("torch", "train") from None

    def open(self) -> None:
        """Load the `torch.export` program, if it is one without code of its own."""
        import torch

        self.torch = torch
        if self.request.threads:
            torch.set_num_threads(self.request.threads)
        require_no_code(self.request.path)
        try:
            self.program = torch.export.load(self.request.path)
        except Exception as error:  # the loader's errors are of no common family
            raise _no_program(self.request.path, str(error)[:80]) from None
        module, last = self.program.module(), self.request.variant == "channels-last"
        self.module = module.to(memory_format=torch.channels_last) if last else module

    def run(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 `[N, classes]` logits."""
        images = np.require(images, requirements="W")  # PyTorch warns of read-only memory, which it would not write to
        with self.torch.inference_mode():
            return self.module(self.torch.from_numpy(images)).numpy()

    def layers(self) -> Iterable[Layer]:
        """The convolutions and matrix products of the exported graph, each with its output's type."""
        names = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
        for node in self.program.graph.nodes:
            if any(op in str(node.target) for op in ("conv2d", "convolution", "linear", "addmm", "matmul")):
                out, weight = node.meta["val"], node.args[1].meta["val"]
                macs = math.prod(int(n) for n in out.shape[1:]) * math.prod(int(n) for n in weight.shape[1:])
                yield node.name, names.get(str(out.dtype), str(out.dtype)), macs

    def close(self) -> None:
        """Free the program."""
        del self.module, self.program
