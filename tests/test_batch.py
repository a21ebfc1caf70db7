"""A batch: every photo gets a row, a zip can do no harm, and a lone visitor does not wait for its end."""

import asyncio
import csv
import io
import json
import os
import struct
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import PATIENCE
from test_demo import BLUE, CANDIDATE, GREEN, RED, MeanColour, colour_classifier, picture, running, serving_of
from test_page import open_tab, opened
from test_service import SMALL, Held, photo

from demo.page.tabs.batch import Batch, Row, as_csv, as_json, counts, summary_of, table_of, unsure_of
from demo.page.uploads import Archive
from demo.page.work import PLACES, Turns
from demo.service.limits import Limits
from demo.service.problem import Problem
from demo.service.queue import Serving
from runtime.classifier import Classifier
from runtime.spec import Geometry, Guard, ModelSpec, Rejection

GREY = (90, 90, 90)
LIMITS = replace(SMALL, batch=6, upload=1_000_000)
UNSURE = {"rejection": Rejection("max_probability", 0.9)}


@pytest.fixture(autouse=True)
def uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in `tmp_path` counts as uploaded."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    with serving_of(colour_classifier(**UNSURE), tmp_path, LIMITS) as serving:
        yield serving


def zipped(path: Path, files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def rows_of(serving: Serving, *files: Path) -> list[Row]:
    async def all_of() -> list[Row]:
        uploads = [{"path": str(file), "orig_name": file.name} for file in files]
        with Batch(uploads, serving.limits) as batch:
            rows = [row async for row in batch.rows(serving)]
            assert len(rows) == len(batch)
            return rows

    return asyncio.run(all_of())


def said(rows: list[Row]) -> dict[str, str]:
    """Each file's label, or why it was not read."""
    return {row.name: row.prediction.label if row.prediction else row.problem.cause for row in rows}  # type: ignore[union-attr]


def test_loose_photos_and_zips_get_a_row_each_in_their_order(serving: Serving, tmp_path: Path) -> None:
    zip_of_two = zipped(tmp_path / "two.ZIP", {"a/green.jpg": photo(GREEN), "blue.png": photo(BLUE, "PNG")})
    text = tmp_path / "notes.jpg"
    text.write_text("this is text")
    rows = rows_of(serving, picture(tmp_path / "red.png", RED), zip_of_two, text)
    assert list(said(rows).items()) == [
        ("red.png", "red_rendang"),
        ("two.ZIP/a/green.jpg", "green_lalap"),
        ("two.ZIP/blue.png", "blue_nasi_kerabu"),
        ("notes.jpg", "not-a-picture"),
    ]
    assert counts(rows) == {"red_rendang": 1, "green_lalap": 1, "blue_nasi_kerabu": 1}


def test_only_what_the_model_is_not_sure_of_becomes_a_picture(serving: Serving, tmp_path: Path) -> None:
    sure, unsure = rows_of(serving, picture(tmp_path / "red.png", RED), picture(tmp_path / "grey.png", GREY))
    assert sure.thumbnail == b"" and unsure.thumbnail.startswith(b"\xff\xd8")
    assert counts([sure, unsure]) == {"red_rendang": 1}


def test_a_photo_without_food_is_not_told_as_a_doubtful_one(tmp_path: Path) -> None:
    guard = Guard(absent="blue_nasi_kerabu", unnamed="green_lalap", presence=0.5)
    classifier = colour_classifier(**UNSURE, guard=guard)
    with serving_of(classifier, tmp_path, LIMITS) as serving:
        absent, unnamed = rows_of(serving, picture(tmp_path / "a.png", BLUE), picture(tmp_path / "b.png", GREEN))
    assert not absent.thumbnail and unnamed.thumbnail
    table = table_of([absent, unnamed], "en")
    assert "I see no food here" in table and "Food, but none that I know by name" in table
    assert "lalap" not in table and table.count("otherwise") == 1
    told = summary_of([absent, unnamed], "en")
    assert "I see no food here 1" in told and "not sure 1" in told and "not read" not in told


def test_csv_and_json_hold_every_photo_and_csv_no_formula(serving: Serving, tmp_path: Path) -> None:
    evil = ['=HYPERLINK("http:..x")', "+1", "-1", "@SUM(A1)", "\tx"]
    (tmp_path / "broken.jpg").write_bytes(b"x")
    zip_of_evil = zipped(tmp_path / "evil.zip", {f"{name}.jpg": photo() for name in evil})
    rows = [replace(row, name=row.name.partition("/")[2]) for row in rows_of(serving, zip_of_evil)]
    rows += rows_of(serving, tmp_path / "broken.jpg")
    cells = list(csv.DictReader(io.StringIO(as_csv(rows), newline="")))
    assert [cell["photo"] for cell in cells] == [*(f"'{name}.jpg" for name in evil), "broken.jpg"]
    assert [cell["label"] for cell in cells] == [*["red_rendang"] * 5, ""]
    whole = json.loads(as_json(rows))
    assert [one["photo"] for one in whole["photos"]] == [f"{n}.jpg" for n in evil]
    assert {one["served_by"] for one in whole["photos"]} == {serving.engine.classifier.served_by}
    assert sum(whole["photos"][0]["probabilities"].values()) == pytest.approx(1)
    assert [one["photo"] for one in whole["unreadable"]] == ["broken.jpg"]


def test_each_row_is_told_as_what_answered_it_also_after_another_deployment(serving: Serving, tmp_path: Path) -> None:
    rows = rows_of(serving, picture(tmp_path / "red.png", RED))
    other = Classifier(ModelSpec("other", "other", ("a", "b", "c"), Geometry.for_size(32)), MeanColour(), CANDIDATE)
    (tmp_path / "other").mkdir()
    with serving_of(other, tmp_path / "other", LIMITS) as later:
        rows += rows_of(later, picture(tmp_path / "a.png", RED))
    assert "red rendang" in table_of(rows, "en") and "red rendang 1</span><span>a 1<" in summary_of(rows, "en")
    told = [one["served_by"] for one in json.loads(as_json(rows))["photos"]]
    assert told == [serving.engine.classifier.served_by, other.served_by] and told[0] != told[1]


def test_more_photos_than_a_batch_may_have_are_refused_before_the_first(serving: Serving, tmp_path: Path) -> None:
    many = zipped(tmp_path / "many.zip", {f"{number}.jpg": photo() for number in range(6)})
    assert len(rows_of(serving, many)) == 6
    with pytest.raises(Problem, match="7 photos are more than 6"):
        rows_of(serving, many, picture(tmp_path / "one.png", RED))


def test_the_limits_of_a_photo_hold_within_a_batch(serving: Serving, tmp_path: Path) -> None:
    large, bytes_ = photo(size=(1200, 1000)), os.urandom(LIMITS.bytes + 1)
    (tmp_path / "loose.jpg").write_bytes(bytes_)
    files = {"pixels.jpg": large, "bytes.jpg": bytes_, "good.jpg": photo()}
    rows = rows_of(serving, zipped(tmp_path / "a.zip", files), tmp_path / "loose.jpg")
    assert list(said(rows).values()) == ["too-many-pixels", "too-large", "red_rendang", "too-large"]


# Zips


def refused(path: Path, limits: Limits = LIMITS) -> str:
    with pytest.raises(Problem) as refusal, open(path, "rb") as file, Archive(file, path.name, limits):
        pass
    sentence: str = refusal.value.detail
    assert "\n" not in sentence and sentence
    return refusal.value.cause


def patched(path: Path, signature: bytes, offset: int, value: bytes) -> Path:
    """The zip with some bytes after each occurrence of a record's signature changed."""
    content = bytearray(path.read_bytes())
    at = content.find(signature)
    while at >= 0:
        content[at + offset : at + offset + len(value)] = value
        at = content.find(signature, at + 4)
    path.write_bytes(content)
    return path


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 100, b"PK\5\6" + b"\xff" * 18, photo()], ids=len)
def test_what_is_no_zip_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    assert refused(tmp_path / "a.zip") == "broken-zip"


