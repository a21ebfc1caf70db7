"""Each tab of the page, in a real browser: what it tells, in both languages, light and dark, wide and on a phone."""

import io
import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from conftest import PATIENCE
from PIL import Image
from test_demo import BLUE, RED, colour_classifier, demo_in, deployment, exported, picture, running, serving_of

from demo.page import texts
from demo.page.tabs import about
from demo.page.tabs.about import confusion_of
from demo.page.tabs.benchmark import runs
from lab.load.server import serving
from runtime.deployment import Rejected
from runtime.evaluation import ValidationSet
from runtime.heatmap import Heat
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec, Rejection
from training.outcome import report
from training.photos.drawn import draw_dish
from training.run.held_out import HeldOut, settle
from training.run.records import HeldOutFigures

MACHINE = {"machine_cpu": "Test CPU", "machine_cpu_features": ["avx2"], "machine_cores": 2, "machine_gpu": None}
ROW = {
    **{"experiment": "bench", "time": "2026-01-02T03:04:05+00:00", "commit": "abcdef012345", "dirty": False},
    **{"scenario": "single-stream", "timed": "inference only", "batch": 1, "rounds": 5, "image_size": 32},
    **{"photos": 12, "drawn": True, "data_fingerprint": "f00d", "verdict": "pass", "samples": [[1.0]]},
    **{"versions": {"onnxruntime": "1.2.3"}, "accuracy_interval": [0.6, 0.9]},
}
RUN = [("a · openvino · int8", 2.5, 0.8), ("a · ort-cpu · int8", 3.5, 0.75), ("a · ort-cpu · fp32", 12.0, 0.9)]
SPEC = {
    "data": {"drawn": True, "train": 290, "fingerprint": "f00d"},
    "validation": {
        **{"accuracy": 0.75, "interval": [0.467, 0.911], "photos": 12},
        "calibration": {"ece_before": 0.2346, "ece_after": 0.1234},
    },
    "recipe": {"name": "quick", "epochs": 2},
    "rejection": Rejection("max_probability", 0.4321),
    "temperature": 0.8768,
}
# Of what a thumb hits, what is under 44 px; answers are buttons to Gradio, which do nothing
SMALL_TARGETS = """() =>
  [...document.querySelectorAll('button:not(.confidence-set), summary, input:not([type=checkbox])')]
  .filter(e => e.checkVisibility({visibilityProperty: true, opacityProperty: true}))
  .filter(e => !e.closest('.visually-hidden, .virtual-table-viewport') && e.type != 'file')
  .map(e => [e.ariaLabel || e.textContent.trim(), e.getBoundingClientRect()])
  .filter(([_, box]) => box.height > 2 && (box.width < 44 || box.height < 44)).map(([name, _]) => name)"""
# Findings of axe-core in what Gradio (6.31) renders of itself: an empty Label has an aria-label without a role
OF_GRADIO = {"aria-prohibited-attr"}


def row(name: str, milliseconds: float, accuracy: float, **other: Any) -> dict[str, Any]:
    return {
        **ROW,
        **MACHINE,
        "candidate": name,
        "backend": "ort-cpu",
        "milliseconds": milliseconds,
        "accuracy": accuracy,
        **other,
    }


