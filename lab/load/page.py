"""Seconds from choosing a photo to its answer on the page, in Chromium on loopback; a fresh page for each.

The best is the figure: browser and service share the machine's cores with whatever else runs there, which only adds.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from lab.claims.speed import require_choice, write_photo
from lab.load.server import serving
from runtime.benchmark.rows import Row
from runtime.deployment import Deployment
from runtime.errors import Unavailable

TARGET = 1.0  # seconds: what keeps a visitor's flow of thought (Nielsen, Usability Engineering, 1993, chapter 5)
TWELVE_MEGAPIXELS = 4032, 3024
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is served, and how often it is asked."""
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")
    parser.add_argument("--rounds", type=int, default=10, help="pages that are opened and asked (10)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """One row: a photo of 12 megapixels with a camera's grain, made of the golden one. Raises Unavailable."""
    require_choice(arguments.out / "deployment.json")
    choice = Deployment.read(arguments.out / "deployment.json").choice
    with tempfile.TemporaryDirectory() as folder:
        photo = write_photo(arguments.out / choice.folder, Path(folder) / "photo.jpg", *TWELVE_MEGAPIXELS, 0)
        with serving("demo", f"--out={arguments.out}", "--port=0") as server:
            seconds, said = zip(*_asked(server.address, photo, arguments.rounds), strict=True)
        size = photo.stat().st_size
    best = min(range(len(seconds)), key=seconds.__getitem__)
    about = {"experiment": "page", "candidate": choice.name, "width": TWELVE_MEGAPIXELS[0], "bytes": size}
    figures = {"seconds": seconds, "best": seconds[best], "median": statistics.median(seconds), "said": said[best]}
    yield {**about, **figures, "height": TWELVE_MEGAPIXELS[1], "target": TARGET}


def _asked(address: str, photo: Path, rounds: int) -> Iterator[tuple[float, str]]:
    """Seconds to each answer, and what the page says of the service's own time."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        raise Unavailable("no chromium here; install it, or name it with CHROMIUM=PATH")
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=FLAGS)
        for _ in range(rounds):
            page = browser.new_page(locale="en-GB")
            page.goto(address)
            yield _first_answer(page, photo)
            page.close()
        browser.close()


def _first_answer(page: Any, photo: Path) -> tuple[float, str]:
    page.locator("input[type=file]").first.wait_for(state="attached")
    page.wait_for_timeout(1000)  # a person does not choose a photo before the page has settled, either
    started = time.perf_counter()
    page.set_input_files("#photo input[type=file]", photo)
    shown = page.locator(".time")
    shown.wait_for()
    return round(time.perf_counter() - started, 3), " ".join(shown.inner_text().split())