def test_a_torn_zip_is_one_sentence(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a.zip", {"a.jpg": photo(), "b.jpg": photo()})
    content = whole.read_bytes()
    for end in range(0, len(content), 7):
        whole.write_bytes(content[:end])
        assert refused(whole) == "broken-zip"


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_end_in_rows_or_one_sentence(serving: Serving, tmp_path: Path, seed: int) -> None:
    import random

    lots = random.Random(seed)
    damaged = zipped(tmp_path / "a.zip", {"a.jpg": photo(), "b.png": photo(GREEN, "PNG")})
    content = bytearray(damaged.read_bytes())
    for _ in range(8):
        content[lots.randrange(len(content))] = lots.randrange(256)
    damaged.write_bytes(content)
    try:
        rows_of(serving, damaged)
    except Problem as problem:
        assert problem.cause in ("broken-zip", "zip-too-large", "too-many-photos")


def test_names_that_leave_the_zip_are_skipped_and_write_nothing(serving: Serving, tmp_path: Path) -> None:
    names = ["../out.jpg", "/etc/out.jpg", "a/../../out.jpg", "..\\out.jpg", "C:\\out.jpg", "\\\\host\\share\\out.jpg"]
    before = sorted(tmp_path.parent.rglob("*"))
    rows = rows_of(serving, path := zipped(tmp_path / "a.zip", {name: photo() for name in names}))
    assert set(said(rows).values()) == {"outside-zip"} and len(rows) == 6
    path.unlink()
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_zip_touches_no_disk(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "a.zip", {"red.jpg": photo(), "grey.png": photo(GREY, "PNG")})
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("tempfile.mkstemp", lambda *_, **__: pytest.fail("a temporary file"))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_, **__: pytest.fail("a temporary file"))
    assert len(rows_of(serving, path)) == 2
    assert sorted(tmp_path.iterdir()) == before


