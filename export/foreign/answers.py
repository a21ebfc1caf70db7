"""What a foreign network answers, by ONNX Runtime, and whether these are logits of which a softmax makes probabilities.

That is asked of the answers, not of the graph: after its last layer exporters write a Sigmoid in many spellings.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from export.foreign.opening import in_one_line
from export.foreign.wrapping import OURS
from export.graph import INPUT, LAYERS, OUTPUT, all_graphs, inner_graphs
from export.layers import first_without_answer
from export.settings import Foreign
from runtime.errors import BadModel
from runtime.spec import softmax

LOUD = 1e6  # times as strong a last layer: logits grow with it and change their sign, where probabilities cannot
WIDEST = 2.001  # from floor to ceiling, as of Tanh: a softmax of it gives one class of ten at most 0.45


class Network:
    """A foreign graph as it is, photo by photo, on pixels that numpy normalises.

    Raises BadModel where ONNX Runtime does not open it.
    """

    def __init__(self, graph: onnx.ModelProto, foreign: Foreign) -> None:
        assert foreign.onnx
        self.foreign, self.file, self.input = foreign, foreign.onnx, graph.graph.input[0].name
        self.session = _session(self.file, graph)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, S, S, 3]` RGB → float32 `[N, C]`."""
        return np.concatenate([self._answer(image) for image in images])

    def shown(self, foreign: Foreign) -> "Network":
        """The same graph, shown photos by other flags."""
        other = copy.copy(self)
        other.foreign = foreign
        return other

    def _answer(self, image: np.ndarray) -> np.ndarray:
        foreign = self.foreign
        mean, std = (np.array(triple, np.float32) for triple in (foreign.mean, foreign.std))
        photo = (image[None].astype(np.float32) * np.float32(foreign.scale) - mean) / std
        photo = photo[..., ::-1] if foreign.channels == "bgr" else photo
        photo = photo.transpose(0, 3, 1, 2) if foreign.layout == "nchw" else photo
        return self.session.run(None, {self.input: photo})[0]


def pictures(size: int) -> np.ndarray:
    """What networks are asked about before there are photos: uint8 `[N, size, size, 3]` RGB, coarse and fine noise."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (6, 8, 8, 3), np.uint8)
    at = np.arange(size) * 8 // size
    fine = random.integers(0, 256, (2, size, size, 3), np.uint8)
    return np.concatenate([coarse[:, at][:, :, at], fine])


def require_logits(network: Network, as_written: Network, whole: onnx.ModelProto, size: int) -> None:
    """Raise BadModel unless a softmax makes probabilities of what a network answers, and the same ones each time.

    `as_written`: the same with the Softmax that was taken off its end, if there was one. `whole`: the same, wrapped.
    """
    file, shown = network.file, pictures(size)
    answers = network(shown)
    if not np.isfinite(answers).all():
        layer = first_without_answer(whole, shown)
        raise BadModel(f"{file} answers with NaN or infinity, from {layer} on; look at --std, or train it again")
    if not np.allclose(network(shown), answers, rtol=1e-3, atol=1e-3):
        raise BadModel(f"{file} answers otherwise each time that it is asked; export it without its random operators")
    as_given = as_written(shown)
    if not any(np.allclose(as_given, same, rtol=1e-3, atol=1e-3) for same in (answers, softmax(answers))):
        raise BadModel(f"{file} ends in a Softmax that is not over the classes of a photo; export it without")
    told = np.concatenate([answers, *(_alone(file, louder(whole, times), shown) for times in (LOUD, -LOUD))])
    told = told[(told < np.inf).all(axis=1)]  # the logarithm of a probability may be -inf
    if (told == told[0]).all():  # as of a last layer of zeros: nothing can be told from it
        return
    if why := _no_logits(told):
        raise BadModel(
            f"{file} answers with {why}; export it without what follows its logits, if its classes exclude each other"
        )
    one, next_one = told[:, :-1], told[:, 1:]  # compared, since -inf cannot be taken from itself
    in_order = (one >= next_one).all() or (one <= next_one).all()
    if in_order and any(node.op_type == "TopK" for graph in all_graphs(whole.graph) for node in graph.node):
        raise BadModel(f"{file} sorts its answers (TopK), so that none is of one class; export it without what sorts")


def louder(whole: onnx.ModelProto, times: float) -> onnx.ModelProto:
    """A copy in which the last layers that multiply and add are `times` as strong; without such layers the photos.

    What a network computes before them may be normalised, and is then as strong whatever it is shown.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(whole)
    last, nodes = set(_last_layers(copy.graph)), []
    for node in copy.graph.node:
        nodes.append(node)
        if (name := node.output[0]) in last:
            node.output[0] = f"{OURS}quiet/{name}"
            nodes.append(helper.make_node("Mul", [node.output[0], f"{OURS}times"], [name], f"{OURS}loud/{name}"))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.append(helper.make_tensor(f"{OURS}times", onnx.TensorProto.FLOAT, [], [times]))
    return copy


