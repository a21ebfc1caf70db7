"""The benchmark and `load` do what they were asked, on what they were asked about, or say in one sentence why not."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import house
import numpy as np
import pytest
from house import GATES, Candidate, Measured, Policy, Receipt, Said, SajiError, ValidationSet
from test_others_models import bring, network

import runtime
from runtime.benchmark import command, run
from runtime.benchmark.contestant import Contestant
from runtime.benchmark.rows import append_rows, require_appendable
from runtime.deployment import Deployment
from runtime.receipt import file_facts

TWO = ("ort-cpu fp32", "openvino fp32")  # the candidates that these races are between: two are quick


def model_in(out: Path, model: Path, name: str = "resnet18", among: tuple[str, ...] = TWO) -> Path:
    """`OUT/models/NAME` with some candidates of the tiny model; its large files are links."""
    names = ("model.json", "model.onnx", "model.int8.onnx", "golden.json", "golden.png", "golden.jpg", "validation.npz")
    folder = house.linked(model, out / "models" / name, *names)
    with house.changing(folder / "model.json") as receipt:
        own = [c for c in receipt["candidates"] if c["servable"] and f"{c['backend']} {c['precision']}" in among]
        receipt["candidates"] = [c | {"architecture": name} for c in own]
    return folder


def race(out: Path, *more: object) -> Said:
    return house.here("bench", "--out", out, "--seconds", "0.1", "--cold-starts", "0", *more)


def rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


@pytest.fixture(scope="module")
def raced(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT after a race of two candidates."""
    out = tmp_path_factory.mktemp("raced")
    model_in(out, model)
    said = race(out)
    assert said.status == 0 and len(rows_in(out / "bench.jsonl")) == 2, said
    return out


@pytest.fixture
def out(raced: Path, tmp_path: Path) -> Path:
    """As `raced`, to be changed."""
    return shutil.copytree(raced, tmp_path / "out", symlinks=True)


# --- what was asked for is measured and written


@pytest.mark.parametrize("asked", [(), ("--seed", "5"), ("--experiment", "mine")], ids=["rows", "seed", "experiment"])
def test_what_a_second_race_asks_for_is_written(asked: tuple[str, ...], out: Path, tmp_path: Path) -> None:
    said = race(out, *asked, "--rows", tmp_path / "mine.jsonl")
    assert said.status == 0 and len(rows_in(tmp_path / "mine.jsonl")) == 2, said


@pytest.mark.parametrize("kind", ["a receipt", "a deployment", "a record on a line", "rows of photos", "text"])
def test_rows_are_not_added_to_what_is_no_file_of_rows(kind: str, out: Path, tmp_path: Path) -> None:
    receipt = out / "models" / "resnet18" / "model.json"
    others = {"a record on a line": "{}", "rows of photos": '{"photo": "a.jpg"}\n', "text": "12 eggs\n"}
    (tmp_path / "mine").write_text(others.get(kind, ""))
    file = {"a receipt": receipt, "a deployment": out / "deployment.json"}.get(kind, tmp_path / "mine")
    before = file.read_bytes()
    said = race(out, "--force", "--rows", file)
    assert said.status == 2 and said.last.endswith("something else than rows of experiments; name another file"), said
    assert file.read_bytes() == before