def test_a_bomb_is_told_by_what_it_declares(tmp_path: Path) -> None:
    zeros = bytes(200_000)
    bomb = zipped(tmp_path / "bomb.zip", {f"{number}.jpg": zeros for number in range(6)})
    assert bomb.stat().st_size < 10_000
    assert refused(bomb) == "zip-too-large"


def test_a_bomb_that_declares_little_is_not_inflated_further(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zipped(tmp_path / "bomb.zip", {"a.jpg": bytes(50_000_000)})
    patched(patched(bomb, CENTRAL, 24, struct.pack("<L", 1000)), LOCAL, 22, struct.pack("<L", 1000))
    taken: list[int] = []
    read1 = zipfile.ZipExtFile._read1  # type: ignore[attr-defined]

    def counting(file: Any, size: int) -> bytes:
        taken.append(len(piece := read1(file, size)))
        return piece

    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", counting)
    assert said(rows_of(serving, bomb)) == {"bomb.zip/a.jpg": "broken-entry"}
    assert sum(taken) <= 1000


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_inflates_without_a_bound_is_not_inflated(serving: Serving, tmp_path: Path, how: int) -> None:
    bomb = zipped(tmp_path / "bomb.zip", {"a.jpg": bytes(100_000)}, how)
    assert said(rows_of(serving, bomb)) == {"bomb.zip/a.jpg": "compression"}


def test_a_million_entries_are_refused_before_an_object_is_made_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = (CENTRAL + bytes(42)) * 1_000_000
    end = struct.pack("<4s4H2LH", END, 0, 0, 1, 1, len(entries), 0, 0)
    (tmp_path / "many.zip").write_bytes(entries + end)
    monkeypatch.setattr(zipfile, "ZipInfo", lambda *_: pytest.fail("an entry was read"))
    assert refused(tmp_path / "many.zip") == "zip-too-large"


def test_a_zip_in_a_zip_and_an_encrypted_file_are_skipped(serving: Serving, tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"a.jpg": photo()}).read_bytes()
    nested = zipped(tmp_path / "nested.zip", {"inner.zip": inner, "good.jpg": photo()})
    assert list(said(rows_of(serving, nested)).values()) == ["zip-in-zip", "red_rendang"]
    locked = zipped(tmp_path / "locked.zip", {"a.jpg": photo()})
    patched(patched(locked, CENTRAL, 8, b"\1\0"), LOCAL, 6, b"\1\0")
    assert list(said(rows_of(serving, locked)).values()) == ["encrypted"]


