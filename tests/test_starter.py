"""The starter: ImageNet's probabilities summed, three answers, the same in every consumer."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import house
import numpy as np
import onnx
import pytest
import torch
from test_demo import colour_classifier

import runtime
from demo import starter as serving
from demo.page.frame import facts_of
from demo.page.markup import dish_names, headline
from demo.page.tabs.classify import note_on
from demo.service.api import Answers
from demo.service.queue import Result
from export.heatmap import linear_head
from export.model import Checkpoint, write_model
from export.settings import Settings
from runtime.classifier import Classifier, Prediction
from runtime.errors import BadModel, SajiError
from runtime.heatmap import Heatmap
from runtime.preprocess import pixels
from runtime.receipt import Receipt
from runtime.spec import ANSWERS, Guard, ModelSpec, Rejection
from training import starter
from training.network.architectures import lite0_of_imagenet
from training.network.classifier import PhotoClassifier, load_checkpoint, save_checkpoint
from training.photos.drawn import DISHES, draw_dish
from training.recipe import Recipe

GUARDED = ModelSpec(
    "guarded",
    "resnet18",
    ("pizza", "fig", "other food", "no food"),
    rejection=Rejection("max_probability", 0.6),
    guard=Guard("no food", "other food", 0.1),
    schema_version=2,
)
# Of ImageNet's names, those that other dishes are taken for; the trial found them
NEVER_SAID = {"hot pot", "meat loaf", "consomme", "potpie", "burrito", "mushroom", "plate", "carbonara"}


# --- the rule


@pytest.mark.parametrize(
    ("probabilities", "answer"),
    [
        ((0.7, 0.1, 0.1, 0.1), "named"),
        ((0.59, 0.21, 0.1, 0.1), "unknown"),
        ((0.1, 0.1, 0.79, 0.01), "unknown"),
        ((0.05, 0.01, 0.03, 0.91), "absent"),
        ((0.05, 0.05, 0.05, 0.85), "unknown"),
    ],
)
def test_three_answers(probabilities: tuple[float, ...], answer: str) -> None:
    assert GUARDED.answers(np.log([probabilities])) == [answer]


@pytest.mark.parametrize("rule", ["max_probability", "energy"])
def test_what_is_no_name_is_never_said_to_be_sure(rule: str) -> None:
    spec = replace(GUARDED, rejection=Rejection(rule, -1e9))
    logits = np.eye(4) * 9
    assert spec.answers(logits) == ["named", "named", "unknown", "absent"]
    assert replace(GUARDED, rejection=None).answers(logits) == ["named", "named", "unknown", "absent"]


def test_without_a_guard_there_are_the_two_answers_of_before() -> None:
    spec = replace(GUARDED, guard=None)
    assert spec.answers(np.log([(0.1, 0.1, 0.79, 0.01), (0.4, 0.3, 0.2, 0.1)])) == ["named", "unknown"]


def test_the_guard_travels_and_specs_without_one_are_what_they_were() -> None:
    assert ModelSpec.from_json(GUARDED.to_json()) == GUARDED
    old = json.loads(replace(GUARDED, guard=None, schema_version=1).to_json())
    assert not {"guard", "translations"} & set(old) and old["schema_version"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 1}, "which is of version 2"),
        ({"guard": Guard("no food", "no food", 0.1)}, "two of its classes"),
        ({"guard": Guard("nothing", "other food", 0.1)}, "two of its classes"),
        ({"guard": Guard("no food", "other food", 0.7)}, "presence is 0.7"),
        ({"guard": Guard("no food", "other food", float("nan"))}, "presence nan is no number"),
        ({"translations": {"id": ("piza",)}}, "do not name each class"),
        ({"schema_version": 4}, "spec version 4"),
    ],
)
def test_a_guard_that_cannot_be_followed_is_refused(change: dict, said: str) -> None:
    with pytest.raises(BadModel, match=said):
        ModelSpec.from_json(replace(GUARDED, **change).to_json())


# --- the network


def test_classes_and_indices_are_imagenets_by_two_sources() -> None:
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet18_Weights

    rows = list(csv.DictReader(starter.FOODS.read_text(encoding="utf-8").splitlines()))
    first, second = ResNet18_Weights.DEFAULT.meta["categories"], ImageNetInfo()
    for row in rows:
        index = int(row["index"])
        assert first[index] == row["imagenet"]
        assert row["imagenet"].replace("hotdog", "hot dog") in second.index_to_description(index).replace(
            "hotdog", "hot dog"
        )
        assert bool(row["en"]) == bool(row["id"])
        assert row["imagenet"] not in NEVER_SAID or not row["en"]
    assert len(rows) == len({row["index"] for row in rows}) == 46
    members, indonesian = starter.summed()
    assert sorted(index for indices in members.values() for index in indices) == list(range(1000))
    assert len(members) == len(indonesian) == len(set(indonesian)) == 27


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("out") / "runs" / "starter" / starter.ARCHITECTURE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starter, "EACH", 1)
        starter.write_starter(run)
    return run


@pytest.mark.parametrize("each", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_probabilities_are_imagenets_summed(each: int, written: Path) -> None:
    model, spec = load_checkpoint(written / "checkpoint.pt")
    images = np.stack([pixels(draw_dish(dish, seed), spec.geometry) for dish in DISHES for seed in range(each)])
    network, _ = lite0_of_imagenet()
    with torch.inference_mode():  # in FP64: one photo rounds otherwise than many, which is no matter of the sums
        photos = torch.from_numpy(images)
        every = network.eval().double()(photos.double().permute(0, 3, 1, 2) / 127.5 - 1).softmax(1).numpy()
        ours = spec.probabilities(model.eval().double()(photos).numpy())
    summed = np.stack([every[:, indices].sum(1) for indices in starter.summed()[0].values()], 1)
    assert np.abs(ours - summed).max() < 1e-6


def test_the_receipt_can_say_where_it_comes_from(written: Path) -> None:
    _, spec = load_checkpoint(written / "checkpoint.pt")
    [weights] = spec.data["started_from"].values()
    assert weights["licence"] == "Apache-2.0" and len(weights["sha256"]) == 64
    assert spec.published["source"].startswith("https://") and not spec.validation


# --- every consumer


@pytest.fixture(scope="module")
def guarded(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder of a small network whose five classes are summed to four, with a guard."""
    model, spec = load_checkpoint(run / "checkpoint.pt")
    apart = torch.full((4, 5), starter.APART)
    apart[[3, 1, 2, 0, 0], [0, 1, 2, 3, 4]] = 0
    summed = PhotoClassifier("resnet18", 4, Recipe.from_record(spec.recipe), apart=apart)
    model.familiarity = None  # that of other classes
    summed.load_state_dict(model.state_dict() | {"apart": apart})
    out = tmp_path_factory.mktemp("guarded")
    own = out / "runs" / "guarded" / "resnet18"
    shutil.copytree(run, own)
    validation = dict(np.load(run / "validation.npz"))
    np.savez(own / "validation.npz", **(validation | {"labels": np.array([3, 1, 2, 0, 0])[validation["labels"]]}))
    facts = {
        "geometry": spec.geometry,
        "validation": spec.validation | {"held_out": None},
        "recipe": spec.recipe,
        "temperature": 0.1,
    }
    save_checkpoint(
        own / "checkpoint.pt", summed, replace(GUARDED, **facts, rejection=Rejection("max_probability", 0.5))
    )
    write_model(Checkpoint(own), out / "models" / "resnet18", Settings(precisions=("fp32",)), lambda line: None)
    return out / "models" / "resnet18"


