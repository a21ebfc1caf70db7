"""A network of a few kilobytes with all the files that a real one has: what campaigns damage, serve and open again."""

from pathlib import Path

from export.model import Checkpoint, write_model
from export.settings import Settings
from lab.torture.network import tiny
from runtime.choice import Policy, choose
from runtime.deployment import Measured
from runtime.receipt import Receipt
from training.photos.dataset import load_data
from training.photos.drawn import write_sample
from training.recipe import Recipe
from training.run.train import Place, train

RECIPE = Recipe(image_size=32, epochs=20, batch_size=16, warmup_epochs=1, augmentation="crop", precision="fp32")
PHOTOS = 12  # of each dish: half of them validate, and below 30 there is no verdict


def train_and_export(out: Path) -> None:
    """Fill a folder of artefacts: runs/sample/tiny, models/tiny, and a deployment.json that no benchmark has made."""
    data = load_data(write_sample(out / "sample", PHOTOS, 48), 0.5, 0, look_alikes=False)
    run, model = out / "runs" / "sample" / "tiny", out / "models" / "tiny"
    train(tiny.__name__, data, RECIPE, run, out / "cache", Place("cpu"))
    receipt = write_model(Checkpoint(run), model, Settings(precisions=("fp32",)), lambda line: None)
    places = [place(receipt, backend) for backend in ("ort-cpu", "openvino", "pytorch")]
    choose(places, [], Policy(), receipt.candidates[0].machine, {}).write(out / "deployment.json")


def place(receipt: Receipt, backend: str) -> Measured:
    """A candidate that passed, as if a race of six equal rounds had been run."""
    candidate = next(c for c in receipt.candidates if (c.backend, c.precision, c.verdict) == (backend, "fp32", "pass"))
    facts = receipt.files[candidate.file]
    return Measured(candidate, "models/tiny", facts.sha256, facts.bytes, 1.0, (1.0,) * 6)
