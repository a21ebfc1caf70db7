"""The trained module as portable files, `model.onnx` and `model.pt2`: uint8 NHWC in, logits (and familiarity) out."""

import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from runtime.errors import GateFailed
from runtime.files import replacing
from runtime.spec import FAMILIARITY, ModelSpec, require_one_file
from runtime.terminal import quiet

OPSET = 18
INPUT, OUTPUT = "images", "logits"
DYNAMIC = {INPUT: {0: torch.export.Dim("batch")}}
LAYERS = ("Conv", "Gemm", "MatMul")  # the operators that multiply and add
# Ops that a fixed feed-forward classifier never needs. Seen where the exporter met strided views (see
# training.network.classifier.Normalise); OpenVINO's INT8 computes such a graph wrongly without a word.
FORBIDDEN_IN_OURS = ("Shape", "Range", "Gather")


def export_onnx(module: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write one self-contained ONNX file with dynamic batch and the spec in its metadata, checked by onnx.checker.

    `module` maps uint8 `[N, S, S, 3]` RGB to float32 logits `[N, C]`, or to a pair of them and familiarity `[N]`.
    Raises GateFailed when the exporter's file breaks the contract, BadModel for more weights than one file takes.
    """
    require_one_file(spec.name, sum(each.nbytes for each in module.state_dict().values()))
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            _example(spec),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(spec.outputs),
            dynamic_shapes=DYNAMIC,
            verbose=False,
        )
    assert program is not None
    save_onnx(program.model_proto, spec, path)


def _example(spec: ModelSpec) -> tuple[torch.Tensor]:
    """The module's argument: a batch of two, since the exporter would take a batch of one for a constant."""
    return (torch.zeros(2, spec.geometry.size, spec.geometry.size, 3, dtype=torch.uint8),)


def save_onnx(
    model: onnx.ModelProto, spec: ModelSpec, path: Path, kept: Sequence[str] = (), opset: int = OPSET
) -> None:
    """Put the spec into the metadata, check the contract, write atomically as one file.

    `kept` names the layers that keep a higher precision than the file's.
    """
    model.producer_name = "saji"
    metadata = {"spec": spec.to_json(), "multiply_adds": json.dumps(multiply_adds(model))}
    if kept:
        metadata["kept"] = json.dumps(list(kept))
    onnx.helper.set_model_props(model, metadata)
    for node in model.graph.node:  # the exporter's stack traces carry paths of the exporting machine
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    check_contract(model, spec, opset)
    with replacing(path) as temporary:
        onnx.save_model(model, temporary, save_as_external_data=False)


def check_contract(model: onnx.ModelProto, spec: ModelSpec, opset: int = OPSET) -> None:
    """Raise GateFailed unless the graph is images uint8 [batch, S, S, 3] → logits float32 [batch, C], one file.

    Of a model that has it familiarity float32 [batch] is the second output.
    """
    onnx.checker.check_model(model, full_check=True)
    signature = [_signature(value) for value in (*model.graph.input, *model.graph.output)]
    size, classes = spec.geometry.size, len(spec.classes)
    contract = [
        (INPUT, onnx.TensorProto.UINT8, ["batch", size, size, 3]),
        (OUTPUT, onnx.TensorProto.FLOAT, ["batch", classes]),
        *([(FAMILIARITY, onnx.TensorProto.FLOAT, ["batch"])] if spec.familiarity else []),
    ]
    if signature != contract:
        raise GateFailed(f"the exported graph has the signature {signature}, the contract is {contract}; this is a bug")
    if (version := opset_of(model)) != opset:
        raise GateFailed(f"the exported graph has opset {version}, the contract is {opset}; this is a bug")


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, list[Any]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and the branches and loops inside it."""
    yield graph
    for node in graph.node:
        yield from inner_graphs(node)


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The branches and loops of a node, and those inside them."""
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from all_graphs(inner)


def multiply_adds(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-adds per photo of every convolution and matrix product, by node name.

    They travel in the metadata, so that a consumer can weigh a node's precision without the onnx package.
    """
    one = onnx.ModelProto()
    one.CopyFrom(model)
    for part in all_graphs(one.graph):
        del part.value_info[:]
    for value in (*one.graph.input, *one.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graphs = [*all_graphs(onnx.shape_inference.infer_shapes(one, data_prop=True).graph)]
    values = [value for graph in graphs for value in (*graph.value_info, *graph.output)]
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}
    shapes |= {tensor.name: list(tensor.dims) for graph in graphs for tensor in graph.initializer}
    nodes = [node for graph in graphs for node in graph.node]
    through = {n.output[0]: n.input[0] for n in nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    work = {}
    for node in nodes:
        if node.op_type in LAYERS:
            weight = node.input[1]
            while weight in through:
                weight = through[weight]
            out, filters = (
                shapes.get(name) or [0, 0] for name in (node.output[0], weight)
            )  # of unknown shape: no work
            if node.op_type == "Conv":
                work[node.name] = math.prod(out) * math.prod(filters[1:])
            elif node.op_type == "Gemm":  # [in, out] or, transposed, [out, in]
                work[node.name] = math.prod(filters) * out[0]
            else:  # [in, out] or [in]; in attention two activations, whose last positions are these
                work[node.name] = math.prod(out) * filters[-2:][0]
    return work


def beside_logits(model: onnx.ModelProto) -> set[str]:
    """The names of the nodes that the logits do not need: those of a second output."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    needed, todo = set[str](), [OUTPUT]
    while todo:
        node = made_by.get(todo.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            todo.extend(node.input)
    return {node.name for node in model.graph.node} - needed


def layer_facts(path: Path) -> dict[str, Any]:
    """What an exported file says of its layers.

    `multiply_adds` by node, and under `kept` the layers of an INT8 file that were declared to keep a higher precision,
    with their share of the multiply-adds.
    """
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    work = json.loads(metadata["multiply_adds"])
    kept = {name: round(work[name] / sum(work.values()), 4) for name in json.loads(metadata.get("kept", "[]"))}
    return {"multiply_adds": work, "kept": kept}


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators in a graph."""
    return next(entry.version for entry in model.opset_import if not entry.domain)


def graph_facts(path: Path) -> dict[str, Any]:
    """An ONNX file's opset, and how often each operator occurs in it."""
    model = onnx.load(path, load_external_data=False)
    operators = Counter(node.op_type for node in model.graph.node)
    return {"opset": opset_of(model), "operators": dict(sorted(operators.items()))}


def export_pt2(module: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write the PyTorch program (`torch.export`) with the spec beside it: runs without our classes, bit-equal."""
    with quiet(), torch.no_grad():
        program = torch.export.export(module.eval(), _example(spec), dynamic_shapes=DYNAMIC)
    # Through memory: on a full disk PyTorch's own writer ends the whole process
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files={"spec": spec.to_json()})
    with replacing(path) as temporary:
        temporary.write_bytes(archive.getbuffer())