def write_rows(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A demo whose model folder and benchmark are there."""
    folder = tmp_path_factory.mktemp("page")
    classifier = colour_classifier(**SPEC)
    model = folder / "models" / "resnet34"
    model.mkdir(parents=True)
    labels = np.repeat([0, 1, 2], 4)
    logits = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 0, 0]]
    ValidationSet(np.zeros((12, 2, 2, 3), np.uint8), labels, ("",) * 12, logits).save(model / "validation.npz")
    exported(model, files=["validation.npz"], spec=classifier.spec)
    other = [row("a · ort-cpu · fp32", 99.0, 0.9, machine_cpu="Other CPU", time="2026-01-01T00:00:00+00:00")]
    write_rows(folder / "bench.jsonl", *(row(*facts) for facts in RUN), *other)
    with demo_in(folder, classifier) as address:
        yield address


@contextmanager
def opened(browser: Any, address: str, language: str = "en", scheme: str = "light", width: int = 1280) -> Iterator[Any]:
    """The page as a visitor has it; fails the test when the page asks any other host, or is wider than the screen."""
    locale = {"en": "en-GB", "id": "id-ID"}[language]
    page = browser.new_page(locale=locale, color_scheme=scheme, viewport={"width": width, "height": 844})
    page.set_default_timeout(1000 * PATIENCE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.locator("input[type=file]").wait_for(state="attached")
    page.get_by_role("heading", name=texts.say(language, "title")).wait_for()
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "something is cut off"
    page.close()
    assert {urlsplit(url).hostname for url in asked} - {None} == {"127.0.0.1"}  # blob: and data: have none


def open_tab(page: Any, language: str, tab: str) -> None:
    """Open a tab and wait for what it shows last."""
    there = page.get_by_role("tab", name=texts.say(language, tab), exact=True)
    if not there.is_visible():  # on a phone Gradio puts the last ones behind three dots
        page.locator(".overflow-menu > button").click()
        there = page.locator(".overflow-dropdown button", has_text=texts.say(language, tab))
    there.click()
    last = {
        "classify": ".gallery-item",
        "compare": "button.primary:visible",
        "batch": "button.primary:visible",
        "benchmark": ".vega-embed svg, .vega-embed canvas",
        "about": ".card ul",
    }
    page.locator(last[tab]).first.wait_for()


def findings(page: Any) -> list[tuple[str, bool, str]]:
    """What axe-core finds serious or critical: its rule, whether it is in our own markup, and where."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [
        (violation["id"], page.evaluate("place => !!document.querySelector(place)?.closest('.prose')", place), place)
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        for place in node["target"]
    ]


@pytest.mark.parametrize(("language", "scheme", "width"), [("en", "light", 1280), ("id", "dark", 390)])
def test_tabs_are_whole_and_accessible(
    browser: Any, address: str, screenshots: Path, language: str, scheme: str, width: int
) -> None:
    with opened(browser, address, language, scheme, width) as page:
        assert page.evaluate("document.documentElement.lang") == language
        for tab in ("classify", "compare", "batch", "benchmark", "about"):
            open_tab(page, language, tab)
            page.screenshot(path=screenshots / f"{tab}_{language}_{scheme}_{width}.png", full_page=True)
            found = findings(page)
            assert not [finding for finding in found if finding[1]], "in our own markup"
            assert {rule for rule, _, _ in found} <= OF_GRADIO, found


@pytest.fixture
def deployed(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a page of the artefacts in SAJI_OUT, or else of one whose heat map is made up."""
    if out := os.environ.get("SAJI_OUT"):
        with serving("demo", f"--out={out}", "--port=0") as server:
            yield server.address
        return
    made_up = Heat("red_rendang", np.eye(4, dtype=np.float32), Geometry.for_size(32))
    spec = ModelSpec("made up", "none", ("red_rendang",), made_up.geometry)
    stub = SimpleNamespace(spec=spec, of=lambda image: made_up)
    monkeypatch.setattr("demo.page.tabs.classify._heatmap", lambda folder, since: stub)
    yield address


def test_the_readmes_picture_shows_photo_answer_and_heat_map(
    browser: Any, deployed: str, screenshots: Path, tmp_path: Path
) -> None:
    """The first page's own: SAJI_OUT=artifacts SAJI_SCREENSHOTS=docs python -m pytest tests/test_page.py -k readmes."""
    draw_dish("rendang", 3, 480).save(tmp_path / "rendang.jpg")
    with opened(browser, deployed, width=1000) as page:
        page.set_input_files("input[type=file]", tmp_path / "rendang.jpg")
        page.locator(".time").wait_for()
        page.get_by_role("button", name="What did it look at?").click()
        heat = page.locator(".heat img")
        heat.wait_for()
        page.wait_for_function("document.querySelector('.heat img').naturalWidth > 0")
        assert "rendang" in page.get_by_test_id("label-output-value").inner_text()
        box = page.locator(".heat").bounding_box()
        height = box["y"] + box["height"] + 16
        page.set_viewport_size({"width": 1000, "height": int(height)})
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)  # for the bars to have grown
        picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(screenshots / "page.png", optimize=True)
    assert height < 1000 and (screenshots / "page.png").stat().st_size < 200_000


