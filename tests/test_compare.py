"""A comparison: every candidate that passed here gets a row, alone in a process that is gone afterwards."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_batch import looked_at
from test_demo import CANDIDATE, RED, colour_classifier, deployment, exported, picture, running, serving_of
from test_page import open_tab, opened

from demo.page.tabs.compare import Row, compare, contestants_here, measure, state_of
from runtime.benchmark.contestant import Contestant
from runtime.candidate import Candidate
from runtime.deployment import Measured
from runtime.environment import machine
from runtime.receipt import Receipt

HERE: dict[str, Any] = {"verdict": "pass", "machine": machine()}
REFERENCE = Candidate("resnet34", "model.pt2", "pytorch", "fp32", **HERE)
ORT = Candidate("resnet34", "model.onnx", "ort-cpu", "fp32", **HERE)
PLAIN = Candidate("plain34", "model.onnx", "ort-cpu", "fp32", **HERE)

# Stands for runtime.benchmark.worker: says what its first argument holds, and times nothing
WORKER = """
import json, sys, time
for line in sys.stdin:
    order, how = json.loads(line), json.loads(sys.argv[1])
    if "hang" in how:
        time.sleep(600)
    if "die" in how:
        sys.exit(3)
    answer = how if "error" in how else {"probabilities": how, "answer": "named", "milliseconds": {}}
    print(json.dumps({"samples": [2.0, 9.0, 1.0]} if order["do"] == "time" else answer), flush=True)
"""


def of(candidate: Candidate, folder: Path) -> Contestant:
    """A candidate of a model folder, as it is there now."""
    return Contestant(candidate, folder, sha256=Receipt.read(folder).files[candidate.file].sha256)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the process of each candidate does, by backend; and under "started", those that were started."""
    told: dict[str, Any] = {"started": []}

    def start(entrant: Contestant) -> subprocess.Popen[str]:
        if entrant.process is None:
            assert all(process.poll() is not None for process in told["started"]), "two engines at a time"
            command = [sys.executable, "-c", WORKER, json.dumps(told[entrant.candidate.backend])]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            entrant.process = subprocess.Popen(command, **pipes)
            told["started"].append(entrant.process)
        return entrant.process

    monkeypatch.setattr(Contestant, "start", start)
    yield told
    assert all(process.poll() is not None for process in told["started"]), "a process was left"


def rows_of(entrants: list[Contestant], seconds: float = 60) -> list[Row]:
    async def all_of() -> list[Row]:
        return [row async for row in compare(b"a photo", entrants, seconds)]

    return asyncio.run(all_of())


# Who takes part


def test_what_passed_here_takes_part_once_and_the_reference_leads(tmp_path: Path) -> None:
    elsewhere = replace(ORT, backend="openvino", machine=replace(machine(), cpu="another"))
    failed, check = replace(ORT, file="a.onnx", verdict="fail"), replace(ORT, file="b.onnx", servable=False)
    exported(tmp_path / "models" / "resnet34", CANDIDATE, ORT, elsewhere, failed, check, REFERENCE)
    exported(tmp_path / "models" / "plain34", PLAIN)
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "model.json").write_text("{")
    found = contestants_here(tmp_path / "deployment.json", deployment())
    assert [entrant.candidate for entrant in found] == [REFERENCE, ORT, CANDIDATE, PLAIN]


def test_a_candidate_runs_with_the_threads_that_it_is_served_with(tmp_path: Path) -> None:
    there = of(ORT, exported(tmp_path / "models" / "resnet34", ORT))
    chosen = Measured(ORT, "models/resnet34", there.sha256, 1, 2.5, threads=2, streams=3)
    [entrant] = contestants_here(tmp_path / "deployment.json", replace(deployment(), choice=chosen))
    assert (entrant.threads, entrant.streams) == (2, 3)


def test_another_export_takes_no_part_under_the_names_of_what_was_chosen(
    tmp_path: Path, processes: dict[str, Any]
) -> None:
    chosen = exported(tmp_path / "models" / "resnet34", CANDIDATE, ORT, REFERENCE)
    exported(tmp_path / "models" / "plain34", PLAIN)
    processes |= {"openvino": {"rendang": 1.0}, "ort-cpu": {"rendang": 1.0}}
    before = contestants_here(tmp_path / "deployment.json", deployment())
    exported(chosen, CANDIDATE, ORT, REFERENCE, by="another network {}")
    assert [each.candidate for each in before] == [REFERENCE, ORT, CANDIDATE, PLAIN]
    after = contestants_here(tmp_path / "deployment.json", deployment())
    assert [each.candidate for each in after] == [CANDIDATE, PLAIN]
    says = "resnet34 was exported again after it was chosen; choose again with: make bench"
    assert [row.problem for row in rows_of(before)] == [says, says, says, ""], "also of those that had been found"
    assert [row.problem for row in rows_of(after)] == [says, ""]


