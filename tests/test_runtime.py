"""Serving: open what was judged, prove it, answer; refuse everything else in one sentence."""

import copy
import json
import math
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from threading import Event
from typing import Any

import house
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import runtime
from export import diagnose, geometry
from export import golden as export_golden
from runtime import receipt as receipts
from runtime.__main__ import main
from runtime.backends import BACKENDS, open_backend, unavailable_because
from runtime.benchmark.contestant import Contestant, run_rounds
from runtime.benchmark.rows import read_rows
from runtime.benchmark.run import BenchmarkRun, Options, receipts_in
from runtime.benchmark.table import conditions
from runtime.candidate import Candidate
from runtime.choice import Policy, choose
from runtime.command_line import Parser, add_flags, from_flags
from runtime.deployment import Deployment, Measured, is_setting
from runtime.errors import BadModel, GateFailed, NotAsAsked, SajiError, Unavailable
from runtime.evaluation import ValidationSet
from runtime.files import read_json, write_json
from runtime.golden import Golden
from runtime.ranges import MOST_THREADS
from runtime.receipt import Receipt, file_facts
from runtime.spec import Rejection
from runtime.speed_ratio import samples_needed

HERE = [name for name in BACKENDS if unavailable_because(name) is None]


def servable_here(model: Path) -> list[Candidate]:
    return [c for c in Receipt.read(model).candidates if c.verdict == "pass" and c.servable]


def first_of(backend: str, model: Path) -> Candidate:
    """The first that a backend may serve here; not each has FP32."""
    return next(candidate for candidate in servable_here(model) if candidate.backend == backend)


def test_import_runtime_loads_neither_torch_nor_gradio() -> None:
    code = "import sys, runtime; sys.exit(bool({'torch', 'gradio', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_backend_runs_here_or_says_why_not() -> None:
    assert {"pytorch", "ort-cpu", "openvino"} <= set(HERE)
    for name, reason in runtime.available_backends().items():
        assert reason is None or (len(reason) > 20 and "\n" not in reason), name
    with pytest.raises(SajiError, match="choose from pytorch"):
        unavailable_because("tpu")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["ort-cuda", "tensorrt", "tensorrt-rtx"])
def test_gpu_candidates_pass_parity(backend: str, model: Path) -> None:
    reason = unavailable_because(backend)
    if reason:
        pytest.skip(reason)
    judged = [c for c in Receipt.read(model).candidates if c.backend == backend]
    told = [c for c in judged if c.verdict != "inconclusive"]  # RTX may not tell that an engine is INT8
    assert told and all(c.verdict == "pass" for c in told)


@pytest.mark.parametrize("backend", HERE)
def test_engines_agree_and_take_any_batch(backend: str, model: Path) -> None:
    validation, candidate = ValidationSet.load(model / "validation.npz"), first_of(backend, model)
    engine = candidate.open(model, threads=1)
    one, many = engine.run(validation.images[:1]), engine.run(validation.images[:7])
    room = 1e-3 if candidate.precision == "fp32" else 0.02 * np.abs(validation.logits).max()
    assert one.dtype == np.float32 and many.shape == (7, 5 + 1), "five logits, and familiarity"
    assert np.allclose(many[:1], one, atol=room / 10) and np.allclose(many, validation.outputs[:7], atol=room)
    assert all(kind.startswith(candidate.precision) for kind in engine.precision_share())
    engine.close()


def test_fp32_that_opens_as_bf16_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.backends import openvino

    if "avx512_bf16" not in runtime.environment.machine().cpu_features:
        pytest.skip("this processor has no bf16, so OpenVINO cannot fall into it")
    monkeypatch.setitem(openvino._HINTS, "fp32", "bf16")  # OpenVINO's default on such processors
    with pytest.raises(NotAsAsked, match="asked for fp32, but computes 100 % bf16"):
        open_backend("openvino", model / "model.onnx", "fp32")


def test_openvino_answers_one_photo_by_a_model_compiled_for_one_and_checks_both(model: Path) -> None:
    openvino = pytest.importorskip("openvino")
    opened = open_backend("openvino", model / "model.onnx", "fp32")
    alone, any_number = opened.compiled  # type: ignore[attr-defined]
    assert alone.input(0).get_partial_shape().is_static and any_number.input(0).get_partial_shape().is_dynamic
    images = np.zeros((2, *alone.input(0).shape[1:]), np.uint8)
    for number, used in ((1, (1, 0)), (2, (1, 1)), (1, (1, 1))):
        opened.run(images[:number])
        assert tuple(map(len, opened.requests)) == used  # type: ignore[attr-defined]
    if "avx512_bf16" not in runtime.environment.machine().cpu_features:
        pytest.skip("this processor has no bf16, so OpenVINO cannot fall into it")
    for which in (0, 1):
        opened = open_backend("openvino", model / "model.onnx", "fp32")
        fallen = openvino.Core().compile_model(model / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        opened.compiled[which] = fallen  # type: ignore[attr-defined]
        with pytest.raises(NotAsAsked, match="100 % bf16"):
            opened.precision_share()


def test_a_session_on_another_provider_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    from runtime.backends.base import Request
    from runtime.backends.onnxruntime import OnnxRuntime

    class Fallen:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: Fallen())
    with pytest.raises(NotAsAsked, match="asked ONNX Runtime for CUDAExecutionProvider, got CPU"):
        OnnxRuntime(Request("ort-cuda", model / "model.onnx"))


