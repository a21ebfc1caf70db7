"""What an engine's layers compute in is read from each version's own words, and never guessed.

The entries are retyped from public material, with shortened values: NVIDIA/TensorRT#4020 (10.x, static shapes), #4070
and #4535 (dynamic shapes), the engine explorer's samples (Myelin's layers), the migration guide of TensorRT 11 (two
keys), and Polygraphy's extractor, which reads both.
"""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.backends import openvino
from runtime.backends.base import BuildFacts, check_precision
from runtime.backends.tensorrt.inspector import inspected
from runtime.errors import NotAsAsked, NotTold

NODE = "node_Conv_292"
FACTS = BuildFacts(multiply_adds={NODE: 100})
NO_SHAPE = "N/A due to dynamic shapes"
VECTORISED = "Thirty-two wide channel vectorized row major Int8 format."


def conv(**entry: object) -> dict:
    return {"Name": f"{NODE} + node_relu", "LayerType": "CaskConvolution", **entry}


def read(*entries: object, facts: BuildFacts = FACTS) -> dict[str, str]:
    return {name: kind for name, kind, _ in inspected({"Layers": list(entries)}, facts)}


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        # 8.x and 10.x, static shapes: one text for format and type
        (conv(Inputs=[{"Format/Datatype": VECTORISED}], Weights={"Type": "Int8"}), "int8"),
        (conv(Inputs=[{"Format/Datatype": VECTORISED}]), "int8"),
        (conv(Inputs=[{"Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}]), "fp16"),
        (conv(Inputs=[{"Format/Datatype": "Row major linear FP32"}]), "fp32"),
        # 10.x, a free batch: the weights tell, or the kernel's name
        (conv(Inputs=[{"Format/Datatype": NO_SHAPE}], Weights={"Type": "Half"}), "fp16"),
        (conv(Inputs=[{"Format/Datatype": NO_SHAPE}], Weights={"Type": "Float"}), "fp32"),
        (
            conv(
                Inputs=[{"Format/Datatype": NO_SHAPE}],
                TacticName="sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc",
            ),
            "fp16",
        ),
        (conv(TacticName="sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs"), "int8"),
        (conv(TacticName="sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc"), "bf16"),
        (conv(TacticName="turing_h1688cudnn_256x64_sliced1x2_ldg8_relu_exp_small_nhwc_tn_v1"), "fp16"),
        (conv(TacticName="volta_scudnn_128x64_relu_small_nn_v1"), "fp32"),
        # FP32 weights in a kernel of 10 bits of mantissa
        (conv(Weights={"Type": "Float"}, TacticName="sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32"), "tf32"),
        # 11.x: two keys
        (conv(LayerType="conv", Inputs=[{"Datatype": "FP16", "Format": "kLINEAR"}]), "fp16"),
        (conv(LayerType="conv", Inputs=[{"Datatype": "INT8", "Format": "kCHW32"}]), "int8"),
        # whole words only
        (conv(Inputs=[{"Datatype": "UInt8", "Format": "kLINEAR"}]), "uint8"),
        (conv(Inputs=[{"Datatype": "BFloat16"}]), "bf16"),
        # fused by Myelin, named in the metadata alone
        (
            {
                "Name": "__myl_ConvAddMax_fused",
                "LayerType": "kgen",
                "Inputs": [{"Format/Datatype": "Half"}],
                "Metadata": f"[ONNX Layer: {NODE}]\u001f[ONNX Layer: node_relu]",
            },
            "fp16",
        ),
    ],
)
def test_each_version_is_read_by_its_own_words(entry: dict, kind: str) -> None:
    assert read(entry) == {NODE: kind}


SILENT = [
    [],
    [f"{NODE} + node_relu"],  # the plan was built without details
    [conv(Inputs=[{"Format/Datatype": NO_SHAPE}])],
    [conv(Inputs=[], TacticName="0x11bde0e1d9f2f35d")],
    [conv(Name="node_Conv_2920", Weights={"Type": "Half"})],  # another node, whose name begins alike
    [
        {
            "Name": f"Reformatting CopyNode for Input Tensor 0 to {NODE} + node_relu",
            "LayerType": "Reformat",
            "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}],
        }
    ],
]


@pytest.mark.parametrize("entries", SILENT)
def test_where_it_is_silent_nothing_is_known(entries: list) -> None:
    assert read(*entries) == {NODE: "untold"}


@pytest.mark.parametrize("entries", SILENT)
def test_the_networks_own_types_stand_in_and_are_labelled(entries: list) -> None:
    typed = BuildFacts(multiply_adds={NODE: 100}, typed={NODE: "fp16"})
    assert read(*entries, facts=typed) == {NODE: "fp16 as typed"}
    quantised = BuildFacts(multiply_adds={NODE: 100}, typed={NODE: "int8"})  # which TensorRT need not follow
    assert read(*entries, facts=quantised) == {NODE: "untold"}


def test_a_node_counts_once_and_by_the_layer_that_multiplies() -> None:
    cast = {"Name": f"__myl_Cast {NODE}", "LayerType": "kgen", "Inputs": [{"Format/Datatype": "Float"}]}
    gemm = {"Name": NODE, "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Half"}]}
    for order in ((cast, gemm), (gemm, cast)):
        assert inspected({"Layers": list(order)}, FACTS) == [(NODE, "fp16", 100.0)]


