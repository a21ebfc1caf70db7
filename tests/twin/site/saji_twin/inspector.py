"""What an engine's inspector tells, in each version's own schema; and the layers that a builder makes of a network.

The facts are those that public material shows, retyped; where it shows nothing the twin tells nothing:
- 8.x and 10.x: entries of CaskConvolution with `Weights`, `Bias`, `TacticName` and one key `Format/Datatype`; "N/A due
  to dynamic shapes" without a context (samples and issues of NVIDIA/TensorRT; polygraphy 0.53.6,
  tools/inspect/extractors/_trt.py). "Reformat" layers carry the name of the layer they serve (NVIDIA/TensorRT#4020).
- Layers that Myelin fused name their ONNX nodes only in `Metadata`, separated by U+001F, which TensorRT leaves raw.
- 11.x: `Datatype` and `Format` are two keys (NVIDIA's guide for migrating from 10.x to 11.x).
- TensorRT-RTX: no JSON was found in public. The twin tells names and no type until a real one was recorded.
"""

import json
from typing import Any

from saji_twin import fault
from saji_twin.shapes import Bound

SEPARATOR = "\x1f"
WEIGHTS = {"FLOAT": "Float", "HALF": "Half", "INT8": "Int8", "BF16": "BFloat16"}
TACTICS = {
    "FLOAT": "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc_tilesize128x64x16",
    "HALF": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x128x32",
    "INT8": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
    "BF16": "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x32",
}
FORMATS = {
    "FLOAT": "Row major linear FP32",
    "HALF": "Channel major FP16 format where channel % 8 == 0",
    "INT8": "Thirty-two wide channel vectorized row major Int8 format",
    "BF16": "Channel major BF16 format where channel % 8 == 0",
}
NEW = {"FLOAT": ("FP32", "kLINEAR"), "HALF": ("FP16", "kHWC8"), "INT8": ("INT8", "kCHW32"), "BF16": ("BF16", "kHWC8")}
DYNAMIC = "N/A due to dynamic shapes"


def layers_of(network: Any, forced: str | None) -> list[dict[str, Any]]:
    """What the builder makes of a network: each convolution with what is fused into it, products, and the rest.

    `forced` is the type that all of it computes in, where that is not the network's own.
    """
    made: list[dict[str, Any]] = []
    into: dict[str, dict[str, Any]] = {}  # by tensor, the layer whose end it is
    for layer in network._layers:
        kind, name = layer.type.name, layer.name
        outputs = [tensor.name for tensor in layer._outputs]
        if kind in ("CONVOLUTION", "MATRIX_MULTIPLY"):
            entry = {"kind": kind, "name": name, "nodes": [name], "node": vars(layer._node)}
            entry |= {"type": forced or _type_of(layer), "input": _tensor(layer, 0), "output": _tensor(layer, 0, True)}
            made.append(entry)
            into |= dict.fromkeys(outputs, entry)
        elif kind in ("ACTIVATION", "ELEMENTWISE") and layer._inputs and layer._inputs[0].name in into:
            entry = into[layer._inputs[0].name]
            entry["nodes"].append(name)
            entry["output"] = _tensor(layer, 0, True)
            into |= dict.fromkeys(outputs, entry)
        elif kind in ("POOLING", "REDUCE", "CAST"):
            made.append({"kind": kind, "name": name, "nodes": [name], "node": vars(layer._node)})
            made[-1] |= {"type": forced or layer._inputs[0].dtype.name, "input": _tensor(layer, 0)}
            made[-1]["output"] = _tensor(layer, 0, True)
    return made


def _type_of(layer: Any) -> str:
    weights = layer._node.weights
    return str(weights[0] if weights else layer._inputs[0].dtype.name)


def _tensor(layer: Any, index: int, output: bool = False) -> dict[str, Any]:
    tensor = (layer._outputs if output else layer._inputs)[index]
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}


class EngineInspector(Bound):
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._context: Any = None

    @property
    def execution_context(self) -> Any:
        return self._context

    @execution_context.setter
    def execution_context(self, context: Any) -> None:
        self._context = context

    def get_engine_information(self, format: Any) -> str:
        """JSON, not always strict; or a line for each layer."""
        entries = self._entries()
        if format.name == "ONELINE":
            return "\n".join(entry if isinstance(entry, str) else entry["Name"] for entry in entries)
        text = json.dumps({"Layers": entries, "Bindings": [tensor["name"] for tensor in self._engine._bindings]})
        return text.replace("\\u001f", SEPARATOR)  # as TensorRT writes it, against RFC 8259

    def get_layer_information(self, layer_index: int, format: Any) -> str:
        return json.dumps(self._entries()[layer_index]).replace("\\u001f", SEPARATOR)

    def _entries(self) -> list[Any]:
        plan = self._engine._plan
        if plan["verbosity"] == "NONE":
            return []
        names = plan["verbosity"] == "LAYER_NAMES_ONLY" or fault("inspector") == "names"
        if names:
            return [" + ".join(layer["nodes"]) for layer in plan["layers"]]
        if self._trt.__name__ == "tensorrt_rtx":
            return [_of_rtx(layer) for layer in plan["layers"]]
        if self._trt.__version__.startswith("10."):
            batch = self._batch() if fault("inspector") != "context" else None
            return [entry for layer in plan["layers"] for entry in _of_10(layer, batch)]
        return [entry for layer in plan["layers"] for entry in _of_11(layer, self._batch() or -1)]

    def _batch(self) -> int | None:
        """The batch size that a context has been given; None without one."""
        if self._context is None:
            return None
        return self._context._shapes[self._engine._inputs[0]["name"]][0] if self._context._shapes else None