# What each says


def test_rows_tell_label_time_and_difference_from_the_reference(tmp_path: Path, processes: dict[str, Any]) -> None:
    folder = exported(tmp_path / "resnet34", REFERENCE, ORT)
    processes |= {"pytorch": {"rendang": 0.75, "lalap": 0.25}, "ort-cpu": {"lalap": 0.625, "rendang": 0.375}}
    reference, other = rows_of([of(REFERENCE, folder), of(ORT, folder)])
    assert (reference.label, reference.milliseconds, reference.difference) == ("rendang", 2.0, None)
    assert (other.label, other.milliseconds, other.difference) == ("lalap", 2.0, 0.375)
    assert reference.reference and not other.reference


def test_an_import_which_has_no_pytorch_file_is_compared_with_onnx_runtime_in_fp32(
    tmp_path: Path, processes: dict[str, Any]
) -> None:
    openvino = replace(ORT, backend="openvino")
    folder = exported(tmp_path / "models" / "resnet34", openvino, replace(ORT, variant="embed", file="e.onnx"), ORT)
    processes |= {"ort-cpu": {"rendang": 0.75, "lalap": 0.25}, "openvino": {"rendang": 0.5, "lalap": 0.5}}
    chosen = Measured(openvino, "models/resnet34", of(openvino, folder).sha256, 1, 2.5)
    first, *others = contestants_here(tmp_path / "deployment.json", replace(deployment(), choice=chosen))
    assert first.candidate == ORT
    reference, other = rows_of([first, next(each for each in others if each.candidate == openvino)])
    assert (reference.reference, reference.difference, other.reference, other.difference) == (True, None, False, 0.25)
    html = state_of([reference, other], 2, "rendang", colour_classifier(), "en")
    assert "reference" in html and "0.2500" in html and "–" not in html


def test_where_pytorch_gives_no_answer_onnx_runtime_is_the_reference(tmp_path: Path, processes: dict[str, Any]) -> None:
    openvino = replace(ORT, backend="openvino")
    folder = exported(tmp_path / "resnet34", REFERENCE, ORT, openvino)
    processes |= {"pytorch": {"die": 1}, "ort-cpu": {"rendang": 1.0}, "openvino": {"rendang": 0.75}}
    rows = rows_of([of(each, folder) for each in (REFERENCE, ORT, openvino)])
    assert [row.reference for row in rows] == [False, True, False]
    assert [row.difference for row in rows] == [None, None, 0.25]


def test_another_architecture_is_not_compared_with_this_ones_reference(
    tmp_path: Path, processes: dict[str, Any]
) -> None:
    folders = exported(tmp_path / "resnet34", REFERENCE), exported(tmp_path / "plain34", PLAIN)
    processes |= {"pytorch": {"rendang": 1.0}, "ort-cpu": {"rendang": 0.5}}
    rows = rows_of([of(REFERENCE, folders[0]), of(PLAIN, folders[1])])
    assert [row.difference for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"error": "the driver is too old; update it"}, "the driver is too old; update it"),
        ({"die": 1}, "the process of resnet34 · pytorch · fp32 died with status 3"),
        ({"hang": 1}, "no answer within 1 s"),
    ],
    ids=lambda how: next(iter(how)) if isinstance(how, dict) else "",
)
def test_who_gives_no_answer_says_why_and_the_next_one_runs(
    tmp_path: Path, processes: dict[str, Any], how: dict[str, Any], says: str
) -> None:
    folder = exported(tmp_path / "resnet34", REFERENCE, ORT)
    processes |= {"pytorch": how, "ort-cpu": {"rendang": 1.0}}
    first = measure(of(REFERENCE, folder), 1 if "hang" in how else 60)
    assert (first.problem, first.label) == (says, "")
    second = measure(of(ORT, folder), 60)
    assert second.label == "rendang" and not second.problem


def test_a_file_that_was_not_judged_is_not_opened(tmp_path: Path, processes: dict[str, Any]) -> None:
    folder = exported(tmp_path / "resnet34", ORT)
    (folder / ORT.file).write_text("something else")
    [row] = rows_of([of(ORT, folder)])
    assert "is not the file that was checked" in row.problem and "\n" not in row.problem
    assert processes["started"] == []


