"""The usual mistakes of an export. A diagnosis makes each in the right graph and sees whether a wrong file answers so.

Each breaks a graph of ours in place: uint8 NHWC comes in, its first layers cast, transpose, subtract and divide.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph import INPUT


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
