"""Embedding: the model with its geometry inside answers as ours does, and the examples need none of our Python."""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import house
import numpy as np
import onnx
import pytest
from conftest import SHARED, needs_shared
from PIL import Image
from test_as_seen import MEANT, TOLERANCE, heics, hidden, tiffs
from test_others_photos import BROKEN_VALUES, KNOWN_VALUES, ODD_VALUES, lying

import runtime
from export.geometry import (
    BOUND,
    answer_originals,
    check_geometry,
    geometry_graph,
    open_with_geometry,
    originals,
    with_geometry,
    write_with_geometry,
)
from export.graph import OPSET
from lab.geometry import open_in_openvino
from lab.torture.gallery import P3, ink_profile, jpeg, picture, profile, saved
from lab.torture.odd_pictures import corpus
from runtime.backends import open_backend
from runtime.candidate import Candidate, run_all
from runtime.evaluation import ValidationSet
from runtime.preprocess import fit, pixels
from runtime.receipt import Receipt
from runtime.spec import Geometry
from training.photos.drawn import DISHES, draw_dish
from training.photos.photo_set import read_photo_set


@pytest.mark.parametrize(
    "geometry",
    [
        *(Geometry.for_size(32), Geometry.for_size(128), Geometry(64, 73, interpolation="bicubic")),
        *(Geometry(64, 73, version=2), Geometry(64, 71, "squash"), Geometry(64, 73, antialias=False)),
    ],
)
def test_the_geometry_in_the_graph_is_pillows_to_one_step(geometry: Geometry) -> None:
    import onnxruntime

    graph = geometry_graph(geometry, 10, 18).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    picture = draw_dish(DISHES[0], seed=3, size=700)
    # Halves of a pixel of a side (5:4) and of a margin, a panorama, an upscaled stamp, one that fits as it is
    sizes = [(640, 480), (375, 300), (300, 375), (640, 427), (427, 640), (331, 200), (700, 90), (20, 26)]
    for size in [*sizes, (geometry.resize, geometry.resize)]:
        photo = picture.resize(size)
        found = session.run(None, {"photo": np.asarray(photo)})[0]
        difference = np.abs(found[0].astype(int) - fit(photo, geometry))
        assert difference.max() <= 2 and (difference > 1).mean() < 1e-4 and difference.mean() < 0.05, size


def test_a_photo_squashed_in_the_graph_is_pillows_to_one_step_but_at_its_edge() -> None:
    """There ONNX Runtime weighs what lies outside otherwise; a crop with a margin leaves it out."""
    import onnxruntime

    geometry = Geometry(64, 64, "squash")
    session = onnxruntime.InferenceSession(geometry_graph(geometry, 10, 18).SerializeToString())
    for size in ((640, 480), (427, 640), (700, 90), (20, 26), (64, 64)):
        photo = draw_dish(DISHES[0], seed=3, size=700).resize(size)
        found = session.run(None, {"photo": np.asarray(photo)})[0]
        difference = np.abs(found[0].astype(int) - fit(photo, geometry))
        assert difference[1:-1, 1:-1].max() <= 1 and difference.max() <= 8 and difference.mean() < 0.1, size


def embedded(model: Path) -> list[Candidate]:
    return [candidate for candidate in Receipt.read(model).candidates if candidate.variant == "embed"]


def test_embed_files_are_judged_on_the_original_photos(model: Path) -> None:
    checks, n = embedded(model), len(ValidationSet.load(model / "validation.npz").labels)
    assert checks[0].file == "model.embed.onnx" and not any(check.servable for check in checks)
    passed = {c.file for c in Receipt.read(model).candidates if c.backend == "ort-cpu" and c.verdict == "pass"}
    assert ("model.embed.int8.onnx" in [check.file for check in checks]) == ("model.int8.onnx" in passed)
    for check in checks:
        # A step of 1/255 may cross a rounding of INT8, which this hardly trained network shows: the gate says so
        wrong = check.figures.largest_probability_difference > BOUND
        assert (check.verdict == "fail") == wrong and not (wrong and check.precision == "fp32"), check.reasons
        assert check.figures.photos == n


