"""The demo: a photo becomes a dish, measured times and a reason; what is no photo becomes one clear sentence."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import house
import numpy as np
import pytest
from conftest import PATIENCE
from PIL import Image

from demo import app
from demo.service.libraries import LIBRARIES
from demo.service.limits import Limits
from lab.gpu_check import serving as gpu_check
from lab.gpu_check.step import Place
from runtime.candidate import Candidate
from runtime.classifier import Classifier
from runtime.deployment import Deployment, Measured, Rejected
from runtime.errors import SajiError, Unavailable
from runtime.heatmap import Heat
from runtime.machine import Machine
from runtime.preprocess import pixels
from runtime.receipt import Receipt, file_facts
from runtime.spec import Geometry, ModelSpec, Rejection

ROOT = Path(__file__).resolve().parent.parent
RED, GREEN, BLUE = (200, 40, 30), (30, 180, 60), (30, 60, 200)
LIMITS = Limits()
SENTENCE = "photo.jpg is no picture that can be read (send a JPEG, PNG or WEBP photo)."


class MeanColour:
    """A backend without a network: the logit of class 0, 1, 2 is how red, green, blue the picture is."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def run(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(images)
        return images.mean(axis=(1, 2), dtype=np.float32) / 25

    def precision_share(self) -> dict[str, float]:
        return {"fp32": 1.0}

    def close(self) -> None:
        self.seen.clear()


CANDIDATE = Candidate("resnet34", "model.int8.onnx", "openvino", "int8", verdict="pass", figures=house.figures(0.9712))

STAND_IN = "stands for {}"
SHA256 = hashlib.sha256(STAND_IN.format(CANDIDATE.file).encode()).hexdigest()


def colour_classifier(**spec: Any) -> Classifier:
    classes = ("red_rendang", "green_lalap", "blue_nasi_kerabu")
    described = ModelSpec("colours", "resnet34", classes, Geometry.for_size(32), **spec)
    return Classifier(described, MeanColour(), CANDIDATE, "fastest of 3 that passed", sha256=SHA256)


def deployment() -> Deployment:
    rejected = (Rejected("resnet34 · ort-cpu · int8", "accuracy fell by <b>9</b> points", "fail"),)
    machine = Machine("Test CPU", ("avx2",), cores=2, memory_gib=8.0, gpu=None, system="L")
    choice = Measured(CANDIDATE, "models/resnet34", SHA256, 12_300_000, 2.5)
    return Deployment(choice, "fastest of 3 that passed", (), rejected, {}, machine, {})


def exported(
    folder: Path, *candidates: Candidate, files: Sequence[str] = (), spec: ModelSpec | None = None, by: str = STAND_IN
) -> Path:
    """A model folder with its receipt, which lists `files`, too; those of its candidates are stand-ins."""
    folder.mkdir(parents=True, exist_ok=True)
    candidates = candidates or (CANDIDATE,)
    names = sorted({candidate.file for candidate in candidates})
    for name in names:
        (folder / name).write_text(by.format(name))
    receipt = Receipt(spec or colour_classifier().spec, file_facts(folder, [*names, *files]), candidates, "c0" * 32, {})
    receipt.write(folder)
    return folder


def picture(path: Path, colour: tuple[int, int, int], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (90, 60), colour).save(path, **options)
    return path


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return colour_classifier()