def _last_layers(graph: onnx.GraphProto) -> Iterator[str]:
    """What comes out of the layers, or else of our normalisation, that no other stands behind on the way to OUTPUT."""
    made_by = {name: node for node in graph.node for name in node.output}
    todo = [OUTPUT]
    while todo:
        node = made_by.pop(todo.pop(), None)  # once each
        if node and (node.op_type in LAYERS or node.name.startswith(OURS)):
            yield node.output[0]
        elif node:
            todo += node.input
            todo += [name for inner in inner_graphs(node) for each in inner.node for name in each.input]


def _alone(file: Path, whole: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = _session(file, whole)
    return np.concatenate([session.run([OUTPUT], {INPUT: image[None]})[0] for image in images])


def _session(file: Path, graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A graph in ONNX Runtime. Raises BadModel where that does not open it."""
    try:
        return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes, which have no public base
        raise BadModel(f"{file} is not run by ONNX Runtime ({in_one_line(error)}); export it anew") from None


def _no_logits(told: np.ndarray) -> str:
    """What answers `[N, C]` are in place of logits, in words; empty where they may be logits.

    Probabilities, of whatever scale, keep within a ceiling that more than one class reaches, or have one sum. Below 0,
    where others are logits that a Tanh caps, so do those of a floor and a ceiling too near for a softmax to be sure.
    """
    logarithms = told.max() <= 1e-3 and told.min() < -0.5  # of two classes one has at most log 0.5
    scores = np.exp(told) if logarithms else told
    floor, ceiling = scores.min(), 1 if logarithms else scores.max()  # of strong distances all may be 0
    sums, near = scores.sum(axis=1), 1e-5 * (ceiling - min(floor, 0))
    reached = (scores >= ceiling - near).any(axis=0).sum() > 1
    if logarithms:  # those of a softmax, too, are logits
        one = np.allclose(sums, 1, rtol=1e-3)
        return "logarithms of probabilities, not logits (up to 0, as after a LogSigmoid)" if reached and not one else ""
    if floor < 0:
        within = ceiling - floor <= WIDEST and reached and (scores <= floor + near).any(axis=0).sum() > 1
        end = f"({floor:.3g} to {ceiling:.3g} whatever it is shown, as after a Tanh)"
        return f"scores within bounds, not logits {end}" if within else ""
    rounded = min(scores.shape[1] * np.diff(np.unique(scores)).min(), 0.1 * ceiling)  # in whole per cent sums differ
    if not (ceiling <= 1 or reached or np.ptp(sums) <= max(1e-3 * sums.max(), rounded)):
        return ""
    most = max(1, round(ceiling))
    return f"probabilities, not logits (0 to {most} whatever it is shown, as after a Softmax, Sigmoid or ReLU6)"


def require_same(file: Path, whole: onnx.ModelProto, network: Network, size: int) -> None:
    """Raise BadModel unless a wrapped graph answers as the foreign one, and two photos side by side as each alone."""
    session, images = _session(file, whole), pictures(size)[-2:]
    alone = np.concatenate([session.run([OUTPUT], {INPUT: image[None]})[0] for image in images])
    try:
        beside = session.run([OUTPUT], {INPUT: images})[0]
    except Exception as error:  # onnxruntime raises its own classes, which have no public base
        raise BadModel(f"{file} takes no batch of two ({str(error)[:120]}); export it with a dynamic batch") from None
    if beside.shape != alone.shape:
        raise BadModel(f"{file} answers two photos with {list(beside.shape)} logits; export it with a dynamic batch")
    if not np.allclose(beside, alone, rtol=1e-3, atol=1e-3):
        raise BadModel(
            f"{file} answers a photo otherwise when another stands beside it, as a batch norm in training does; "
            "export it in evaluation mode, model.eval(), and with a dynamic batch"
        )
    if not np.allclose(alone, network(images), rtol=1e-3, atol=1e-3):
        raise BadModel(f"{file} answers otherwise once onnx has converted it to our opset; export it with opset 18")