def inner_logits(model: Path, images: np.ndarray) -> np.ndarray:
    engine = open_backend("ort-cpu", model / "model.onnx", "fp32")
    try:
        return run_all(engine, images, 1)
    finally:
        engine.close()


def test_openvino_ignores_antialiasing_and_the_gate_says_fail(model: Path, sample: Path) -> None:
    validation, spec = ValidationSet.load(model / "validation.npz"), Receipt.read(model).spec
    paths = originals(sample, validation, spec.geometry)
    file = model / "model.embed.onnx"
    runs = {"openvino": open_in_openvino(file), "ort": open_with_geometry(file)}
    images, answers = answer_originals(list(paths.values()), spec.geometry, runs)
    inner, labels = inner_logits(model, images), validation.labels[list(paths)]
    verdicts = {name: check_geometry(inner, found, labels, spec) for name, found in answers.items()}
    assert verdicts["ort"].verdict == "pass" and verdicts["openvino"].verdict == "fail", verdicts
    assert "a probability changes by" in " ".join(verdicts["openvino"].reasons)


def test_photos_that_are_gone_or_changed_leave_the_embed_file_unjudged(
    model: Path, sample: Path, tmp_path: Path
) -> None:
    receipt, validation = Receipt.read(model), ValidationSet.load(model / "validation.npz")
    copy = tmp_path / "photos"
    shutil.copytree(sample, copy)
    name = validation.names[0]
    Image.new("RGB", (72, 72)).save(copy / name)
    (copy / validation.names[1]).unlink()
    assert set(range(len(validation.names))) - set(originals(copy, validation, receipt.spec.geometry)) == {0, 1}
    shutil.copy(model / "model.onnx", tmp_path)
    passed = [Candidate("resnet18", "model.onnx", "ort-cpu", "fp32", verdict="pass")]
    checks = write_with_geometry(tmp_path, receipt.spec, passed, validation, tmp_path / "gone", lambda line: None)
    assert [check.verdict for check in checks] == ["unchecked"] and "not there any more" in checks[0].reasons[0]
    assert (tmp_path / "model.embed.onnx").is_file()


def test_photos_of_one_name_in_several_folders_are_told_apart_by_their_pixels(tmp_path: Path) -> None:
    """As cameras number them; one that cannot be read is none of them."""
    names = ("ant/batch1/0.png", "ant/batch2/0.png", "ant/batch3/0.png", "bee/batch1/0.png")
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True)
        house.drawn(seed, path=tmp_path / name)
    (tmp_path / names[1]).write_text("no picture")
    there, geometry = [tmp_path / names[i] for i in (2, 0, 3)], Geometry.for_size(32)
    images = np.stack([pixels(path, geometry) for path in there])
    validation = ValidationSet(images, np.array([0, 0, 1]), ("ant/0.png", "ant/0.png", "bee/0.png"))
    assert originals(tmp_path, validation, geometry) == dict(enumerate(there))


@needs_shared
def test_the_geometry_keeps_within_the_bound_on_real_photos(model: Path) -> None:
    spec = Receipt.read(model).spec
    found = read_photo_set(SHARED / "food5").photos
    paths = [photo.path for photo in found if photo.split == "val"]
    images, answers = answer_originals(paths, spec.geometry, {"ort": open_with_geometry(model / "model.embed.onnx")})
    expected = spec.probabilities(inner_logits(model, images))
    assert len(paths) == 142 and np.abs(answers["ort"][1] - expected).max() <= BOUND


def test_the_embed_file_carries_spec_and_no_machine_path(model: Path) -> None:
    graph = onnx.load(model / "model.embed.onnx")
    assert json.loads({p.key: p.value for p in graph.metadata_props}["spec"]) == json.loads(
        Receipt.read(model).spec.to_json()
    )
    assert [value.name for value in graph.graph.input] == ["photo"]
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]