@pytest.fixture(scope="module")
def address(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running demo of `classifier`."""
    with demo_in(tmp_path_factory.mktemp("demo"), classifier) as address:
        yield address


@contextmanager
def demo_in(folder: Path, classifier: Classifier) -> Iterator[str]:
    """The address of a running page with an example to click; deployment and uploads are in `folder`."""
    from demo.page.frame import build

    with pytest.MonkeyPatch.context() as patch, serving_of(classifier, folder) as serving:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        page = build(serving, 2, [picture(folder / "000_green.png", GREEN)])
        with running(serving, page) as address:
            yield address


@contextmanager
def serving_of(classifier: Classifier, folder: Path, limits: Limits = LIMITS, **options: Any) -> Iterator[Any]:
    """A queue in front of `classifier`, by a deployment in `folder`."""
    from demo.service.queue import Serving

    deployment().write(folder / "deployment.json")
    with Serving(folder / "deployment.json", lambda path: classifier, limits, **options) as serving:
        yield serving


@contextmanager
def running(serving: Any, page: Any = None, token: str = "", root_path: str = "", **options: Any) -> Iterator[str]:
    """The address of a server of `serving`, with or without a page; `options` are those of Server."""
    from demo.service.api import Server, build_api

    api = build_api(serving, root_path=root_path)
    if page:
        from demo.page.mount import mount

        mount(page, api, serving.limits, root_path)
    server = Server(api, serving.limits, token, **options)
    with app.listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False)


def ask(client: Any, file: Path) -> dict[str, Any]:
    from gradio_client import handle_file

    answer: dict[str, Any] = client.predict(handle_file(file), api_name="/classify")
    return answer


def test_client_gets_labels_with_probabilities_and_times(client: Any, tmp_path: Path) -> None:
    answer = ask(client, picture(tmp_path / "a.png", RED))
    assert answer["label"] == "red_rendang" and answer["sure"] is True
    assert next(iter(answer["probabilities"])) == "red_rendang" and len(answer["probabilities"]) == 3
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert list(answer["milliseconds"]) == ["decode", "geometry", "inference"]
    assert answer["served_by"] == "resnet34 · openvino · int8"


def test_client_gets_our_sentence_for_a_file_that_is_no_picture(client: Any, tmp_path: Path) -> None:
    text = tmp_path / "photo.jpg"
    text.write_text("this is text")
    with pytest.raises(Exception) as refusal:
        ask(client, text)
    assert str(refusal.value) == SENTENCE


@pytest.mark.parametrize("named", ["private.png", "https://example.org/photo.png"])
def test_what_was_not_uploaded_is_not_read(named: str, address: str, classifier: Classifier, tmp_path: Path) -> None:
    private = picture(tmp_path / "private.png", RED)
    path = named if ":" in named else str(private)
    before = len(classifier.backend.seen)  # type: ignore[attr-defined]
    endpoint = f"{address}/gradio_api/call/classify"
    body = json.dumps({"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}).encode()
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(urllib.request.Request(endpoint, body, {"Content-Type": "application/json"}))
    assert json.load(refusal.value)["cause"] == "not-uploaded"
    assert len(classifier.backend.seen) == before  # type: ignore[attr-defined]


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The demo in a browser; fails the test when the page asks any other host for anything."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * PATIENCE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.locator("input[type=file]").wait_for(state="attached")
    yield page
    page.close()
    hosts = {urlsplit(url).hostname for url in asked} - {None}  # blob: and data: have none
    assert hosts == {"127.0.0.1"}


def test_browser_upload_shows_dish_probability_and_latency(page: Any, screenshots: Path, tmp_path: Path) -> None:
    page.set_input_files("input[type=file]", picture(tmp_path / "a.jpg", RED))
    time = page.locator(".time")
    time.wait_for()
    assert page.get_by_test_id("label-output-value").inner_text() == "red rendang"
    rows = page.locator(".confidence-set")
    assert rows.count() == 2 and "100%" in rows.first.inner_text()
    assert all(part in time.inner_text() for part in ("ms", "decode", "geometry", "inference"))
    page.screenshot(path=screenshots / "demo.png", full_page=True)


def test_browser_says_what_is_no_picture_and_recovers(page: Any, screenshots: Path, tmp_path: Path) -> None:
    page.set_input_files("input[type=file]", picture(tmp_path / "a.png", BLUE))
    page.locator(".time").wait_for()
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    page.get_by_text("click an example").wait_for()
    (tmp_path / "photo.jpg").write_text("this is text")
    page.set_input_files("input[type=file]", tmp_path / "photo.jpg")
    page.get_by_role("alert").wait_for()
    assert page.get_by_role("alert").inner_text() == SENTENCE
    assert page.get_by_test_id("label-output-value").count() == 0
    page.screenshot(path=screenshots / "demo_no_picture.png", full_page=True)
    page.locator(".gallery-item").click()
    page.locator(".time").wait_for()
    assert page.get_by_test_id("label-output-value").inner_text() == "green lalap"


def test_browser_upload_reaches_the_model_with_our_pixels(page: Any, classifier: Classifier, tmp_path: Path) -> None:
    """An upright, opaque, wide photo would pass through Gradio's own decoding too: this one is none of these."""
    noise = np.random.default_rng(0).integers(0, 256, (70, 50, 4), np.uint8)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    Image.fromarray(noise, "RGBA").save(tmp_path / "turned.png", exif=orientation)
    page.set_input_files("input[type=file]", tmp_path / "turned.png")
    page.locator(".time").wait_for()
    seen = classifier.backend.seen[-1][0]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(seen, pixels(tmp_path / "turned.png", classifier.spec.geometry))


def test_browser_shows_the_heat_map_on_a_click_and_not_of_another_photo(
    page: Any, screenshots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []

    class Stub:
        spec = ModelSpec("stub", "none", ("green_lalap",), Geometry.for_size(32))

        def of(self, image: np.ndarray) -> Heat:
            asked.append(image)
            return Heat("green_lalap", np.eye(4, dtype=np.float32), Geometry.for_size(32))

    monkeypatch.setattr("demo.page.tabs.classify._heatmap", lambda engine, out: Stub())
    look = page.get_by_role("button", name="What did it look at?")
    look.click()
    page.locator(".quiet", has_text="Upload, take or paste").nth(1).wait_for()
    page.set_input_files("input[type=file]", picture(tmp_path / "a.jpg", GREEN))
    page.locator(".time").wait_for()
    assert not asked
    look.click()
    shown = page.get_by_alt_text("the photo under a heat map of what speaks for green lalap")
    shown.wait_for()
    assert page.wait_for_function("document.querySelector('.heat img').naturalWidth == 90") and len(asked) == 1
    page.screenshot(path=screenshots / "demo_heat.png", full_page=True)
    page.locator(".gallery-item").click()
    shown.wait_for(state="detached")


def test_browser_names_what_serves_and_why(page: Any, screenshots: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.locator(".chips span").all_inner_texts() == [
        "resnet34",
        "openvino",
        "int8",
        "parity: pass",
        "accuracy 0.97",
    ]
    page.get_by_text("Why this one?").click()
    why = page.locator(".why")
    why.wait_for()
    why.locator("summary").click()
    for said in (
        "fastest of 3 that passed",
        "resnet34 · ort-cpu · int8",
        "fell by <b>9</b> points",
        "Test CPU, 2 cores",
    ):
        assert said in why.inner_text()
    # Not the right edge of every element: Gradio keeps the tabs that do not fit, unseen, beside the page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "on a phone something is cut off"
    page.screenshot(path=screenshots / "demo_phone.png", full_page=True)


@pytest.mark.parametrize("drawn", [True, False])
def test_page_says_when_the_model_knows_only_drawings(drawn: bool, tmp_path: Path) -> None:
    from demo.page.frame import build

    with serving_of(colour_classifier(data={"drawn": drawn}), tmp_path) as serving:
        config = json.dumps(build(serving).get_config_file(), default=str)
    assert ("drawn pictures, not photos" in config) is drawn


def test_an_answer_below_the_rejection_threshold_is_not_sure(tmp_path: Path) -> None:
    from demo.page.tabs.classify import note_on

    rejecting = colour_classifier(rejection=Rejection("max_probability", 0.9))
    assert "Not sure" in note_on(rejecting(picture(tmp_path / "grey.png", (90, 90, 90))), rejecting, "en")
    assert "Not sure" not in note_on(rejecting(picture(tmp_path / "red.png", RED)), rejecting, "en")


def test_examples_are_those_of_the_network_that_serves(tmp_path: Path) -> None:
    model = exported(tmp_path / "models" / "resnet34")
    green = picture(model / "examples" / "000_green.png", GREEN)
    with serving_of(colour_classifier(), tmp_path) as serving:
        assert serving.examples() == [green]
        exported(model, by="another network {}")
        assert serving.examples() == []


# The command line


# What other programs of Gradio, uvicorn and Prometheus were told
FOREIGN = {
    "WEB_CONCURRENCY": "auto",
    "FORWARDED_ALLOW_IPS": "*",
    "PROMETHEUS_MULTIPROC_DIR": "/nowhere",
    "prometheus_multiproc_dir": "/nowhere",
    "GRADIO_DEFAULT_CONCURRENCY_LIMIT": "abc",
    "GRADIO_NODE_NUM_PORTS": "x",
    "GRADIO_SERVER_PORT": "",
    "GRADIO_CACHE_MODE": "x",
    "GRADIO_ROOT_PATH": "/x",
    "GRADIO_VIBE_MODE": "1",
    "GRADIO_MCP_SERVER": "true",
}


def start(*command: str, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if command[0].startswith("-"):  # a plain path has to find the repository by itself
        environment["PYTHONPATH"] = str(ROOT)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
    alone = {"cwd": cwd, "env": environment, "start_new_session": True}  # without the terminal of the tests
    return subprocess.Popen([sys.executable, *command], **alone, **streams)


@pytest.mark.parametrize("command", [[str(ROOT / "demo" / "app.py")], ["-m", "demo"]])
def test_nothing_trained_is_one_sentence_with_the_command(command: list[str], tmp_path: Path) -> None:
    process = start(*command, cwd=tmp_path)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert err.count("\n") == 1 and "artifacts/deployment.json" in err and "make train export bench" in err


def test_a_busy_port_is_one_sentence_naming_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SajiError, match="--port") as refusal:
        app.listen("127.0.0.1", taken.getsockname()[1])
    assert "\n" not in str(refusal.value)


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    """A deployment with one example; its model is nowhere, `app.load` has to be replaced."""
    deployment().write(tmp_path / "deployment.json")
    picture(exported(tmp_path / "models" / "resnet34") / "examples" / "000_green.png", GREEN)
    return tmp_path


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_is_said_with_the_line_that_installs_it(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the demo, and by the step of the GPU check that starts it and would else be called a failure."""
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path)])
    monkeypatch.setitem(sys.modules, library, None)
    for serve in (app.main, lambda: next(gpu_check.demo(Place(tmp_path, 32, 60)))):
        with pytest.raises(Unavailable, match=rf"{library} is not installed.*\[demo\]"):
            serve()


def test_a_checkout_that_is_not_installed_serves_under_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from demo.service.api import build_api

    def none_of(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", none_of)
    with serving_of(colour_classifier(), tmp_path) as serving:
        version = build_api(serving).version
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_an_examples_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SajiError, match="--examples"):
        app.pictures_in(tmp_path)


SERVE = """
import signal, socket, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background has Ctrl-C switched off
from demo import app
from test_demo import colour_classifier
look_up = socket.getaddrinfo
def telling(host, *rest, **options):
    print("LOOKED UP", host, file=sys.stderr)
    return look_up(host, *rest, **options)
socket.getaddrinfo = telling
app.load = lambda path, **options: colour_classifier()
app.exit_with_one_sentence(app.main)
"""


def test_settings_of_other_programs_are_none_of_ours(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    script = f"import sys; sys.path.append({str(ROOT / 'tests')!r}){SERVE}"
    process = start("-c", script, "--out", str(deployed), "--port", "0", cwd=deployed)
    too_long = threading.Timer(PATIENCE, process.kill)
    too_long.start()
    try:
        said = process.stderr.readline()  # type: ignore[union-attr]
        assert said.startswith("serving "), (said, process.communicate()[1])
        address = said.split()[-1]
        with urllib.request.urlopen(f"{address}/config") as answer:
            config = json.load(answer)
        asked = {name: config.get(name) for name in ("root", "vibe_mode", "mcp_server")}
        assert asked == {"root": address, "vibe_mode": False, "mcp_server": False}
        with urllib.request.urlopen(f"{address}/metrics") as answer:
            assert b"saji_engine_info{" in answer.read()
    finally:
        process.kill()
        process.communicate()
        too_long.cancel()


IN_A_TERMINAL = """
import os, signal
os.login_tty(0)
signal.signal(signal.SIGHUP, signal.{})
"""


@pytest.mark.skipif(not hasattr(os, "login_tty"), reason="terminals as POSIX has them")
@pytest.mark.parametrize(("hangup", "stays"), [("SIG_DFL", False), pytest.param("SIG_IGN", True, id="under nohup")])
def test_a_page_goes_with_its_terminal_unless_it_was_to_stay(hangup: str, stays: bool, deployed: Path) -> None:
    ours, its = os.openpty()
    script = f"{IN_A_TERMINAL.format(hangup)}\nimport sys; sys.path.append({str(ROOT / 'tests')!r}){SERVE}"
    process = start("-c", script, "--out", str(deployed), "--port", "0", cwd=deployed, stdin=its)
    too_long = threading.Timer(PATIENCE, process.kill)
    too_long.start()
    try:
        with open(ours) as terminal:
            said = terminal.readline()
            assert said.startswith("serving "), said
        if stays:
            with urllib.request.urlopen(f"{said.split()[-1]}/readyz") as answer, suppress(subprocess.TimeoutExpired):
                assert answer.status == 200 and process.wait(2) is None
        else:
            assert process.wait() == 143
    finally:
        process.kill()
        process.communicate()
        too_long.cancel()
        os.close(its)


@pytest.mark.parametrize(
    ("stop", "status", "farewell"),
    [
        (signal.SIGINT, 130, ["saji: stopped by Ctrl-C; finished files are kept"]),
        pytest.param(signal.SIGTERM, 143, [], marks=pytest.mark.slow),
    ],
)
def test_command_serves_until_interrupted_and_asks_no_other_host(
    deployed: Path, stop: signal.Signals, status: int, farewell: list[str]
) -> None:
    script = f"import sys; sys.path.append({str(ROOT / 'tests')!r}){SERVE}"
    process = start("-c", script, "--out", str(deployed), "--port", "0", cwd=deployed)
    too_long = threading.Timer(PATIENCE, process.kill)
    too_long.start()
    try:
        said = process.stderr.readline()  # type: ignore[union-attr]
        assert said.startswith("serving resnet34 · openvino · int8 on http://127.0.0.1:"), (said, process.poll())
        with urllib.request.urlopen(said.split()[-1]) as answer:
            page = answer.read().decode()
        assert "Which dish is this?" in page and "000_green.png" in page
        if stop == signal.SIGTERM and hasattr(
            signal, "SIGHUP"
        ):  # in the slow one: it serves on, with what is there now
            process.send_signal(signal.SIGHUP)
            while "deployment served" not in (line := process.stderr.readline()):  # type: ignore[union-attr]
                assert line, "stopped by SIGHUP"
        process.send_signal(stop)
        out, rest = process.communicate()
        said = [line for line in rest.splitlines() if not line.startswith("{")]
        assert (process.returncode, out, said) == (status, "", farewell)
        assert {json.loads(line)["event"] for line in rest.splitlines() if line.startswith("{")} <= {"request"}
    finally:
        process.kill()
        too_long.cancel()