@pytest.mark.parametrize("there", ["", '{"schema_version": 1, "experiment": "bench"}\n', '{"schema_version": 2, "exp'])
def test_rows_are_added_to_rows_and_to_an_empty_file(there: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(there)
    require_appendable(tmp_path / "rows.jsonl")
    append_rows(tmp_path / "rows.jsonl", [{"experiment": "mine"}])
    assert rows_in(tmp_path / "rows.jsonl")[-1] == {"experiment": "mine"}


def test_another_photo_is_measured_anew(out: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        photo, rows = house.drawn(seed, (200, 150), tmp_path / f"{seed}.png"), tmp_path / f"{seed}.jsonl"
        said = race(out, "--candidates", "ort-cpu", "--scenario", "end-to-end", "--photo", photo, "--rows", rows)
        assert said.status == 0 and len(rows_in(rows)) == 2, said


def test_the_same_race_again_is_up_to_date(out: Path) -> None:
    said = race(out)
    assert said.status == 0 and "up to date" in said.err and len(rows_in(out / "bench.jsonl")) == 2, said


def test_measuring_some_candidates_does_not_change_what_is_served(out: Path) -> None:
    served = json.loads((out / "deployment.json").read_text())["choice"]["candidate"]["backend"]
    other = "openvino" if served == "ort-cpu" else "ort-cpu"
    said = race(out, "--candidates", f"{other} fp32")
    assert said.status == 0 and f"fastest of these: resnet18 · {other} · fp32" in said.out, said
    assert f"still serves resnet18 · {served} · fp32, which was chosen among more" in said.out, said
    assert json.loads((out / "deployment.json").read_text())["choice"]["candidate"]["backend"] == served


def test_what_was_chosen_among_the_same_was_not_chosen_among_more(out: Path) -> None:
    inputs = Deployment.read(out / "deployment.json").inputs
    assert command._chosen_among_more(out / "deployment.json", inputs) == ""
    others = inputs | {"receipts": {}}
    assert "which was chosen among more" in command._chosen_among_more(out / "deployment.json", others)


def test_models_that_were_judged_on_different_photos_are_not_compared(tmp_path: Path) -> None:
    for number, name in enumerate(("first", "second")):
        for label in ("ant", "bee", "cat", "dog"):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(1 + number):
                house.drawn(10 * number + i, (30, 28), tmp_path / name / label / f"{i}.png")
        said = bring(network(tmp_path / f"{name}.onnx"), data=tmp_path / name)
        assert said.status == 0, said
    said = race(tmp_path / "out", "--candidates", "openvino fp32")
    assert said.refused and "different photos" in said.last, said


def test_a_folder_that_was_renamed_is_measured_as_itself(model: Path, tmp_path: Path) -> None:
    folder = model_in(tmp_path, model, among=("ort-cpu fp32",))
    folder.rename(folder.with_name("resnet18 (1)"))
    said = race(tmp_path)
    assert said.status == 0 and len(rows_in(tmp_path / "bench.jsonl")) == 1, said
    with runtime.load(tmp_path / "deployment.json") as classifier:
        assert classifier.candidate.backend == "ort-cpu" and not classifier.passed_over


@pytest.fixture
def two(model: Path, tmp_path: Path) -> Path:
    """OUT with two trainings of one network, side by side; the second failed."""
    for name, verdict in (("resnet18", "pass"), ("resnet18_v2", "fail")):
        with house.changing(model_in(tmp_path, model, name, ("ort-cpu fp32",)) / "model.json") as receipt:
            for candidate in receipt["candidates"]:
                candidate |= {"architecture": "resnet18", "verdict": verdict}
    return tmp_path


def test_two_folders_of_one_network_are_told_before_anything_is_measured(two: Path) -> None:
    said = race(two)
    assert said.refused and "the folders resnet18, resnet18_v2 in" in said.last, said
    assert "hold one network, resnet18, whose" in said.last and "choose one with --archs" in said.last, said
    assert [file.name for file in two.iterdir()] == ["models"]
    said = race(two, "--archs", "resnet18")
    assert said.status == 0 and rows_in(two / "bench.jsonl")[0]["verdict"] == "pass", said


def test_no_folder_has_the_verdict_of_another(two: Path) -> None:
    receipts = {name: Receipt.read(two / "models" / name) for name in ("resnet18", "resnet18_v2")}
    with run.BenchmarkRun(run.Options(out=two), receipts).contestants() as contestants:
        run.check_here(contestants, receipts, print)
        assert [contestant.candidate.verdict for contestant in contestants] == ["pass", "fail"]


@pytest.mark.parametrize("moment", ["check_here", "run_rounds"])
def test_a_model_that_is_exchanged_meanwhile_has_no_figures(
    moment: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = (model_in(tmp_path / name, model, among=("ort-cpu fp32",)) for name in ("out", "other"))
    house.exported_anew(other / "model.onnx")
    with house.changing(other / "model.json") as receipt:
        receipt["files"] |= {name: asdict(facts) for name, facts in file_facts(other, ["model.onnx"]).items()}
    was = getattr(run, moment)

    def after_an_export(*given: Any) -> Any:
        folder.rename(tmp_path / "before")
        other.rename(folder)
        return was(*given)

    monkeypatch.setattr(run, moment, after_an_export)
    said = race(tmp_path / "out")
    assert said.refused and "was exported anew meanwhile, so no figure is kept; measure again" in said.last, said
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["models"]


def test_a_process_opens_the_very_file_that_it_was_told_or_none(model: Path) -> None:
    candidate = next(c for c in Receipt.read(model).candidates if (c.backend, c.precision) == ("ort-cpu", "fp32"))
    other = Contestant(candidate, model, sha256="0" * 64)
    try:
        with pytest.raises(SajiError, match=r"model\.onnx changed while it was opened"):
            other.classify()
        other.apply_gate()
        assert other.candidate.verdict == "fail" and "changed while it was opened" in other.candidate.reasons[0]
    finally:
        other.close()


def test_a_file_that_is_exchanged_after_it_was_checked_is_not_called_right(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_in(tmp_path, model, among=("ort-cpu fp32",))
    house.exported_anew(folder / "model.onnx")
    monkeypatch.setattr(Receipt, "verify", lambda *_: None)  # as if it had been before
    said = house.here("runtime", "selftest", folder)
    assert said.status == 1 and "wrong: resnet18 · ort-cpu · fp32: " in said.out and "changed while" in said.out, said


@pytest.mark.parametrize("name", [".resnet18.x1y2z3", ".resnet18.x1y2z3.old"])
def test_what_an_interrupted_export_left_is_no_model(name: str, out: Path) -> None:
    shutil.copytree(out / "models" / "resnet18", out / "models" / name, symlinks=True)
    said = race(out, "--archs", "resnet99")
    assert said.refused and "resnet18" in said.last and name not in said.last, said


def test_a_model_that_was_brought_in_without_a_heat_map_is_not_called_damaged(tmp_path: Path) -> None:
    for label in ("ant", "bee", "cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        house.drawn(len(label), (30, 28), tmp_path / "photos" / label / "0.png")
    said = bring(network(tmp_path / "net.onnx"), data=tmp_path / "photos")
    assert said.status == 0, said
    said = race(tmp_path / "out")
    assert "not in its receipt" not in said.err and "30 are needed for a verdict" in said.err, said


def test_the_server_scenario_has_a_row_and_a_table_of_its_own(out: Path, tmp_path: Path) -> None:
    asked = ("--candidates", "ort-cpu", "--scenario", "server", "--latency-bound", "500")
    said = race(out, "--force", *asked, "--rows", tmp_path / "rows.jsonl")
    assert said.status == 0 and "queries/s held at p99 ≤ 500 ms" in said.out, said
    (row,) = (row for row in rows_in(tmp_path / "rows.jsonl") if row["scenario"] == "server")
    assert (row["batch"], row["bound_ms"], row["percentile"]) == (1, 500, 99) and "samples" not in row
    assert row["tried"] and row["rate"] <= max(rate["rate"] for rate in row["tried"])
    assert row["verdict"] == "pass" and row["timed"].startswith("inference only, Poisson arrivals")


# --- a process that goes wrong

# Run as Python starts: the process that has imported an engine ends, unasked, at the order that `at` names
DIES = """
import os, sys
orders = sys.stdin
class Until:
    readline = orders.readline
    def __iter__(self):
        for number, order in enumerate(orders):
            if "openvino" in sys.modules and ({at}):
                os._exit(9)
            yield order
sys.stdin = Until()
"""
# Run as Python starts: ONNX Runtime gives the logits of the classes in turned order to all but single photos
TURNS = """
import onnxruntime
run = onnxruntime.InferenceSession.run
def turned(self, names, inputs, *more):
    found = run(self, names, inputs, *more)
    return [found[0][:, ::-1], *found[1:]] if len(found[0]) > 1 else found
onnxruntime.InferenceSession.run = turned
"""


def as_python_starts(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started from now on run `code` first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def survives(out: Path, *asked: object) -> None:
    rows = out / "survivors.jsonl"
    said = race(out, "--force", "--rows", rows, *asked)
    assert said.status == 0 and "openvino" in said.err, said
    assert {row["backend"] for row in rows_in(rows)} == {"ort-cpu"}
    assert json.loads((out / "deployment.json").read_text())["choice"]["candidate"]["backend"] == "ort-cpu"


@pytest.mark.parametrize(
    "at",
    [
        pytest.param("number == 0", id="warming up", marks=pytest.mark.slow),
        pytest.param("number == 3", id="in the rounds"),
    ],
)
def test_a_candidate_whose_process_dies_does_not_cost_the_others_their_race(
    at: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_python_starts(DIES.format(at=at), tmp_path / "start", monkeypatch)
    survives(out)


@pytest.mark.slow
def test_a_process_that_dies_in_the_server_scenario_does_not_either(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_python_starts(DIES.format(at="'serve' in order"), tmp_path / "start", monkeypatch)
    survives(out, "--scenario", "server")


def test_what_is_served_in_batches_is_judged_in_batches(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_python_starts(TURNS, tmp_path / "start", monkeypatch)
    said = race(out, "--force", "--candidates", "ort-cpu", "--batch", "8")
    assert said.refused and "nothing is chosen" in said.last, said


@pytest.mark.parametrize("candidate", ["ort-cpu fp32", "ort-cpu int8", "openvino fp32", "openvino int8"])
def test_what_passed_on_single_photos_passes_in_batches(candidate: str, model: Path) -> None:
    backend, precision = candidate.split()
    validation = ValidationSet.load(model / "validation.npz")
    with runtime.load(model, backend, precision) as classifier:
        for batch in (8, 32):
            parts = [
                classifier.logits(validation.images[i : i + batch]) for i in range(0, len(validation.images), batch)
            ]
            judgement = house.apply_gate(validation.logits, np.concatenate(parts), validation.labels, GATES[precision])
            assert judgement.verdict == "pass", (batch, judgement)


TIMES = 1_000  # 120 MB of photos: what a process has resident of its libraries differs by 20 MB from start to start


def test_peak_memory_is_the_engines_and_not_the_validation_sets(out: Path, tmp_path: Path) -> None:
    photos = out / "models" / "resnet18" / "validation.npz"
    few = ValidationSet.load(photos)
    arrays = {name: np.concatenate([getattr(few, name)] * TIMES) for name in ("images", "labels", "logits")}
    many = replace(few, **arrays)
    photos.unlink()
    replace(many, names=few.names * TIMES).save(photos)
    said = race(out, "--force", "--candidates", "ort-cpu", "--rows", tmp_path / "rows.jsonl")
    assert said.status == 0, said
    before = next(row for row in rows_in(out / "bench.jsonl") if row["backend"] == "ort-cpu")
    (after,) = rows_in(tmp_path / "rows.jsonl")
    assert after["peak_memory_mib"] - before["peak_memory_mib"] < 0.3 * many.images.nbytes / 2**20


# --- what is chosen, and why the others are not


def measured(memory: float | None) -> Measured:
    candidate = Candidate("net", "model.onnx", "ort-cpu", "fp32", verdict="pass", figures=house.figures(0.9))
    return Measured(candidate, "models/net", "0" * 64, 10, 1.0, (1.0,) * 6, memory)


def test_memory_that_is_not_known_keeps_no_bound() -> None:
    with pytest.raises(SajiError, match="memory"):
        house.choose([measured(None)], [], Policy(max_memory=1), None, {})


def test_memory_that_is_known_keeps_or_breaks_a_bound() -> None:
    assert house.choose([measured(100)], [], Policy(max_memory=200), None, {}).choice.peak_memory_mib == 100
    with pytest.raises(SajiError, match="takes 100 MiB, more than 50"):
        house.choose([measured(100)], [], Policy(max_memory=50), None, {})


def test_where_nothing_may_be_served_the_files_that_never_are_give_no_reason() -> None:
    few = replace(measured(100).candidate, verdict="inconclusive", reasons=("only 8 photos",))
    others = [replace(few, variant=variant, servable=False) for variant in ("cam", "embed")]
    with pytest.raises(SajiError, match=r"nothing is chosen \(parity verdict inconclusive: only 8 photos\)$"):
        house.choose([], [few, *others], Policy(), None, {})


def test_what_was_not_checked_gives_its_reason_where_there_is_no_other() -> None:
    candidate = replace(measured(100).candidate, verdict="unchecked", reasons=("no photos to check it by",))
    with pytest.raises(SajiError, match=r"nothing is chosen \(parity verdict unchecked: no photos to check it by\)$"):
        house.choose([], [candidate], Policy(), None, {})


def test_what_passed_and_was_not_timed_is_not_called_unjudged() -> None:
    untimed = Candidate("other", "model.onnx", "ort-cpu", "fp32", verdict="pass")
    (entry,) = house.choose([measured(100)], [untimed], Policy(), None, {}).rejected
    assert "not checked" not in entry.reason


# --- `load`


@pytest.mark.parametrize(("backend", "precision"), [("ort-cpu", "fp32"), ("openvino", "int8"), ("openvino", "fp32")])
def test_a_deployment_is_opened_by_the_engine_asked_for_or_refused(
    backend: str, precision: str, model: Path, tmp_path: Path
) -> None:
    path = house.write_deployment(model, tmp_path / "deployment.json", "ort-cpu", "int8")
    try:
        with runtime.load(path, backend, precision) as classifier:
            assert (classifier.candidate.backend, classifier.candidate.precision) == (backend, precision)
    except SajiError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("backend", ["ort-cpu", "openvino"])
def test_a_classifier_may_be_closed_twice(backend: str, model: Path) -> None:
    with runtime.load(model, backend) as classifier:
        classifier.close()
    classifier.close()


@pytest.fixture(scope="module", params=["ort-cpu", "openvino"])
def classifier(request: pytest.FixtureRequest, model: Path) -> Iterator[runtime.Classifier]:
    with runtime.load(model, request.param) as classifier:
        yield classifier


@pytest.fixture(scope="module")
def images(model: Path) -> np.ndarray:
    return ValidationSet.load(model / "validation.npz").images[:3]


def refusal(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        *(("ort-cpu", precision) for precision in ("int8", "fp16", "bf16", "fp33")),
        *(("openvino", precision) for precision in ("fp16", "fp33")),
        ("openvino", "int8"),
        ("pytorch", "int8"),
    ],
)
def test_a_bare_file_in_fp32_is_not_served_as_something_else(backend: str, precision: str, model: Path) -> None:
    file = model / ("model.pt2" if backend == "pytorch" else "model.onnx")
    error = refusal(lambda: runtime.load(file, backend, precision).close())
    assert isinstance(error, SajiError) and "\n" not in str(error), repr(error)


OTHER_PIXELS: dict[str, Callable[[np.ndarray], Any]] = {
    "floats to 1": lambda images: images.astype(np.float32) / 255,
    "floats to 255": lambda images: images.astype(np.float32),
    "int64": lambda images: images.astype(np.int64),
    "bool": lambda images: images > 127,
    "planes": lambda images: images.transpose(0, 3, 1, 2),
    "another size": lambda images: images[:, :16, :16],
    "four channels": lambda images: np.concatenate([images, images[..., :1]], -1),
    "one photo": lambda images: images[0],
}


@pytest.mark.parametrize("kind", OTHER_PIXELS)
def test_predict_refuses_what_are_no_preprocessed_photos(
    kind: str, classifier: runtime.Classifier, images: np.ndarray
) -> None:
    error = refusal(lambda: classifier.predict(OTHER_PIXELS[kind](images)))
    assert isinstance(error, SajiError | TypeError | ValueError), repr(error)


def test_predict_takes_any_order_in_memory(classifier: runtime.Classifier, images: np.ndarray) -> None:
    right = [answer.probabilities for answer in classifier.predict(images)]
    turned = [answer.probabilities for answer in classifier.predict(np.asfortranarray(images))]
    backwards = [answer.probabilities for answer in classifier.predict(images[::-1])]
    assert turned == right and backwards == right[::-1]


def test_no_photos_have_no_answers(classifier: runtime.Classifier, images: np.ndarray) -> None:
    assert classifier.classify([]) == classifier.predict(images[:0]) == []