def example(*command: str | Path, **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def told(label: str, answer: str) -> str:
    """What the examples say of a model without a guard."""
    return label if answer == "named" else "not sure"


def spoilt(model: Path, folder: Path) -> Path:
    """A copy of the model folder whose golden vector says something else."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("engines", "*.pt2"))
    golden = json.loads((folder / "golden.json").read_text())
    probabilities = golden["pictures"]["golden.jpg"]["probabilities"]
    unlikely = probabilities.index(min(probabilities))
    golden["pictures"]["golden.jpg"]["probabilities"] = [float(i == unlikely) for i in range(len(probabilities))]
    (folder / "golden.json").write_text(json.dumps(golden))
    return folder


def test_the_python_example_checks_itself_and_classifies_as_we_do(model: Path, sample: Path, tmp_path: Path) -> None:
    script, photo = house.EMBED / "python" / "classify.py", next((sample / "rendang").glob("*.jpg"))
    done = example(sys.executable, script, model, photo, "--check", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("right: golden.") == 2, done.stderr
    wide = tmp_path / "wide.jpg"  # as an iPhone's: its colours are Display P3
    Image.open(photo).save(wide, icc_profile=profile(**P3), quality=95)
    done = example(sys.executable, script, model, photo, wide, cwd=tmp_path)
    with runtime.load(model) as classifier:
        ours = [classifier(path) for path in (photo, wide)]
    for line, answer in zip(done.stdout.splitlines(), ours, strict=True):
        _, label, probability = line.split("\t")
        assert label == told(answer.label, answer.answer)
        assert float(probability) == pytest.approx(answer.probability, abs=0.01)
    wrong = example(sys.executable, script, spoilt(model, tmp_path / "model"), "--check")
    assert wrong.returncode == 1 and "wrong: golden.jpg" in wrong.stderr


ENERGY = {"rejection": {"rule": "energy", "threshold": 1}}  # which the examples do not have


def of_spec(model: Path, folder: Path, told: dict[str, Any]) -> Path:
    """A copy of the model folder whose spec tells something else."""
    house.linked(model, folder)
    for file in ("model.onnx", "model.embed.onnx"):
        graph = onnx.load(model / file)
        [entry] = [each for each in graph.metadata_props if each.key == "spec"]
        entry.value = json.dumps(json.loads(entry.value) | told)
        (folder / file).unlink()
        onnx.save(graph, folder / file)
    with house.changing(folder / "model.json") as receipt:
        receipt["spec"] |= told
    return folder


@pytest.mark.parametrize("name", ["python", "node"])
def test_an_example_says_which_photos_it_cannot_read_and_stops_at_a_rule_that_it_does_not_have(
    name: str, model: Path, sample: Path, tmp_path: Path
) -> None:
    command: list[str | Path] = [sys.executable, house.EMBEDDING_EXAMPLE]
    if name == "node":
        node = shutil.which("node") or pytest.skip("Node is not installed: apt-get install nodejs npm")
        command = [node, house.embedding_example("node") / "classify.mjs"]
    photo = next((sample / "rendang").glob("*.jpg"))
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:-400])
    shutil.copy(Path(__file__).parent / "heic" / "colours.heic", tmp_path)
    (tmp_path / "none.jpg").write_text("no photo")
    unread = [tmp_path / name for name in ("cut.jpg", "colours.heic", "none.jpg", "gone.jpg")]
    done = example(*command, model, unread[0], photo, *unread[1:], photo)
    assert done.returncode == 1 and [line.split("\t")[0] for line in done.stdout.splitlines()] == [str(photo)] * 2
    for path, line in zip(unread, done.stderr.splitlines(), strict=True):
        assert line.startswith(f"{path} gets no answer: ")
    done = example(*command, of_spec(model, tmp_path / "energy", ENERGY), photo)
    assert done.returncode and not done.stdout
    assert done.stderr == "the rule energy is not in this example; see docs/embed.md\n"


def test_the_python_example_refuses_a_model_whose_photos_were_cropped_by_an_earlier_saji(
    model: Path, tmp_path: Path
) -> None:
    earlier = of_spec(model, tmp_path / "earlier", {"geometry": asdict(Geometry.for_size(32)) | {"version": 2}})
    done = example(sys.executable, house.EMBEDDING_EXAMPLE, earlier, "--check")
    assert done.returncode and done.stderr.startswith("this model goes with an earlier saji's example; train")


def test_the_examples_use_none_of_our_python_and_are_short() -> None:
    for file in ("python/classify.py", "node/classify.mjs", "browser/index.html", "browser/classifier.mjs"):
        text = (house.EMBED / file).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 107, file  # with the rules of three answers and of all geometries
        assert not any(
            f"{word} {stage}" in text for word in ("import", "from") for stage in ("runtime", "export", "training")
        )


@pytest.fixture(scope="module")
def both(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder with an INT8 embed file even where the gate refused INT8, as it does for tiny networks."""
    folder = tmp_path_factory.mktemp("models") / "both"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("engines", "*.pt2"))
    with_geometry(folder / "model.int8.onnx", Receipt.read(model).spec, folder / "model.embed.int8.onnx")
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_node_example_checks_itself_and_classifies_as_we_do(
    precision: str, both: Path, sample: Path, tmp_path: Path
) -> None:
    node, flags = shutil.which("node"), ["--int8"] if precision == "int8" else []
    if not node:
        pytest.skip("Node is not installed: apt-get install nodejs npm")
    script, photo = house.embedding_example("node") / "classify.mjs", next((sample / "rendang").glob("*.jpg"))
    done = example(node, script, both, photo, "--check", *flags)
    assert done.returncode == 0 and done.stdout.count("right: golden.") == 2, done.stdout + done.stderr
    spec = Receipt.read(both).spec
    engine = open_backend("ort-cpu", both / f"model{'.int8' * (precision == 'int8')}.onnx", precision)
    logits = engine.run(pixels(photo, spec.geometry)[None])
    engine.close()
    [ours], [answer] = spec.probabilities(logits), spec.answers(logits)
    _, said, probability = done.stdout.splitlines()[-1].split("\t")
    assert said == told(spec.classes[ours.argmax()], answer)
    assert float(probability) == pytest.approx(ours.max(), abs=BOUND)
    wrong = example(node, script, spoilt(both, tmp_path / "model"), "--check", *flags)
    assert wrong.returncode == 1 and "wrong: golden.jpg" in wrong.stdout


