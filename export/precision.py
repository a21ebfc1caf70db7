"""Lower precisions of one trained module: FP16 by casting the network, INT8 by calibrating on training photos."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph import LAYERS, OPSET, OUTPUT, beside_logits, layer_facts, save_onnx
from runtime.errors import missing_extra
from runtime.gate import GATES
from runtime.spec import ModelSpec
from runtime.terminal import quiet
from training.network.classifier import PhotoClassifier

# Accuracy recovery aims at this share of the gate's bound, since training photos are fitted and others may shift a
# little more; at most so many layers; ranked by so many photos
AIM = 0.8
MOST_KEPT = 10
RANKED_BY = 32
# Photos: with fewer, small ones wait mostly for NNCF; with more, the outputs of every layer fill the memory
CALIBRATED_AT_ONCE = 8
FP16_QDQ_OPSET = max(OPSET, 19)  # 19 is the first in which QuantizeLinear takes FP16
SMALLEST_SCALE = 2.0**-20  # FP16 has steps of 2^-24 here: a scale of zero, from a dead channel, would divide by zero


def half_precision(model: PhotoClassifier) -> PhotoClassifier:
    """A copy of the module with its network in FP16; what stands before and behind it stays FP32."""
    half = copy.deepcopy(model)  # half() works in place, and the model is the reference
    half.network.half()
    return half


def quantise(
    fp32: Path,
    calibration: np.ndarray,
    spec: ModelSpec,
    path: Path,
    recover: bool = True,
    overflow_fix: bool = False,
    shift: float = GATES["int8"].shift,
) -> None:
    """Write an INT8 Q/DQ file from an FP32 ONNX file: weights per channel, activations calibrated.

    `calibration` is uint8 `[N, S, S, 3]` training photos, never validation photos, which the gate needs unseen.
    Normalisation and the last layer keep FP32: together far below 1 % of the work, and the most sensitive. With
    `recover`, where the logits of the training photos shift by more than AIM of `shift`, the gate's bound, the layers
    that matter most go back to FP32, in at most MOST_KEPT steps. That bounds the time: a ranking is a pass over
    RANKED_BY photos per layer, done again only after a step that made it worse, and a step is a pass over all. The
    layers are declared in the file's metadata, see `export.graph.layer_facts`.

    With `overflow_fix` weights take half their range, 7 bits. x86 processors without VNNI add pairs of products in 16
    bits, where two of 255 × 127 do not fit; of our networks this hurts those with depthwise convolutions.
    """
    model = onnx.load(fp32)
    with quiet():
        try:
            import nncf
        except ImportError:
            raise missing_extra("nncf", "export") from None
        # The whole range that calibration saw. NNCF's default averages the ranges of all photos and clips the rarer
        # ones: the logits of our networks then shifted twice as far and more, Plain-34's beyond the gate
        ranges = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE if overflow_fix else nncf.OverflowFix.FIRST_LAYER,
            activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
        )
        batches = np.array_split(calibration, -(-len(calibration) // CALIBRATED_AT_ONCE))  # means are over batches
        photos = nncf.Dataset(batches, lambda batch: {"images": batch})
        how: dict[str, Any] = {
            "subset_size": len(batches),
            "preset": nncf.QuantizationPreset.MIXED,
            "ignored_scope": nncf.IgnoredScope(names=_sensitive(model), validate=False),
        }
        if recover:
            how["advanced_quantization_parameters"] = ranges
            quantised = _quantised_closely(model, photos, calibration, AIM * shift, how)
        else:
            quantised = nncf.quantize(model, photos, advanced_parameters=ranges, **how)
    save_onnx(_unsigned_activations(quantised), spec, path, kept=_went_back(quantised, _sensitive(model)))


def _quantised_closely(
    model: onnx.ModelProto, photos: Any, calibration: np.ndarray, most: float, how: dict[str, Any]
) -> onnx.ModelProto:
    """As `nncf.quantize`, with the layers that matter most in FP32 where the logits would shift by more than `most`."""
    import nncf

    bounds = nncf.AdvancedAccuracyRestorerParameters(
        max_num_iterations=MOST_KEPT, ranking_subset_size=min(RANKED_BY, len(calibration)), num_ranking_workers=1
    )
    numbers, metric = nncf.Dataset(list(range(len(calibration)))), _closeness(model, calibration)
    how = {**how, "max_drop": most, "advanced_accuracy_restorer_parameters": bounds}
    return nncf.quantize_with_accuracy_control(model, photos, numbers, metric, **how)


def _closeness(model: onnx.ModelProto, photos: np.ndarray) -> Callable[..., tuple[float, list[float]]]:
    """NNCF's metric: 1 − the gate's logit shift of a candidate against `model`, and the same of each photo."""
    reference = _logits(model, photos)
    spread = float(np.sqrt((reference**2).mean())) or 1.0

    def metric(candidate: onnx.ModelProto, numbers: Iterable[int]) -> tuple[float, list[float]]:
        chosen = list(numbers)
        squares = (_logits(candidate, photos[chosen]) - reference[chosen]) ** 2
        shifts = np.sqrt(squares.mean(axis=1)) / spread
        return 1 - float(np.sqrt(squares.mean(axis=0).max())) / spread, list(1 - shifts)

    return metric


def _logits(model: onnx.ModelProto, photos: np.ndarray) -> np.ndarray:
    """Logits of photos, less each photo's mean, which softmax ignores."""
    import onnxruntime  # NNCF's ONNX side needs it anyhow

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"images": photos[i : i + 8]})[0] for i in range(0, len(photos), 8)]
    logits = np.concatenate(parts)
    return logits - logits.mean(axis=1, keepdims=True)


