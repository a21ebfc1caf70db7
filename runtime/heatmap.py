"""Where the network looked: the class activation map of a photo (Zhou et al. 2016), laid over that photo.

It is the FP32 model's, by `model.cam.onnx` of a model folder, in ONNX Runtime on the CPU: whatever engine serves.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from runtime.backends.base import Request, require_finite
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.errors import SajiError
from runtime.preprocess import crop_box
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec

FILE = "model.cam.onnx"
# From nothing to most: the first, middle and last colour of matplotlib's "inferno" (Smith, van der Walt 2015), whose
# brightness rises all the way, so that it also reads without colour vision
COLOURS = ("#000004", "#bc3754", "#fcffa4")


@dataclass(frozen=True)
class Heat:
    """What speaks for `label`, the most likely class, and where.

    `activation` is float32 `[h, w]` in logits: its mean, and the class's bias, make up the class's logit.
    """

    label: str
    activation: np.ndarray
    geometry: Geometry

    @property
    def heat(self) -> np.ndarray:
        """The map over the crop that the network sees, float32 `[size, size]`: 0 for no evidence, 1 for the most."""
        evidence = np.maximum(self.activation, 0)  # not what speaks against the class
        size = (self.geometry.size, self.geometry.size)
        heat = np.asarray(Image.fromarray(evidence).resize(size, Image.Resampling.BILINEAR))
        return heat / (heat.max() or 1)

    def over(self, picture: Image.Image) -> Image.Image:
        """The photo, upright, mode "RGB", of any size, with the map over what the network saw of it."""
        left, top, right, bottom = (round(edge) for edge in crop_box(picture.size, self.geometry))
        grey = Image.fromarray((255 * self.heat).round().astype(np.uint8))
        grey = grey.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        black, mid, white = COLOURS
        coloured = ImageOps.colorize(grey, black, white, mid)
        seen = picture.crop((left, top, right, bottom))
        picture = picture.copy()
        picture.paste(Image.blend(seen, coloured, 0.5), (left, top))
        return picture


class Heatmap:
    """Gives the heat maps of a model. `of_model` opens the one of a model folder."""

    def __init__(self, path: Path, spec: ModelSpec, sha256: str = "") -> None:
        """Open a file, without a `sha256` as it is. Raises BadModel, or Unavailable without ONNX Runtime."""
        OnnxRuntime.check_available("ort-cpu")
        self.path, self.spec = path, spec
        # One thread: nobody waits for many maps, and the engine that serves needs the cores
        self._engine = OnnxRuntime(Request("ort-cpu", path, threads=1, sha256=sha256))

    @classmethod
    def of_model(cls, folder: Path, receipt: Receipt | None = None) -> "Heatmap":
        """Open the heat map of a model folder, if its receipt knows the file and it is that very file.

        Of a `receipt` that was read before it is that one's. Raises BadModel when it is not, SajiError with export's
        reason when the model has none.
        """
        receipt = receipt or Receipt.read(folder)
        if FILE not in receipt.files:
            refused = ["; ".join(c.reasons) for c in receipt.candidates if c.file == FILE]
            left_out = [reason for reason in receipt.skipped if reason.startswith(FILE)]
            why = (refused + left_out + ["it was exported without; type: make export ARGS=--force"])[0]
            raise SajiError(f"{receipt.spec.name} has no heat map: {why}")
        receipt.verify(folder, FILE)
        return cls(folder / FILE, receipt.spec, receipt.files[FILE].sha256)

    def maps(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Preprocessed photos, uint8 `[N, size, size, 3]` RGB → logits float32 `[N, C]`, maps float32 `[N, h, w]`."""
        with self._engine.at_work("run"):
            logits, maps = self._engine.session.run(["logits", "cam"], {"images": images})
        return logits, maps

    def of(self, image: np.ndarray) -> Heat:
        """The heat map of a preprocessed photo, uint8 `[size, size, 3]` RGB, see `Heat`. Raises SajiError."""
        logits, maps = self.maps(image[None])
        require_finite(maps, str(self._engine))
        return Heat(self.spec.classes[int(logits[0].argmax())], maps[0], self.spec.geometry)