def test_load_answers_alike_for_path_bytes_and_array(model: Path) -> None:
    example = sorted((model / "examples").glob("*.png"))[0]
    with runtime.load(model) as classifier:
        by_path, by_bytes = classifier(example), classifier(example.read_bytes())
        by_array = classifier(np.asarray(Image.open(example)))
    assert by_path.probabilities == by_bytes.probabilities == by_array.probabilities
    assert sum(by_path.probabilities.values()) == pytest.approx(1)
    assert list(by_path.probabilities.values()) == sorted(by_path.probabilities.values(), reverse=True)
    assert by_path.label == next(iter(by_path.probabilities)) and set(by_path.milliseconds) == {
        "decode",
        "geometry",
        "inference",
    }


def test_classify_takes_photos_of_any_kind_of_list_and_one_alone(model: Path) -> None:
    example = next((model / "examples").glob("*.png"))
    array = np.asarray(Image.open(example))
    with runtime.load(model) as classifier:
        expected = classifier(example).probabilities
        for one in (example, str(example), example.read_bytes(), Image.open(example), array, array[None]):
            assert [answer.probabilities for answer in classifier.classify(one)] == [expected]
        for two in ((example for _ in range(2)), [str(example), array], np.stack([array, array])):
            assert len(classifier.classify(two)) == 2
        for nothing in (iter(()), [], set(), np.empty((0, 8, 8, 3), np.uint8)):
            assert classifier.classify(nothing) == []


