"""A graph that was exported for one photo, as exporters do unless they are told, opened for any number of them."""

import onnx
from onnx import helper, numpy_helper

from export.foreign.reading import dims

OPENED = "saji/opened"  # before the names of what is put in for it


def with_open_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no layer keeps to a batch of one; the model itself where its batch is open already.

    Of a Reshape to constant sizes the first becomes what is left over, and what is the same for all photos, as the
    class token of a transformer, is repeated where it joins theirs. Whether this is right only the answers show.
    """
    if dims(model.graph.input[0])[0] != 1:
        return model
    copy = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    written = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    constants |= {node.output[0]: node.attribute[0].t for node in written}
    shapes = {value.name: dims(value) for value in graph.value_info} | {k: [*v.dims] for k, v in constants.items()}
    nodes, same = list[onnx.NodeProto](), {"", *constants}  # for all photos
    for number, node in enumerate(graph.node):
        if same.issuperset(node.input):
            same.update(node.output)
        elif node.op_type == "Reshape" and node.input[1] in constants:
            sizes = numpy_helper.to_array(constants[node.input[1]]).copy()
            if -1 not in sizes[1:]:
                sizes[:1] = -1
            elif sizes[0] == 1:
                sizes[0] = 0  # as many as come in
                del node.attribute[:]  # allowzero, by which these were none
            node.input[1] = f"{OPENED}/{number}/sizes"
            graph.initializer.append(numpy_helper.from_array(sizes, node.input[1]))
        elif node.op_type == "Concat":
            photos = next(name for name in node.input if name not in same)
            for place, name in enumerate(node.input):
                if name in same and len(shape := shapes.get(name, [])) > 1:
                    node.input[place] = f"{OPENED}/{number}/{place}"
                    nodes += _repeated(name, len(shape), photos, node.input[place])
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def _repeated(row: str, rank: int, photos: str, output: str) -> list[onnx.NodeProto]:
    """Nodes that repeat what is `[1, …]` as often as there are photos."""
    number, rest, sizes = (f"{output}/{part}" for part in ("number", "rest", "sizes"))
    return [
        helper.make_node("Shape", [photos], [number], start=0, end=1),
        helper.make_node("Constant", [], [rest], value_ints=[1] * (rank - 1)),
        helper.make_node("Concat", [number, rest], [sizes], axis=0),
        helper.make_node("Expand", [row, sizes], [output]),
    ]
