"""A graph's layers one by one: how an INT8 file's differ from the FP32 graph's, and which one first gives no answer.

A fault of one layer may move the logits no more than the rounding of all layers together, so the logits cannot show it.
The layer can: of the FP32 graph's own activations it may differ by as much as its own quantisation step explains.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from export.graph import INPUT, LAYERS
from runtime.candidate import Candidate
from runtime.gate import no_answer
from training.network.classifier import PhotoClassifier, reference_logits

QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
PHOTOS = 16  # spread over those of calibration
SHOWN = 3  # faults of a file, the worst first
AT_ONCE = 4  # photos: the input and output of every layer are in memory together
GIVEN = "fp32/"  # before the name of a tensor that is given from the FP32 graph
# How often what rounding explains, as RMS: a quantiser, whose range was that of all calibration photos, and the worst
# channel of a layer, whose weights may have 7 bits. Healthy files stay below half of it; docs/gate.md tells of both
QUANTISER_BOUND, LAYER_BOUND = 5.0, 10.0
LEAST = 0.01  # of what its layer's channels explain on average, as squares: as much any channel may differ
ROUNDING = 1e-6  # of FP32's own sums, as a share of a layer's values


@dataclass(frozen=True)
class Difference:
    """How far a quantiser or layer is from FP32, over what its quantisation step explains: rounding gives about 1.

    Of a layer it is the output channel where that is largest. `bound` is what may be.
    """

    layer: str
    ratio: float
    bound: float


def faults_of(fp32: Path, int8: Path, photos: np.ndarray) -> tuple[str, ...]:
    """What is wrong with an INT8 Q/DQ file by its layers, as reasons against it, the worst first and at most SHOWN.

    None where all is well. `fp32` is the file that it was made of, `photos` are uint8 `[N, S, S, 3]`, those that it was
    calibrated on.
    """
    right, parts = onnx.load(fp32), taken_apart(onnx.load(int8))
    known = {name for node in right.graph.node for name in node.output}
    wanted = {*_given(parts), *(part.expected for part in _parts(right, parts))}
    if strange := sorted(wanted - known):
        return (f"it is of another network: the FP32 graph has no {strange[0]}",)
    found = [one for one in differences(right, parts, photos) if not one.ratio <= one.bound]  # NaN is none either
    return tuple(
        f"{one.layer} differs from FP32 by {one.ratio:.3g} times what its quantisation step explains, more than "
        f"{one.bound:g}"
        for one in sorted(found, key=lambda one: -one.ratio / one.bound)[:SHOWN]
    )


def differences(right: onnx.ModelProto, parts: onnx.ModelProto, photos: np.ndarray) -> list[Difference]:
    """Every quantiser of activations and every layer with a weight, in the order of the INT8 file.

    `right` is the FP32 graph, `parts` the INT8 file's, see `taken_apart`; both run with no optimisation.
    """
    given, watched = _given(parts), list(_parts(right, parts))
    wanted = sorted({*given, *(name for part in watched for name in (part.expected, part.entry))})
    reference, file = session(right, wanted), session(parts, [part.output for part in watched])
    chosen = photos[np.unique(np.linspace(0, len(photos) - 1, PHOTOS, dtype=int))]
    for i in range(0, len(chosen), AT_ONCE):
        values = dict(zip(wanted, reference.run(wanted, {INPUT: chosen[i : i + AT_ONCE]}), strict=True))
        answers = file.run([part.output for part in watched], {GIVEN + name: values[name] for name in given})
        for part, answer in zip(watched, answers, strict=True):
            part.add(values[part.entry], values[part.expected], answer)
    return [part.difference() for part in watched]


def taken_apart(model: onnx.ModelProto) -> onnx.ModelProto:
    """The quantisers and layers of a Q/DQ graph alone: what they took from the rest is given to them, under GIVEN."""
    nodes = [node for node in model.graph.node if node.op_type in (*QUANTISERS, *LAYERS)]
    inside = {name for node in nodes if node.op_type in QUANTISERS for name in node.output}
    inside |= {tensor.name for tensor in model.graph.initializer} | {""}
    parts = onnx.ModelProto()
    parts.CopyFrom(model)
    for kind in (parts.graph.node, parts.graph.input, parts.graph.output, parts.graph.value_info):
        del kind[:]  # type: ignore[attr-defined]  # each is a list of its own type
    parts.graph.node.extend(nodes)
    for node in parts.graph.node:
        node.input[:] = [name if name in inside else GIVEN + name for name in node.input]
    names = dict.fromkeys(name for node in parts.graph.node for name in node.input if name.startswith(GIVEN))
    parts.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return parts


def _given(parts: onnx.ModelProto) -> list[str]:
    return [value.name.removeprefix(GIVEN) for value in parts.graph.input]


@dataclass
class _Part:
    """A quantiser, or a layer with its FP32 `weight` `[channels, values]`: which tensors to watch, and sums of them.

    `output` is the file's and `expected` the FP32 graph's; `entry` is what FP32's layer takes. Channels lie along
    `axis`, of which a quantiser has none. `low` and `high` are the range of the entry, which includes 0.
    """

    layer: str
    output: str
    expected: str
    entry: str
    weight: np.ndarray | None = None
    groups: int = 1
    axis: int | None = None
    errors: "_Moments" = field(default_factory=lambda: _Moments())
    entries: "_Moments" = field(default_factory=lambda: _Moments())
    sizes: "_Moments" = field(default_factory=lambda: _Moments())
    low: float = 0.0
    high: float = 0.0

    def add(self, entry: np.ndarray, expected: np.ndarray, answer: np.ndarray) -> None:
        """Count in a batch of FP32's input and output, and of the file's output."""
        self.errors.add(answer.astype(np.float64) - expected, self.axis)
        self.entries.add(entry, self.axis)
        self.sizes.add(expected, self.axis)
        self.low, self.high = min(self.low, float(entry.min())), max(self.high, float(entry.max()))

    def difference(self) -> Difference:
        """The error's RMS over what is explained; a layer's without its mean, because a bias may make up for others."""
        errors = self.errors.squares if self.weight is None else self.errors.variances
        explained = self._explained()
        # A dead channel has next to no weight, and no step so fine; and where all is 0, nothing may differ
        explained = explained + (LEAST * np.mean(explained) + ROUNDING**2 * np.mean(self.sizes.squares) or 1.0)
        bound = QUANTISER_BOUND if self.weight is None else LAYER_BOUND
        return Difference(self.layer, float(np.sqrt(np.max(errors / explained))), bound)

    def _explained(self) -> np.ndarray | float:
        """The mean squared error that 8 bits give at best: rounding to steps of s errs by s²/12 (Bennett 1948).

        Activations have 255 steps in their range, the weights of a channel 127 in their largest value.
        """
        activation = ((self.high - self.low) / 255) ** 2 / 12
        if self.weight is None:
            return activation
        step = np.abs(self.weight).max(axis=1) / 127
        entries = self.entries.variances.reshape(self.groups, -1).mean(axis=1).repeat(len(self.weight) // self.groups)
        return activation * (self.weight**2).sum(axis=1) + step**2 / 12 * self.weight.shape[1] * entries


@dataclass
class _Moments:
    """Means and mean squares of a tensor per channel, or of all of it, over batches of one size."""

    sums: np.ndarray = field(default_factory=lambda: np.zeros(1))
    sums_of_squares: np.ndarray = field(default_factory=lambda: np.zeros(1))
    batches: int = 0

    def add(self, values: np.ndarray, axis: int | None) -> None:
        """Count in a batch, whose channels lie along `axis`."""
        rows = values[None] if axis is None else np.moveaxis(values, axis, 0)
        rows = rows.reshape(len(rows), -1).astype(np.float64)
        self.sums = self.sums + rows.mean(axis=1)
        self.sums_of_squares = self.sums_of_squares + (rows**2).mean(axis=1)
        self.batches += 1

    @property
    def squares(self) -> np.ndarray:
        """The mean square."""
        return self.sums_of_squares / self.batches

    @property
    def variances(self) -> np.ndarray:
        """The variance."""
        return np.maximum(self.squares - (self.sums / self.batches) ** 2, 0)


def _parts(right: onnx.ModelProto, parts: onnx.ModelProto) -> Iterator[_Part]:
    """What is watched of a file taken apart: quantisers of activations, and layers whose FP32 weight is a constant."""
    weights = {tensor.name: tensor for tensor in right.graph.initializer}
    layers = {node.output[0]: node for node in right.graph.node if node.op_type in LAYERS}
    quantised = {node.output[0]: node.input[0] for node in parts.graph.node if node.op_type == "QuantizeLinear"}
    for node in parts.graph.node:
        output, entry = node.output[0], quantised.get(node.input[0], "").removeprefix(GIVEN)
        if entry:
            yield _Part(f"activation {entry}", output, entry, entry)
        elif node.op_type in LAYERS:
            layer = layers.get(output, node)
            if layer is node or layer.input[1] in weights:
                weight = weights.get(layer.input[1])
                yield _layer(layer, numpy_helper.to_array(weight) if weight else np.zeros((1, 1)))


def _layer(node: onnx.NodeProto, weight: np.ndarray) -> _Part:
    facts = {a.name: a.i for a in node.attribute if a.name in ("group", "transB")}
    if node.op_type != "Conv" and not facts.get("transB"):
        weight = weight.T
    axis = -1 if node.op_type == "MatMul" else 1
    rows, output = weight.reshape(len(weight), -1).astype(np.float64), node.output[0]
    return _Part(f"layer {node.name}", output, output, node.input[0], rows, facts.get("group", 1), axis)


def with_layer(candidate: Candidate, folder: Path, images: np.ndarray) -> Candidate:
    """A candidate that was checked; where its logits are NaN, infinite or always the same, with the first such layer.

    `images` are uint8 `[N, S, S, 3]`.
    """
    if candidate.verdict != "fail" or candidate.figures or not candidate.file.endswith(".onnx"):
        return candidate
    layer = first_without_answer(folder / candidate.file, images)
    named = (f"the first layer without an answer is {layer}",) if layer else ()
    return replace(candidate, reasons=(*candidate.reasons, *named))


def first_without_answer(file: Path | onnx.ModelProto, images: np.ndarray) -> str:
    """The first node of a graph, as written, that gives NaN, infinity or one value for all photos; empty where none.

    `images` are uint8 `[N, S, S, 3]`.
    """
    try:
        model = onnx.load(file) if isinstance(file, Path) else file
        names = {node.output[0]: f"{node.name} ({node.op_type})" for node in model.graph.node if node.output[0]}
        graph = session(model, [*names])
        for i in range(0, len(images), AT_ONCE):
            values = graph.run([*names], {INPUT: images[i : i + AT_ONCE]})
            for name, value in zip(names.values(), values, strict=True):
                if _without_answer(value, min(AT_ONCE, len(images) - i)):
                    return name
    except (
        Exception
    ):  # onnxruntime raises its own classes, which have no public base; then the engine alone has said why
        return ""
    return ""


def first_module_without_answer(model: PhotoClassifier, images: np.ndarray) -> str:
    """As `first_without_answer`, of a module in PyTorch: the name of a submodule that has no others inside."""
    found: list[str] = []

    def look(name: str, value: torch.Tensor) -> None:
        if isinstance(value, torch.Tensor) and not found and _without_answer(value.numpy(), AT_ONCE):
            found.append(name)

    leaves = [(name, module) for name, module in model.named_modules() if not [*module.children()]]
    hooks = [leaf.register_forward_hook(lambda _, __, value, name=name: look(name, value)) for name, leaf in leaves]
    for i in range(0, len(images) - AT_ONCE + 1, AT_ONCE):
        if not found:
            reference_logits(model, images[i : i + AT_ONCE])
    for hook in hooks:
        hook.remove()
    return found[0] if found else ""


def _without_answer(value: np.ndarray, photos: int) -> bool:
    """Whether a layer's float value, which has a row for each photo, tells nothing; other values are of no photo."""
    of_photos = value.dtype.kind == "f" and value.ndim > 1 and len(value) == photos
    return of_photos and bool(no_answer(value))


def session(model: onnx.ModelProto, outputs: Sequence[str]) -> Any:
    """A graph in ONNX Runtime on the CPU as it is written, with no optimisation, that gives these tensors, too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {value.name for value in copy.graph.output}
    more = [name for name in outputs if name not in there]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in more)
    import onnxruntime  # NNCF's ONNX side needs it anyhow

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
