"""`model.cam.onnx`: a model that also says where it looked, by the class activation map of Zhou et al. 2016.

Beside `logits` comes `cam`, float32 `[batch, h, w]`: the last maps, weighted by what each adds to the most likely
class. Its mean over height and width, plus the class's bias, is that class's logit. This is exact, but for rounding,
where the logits are linear layers on the average of the last maps; other networks get no such file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
from onnx.reference import ReferenceEvaluator

from export.graph import INPUT, OUTPUT
from export.parity import line, with_result
from runtime.candidate import AT_ONCE, Candidate
from runtime.errors import SajiError
from runtime.evaluation import ValidationSet
from runtime.files import replacing
from runtime.gate import GATES, Gate, GateResult, apply_gate
from runtime.heatmap import FILE, Heatmap
from runtime.machine import machine
from runtime.spec import ModelSpec


@dataclass(frozen=True)
class Head:
    """What follows the last maps of a network: logits = weight · (mean of the maps over height and width) + bias.

    `maps` names the maps, float32 `[batch, channels, h, w]`, in the graph; weight float32 `[classes, channels]`, bias
    float32 `[classes]`.
    """

    maps: str
    weight: np.ndarray
    bias: np.ndarray


def linear_head(model: onnx.ModelProto) -> Head:
    """The head of an exported graph, whatever linear layers it is made of. Raises SajiError where it is not linear."""
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    pools = _global_pools(model.graph)
    if not pools:
        raise SajiError("its logits do not come from an average over its last maps")
    maps, pooled, shape = pools[-1]
    head = onnx.utils.Extractor(model).extract_model([pooled], [OUTPUT])
    if any(INPUT in node.input for node in head.graph.node):
        raise SajiError("its logits depend on more than the average of its last maps")
    run = ReferenceEvaluator(head)

    def answer(averages: np.ndarray) -> np.ndarray:
        try:
            return run.run(None, {pooled: averages.astype(np.float32).reshape(-1, *shape)})[0]  # type: ignore[index]
        except Exception as error:  # of many kinds: a branch or a loop looks for what is not a part of this end
            raise SajiError(f"what follows its last maps does not run alone ({str(error)[:80]})") from None

    channels = shape[0]
    bias = answer(np.zeros((1, channels)))[0]
    weight = answer(np.eye(channels)) - bias
    # Tried, because linear layers come under many operators' names
    averages = np.random.default_rng(0).normal(0, 3, (16, channels))
    expected = averages @ weight + bias
    if np.abs(answer(averages) - expected).max() > 1e-3 * np.abs(expected).max():
        raise SajiError("more than linear layers stands between its last maps and its logits")
    return Head(maps, weight.T.copy(), bias)


def _global_pools(graph: onnx.GraphProto) -> list[tuple[str, str, list[int]]]:
    """Each average over height and width of maps: its input, its output, and the shape of that without the batch."""
    sizes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim][1:] for value in graph.value_info}
    pools = []
    for node in graph.node:
        if node.op_type in ("GlobalAveragePool", "ReduceMean"):
            before, after = (sizes.get(name, []) for name in (node.input[0], node.output[0]))
            if len(before) == 3 and after in (before[:1], [before[0], 1, 1]):
                pools.append((node.input[0], node.output[0], after))
    return pools


def add_map(model: onnx.ModelProto, head: Head, spec: ModelSpec) -> None:
    """Give an exported graph its second output, `cam`, in place."""
    weight = onnx.numpy_helper.from_array(head.weight[:, :, None, None], "cam/weight")
    model.graph.initializer.append(weight)
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("Conv", [head.maps, weight.name], ["cam/classes"], "cam/classes", kernel_shape=[1, 1]),
            make("ArgMax", [OUTPUT], ["cam/top"], "cam/top", axis=1, keepdims=1),
            make("GatherND", ["cam/classes", "cam/top"], ["cam"], "cam/of_top", batch_dims=1),
        ]
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("cam", onnx.TensorProto.FLOAT, ["batch", "h", "w"]))
    onnx.helper.set_model_props(model, {"spec": spec.to_json()})
    onnx.checker.check_model(model, full_check=True)


def write_heatmap(
    folder: Path,
    spec: ModelSpec,
    validation: ValidationSet,
    say: Callable[[str], None],
    gates: Mapping[str, Gate] = GATES,
) -> tuple[list[Candidate], list[str]]:
    """Write and check the heat map of `model.onnx` in a model folder; only a file that passes stays there.

    Returns its verdict as a file check, or else the sentence that says why this network has none.
    """
    model = onnx.load(folder / "model.onnx")
    try:
        head = linear_head(model)
    except SajiError as error:
        why = f"{FILE} is left out: {spec.architecture} has no class activation map, {error}"
        say(f"{spec.architecture}: {why}")
        return [], [why]
    add_map(model, head, spec)
    with replacing(folder / FILE) as temporary:
        onnx.save_model(model, temporary)
    gate = gates["fp32"]
    check = Candidate(spec.architecture, FILE, "ort-cpu", "fp32", "cam", False, machine=machine(), gate=gate)
    check = with_result(check, check_heatmap(folder / FILE, head, spec, validation, gate))
    say(line(check))
    if check.verdict != "pass":
        (folder / FILE).unlink()
    return [check], []


def check_heatmap(path: Path, head: Head, spec: ModelSpec, validation: ValidationSet, gate: Gate) -> GateResult:
    """Hold a heat map's file against the checkpoint's logits: its own logits, and those that its maps add up to."""
    assert validation.logits is not None
    heatmap, n = Heatmap(path, spec), len(validation.labels)
    parts = [heatmap.maps(validation.images[i : i + AT_ONCE]) for i in range(0, n, AT_ONCE)]
    logits, maps = (np.concatenate(part) for part in zip(*parts, strict=True))
    result = apply_gate(validation.logits, logits, validation.labels, gate, spec)
    if result.verdict != "pass":
        return result
    top = logits.argmax(axis=1)
    rebuilt = logits.copy()
    rebuilt[np.arange(n), top] = maps.mean(axis=(1, 2)) + head.bias[top]
    summed = apply_gate(validation.logits, rebuilt, validation.labels, gate, spec)
    return replace(summed, reasons=tuple(f"the map does not add up to its logit: {why}" for why in summed.reasons))
