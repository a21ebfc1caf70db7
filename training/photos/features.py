"""What a network with published weights sees in photos: one vector each, close for photos that look alike to people."""

import numpy as np
import torch
from sklearn.preprocessing import normalize

from training.network import architectures
from training.network.classifier import PhotoClassifier

OFFLINE = "efficientnet_lite0"  # its published weights come with the packages that training needs


class Backbone:
    """A network without its last layer. Raises SajiError where there are no published weights."""

    def __init__(self, architecture: str = OFFLINE) -> None:
        self._model = PhotoClassifier(architecture, 2, pretrained=True).to(memory_format=torch.channels_last).eval()
        self._seen: list[np.ndarray] = []
        head = architectures.head(self._model.network)
        head.register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0].numpy()))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The input of the last layer at length 1, float32 `[N, D]`; images uint8 `[N, S, S, 3]` RGB."""
        with torch.inference_mode():
            self._model(torch.from_numpy(images))
        return normalize(self._seen.pop())
