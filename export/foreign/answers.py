"""What a foreign network answers, by ONNX Runtime, and whether these are logits of which a softmax makes probabilities.

That is asked of the answers, not of the graph: after its last layer exporters write a Sigmoid in many spellings.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from export.foreign.reading import in_one_line
from export.layers import first_without_answer
from export.settings import Foreign
from runtime.errors import BadModel
from runtime.spec import softmax

LOUD = 1000.0  # times as strong as photos: logits grow beyond 1 where probabilities cannot


class Network:
    """A foreign graph as it is, photo by photo, on pixels that numpy normalises.

    Raises BadModel where ONNX Runtime does not open it.
    """

    def __init__(self, graph: onnx.ModelProto, foreign: Foreign) -> None:
        self.foreign, self.input = foreign, graph.graph.input[0].name
        try:
            self.session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own classes, which have no public base
            raise BadModel(
                f"{foreign.onnx} is not run by ONNX Runtime ({in_one_line(error)}); export it anew"
            ) from None

    def __call__(self, images: np.ndarray, louder: float = 1.0) -> np.ndarray:
        """uint8 `[N, S, S, 3]` RGB → float32 `[N, C]`; `louder` multiplies what the network is shown."""
        return np.concatenate([self._answer(image, louder) for image in images])

    def _answer(self, image: np.ndarray, louder: float) -> np.ndarray:
        foreign = self.foreign
        mean, std = (np.array(triple, np.float32) for triple in (foreign.mean, foreign.std))
        photo = (image[None].astype(np.float32) * np.float32(foreign.scale) - mean) / std * np.float32(louder)
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
    file, shown = network.foreign.onnx, pictures(size)
    answers = network(shown)
    if not np.isfinite(answers).all():
        layer = first_without_answer(whole, shown)
        raise BadModel(f"{file} answers with NaN or infinity, from {layer} on; look at --std, or train it again")
    if not np.allclose(network(shown), answers, rtol=1e-3, atol=1e-3):
        raise BadModel(f"{file} answers otherwise each time that it is asked; export it without its random operators")
    as_given = as_written(shown)
    if not any(np.allclose(as_given, same, rtol=1e-3, atol=1e-3) for same in (answers, softmax(answers))):
        raise BadModel(f"{file} ends in a Softmax that is not over the classes of a photo; export it without")
    loud = network(shown, LOUD)
    told = np.concatenate([answers, loud[np.isfinite(loud).all(axis=1)]])
    sums, varied = told.sum(axis=1), np.ptp(told, axis=0).max() > 0  # which a last layer of zeros does not
    if varied and told.min() >= 0 and (told.max() <= 1 or np.allclose(sums, sums[0], rtol=1e-3)):
        raise BadModel(
            f"{file} answers with probabilities, not logits (0 to {max(1, round(told.max()))} whatever it is shown, as "
            "after a Softmax or Sigmoid); export it without what follows its logits, if its classes exclude each other"
        )


def require_same(file: Path, whole: onnx.ModelProto, network: Network, size: int) -> None:
    """Raise BadModel unless a wrapped graph answers as the foreign one, and two photos side by side as each alone."""
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    images = pictures(size)[-2:]
    alone = np.concatenate([session.run(["logits"], {"images": image[None]})[0] for image in images])
    try:
        beside = session.run(["logits"], {"images": images})[0]
    except Exception as error:  # onnxruntime raises its own classes, which have no public base
        raise BadModel(f"{file} takes no batch of two ({str(error)[:120]}); export it with a dynamic batch") from None
    if beside.shape != alone.shape:
        raise BadModel(f"{file} answers two photos with {list(beside.shape)} logits; export it with a dynamic batch")
    if not np.allclose(beside, alone, rtol=1e-3, atol=1e-3):
        raise BadModel(
            f"{file} answers a photo otherwise when another stands beside it, as a batch norm in training does; "
            "export it in evaluation mode, model.eval()"
        )
    if not np.allclose(alone, network(images), rtol=1e-3, atol=1e-3):
        raise BadModel(f"{file} answers otherwise once onnx has converted it to our opset; export it with opset 18")
