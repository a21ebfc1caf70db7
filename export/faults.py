"""Ways in which an exported graph goes wrong without an error: what diagnosis suspects and what the gate must catch.

Each breaks a graph of ours in place: uint8 NHWC comes in, its first layers cast, transpose, subtract and divide.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph import INPUT, LAYERS


class NotApplicable(Exception):
    """The graph has nothing that this fault could break."""


@dataclass(frozen=True)
class Fault:
    """`says` completes the sentence "it answers as if …"; `apply` breaks a graph in place or raises NotApplicable."""

    name: str
    says: str
    apply: Callable[[onnx.ModelProto], None]


def broken(model: onnx.ModelProto, fault: Fault) -> onnx.ModelProto:
    """A copy of the graph with the fault in it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    fault.apply(copy)
    return copy


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    """The value of an initializer."""
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name)).copy()


def set_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    """Give an initializer another value of the same type."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    kind = numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, kind), name))


def first(model: onnx.ModelProto, *kinds: str, where: Callable[[onnx.NodeProto], bool] = bool) -> onnx.NodeProto:
    """The first node of these operators that `where` accepts; raises NotApplicable when there is none."""
    for node in model.graph.node:
        if node.op_type in kinds and where(node):
            return node
    raise NotApplicable(f"the graph has no such {' or '.join(kinds)}")


def _blue_first(model: onnx.ModelProto) -> None:
    order = numpy_helper.from_array(np.array([2, 1, 0]), "blue_first")
    model.graph.initializer.append(order)
    for node in model.graph.node:
        node.input[:] = ["swapped" if name == INPUT else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Gather", [INPUT, "blue_first"], ["swapped"], "swap", axis=3))


def _transposed(model: onnx.ModelProto) -> None:
    first(model, "Transpose").attribute[0].ints[:] = [0, 3, 2, 1]


def _normalised(
    change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        mean, std = first(model, "Sub").input[1], first(model, "Div").input[1]
        changed = change(constant(model, mean), constant(model, std))
        for name, value in zip((mean, std), changed, strict=True):
            set_constant(model, name, value)

    return apply


# What diagnosis tries. Mean and std are on the scale of 0 to 255.
SUSPECTS = (
    Fault("blue first", "blue and red were swapped", _blue_first),
    Fault("height and width swapped", "height and width were swapped", _transposed),
    Fault("not normalised", "mean and std were missing", _normalised(lambda m, s: (0 * m, 0 * s + 255))),
    Fault("not scaled", "pixels were left at 0 to 255", _normalised(lambda m, s: (0 * m, 0 * s + 1))),
    Fault(
        "normalised twice",
        "pixels were normalised before they came in",
        _normalised(lambda m, s: (m + s * m / 255, s * s / 255)),
    ),
)


def _classes_rotated(model: onnx.ModelProto) -> None:
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    for name in last.input[1:3]:
        set_constant(model, name, np.roll(constant(model, name), 1, axis=0))


def _bias_zeroed(model: onnx.ModelProto) -> None:
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    set_constant(model, last.input[2], np.zeros_like(constant(model, last.input[2])))


def _truncated(model: onnx.ModelProto) -> None:
    """A file that was cut off and filled up with zeros: the last tenth of its largest weight."""
    weights = [node.input[1] for node in model.graph.node if node.op_type in LAYERS]
    largest = max(weights, key=lambda name: constant(model, name).size)
    value = constant(model, largest)
    value.reshape(-1)[-value.size // 10 :] = 0
    set_constant(model, largest, value)


def _padding_moved(model: onnx.ModelProto) -> None:
    """As TensorFlow pads "SAME": more at the end. The output keeps its size, everything shifts by a pixel."""

    def pads(node: onnx.NodeProto) -> list[int]:
        return next((list(a.ints) for a in node.attribute if a.name == "pads"), [])

    node = first(model, "Conv", where=lambda n: len(pads(n)) == 4 and min(pads(n)) > 0)
    top, left, bottom, right = pads(node)
    moved = helper.make_attribute("pads", [top - 1, left - 1, bottom + 1, right + 1])
    kept = [attribute for attribute in node.attribute if attribute.name != "pads"]
    del node.attribute[:]
    node.attribute.extend([*kept, moved])


def _residual_removed(model: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    node = first(model, "Add", where=lambda n: not constants & set(n.input))
    node.op_type = "Identity"
    del node.input[1:]


def _activation_removed(model: onnx.ModelProto) -> None:
    node = first(model, "Relu", "Clip")
    node.op_type = "Identity"
    del node.input[1:]


FAULTS = (
    *SUSPECTS,
    Fault("classes rotated", "its classes were in another order", _classes_rotated),
    Fault("last bias zeroed", "its last layer had lost its bias", _bias_zeroed),
    Fault("weights truncated", "a weight ended in zeros", _truncated),
    Fault("padding moved", "a convolution padded at its end", _padding_moved),
    Fault("a residual removed", "a residual connection was missing", _residual_removed),
    Fault("an activation removed", "an activation was missing", _activation_removed),
)


def _overflowing(model: onnx.ModelProto) -> None:
    """Two layers whose scales cancel out: nothing changes in FP32, but what lies between leaves FP16's range."""
    by_input: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            by_input.setdefault(name, []).append(node)
    for conv in model.graph.node:
        chain = [conv]
        while chain[-1].op_type in ("Conv", "Relu") and len(by_input.get(chain[-1].output[0], [])) == 1 < 4 - len(
            chain
        ):
            chain += by_input[chain[-1].output[0]]
        if [node.op_type for node in chain] == ["Conv", "Relu", "Conv"]:
            with np.errstate(over="ignore"):  # a weight may overflow as well
                for name in conv.input[1:3]:
                    set_constant(model, name, constant(model, name) * 2.0**15)
            set_constant(model, chain[2].input[1], constant(model, chain[2].input[1]) * 2.0**-15)
            return
    raise NotApplicable("the graph has no convolution, ReLU and convolution in a row")