# How docs/photos.md names what the examples see otherwise than `decode`, and which pictures show it
OTHERWISE = {
    "HEIC": "HEIF|heics",
    "TIFF": "TIFF|tiffs",
    "BMP": "BMP",
    "JPEG 2000, TGA, PSD, PNM, DIB": "DIB|JP2|J2K|JPEG ?2000|TGA|PSD|p.m |PGM",
    "lossless JPEG": "JPEG, lossless",
    "AVIF that moves": "AVIF that moves",
    "AVIF": "AVIF",
    "inks with a profile": "profile of inks",
    "inks without a profile": "CMYK|YCCK|inks$|inks [<>]",
    "PNG's gamma, primaries and cICP, AVIF's numbers": r"PNG, (gamma|cICP)|AVIF \(",
    "a BMP's profile, endpoints and gamma": "ICC in BMP|BMP, endpoints",
    "BMP and TGA that are transparent everywhere": "(BMP|TGA).* clear everywhere",
    "PNG with one clear grey of 2, 4 or 16 bits, or a clear colour of 16": "one (grey|colour) clear of (2|4|16)",
    "GIF whose first frame is smaller, APNG behind another picture": "GIF, a small|behind another picture",
    "TIFF of 16 bits, white at 0": "white is 0, 16 bits",
    "EXIF with a broken entry before its orientation": "broken, ",
    "EXIF orientation kept as a byte": "EXIF, a byte",
    "orientation by XMP alone, by a long or signed number, in WebP": "meant",
}
# Each reads names of photos and prints, for each, its height, width and pixels, or null where it cannot be read
PYTHON = """import base64, json, sys
import classify
for name in sys.argv[1:]:
    try:
        photo = classify.decode(name)
        print(json.dumps([photo.height, photo.width, base64.b64encode(photo.tobytes()).decode()]))
    except Exception:
        print("null")"""
