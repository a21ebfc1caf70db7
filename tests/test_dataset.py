"""Data that is what it says: every fault of a photo set is told, and no split that we make leaks."""

import csv
import json
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import house
import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED, needs_shared
from PIL import Image, UnidentifiedImageError
from test_duplicates import drawn

from runtime.errors import GateFailed, SajiError
from runtime.spec import Geometry
from training.__main__ import main
from training.outcome.evaluate import Evaluation, RejectionFigures, described
from training.photos import dataset, duplicates
from training.photos.dataset import load_data
from training.photos.findings import Findings, Group, PhotoFacts, examine
from training.photos.findings_page import contact_sheet, describe, page
from training.photos.split import Data, scene_numbers
from training.progress import silent
from training.recipe import Recipe
from training.run import held_out, release
from training.run.batches import TrainPhotos
from training.run.train import without_leaks

SIZE = (80, 100)  # width, height: neither tiny nor extreme


def write_photos(root: Path, label: str, count: int, start: int = 0) -> None:
    (root / label).mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        noise(i).save(root / label / f"{i}.png")


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE[::-1], 3), np.uint8))


def quick(source: Path, share: float = 0.5, seed: int = 0) -> Data:
    return load_data(source, share, seed, look_alikes=False)


def scenes_of(data: Data) -> list[set[str]]:
    """The sides on which each group of duplicates stands."""
    return [{photo.side for picture in group.pictures for photo in picture} for group in data.findings.groups]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 10 and 12 photos; four of `a` show one picture, two of `b` one dish on two backgrounds."""
    root = tmp_path_factory.mktemp("copies")
    for label, seeds in (("a", range(10, 16)), ("b", range(20, 30))):
        (root / label).mkdir()
        for seed in seeds:
            drawn(seed).save(root / label / f"{seed}.png")
    for name, size in (("small", (180, 140)), ("large", (400, 300)), ("same", (260, 200))):
        drawn(0).resize(size).save(root / "a" / f"{name}.jpg", quality=80)
    drawn(0).save(root / "a" / "original.png")
    for name, background, place in (("here", 2, (20, 30)), ("there", 3, (90, 60))):
        picture = drawn(background)
        picture.paste(drawn(1).crop((0, 0, 130, 100)), place)
        picture.save(root / "b" / f"{name}.jpg", quality=90)
    return root


@pytest.fixture(scope="module")
def looked(copies: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Path]:
    """The same set, its look-alikes found, and the folder that remembers them."""
    cache = tmp_path_factory.mktemp("cache")
    return load_data(copies, 0.4, 0, cache=cache), cache


def test_a_split_is_stratified_seeded_and_keeps_identical_files_together(tmp_path: Path) -> None:
    for offset, label in enumerate(("a", "b")):
        write_photos(tmp_path, label, 20, 100 * offset)
    for i in range(5):
        (tmp_path / "a" / f"copy{i}.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    data = quick(tmp_path, 0.25, seed=1)
    again, other = quick(tmp_path, 0.25, seed=1), quick(tmp_path, 0.25, seed=2)
    assert np.array_equal(data.val, again.val) and not np.array_equal(data.val, other.val)
    sides = {data.hashes[i] for i in data.train} & {data.hashes[i] for i in data.val}
    assert not sides and len(set(data.train) | set(data.val)) == 45
    assert np.bincount(data.labels[data.val]).tolist() == [6, 5] == np.bincount(other.labels[other.val]).tolist()


def test_the_split_does_not_depend_on_names(tmp_path: Path) -> None:
    for label, start in (("a", 0), ("b", 100)):
        write_photos(tmp_path / "one", label, 12, start)
        (tmp_path / "two" / label).mkdir(parents=True)
        for number, file in enumerate(sorted((tmp_path / "one" / label).iterdir(), reverse=True)):
            (tmp_path / "two" / label / f"{number}.png").write_bytes(file.read_bytes())
    assert quick(tmp_path / "one").fingerprint == quick(tmp_path / "two").fingerprint


def test_photos_of_the_test_split_alone_teach_nothing(tmp_path: Path) -> None:
    for start, label in enumerate(("test/ant", "test/bee")):
        write_photos(tmp_path, label, 2, start=10 * start)
    with pytest.raises(SajiError, match=r"has photos of the test split alone; add others to learn from, in train/"):
        quick(tmp_path)


def test_photos_of_the_test_split_that_measure_nothing_are_told(tmp_path: Path) -> None:
    for number, (label, photos) in enumerate({"train/ant": 4, "train/bee": 4, "test/ant": 3, "test/cat": 2}.items()):
        write_photos(tmp_path, label, photos, start=10 * number)
    shutil.copy(tmp_path / "train/bee/10.png", tmp_path / "test/ant")
    data = quick(tmp_path)
    assert data.findings.measuring == len(data.test.photos) == 3
    told = describe(data.findings)
    assert "3 of 6 photos of a test split measure the accuracy" in told
    assert "the test split's photos of 'cat' measure nothing, as no others have that label" in told


def test_look_alikes_are_told_apart_and_stay_on_one_side(copies: Path, looked: tuple[Data, Path]) -> None:
    data, cache = looked
    assert sorted((group.kind, sum(map(len, group.pictures))) for group in data.findings.groups) == [
        ("same picture", 4),
        ("same scene", 2),
    ]
    for seed in range(8):
        data = load_data(copies, 0.4, seed, cache=cache)
        assert all(len(sides) == 1 for sides in scenes_of(data)) and not data.findings.leaks
        assert np.bincount(data.labels[data.val]).tolist() == [4, 5]
    assert quick(copies).findings.groups == []


def test_what_was_found_is_remembered_by_content(
    copies: Path, looked: tuple[Data, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "find_duplicates", lambda *_: pytest.fail("looked again"))
    for number, file in enumerate(sorted(copies.rglob("*.*"), reverse=True)):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        (tmp_path / file.parent.name / f"{number}{file.suffix}").write_bytes(file.read_bytes())
    assert load_data(tmp_path, 0.4, 0, cache=looked[1]).fingerprint == looked[0].fingerprint


@pytest.mark.parametrize("time", [2, 3], ids=["looked at", "compared"])
@pytest.mark.parametrize("what", [OSError(5, "Input/output error"), b"another file"], ids=["gone", "changed"])
def test_a_photo_that_is_not_read_again_while_look_alikes_are_sought_is_a_sentence_and_nothing_is_kept(
    time: int, what: OSError | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, label in enumerate("ab"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for seed in range(2):
            drawn(2 * number + seed).save(tmp_path / "photos" / label / f"{seed}.png")
    victim, times, read = tmp_path / "photos/a/1.png", [0], Path.read_bytes
    Image.open(tmp_path / "photos/a/0.png").save(victim, compress_level=0)  # other bytes, the same picture

    def stutter(path: Path) -> bytes:
        times[0] += path == victim
        if path == victim and times[0] == time:
            if isinstance(what, OSError):
                raise what
            return what
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stutter)
    monkeypatch.setattr(duplicates, "Backbone", lambda: lambda squares: np.full((len(squares), 1280), 1280**-0.5))
    with pytest.raises(SajiError, match=rf"^{victim} .* type the same again$"):
        load_data(tmp_path / "photos", 0.4, 0, cache=tmp_path / "cache")
    assert times == [time] and not [*tmp_path.glob("cache/*")]
    found = load_data(tmp_path / "photos", 0.4, 0, cache=tmp_path / "cache")
    assert [group.kind for group in found.findings.groups] == ["same picture"]


def test_a_class_whose_scenes_all_exceed_the_share_is_still_validated(tmp_path: Path) -> None:
    write_photos(tmp_path, "b", 10, 100)
    write_photos(tmp_path, "a", 2)
    for i in range(8):
        (tmp_path / "a" / f"copy{i}.png").write_bytes((tmp_path / "a" / f"{i % 5 // 3}.png").read_bytes())
    data = quick(tmp_path, 0.1)
    assert np.bincount(data.labels[data.val]).tolist() == [3, 1]


def test_a_class_of_one_scene_is_one_sentence(tmp_path: Path) -> None:
    photos, out = tmp_path / "set", tmp_path / "out"
    write_photos(photos, "b", 4, 100)
    write_photos(photos, "a", 1)
    (photos / "a" / "copy.png").write_bytes((photos / "a" / "0.png").read_bytes())
    [sentence] = quick(photos).findings.one_sided
    assert "validation side of the split has no photo of 'a', as photos of one scene stay together" in sentence
    done = house.here("check", photos, "--out", out, "--json")
    assert done.status == 0 and json.loads(done.out)["one_sided"] == [sentence]
    assert sentence in (out / "data" / "set" / "data.md").read_text("utf-8")
    assert "sides without a class: 1" in house.here("check", photos, "--out", out, "--strict").last
    assert house.here("training", "--data", photos, "--out", out).last == f"saji: {sentence}"


def test_a_given_split_that_leaks_is_reported(tmp_path: Path) -> None:
    for label in ("a", "b"):
        write_photos(tmp_path / "train", label, 4, ord(label))
        write_photos(tmp_path / "val", label, 2, ord(label))
        write_photos(tmp_path / "val", label, 1, 300 + ord(label))
    write_photos(tmp_path / "test", "a", 1, 300 + ord("a"))
    report = quick(tmp_path).findings
    assert report.leaks == dict.fromkeys(
        ["val/a/97.png", "val/a/98.png", "val/b/98.png", "val/b/99.png", "test/a/397.png"], "identical"
    )
    assert "LEAKS: 5 of 7 held-out photos show what another side shows too (5 identical)" in describe(report)


def test_the_accuracy_without_what_leaks_is_told(tmp_path: Path) -> None:
    """Near-duplicates of training photos among the validation photos: a network that learnt by heart knows them."""
    for label, start in (("a", 40), ("b", 50)):
        for side, seeds in (("train", range(start, start + 3)), ("val", range(start + 5, start + 7))):
            (tmp_path / side / label).mkdir(parents=True)
            for seed in seeds:
                drawn(seed).save(tmp_path / side / label / f"{seed}.png")
    drawn(40).resize((200, 150)).save(tmp_path / "val" / "a" / "copy.jpg", quality=60)
    drawn(51).crop((20, 20, 240, 190)).save(tmp_path / "val" / "b" / "copy.jpg", quality=60)
    data = load_data(tmp_path, 0.2, 0)
    assert [data.photos[i].path.name for i in data.leaking] == ["copy.jpg", "copy.jpg"]
    known = np.isin(data.val, data.leaking) | (data.labels[data.val] == 0)  # all of a, and of b the copy
    logits = np.where(known, 5.0, -5.0)[:, None] * np.eye(2)[data.labels[data.val]]
    honest = without_leaks(data, logits)
    assert honest and (honest.leaking, honest.photos, honest.accuracy) == (2, 4, 0.5)
    leaking = without_leaks(replace(data, val=data.leaking), logits[:2])
    assert leaking and leaking.accuracy is None
    clean = replace(data, val=np.setdiff1d(data.val, data.leaking), leaking=data.leaking[:0])
    assert without_leaks(clean, logits[:4]) is None


def test_scenes_are_numbered_by_content() -> None:
    hashes = ["d", "b", "a", "c", "b"]
    assert scene_numbers([[[[0], [2]]], [[[1, 4]]]], hashes).tolist() == [0, 1, 0, 2, 1]
    assert scene_numbers([[[[0], [2]]], [[[1, 4]]]], hashes[:2]).tolist() == [1, 0]


def test_the_same_picture_under_two_labels_is_reported(tmp_path: Path) -> None:
    for label, start in (("a", 0), ("b", 100)):
        write_photos(tmp_path, label, 4, start)
    (tmp_path / "b" / "0.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    report = quick(tmp_path).findings
    assert report.two_labels == [["a/0.png (a)", "b/0.png (b)"]]
    assert "pictures with two labels: 1" in describe(report) and "a/0.png (a) = b/0.png (b)" in page(report)


def suspects(folder: Path) -> dict[str, str]:
    """A file of each suspicious kind, by what must be said of it."""
    frames = [noise(seed) for seed in range(2)]
    noise(0).resize((90, 63)).save(folder / "a.png")
    Image.effect_noise(SIZE, 4).convert("RGB").save(folder / "b.png")
    noise(0).resize((301, 100)).save(folder / "c.png")
    noise(0).save(folder / "d.jpg", "PNG")
    noise(0).save(folder / "e", "JPEG")
    frames[0].save(folder / "f.gif", save_all=True, append_images=frames[1:])
    noise(0).convert("CMYK").save(folder / "g.jpg")
    kinds = ("tiny (90×63", "blank", "extreme aspect (301×100", "wrong extension (it is PNG, named .jpg")
    return dict(zip("abcdefg", (*kinds, "wrong extension (it is JPEG", "animated", "CMYK"), strict=True))


def test_suspicious_files_are_named_by_kind(tmp_path: Path) -> None:
    expected = suspects(tmp_path)
    for path in tmp_path.iterdir():
        (what,) = examine(path).suspicious
        assert what.startswith(expected[path.stem])


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.png", "a.webp", "two views.jpg"])
def test_an_honest_photo_is_not_suspicious(tmp_path: Path, name: str) -> None:
    views = {"format": "MPO", "save_all": True, "append_images": [noise(1)]} if "views" in name else {}
    noise(0).save(tmp_path / name, **views)
    assert examine(tmp_path / name).suspicious == ()


def test_a_photo_that_only_the_decoder_reads_is_examined_as_any_other(tmp_path: Path) -> None:
    noise(0).save(tmp_path / "a.png")
    comment = struct.pack(">I4s13sI", 13, b"tEXt", b"Comment\0oh no", 0)
    plain = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(plain[:33] + comment + plain[33:])
    with pytest.raises(UnidentifiedImageError):  # at the checksum
        Image.open(tmp_path / "b.png")
    assert examine(tmp_path / "b.png").suspicious == examine(tmp_path / "a.png").suspicious == ()


@needs_shared
def test_real_odd_files() -> None:
    odd = {path.name: examine(path) for path in (SHARED / "odd_files" / "format").iterdir()}
    assert [name for name, facts in odd.items() if facts.unreadable] == ["git_lfs_pointer.png"]
    kinds = {name: {what.partition(" (")[0] for what in facts.suspicious} for name, facts in odd.items()}
    assert kinds["gif_10x10_named.jpg"] == {"tiny", "blank", "wrong extension"}
    assert kinds["white_box_64x64.jpg"] == {"blank"} and kinds["extreme_aspect_440x114.jpg"] == {"extreme aspect"}
    assert Counter(kind for found in kinds.values() for kind in found)["wrong extension"] == 9
    for name in ("UPPER_CASE.JPG", "rgba.webp", "huge_8021x5348_progressive.jpg", "exif_orientation_0.jpg"):
        assert kinds[name] == set()


def test_unreadable_files_are_counted_and_named(tmp_path: Path) -> None:
    for label in ("a", "b"):
        write_photos(tmp_path, label, 4)
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no picture")
    noise(0).save(tmp_path / "b" / "cut.jpg")
    (tmp_path / "b" / "cut.jpg").write_bytes((tmp_path / "b" / "cut.jpg").read_bytes()[:-900])
    with open(tmp_path / "b" / "film.mp4", "wb") as film:
        film.truncate(3 * 10**9)  # a hole: takes no room on the disk, and must not be read into memory
    data = quick(tmp_path)
    assert len(data.photos) == 8
    broken, cut, film = data.findings.unreadable
    assert broken.startswith("a/broken.jpg: is no picture") and cut.startswith("b/cut.jpg: is damaged")
    assert film == "b/film.mp4: has more than 2,000,000,000 bytes"


def test_unicode_long_and_undecodable_names(tmp_path: Path) -> None:
    write_photos(tmp_path, "ソト・アヤム", 3)
    write_photos(tmp_path, "b", 3, 10)
    undecodable = tmp_path / "b" / os.fsdecode(b"caf\xe9.png")
    (tmp_path / "b" / "10.png").rename(tmp_path / "b" / f"{'é' * 120}.png")
    (tmp_path / "b" / "11.png").rename(undecodable)
    (tmp_path / "b" / "copy.png").write_bytes(undecodable.read_bytes())
    report = quick(tmp_path, 0.4).findings
    assert r"b/caf\\udce9.png" in page(report) and "ソト・アヤム" in page(report)
    json.dumps(asdict(report), ensure_ascii=False).encode()
    assert contact_sheet(report).width > 300
    assert len(dataset.run_name(tmp_path / ("ü" * 120)).encode()) < 200


def test_data_that_cannot_train_is_one_sentence(tmp_path: Path) -> None:
    write_photos(tmp_path / "one", "a", 3)
    with pytest.raises(SajiError, match="needs at least two"):
        load_data(tmp_path / "one", 0.2, 0)
    write_photos(tmp_path / "few", "a", 3)
    write_photos(tmp_path / "few", "b", 1)
    with pytest.raises(SajiError, match=r"too few readable photos of 'b' \(1\); .* or drop the class$"):
        load_data(tmp_path / "few", 0.2, 0)
    write_photos(tmp_path / "bad", "a", 3)
    (tmp_path / "bad" / "b").mkdir()
    (tmp_path / "bad" / "b" / "x.jpg").write_bytes(b"?")
    with pytest.raises(SajiError, match=r"of 'b' \(0\); .* \(1 of 4 files could not be read\)$"):
        load_data(tmp_path / "bad", 0.2, 0)


def test_all_classes_of_too_few_photos_are_told_at_once(tmp_path: Path) -> None:
    for i in range(12):
        write_photos(tmp_path, f"c{i:02}", 1 if i else 3)
    with pytest.raises(SajiError, match=r"photos of 'c01' \(1\), .*'c08' \(1\), and 3 more; a class needs"):
        load_data(tmp_path, 0.2, 0, look_alikes=False)


def test_a_class_that_the_test_leaves_too_little_of_says_so(tmp_path: Path) -> None:
    for label in "ab":
        write_photos(tmp_path, label, 2)
    held = r"photos of 'a' \(1\), 'b' \(1\); .* \(a test split or --test-share holds 2 back\)$"
    with pytest.raises(SajiError, match=held):
        load_data(tmp_path, 0.2, 0, look_alikes=False, test_share=0.2)


@pytest.mark.parametrize("by", ["what is free", "what can be reserved"])
def test_too_little_room_for_the_comparison_is_told_before_it_starts(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label, start in (("a", 0), ("b", 100)):
        write_photos(tmp_path, label, 2, start)
    if by == "what is free":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr(duplicates.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    else:
        full = Path("/dev/full")
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: full.write_bytes(b"?"), raising=False)
    with pytest.raises(SajiError, match=r"^comparing 4 photos needs 0 MB in \S+ \(No space left .*set TMPDIR"):
        load_data(tmp_path, 0.5, 0, cache=tmp_path / "cache")
    assert not [*tmp_path.glob("cache/*")]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no room")
def test_the_room_of_what_is_mapped_into_memory_is_taken_before(tmp_path: Path) -> None:
    """Where it is not, a disk that fills in the meantime ends the process by a signal."""
    with open(tmp_path / "file", "w+b") as file:
        records = duplicates._room(file, 20)
        assert (tmp_path / "file").stat().st_blocks * 512 >= records.nbytes > 20 * 80_000


def check(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "check", *map(str, arguments)])
    main()


def test_a_name_neither_breaks_a_line_nor_colours_it(tmp_path: Path) -> None:
    odd = "new\nline \x1b[31mred.jpg"
    for label, start in (("a", 0), ("b", 100)):
        write_photos(tmp_path / "set", label, 4, start)
        (tmp_path / "set" / label / odd).write_bytes(b"?")
    report = quick(tmp_path / "set").findings
    for text in (describe(report), page(report)):
        assert r"\x1b[31mred.jpg" in text.replace(r"\\", "\\").replace(r"\[", "[")
        assert all(line.isprintable() for line in text.splitlines())
    assert all(line.startswith("data: ") for line in describe(report).splitlines())
    (tmp_path / "labels.csv").write_text(f"filename,label\n{odd.partition(' ')[2]},a\n")
    said = house.here("check", tmp_path)
    assert said.refused and said.err.count("\n") == 1 and said.last.isprintable() and r"\x1b[31mred.jpg" in said.last
    figures = Evaluation(0, 0, 0, RejectionFigures(None, None, None, None, None))
    lines = described(figures, [], [f"{odd}: is no picture"], [odd]).splitlines()
    assert all(line.isprintable() for line in lines) and [line.count("red.jpg") for line in lines[-2:]] == [1, 1]


def test_names_are_text_in_the_page() -> None:
    evil = "<img src=x> [a](javascript:b) `c`|d"
    lists = {key: [evil] for key in ("unreadable", "problems", "perhaps", "notes", "one_sided")}
    counts = {"train": 1, "val": 1, "test": 1}
    told = Findings(source=evil, used=counts, per_class={evil: counts}, **lists)
    for sign in ("<img", "[a]", "`c", "|d"):
        left = page(told).replace("\\" + sign, "")
        assert sign not in left


@pytest.fixture()
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look-alikes are looked for, which takes seconds."""
    monkeypatch.setattr(duplicates, "find_duplicates", lambda *_: [])