def test_a_thumb_reaches_everything_on_a_phone(browser: Any, address: str, tmp_path: Path) -> None:
    with opened(browser, address, width=390) as page:
        page.set_input_files("input[type=file]", picture(tmp_path / "a.jpg", RED))
        page.locator(".time").wait_for()
        bar = page.locator(".thumb").bounding_box()
        assert bar["y"] + bar["height"] == 844
        answer = page.get_by_test_id("label-output-value").bounding_box()
        assert answer["y"] + answer["height"] < bar["y"], "the answer is to be seen without scrolling"
        for tab in ("classify", "compare", "batch", "benchmark", "about"):
            open_tab(page, "en", tab)
            assert page.evaluate(SMALL_TARGETS) == [], tab


def test_a_photo_by_the_phones_own_camera_takes_the_place_of_an_earlier_one(
    browser: Any, address: str, tmp_path: Path
) -> None:
    with opened(browser, address, width=390) as page:
        for colour, dish in ((RED, "red rendang"), (BLUE, "blue nasi kerabu")):
            with page.expect_file_chooser() as chooser:
                page.get_by_role("button", name="Take a photo").click()
            assert chooser.value.element.get_attribute("capture") == "environment"
            chooser.value.set_files(picture(tmp_path / f"{dish}.jpg", colour))
            page.get_by_test_id("label-output-value").get_by_text(dish).wait_for()


def test_the_live_camera_has_one_frame_on_its_way_and_keeps_a_picture(
    browser: Any, address: str, screenshots: Path
) -> None:
    with opened(browser, address, width=390) as page:
        under_way, most, answered = 0, 0, 0

        def sent(request: Any) -> None:
            nonlocal under_way, most
            under_way += request.url.endswith("/live")
            most = max(most, under_way)

        def done(request: Any) -> None:
            nonlocal under_way, answered
            under_way -= request.url.endswith("/live")
            answered += request.url.endswith("/live")

        page.on("request", sent)
        page.on("requestfinished", done)
        page.get_by_role("button", name="Live camera").click()
        says = page.locator("#live output")
        says.get_by_text("green lalap, 100%").wait_for()  # Chromium's own camera shows a green picture
        while answered < 3:
            page.wait_for_timeout(100)
        page.screenshot(path=screenshots / "live_phone.png")
        assert not [finding for finding in findings(page) if finding[1]]
        page.get_by_role("button", name="Keep this picture").click()
        page.get_by_test_id("label-output-value").get_by_text("green lalap").wait_for()
        assert most == 1
        before = answered
        page.wait_for_timeout(600)
        assert answered <= before + 1 and page.evaluate("document.querySelector('#live video').srcObject") is None


def test_a_live_frame_that_is_refused_is_said_in_the_visitors_language(address: str) -> None:
    for language, said in (
        ("id", "bukan gambar yang dapat dibaca"),
        ("en", "is no picture that can be read"),
    ):
        headers = {"accept-language": language, "content-type": "image/jpeg"}
        answer = httpx.post(f"{address}/live", content=b"text", headers=headers)
        assert answer.status_code == 422 and said in answer.json()["says"]