def _went_back(quantised: onnx.ModelProto, sensitive: list[str]) -> list[str]:
    """The layers that recovery returned to floating point, and those right before them.

    ONNX Runtime computes a layer in INT8 only where its output is quantised too, which went with its successor's input.
    """
    through = {output for node in quantised.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    layers = [node for node in quantised.graph.node if node.op_type in LAYERS and node.name not in sensitive]
    returned = [node for node in layers if node.input[1] not in through]
    made_by = {output: node for node in quantised.graph.node for output in node.output}
    before = [made_by.get(node.input[0]) for node in returned]
    before = [made_by.get(node.input[0]) if node and node.op_type == "Relu" else node for node in before]
    names = {node.name for node in (*returned, *before) if node}
    return [node.name for node in layers if node.name in names]


def _unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write every quantised activation as uint8: int8 with its zero point moved by 128, the same arithmetic.

    ONNX Runtime runs a convolution in INT8 only where input and output have one type; squeeze-and-excitation blocks
    come with signed outputs beside unsigned inputs, and half of their convolutions silently stayed FP32.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    signed = {node.input[2] for node in quantisers if constants[node.input[2]].data_type == TensorProto.INT8}
    for name in signed:
        zero = numpy_helper.to_array(constants[name]).astype(np.int16) + 128
        constants[name].CopyFrom(numpy_helper.from_array(zero.astype(np.uint8), name))
    del model.graph.value_info[:]  # holds the old types; shape inference finds the new ones
    return model


def _sensitive(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes before the first layer, which normalise, of the last layer, and of a second output."""
    beside = beside_logits(model)
    nodes = [node for node in model.graph.node if node.name not in beside]
    layers = [i for i, node in enumerate(nodes) if node.op_type in LAYERS]
    return [*(node.name for node in (*nodes[: layers[0]], nodes[layers[-1]])), *sorted(beside)]


def quantise_for_tensorrt(int8: Path, spec: ModelSpec, path: Path) -> None:
    """Rewrite an INT8 file for strongly typed TensorRT: FP16 around the Q/DQ pairs, activations signed about zero.

    TensorRT refuses a zero point other than 0, and what is not quantised (adds, pooling, biases, declared layers)
    runs in the type that the file says. Scales and weights are those of the calibrated file; normalisation stays FP32.
    """
    model = onnx.load(int8)
    kept = list(layer_facts(int8)["kept"])
    _about_zero(model)
    _halve(model)
    save_onnx(model, spec, path, kept=kept, opset=FP16_QDQ_OPSET)


def _about_zero(model: onnx.ModelProto) -> None:
    """Activations as int8 with zero point 0, the scale wide enough for the larger side of the calibrated range."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for _, scale_name, zero_name in [n.input for n in model.graph.node if n.op_type == "QuantizeLinear"]:
        scale, zero = (numpy_helper.to_array(constants[name]) for name in (scale_name, zero_name))
        reach = np.maximum(zero.astype(np.float32), 255 - zero.astype(np.float32)) * scale
        constants[scale_name].CopyFrom(numpy_helper.from_array((reach / 127).astype(np.float32), scale_name))
        constants[zero_name].CopyFrom(numpy_helper.from_array(np.zeros_like(zero, np.int8), zero_name))


def _halve(model: onnx.ModelProto) -> None:
    """What computes the logits from normalised photos in FP16, between a cast down and casts up.

    A second output stays FP32, from what it takes on.
    """
    graph, beside = model.graph, beside_logits(model)
    nodes = [node for node in graph.node if node.name not in beside]
    after = [node for node in graph.node if node.name in beside]
    first = next(i for i, n in enumerate(nodes) if n.op_type in (*LAYERS, "QuantizeLinear", "DequantizeLinear"))
    normalised = nodes[first - 1].output[0]
    for node in nodes[first:]:
        node.input[:] = ["normalised_half" if name == normalised else name for name in node.input]
        node.output[:] = ["logits_half" if name == OUTPUT else name for name in node.output]
    used = {name for node in nodes[first:] for name in node.input}
    scales = {n.input[1] for n in nodes[first:] if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for tensor in graph.initializer:
        if tensor.name in used and tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            values = np.maximum(values, SMALLEST_SCALE) if tensor.name in scales else values
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    made = {name for node in nodes[first:] for name in node.output} - {"logits_half"}
    taken = sorted(made & {name for node in after for name in node.input})
    for node in after:
        node.input[:] = [f"{name}_float" if name in taken else name for name in node.input]
    cast = partial(helper.make_node, "Cast")
    down = cast([normalised], ["normalised_half"], "to_half", to=TensorProto.FLOAT16)
    ups = [("logits_half", OUTPUT, "to_float"), *((name, f"{name}_float", f"{name}_to_float") for name in taken)]
    casts = [cast([half], [whole], name, to=TensorProto.FLOAT) for half, whole, name in ups]
    del graph.node[:], graph.value_info[:]  # value_info holds the old types; shape inference finds the new ones
    graph.node.extend([*nodes[:first], down, *nodes[first:], *casts, *after])
    model.opset_import[0].version = FP16_QDQ_OPSET
