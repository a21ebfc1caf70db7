"""The precision that an engine's layers compute in, as far as its inspector tells.

What is told depends on the version: up to 10.x one text holds format and type, "N/A due to dynamic shapes" where the
batch is free; 11.x has two keys; Myelin's fused layers name their ONNX nodes in the metadata alone. So the sources are
asked in the order of how well they are known to tell: the type of the weights, the name of the kernel ("tactic"), the
type of the first input. The forms are those of NVIDIA's samples and issues (NVIDIA/TensorRT#4020, its engine explorer).
"""

import re
from collections.abc import Iterable
from typing import Any

from runtime.backends.base import AS_TYPED, UNTOLD, BuildFacts, Layer

# Whole words; "UInt8" is not Int8, and "BFloat16" not Float
_WORDS = {
    **{"float": "fp32", "float32": "fp32", "fp32": "fp32", "tf32": "tf32"},
    **{"half": "fp16", "float16": "fp16", "fp16": "fp16"},
    **{"bfloat16": "bf16", "bf16": "bf16"},
    **{"int8": "int8", "uint8": "uint8", "fp8": "fp8", "int4": "int4", "fp4": "fp4"},
}
# Parts of a kernel's name between underscores: the types of its two inputs, or the instruction that multiplies
_KERNELS = (
    (r"tf32.*", "tf32"),
    (r"i8(i8|f32|f16)|i8816.*|imma.*|int8", "int8"),
    (r"bf16.*", "bf16"),
    (r"f16f(16|32)|h(884|1688|16816).*|hmma.*|fp16", "fp16"),
    (r"e4m3.*|e5m2.*|fp8", "fp8"),
    (r"f32f32|sgemm|scudnn.*|ffma|fp32", "fp32"),
)
# Layers that move or convert numbers, and carry the name of the layer that they serve
_MOVES = {"reformat", "noop", "constant", "shape", "shapehostdevice", "signal", "wait"}


def inspected(information: dict[str, Any], facts: BuildFacts) -> list[Layer]:
    """Each node of the ONNX file that computes, with the number format of the engine's layer that does its work.

    `information` is the inspector's JSON. The format ends in AS_TYPED where it is only what the strongly typed network
    says, whose types TensorRT must keep, and is UNTOLD where nothing says it.
    """
    told: dict[str, tuple[int, str]] = {}
    for entry in information.get("Layers", []):
        if isinstance(entry, dict) and str(entry.get("LayerType", "")).lower() not in _MOVES:
            for node in _mentioned(entry, facts.multiply_adds):
                told[node] = max(told.get(node, (0, "")), _precision_of(entry), key=lambda found: found[0])
    return [
        (node, told[node][1] if told.get(node, (0, ""))[1] else _typed(facts, node), float(amount))
        for node, amount in facts.multiply_adds.items()
    ]


def _mentioned(entry: dict[str, Any], nodes: Iterable[str]) -> list[str]:
    """The ONNX nodes that a layer's name ("a + b") or its metadata ("[ONNX Layer: a]", …) mentions as a whole word."""
    longest_first = "|".join(map(re.escape, sorted(nodes, key=len, reverse=True)))
    text = f"{entry.get('Name', '')} {entry.get('Metadata', '')}"
    return re.findall(rf"(?<![\w./])(?:{longest_first})(?![\w./])", text) if longest_first else []


def _precision_of(entry: dict[str, Any]) -> tuple[int, str]:
    """What a layer computes in, empty where it does not tell, after how much that is worth: of two, more counts."""
    tensor: dict[str, Any]
    weights, tensor = entry.get("Weights"), next(iter(entry.get("Inputs") or []), {})
    kernel = _kernel(entry.get("TacticName"))
    of_weights = _word(weights.get("Type")) if isinstance(weights, dict) else ""
    if kernel == "tf32":  # weights of FP32, multiplied with 10 bits of mantissa
        return 6, kernel
    of_tensor = _word(tensor.get("Datatype", tensor.get("Format/Datatype")))
    multiplies = any(word in str(entry.get("LayerType", "")).lower() for word in ("conv", "gemm", "matmul"))
    for worth, kind in ((6, of_weights), (4, kernel), (2, of_tensor)):
        if kind:
            return worth + multiplies, kind  # of two layers that mention one node, the one that multiplies
    return 0, ""


def _word(text: object) -> str:
    """The number format in "Half" or "Row major linear FP16 format"; empty where there is none."""
    return next((_WORDS[word] for word in _words(text) if word in _WORDS), "")


def _kernel(name: object) -> str:
    """The number format in "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc"; empty without a name."""
    for word in _words(name):
        for pattern, kind in _KERNELS:
            if re.fullmatch(pattern, word):
                return kind
    return ""


def _words(text: object) -> list[str]:
    return re.findall(r"[a-z0-9]+", str(text or "").lower())


def _typed(facts: BuildFacts, node: str) -> str:
    """What the network says of a node. Of INT8 that proves nothing: between Q and DQ TensorRT may compute in FP16."""
    kind = facts.typed.get(node, "")
    return kind + AS_TYPED if kind and kind != "int8" else UNTOLD