@pytest.mark.parametrize("backend", ["ort-cpu", "openvino", "pytorch"])
def test_every_engine_takes_no_photo_and_any_memory_and_says_that_it_was_closed(backend: str, model: Path) -> None:
    with runtime.load(model, backend) as classifier:
        size = classifier.spec.geometry.size
        images = np.random.default_rng(0).integers(0, 255, (4, size, size, 3), np.uint8)
        before = classifier.outputs(images)
        assert classifier.outputs(images[:0]).shape == (0, 6) and classifier.logits(images[:0]).shape == (0, 5)
        assert classifier.predict(images[:0]) == [] and len(classifier.predict(images)) == 4
        backwards = np.ascontiguousarray(images[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1]
        assert np.allclose(classifier.outputs(backwards), before, atol=1e-4)
        for wrong, given in ((images.tolist(), "a list"), (images / 255, r"float64 \[4, "), (None, "a NoneType")):
            with pytest.raises(SajiError, match=rf"the model takes uint8 .*, this is {given}"):
                classifier.predict(wrong)  # type: ignore[arg-type]
    for use in (lambda: classifier.predict(images), lambda: classifier(images[0])):
        with pytest.raises(SajiError, match=r"this classifier was closed; open it again with runtime\.load"):
            use()


@pytest.mark.parametrize("backend", ["ort-cpu", "openvino", "pytorch"])
def test_calls_that_are_under_way_have_their_answers_before_the_engine_is_freed(backend: str, model: Path) -> None:
    classifier = runtime.load(model, backend)
    size = classifier.spec.geometry.size
    images, run, began, closed = np.zeros((1, size, size, 3), np.uint8), classifier.backend.run, Event(), Event()

    def slow(images: np.ndarray) -> np.ndarray:
        began.set()
        assert closed.wait(60)
        return run(images)

    classifier.backend.run = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(classifier.outputs, images)
        began.wait()
        classifier.close()
        with pytest.raises(SajiError, match="was closed"):
            classifier.outputs(images)
        closed.set()
        assert answer.result().shape == (1, 6)
    with pytest.raises(SajiError, match="cannot be run"):  # it is free
        run(images)


def test_a_classifier_is_not_copied_nor_sent_to_another_process(model: Path) -> None:
    with runtime.load(model) as classifier:
        for copied in (copy.copy, pickle.dumps):
            with pytest.raises(SajiError, match=r"cannot be copied or sent .* open it there with runtime\.load"):
                copied(classifier)


@pytest.mark.parametrize("wrong", ["2", 1.5, -1, 2**31])
@pytest.mark.parametrize("setting", ["threads", "streams"])
def test_threads_and_streams_that_are_no_number_of_them_are_refused(setting: str, wrong: Any, model: Path) -> None:
    for path in (model, model / "model.onnx", model / "no such deployment.json"):
        with pytest.raises(SajiError, match=rf"{setting} is .*; give a whole number from 0 to 1024"):
            runtime.load(path, **{setting: wrong})
    for right in (None, np.int64(1)):
        runtime.load(model, **{setting: right}).close()


def test_openvino_answers_again_after_a_batch_that_it_failed_at(model: Path) -> None:
    pytest.importorskip("openvino")
    opened = open_backend("openvino", model / "model.onnx", "fp32")
    images = np.zeros((2, *opened.compiled[0].input(0).shape[1:]), np.uint8)  # type: ignore[attr-defined]
    before = opened.run(images)
    with pytest.raises(SajiError, match=r"Batch size is zero|MaxPool"):
        opened.run(images[:0])
    assert np.array_equal(opened.run(images), before)


def test_not_sure_follows_the_specs_rule(model: Path) -> None:
    with runtime.load(model) as classifier:
        example = next((model / "examples").glob("*.png"))
        assert classifier(example).sure
        classifier.spec = replace(classifier.spec, rejection=Rejection("max_probability", 1.01))
        assert not classifier(example).sure


@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_a_bare_file_opens_by_its_own_spec(model: Path, file: str) -> None:
    with runtime.load(model / file) as classifier:
        assert classifier.spec == Receipt.read(model).spec
        assert classifier.candidate.precision == "" and classifier.served_by.count("fp32") == 0


def test_what_only_checks_a_file_is_never_served() -> None:
    """ONNX Runtime computes FP16 on a processor in FP32, and knows no INT8 that another engine quantised."""
    checks = [offer for offer in BACKENDS["ort-cpu"].offers if offer.variant == "as written"]
    assert {offer.precision for offer in checks} == {"fp16", "int8"} and not any(offer.servable for offer in checks)


@pytest.mark.parametrize(("name", "least"), [("batch", 1), ("seconds", 1e-9), ("cold_starts", 0), ("seed", 0)])
@pytest.mark.parametrize("wrong", [-1, 1e300, 2**64, math.nan, math.inf, -math.inf])
def test_a_benchmark_of_nothing_or_without_end_is_refused(name: str, least: float, wrong: float) -> None:
    asked = (lambda number: (1, number)) if name == "batch" else lambda number: number
    assert Options(**{name: asked(least)})
    for number in (wrong, least - 1):
        with pytest.raises(SajiError, match=f"--{name.replace('_', '-')} is .*; it must be "):
            Options(**{name: asked(number)})


@pytest.mark.parametrize(("name", "least"), [("threads", 0), ("streams", 1)])
def test_no_benchmark_has_settings_that_nothing_can_be_opened_with(name: str, least: int) -> None:
    """A deployment of them would be refused as damaged."""
    for number in (least - 1, MOST_THREADS + 1):
        with pytest.raises(SajiError, match=rf"{name} is {number}; it must be a whole number, at least {least} and"):
            Options(**{name: (1, number)})
    assert Options(**{name: (least, MOST_THREADS)})
    assert is_setting(0) and is_setting(MOST_THREADS) and not is_setting(-1) and not is_setting(MOST_THREADS + 1)


def test_a_scenario_that_there_is_none_of_is_named() -> None:
    with pytest.raises(SajiError, match=r"there is no scenario 'marathon'; choose from .*server"):
        Options(scenario=("server", "marathon"))


def test_what_cannot_be_loaded_is_one_sentence(model: Path, tmp_path: Path) -> None:
    import onnx

    bare = onnx.load(model / "model.onnx")
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    (tmp_path / "cut.onnx").write_bytes((model / "model.onnx").read_bytes()[:5000])
    (tmp_path / "cut.pt2").write_bytes(b"PK")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "deployment.json").write_text("{}")
    cases = {
        "gone": "does not exist",
        "bare.onnx": "carries no saji spec",
        "cut.onnx": "no ONNX model that opens",
        "cut.pt2": "no PyTorch program",
        "notes.txt": "is no model",
        "deployment.json": "is damaged",
        ".": "has no model.json",
    }
    for name, words in cases.items():
        with pytest.raises(SajiError, match=words) as error:
            runtime.load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_strong_logits_are_answered_where_the_program_has_numpy_raise(model: Path) -> None:
    with np.errstate(all="raise"), runtime.load(model) as classifier:
        spec = replace(classifier.spec, rejection=Rejection("energy", 0.0))
        outputs = np.zeros((1, len(spec.outputs) - 1 + len(spec.classes)), np.float32)
        outputs[0, 1] = 3000
        assert spec.probabilities(outputs).tolist() == [[0, 1, 0, 0, 0]] and spec.answers(outputs) == ["named"]
        assert classifier(model / "golden.png").label in spec.classes