def test_photos_are_not_replaced_by_the_report_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: None
) -> None:
    for label in ("a", "b"):
        write_photos(tmp_path / "data" / "food", label, 3, ord(label))
    for notes in ("data.md", "data.json"):
        (tmp_path / "data" / "food" / notes).write_text("my own")
    before = sorted(tmp_path.rglob("*.png"))
    with pytest.raises(SajiError, match="would take the place of the photos"):
        check(monkeypatch, tmp_path / "data" / "food", "--out", tmp_path)  # where reports are in data/NAME, too
    assert sorted(tmp_path.rglob("*.png")) == before


def test_check_writes_a_page_json_and_a_contact_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, remembered: None
) -> None:
    for side, count in (("train", 4), ("val", 2)):
        for label in ("a", "b"):
            write_photos(tmp_path / "set" / side, label, count, ord(label))
    check(monkeypatch, tmp_path / "set", "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    folder = tmp_path / "out" / "data" / "set"
    assert sorted(f.name for f in folder.iterdir()) == ["data.json", "data.md", "duplicates.png"]
    report = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    assert (
        len(report["leaks"]) == 4 and "LEAKS: 4 of 4" in printed and "LEAKS: 4 of 4" in (folder / "data.md").read_text()
    )
    sheet = Image.open(folder / "duplicates.png").convert("RGB")
    assert sheet.height > 4 * 160 and any(red > 150 and green < 50 for _, (red, green, _) in sheet.getcolors(10**6))
    with pytest.raises(GateFailed, match="held-out photos that leak: 4"):
        check(monkeypatch, tmp_path / "set", "--out", tmp_path / "out", "--strict", "--json")
    assert json.loads(capsys.readouterr().out) == report


def test_a_clean_set_passes_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: None) -> None:
    for label, start in (("a", 0), ("b", 100)):
        write_photos(tmp_path / "set", label, 4, start)
    check(monkeypatch, tmp_path / "set", "--out", tmp_path / "out", "--strict")
    assert not (tmp_path / "out" / "data" / "set" / "duplicates.png").exists()


