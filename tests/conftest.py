"""What tests share: one tiny model, trained and exported once, and a browser."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

if "PYTEST_XDIST_WORKER" in os.environ:  # PyTorch's threads spin, and would take the cores from the other workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"  # real photos that a stranger does not have

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
CHROMIUM_FLAGS += ["--disable-background-networking", "--disable-component-update"]
CHROMIUM_FLAGS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera, allowed unasked
PATIENCE = 300  # seconds; a training beside the tests leaves them a tenth of a processor

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real photos beside the repository are not here")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names a case of bytes by their number: gzip's hold the second they were packed in, and the workers of one run
    have to name each test alike."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn photo set: a folder per class."""
    from training.photos.drawn import write_sample

    return write_sample(tmp_path_factory.mktemp("data") / "sample", per_class=16, size=72)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, once for all workers of a test run. Whoever writes into it takes a copy.

    `SAJI_MADE_ONCE` is a folder to keep it in for further runs, which `lab mutation` has hundreds of.
    """
    base = factory.getbasetemp()
    folder = Path(os.environ.get("SAJI_MADE_ONCE") or (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base))
    folder.mkdir(parents=True, exist_ok=True)
    shared = folder / name
    with FileLock(f"{shared}.lock"):
        if not shared.is_dir():
            unfinished = shared.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(shared)
    return shared


@pytest.fixture(scope="session")
def run(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run with one tiny network: the folder that holds checkpoint.pt."""
    from dataclasses import asdict

    from runtime.files import write_json
    from training.photos.dataset import load_data
    from training.recipe import Recipe
    from training.run.train import Place, train

    def make(out: Path) -> None:
        recipe = Recipe(image_size=32, epochs=2, batch_size=16, warmup_epochs=1, augmentation="crop", precision="fp32")
        data = load_data(sample, 0.5, 0, look_alikes=False)
        folder = out / "runs" / "tiny" / "resnet18"
        train("resnet18", data, recipe, folder, out / "cache", Place("cpu"))
        write_json(folder / "data.json", asdict(data.findings))

    trained = made_once(tmp_path_factory, "trained", make)
    out = shutil.copytree(trained, tmp_path_factory.mktemp("artifacts"), dirs_exist_ok=True)
    return out / "runs" / "tiny" / "resnet18"


@pytest.fixture(scope="session")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model folder of `run`, with every precision; INT8 without recovery, which takes a minute."""
    from export.model import Checkpoint, write_model
    from export.settings import Settings

    def make(folder: Path) -> None:
        write_model(Checkpoint(run), folder, Settings(recover=False), lambda line: None)

    exported = made_once(tmp_path_factory, "exported", make)
    gc.collect()
    gc.freeze()  # the libraries' million objects stay, and each opening of TensorRT would look at all of them again
    return Path(shutil.copytree(exported, run.parents[2] / "models" / "resnet18"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("no chromium here; install it, or name it with CHROMIUM=PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS, timeout=1000 * PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("SAJI_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