NODE = """for (const name of process.argv.slice(1)) {
  const photo = await decode(name).catch(() => null)
  console.log(JSON.stringify(photo && [photo.dims[0], photo.dims[1], Buffer.from(photo.data).toString('base64')]))
}"""
PAGE = """async files => {
  const found = [], $ = (id) => document.getElementById(id), drawing = CanvasRenderingContext2D.prototype
  let read = new Uint8ClampedArray(0)
  const getImageData = drawing.getImageData // what the page itself reads
  drawing.getImageData = function () {
    const image = getImageData.apply(this, arguments)
    read = image.data
    return image
  }
  for (const file of files) {
    const list = new DataTransfer()
    list.items.add(new File([Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0))], 'photo'))
    $('answer').textContent = ''
    $('photo').files = list.files
    $('photo').dispatchEvent(new Event('change'))
    while (!$('answer').textContent) await new Promise((done) => setTimeout(done))
    const { width, height } = $('canvas')
    const data = read.slice(0, 4 * width * height).filter((_, i) => i % 4 < 3)
    const pixels = btoa(Array.from(data, (value) => String.fromCharCode(value)).join(''))
    found.push($('answer').textContent.includes('did not work') ? null : [height, width, pixels])
  }
  return found
}"""


Kinds = dict[str, tuple[Path, np.ndarray]]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    """A photo of each kind that is read, and its pixels."""
    inks = jpeg("CMYK", icc_profile=ink_profile(np.arange(48, dtype=np.uint8).reshape(2, 2, 2, 2, 3) * 4))
    files = corpus() | {"JPEG, a profile of inks": inks} | {f"meant, {kind}": file for kind, file in MEANT.items()}
    files |= {f"odd, {kind}": lying(value) for kind, value in (ODD_VALUES | KNOWN_VALUES).items()}
    files |= {f"broken, {kind}": lying(value, room=0) for kind, value in BROKEN_VALUES.items()}
    for make in (tiffs, hidden, *([heics] if find_spec("pillow_heif") else [])):
        files |= {f"{make.__name__}, {kind}": file for kind, (file, _) in make().items()}
    folder, found = tmp_path_factory.mktemp("kinds"), {}
    for number, (kind, content) in enumerate(files.items()):
        (folder / str(number)).write_bytes(content)
        with contextlib.suppress(house.BadPhoto):  # of which the corpus has some
            found[kind] = folder / str(number), np.asarray(house.decode(content), int)
    return found


def told_otherwise(column: int, chromium: int) -> dict[str, str]:
    """What docs/photos.md says that one of the examples makes of kinds of photos, by kind, in this Chromium."""
    text = (house.ROOT / "docs" / "photos.md").read_text(encoding="utf-8")
    table = text.partition("| photo | Python | Node | page |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]
    assert [row[0] for row in rows] == list(OTHERWISE)
    told = {row[0]: row[column] for row in rows if row[column]}
    since = {kind: re.search(r"since Chromium (\d+)", cell) for kind, cell in told.items()}
    return {kind: cell for kind, cell in told.items() if not (later := since[kind]) or int(later[1]) <= chromium}


def check_seen(kinds: Kinds, found: list[Any], column: int, chromium: int = 0) -> None:
    """The pixels that an example saw are ours, but for what docs/photos.md says of it, and all that it says is so."""
    refused, other = set(), set()
    for (kind, (_, ours)), photo in zip(kinds.items(), found, strict=True):
        if photo is None:
            refused.add(kind)
            continue
        height, width, pixels = photo
        theirs = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 3)
        if ours.shape != theirs.shape or np.abs(ours - theirs).max() > TOLERANCE:
            other.add(kind)
    told: dict[bool, dict[str, set[str]]] = {True: {}, False: {}}
    for row, cell in told_otherwise(column, chromium).items():
        told[cell.startswith("not read")][row] = {kind for kind in kinds if re.search(OTHERWISE[row], kind)}
    assert refused == set().union(*told[True].values())
    assert not other - set().union(*told[False].values())
    assert not [row for row, shown in told[False].items() if not other & shown]


