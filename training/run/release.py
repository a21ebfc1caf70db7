"""What is released of a training: the weights of an epoch, averaged with those it started from, and what they know.

Fine-tuning on a few hundred photos forgets some of what published weights know, which photos of another camera or
collection need. The average of both keeps more of it, at no cost when serving (WiSE-FT, Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models"). There the last layer is an average, too; here it is fitted anew to what the averaged
network sees, since ours had no classes of these names to start from.
"""

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from runtime.errors import SajiError
from runtime.preprocess import pixels
from runtime.spec import Geometry
from training.network import architectures
from training.network.classifier import PhotoClassifier
from training.network.familiarity import fitted
from training.photos.split import Data
from training.progress import in_threads

MOST = 2000  # training photos that the last layer and familiarity are fitted to, equally many of each class
BATCH = 32
LENGTH = 10.0  # to which features are brought on average, so that STRENGTH means the same for every network
STRENGTH = 0.1  # of the photos against the regularisation, scikit-learn's C


def release(
    model: PhotoClassifier, start: Mapping[str, torch.Tensor] | None, share: float, data: Data, geometry: Geometry
) -> None:
    """Average a trained network with its `start`, of which it takes a `share`, and give it its familiarity, in place.

    Without a start it stays as it was trained.
    """
    photos = _some(data)
    if start is not None:
        _average(model.network, start, share)
    features, logits = _seen(model, data, photos, geometry)
    if not np.isfinite(features).all() or not np.isfinite(logits).all():
        return  # export names the layer that gives no numbers
    if start is not None:
        logits = _refit(model, features, data.labels[photos])
    model.familiarity = fitted(features, logits, data.labels[photos])


def _some(data: Data) -> np.ndarray:
    """Training photos by their index, in no order, at most MOST and then equally many of each class."""
    order = np.random.default_rng(0).permutation(data.train)
    each = MOST // len(data.classes) or 1
    rank = np.zeros(len(order), int)  # of a photo within its class
    for k in range(len(data.classes)):
        own = data.labels[order] == k
        rank[own] = np.arange(own.sum())
    return order if len(order) <= MOST else order[rank < each]


def _average(network: torch.nn.Module, start: Mapping[str, torch.Tensor], share: float) -> None:
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(start[name].to(tensor), share)


def _seen(model: PhotoClassifier, data: Data, photos: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """What the last layer takes `[N, D]` and logits `[N, C]` of photos as serving preprocesses them."""
    model = model.to("cpu").eval()
    features: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    with torch.inference_mode():
        for i in range(0, len(photos), BATCH):
            block = [data.photos[photo] for photo in photos[i : i + BATCH]]
            images = np.stack(list(in_threads(lambda photo: pixels(photo.source(), geometry), block)))
            for kept, part in zip(
                (features, logits), model.seen(model.normalise(torch.from_numpy(images))), strict=True
            ):
                kept.append(part.numpy())
    return np.concatenate(features), np.concatenate(logits)


def _refit(model: PhotoClassifier, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fit the last layer to features `[N, D]` and labels `[N]` by logistic regression; the logits `[N, C]` now."""
    head = architectures.head(model.network)
    scale = LENGTH / max(float(np.linalg.norm(features, axis=1).mean()), 1e-9)
    found = LogisticRegression(C=STRENGTH, max_iter=3000).fit(scale * features, labels)
    weight, bias = scale * found.coef_, found.intercept_
    if len(found.classes_) == 2:  # scikit-learn has one row, for the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    assert head.bias is not None  # by require_linear
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(bias.min() - LENGTH)  # of classes without a photo
        head.weight[found.classes_] = torch.from_numpy(weight).to(head.weight)
        head.bias[found.classes_] = torch.from_numpy(bias).to(head.bias)
        return head(torch.from_numpy(features)).numpy()


def require_linear(model: PhotoClassifier, share: float) -> None:
    """Raise SajiError where a last layer cannot be fitted anew, which the average needs."""
    head = architectures.head(model.network)
    if share and (not isinstance(head, torch.nn.Linear) or head.bias is None):
        raise SajiError("start_share needs a network that ends in a linear layer; use --start-share 0, or another one")