def test_one_damaged_file_in_a_zip_leaves_the_others(serving: Serving, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"bad.jpg": photo(), "good.jpg": photo(GREEN)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[100] ^= 0xFF
    path.write_bytes(content)
    assert list(said(rows_of(serving, path)).values()) == ["broken-entry", "green_lalap"]


def test_what_systems_put_beside_photos_is_no_photo(tmp_path: Path) -> None:
    names = ["a.jpg", "__MACOSX/._a.jpg", ".DS_Store", "b/Thumbs.db", "b/"]
    path = zipped(tmp_path / "a.zip", dict.fromkeys(names, b""))
    with open(path, "rb") as file, Archive(file, "a.zip", LIMITS) as archive:
        assert [entry.filename for entry in archive.entries] == ["a.jpg"]


# The queue


def held(tmp_path: Path) -> tuple[Held, Any]:
    backend, classifier = Held(), colour_classifier()
    classifier.backend = backend  # type: ignore[assignment]
    backend.free.set()  # for the warm-up
    return backend, classifier


def test_a_visitor_comes_between_two_photos_of_a_batch(tmp_path: Path) -> None:
    """Of a batch no more than one photo is in the queue, so that nobody waits for its end."""
    backend, classifier = held(tmp_path)
    files = [picture(tmp_path / f"{number}.png", RED) for number in range(4)]

    async def visit(serving: Serving) -> tuple[int, int]:
        backend.free.clear()
        backend.begun = threading.Semaphore(0)
        done: list[Row] = []

        async def all_of_the_batch() -> None:
            with Batch([{"path": str(file)} for file in files], serving.limits) as batch:
                async for row in batch.rows(serving):
                    done.append(row)

        task = asyncio.create_task(all_of_the_batch())
        await asyncio.to_thread(backend.begun.acquire)  # the batch's first photo is on the engine
        visitor = asyncio.create_task(serving.classify([photo(GREEN)]))
        await asyncio.sleep(0.1)
        in_queue = serving._places.all
        backend.free.set()
        await visitor
        before = len(done)
        await task
        return in_queue, before

    with serving_of(classifier, tmp_path, LIMITS) as serving:
        in_queue, before = asyncio.run(visit(serving))
    assert in_queue == 1 and before < len(files)


def test_a_batch_waits_while_the_queue_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.page.tabs.batch.PATIENCE", 0.01)
    file = picture(tmp_path / "a.png", RED)

    async def crowded(serving: Serving) -> list[Row]:
        with Batch([{"path": str(file)}], serving.limits) as batch:
            with serving.place():
                first = asyncio.ensure_future(anext(batch.rows(serving)))
                await asyncio.sleep(0.1)
                assert not first.done()
            return [await first]

    with serving_of(colour_classifier(), tmp_path, replace(LIMITS, queue=1)) as serving:
        assert list(said(asyncio.run(crowded(serving))).values()) == ["red_rendang"]


# The tab


def test_only_a_few_wait_for_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def crowd() -> None:
        turns, order = Turns("batches", LIMITS), list[int]()

        async def work(number: int) -> None:
            async with turns.take():
                order.append(number)
                await asyncio.sleep(0.01)
                assert order[-1] == number, "two at a time"

        waiting = [asyncio.create_task(work(number)) for number in range(PLACES)]
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="5 batches are under way or waiting"):
            await work(99)
        await asyncio.gather(*waiting)
        await work(PLACES)
        assert order == list(range(PLACES + 1))

    asyncio.run(crowd())