def test_the_map_is_that_of_the_likeliest_member(guarded: Path, sample: Path) -> None:
    receipt = Receipt.read(guarded)
    [verdict] = [candidate.verdict for candidate in receipt.candidates if candidate.file == "model.cam.onnx"]
    head = linear_head(onnx.load(guarded / "model.onnx"))
    assert verdict == "pass" and head.of_members and head.weight.shape[0] == 5
    photo = pixels(next((sample / "bakso").glob("*.jpg")), receipt.spec.geometry)
    logits, maps = Heatmap(guarded / "model.cam.onnx", receipt.spec).maps(photo[None])
    members = {0: [3, 4], 1: [1], 2: [2], 3: [0]}[int(logits.argmax())]
    # The largest member's logit is at most the log-sum-exp, and at least that less the logarithm of their number
    [most] = [max(maps.mean() + head.bias[members])]
    assert logits.max() - np.log(len(members)) - 1e-3 <= most <= logits.max() + 1e-3 or len(members) > 1


def told(spec: ModelSpec, prediction: Prediction) -> str:
    """What the examples say for it."""
    return {"named": prediction.label, "absent": "no food", "unknown": "not sure"}[prediction.answer]


def test_python_and_node_examples_give_the_answers_that_we_give(guarded: Path, sample: Path) -> None:
    photos = [photo for dish in DISHES for photo in sorted((sample / dish).glob("*.jpg"))[:6]]
    with runtime.load(guarded) as classifier:
        ours = [told(classifier.spec, classifier(photo)) for photo in photos]
    assert {"pizza", "not sure"} <= set(ours)
    lines = [[sys.executable, house.EMBEDDING_EXAMPLE]]
    if shutil.which("node") and (house.EMBED / "node" / "node_modules").is_dir():
        lines.append([shutil.which("node"), house.EMBED / "node" / "classify.mjs"])
    for line in lines:
        done = subprocess.run([*line, guarded, *photos], capture_output=True, text=True, timeout=120)
        assert [row.split("\t")[1] for row in done.stdout.splitlines()] == ours, done.stderr