def test_without_https_the_live_camera_says_what_it_needs(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        page.evaluate("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
        page.get_by_role("button", name="Live camera").click()
        page.get_by_text("A live camera needs HTTPS").wait_for()
        page.keyboard.press("Escape")
        page.locator("#live").wait_for(state="hidden")


@pytest.mark.parametrize(
    ("name", "said"),
    [("NotFoundError", "no_camera_there"), ("NotReadableError", "in_use"), ("NotAllowedError", "no_camera")],
)
def test_a_camera_that_does_not_open_says_why_and_there_is_no_picture_to_keep(
    browser: Any, address: str, name: str, said: str
) -> None:
    with opened(browser, address, "id") as page:
        page.evaluate(
            "name => navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', name))", name
        )
        page.locator("#live-start").click()
        page.get_by_text(texts.say("id", said)).wait_for()
        assert page.locator("#live .keep").is_disabled()


def test_a_browser_that_gives_noise_for_pictures_sends_none_of_the_live_camera(browser: Any, address: str) -> None:
    """As Firefox does that resists fingerprinting: noise would get a name, and a sure one."""
    with opened(browser, address) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(urlsplit(request.url).path))
        page.evaluate(
            """() => {
              const drawing = CanvasRenderingContext2D.prototype, getImageData = drawing.getImageData
              drawing.getImageData = function () {
                const image = getImageData.apply(this, arguments)
                image.data.forEach((_, i) => image.data[i] = 256 * Math.random())
                return image
              }
            }"""
        )
        page.locator("#live-start").click()
        page.get_by_text(texts.say("en", "hidden")).wait_for()
        page.evaluate("document.querySelector('#live output').textContent = ''")
        page.get_by_role("button", name="Keep this picture").click()
        page.get_by_text(texts.say("en", "hidden")).wait_for()
        assert page.locator("#live").is_visible()  # it was not closed, as after a picture that is kept
        assert "/live" not in asked and "/gradio_api/upload" not in asked


def test_a_photo_that_the_browser_cannot_show_says_so_beside_its_answer(
    browser: Any, address: str, tmp_path: Path
) -> None:
    """HEIC in most; the box was empty."""
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    with opened(browser, address) as page:
        page.set_input_files("input[type=file]", Path(__file__).parent / "heic" / "colours.heic")
        page.get_by_test_id("label-output-value").wait_for()
        box = page.locator("#photo [data-unshown]")
        box.wait_for()
        assert box.evaluate("box => getComputedStyle(box, '::after').content") == f'"{texts.say("en", "unshown")}"'
        page.get_by_role("button", name="Take a photo").or_(page.locator("#take")).wait_for(state="attached")
        with page.expect_file_chooser() as chooser:
            page.evaluate("document.querySelector('#take').click()")
        chooser.value.set_files(picture(tmp_path / "a.jpg", RED))
        page.get_by_test_id("label-output-value").get_by_text("red rendang").wait_for()
        box.wait_for(state="detached")


def test_a_link_in_a_page_of_another_site_lets_in_and_is_the_code_that_is_shown(browser: Any, tmp_path: Path) -> None:
    """A cookie that is `Strict` is not sent with what such a page starts, redirects included."""
    from demo.page.frame import build

    with serving_of(colour_classifier(), tmp_path) as serving:
        link = "http://192.168.1.23:7860/?token=abc"
        with running(serving, build(serving, link=link), token="geheim") as address:
            page = browser.new_page(locale="en-GB")
            page.set_default_timeout(1000 * PATIENCE)
            page.route("http://elsewhere.test/", lambda route: route.fulfill(
                content_type="text/html", body=f'<a href="{address}/?token=geheim">link</a>'
            ))  # fmt: skip
            page.goto("http://elsewhere.test/")
            page.get_by_text("link").click()
            page.get_by_role("heading", name="Which dish is this?").wait_for()
            assert page.url == f"{address}/"
            page.get_by_text("Open this on a phone").click()
            page.locator(".phone svg").wait_for()
            assert page.locator(".phone a").get_attribute("href") == link
            page.close()


def test_what_is_not_served_is_folded_by_cause(tmp_path: Path) -> None:
    from demo.page.markup import rejected

    many = [Rejected(f"a · tensorrt · {number}", "no <GPU> here", "unchecked") for number in range(40)]
    others = (Rejected("b", "slower: 2 ms against 1 ms", "speed"), Rejected("c", "old words", "unheard of"))
    html = rejected(colour_classifier(), replace(deployment(), rejected=(*many, *others)), "id")
    assert html.count("<details") == 3 and html.count("<tr>") == 3 and "<details open" not in html
    assert "Tidak dapat berjalan di mesin ini: 40" in html and "no &lt;GPU&gt; here" in html
    assert html.index("slower") < html.index("no &lt;GPU") < html.index("old words")


def test_benchmark_shows_one_run_at_a_time(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        open_tab(page, "en", "benchmark")
        table = page.locator(".virtual-table-viewport").locator("..")
        table.get_by_text("a · ort-cpu · fp32").locator("visible=true").wait_for()
        assert page.get_by_role("columnheader", name="Candidate").first.bounding_box()["width"] > 150, "squeezed"
        shown = table.inner_text()
        assert all(name in shown for name, _, _ in RUN) and "Other CPU" not in shown
        assert "2 cores of Test CPU (avx2)" in page.locator("p[lang=en]").first.inner_text()
        menu = page.get_by_label("Benchmark run").first
        menu.click()
        page.get_by_role("option", name="Other CPU").click()
        page.get_by_text("2 cores of Other CPU").wait_for()
        assert "openvino" not in table.inner_text()
        page.get_by_text("differ from the trained network's: 1").click()
        assert "fell by <b>9</b> points" in page.locator(".facts:visible").last.inner_text()


@pytest.mark.parametrize("language", ["en", "id"])
def test_about_tells_how_far_to_trust_the_model(browser: Any, address: str, language: str) -> None:
    with opened(browser, address, language) as page:
        open_tab(page, language, "about")
        card = page.locator(".card").inner_text()
        for said in ("0.971", "0.467–0.911", "290", "f00d", "0.877", "0.123", "0.235", "0.432", "12.3 MB"):
            assert said in card, said
        matrix = [cell.inner_text() for cell in page.locator(".confusions td").all()]
        assert matrix == ["3", "1", "0", "0", "4", "0", "2", "0", "2"]
        assert texts.say(language, "limit_health") in card and texts.say(language, "limit_drawn") in card


def test_a_refusal_speaks_the_visitors_language(browser: Any, address: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("this is text")
    with opened(browser, address, "id") as page:
        page.set_input_files("input[type=file]", tmp_path / "photo.jpg")
        page.get_by_role("alert").wait_for()
        assert "bukan gambar yang dapat dibaca" in page.get_by_role("alert").inner_text()


def test_tabs_are_opened_from_the_keyboard(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        page.get_by_role("tab", name="About", exact=True).focus()
        page.keyboard.press("Enter")
        page.locator(".card ul").wait_for()


def test_confusions_are_counted_among_the_photos_of_the_receipt_alone(tmp_path: Path) -> None:
    logits, labels = np.eye(2, dtype=np.float32), np.array([0, 0])
    for photos in (labels, 1 - labels):
        ValidationSet(np.zeros((2, 2, 2, 3), np.uint8), photos, ("",) * 2, logits).save(tmp_path / "validation.npz")
        if photos is labels:
            receipt = Receipt.read(exported(tmp_path, files=["validation.npz"]))
            assert confusion_of(tmp_path, receipt, 2).tolist() == [[1, 1], [0, 0]]
    assert confusion_of(tmp_path, receipt, 2) is None


def test_a_model_that_tells_little_has_a_short_card(tmp_path: Path) -> None:
    from demo.page.tabs.about import card_of

    with serving_of(colour_classifier(), tmp_path) as serving:
        card = card_of(serving.engine, tmp_path, "en")
    assert "Confusion" not in card and "recipe" not in card and "no rejection rule" in card


@pytest.mark.parametrize(
    ("role", "seen", "fitted", "said"),
    [
        ("onnx", "unknown", {}, ["imported", "seen_unknown", "no_temperature", "started_onnx"]),
        ("weights", "unknown", {"ece_before": 0.2, "ece_after": 0.1}, ["seen_unknown", "started_weights"]),
        ("teacher", 30, {"ece_before": 0.2, "ece_after": 0.1}, ["checkpoint", "seen_none", "started_teacher"]),
    ],
)
@pytest.mark.parametrize("path", ["/home/anna/x/their net.pt", r"C:\anna\their net.pt"])
def test_a_card_claims_only_what_is_known_of_what_a_network_came_from(
    tmp_path: Path, role: str, seen: Any, fitted: dict[str, float], said: list[str], path: str
) -> None:
    files = {role: {"name": path, "sha256": 64 * "a", "seen": seen}}
    validation = {"accuracy": 0.75, "photos": 3} | ({"calibration": fitted} if fitted else {})
    classifier = colour_classifier(data={"started_from": files}, validation=validation)
    (tmp_path / "models" / "resnet34").mkdir(parents=True)
    logits = np.eye(3, dtype=np.float32)
    photos = ValidationSet(np.zeros((3, 2, 2, 3), np.uint8), np.arange(3), ("",) * 3, logits)
    photos.save(tmp_path / "models" / "resnet34" / "validation.npz")
    exported(tmp_path / "models" / "resnet34", files=["validation.npz"], spec=classifier.spec)
    with serving_of(classifier, tmp_path) as serving:
        cards = {language: about.card_of(serving.engine, tmp_path, language) for language in texts.TEXTS}
    for language, card in cards.items():
        words = {key: texts.TEXTS[language][key] for key in (*said, "seen_none", "seen_unknown", "temperature")}
        assert all(words[key] in card for key in said), card
        assert ("anna" in card, "their net.pt" in card) == (False, True)
        assert (words["seen_none"] in card) is ("seen_none" in said) is not (words["seen_unknown"] in card)
        claim = words["temperature"].partition("}")[2].strip(")")
        assert (claim in card) is (seen != "unknown")


def test_a_card_is_of_the_engine_that_serves_also_beside_another_export(tmp_path: Path) -> None:
    """Whose confusions and whose sha256 once stood on it."""
    model = tmp_path / "models" / "resnet34"
    model.mkdir(parents=True)
    logits = np.eye(3, dtype=np.float32)
    ValidationSet(np.zeros((3, 2, 2, 3), np.uint8), np.arange(3), ("",) * 3, logits).save(model / "validation.npz")
    with serving_of(colour_classifier(), tmp_path) as serving:
        for by, confusions in (("stands for {}", True), ("another network {}", False)):
            exported(model, files=["validation.npz"], by=by)
            card = about.card_of(serving.engine, tmp_path, "en")
            assert f"sha256 {serving.engine.classifier.sha256[:12]}" in card
            assert ("Confusion" in card) is confusions


def test_of_a_class_that_no_photo_shows_the_card_and_the_report_tell_no_recall(tmp_path: Path) -> None:
    labels = np.array([0, 0, 1])
    answers = HeldOut("test photos", np.eye(3)[[0, 1, 0]], labels, np.arange(3))
    spec = settle(tmp_path, ModelSpec("x", "y", ("half", "never", "unseen")), answers, answers)
    rows = about._reliability(spec, "en").split("<tr>")[-3:]
    assert [">0.500<" in row for row in rows] == [True, False, False]
    assert [">0.000<" in row for row in rows] == [False, True, False], "of one that is never recognised it is 0"
    assert [">–<" in row for row in rows] == [False, False, True] and "1.000" not in rows[2]
    held = HeldOutFigures.from_record(spec.validation["held_out"])
    told = report._recalls(SimpleNamespace(spec=spec, held_out=held))
    assert told[1].startswith("0.000 (") and told[2] == "no photo"


def test_rows_of_different_machines_photos_or_scenarios_are_different_runs(tmp_path: Path) -> None:
    first = row("a", 9.0, 0.8)
    others = [{"machine_cpu": "X"}, {"machine_gpu": "Y"}, {"data_fingerprint": "Z"}, {"batch": 8}, {"commit": "C"}]
    untimed = [{"experiment": "ratio"}, row("server", 1, 0.8, scenario="server") | {"samples": None}]
    del untimed[1]["samples"]
    write_rows(tmp_path / "bench.jsonl", first, {**first, "milliseconds": 5.0}, *(first | o for o in others), *untimed)
    found = list(runs(tmp_path / "bench.jsonl", tmp_path / "none").values())
    assert [len(rows) for rows in found] == [1] * 6
    assert found[0][0]["milliseconds"] == 5.0, "of a repeated measurement the last"
    assert runs(tmp_path / "missing.jsonl", tmp_path / "none") == {}


def test_committed_runs_are_there_in_a_checkout(tmp_path: Path) -> None:
    assert {run.file for run in runs(tmp_path / "missing.jsonl")} >= {"food5.jsonl", "sample.jsonl"}


@pytest.mark.parametrize("language", texts.TEXTS)
def test_every_language_has_every_text_and_fills_in_the_same(language: str) -> None:
    own = tomllib.loads((Path(texts.__file__).parent / "languages" / f"{language}.toml").read_text("utf-8"))
    assert own.keys() - {"refusals"} == texts.TEXTS[texts.ENGLISH].keys()
    assert language == texts.ENGLISH or own["refusals"].keys() == texts.REFUSALS["id"].keys()
    for key, text in texts.TEXTS[language].items():
        fields, english = (
            {part[1:3] for part in Formatter().parse(t)} for t in (text, texts.TEXTS[texts.ENGLISH][key])
        )
        assert fields == english, key


@pytest.mark.parametrize(
    ("header", "language"), [("id-ID,id;q=0.9,en;q=0.8", "id"), ("en-GB,id;q=0.9", "en"), ("xx,id", "en"), ("", "en")]
)
def test_the_first_language_counts_as_in_the_browser(header: str, language: str) -> None:
    from types import SimpleNamespace

    request: Any = SimpleNamespace(headers={"accept-language": header})
    assert texts.language_of(request) == language
    assert texts.language_of(None) == "en"
