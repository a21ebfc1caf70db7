"""A foreign graph under our contract: the normalisation that its photos need before it, our names around it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph import INPUT, OUTPUT, all_graphs
from export.settings import Foreign
from runtime.spec import ModelSpec

OURS, THEIRS = "saji/", "foreign/"  # before the names of what is put in front, and of the foreign graph


def wrapped(core: onnx.ModelProto, spec: ModelSpec, foreign: Foreign) -> onnx.ModelProto:
    """The foreign graph under the contract: uint8 `[batch, S, S, 3]` RGB in, float32 logits `[batch, C]` out."""
    whole, size = onnx.ModelProto(), spec.geometry.size
    whole.CopyFrom(core)
    graph = whole.graph
    _rename(graph, THEIRS)  # its own names may be "images" and "logits", too
    entry = graph.input[0].name
    exit_ = graph.output[0].name
    first = _normalisation(foreign, entry)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in first.constants.items())
    nodes = [*first.nodes, *graph.node, helper.make_node("Identity", [exit_], [OUTPUT], name=OUTPUT)]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, ["batch", size, size, 3]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", len(spec.classes)]))
    return whole


@dataclass(frozen=True)
class Prefix:
    """Nodes that come before a graph, and their constants by name."""

    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]


def _normalisation(foreign: Foreign, output: str) -> Prefix:
    """From photos as the contract has them to what the foreign network takes: (pixels × scale − mean) / std."""
    constants = {f"{OURS}{name}": np.array(getattr(foreign, name), np.float32) for name in ("scale", "mean", "std")}
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Cast", [], {"to": onnx.TensorProto.FLOAT}),
        ("Mul", [f"{OURS}scale"], {}),
        ("Sub", [f"{OURS}mean"], {}),
        ("Div", [f"{OURS}std"], {}),
    ]
    if foreign.channels == "bgr":
        constants[f"{OURS}bgr"] = np.array([2, 1, 0])
        steps.append(("Gather", [f"{OURS}bgr"], {"axis": 3}))
    steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}) if foreign.layout == "nchw" else ("Identity", [], {}))
    names = [INPUT, *(f"{OURS}{number}" for number in range(1, len(steps))), output]
    nodes = [
        helper.make_node(kind, [names[i], *more], [names[i + 1]], name=f"{OURS}{kind}", **attributes)
        for i, (kind, more, attributes) in enumerate(steps)
    ]
    return Prefix(nodes, constants)


def _rename(graph: onnx.GraphProto, prefix: str) -> None:
    """Put a prefix before the name of every tensor and node of a graph, and of the branches and loops inside it.

    A node's has its number, too: the multiply-adds are listed by it, and several may have one name or none.
    """
    for number, node in enumerate(node for each in all_graphs(graph) for node in each.node):
        node.name = f"{prefix}{number}/{node.name or node.op_type}"
        for names in (node.input, node.output):
            names[:] = [name and prefix + name for name in names]  # an empty name is an input left out
    for each in all_graphs(graph):
        for value in (*each.input, *each.output, *each.value_info, *each.initializer):
            value.name = prefix + value.name
