"""`python -m runtime classify`: any number of photos, rows as they come, in order, whatever the files are called."""

import csv
import io
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from conftest import ROOT
from PIL import Image

import runtime
from runtime import classify as verb
from runtime.classifier import Prediction
from runtime.classify import COLUMNS, Counter, Photos, _writer, classify, conclude, csv_row
from runtime.errors import GateFailed, SajiError
from runtime.files import sha256_file
from runtime.rowfile import RowFile
from runtime.spec import Geometry, ModelSpec, Rejection
from runtime.terminal import printable
from runtime.threads import in_order

COMMAND = [sys.executable, "-m", "runtime", "classify"]
ODD = [
    "a'b.png",
    'qu"ote.png',
    "new\nline.png",
    "com,ma.png",
    "tab\t.png",
    "re\rturn.png",
    "é🍜.png",
    os.fsdecode(b"caf\xe9.png"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with odd names, one in a folder below; a hidden file, a note, and a text named as a photo."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for i, name in enumerate([*ODD, "below/last.PNG"]):
        Image.new("RGB", (40 + i, 40), (30 * i, 90, 200)).save(folder / name, "PNG")
    for name in (".hidden.png", "notes.txt", "broken.jpg"):
        (folder / name).write_text("no picture")
    return folder


@pytest.fixture
def run_here(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Classify with the tiny model; stdout and stderr."""

    def run_here(*places: object, form: str = "", output: Path | None = None) -> tuple[str, str]:
        with pytest.raises(GateFailed, match="1 of 10 photos could not be read and were skipped"):
            classify([str(place) for place in places], model, form, output)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run_here


def names(folder: Path) -> list[str]:
    return [*(str(folder / name) for name in sorted(ODD)), str(folder / "below" / "last.PNG")]


def test_json_holds_every_name_and_every_probability(run_here: Callable, folder: Path, model: Path) -> None:
    out, err = run_here(folder, form="json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["photo"] for row in rows] == names(folder) and out.isascii()
    with runtime.load(model) as classifier:
        alone = classifier(rows[0]["photo"])
    assert rows[0]["probabilities"] == alone.probabilities and rows[0]["label"] == alone.label
    assert set(rows[0]["milliseconds"]) == {"decode", "geometry", "inference"}
    assert "broken.jpg is no picture" in err and "1 files left alone that are no photos by suffix" in err


def test_csv_holds_every_name(run_here: Callable, folder: Path, tmp_path: Path) -> None:
    run_here(folder, output=tmp_path / "rows.csv")
    rows = list(csv.DictReader((tmp_path / "rows.csv").open(encoding="utf-8", newline="")))
    escaped = [name.encode(errors="backslashreplace").decode() for name in names(folder)]
    assert [row["photo"] for row in rows] == escaped and tuple(rows[0]) == COLUMNS
    assert all(0 < float(row["probability"]) <= 1 and row["sure"] in ("true", "false") for row in rows)


def test_lines_for_people_are_one_a_photo(run_here: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = run_here(folder)
    assert len(out.splitlines()) == 9 and {line.count("\t") for line in out.splitlines()} == {3}
    assert r"new\nline.png" in out and r"caf\udce9.png" in out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    head, *lines = run_here(folder)[0].splitlines()
    at = head.index("photo")
    assert len(lines) == 9 and all(line[at:].startswith(printable(str(folder))) for line in lines)


def test_where_the_rows_tell_everything_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    photos = Photos([], print)
    conclude(Counter(False), photos, 3, 0, None)
    assert capsys.readouterr().err == ""
    conclude(Counter(False), photos, 3, 0, "rows.csv")
    photos.left_alone = 2
    conclude(Counter(False), photos, 3, 0, None)
    in_file, beside = capsys.readouterr().err.splitlines()
    assert in_file == "saji: 3 photos classified" and beside.startswith("saji: 3 photos classified; 2 files left alone")


@pytest.mark.parametrize("rejection", [None, Rejection("max_probability", 0.5)], ids=["sure", "may be unsure"])
def test_columns_for_people_hold_the_longest_label_that_may_come(
    rejection: Rejection | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    spec = ModelSpec("m", "resnet18", ("rendang", "pempek"), Geometry.for_size(32), rejection=rejection)
    _writer("", spec, RowFile(None, "", COLUMNS, "us"))
    longest = "not sure (perhaps rendang)" if rejection else "rendang"
    assert capsys.readouterr().out.index("probability") == len(longest) + 2


def test_the_progress_line_shows_only_where_it_disturbs_no_row(
    run_here: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "photos, " not in run_here(folder)[1]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "1 photos, " in run_here(folder, form="json")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "photos, " not in run_here(folder)[1]
    assert "1 photos, " in run_here(folder, output=tmp_path / "rows.jsonl")[1]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_second_run_goes_on_where_a_kill_stopped_the_first(
    kind: str, run_here: Callable, folder: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"rows.{kind}"
    run_here(folder, output=output)
    whole = output.read_bytes()
    for cut in (1, 2, 40, len(whole) // 2, whole.index(b"new") + 4):  # the last within the quotes of a CSV's line end
        output.write_bytes(whole[:-cut] if cut < len(whole) // 2 else whole[:cut])
        with pytest.raises(GateFailed, match=r"1 of \d+ photos"):
            classify([str(folder)], model, "", output)
        assert f"already in {output}" in capsys.readouterr().err or cut == whole.index(b"new") + 4
        assert _without_times(output) == _without_times(output, whole)
        assert kind == "jsonl" or all(re.search(rb"\.\d{3}$", line) for line in output.read_bytes().splitlines()[-1:])
    Path(folder / "broken.jpg").rename(tmp_path / "broken.jpg")
    classify([str(folder)], model, "", output)
    Path(tmp_path / "broken.jpg").rename(folder / "broken.jpg")
    assert f"0 photos classified; 9 already in {output}" in capsys.readouterr().err


def _without_times(path: Path, content: bytes | None = None) -> list:
    text = (content or path.read_bytes()).decode()
    if path.suffix == ".csv":
        return [row[:-1] for row in csv.reader(io.StringIO(text, newline=""))]
    return [json.loads(line) | {"milliseconds": None} for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_answers_of_two_models_are_never_mixed(kind: str, folder: Path, tmp_path: Path, model: Path) -> None:
    """Not of two backends, and not of two files of the same name."""
    first, second = (str(folder / name) for name in ODD[:2])
    output, again = tmp_path / f"rows.{kind}", onnx.load(model / "model.onnx")
    classify([first], model, "", output)
    written = output.read_bytes()
    assert sha256_file(model / "model.onnx")[:12].encode() in written
    again.doc_string = "exported once more"
    onnx.save(again, tmp_path / "model.onnx")
    for other in (tmp_path / "model.onnx", model / "model.pt2"):
        with pytest.raises(SajiError, match=r"holds answers of resnet18 · ort-cpu · fp32 · \w{12}, which this model"):
            classify([first, second], other, "", output)
        assert output.read_bytes() == written
    classify([first, second], model, "", output)
    assert output.read_bytes().startswith(written) and len(output.read_bytes()) > len(written)


@pytest.mark.parametrize("content", [b"dear diary", b"dear diary\n", b'{"a": 1}\n', b'{"photo": \n', b"a,b\n1,2\n"])
@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_file_of_something_else_is_not_touched(content: bytes, form: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(content)
    with (
        pytest.raises(SajiError, match=rf"holds something else than {form.upper()} rows"),
        RowFile(tmp_path / "mine", form, COLUMNS, "us"),
    ):
        pass
    assert (tmp_path / "mine").read_bytes() == content


ROW = "%s,x,0.5,true,named,us,2.000\n"
JSON = '{"photo": "%s", "served_by": "us"}\n'


@pytest.mark.parametrize(
    ("form", "rows"),
    [
        ("csv", ROW.replace("x", 'x"y') % "a" + ROW % "b"),
        ("csv", ROW % "a" + ROW % '"b'),  # the last row
        ("csv", ROW % '"a' + ROW % "b" * 2000),  # more than is read at once
        ("csv", ROW % '"a' + ROW % '"b,b\nb"'),  # closed again by a row that has quotes
        ("csv", ROW.replace("x", 'x"y') % "a" + ROW % "b" + ROW.replace("x", 'x"y') % "c"),
        ("csv", (ROW % "a" + ROW % "b").replace("\n", "\r")),
        ("csv", ROW % "a" + "\n" + ROW % "b"),
        ("csv", ROW % "a" + ROW[:9] % "b" + "\n"),
        ("csv", ROW % "a" + ROW.replace("2.000", "") % "b"),
        ("json", JSON % "a" + JSON[:20] % "b" + "\n" + JSON % "c"),
        ("json", JSON % "a" + '{"photo": 1, "served_by": "us"}\n'),
        ("json", "\ufeff" + JSON % "a"),
        ("json", '{"photo": ["my", "labels"], "count": 4}'),  # as json.dump ends a file
    ],
)
def test_rows_with_something_else_among_them_are_not_touched(form: str, rows: str, tmp_path: Path) -> None:
    content = ((",".join(COLUMNS) + "\n" if form == "csv" else "") + rows).encode()
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(SajiError, match=rf"holds something else than {form.upper()} rows"):
        RowFile(tmp_path / "mine", form, COLUMNS, "us").__enter__()
    assert (tmp_path / "mine").read_bytes() == content


@pytest.mark.parametrize(("form", "row"), [("csv", ROW), ("json", JSON)])
def test_of_a_file_cut_anywhere_every_whole_row_is_kept(form: str, row: str, tmp_path: Path) -> None:
    names = {"a": "a", "é": "é", 'b,c"\nd\n.png': '"b,c""\nd\n.png"'} if form == "csv" else {"a": "a", "é": "é"}
    written = {name: row % cell for name, cell in names.items()}
    whole = ((",".join(COLUMNS) + "\n" if form == "csv" else "") + "".join(written.values())).encode()
    for cut in range(len(whole) + 1):
        (tmp_path / "rows").write_bytes(whole[:cut])
        with RowFile(tmp_path / "rows", form, COLUMNS, "us") as rows:
            whole_ones = [name for name in ("a", "é", 'b,c"\nd\n.png') if name in rows]
        assert whole_ones == [name for name, row in written.items() if row.rstrip("\n").encode() in whole[:cut]]
        kept = (tmp_path / "rows").read_bytes()
        assert kept.endswith(b"\n") or not kept


FORMULAS = ['=HYPERLINK("http:..x")', "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "＝1", "'=1"]


def test_a_csv_holds_no_formula_and_is_taken_up_again_by_the_names_themselves(tmp_path: Path) -> None:
    def opened() -> RowFile:
        return RowFile(tmp_path / "rows.csv", "csv", COLUMNS, "=us")

    answer = Prediction({"=label": 1.0}, "named", {"inference": 1.0})
    for name in FORMULAS:
        with opened() as rows:
            assert name not in rows
            rows.append(csv_row(name, answer, "=us"))
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["photo"] for row in written] == [f"'{name}" for name in FORMULAS]
    assert {(row["label"], row["served_by"]) for row in written} == {("'=label", "'=us")}
    with opened() as rows:
        assert all(name in rows for name in FORMULAS) and "=1" not in rows and "''=1" not in rows


def test_a_csv_of_an_earlier_version_is_taken_up_again(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"{','.join(COLUMNS)}\n{ROW % '=1'}{ROW % '-1'}")
    with RowFile(tmp_path / "rows.csv", "csv", COLUMNS, "us") as rows:
        assert "=1" in rows and "-1" in rows and "1" not in rows


def test_a_photo_of_the_longest_name_is_not_asked_about_again(tmp_path: Path) -> None:
    name = "a\n" * 2047
    row = ROW % f'"{name}"'
    (tmp_path / "rows.csv").write_bytes(f"{','.join(COLUMNS)}\n{row}".encode())
    with RowFile(tmp_path / "rows.csv", "csv", COLUMNS, "us") as rows:
        assert name in rows


def test_each_row_is_in_the_file_before_the_next_photo(tmp_path: Path) -> None:
    with RowFile(tmp_path / "new" / "rows.jsonl", "json", COLUMNS, "us") as rows:
        for i in (1, 2):
            rows.append(json.dumps({"photo": "a"}) + "\n")
            assert (tmp_path / "new" / "rows.jsonl").read_bytes().count(b"\n") == i


def test_a_hundred_thousand_photos_are_never_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    visited: list[str] = []

    def endless(place: Path, *_: object) -> object:
        for i in range(10**9):
            visited.append(f"{place}/{i}")
            yield Path(visited[-1]), [Path(visited[-1], "a.jpg")]

    monkeypatch.setattr(verb, "walk_once", endless)
    monkeypatch.setattr(verb.os.path, "isfile", lambda _: True)
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    found = in_order(lambda photo: photo, Photos(["many"], print), workers=2)
    assert [next(found) for _ in range(3)] == [str(Path("many", str(i), "a.jpg")) for i in range(3)]
    found.close()
    assert len(visited) < 20


@pytest.mark.parametrize("workers", [1, 2])
def test_who_stops_early_leaves_no_thread_behind(workers: int) -> None:
    before = set(threading.enumerate())
    results = in_order(str, itertools.count(), workers)
    assert next(results) == "0"
    time.sleep(0.05)  # until it is as far ahead as it may be
    results.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_results_keep_their_order_and_do_not_wait_for_the_next_item() -> None:
    more = threading.Event()

    def items() -> object:
        yield from (0.05, 0.0, 0.02)
        assert more.wait(10)
        yield 0.01
        raise SajiError("the source broke")

    def work(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    results = in_order(work, items(), workers=2)
    assert [next(results) for _ in range(3)] == [0.05, 0.0, 0.02]
    more.set()
    assert next(results) == 0.01
    with pytest.raises(SajiError, match="the source broke"):
        next(results)


def test_one_photo_gets_all_cores_and_of_several_each_core_takes_one(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    calls: list[str] = []

    def opened(path: Path, threads: int, streams: int) -> runtime.Classifier:
        asked.append((threads, streams))
        classifier = runtime.load(path, threads=threads, streams=streams)
        run, close = classifier.backend.run, classifier.backend.close

        def slow(images: object) -> object:
            calls.append("begins")
            time.sleep(0.05)
            answer = run(images)  # type: ignore[arg-type]
            calls.append("ends")
            return answer

        monkeypatch.setattr(classifier.backend, "run", slow)
        monkeypatch.setattr(classifier.backend, "close", lambda: (calls.append("closed"), close()))
        return classifier

    monkeypatch.setattr(verb, "load", opened)
    monkeypatch.setattr(verb, "usable_cores", lambda: 3)
    photos = [str(folder / ODD[0]), str(folder / ODD[1])]
    classify(photos[:1], model)
    classify(photos, model)
    assert asked == [(0, 1), (1, 3)]
    calls.clear()
    monkeypatch.setattr(verb, "_writer", lambda *_: lambda *_: 1 / 0)  # the first row ends it, while others are at work
    with pytest.raises(ZeroDivisionError):
        classify([str(folder)], model)
    assert calls[-1] == "closed" and calls.count("begins") == calls.count("ends") > 1


def test_a_folder_without_photos_and_one_that_is_closed_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.jpg").touch()
    with pytest.raises(SajiError, match=r"holds no photo, 1 other files; photos end with \.jpg"):
        list(Photos([str(tmp_path)], print))
    said: list[str] = []
    photos = Photos([str(tmp_path)], said.append)
    photos._closed(PermissionError(13, "Permission denied", "secret\n"))
    assert photos.closed == 1 and said == [r"saji: secret\n: Permission denied, so this folder is skipped"]


def test_links_to_folders_are_followed_once_and_loops_are_told(tmp_path: Path) -> None:
    """As training reads them; a photo that really lies in the folder has its own name there, not a link's."""
    for name in ("disk/2023/0.jpg", "disk/2023/deep/1.jpg", "set/2024/2.jpg", "set/own.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root, said = tmp_path / "set", list[str]()
    links = {"2023": "../disk/2023", "again": "../disk/2023", "2024/self": "..", "0": "2024", "up": ".."}
    links["2025"] = "gone"
    for link, target in links.items():
        (root / link).symlink_to(target)
    found = [Path(photo).relative_to(root).as_posix() for photo in Photos([str(root)], said.append)]
    assert found == ["2025", "own.jpg", "2024/2.jpg", "2023/0.jpg", "2023/deep/1.jpg"], "a link to nothing is broken"
    told = {line.partition(" is a link to a folder that is read already")[0] for line in said}
    assert told == {f"saji: {root / name}" for name in ("again", "0", "up", "2024/self")} and len(said) == 4


def test_names_from_standard_input_and_the_exit_status(folder: Path, model: Path) -> None:
    listed = b"\r\n".join([os.fsencode(folder / ODD[-1]), b"", os.fsencode(folder / "below"), b"gone.jpg"])
    done = subprocess.run(
        [*COMMAND, "-", "--csv", "--model", str(model)], input=listed, capture_output=True, cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    lines = done.stdout.decode("ascii").splitlines()
    assert done.returncode == 1 and lines[0] == ",".join(COLUMNS) and len(lines) == 3
    assert r"caf\udce9.png" in lines[1] and "last.PNG" in lines[2]
    assert b"gone.jpg cannot be opened: No such file" in done.stderr
    assert b"saji: 1 of 3 photos could not be read" in done.stderr and b"Traceback" not in done.stderr