def test_names_and_labels_are_text_on_the_page() -> None:
    classifier = colour_classifier(**UNSURE)
    prediction = classifier(photo(GREY))
    row = Row("<img src=x onerror=alert(1)>.jpg\n", prediction, classifier, thumbnail=b"x")
    for html in (table_of([row], "en"), unsure_of([row], "en")):
        assert "<img src=x" not in html and "&lt;img src=x" in html and "\n" not in html


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a demo whose model is sometimes not sure."""
    from demo.page.frame import build

    with pytest.MonkeyPatch.context() as patch, serving_of(colour_classifier(**UNSURE), tmp_path, LIMITS) as serving:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
        with running(serving, build(serving, 2)) as address:
            yield address


def test_a_batch_may_be_sent_that_is_larger_than_a_photo(address: str) -> None:
    def sent(size: int) -> int:
        files = {"files": ("photos.zip", bytes(size))}
        return httpx.post(f"{address}/gradio_api/upload", files=files, timeout=PATIENCE).status_code

    assert sent(LIMITS.bytes + 1000) == 200 and sent(LIMITS.upload + 1) == 413


def looked_at(page: Any, screenshots: Path, name: str) -> None:
    """Pictures of the page in light, in dark, and on a phone, where nothing may be cut off."""
    for look in ("light", "dark"):
        page.evaluate("look => document.body.classList.toggle('dark', look === 'dark')", look)
        page.screenshot(path=screenshots / f"{name}_{look}.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=screenshots / f"{name}_phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "on a phone something is cut off"


def test_browser_names_a_batch_and_hands_it_out(browser: Any, address: str, screenshots: Path, tmp_path: Path) -> None:
    files = {"a/green lunch.jpg": photo(GREEN), "grey.png": photo(GREY, "PNG"), "../out.jpg": photo()}
    uploads = [picture(tmp_path / "=red.png", RED), zipped(tmp_path / "photos.zip", files)]
    with opened(browser, address) as page:
        open_tab(page, "en", "batch")
        page.set_input_files("input[type=file][multiple]", uploads)  # that tab alone has one
        page.locator(".file-preview tr").nth(1).wait_for()
        page.get_by_role("button", name="Name all dishes").click()
        page.get_by_role("link", name="Download CSV").wait_for()
        assert page.locator(".cards tbody tr").count() == 4
        assert page.locator(".thumbnails img").count() == 1
        with page.expect_download() as download:
            page.get_by_role("link", name="Download CSV").click()
        lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("photo,label") and len(lines) == 5
        assert lines[1].startswith("'=red.png,red_rendang,")
        looked_at(page, screenshots, "batch")
        page.set_viewport_size({"width": 1280, "height": 900})


def test_a_batch_ends_when_its_visitor_goes(browser: Any, tmp_path: Path) -> None:
    """Nobody waits behind the photos of a tab that was closed."""
    from demo.page.frame import build

    backend, classifier = held(tmp_path)
    limits = replace(LIMITS, batch=500)
    photos = zipped(tmp_path / "photos.zip", {f"{number}.png": photo(RED, "PNG") for number in range(limits.batch)})

    def begin(page: Any) -> None:
        open_tab(page, "en", "batch")
        page.set_input_files("input[type=file][multiple]", photos)
        page.locator(".file-preview tr").first.wait_for()
        page.get_by_role("button", name="Name all dishes").click()

    with serving_of(classifier, tmp_path, limits) as serving, running(serving, build(serving, 2)) as address:
        backend.free.clear()
        backend.begun = threading.Semaphore(0)
        with opened(browser, address) as page:
            begin(page)
            assert backend.begun.acquire(timeout=PATIENCE)  # the first photo is on the engine
        backend.batches.clear()
        backend.free.set()
        with opened(browser, address) as page:
            begin(page)
            page.get_by_role("link", name="Download CSV").wait_for()
        assert len(backend.batches) < 2 * limits.batch - 1, "all photos of the closed tab were named as well"