@pytest.mark.parametrize("arguments", [(None,), (5,), (b"models",), ("models", "", "", 0, 1, b"maker.pub")])
def test_what_is_no_path_is_one_sentence(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(SajiError, match=r"a model and a key are given by their paths, as text or pathlib\.Path \("):
        runtime.load(*arguments)


def test_a_candidate_that_did_not_pass_is_not_served(model: Path) -> None:
    with pytest.raises(SajiError, match=r"no candidate ort-cpu bf16; these passed: .*ort-cpu fp32") as told:
        runtime.load(model, backend="ort-cpu", precision="bf16")
    _, named = str(told.value).split("passed: ")
    passed = {(c.backend, c.precision) for c in Receipt.read(model).candidates if c.verdict == "pass" and c.servable}
    assert set(named.split(", ")) == {" ".join(pair) for pair in passed}


def measured(name: str, milliseconds: float, accuracy: float, size: int = 10, verdict: str = "pass") -> Measured:
    candidate = Candidate(name, "model.onnx", "ort-cpu", "fp32", verdict=verdict, figures=house.figures(accuracy))
    rounds = tuple(milliseconds * wobble for wobble in (1, 1.01, 0.99, 1.002, 1, 0.998))
    return Measured(candidate, f"models/{name}", "0" * 64, size, milliseconds, rounds, peak_memory_mib=size)


def chosen(*entries: Measured, policy: Policy = Policy()) -> Deployment:  # noqa: B008  # frozen
    return choose(list(entries), [], policy, None, {})


def test_the_choice_is_the_fastest_accurate_enough() -> None:
    deployment = chosen(measured("slow", 9, 0.95), measured("fast", 3, 0.945), measured("wrong", 1, 0.80))
    assert deployment.choice.candidate.architecture == "fast" and "fastest of 2" in deployment.reason
    assert [m.candidate.architecture for m in deployment.fallbacks] == ["slow"]
    reasons = {entry.candidate.split()[0]: entry.reason for entry in deployment.rejected}
    assert "15.0 points below the best" in reasons["wrong"] and "slower" in reasons["slow"]
    lenient = Policy(max_accuracy_drop=0.1)
    assert chosen(measured("a", 9, 0.95), measured("b", 1, 0.90), policy=lenient).choice.milliseconds == 1


def test_a_deployment_of_the_last_version_is_read(model: Path, tmp_path: Path) -> None:
    path = house.write_deployment(model, tmp_path / "deployment.json", "ort-cpu")
    before = Deployment.read(path)
    with house.changing(path) as content:
        as_version_0_1(content["choice"]["candidate"])
        reasons = "parity verdict fail: it is wrong", "parity verdict unchecked: no GPU", "slower: 2 ms"
        content["rejected"] = [{"candidate": "a · b", "reason": reason} for reason in reasons]
    after = Deployment.read(path)
    assert [entry.cause for entry in after.rejected] == ["fail", "unchecked", ""]
    assert replace(after, rejected=()) == replace(before, rejected=())
    assert after.not_passed() == "not run here: b: no GPU\nrefused: a · b: it is wrong"


def test_a_receipt_of_the_last_version_is_read(model: Path, tmp_path: Path) -> None:
    shutil.copy(model / "model.json", tmp_path)
    with house.changing(tmp_path / "model.json") as content:
        for candidate in content["candidates"]:
            as_version_0_1(candidate)
    assert Receipt.read(tmp_path) == Receipt.read(model)


def as_version_0_1(candidate: dict[str, Any]) -> None:
    """Change a candidate's JSON into what version 0.1 wrote: empty objects for nothing, and no fields without use."""
    candidate["figures"] = {name: value for name, value in (candidate["figures"] or {}).items() if value is not None}
    empty = ({}, [], "", False)
    candidate["facts"] = {name: value for name, value in candidate["facts"].items() if value not in empty}
    candidate["machine"], candidate["gate"] = candidate["machine"] or {}, candidate["gate"] or {}


def test_the_conditions_name_what_was_timed_by_the_package_that_is_installed() -> None:
    row = read_rows(ROOT / "results" / "sample.jsonl")[-1]
    versions = {"torch": "2.9", "onnxruntime-gpu": "1.31", "tensorrt-cu13": "10.14", "tensorrt-rtx-cu13": "1.7"}
    rows = [{**row, "backend": backend, "versions": versions} for backend in ("tensorrt", "ort-cuda")]
    assert "; onnxruntime-gpu 1.31, tensorrt-cu13 10.14; commit" in conditions(rows)


def test_ties_go_to_accuracy_then_size() -> None:
    tie = chosen(measured("a", 3.00, 0.940), measured("b", 3.05, 0.945))
    assert tie.choice.candidate.architecture == "b" and "not told apart" in tie.reason
    assert chosen(measured("a", 3.00, 0.94, 20), measured("b", 3.05, 0.94, 5)).choice.candidate.architecture == "b"
    assert chosen(measured("a", 3.05, 0.94), measured("b", 3.00, 0.94)).choice.candidate.architecture == "b"


def test_what_few_rounds_put_far_behind_is_no_tie() -> None:
    few = [replace(measured(str(ms), ms, accuracy), rounds=(ms,) * 3) for ms, accuracy in ((3.0, 0.94), (6.0, 0.945))]
    deployment = chosen(*few)
    assert deployment.choice.milliseconds == 3 and "not told apart" not in deployment.reason


def test_what_is_at_a_bound_keeps_it() -> None:
    places = measured("best", 9, 0.95), measured("least", 1, 0.94, 20_000_000), measured("less", 0.5, 0.935)
    deployment = chosen(*places, policy=Policy(max_memory=20_000_000, max_size=20))
    assert deployment.choice.candidate.architecture == "least" and "within 1 point of" in deployment.reason


def test_the_reason_says_what_was_compared() -> None:
    places = [measured("a", 3, 0.95), measured("b", 9, 0.95), measured("c", 5, 0.95)]
    assert "3.00 ms at batch 1, accuracy 0.950" in chosen(*places).reason
    other = choose(places, [], Policy(percentile=95, max_accuracy_drop=0.02), None, {}, labelled=False)
    assert "within 2 points of the best agreement with the checkpoint" in other.reason
    assert "3.00 ms (p95) at batch 1, agreement with the checkpoint 0.950" in other.reason
    assert [place.milliseconds for place in other.fallbacks] == [5, 9]  # the next in line first


@pytest.mark.parametrize("wrong", [-1, 1e300, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [field.name for field in fields(Policy)])
def test_a_policy_that_nothing_could_be_chosen_by_is_refused(name: str, wrong: float) -> None:
    if not (name in ("max_memory", "max_size") and wrong == 1e300):  # which bound nothing
        with pytest.raises(SajiError, match=rf"--{name.replace('_', '-')} is {re.escape(str(wrong))}; it must be "):
            Policy(**{name: wrong})


@pytest.mark.parametrize("percentile", [0, 1e-300, 100])
def test_a_percentile_that_is_none_is_refused(percentile: float) -> None:
    with pytest.raises(SajiError, match=r"percentile, at least 0\.01 and at most 99\.99"):
        Policy(percentile=percentile)
    assert max(samples_needed(0.01), samples_needed(99.99)) < 40_000


def test_a_bound_that_may_be_none_has_its_flag() -> None:
    parser = Parser()
    add_flags(parser, Policy(), skip=["batch"])
    typed = parser.parse_args(["--max-size", "2.5"])
    assert from_flags(Policy(batch=8), typed, skip=["batch"]) == Policy(batch=8, max_size=2.5)


def test_bounds_on_memory_and_size_reject_with_the_figure() -> None:
    entries = measured("large", 1, 0.95, 30_000_000), measured("small", 3, 0.95, 10)
    for policy in (Policy(max_size=20), Policy(max_memory=1000)):
        deployment = chosen(*entries, policy=policy)
        assert deployment.choice.candidate.architecture == "small"
        assert "more than" in deployment.rejected[0].reason
    with pytest.raises(GateFailed, match="MB large, more than 20"):
        chosen(entries[0], policy=Policy(max_size=20))


@pytest.mark.parametrize("verdict", ["fail", "inconclusive", "unchecked"])
def test_only_a_pass_is_ever_served(verdict: str) -> None:
    deployment = chosen(measured("good", 9, 0.9), measured("bad", 1, 0.99, verdict=verdict))
    assert deployment.choice.candidate.architecture == "good"
    with pytest.raises(GateFailed, match=f"nothing is chosen .parity verdict {verdict}: "):
        chosen(measured("bad", 1, 0.99, verdict=verdict))


@pytest.mark.parametrize(
    ("variant", "why"), [("as written", "its own precision"), ("embed", "for other apps"), ("cam", "heat map")]
)
def test_a_file_check_is_not_served_though_it_passed_and_says_why(variant: str, why: str) -> None:
    check = measured("check", 1, 0.99)
    check = replace(check, candidate=replace(check.candidate, servable=False, variant=variant))
    deployment = chosen(measured("good", 9, 0.9), check)
    (rejected,) = deployment.rejected
    assert deployment.choice.candidate.architecture == "good" and rejected.cause == "file check"
    assert why in rejected.reason and (variant == "as written") == ("precision" in rejected.reason)


@pytest.fixture(scope="module")
def out(model: Path) -> Path:
    """A benchmarked OUT folder: the real command, run as a user would from another directory."""
    out = model.parents[1]
    command = [sys.executable, str(ROOT / "runtime" / "bench.py"), "--out", str(out), "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["choice"].startswith("resnet18")
    return out


def test_bench_rows_carry_their_conditions(out: Path, model: Path) -> None:
    rows = read_rows(out / "bench.jsonl")
    assert {row["candidate"] for row in rows} == {c.name for c in servable_here(model)}
    for row in rows:
        assert row["verdict"] == "pass" and row["sha256"] == Receipt.read(model).files[row["file"]].sha256
        assert row["rounds"] >= 5 and all(len(turn) >= 3 for turn in row["samples"])
        assert row["machine_cores"] and row["versions"]["python"] and row["scenario"]
        assert row["p25"] <= row["milliseconds"] <= row["p75"] and row["drawn"] is False
        assert row["load_seconds"] > 0 and row["peak_memory_mib"] > 20
        assert row["cold_start_seconds"] > 0.1  # alone; not to be compared with the opening, beside all other starts
        calls = sum(len(turn) for turn in row["samples"])
        assert (row["p99"] is None) == (calls < 368) and row["unstable"] in (True, False)


def test_a_second_bench_is_up_to_date_unless_other_code_made_it(out: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runtime.bench", "--out", str(out), "--seconds", "1"]
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0 and "up to date" in again.stderr
    with_other_code = read_json(out / "deployment.json")
    with_other_code["inputs"]["code"] = "of another version"
    write_json(tmp_path / "deployment.json", with_other_code)
    inputs = read_json(out / "deployment.json")["inputs"]
    policy = Deployment.read(out / "deployment.json").policy
    assert Deployment.up_to_date(out / "deployment.json", policy, inputs)
    assert not Deployment.up_to_date(tmp_path / "deployment.json", policy, inputs)


def test_the_deployment_opens_and_falls_back_only_with_a_reason(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployment = Deployment.read(out / "deployment.json")
    with runtime.load(out / "deployment.json") as classifier:
        assert classifier.candidate == deployment.choice.candidate and not classifier.passed_over
    stale = replace(deployment, choice=replace(deployment.choice, sha256="0" * 64))
    stale.write(out / "stale.json")
    with runtime.load(out / "stale.json") as classifier:
        assert classifier.candidate == deployment.fallbacks[0].candidate
        assert "exported again after it was chosen" in classifier.passed_over[0] and "next in line" in classifier.reason
    assert "passing over" in capsys.readouterr().err
    replace(stale, fallbacks=()).write(out / "stale.json")
    with pytest.raises(Unavailable, match="none of the 1 choices"):
        runtime.load(out / "stale.json")


def test_a_file_that_cannot_be_read_costs_its_candidate_only(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Empty, as a full disk or a cloud's placeholder leaves it; without permission; on a disk that fails."""
    shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns("runs", "cache"))
    deployment = Deployment.read(out / "deployment.json")
    folder, choice = tmp_path / "out" / deployment.choice.folder, deployment.choice
    other = next(each for each in servable_here(folder) if each.file != choice.candidate.file)
    fallback = replace(choice, candidate=other, sha256=Receipt.read(folder).files[other.file].sha256)
    replace(deployment, fallbacks=(fallback,)).write(tmp_path / "out" / "deployment.json")
    file = folder / choice.candidate.file
    content, read = file.read_bytes(), receipts.sha256_file
    file.write_bytes(b"")
    with runtime.load(tmp_path / "out" / "deployment.json") as classifier:
        assert "is empty; copy it again" in classifier.passed_over[0]
    file.write_bytes(content)

    def refuse(path: Path) -> str:
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(receipts, "sha256_file", refuse)
    with runtime.load(tmp_path / "out" / "deployment.json") as classifier:
        assert f"{file}: Permission denied; check the path, its permissions" in classifier.passed_over[0]
    monkeypatch.setattr(sys, "argv", ["runtime", "selftest", str(folder)])
    with pytest.raises(GateFailed):
        main()
    said = capsys.readouterr().out
    assert said.count("wrong: ") == said.count("Permission denied") >= 1 and "right: " in said


def test_some_candidates_with_threads_and_streams(model: Path) -> None:
    options = Options(out=model.parents[1], candidates=("openvino fp32",), threads=(1, 2), streams=(1, 2))
    run = BenchmarkRun(options, {"resnet18": Receipt.read(model)})
    with run.contestants() as contestants:
        names = [contestant.name for contestant in contestants]
    first = "resnet18 · openvino · fp32 · 1 thread"
    assert names[:2] == [first, f"{first} · 2 streams"] and len(names) == 4
    with pytest.raises(SajiError, match=r"no candidate is named tpu; there are resnet18 · pytorch"):
        replace(run, options=replace(options, candidates=("tpu",))).contestants().__enter__()


def test_a_cold_start_that_fails_costs_no_measurement(model: Path, tmp_path: Path) -> None:
    options, lines = Options(out=model.parents[1], candidates=("ort-cpu fp32",), threads=(1,)), []
    run = BenchmarkRun(options, {"resnet18": Receipt.read(model)})
    with run.contestants() as contestants:
        run._start_cold(contestants, lines.append)
        assert len(contestants[0].cold_starts) == 1
        contestants[0].photo = str(tmp_path / "gone.jpg")
        run._start_cold(contestants, lines.append)
    assert len(contestants[0].cold_starts) == 1 and "its cold start is not known" in lines[-1]


@pytest.mark.parametrize("backend", HERE)
def test_streams_answer_as_one_stream_does(backend: str, model: Path) -> None:
    images, candidate = ValidationSet.load(model / "validation.npz").images[:6], first_of(backend, model)
    one, two = (candidate.open(model, threads=1, streams=n) for n in (1, 2))
    with ThreadPoolExecutor(2) as callers:
        answers = np.concatenate([*callers.map(two.run, (images[:3], images[3:]))])
    assert np.allclose(answers, one.run(images), atol=1e-4)


def test_bench_refuses_what_cannot_be_compared(out: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(SajiError, match="no exported model"):
        receipts_in(tmp_path, [])
    with pytest.raises(SajiError, match="not resnet99"):
        receipts_in(out / "models", ["resnet99"])
    other = tmp_path / "models" / "other"
    receipt = Receipt.read(model)
    for name, data in (("same", receipt.spec.data), ("other", {"fingerprint": "else"})):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        replace(receipt, spec=replace(receipt.spec, data=data)).write(folder)
    with pytest.raises(SajiError, match="trained on different photos"):
        receipts_in(other.parent, [])


def test_a_candidate_whose_process_dies_is_left_out_with_its_reason(model: Path) -> None:
    onnx = next(c for c in servable_here(model) if c.backend == "ort-cpu")
    good, broken = Contestant(onnx, model), Contestant(replace(onnx, file="gone.onnx"), model)
    said: list[str] = []
    try:
        assert run_rounds([good, broken], [("single-stream", 1)], 0.5, 0, said.append) == [good]
    finally:
        good.close()
        broken.close()
    assert "gone.onnx does not exist" in " ".join(said)


def test_a_file_that_cannot_be_read_is_the_reason_and_not_the_processs_death(model: Path) -> None:
    onnx = next(c for c in servable_here(model) if c.backend == "ort-cpu")
    contestant = Contestant(onnx, model, photo=str(model / "gone.jpg"))
    try:
        with pytest.raises(SajiError, match=r"gone\.jpg: No such file"):
            contestant.classify()
    finally:
        contestant.close()


def test_a_candidate_of_thousands_of_layers_has_its_process(model: Path) -> None:
    """What export knows of such an engine is more than a word of a command may be long."""
    onnx = next(c for c in servable_here(model) if c.backend == "ort-cpu")
    many = {f"node_of_a_block_of_many_{number}": number for number in range(5000)}
    contestant = Contestant(replace(onnx, facts=replace(onnx.facts, multiply_adds=many)), model)
    try:
        assert contestant.classify().label in Receipt.read(model).spec.classes
    finally:
        contestant.close()


def test_engine_idles_between_measurements(model: Path) -> None:
    """A waiting process that spins would slow the one that is measured."""
    psutil = pytest.importorskip("psutil", reason="psutil tells the idle process's CPU time")
    contestants = [Contestant(c, model) for c in {c.backend: c for c in servable_here(model)}.values()]
    try:
        for contestant in contestants:
            contestant.measure("single-stream", 1, 0)
        time.sleep(0.5)  # engines keep spinning for a moment after a call
        for contestant in contestants:
            process = psutil.Process(contestant.process.pid)
            before = sum(process.cpu_times()[:2])
            time.sleep(0.3)
            assert sum(process.cpu_times()[:2]) - before < 0.1, contestant.candidate.name
    finally:
        for contestant in contestants:
            contestant.close()


def test_receipts_that_are_damaged_are_refused(model: Path, tmp_path: Path) -> None:
    good = json.loads((model / "model.json").read_text())
    for damage in ({}, {"schema_version": 99}, good | {"candidates": 3}, good | {"spec": {"schema_version": 1}}):
        (tmp_path / "model.json").write_text(json.dumps(damage))
        with pytest.raises(BadModel):
            Receipt.read(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(good)[:500] + "}")
    with pytest.raises(BadModel, match="damaged"):
        Receipt.read(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n"
LOST = {
    "pointer": (lambda _: POINTER, "is a pointer of Git LFS; fetch the file itself with: git lfs pull$"),
    "empty": (lambda _: b"", "is empty; copy it again$"),
    "cut": (
        lambda content: content[:1000],
        r"(is not the file that was checked \(it has 1,000 of [\d,]+ bytes\); copy the folder|is cut off .*) again",
    ),
}


@pytest.mark.parametrize("file", ["model.json", "model.onnx", "golden.png"])
@pytest.mark.parametrize(("left", "words"), LOST.values(), ids=LOST)
def test_a_file_that_came_without_its_contents_is_told_as_that(
    file: str, left: Any, words: str, model: Path, tmp_path: Path
) -> None:
    folder = house.linked(model, tmp_path / "resnet18")
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    (folder / file).write_bytes(left(content))
    with pytest.raises(BadModel, match=f"{file} {words}"):
        runtime.load(folder)
    if file == "model.onnx" and len(left(content)) < 1000:  # of a bare file nothing else tells its size
        with pytest.raises(BadModel, match=f"{file} {words}"):
            runtime.load(folder / file)


def test_every_load_checks_itself_against_the_golden_vector(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "resnet18"
    shutil.copytree(model, copy)
    with runtime.load(copy) as classifier:
        golden = Golden.read(copy)
        answer = classifier(copy / "golden.png").probabilities
        right = golden.pictures["golden.png"]
        assert [answer[name] for name in classifier.spec.classes] == pytest.approx(right.probabilities, abs=1e-3)
    wrong = replace(right, probabilities=right.probabilities[::-1])
    put_golden(copy, replace(golden, pictures={**golden.pictures, "golden.png": wrong}))
    with pytest.raises(NotAsAsked, match="golden picture otherwise"):
        runtime.load(copy)
    other = replace(right, pixels_sha256="0" * 64)
    put_golden(copy, replace(golden, pictures={**golden.pictures, "golden.png": other}))
    with pytest.raises(NotAsAsked, match="other pixels here"):
        runtime.load(copy)


def put_golden(folder: Path, golden: Golden) -> None:
    """Write another golden vector, as the receipt then has it."""
    golden.write(folder)
    receipt = Receipt.read(folder)
    replace(receipt, files=receipt.files | file_facts(folder, ["golden.json"])).write(folder)


@pytest.mark.parametrize("file", ["golden.json", "golden.png"])
@pytest.mark.parametrize("state", ["differs", "missing"])
def test_a_golden_vector_that_is_not_that_of_the_export_is_refused(
    file: str, state: str, model: Path, tmp_path: Path
) -> None:
    folder = house.linked(model, tmp_path / "resnet18")
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    if state == "differs":
        (folder / file).write_bytes(content + b" ")
    said = rf"{file} is (not the file that was checked|missing though its receipt lists it).*; export the model again"
    with pytest.raises(BadModel, match=said):
        runtime.load(folder)


def test_the_golden_vector_has_a_large_jpeg_and_a_tolerance_per_engine(model: Path) -> None:
    golden, jpeg = Golden.read(model), model / "golden.jpg"
    with Image.open(jpeg) as image:
        assert image.size == (1600, 1200) and image.format == "JPEG" and not image.info.get("icc_profile")
    assert jpeg.stat().st_size < 200_000
    png, photo = golden.pictures["golden.png"], golden.pictures["golden.jpg"]
    assert len(png.pixels_sha256) == 64 and not png.decoding and photo.decoding >= 0.02 and not photo.pixels_sha256
    assert set(golden.tolerance) == {*BACKENDS, "node", "web"}
    assert all(row["fp32"] == 0.001 and row["int8"] >= 0.05 for row in golden.tolerance.values())
    assert golden.allowed("golden.jpg", "web", "fp32") == pytest.approx(0.001 + photo.decoding)


class Broken:
    """An engine that answers nothing; `left` counts those that nobody closed."""

    left = 0

    def __init__(self, *_: object, **__: object) -> None:
        Broken.left += 1

    def run(self, images: np.ndarray) -> np.ndarray:
        raise SajiError("no answer")

    def close(self) -> None:
        Broken.left -= 1


def check_geometry_of(model: Path) -> None:
    check = next(c for c in Receipt.read(model).candidates if c.file in geometry.FILES)
    validation, photos = ValidationSet.load(model / "validation.npz"), {0: model / "golden.jpg"}
    geometry.check_files([check], model, Receipt.read(model).spec, validation, photos, lambda file: lambda photo: [])


def write_golden_of(model: Path) -> None:
    right = [c for c in servable_here(model) if c.precision == "int8"]
    answer = Golden.read(model).pictures["golden.png"]
    export_golden.tolerances(answer, Receipt.read(model).spec, model, right, np.zeros((1, 32, 32, 3), np.uint8))


ASKING: dict[str, Callable[[Path], object]] = {
    "selftest": lambda model: main(),
    "diagnose": lambda model: diagnose._answers(servable_here(model)[0], model, np.zeros((1, 32, 32, 3), np.uint8)),
    "geometry": check_geometry_of,
    "golden": write_golden_of,
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_an_engine_that_answers_nothing_is_closed(
    ask: Callable[[Path], object], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["runtime", "selftest", str(model)])
    monkeypatch.setattr(Broken, "left", 0)
    monkeypatch.setattr(Candidate, "open", Broken)
    monkeypatch.setattr(geometry, "open_backend", Broken)
    with pytest.raises(SajiError):
        ask(model)
    assert Broken.left == 0


def test_selftest_names_what_is_wrong_and_its_exit_status_tells(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["runtime", "selftest", str(model)])
    main()
    assert capsys.readouterr().out.count("right: ") == len(servable_here(model))
    copy = tmp_path / "resnet18"
    shutil.copytree(model, copy)
    (copy / "model.onnx").write_bytes((copy / "model.int8.onnx").read_bytes())
    Image.new("RGB", (1600, 1200), "blue").save(copy / "golden.jpg")
    bad = subprocess.run([sys.executable, "-m", "runtime", "selftest", str(copy)], capture_output=True, text=True)
    assert bad.returncode == 1 and "model.onnx is not the file that was checked" in bad.stdout
    assert "golden.jpg is not the file that was checked" in bad.stdout
