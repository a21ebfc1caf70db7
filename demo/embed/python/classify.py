"""Classify photos with an exported model: numpy, pillow and onnxruntime, none of saji's code.

python classify.py MODEL_FOLDER photo.jpg …      python classify.py MODEL_FOLDER --check
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageCms, ImageOps


class Model:
    """`model.onnx`, or with precision "int8" `model.int8.onnx`, and the spec that the file carries."""

    def __init__(self, folder: Path, precision: str = "fp32") -> None:
        file = "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"
        self.session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
        self.spec = json.loads(self.session.get_modelmeta().custom_metadata_map["spec"])
        if self.spec["rejection"] and self.spec["rejection"]["rule"] not in ("max_probability", "familiarity"):
            sys.exit(f"the rule {self.spec['rejection']['rule']} is not in this example; see docs/embed.md")
        if self.spec["geometry"]["version"] < 3:
            sys.exit(
                "this model goes with an earlier saji's example; train it again with --force, or bring it in again"
            )

    def pixels(self, path: Path) -> np.ndarray:
        """The photo as the network sees it: upright, RGB, shorter side resized, centre cut out; uint8 [S, S, 3]."""
        geometry, photo = self.spec["geometry"], decode(path)
        size, resize, squash = geometry["size"], geometry["resize"], geometry["crop"] == "squash"
        sides = [(own, resize * own // (own if squash else min(photo.size))) for own in photo.size]
        how = (size, size), Image.Resampling[geometry["interpolation"].upper()]
        box = tuple((round((side - size) / 2) + end) * (own / side) for end in (0, size) for own, side in sides)
        if geometry["antialias"]:
            return np.asarray(photo.resize(*how, box))  # to the last bit as in training
        return np.asarray(photo.transform(how[0], Image.Transform.EXTENT, box, how[1]))

    def run(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        """Softmax of the logits at the spec's temperature, float [classes], and familiarity where the model has it."""
        (logits,), *familiarity = self.session.run(None, {"images": pixels[None]})
        exponents = np.exp((logits - logits.max()) / self.spec["temperature"])
        return exponents / exponents.sum(), float(familiarity[0][0]) if familiarity else 0.0

    def answer(self, probabilities: np.ndarray, familiarity: float) -> str:
        """What the spec's rules make of them: a name, "not sure", or the class for nothing of the kind."""
        classes, guard, rejection = (self.spec.get(name) for name in ("classes", "guard", "rejection"))
        if guard and probabilities[classes.index(guard["absent"])] > 1 - guard["presence"]:
            return guard["absent"]
        label, most = classes[probabilities.argmax()], probabilities.max()
        unsure = rejection and (familiarity if rejection["rule"] == "familiarity" else most) < rejection["threshold"]
        return "not sure" if unsure or (guard and label in (guard["absent"], guard["unnamed"])) else label


def decode(path: Path) -> Image.Image:
    """Upright sRGB by an embedded colour profile where there is one, such as an iPhone's; transparency on white."""
    photo = Image.open(path).copy()  # which reads it whole, or fails
    with contextlib.suppress(Exception):  # of EXIF that cannot be written again, as some phones have it: after the turn
        ImageOps.exif_transpose(photo, in_place=True)
    profile = io.BytesIO(photo.info.get("icc_profile") or b"")
    if photo.mode.startswith("I"):  # 16 bits a pixel, which Pillow itself would clip to white
        photo = Image.fromarray((np.asarray(photo).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    rgba = photo.convert("RGBA")
    own = photo if photo.mode == "CMYK" else rgba.convert("L" if photo.mode in ("L", "LA") else "RGB")
    with contextlib.suppress(ImageCms.PyCMSError):  # no profile, a broken one or one of other colours changes nothing
        own = ImageCms.profileToProfile(own, profile, ImageCms.createProfile("sRGB"), outputMode="RGB") or own
    return Image.composite(own.convert("RGB"), Image.new("RGB", own.size, "white"), rgba.getchannel("A"))


def check(model: Model, folder: Path, precision: str) -> None:
    """Compare with the golden vector beside the model; exit status 1 when an answer is not the checkpoint's."""
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    for name, answer in golden["pictures"].items():
        pixels = model.pixels(folder / name)
        other = answer["pixels_sha256"] not in (hashlib.sha256(pixels.tobytes()).hexdigest(), "")
        probabilities, familiarity = model.run(pixels)
        known = answer.get("familiarity") or 0.0
        found = max(np.abs(probabilities - answer["probabilities"]).max(), abs(familiarity - known) / (4 + abs(known)))
        allowed = golden["tolerance"]["ort-cpu"][precision] + answer["decoding"]
        verdict = f"{name}: {'other pixels, ' * other}the answer differs by {found:.4f}, {allowed:.4f} is allowed"
        if other or not found <= allowed:
            sys.exit(f"wrong: {verdict}")
        print(f"right: {verdict}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a model folder, such as artifacts/models/resnet34")
    parser.add_argument("photos", type=Path, nargs="*")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "int8"])
    parser.add_argument("--check", action="store_true", help="compare with the golden vector")
    arguments = parser.parse_intermixed_args()
    model, unread = Model(arguments.folder, arguments.precision), []
    if arguments.check:
        check(model, arguments.folder, arguments.precision)
    for photo in arguments.photos:
        try:
            probabilities, familiarity = model.run(model.pixels(photo))
            print(f"{photo}\t{model.answer(probabilities, familiarity)}\t{probabilities.max():.3f}")
        except Exception as error:  # whatever damaged bytes lead Pillow to
            unread.append(f"{photo} gets no answer: {error}")
    sys.exit("\n".join(unread) or None)