def _saturated(model: onnx.ModelProto) -> None:
    """Every activation's range halved, as where a signed range is taken for an unsigned one."""
    for name in {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}:
        set_constant(model, name, constant(model, name) / 2)


def _one_saturated(model: onnx.ModelProto) -> None:
    """The range of the activation in the middle of the network cut to a quarter."""
    names = [node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    middle = names[len(names) // 2]
    set_constant(model, middle, constant(model, middle) / 4)


def _weight_scales(model: onnx.ModelProto) -> list[str]:
    names = [node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    return [name for name in dict.fromkeys(names) if constant(model, name).ndim == 1]  # per channel: a weight's


def _scales_shifted(model: onnx.ModelProto) -> None:
    for name in _weight_scales(model):
        set_constant(model, name, np.roll(constant(model, name), 1))


def _one_layers_scales_shifted(model: onnx.ModelProto) -> None:
    names = _weight_scales(model)
    middle = names[len(names) // 2]
    set_constant(model, middle, np.roll(constant(model, middle), 1))


def _last_layer_coarse(model: onnx.ModelProto) -> None:
    """The last weight in five steps instead of 255."""
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    value = constant(model, last.input[1])
    step = np.abs(value).max() / 2
    set_constant(model, last.input[1], np.round(value / step) * step)


def _last_layer_quantised(model: onnx.ModelProto) -> None:
    """The last weight in 255 steps by a scale of its own, read back by that of the last activation before it."""
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    value = constant(model, last.input[1])
    steps = np.round(value / (np.abs(value).max() / 127))
    other = [node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"][-1]
    set_constant(model, last.input[1], steps * constant(model, other))


FP16_FAULTS = (Fault("FP16 overflow", "a layer left the range of FP16", _overflowing),)
INT8_FAULTS = (
    Fault("activations saturated", "the range of activations was halved", _saturated),
    Fault("weight scales shifted", "each channel of a weight had its neighbour's scale", _scales_shifted),
    Fault("last layer wrongly scaled", "the last layer was quantised by a wrong scale", _last_layer_quantised),
)
# As small as the rounding that the INT8 gate must allow, or nearly: some networks do not mind them
FAINT_FAULTS = (
    Fault("an activation saturated", "the range of an activation was cut to a quarter", _one_saturated),
    Fault("a layer's scales shifted", "each channel of a layer had its neighbour's scale", _one_layers_scales_shifted),
    Fault("last layer in five steps", "the last layer had five steps instead of 255", _last_layer_coarse),
)
