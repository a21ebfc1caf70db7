"""More ways to break an exported graph without an error, which only the laboratory uses: what the gate must catch.

A new one is a function that breaks a graph of ours in place, and a line in one of the tables at the end.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import onnx
from onnx import helper

from export.faults import SUSPECTS, Fault, NotApplicable, constant, first, set_constant
from export.graph import LAYERS


def _last_layer(model: onnx.ModelProto) -> tuple[str, str]:
    """The names of the last layer's weight and bias."""
    _, weight, bias = next(node for node in model.graph.node if "logits" in node.output).input
    return weight, bias


def _classes_rotated(model: onnx.ModelProto) -> None:
    for name in _last_layer(model):
        set_constant(model, name, np.roll(constant(model, name), 1, axis=0))


def _bias_zeroed(model: onnx.ModelProto) -> None:
    _, bias = _last_layer(model)
    set_constant(model, bias, np.zeros_like(constant(model, bias)))


def _truncated(model: onnx.ModelProto) -> None:
    """A file that was cut off and filled up with zeros: the last tenth of its largest weight."""
    weights = [node.input[1] for node in model.graph.node if node.op_type in LAYERS]
    largest = max(weights, key=lambda name: constant(model, name).size)
    value = constant(model, largest)
    value.reshape(-1)[-value.size // 10 :] = 0
    set_constant(model, largest, value)


def _rounded_to_half(model: onnx.ModelProto) -> None:
    """Every weight in the 11 bits of FP16, kept as FP32: a file that has been through another precision."""
    for name in {node.input[1] for node in model.graph.node if node.op_type in LAYERS}:
        set_constant(model, name, constant(model, name).astype(np.float16))


def _channel_grown(model: onnx.ModelProto) -> None:
    """The first channel of the layer in the middle."""
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    weight = layers[len(layers) // 2].input[1]
    value = constant(model, weight)
    value[0] *= 1.5
    set_constant(model, weight, value)


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
    _pass_through(first(model, "Add", where=lambda n: not constants & set(n.input)))


def _activation_removed(model: onnx.ModelProto) -> None:
    _pass_through(first(model, "Relu", "Clip"))


def _pass_through(node: onnx.NodeProto) -> None:
    node.op_type = "Identity"
    del node.input[1:]


def _overflowing(model: onnx.ModelProto) -> None:
    """Two layers whose scales cancel out: nothing changes in FP32, but what lies between leaves FP16's range."""
    chain = next(_conv_relu_conv(model), None)
    if chain is None:
        raise NotApplicable("the graph has no convolution, ReLU and convolution in a row")
    conv, _, second = chain
    with np.errstate(over="ignore"):  # a weight may overflow as well
        for name in conv.input[1:3]:
            set_constant(model, name, constant(model, name) * 2.0**15)
    set_constant(model, second.input[1], constant(model, second.input[1]) * 2.0**-15)


def _conv_relu_conv(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, ...]]:
    """Each such chain in which nothing else takes what the first two give."""
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    for node in model.graph.node:
        chain = [node]
        while len(chain) < 3 and len(following := takers.get(chain[-1].output[0], [])) == 1:
            chain += following
        if [node.op_type for node in chain] == ["Conv", "Relu", "Conv"]:
            yield tuple(chain)


def _activation_scales(model: onnx.ModelProto) -> list[str]:
    """In the order of the graph; some are shared."""
    return [node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def _weight_scales(model: onnx.ModelProto) -> list[str]:
    """Those that have a value per channel."""
    names = [node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    return [name for name in dict.fromkeys(names) if constant(model, name).ndim == 1]


def _rescaled(
    scales: Callable[[onnx.ModelProto], list[str]],
    change: Callable[[np.ndarray], np.ndarray],
    only_middle: bool = False,
) -> Callable[[onnx.ModelProto], None]:
    """Changes every scale that `scales` names, or only that in the middle of the network."""

    def apply(model: onnx.ModelProto) -> None:
        names = scales(model)
        for name in [names[len(names) // 2]] if only_middle else set(names):
            set_constant(model, name, change(constant(model, name)))

    return apply


# As where a signed range is taken for an unsigned one
_saturated = _rescaled(_activation_scales, lambda scale: scale / 2)
_one_saturated = _rescaled(_activation_scales, lambda scale: scale / 4, only_middle=True)
_scales_shifted = _rescaled(_weight_scales, partial(np.roll, shift=1))
_one_layers_scales_shifted = _rescaled(_weight_scales, partial(np.roll, shift=1), only_middle=True)


def _last_layer_coarse(model: onnx.ModelProto) -> None:
    """The last weight in five steps instead of 255."""
    weight, _ = _last_layer(model)
    value = constant(model, weight)
    step = np.abs(value).max() / 2
    set_constant(model, weight, np.round(value / step) * step)


def _last_layer_quantised(model: onnx.ModelProto) -> None:
    """The last weight in 255 steps by a scale of its own, read back by that of the last activation before it."""
    weight, _ = _last_layer(model)
    value = constant(model, weight)
    steps = np.round(value / (np.abs(value).max() / 127))
    set_constant(model, weight, steps * constant(model, _activation_scales(model)[-1]))


FAULTS = (
    *SUSPECTS,
    Fault("classes rotated", "its classes were in another order", _classes_rotated),
    Fault("last bias zeroed", "its last layer had lost its bias", _bias_zeroed),
    Fault("weights truncated", "a weight ended in zeros", _truncated),
    Fault("weights rounded to FP16", "its weights had been rounded to FP16", _rounded_to_half),
    Fault("one channel × 1.5", "one channel of a layer was half as large again", _channel_grown),
    Fault("padding moved", "a convolution padded at its end", _padding_moved),
    Fault("a residual removed", "a residual connection was missing", _residual_removed),
    Fault("an activation removed", "an activation was missing", _activation_removed),
)
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