def test_the_browser_example_gives_the_answers_that_we_give(guarded: Path, sample: Path, browser: Any) -> None:
    photos = [next((sample / dish).glob("*.jpg")) for dish in DISHES]
    with runtime.load(guarded) as classifier:
        ours = [told(classifier.spec, classifier(photo)) for photo in photos]
    page = browser.new_page()
    with house.browser_example(guarded) as address:
        page.goto(f"{address}?precision=fp32")
        page.wait_for_selector("#photo:enabled")
        for photo, answer in zip(photos, ours, strict=True):
            page.evaluate("document.getElementById('answer').textContent = ''")
            page.get_by_label("Pick a photo").set_input_files(photo)
            page.wait_for_function("document.getElementById('answer').textContent.includes(' ms')")
            assert page.inner_text("#answer").startswith(f"{answer} (decoding ")
    page.close()


def prediction(answer: str, label: str) -> Prediction:
    return Prediction({label: 0.9, "fig": 0.1}, answer, {"inference": 1.0})


@pytest.fixture
def classifier() -> Classifier:
    spec = replace(GUARDED, translations={"id": ("piza", "buah ara", "makanan lain", "bukan makanan")})
    engine = colour_classifier()
    return Classifier(spec, engine.backend, engine.candidate)


def test_the_page_says_the_three_answers_in_both_languages(classifier: Classifier) -> None:
    labels = {"named": "pizza", "unknown": "other food", "absent": "no food"}
    said = {answer: note_on(prediction(answer, labels[answer]), classifier, "en") for answer in ANSWERS}
    assert "Looks like <b>pizza</b>" in said["named"]
    assert "Teach me yours" in said["unknown"] and "make DATA=" in said["unknown"] and "notice" not in said["absent"]
    head = {answer: headline(classifier, prediction(answer, labels[answer]), "en") for answer in ANSWERS}
    assert head == {
        "named": "pizza, 90%",
        "unknown": "Food, but none that I know by name",
        "absent": "I see no food here",
    }
    assert "Tampaknya <b>piza</b>" in note_on(prediction("named", "pizza"), classifier, "id")
    assert dish_names(classifier, "id")["fig"] == "buah ara" and dish_names(classifier, "en")["fig"] == "fig"
    assert "2 dishes: pizza, fig" in facts_of(classifier, "en"), "what is no name is none of the dishes"


def test_rest_and_the_command_line_tell_the_answer(classifier: Classifier) -> None:
    from runtime.classify import COLUMNS, csv_row, json_row

    absent = prediction("absent", "no food")
    [answer] = Answers.of(Result([absent], classifier)).answers
    assert (answer.answer, answer.sure, answer.label) == ("absent", False, "no food")
    row = dict(zip(COLUMNS, next(csv.reader([csv_row("a.jpg", absent, "x")])), strict=True))
    assert (row["answer"], row["sure"]) == ("absent", "false")
    assert json.loads(json_row("a.jpg", absent, "x"))["answer"] == "absent"


# --- what `make demo` serves


def deployed(out: Path, drawn: bool, monkeypatch: pytest.MonkeyPatch) -> Path:
    (out / "deployment.json").parent.mkdir(parents=True, exist_ok=True)
    (out / "deployment.json").write_text("{}")
    monkeypatch.setattr(serving, "_drawn", lambda path: drawn)
    return out / "deployment.json"


def test_what_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[Path] = []
    monkeypatch.setattr(serving, "_make_starter", made.append)
    ours = tmp_path / "starter" / "deployment.json"
    assert serving.to_serve(tmp_path, "auto") == ours and made == [tmp_path / "starter"], "nothing there: it is made"
    own = deployed(tmp_path, drawn=False, monkeypatch=monkeypatch)
    assert serving.to_serve(tmp_path, "auto") == own, "the user's own photos come first"
    deployed(tmp_path, drawn=True, monkeypatch=monkeypatch)
    assert serving.to_serve(tmp_path, "auto") == own and "--serve starter" in capsys.readouterr().err
    ours.parent.mkdir()
    ours.write_text("{}")
    assert serving.to_serve(tmp_path, "auto") == ours, "drawn dishes do not displace it"
    assert "--serve own" in capsys.readouterr().err
    assert serving.to_serve(tmp_path, "own") == own and serving.to_serve(tmp_path, "starter") == ours
    assert len(made) == 1


def test_a_starter_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.sys, "executable", "/bin/false")
    with pytest.raises(SajiError, match="the starter could not be made"):
        serving.to_serve(tmp_path, "starter")


@pytest.mark.slow
def test_the_starter_goes_through_the_same_door(tmp_path: Path) -> None:
    path = serving.to_serve(tmp_path, "starter")
    with runtime.load(path) as classifier:
        assert classifier(draw_dish(DISHES[0], 3)).answer in ANSWERS
    receipt = Receipt.read(tmp_path / "starter" / "models" / starter.ARCHITECTURE)
    assert {"model.embed.onnx", "model.cam.onnx", "golden.json"} <= set(receipt.files)
    assert "not measured here" in house.process("runtime", "show", path).out