def test_a_full_disk_leaves_the_report_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: None
) -> None:
    for label, start in (("a", 0), ("b", 100)):
        write_photos(tmp_path / "set", label, 4, start)
    check(monkeypatch, tmp_path / "set", "--out", tmp_path / "out")
    before = (tmp_path / "out" / "data" / "set" / "data.json").stat().st_mtime_ns

    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        check(monkeypatch, tmp_path / "set", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "data" / "set" / "data.json").stat().st_mtime_ns == before
    assert [f.name for f in (tmp_path / "out" / "data").iterdir()] == ["set"]


def test_bad_input_on_the_command_line_is_one_sentence(tmp_path: Path) -> None:
    write_photos(tmp_path / "set", "a", 3)
    done = subprocess.run(
        [sys.executable, "-m", "training", "check", str(tmp_path / "set")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "needs at least two" in done.stderr


def test_the_contact_sheet_is_bounded(tmp_path: Path) -> None:
    group = Group("identical", 0, False, [[PhotoFacts("gone.png", "a" * 200, "train", "")] * 30])
    sheet = contact_sheet(Findings(str(tmp_path), groups=[group] * 1000))
    assert sheet.width < 1500 and sheet.height < 10_000


@pytest.mark.parametrize("augmentation", ["none", "flip", "crop", "trivial"])
def test_training_photos_are_uint8_of_the_right_size(sample: Path, tmp_path: Path, augmentation: str) -> None:
    recipe = Recipe(image_size=32, augmentation=augmentation, smallest_crop=0.5)
    photos = TrainPhotos(quick(sample), recipe, tmp_path)
    image, label = photos[0, 0]
    assert image.shape == (32, 32, 3) and image.dtype == torch.uint8 and label in range(5)
    assert image.float().std() > 1


DAMAGES = {
    "an index that is empty": lambda index, pixels: index.write_bytes(b""),
    "an index of another saji": lambda index, pixels: index.write_text('{"a": 1}'),
    "an index of other shapes": lambda index, pixels: index.write_text(index.read_text().replace("42", "24")),
    "no pixels": lambda index, pixels: pixels.unlink(),
    "pixels that are cut off": lambda index, pixels: pixels.write_bytes(pixels.read_bytes()[:-500]),
    "pixels that are black": lambda index, pixels: pixels.write_bytes(bytes(pixels.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_decoded_photos_that_are_damaged_are_decoded_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, label in enumerate("ab"):
        write_photos(tmp_path / "photos", label, 2, start=10 * number)
    data, recipe, cache = quick(tmp_path / "photos"), Recipe(image_size=32, augmentation="none"), tmp_path / "cache"
    good = [TrainPhotos(data, recipe, cache)[0, i][0] for i in range(2)]
    DAMAGES[damage](*sorted(cache.iterdir()))
    photos = TrainPhotos(data, recipe, cache)
    assert all(torch.equal(photos[0, i][0], good[i]) for i in range(2))
    monkeypatch.setattr("training.run.batches.decode", None)
    TrainPhotos(data, recipe, cache)  # and what was written then is believed


READERS = {
    "decoded once": lambda data, cache: TrainPhotos(data, Recipe(image_size=32), cache),
    "validation": lambda data, cache: dataset.validation_set(data, Geometry.for_size(32), silent),
    "calibration": lambda data, cache: dataset.calibration_set(data, Geometry.for_size(32), 9, 0, silent),
    "released": lambda data, cache: release._seen(_Idle(), data, data.train, Geometry.for_size(32)),
    "held out": lambda data, cache: held_out.outputs_for(_Idle(), data.test.photos, Geometry.for_size(32)),
}


class _Idle(torch.nn.Module):
    """A network that is asked nothing, as its photos cannot be had."""


@pytest.mark.parametrize("gone", [False, True], ids=["changed", "gone"])
@pytest.mark.parametrize("reader", READERS)
def test_a_photo_that_is_another_one_by_now_is_a_sentence_and_leaves_no_pixels(
    reader: str, gone: bool, tmp_path: Path
) -> None:
    for number, label in enumerate("ab"):
        write_photos(tmp_path / "photos", label, 6, start=10 * number)
    data = load_data(tmp_path / "photos", 0.4, 0, look_alikes=False, test_share=0.2)
    for file in (tmp_path / "photos").rglob("*.png"):
        file.unlink() if gone else noise(int(file.stem) + 50).save(file)
    said = r"can no longer be read .*, and type the same again" if gone else r"has changed .* type the same again"
    with pytest.raises(SajiError, match=rf"^\S+\.png {said}"):
        READERS[reader](data, tmp_path / "cache")
    assert not [*tmp_path.glob("cache/*")]


@needs_shared
def test_real_look_alikes_put_on_both_sides_leak(tmp_path: Path) -> None:
    """Photos of food5, and the two halves of 12 groups of near-duplicates on opposite sides."""
    with open(SHARED / "near_duplicates" / "labels.csv", encoding="utf-8", newline="") as file:
        near = list(csv.DictReader(file))
    with open(SHARED / "food5" / "labels.csv", encoding="utf-8", newline="") as file:
        food = [row for row in csv.DictReader(file) if row["split"] == "val"][::10]
    chosen = [[row for row in near if row["group"] == str(group)][:2] for group in range(1, 13)]
    rows = [
        (f"near_duplicates/{r['filename']}", r["label"], s)
        for g in chosen
        for r, s in zip(g, ("train", "val"), strict=True)
    ]
    rows += [(f"food5/{r['filename']}", r["label"], ("train", "val")[i % 2]) for i, r in enumerate(food)]
    for name, _, _ in rows:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((SHARED / name).read_bytes())
    (tmp_path / "labels.csv").write_text("filename,label,split\n" + "".join(",".join(row) + "\n" for row in rows))
    labels = {label for _, label, _ in rows}
    assert labels == {"bakso", "gado_gado", "nasi_goreng", "rendang", "soto_ayam"}
    data = load_data(tmp_path, 0.2, 0)
    leaks = data.findings.leaks
    assert len(data.leaking) == len(leaks)
    assert len(leaks) >= 11 and all(name.startswith("near_duplicates") for name in leaks)