def test_a_layer_of_several_nodes_does_the_work_of_all() -> None:
    facts = BuildFacts(multiply_adds={"a": 1, "/block/b": 2, "c": 4})
    both = {"Name": "a + /block/b", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8"}}
    assert read(both, facts=facts) == {"a": "int8", "/block/b": "int8", "c": "untold"}


def test_an_engine_that_does_not_tell_is_neither_right_nor_wrong() -> None:
    layers = [("a", "int8", 60.0), ("b", "untold", 40.0)]
    with pytest.raises(NotTold, match=r"x was asked for int8 and does not tell what it computes in \(b\)"):
        check_precision(layers, "int8", "x", {})
    with pytest.raises(NotAsAsked, match="computes 60 % fp32, 40 % untold"):
        check_precision([("a", "fp32", 60.0), ("b", "untold", 40.0)], "int8", "x", {})
    typed = [("a", "fp16", 60.0), ("b", "fp16 as typed", 40.0)]
    assert check_precision(typed, "fp16", "x", {}) == {"fp16": 0.6, "fp16 as typed": 0.4}


def test_the_engines_text_may_hold_what_strict_json_forbids() -> None:
    """TensorRT 10.14 writes U+001F raw between the names in a layer's metadata."""
    text = json.dumps({"Layers": [{"Metadata": "[ONNX Layer: a]\u001f[ONNX Layer: b]"}]}).replace("\\u001f", "\u001f")
    with pytest.raises(ValueError):
        json.loads(text)
    assert "\u001f" in json.loads(text, strict=False)["Layers"][0]["Metadata"]


@pytest.mark.parametrize(("others", "named"), [(5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4, …")])
def test_of_layers_that_are_not_as_asked_five_are_named(others: int, named: str) -> None:
    layers = [(str(number), "fp32", 9.0 - number) for number in range(others)]
    with pytest.raises(NotAsAsked, match=rf"computes 100 % fp32 \({named}\)$"):
        check_precision(layers, "int8", "x", {})


@pytest.mark.parametrize("first", ["asks for the shape", "takes the answer"])
@pytest.mark.parametrize("second", ["sigmoid", "product"])
def test_what_a_layer_became_part_of_is_found_in_any_order(first: str, second: str) -> None:
    """OpenVINO gives the operators behind a layer in another order each time."""
    model = Graph("conv")
    shape, scaled = model.then("ShapeOf", "shape"), model.then("Multiply", "scaled")
    model.followers.sort(key=lambda node: (node is shape) != (first == "asks for the shape"))
    shape.then("Reshape", "elsewhere")
    both = [scaled.then("Sigmoid", "sigmoid"), scaled.then("Multiply", "product")]
    scaled.followers.sort(key=lambda node: node.name != second)
    both[0].followers.append(both[1])
    assert openvino._executed_as(model, {"product": "bf16", "elsewhere": "fp32"}) == "product"
    assert openvino._executed_as(model, {"elsewhere": "fp32"}) == ""


class Graph:
    """An operator of an OpenVINO model, as far as it is asked for."""

    def __init__(self, name: str, kind: str = "Convolution") -> None:
        self.name, self.kind, self.followers = name, kind, list[Graph]()
        self.get_friendly_name, self.get_type_name = lambda: name, lambda: kind

    def then(self, kind: str, name: str) -> "Graph":
        self.followers.append(Graph(name, kind))
        return self.followers[-1]

    def outputs(self) -> list[Any]:
        return [self.output(0)]

    def output(self, _: int) -> Any:
        return SimpleNamespace(
            get_target_inputs=lambda: [SimpleNamespace(get_node=lambda node=node: node) for node in self.followers]
        )
