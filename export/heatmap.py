"""`model.cam.onnx`: a model that also says where it looked, by the class activation map of Zhou et al. 2016.

Beside `logits` comes `cam`, float32 `[batch, h, w]`: the last maps, weighted by what each adds to the most likely
class. Its mean over height and width, plus the class's bias, is that class's logit. This is exact, but for rounding,
where the logits are linear layers on the average of the last maps; other networks get no such file. Where classes are
sums of a network's own (`PhotoClassifier.apart`), the map is that of the likeliest member of the most likely class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime
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
    float32 `[classes]`; `logits` names their own logits. `of_members` names those of the members of each class,
    float32 `[batch, classes, members]`, where classes are sums of members, which weight, bias and `logits` are of then.
    """

    maps: str
    weight: np.ndarray
    bias: np.ndarray
    logits: str = OUTPUT
    of_members: str = ""


def linear_head(model: onnx.ModelProto) -> Head:
    """The head of an exported graph, whatever linear layers it is made of. Raises SajiError where it is not linear."""
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    pools = _global_pools(model.graph)
    if not pools:
        raise SajiError("its logits do not come from an average over its last maps")
    maps, pooled, shape = pools[-1]
    logits, of_members = _members(model.graph)
    head = onnx.utils.Extractor(model).extract_model([pooled], [logits])
    if any(INPUT in node.input for node in head.graph.node):
        raise SajiError("its logits depend on more than the average of its last maps")

    def answer(averages: np.ndarray) -> np.ndarray:
        try:
            return ReferenceEvaluator(head).run(None, {pooled: averages.astype(np.float32).reshape(-1, *shape)})[0]  # type: ignore[index]
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
    return Head(maps, weight.T.copy(), bias, logits, of_members)


def _members(graph: onnx.GraphProto) -> tuple[str, str]:
    """The network's own logits, and those of each class's members where classes are sums; else OUTPUT and ""."""
    made_by = {name: node for node in graph.node for name in node.output}
    last = made_by[OUTPUT]
    if last.op_type != "ReduceLogSumExp":
        return OUTPUT, ""
    spread = made_by[made_by[last.input[0]].input[0]]  # what `apart` is added to: [batch, 1, members]
    return spread.input[0], last.input[0]


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
    make, top = onnx.helper.make_node, "cam/top"
    nodes = [
        make("Conv", [head.maps, weight.name], ["cam/classes"], "cam/classes", kernel_shape=[1, 1]),
        make("ArgMax", [OUTPUT], [top], top, axis=1, keepdims=1),
    ]
    if head.of_members:
        members = ["cam/members", "cam/top_member"]
        nodes += [
            make("GatherND", [head.of_members, top], members[:1], members[0], batch_dims=1),
            make("ArgMax", members[:1], members[1:], members[1], axis=1, keepdims=1),
        ]
        top = members[1]
    nodes.append(make("GatherND", ["cam/classes", top], ["cam"], "cam/of_top", batch_dims=1))
    model.graph.node.extend(nodes)
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
    model, gate = onnx.load(folder / "model.onnx"), gates["fp32"]
    try:
        head = linear_head(model)
        add_map(model, head, spec)
        with replacing(folder / FILE) as temporary:
            onnx.save_model(model, temporary)
        result = check_heatmap(folder / FILE, head, spec, validation, gate)
    except SajiError as error:  # of the graph, or of an engine that does not open what was added to it
        (folder / FILE).unlink(missing_ok=True)
        why = f"{FILE} is left out: {spec.architecture} has no class activation map, {error}"
        say(f"{spec.architecture}: {why}")
        return [], [why]
    check = Candidate(spec.architecture, FILE, "ort-cpu", "fp32", "cam", False, machine=machine(), gate=gate)
    check = with_result(check, result)
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
    result = apply_gate(validation.logits, logits, validation.labels, gate)
    if result.verdict != "pass":
        return result
    own, top = _own_logits(path, head, logits, validation.images)
    rebuilt = own.copy()
    rebuilt[np.arange(n), top] = maps.mean(axis=(1, 2)) + head.bias[top]
    labels = own.argmax(axis=1) if head.of_members else validation.labels
    summed = apply_gate(own, rebuilt, labels, gate)
    return replace(summed, reasons=tuple(f"the map does not add up to its logit: {why}" for why in summed.reasons))


def _own_logits(path: Path, head: Head, logits: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The network's own logits `[N, members]` and which of them the maps are of, int `[N]`; see `Head`."""
    if not head.of_members:
        return logits, logits.argmax(axis=1)
    model = onnx.load(path)
    names = [head.logits, head.of_members]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [session.run(names, {INPUT: images[i : i + AT_ONCE]}) for i in range(0, len(images), AT_ONCE)]
    own, members = (np.concatenate(part) for part in zip(*parts, strict=True))
    return own, members[np.arange(len(own)), logits.argmax(axis=1)].argmax(axis=1)
