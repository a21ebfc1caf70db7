"""What exporters of other projects write, as one graph in FP32: photos in, one row of logits for each out."""

import math
import re
from pathlib import Path

import onnx
import onnx.inliner
import onnx.version_converter

from export.foreign.opening import in_one_line, opened
from export.graph import OPSET, all_graphs, opset_of
from runtime.errors import BadModel
from runtime.spec import require_one_file

_QUANTISED = re.compile(r"[Qq]uantize|Integer|NBits|^Q[A-Z]")  # operators of ONNX and of ONNX Runtime
_HIGH_AND_LOW = ("FLOAT16", "BFLOAT16", "DOUBLE")
_SUMMING = re.compile(r"Conv|Gemm|MatMul|Einsum|Attention|^RNN$|LSTM|GRU|Normalization|AveragePool")
_RENAMING = ("Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze")  # what may stand behind a last Softmax


def read_foreign(path: Path) -> onnx.ModelProto:
    """The file as it was written, one float32 input `[batch, …]`, one float32 output `[batch, C]`; batch open, or 1.

    Its functions are written out where they are used. Raises BadModel for anything else, such as external data that is
    not beside it, a batch of four, or layers that compute in another format than FP32.
    """
    model = opened(path)
    try:
        return _read(model, path)
    except BadModel:
        raise
    except Exception as error:  # protobuf's and onnx's errors are of no common family
        raise BadModel(
            f"{path} breaks a rule of ONNX ({in_one_line(error)}); export it with another opset_version, such as 17, "
            "or mend it until onnx.checker.check_model takes it"
        ) from None


def _read(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    tensors = (tensor for graph in all_graphs(model.graph) for tensor in (*graph.initializer, *_constants(graph)))
    require_one_file(str(path), sum(4 * math.prod(tensor.dims) for tensor in tensors))
    _require_shapes(model.graph, path)
    onnx.checker.check_model(model)
    _import_standard(model)
    typed = [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer]
    model.graph.value_info.extend(typed)  # by which functions of another opset are converted
    model = onnx.inliner.inline_local_functions(model, convert_version=True)
    _leave_out_watchers(model.graph)
    graph, constants = model.graph, {tensor.name for tensor in model.graph.initializer}
    if graph.sparse_initializer:
        raise BadModel(
            f"{path} has sparse weights ({graph.sparse_initializer[0].values.name}); export it with dense ones"
        )
    inputs = [value for value in graph.input if value.name not in constants]
    signature = ", ".join(f"{value.name} {_type(value)} {dims(value)}" for value in (*inputs, *graph.output))
    kinds = [_type(value) for value in (*inputs, *graph.output)]
    ranks = [len(dims(value)) for value in (*inputs, *graph.output)]
    if (kinds, ranks) != (["FLOAT", "FLOAT"], [4, 2]):
        how = "export the network by itself, without what turns numbers or names its answers"
        if ranks == [4, 2] and {"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"}.issuperset(kinds):
            how = "export it in float32"
        elif ranks[:1] == [2]:
            how = (
                "a model of numbers in a row, such as scikit-learn's, cannot be brought in; choose a network of photos"
            )
        raise BadModel(
            f"{path} has the signature {signature}; float32 photos [N, …] in and logits [N, C] out are needed: {how}"
        )
    if isinstance(batch := dims(inputs[0])[0], int) and batch > 1:
        raise BadModel(f"{path} takes a fixed batch of {batch} ({signature}); export it anew with a dynamic batch")
    _require_float32(model, path)
    del graph.input[:], graph.value_info[:]
    graph.input.append(inputs[0])
    return model


def _constants(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    return [attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute]


def _import_standard(model: onnx.ModelProto) -> None:
    """Name the standard's opset where a graph has only operators of other domains: that of its functions, or ours."""
    if all(entry.domain for entry in model.opset_import):
        of_functions = [entry for part in model.functions for entry in part.opset_import if not entry.domain]
        model.opset_import.append((of_functions or [onnx.helper.make_opsetid("", OPSET)])[0])


def _leave_out_watchers(graph: onnx.GraphProto) -> None:
    """Take away operators that give nothing, such as those that print."""
    for part in [*all_graphs(graph)]:
        for node in [node for node in part.node if not any(node.output)]:
            part.node.remove(node)


def _require_shapes(graph: onnx.GraphProto, path: Path) -> None:
    """Raise BadModel where an input or output is a tensor of any number of dimensions."""
    for value in (*graph.input, *graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            raise BadModel(
                f"{path} does not say the shape of {value.name}; export it with the shapes of its input and output, "
                "which may leave sizes open"
            )


def _require_float32(model: onnx.ModelProto, path: Path) -> None:
    """Raise BadModel where layers take another format: which one serves is decided here, from FP32.

    Of what comes out of operators of other domains onnx knows no type, so that they are asked, too.
    """
    formats = dict[str, str]()
    for graph in all_graphs(onnx.shape_inference.infer_shapes(model).graph):  # branches behind what is around them
        formats |= dict.fromkeys((name for node in graph.node for name in node.output), "")
        formats |= {value.name: _type(value) for value in (*graph.input, *graph.value_info, *graph.output)}
        formats |= {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
        for node in graph.node:
            if _QUANTISED.search(node.op_type):
                raise BadModel(
                    f"{path} is quantised already ({node.op_type}); bring in the FP32 file that it was made from"
                )
            told = {formats.get(name, "") for name in (*node.input, *node.output)}
            if (_SUMMING.search(node.op_type) or node.domain) and (others := told.intersection(_HIGH_AND_LOW)):
                made = next(filter(None, node.output))
                raise BadModel(f"{path} computes {made} in {min(others).lower()}; export it in float32")


def without_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph up to its logits: a copy in which a last Softmax does nothing."""
    core = onnx.ModelProto()
    core.CopyFrom(model)
    made_by = {name: node for node in core.graph.node for name in node.output}
    last = made_by.get(core.graph.output[0].name)
    while last and last.op_type in _RENAMING:
        last = made_by.get(last.input[0])
    if last and last.op_type == "Softmax":
        last.op_type = "Identity"
        del last.attribute[:]
    return core


def lifted(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The graph at our opset, or at a newer one of its own. Raises BadModel where onnx cannot convert it.

    Down it is not converted: a Gelu, which an exporter writes since opset 20, has no older version.
    """
    if opset_of(model) >= OPSET:
        return model
    try:
        model = onnx.version_converter.convert_version(model, OPSET)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        what = in_one_line(error)
        raise BadModel(
            f"{path} cannot be converted to opset {OPSET} ({what}); export it with opset_version={OPSET}"
        ) from None
    return model


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    """The sizes of a tensor, a name or "?" where one is open."""
    return [d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _type(value: onnx.ValueInfoProto) -> str:
    return onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