def _of_10(layer: dict[str, Any], batch: int | None) -> list[dict[str, Any]]:
    kind, dtype = layer["kind"], layer["type"]
    told = FORMATS.get(dtype, dtype) if batch and fault("inspector") != "mute" else DYNAMIC

    def tensor(which: str) -> dict[str, Any]:
        shape = [batch if batch and size == -1 else size for size in layer[which]["shape"]]
        name = layer[which]["name"]
        return {"Name": name, "Location": "Device", "Dimensions": shape, "Format/Datatype": told}

    name = " + ".join(layer["nodes"])
    common = {"Name": name, "Inputs": [tensor("input")], "Outputs": [tensor("output")], "StreamId": 0}
    common["Metadata"] = SEPARATOR.join(f"[ONNX Layer: {node}]" for node in layer["nodes"])
    secret = fault("inspector") in ("silent", "mute")
    tactic = {} if secret else {"TacticName": TACTICS.get(dtype, ""), "TacticValue": "0x11bde0e1d9f2f35d"}
    if kind == "CONVOLUTION":
        count = layer["node"]["weights"][1]
        weights = {} if secret else {"Weights": {"Type": WEIGHTS.get(dtype, dtype), "Count": count}}
        described = {
            "ParameterType": "Convolution",
            "Kernel": layer["node"]["kernel"],
            "Groups": layer["node"]["groups"],
        }
        entry = {"LayerType": "CaskConvolution", **described, "OutMaps": layer["node"]["maps"], **weights, **tactic}
        return [_reformat(name, layer, told), {**common, **entry}]
    if kind == "MATRIX_MULTIPLY":
        name = f"{layer['name']}_myl0_5"
        return [{**common, "Name": name, "LayerType": "gemm", **{k: v for k, v in tactic.items() if k == "TacticName"}}]
    if kind == "CAST":
        return [{**common, "Name": "__myl_CastSubDivCast_myl0_0", "LayerType": "kgen"}]
    return [{**common, "LayerType": "CaskPooling", "ParameterType": "Pooling"}]


def _reformat(serves: str, layer: dict[str, Any], told: str) -> dict[str, Any]:
    """Copies into another format, in FP32 here: it computes nothing, whatever its name says."""
    before = "Row major linear FP32" if told != DYNAMIC else DYNAMIC
    return {
        "Name": f"Reformatting CopyNode for Input Tensor 0 to {serves}",
        "LayerType": "Reformat",
        "Inputs": [{"Name": layer["input"]["name"], "Location": "Device", "Format/Datatype": before}],
        "Outputs": [{"Name": f"{layer['input']['name']}'", "Location": "Device", "Format/Datatype": told}],
        "ParameterType": "Reformat",
        "Origin": "REFORMAT",
        "TacticValue": "0x00000000000003e8",
    }


def _of_11(layer: dict[str, Any], batch: int) -> list[dict[str, Any]]:
    datatype, form = NEW.get(layer["type"], (layer["type"], "kLINEAR"))
    mute = fault("inspector") in ("silent", "mute")

    def tensor(which: str, datatype: str = datatype) -> dict[str, Any]:
        shape = [batch if size == -1 else size for size in layer[which]["shape"]]
        types = {} if mute else {"Datatype": datatype, "Format": form}
        return {"Name": layer[which]["name"], "Location": "Device", "Dimensions": shape, **types}

    kinds = {"CONVOLUTION": "conv", "MATRIX_MULTIPLY": "gemm", "CAST": "kgen"}
    name = " + ".join(layer["nodes"])
    metadata = SEPARATOR.join(f"[ONNX Layer: {node}]" for node in layer["nodes"])
    entry = {"Name": name, "LayerType": kinds.get(layer["kind"], "pooling"), "Metadata": metadata}
    entry |= {"Inputs": [tensor("input")], "Outputs": [tensor("output")]}
    if layer["kind"] != "CONVOLUTION":
        return [entry]
    copy = {"Name": f"Reformatting CopyNode for Input Tensor 0 to {name}", "LayerType": "Reformat"}
    return [{**copy, "Inputs": [tensor("input", "FP32")], "Outputs": [tensor("input")]}, entry]


def _of_rtx(layer: dict[str, Any]) -> dict[str, Any]:
    tensors = {key: [{"Name": layer[which]["name"]}] for key, which in (("Inputs", "input"), ("Outputs", "output"))}
    return {"Name": " + ".join(layer["nodes"]), "LayerType": "unknown", **tensors}


CLASSES = (EngineInspector,)
