"""Networks and the ONNX parser: layers as TensorRT-RTX 1.7.1's own parser makes them of the same files."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

from saji_twin.shapes import Bound, Dims

# Operators of ONNX by what TensorRT makes of them
KINDS = {
    **{"Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION", "Cast": "CAST", "Softmax": "SOFTMAX"},
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Gelu", "LeakyRelu"), "ACTIVATION"),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"), "ELEMENTWISE"),
    **dict.fromkeys(("MaxPool", "AveragePool"), "POOLING"),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool"), "REDUCE"),
    "ReduceLogSumExp": "REDUCE",  # there it is ten layers, of which this is the first
    **dict.fromkeys(("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"), "SHUFFLE"),
    **dict.fromkeys(("Sqrt", "Exp", "Erf", "Neg", "Abs", "Reciprocal"), "UNARY"),
    **{"QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE", "Concat": "CONCATENATION", "Slice": "SLICE"},
    **{"MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "Gather": "GATHER", "Resize": "RESIZE"},
    **{"Identity": "IDENTITY", "Pad": "PADDING", "Shape": "SHAPE", "Constant": "CONSTANT"},
}
PARAMETERS = {"SHUFFLE", "REDUCE", "RESIZE", "SLICE", "PADDING"}  # whose further inputs are settings, not tensors
# onnx.TensorProto's types
TYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF", 16: "BF16", 17: "FP8"}


def volume(shape: Any) -> int:
    """The number of elements."""
    return math.prod(shape)


@dataclass
class Node:
    """What the twin keeps of a layer beyond what TensorRT tells."""

    operators: list[str] = field(default_factory=list)  # names of ONNX nodes
    kernel: tuple[int, ...] = ()
    groups: int = 1
    maps: int = 0
    weights: tuple[str, int] | None = None  # type and count


class ITensor(Bound):
    def __init__(self, name: str, dtype: Any, shape: Any, is_network_input: bool = False) -> None:
        self._name, self._dtype, self._shape = name, dtype, Dims(shape)
        self._input, self._output = is_network_input, False

    name = property(lambda self: self._name)
    dtype = property(lambda self: self._dtype)
    shape = property(lambda self: self._shape)
    is_network_input = property(lambda self: self._input)
    is_network_output = property(lambda self: self._output)
    is_execution_tensor = property(lambda self: True)
    is_shape_tensor = property(lambda self: False)


class ILayer(Bound):
    """A layer as the network gives it: of no particular kind, until its `__class__` is set."""

    def __init__(self, name: str, kind: Any, inputs: list[Any], outputs: list[Any], node: Node) -> None:
        self._name, self._kind, self._inputs, self._outputs, self._node = name, kind, inputs, outputs, node

    name = property(lambda self: self._name)
    type = property(lambda self: self._kind)
    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))
    metadata = property(lambda self: "\x1f".join(f"[ONNX Layer: {name}]" for name in self._node.operators))

    def get_input(self, index: int) -> Any:
        return self._inputs[index] if index < len(self._inputs) else None

    def get_output(self, index: int) -> Any:
        return self._outputs[index] if index < len(self._outputs) else None

    def get_output_type(self, index: int) -> Any:
        return self._outputs[index].dtype


class IConvolutionLayer(ILayer):
    kernel_size_nd = property(lambda self: Dims(self._node.kernel))
    num_groups = property(lambda self: self._node.groups)
    num_output_maps = property(lambda self: self._node.maps)


class INetworkDefinition(Bound):
    def __init__(self, builder: Any, flags: int) -> None:
        self._builder, self._flags = builder, flags
        self._layers: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._onnx = b""

    builder = property(lambda self: self._builder)
    flags = property(lambda self: self._flags)
    num_layers = property(lambda self: len(self._layers))
    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))

    def __len__(self) -> int:  # so that bool(network) is False without layers, as in the bindings
        return len(self._layers)

    def get_layer(self, index: int) -> Any:
        return self._layers[index]

    def get_input(self, index: int) -> Any:
        return self._inputs[index] if index < len(self._inputs) else None

    def get_output(self, index: int) -> Any:
        return self._outputs[index] if index < len(self._outputs) else None

    def get_flag(self, flag: Any) -> bool:
        return bool(self._flags & 1 << int(flag)) or not hasattr(self._trt.BuilderFlag, "FP16")

    @property
    def _strongly_typed(self) -> bool:
        """Always so from 11.0 and in RTX, where weak typing is gone; in 10.x only when asked for."""
        strongly = getattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        weak_is_gone = not hasattr(self._trt.BuilderFlag, "FP16")
        return weak_is_gone or bool(self._flags & 1 << int(strongly))


class ParserError(Bound):
    def __init__(self, code: Any, desc: str, node_name: str = "", node_operator: str = "") -> None:
        self._values = (code, desc, node_name, node_operator)

    def code(self) -> Any:
        return self._values[0]

    def desc(self) -> str:
        return self._values[1]

    def node_name(self) -> str:
        return self._values[2]

    def node_operator(self) -> str:
        return self._values[3]


class OnnxParser(Bound):
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[Any] = []
        self._tensors: dict[str, Any] = {}
        self._taken: set[str] = set()
        self._suffix = itertools.count()

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors.clear()

    def parse(self, model: Any, path: str | None = None) -> bool:
        """Bytes of an ONNX file into the network; False with errors where they are none."""
        import onnx

        try:
            graph = onnx.load_model_from_string(bytes(model))
            if not graph.graph.node:
                raise ValueError
        except Exception:
            words = "Assertion failed: model->ParseFromCodedStream(&codedInput): Failed to parse the ONNX model."
            return self._failed("MODEL_DESERIALIZE_FAILED", words)
        unknown = next((node for node in graph.graph.node if node.op_type not in KINDS), None)
        if unknown is not None:
            words = "Assertion failed: ctx->importPlugin: Plugin not found, are the plugin name and version correct?"
            return self._failed("UNSUPPORTED_NODE", words, unknown.name, unknown.op_type)
        self._network._onnx = bytes(model)
        self._read(onnx.shape_inference.infer_shapes(graph, data_prop=True).graph)
        return True

    def _failed(self, code: str, *words: str) -> bool:
        self._errors.append(self._trt.ParserError(getattr(self._trt.ErrorCode, code, None), *words))
        self._logger.log(self._trt.Severity.ERROR, f"ModelImporter: {words[0]}")
        return False

    def _read(self, graph: Any) -> None:
        self._constants = {constant.name: constant for constant in graph.initializer}
        self._known = {value.name: value.type.tensor_type for value in [*graph.value_info, *graph.output]}
        for value in graph.input:
            if value.name not in self._constants:
                tensor = self._of(value.name, value.type.tensor_type, is_network_input=True)
                self._network._inputs.append(tensor)
        for node in graph.node:
            self._add(node)
        for value in graph.output:
            self._tensors[value.name]._output = True
            self._network._outputs.append(self._tensors[value.name])

    def _of(self, name: str, tensor: Any, is_network_input: bool = False) -> Any:
        shape = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
        return self._tensor(name, TYPES[tensor.elem_type], shape, is_network_input)

    def _tensor(self, name: str, kind: str, shape: Any, is_network_input: bool = False) -> Any:
        dtype = getattr(self._trt.DataType, kind)
        self._tensors[name] = self._trt.ITensor(name, dtype, shape, is_network_input)
        return self._tensors[name]

    def _layer(self, name: str, kind: str, inputs: list[Any], outputs: list[Any], node: Node) -> None:
        self._network._layers.append(self._trt.ILayer(name, getattr(self._trt.LayerType, kind), inputs, outputs, node))

    def _add(self, node: Any) -> None:
        kind = KINDS[node.op_type]
        if kind == "CONSTANT":
            return
        facts, names = Node([node.name]), list(node.input)
        if kind in ("CONVOLUTION", "DECONVOLUTION"):
            self._describe(node, facts)
            names = [name for name in names[:2] if name not in self._constants]  # constants are its own weights
        elif kind in ("QUANTIZE", "DEQUANTIZE"):
            names = names[:2]
        elif kind in PARAMETERS:
            names = names[:1]
        inputs = [self._input(name) for name in names[:2] if name]
        if kind in ("QUANTIZE", "DEQUANTIZE"):
            inputs.append(self._zero_point(inputs[1]))
        if node.op_type == "Gemm":
            self._product(node, inputs, facts)
        else:
            outputs = [self._of(name, self._known[name]) for name in node.output[:1]]
            self._layer(node.name, kind, inputs, outputs, facts)

    def _input(self, name: str) -> Any:
        """A tensor; a constant becomes a layer of its own, once."""
        key = f"{name}_output"
        if name in self._constants and key not in self._tensors:
            constant = self._constants[name]
            tensor = self._tensor(key, TYPES[constant.data_type], constant.dims)
            self._layer(name, "CONSTANT", [], [tensor], Node())
        return self._tensors[key if name in self._constants else name]

    def _zero_point(self, scale: Any) -> Any:
        name = self._unique("tmp_weight")
        tensor = self._tensor(f"{name}_output", "FLOAT", scale.shape)
        self._layer(name, "CONSTANT", [], [tensor], Node())
        return tensor

    def _unique(self, name: str) -> str:
        """A name that was given before gets a number, from one count for all names."""
        if name in self._taken:
            return f"{name}_{next(self._suffix)}"
        self._taken.add(name)
        return name

    def _describe(self, node: Any, facts: Node) -> None:
        import onnx

        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        weights = self._constants.get(node.input[1])
        shape = tuple(weights.dims) if weights else tuple(self._tensors[node.input[1]].shape)
        facts.kernel, facts.groups, facts.maps = shape[2:], int(attributes.get("group", 1)), shape[0]
        quantised = self._network._layers and self._made_by_dequantize(node.input[1])
        kind = "INT8" if quantised else TYPES[weights.data_type] if weights else self._tensors[node.input[1]].dtype.name
        facts.weights = kind, math.prod(shape)

    def _made_by_dequantize(self, name: str) -> bool:
        return any(
            layer.type == self._trt.LayerType.DEQUANTIZE and layer.get_output(0).name == name
            for layer in self._network._layers
        )

    def _product(self, node: Any, inputs: list[Any], facts: Node) -> None:
        """Gemm: a product, and a sum where it has a bias."""
        facts.weights = inputs[1].dtype.name, volume(inputs[1].shape)
        if len(node.input) < 3:
            self._layer(
                node.name, "MATRIX_MULTIPLY", inputs, [self._of(node.output[0], self._known[node.output[0]])], facts
            )
            return
        shape = (inputs[0].shape[0], self._constants[node.input[2]].dims[0])
        between = self._tensor(f"{node.name}_output", inputs[0].dtype.name, shape)
        self._layer(node.name, "MATRIX_MULTIPLY", inputs, [between], facts)
        bias = self._input(node.input[2])
        wide = self._tensor(f"ONNXTRT_Broadcast_{node.name}", bias.dtype.name, (1, *bias.shape))
        self._layer("ONNXTRT_Broadcast", "SHUFFLE", [bias], [wide], Node())
        end = self._of(node.output[0], self._known[node.output[0]])
        next(self._suffix)  # the real parser gives one away here
        self._layer(f"{node.name}_{next(self._suffix)}", "ELEMENTWISE", [between, wide], [end], Node([node.name]))


CLASSES = (ITensor, ILayer, IConvolutionLayer, INetworkDefinition, ParserError, OnnxParser)