def test_the_python_example_sees_the_pixels_that_we_see(kinds: Kinds) -> None:
    files = [path for path, _ in kinds.values()]
    done = example(sys.executable, "-c", PYTHON, *files, cwd=house.EMBED / "python")
    check_seen(kinds, [json.loads(line) for line in done.stdout.splitlines()], 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sides", [(256, 256), (640, 427), (333, 1000), (20, 31)])
def test_the_python_example_sees_every_size_of_network_to_the_last_bit(
    sides: tuple[int, int], interpolation: str, tmp_path: Path
) -> None:
    """Which is what the golden picture asks for; it resized all of the photo, and called healthy models wrong."""
    draw_dish(DISHES[0], seed=3, size=700).resize(sides).save(tmp_path / "a.png")
    model = house.module_at(house.EMBEDDING_EXAMPLE).Model
    geometries = [Geometry(size, resize, "squash") for size, resize in ((32, 32), (224, 232))]
    if interpolation == "bilinear":
        geometries += [Geometry(64, 73, antialias=False)]
    for size, resize in ((32, 37), (48, 55), (64, 64), (224, 256), (224, 232), (299, 342), (384, 384)):
        geometries.append(replace(Geometry.for_size(size), resize=resize))
    for geometry in geometries:
        geometry = replace(geometry, interpolation=interpolation)
        of_that_size = SimpleNamespace(spec={"geometry": asdict(geometry)})
        assert (model.pixels(of_that_size, tmp_path / "a.png") == pixels(tmp_path / "a.png", geometry)).all(), geometry


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "JPEG2000"])
def test_the_python_example_reads_no_half_of_a_photo(kind: str) -> None:
    decode, whole = house.module_at(house.EMBEDDING_EXAMPLE).decode, saved(picture(), kind)
    decode(io.BytesIO(whole))
    with pytest.raises(OSError):
        decode(io.BytesIO(whole[: len(whole) // 2]))


def test_the_node_example_sees_the_pixels_that_we_see(kinds: Kinds) -> None:
    node = shutil.which("node") or pytest.skip("Node is not installed: apt-get install nodejs npm")
    folder = house.embedding_example("node")
    decode = (folder / "classify.mjs").read_text(encoding="utf-8").partition("// What the spec's rules")[0]
    files = [path for path, _ in kinds.values()]
    done = example(node, "--input-type=module", "-e", decode + NODE, *files, cwd=folder)
    check_seen(kinds, [json.loads(line) for line in done.stdout.splitlines()], 2)


@pytest.fixture(scope="module")
def site(both: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    others = {"spoilt": spoilt(both, folder / "spoilt"), "energy": of_spec(both, folder / "energy", ENERGY)}
    with house.browser_example(both, **others) as address:
        yield address


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 390, "height": 844})  # a phone's
    yield page
    page.close()


def answer(page: Any, words: str) -> str:
    page.wait_for_function("words => document.getElementById('answer').textContent.includes(words)", arg=words)
    return page.inner_text("#answer")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_page_checks_itself_in_a_browser(precision: str, site: str, page: Any) -> None:
    page.goto(f"{site}?check&precision={precision}")
    assert answer(page, "golden.jpg").count("right: ") == 2, page.inner_text("#answer")
    page.goto(f"{site}?check&precision={precision}&model=spoilt")
    assert "wrong: golden.jpg" in answer(page, "golden.jpg")


def test_the_page_classifies_a_photo_itself_and_says_how_long_it_took(
    site: str, page: Any, model: Path, sample: Path
) -> None:
    photo = next((sample / "rendang").glob("*.jpg"))
    with runtime.load(model) as classifier:
        ours = classifier(photo)
    asked: list[str] = []
    page.goto(f"{site}?precision=fp32")
    answer(page, "Ready")
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("Pick a photo").set_input_files(photo)
    said = answer(page, "model ")
    assert said.startswith(f"{told(ours.label, ours.answer).replace('_', ' ')} (decoding ") and said.endswith(" ms)")
    assert page.locator("#classes li").first.inner_text().startswith(f"{ours.label.replace('_', ' ')}: ")
    assert page.locator("#classes li").count() == 5 and not asked  # the photo does not leave the page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("Pick a photo").set_input_files({"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"no"})
    assert "cannot read that file (" in answer(page, "did not work")
    assert not page.locator("#classes li").count() and page.locator("#canvas").bounding_box()["height"] == 0


# What browsers give a page that reads a canvas: WebKit of one above its limit; Firefox that resists fingerprinting, and
# in a private window; Chromium that has no memory for it
READ_BACK = {
    "zeros": "image.data.fill(0)",
    "noise": "image.data.forEach((_, i) => image.data[i] = 256 * Math.random())",
    "last bits": "image.data.forEach((value, i) => image.data[i] = value ^ (Math.random() < 0.1))",
    "none": "(() => { throw new RangeError('out of memory') })()",
}


@pytest.mark.parametrize("how", READ_BACK)
def test_a_photo_that_the_browser_hides_gets_no_name_and_nothing_of_the_one_before_stays(
    how: str, site: str, page: Any, sample: Path
) -> None:
    first, second = sorted((sample / "rendang").glob("*.jpg"))[:2]
    page.goto(f"{site}?precision=fp32")
    answer(page, "Ready")
    page.get_by_label("Pick a photo").set_input_files(first)
    answer(page, "model ")
    assert page.locator("#canvas").bounding_box()["height"] > 0
    before = page.evaluate("document.getElementById('answer').textContent = '…'")
    page.evaluate(
        """change => {
          const drawing = CanvasRenderingContext2D.prototype, getImageData = drawing.getImageData
          drawing.getImageData = function () {
            const image = getImageData.apply(this, arguments)
            new Function('image', change)(image)
            return image
          }
        }""",
        READ_BACK[how],
    )
    page.get_by_label("Pick a photo").set_input_files(second)
    page.wait_for_function("before => document.getElementById('answer').textContent != before", arg=before)
    hidden = how != "last bits"
    assert ("lets no page see the 0.0 megapixels of this photo; pick a" in page.inner_text("#answer")) is hidden
    assert page.locator("#classes li").count() == 5 * (not hidden)
    assert (page.locator("#canvas").bounding_box()["height"] == 0) is hidden


def test_the_page_sees_the_pixels_that_we_see(site: str, page: Any, kinds: Kinds) -> None:
    page.goto(f"{site}?precision=fp32")
    answer(page, "Ready")
    files = [base64.b64encode(path.read_bytes()).decode() for path, _ in kinds.values()]
    check_seen(kinds, page.evaluate(PAGE, files), 3, int(page.context.browser.version.partition(".")[0]))


def test_the_page_says_what_is_missing_or_unknown(site: str, page: Any) -> None:
    page.goto(f"{site}?model=nowhere")
    assert "nowhere/model.json is not there" in answer(page, "did not work")
    page.goto(f"{site}?model=energy&precision=fp32")
    assert "the rule energy is not in this example" in answer(page, "did not work")