def test_the_process_ends_when_the_visitor_goes(tmp_path: Path, processes: dict[str, Any]) -> None:
    folder = exported(tmp_path / "resnet34", ORT)
    processes["ort-cpu"] = {"hang": 1}

    async def leave() -> None:
        async with aclosing(compare(b"a photo", [of(ORT, folder)], 600)) as rows:
            waiting = asyncio.ensure_future(anext(rows))
            while not processes["started"]:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    started = time.monotonic()
    asyncio.run(leave())
    assert time.monotonic() - started < 60 and processes["started"][0].poll() is not None


def test_the_worker_classifies_the_photo_it_was_given(model: Path, tmp_path: Path) -> None:
    """The real process, on the tiny model."""
    import runtime

    candidate = next(c for c in Receipt.read(model).candidates if (c.backend, c.precision) == ("ort-cpu", "fp32"))
    photo = picture(tmp_path / "a.png", RED)
    [row] = asyncio.run(_all(compare(photo.read_bytes(), [of(candidate, model)], 300)))
    with runtime.load(model, "ort-cpu") as classifier:
        expected = classifier(photo)
    assert row.problem == "" and row.milliseconds > 0
    assert row.probabilities == pytest.approx(expected.probabilities) and row.label == expected.label


async def _all(rows: Any) -> list[Row]:
    return [row async for row in rows]


# The tab


def test_what_answers_otherwise_stands_out_and_every_word_is_text() -> None:
    classifier = colour_classifier()
    served = Row(CANDIDATE.name, CANDIDATE, {"red_rendang": 0.9, "green_lalap": 0.1})
    other = Row("<b>x", ORT, {"green_lalap": 0.6, "red_rendang": 0.4}, difference=0.5)
    broken = Row("y", PLAIN, problem="no <i>")
    html = state_of([served, other, broken], 3, "red_rendang", classifier, "en")
    assert html.count('otherwise"') == 1 and "≠ green lalap" in html and "≠ red" not in html
    assert "1 of 2 answer differently" in html and "1 gave no answer" in html
    assert "&lt;b&gt;x" in html and "no &lt;i&gt;." in html
    assert f"<b>{CANDIDATE.name}</b>" in html
    html = state_of([broken], 1, "red_rendang", classifier, "en")
    assert '<p class="notice" role="status">1 gave no answer.</p>' in html and "All 0" not in html
    html = state_of([served], 3, "red_rendang", classifier, "id")
    assert "<progress" in html and "1 dari 3 kandidat" in html


def test_browser_shows_the_candidates_beside_each_other(
    browser: Any,
    screenshots: Path,
    processes: dict[str, Any],
    tmp_path: Path,
) -> None:
    from demo.page.frame import build

    exported(tmp_path / "models" / "resnet34", CANDIDATE, ORT, REFERENCE)
    exported(tmp_path / "models" / "plain34", PLAIN, replace(REFERENCE, architecture="plain34"))
    processes |= {
        "pytorch": {"red_rendang": 0.91234, "green_lalap": 0.05, "blue_nasi_kerabu": 0.03766},
        "openvino": {"red_rendang": 0.905, "green_lalap": 0.055, "blue_nasi_kerabu": 0.04},
        "ort-cpu": {"green_lalap": 0.58, "red_rendang": 0.35, "blue_nasi_kerabu": 0.07},
    }
    (tmp_path / "models" / "plain34" / "model.pt2").unlink()
    with pytest.MonkeyPatch.context() as patch, serving_of(colour_classifier(), tmp_path) as serving:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
        with running(serving, build(serving, 2)) as address, opened(browser, address) as page:
            open_tab(page, "en", "compare")
            page.get_by_role("button", name="Compare all candidates").click()
            page.get_by_text("Choose a photo first.").wait_for()
            page.set_input_files("input[type=file] >> nth=1", picture(tmp_path / "a.jpg", RED))
            page.locator("img[alt]").last.wait_for()
            page.get_by_role("button", name="Compare all candidates").click()
            page.get_by_text("2 of 4 answer differently from the page, which says red rendang.").wait_for()
            assert page.locator(".cards tbody tr").count() == 5
            assert page.locator(".otherwise").all_inner_texts() == ["≠ green lalap", "≠ green lalap"]
            assert page.locator(".unread").inner_text().startswith("plain34/model.pt2 is missing though its receipt")
            looked_at(page, screenshots, "compare")
            page.set_viewport_size({"width": 1280, "height": 900})
