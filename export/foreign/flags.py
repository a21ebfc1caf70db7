"""What speaks for other flags than those that were typed: the photos, and who wrote the file. It is said, no more."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from export.foreign.answers import Network
from export.model import Say
from export.settings import Foreign, Triple
from runtime.evaluation import mcnemar_p

# What most networks are trained with: 0 to 1, -1 to 1, by ImageNet's colours, 0 to 255, and that by Caffe's
ZERO, ONE, HALF = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5)
USUAL: tuple[tuple[Triple, Triple, float], ...] = (
    *((ZERO, ONE, 1 / 255), (HALF, HALF, 1 / 255), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255)),
    *((ZERO, ONE, 1.0), ((123.68, 116.779, 103.939), ONE, 1.0)),
)
MOST = 100  # photos that are asked about, each by every other way
SURE = 0.001  # by McNemar's test: a network that learnt otherwise is hardly right more often so


def say_what_fits_better(
    network: Network, images: np.ndarray, logits: np.ndarray, labels: np.ndarray, say: Say
) -> None:
    """Say so where photos are for sure named better by one other flag, or by another usual normalisation.

    `images` uint8 `[N, S, S, 3]` RGB; `logits` `[N, C]` are the network's by the flags that were typed, `labels` `[N]`.
    """
    places = np.unique(np.linspace(0, len(labels) - 1, MOST, dtype=int))
    images, labels = images[places], labels[places]
    typed = logits[places].argmax(1) == labels
    best, better = typed.mean(), ""
    if mcnemar_p(0, int((~typed).sum())) >= SURE:  # too few are wrong: nothing could be better for sure
        return
    for flags, changes in _others(network.foreign):
        right = network.shown(replace(network.foreign, **changes))(images).argmax(1) == labels
        # By the mean over classes, too: to answer with the largest class alone is right often, and knows nothing
        knows = right.mean() > best and _by_class(right, labels) > _by_class(typed, labels)
        if knows and mcnemar_p(int((typed > right).sum()), int((right > typed).sum())) < SURE:
            best, better = right.mean(), flags
    if better:
        share = f"{best:.3f} of {len(labels)} photos"
        say(
            f"{network.file} is right about {share} with {better}, about {typed.mean():.3f} as typed; look at that flag"
        )


def _by_class(right: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def _others(typed: Foreign) -> Iterator[tuple[str, dict[str, Any]]]:
    channels = "rgb" if typed.channels == "bgr" else "bgr"
    yield f"--channels {channels}", {"channels": channels}
    for mean, std, scale in USUAL:
        if (typed.mean, typed.std, typed.scale) == (mean, std, scale):
            continue
        numbers = " ".join(f"--{name} {_numbers(values)}" for name, values in (("mean", mean), ("std", std)))
        scaled = " --scale 1" if scale == 1 else "" if typed.scale == scale else ", without --scale"
        yield numbers + scaled, {"mean": mean, "std": std, "scale": scale}


def say_what_its_author_does(model: onnx.ModelProto, foreign: Foreign, size: int, resize: int, say: Say) -> None:
    """Say so where the metadata name Ultralytics, and its classifiers see photos otherwise than by the flags."""
    author = {entry.key: entry.value for entry in model.metadata_props}.get("author")
    usual = replace(foreign, mean=ZERO, std=ONE, scale=1 / 255, channels="rgb", crop="center", antialias=True)
    if author == "Ultralytics" and (foreign, resize) != (usual, size):
        flags = (
            f"--mean {_numbers(ZERO)} --std {_numbers(ONE)} --resize {size} and without --scale, --channels and --crop"
        )
        say(
            f"{foreign.onnx} is by Ultralytics, whose classifiers see photos by {flags} unless they were told otherwise"
        )


def _numbers(values: Triple) -> str:
    return " ".join(f"{value:g}" for value in values)
