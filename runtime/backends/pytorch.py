"""PyTorch: the baseline that everything else on the same device is compared with, by `model.pt2`.

On the CPU it is bit-equal to the checkpoint.
"""

import functools
import io
import json
import math
import os
import re
import tempfile
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np

from runtime.backends.base import Backend, Layer
from runtime.errors import BadModel, Unavailable, anew_line, missing_extra
from runtime.files import ZIP_DAMAGE
from runtime.nvidia import driver, here, serving
from runtime.spec import side_by_side

# The members of an archive that torch.export.save writes for a program of tensors
_HARMLESS = re.compile(
    r"[^/]+/(\.data/\w+|archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment|extra/spec"
    r"|models/model\.json|data/(weights|constants)/(weight_\d+|tensor_\d+|model_(weights|constants)_config\.json)"
    r"|data/sample_inputs/model\.pt)"
)
# The size of a tensor, such as Symbol('s34', positive=True, integer=True)
_SIZE = re.compile(r"(?:(?:Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|FloorDiv)\(|\)|'\w++'|\w++=\w++|\d++|[\s,*/+-])*+")
# What a program calls: PyTorch's operators, and arithmetic on sizes, which attention needs for open batches
_CALLED = re.compile(r"torch\.ops\.aten\.\S+|_operator\.(?:add|sub|mul|floordiv|mod|neg|eq|ne|ge|gt|le|lt)")
_TENSOR = re.compile(r"(weight|tensor)_\d+")

# Our names of number formats by PyTorch's own, and by those of its profiler
_FORMATS = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
_FORMATS |= {"float": "fp32", "c10::Half": "fp16", "c10::BFloat16": "bf16"}
# The operators that end in a kernel; torch.compile also calls those of oneDNN, on CPUs
_PRODUCTS = ("aten::convolution", "aten::addmm", "aten::mm", "aten::bmm", "mkldnn::_convolution_pointwise")
# Operators of an exported graph, with the place of the weight, or of what stands for it, among what they take
_WEIGHTS = {"conv1d": 1, "conv2d": 1, "conv3d": 1, "convolution": 1, "linear": 1, "mm": 1, "bmm": 1, "matmul": 1}
_WEIGHTS |= {"addmm": 2, "baddbmm": 2}
_TRIED = (1, 2)  # batches: torch.compile makes a program for one photo and a second one for all larger batches


def spec_text(path: Path) -> str:
    """The spec in a `.pt2` file as JSON text, read without opening the program; empty where there is none."""
    with _archive(path, path) as archive:
        specs = [name for name in archive.namelist() if name.endswith("/extra/spec")]
        try:
            return archive.read(specs[0]).decode(errors="replace") if specs else ""
        except ZIP_DAMAGE as error:
            raise _no_program(path, str(error)[:80]) from None


def require_no_code(path: Path, content: bytes) -> None:
    """Raise BadModel, by its path, when opening a `.pt2` file could run more than the operators of PyTorch.

    `torch.export.load` unpickles, takes any function that can be reached from `torch` by name for an operator, and
    evaluates the sizes of tensors as Python. A program that we wrote needs none of it: raw tensors, JSON, and one
    pickle, the example that it was traced with, which PyTorch's unpickler of plain tensors has to read.
    """
    with _archive(path, io.BytesIO(content)) as archive:
        names = archive.namelist()
        strange = [name for name in names if not _HARMLESS.fullmatch(name)]
        if strange or len(set(names)) < len(names):
            raise _no_program(path, f"it holds {ascii(strange[0])[:80]}" if strange else "it holds a name twice")
        for name in names:
            try:
                danger = _danger_in(name, archive.read(name))
            except (KeyError, TypeError, RecursionError, *ZIP_DAMAGE) as error:
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
            if key == "target" and not _CALLED.fullmatch(value):
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


