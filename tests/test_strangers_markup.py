"""Names that are HTML, Markdown or templates stay text: classes, candidates, reasons, machines and files."""

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_demo
from conftest import PATIENCE
from test_demo import CANDIDATE, MeanColour, picture, running, serving_of

from demo.page.frame import build
from runtime.classifier import Classifier
from runtime.deployment import Rejected
from runtime.spec import Geometry, ModelSpec

EVIL = "<img src=x onerror=window.pwned=1>"
CLASSES = (
    f"a{EVIL}`${{window.pwned=2}}{{{{window.pwned}}}}`",
    "<script>window.pwned=3</script>b",
    "[x](javascript:1) **c**",
)


@pytest.fixture
def evil_page(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The page of a model whose every word is markup."""
    candidate = replace(CANDIDATE, architecture=f"r{EVIL}", variant=f"${{window.pwned=5}}`{EVIL}")
    spec = ModelSpec(
        *(f"n{EVIL}", f"arch{EVIL}", CLASSES, Geometry.for_size(32)),
        recipe={"name": EVIL, f"k{EVIL}": EVIL},
        data={"fingerprint": EVIL, "train": EVIL},
        validation={"photos": EVIL, "accuracy": 0.5},
    )
    plain = test_demo.deployment()
    evil = replace(
        plain,
        choice=replace(plain.choice, candidate=candidate),
        machine=replace(plain.machine, cpu=EVIL, system=EVIL),
        rejected=(Rejected(EVIL, EVIL),),
    )
    monkeypatch.setattr(test_demo, "deployment", lambda: evil)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    classifier = Classifier(spec, MeanColour(), candidate, f"why{EVIL}", [f"passed {EVIL}"])
    with serving_of(classifier, tmp_path) as serving, running(serving, build(serving, 3)) as address:
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        page.locator("input[type=file]").first.wait_for(state="attached")
        yield page
        page.close()


def test_no_name_runs_on_the_page(evil_page: Any, tmp_path: Path) -> None:
    photo = picture(tmp_path / f"{EVIL.replace('1', '6')}.png", (90, 90, 90))
    evil_page.set_input_files("input[type=file]", photo)
    evil_page.locator(".time").wait_for()
    assert EVIL in evil_page.get_by_test_id("label-output-value").inner_text()
    evil_page.get_by_role("tab", name="Batch").click()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(photo, EVIL.replace("1", "7") + ".png")
        archive.writestr("\u202egnp.<svg onload=window.pwned=8>.png", b"x")
    evil_page.set_input_files("input[type=file][multiple]", tmp_path / "a.zip")  # that tab alone has one
    evil_page.locator(".file-preview tr").first.wait_for()
    evil_page.get_by_role("button", name="Name all dishes").click()
    evil_page.locator(".downloads").wait_for()
    for tab in ("Benchmark", "About", "Compare", "Classify"):
        evil_page.get_by_role("tab", name=tab).click()
        evil_page.wait_for_timeout(300)
    assert evil_page.evaluate("window.pwned") is None and evil_page.locator("img[src=x]").count() == 0