def _archive(path: Path, file: IO[bytes] | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except ZIP_DAMAGE as error:
        raise _no_program(path, str(error)[:80]) from None


def _no_program(path: Path, why: str) -> BadModel:
    return BadModel(f"{path} is no PyTorch program that is opened ({why}); write it with: make export")


class PyTorch(Backend):
    """Eager PyTorch on the CPU; variant "channels-last" lays the filters of the program out as NHWC."""

    title = "PyTorch"
    device = "cpu"

    def where(self) -> AbstractContextManager[Any]:
        """Without the autocast of the program around us, which computes FP32 in less."""
        import torch

        return torch.autocast(self.device, enabled=False)

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
        content = self.request.content()
        require_no_code(self.request.path, content)
        try:
            with torch.device("cpu"):  # whatever torch.set_default_device says
                self.program = torch.export.load(io.BytesIO(content))
        except Exception as error:  # the loader's errors are of no common family
            raise _no_program(self.request.path, str(error)[:80]) from None
        module, last = self.program.module(), self.request.variant == "channels-last"
        self.module = module.to(memory_format=torch.channels_last) if last else module

    def compute(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 outputs side by side."""
        with self.torch.inference_mode():
            return _side_by_side(self._forward(self._tensor(images)))

    def _tensor(self, images: np.ndarray) -> Any:
        # PyTorch warns of read-only memory, which it would not write to
        return self.torch.from_numpy(np.require(images, requirements="W"))

    def _forward(self, photos: Any) -> Any:
        _compute_fp32_as_fp32(self.torch)
        return self.module(photos)

    def layers(self) -> Iterable[Layer]:
        """The convolutions and matrix products of the exported graph, each with its output's type."""
        for name, out, _, macs in self._products():
            yield name, _FORMATS.get(str(out.dtype), str(out.dtype)), macs

    def _products(self) -> Iterator[tuple[str, Any, Any, float]]:
        """Name, output, weight and multiply-adds of each convolution and matrix product of the exported graph."""
        for node in self.program.graph.nodes:
            operator = node.target.__name__.partition(".")[0] if node.op == "call_function" else ""
            if operator in _WEIGHTS:
                out, weight = node.meta["val"], node.args[_WEIGHTS[operator]].meta["val"]
                summed = weight.shape[-2:-1] if "mm" in operator or operator == "matmul" else weight.shape[1:]
                # The batch, a symbol, may be in any dimension and be merged with others: divided by, it cancels out
                macs = math.prod((*out.shape, *summed)) // self._shape_of_photos()[0]
                yield node.name, out, weight, float(int(macs))

    def _shape_of_photos(self) -> Any:
        """That of the exported graph's input `[N, S, S, 3]`, of which N is a symbol."""
        (name,) = self.program.graph_signature.user_inputs
        return next(node for node in self.program.graph.nodes if node.name == name).meta["val"].shape

    def close(self) -> None:
        """Free the program."""
        del self.module, self.program


def _first_gpu() -> AbstractContextManager[Any]:
    """As `runtime.backends.cuda.first_gpu`, by PyTorch's own means."""
    import torch

    return torch.cuda.device(0)


class PyTorchCuda(PyTorch):
    """PyTorch on the first GPU: FP32 without TF32, FP16 and bf16 by autocast as its users do; variant "compiled".

    Photos go there from pinned memory. Autocast computes in NHWC, for which tensor cores are made; `torch.compile`
    chooses layouts itself. All run on the stream that PyTorch is at, by default the GPU's own.
    """

    device = "cuda"
    where = staticmethod(_first_gpu)
    checks_at_opening = False  # which takes a run

    @classmethod
    def check_available(cls, backend: str) -> None:
        """Raise Unavailable when PyTorch is not installed or can use no GPU here."""
        super().check_available(backend)
        if reason := why_no_gpu():
            raise Unavailable(reason)

    def open(self) -> None:
        """Bring the program to the GPU; with the variant "compiled" compile it, which takes up to minutes."""
        super().open()
        from torch.export.passes import move_to_device_pass

        torch, precision = self.torch, self.request.precision
        emulated = self.device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and emulated:
            raise Unavailable("this GPU computes no bf16, compute capability 8.0 (sm80) is the first that does")
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        self.autocast = functools.partial(torch.autocast, self.device, half, enabled=half is not None)
        self.program = move_to_device_pass(self.program, self.device)
        self.module = self.program.module()
        if half:
            self.module.to(memory_format=torch.channels_last)
        if self.request.variant == "compiled":
            self._compile()

    def _compile(self) -> None:
        """Compile for every batch, now; raises Unavailable where the compiler does not work."""
        self.module = self.torch.compile(self.module, dynamic=True)
        try:
            for batch in _TRIED:
                self.compute(self._zeros(batch))
        except Exception as error:  # Dynamo's, Inductor's, Triton's and those of a C++ compiler have no common base
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
            raise Unavailable(f"torch.compile does not work here ({why}); eager PyTorch does") from None

    def device_milliseconds(self, images: np.ndarray) -> float:
        """Milliseconds of photos uint8 `[N, H, W, 3]` RGB on the GPU, without the transfers there and back."""
        began, ended = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        with self.at_work("timed"), self.torch.inference_mode():
            there = self._tensor(images)
            began.record()
            self._forward(there)
            ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended))

    def _tensor(self, images: np.ndarray) -> Any:
        photos = super()._tensor(images)
        return (photos.pin_memory() if self.device == "cuda" else photos).to(self.device, non_blocking=True)

    def _forward(self, photos: Any) -> Any:
        with self.autocast():
            return super()._forward(photos)

    def _zeros(self, batch: int) -> np.ndarray:
        return np.zeros((batch, *(int(side) for side in self._shape_of_photos()[1:])), np.uint8)

    def layers(self) -> Iterable[Layer]:
        """The layers with weights, each in the format that a profiled run really computes it in.

        What was not seen running is of format "unseen": a layer is known by the shape of its weights, which compilers
        transpose and strip of ones.
        """
        seen = self._formats_by_shape()
        for name, _, weight, macs in self._products():
            if isinstance(weight.shape[0], int):
                yield name, "+".join(sorted(seen.get(_shape(weight.shape), {"unseen"}))), macs

    def _formats_by_shape(self) -> dict[tuple[int, ...], set[str]]:
        """The number formats of all tensors that go into a product, by their shapes, seen by PyTorch's profiler."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells when it starts and stops
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watched:  # on which kernels are launched
            self.compute(self._zeros(max(_TRIED)))
        with tempfile.TemporaryDirectory() as folder:
            watched.export_chrome_trace(str(file := Path(folder) / "trace.json"))
            events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
        seen = defaultdict(set)
        for event in events:
            if event.get("name") in _PRODUCTS:
                for shape, kind in zip(event["args"]["Input Dims"], event["args"]["Input type"], strict=True):
                    if kind in _FORMATS:
                        seen[_shape(shape)].add(_FORMATS[kind])
        return seen


def _compute_fp32_as_fp32(torch: Any) -> None:
    """Take TF32 and bf16, mantissas of 10 and 7 bits under the name of FP32, from convolutions and products.

    For each call (1 µs), because a program around us may choose them at any time; of the whole process, because calls
    run side by side. By the switches old and new, which both count (PyTorch's notes, "Numerical accuracy").
    """
    torch.set_float32_matmul_precision("highest")  # of GPUs and processors
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.fp32_precision = torch.backends.mkldnn.conv.fp32_precision = "ieee"


def _side_by_side(outputs: Any) -> np.ndarray:
    """What a program answers, a tensor or several, wherever they are."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return side_by_side(*(output.float().cpu().numpy() for output in outputs))  # cpu() waits


def _shape(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(int(side) for side in shape if side != 1))


def why_no_gpu() -> str | None:
    """Why PyTorch can use no GPU here, with what to type where that helps; None when it can."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of an old driver in four lines; ours is below
        available = torch.cuda.is_available()
    told, built = driver(), torch.version.cuda or ""
    if not told.gpus:
        return None if available else f"PyTorch sees no CUDA GPU here ({told.error})"
    fits, gpu = serving(told, here()), told.gpus[0]
    another = f"type: {anew_line()}" if fits else "get driver 580 or newer"
    if not built:
        return f"PyTorch {torch.__version__} was built without CUDA, which the {gpu.name} needs; {another}"
    if told.cuda and _major(told.cuda) < _major(built):
        return f"the driver {told.version} serves CUDA {told.cuda}, this PyTorch needs {built}; {another}"
    if fits and fits.major < _major(built):
        return f"this PyTorch, for CUDA {built}, has no kernels for the {gpu.name} ({gpu.capability}); {another}"
    ask = "see: python -c 'import torch; torch.cuda.init()'"
    return None if available else f"PyTorch sees no CUDA GPU beside the driver {told.version}; {ask}"


def _major(version: str) -> int:
    return int(version.partition(".")[0])
