"""Photos as other people's cameras, computers and exports leave them: read as every viewer shows them, or one sentence.

Each promise was broken in public for somebody else's program; the comments name where.
"""

import csv
import io
import json
import os
import signal
import struct
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import house
import numpy as np
import pytest
from house import Geometry, drawn
from PIL import Image, ImageFile

from runtime import preprocess

TURN = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # EXIF orientation 6: to be turned clockwise to stand upright


def photo_set(folder: Path, labels: tuple[str, ...] = ("ant", "bee"), each: int = 4) -> Path:
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            drawn(100 * number + i).save(folder / label / f"{i}.png")
    return folder


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """An EXIF entry: what it tells, its type by number, how many values, and the values or where they stand."""
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")


def lying(*entries: bytes, room: int = 64) -> bytes:
    """A JPEG of 96 × 80 that its EXIF turns upright to 80 × 96, with more entries around the orientation."""
    ordered = sorted([TURN, *entries], key=lambda each: struct.unpack("<H", each[:2]))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(ordered)) + b"".join(ordered) + bytes(4 + room)
    file = io.BytesIO()
    drawn(0).save(file, "JPEG", exif=exif)
    return file.getvalue()


# python-pillow/Pillow#8965, #8605, #4665
ODD_VALUES = {
    "resolution unit, signed": entry(0x0128, 8, 1, struct.pack("<h", -1)),
    "resolution unit, undefined": entry(0x0128, 7, 1, b"\2"),
    "resolution, text": entry(0x011A, 2, 3, b"72"),
    "photometric interpretation, text": entry(0x0117, 2, 2, b"1"),
    "bits, text": entry(0x0102, 2, 2, b"8"),
    "compression, text": entry(0x0103, 2, 2, b"6"),
    "width, negative": entry(0x0100, 9, 1, struct.pack("<i", -5)),
    "description, float": entry(0x010E, 11, 1, struct.pack("<f", 1)),
    "position of colours, signed": entry(0x0213, 8, 1, struct.pack("<h", -1)),
}
KNOWN_VALUES = {
    "date, signed": entry(0x0132, 9, 1, struct.pack("<i", -5)),
    "software, of type 0": entry(0x0131, 0, 1, b""),
    "software, of no length": entry(0x0131, 2, 0, b""),
    "another block, text": entry(0x8769, 2, 3, b"ab"),
    "another block, this one": entry(0x8769, 4, 1, struct.pack("<I", 8)),
}


@pytest.mark.parametrize(
    "value",
    [
        *(pytest.param(v, id=k) for k, v in ODD_VALUES.items()),
        *(pytest.param(v, id=k) for k, v in KNOWN_VALUES.items()),
    ],
)
def test_a_photo_with_an_odd_exif_value_stands_upright(value: bytes) -> None:
    assert house.decode(lying(value)).size == (80, 96)


def test_classify_takes_photos_with_odd_exif_values(model: Path, tmp_path: Path) -> None:
    for number, value in enumerate(ODD_VALUES.values()):
        (tmp_path / f"{number}.jpg").write_bytes(lying(value))
    said = house.here("runtime", "classify", tmp_path, "--json", "--model", model)
    assert said.status == 0 and said.out.count('"label"') == len(ODD_VALUES), said


# python-pillow/Pillow#518, #3337, #4529
BROKEN_VALUES = {
    "maker, outside of the block": entry(0x010F, 2, 40, struct.pack("<I", 60_000)),
    "description, outside of the block": entry(0x010E, 5, 1, struct.pack("<I", 60_000)),
    "maker, longer than any file": entry(0x010F, 2, 2**31, struct.pack("<I", 60)),
}


@pytest.mark.parametrize("value", BROKEN_VALUES.values(), ids=BROKEN_VALUES)
def test_a_broken_exif_entry_before_the_orientation_does_not_lay_the_photo_on_its_side(value: bytes) -> None:
    assert house.decode(lying(value, room=0)).size == (80, 96)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(entry(0x0131, 2, 40, struct.pack("<I", 60_000)), id="after the orientation"),
        pytest.param(entry(0x010F, 99, 1, b""), id="of a type that does not exist"),
    ],
)
def test_other_broken_exif_entries_do_not_either(value: bytes) -> None:
    assert house.decode(lying(value, room=0)).size == (80, 96)


def test_a_photo_of_two_views_is_read_as_quickly_as_its_first_view_alone() -> None:
    """A phone's "MPO" is a JPEG with a second one behind it: decoded at the same fraction of its size."""
    photo, jpeg, both = drawn(0, (400, 300)), io.BytesIO(), io.BytesIO()
    photo.save(jpeg, "JPEG")
    photo.save(both, "MPO", save_all=True, append_images=[photo.resize((80, 60))])
    assert Image.open(both).format == "MPO"
    assert house.decode(both.getvalue(), 64).size == house.decode(jpeg.getvalue(), 64).size == (100, 75)


@pytest.mark.parametrize("side", [55, 64, 73])
def test_a_jpeg_is_never_decoded_smaller_than_asked(side: int) -> None:
    for times in (1, 2, 4, 8):
        for width in (times * side - 1, times * side, times * side + 1):
            jpeg = io.BytesIO()
            Image.new("RGB", (width, width + 9)).save(jpeg, "JPEG")
            assert min(house.decode(jpeg.getvalue(), side).size) >= min(side, width), width


@contextmanager
def impatient_threads() -> Iterator[None]:
    """Threads give way to each other as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_decoding_in_threads_leaves_the_programs_warnings_alone() -> None:
    photo = io.BytesIO()
    drawn(0, (200, 150)).save(photo, "JPEG")
    with warnings.catch_warnings():
        before = list(warnings.filters)
        with impatient_threads(), ThreadPoolExecutor(8) as pool:
            sizes = [picture.size for picture in pool.map(house.decode, [photo.getvalue()] * 400)]
        assert sizes == [(200, 150)] * 400
        assert warnings.filters == before


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photo_cut_short_is_refused_where_the_program_reads_such_photos(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    photo = io.BytesIO()
    drawn(0, (200, 150)).save(photo, kind)
    cut = photo.getvalue()[: len(photo.getvalue()) // 2]
    for source in (cut, io.BytesIO(cut), Image.open(io.BytesIO(cut))):
        with pytest.raises(house.BadPhoto, match=r"is damaged .*; send a complete file"):
            house.decode(source)
        assert ImageFile.LOAD_TRUNCATED_IMAGES
    Image.open(io.BytesIO(cut)).load()  # as the program wants it


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no forks here")
def test_a_fork_amid_decoding_decodes_and_has_the_programs_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a loader of PyTorch's that starts its workers while another thread reads a photo."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    photo = io.BytesIO()
    drawn(0, (200, 150)).save(photo, "JPEG")
    with preprocess._PILLOW_AS_OURS, preprocess._PILLOW_AS_OURS.lock:
        if not (child := os.fork()):
            signal.alarm(20)
            right = house.decode(photo.getvalue()).size == (200, 150) and ImageFile.LOAD_TRUNCATED_IMAGES
            os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# pytorch/vision#2831, open-mmlab/mmpretrain#507, bghira/SimpleTuner#94, mbrrg/synology-thumbgen#11
BESIDE_PHOTOS = {
    "Jupyter": "ant/.ipynb_checkpoints/1-checkpoint.png",
    "macOS, unpacked": "bee/__MACOSX/2.png",
    "macOS, on a share": "bee/.AppleDouble/2.png",
    "a NAS of Synology": "bee/@eaDir/2.png/SYNOPHOTO_THUMB_SM.jpg",
    "a NAS of Synology, beside the classes": "@eaDir/x.jpg",
    "a NAS's waste basket": "ant/#recycle/2.png",
    "a NAS's waste basket, beside the classes": "#recycle/2.png",
    "a NAS of QNAP": "bee/.@__thumb/2.png",
    "Linux's thumbnails": "bee/.thumbnails/2.jpg",
    "Windows' waste basket": "$RECYCLE.BIN/2.jpg",
}


@pytest.mark.parametrize("path", [pytest.param(path, id=maker) for maker, path in BESIDE_PHOTOS.items()])
def test_what_other_programs_put_beside_photos_is_no_photo(path: str, tmp_path: Path) -> None:
    photo_set(tmp_path)
    (tmp_path / path).parent.mkdir(parents=True)
    drawn(7, (30, 24)).save(tmp_path / path)
    photos = house.read_photo_set(tmp_path).photos
    assert sorted(photo.label for photo in photos) == ["ant"] * 4 + ["bee"] * 4


def test_hidden_folders_beside_the_classes_are_no_class(tmp_path: Path) -> None:
    photo_set(tmp_path)
    for name in (".ipynb_checkpoints", "__MACOSX", ".git"):
        (tmp_path / name).mkdir()
        drawn(7).save(tmp_path / name / "0.png")
    assert {photo.label for photo in house.read_photo_set(tmp_path).photos} == {"ant", "bee"}


def test_classifying_a_folder_passes_over_a_nas_thumbnails(model: Path, tmp_path: Path) -> None:
    for path in ("ant.png", "@eaDir/ant.png/SYNOPHOTO_THUMB_SM.jpg", "__MACOSX/ant.png", "#recycle/bee.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        drawn(0).save(tmp_path / path)
    said = house.here("runtime", "classify", tmp_path, "--json", "--model", model)
    assert said.status == 0 and [json.loads(line)["photo"] for line in said.out.splitlines()] == [
        str(tmp_path / "ant.png")
    ], said


# ultralytics/yolov5#11775, roboflow/roboflow-python#153, wengsengh/Car-Models-Classifier#1, shervinmin/DeepCovid#4
@pytest.mark.parametrize("name", ["test", "Testing"])
def test_a_set_of_train_and_test_alone_is_split_or_told_what_is_missing(name: str, tmp_path: Path) -> None:
    photo_set(tmp_path / "set" / "train", each=8)
    photo_set(tmp_path / "set" / name)
    said = house.here("check", tmp_path / "set", "--out", tmp_path / "out")
    assert said.status == 0 or (said.refused and "no val" in said.last and "test" in said.last), said


def table(folder: Path, rows: list[tuple[str, str]], encoding: str = "utf-8") -> Path:
    """A `labels.csv` as a spreadsheet writes it."""
    folder.mkdir(exist_ok=True)
    with open(folder / "labels.csv", "w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([("filename", "label"), *rows])
    return folder


# microsoft/CNTK#1321, abbyy/barcode_detection_benchmark#2, roboflow/supervision#2581
@pytest.mark.parametrize("start", ["", ".\\"])
def test_a_csv_written_on_windows_finds_its_photos_or_names_the_backslashes(start: str, tmp_path: Path) -> None:
    data = photo_set(tmp_path / "set", each=6)
    table(data, [(f"{start}{label}\\{i}.png", label) for label in ("ant", "bee") for i in range(6)])
    said = house.here("check", data, "--out", tmp_path / "out")
    assert said.status == 0 or (said.refused and "backslash" in said.last.lower()), said


# treeverse/dvc#7668, #5486
@pytest.mark.parametrize("what", ["photos", "folders"])
def test_photos_beside_a_csv_may_be_links_into_a_cache(what: str, tmp_path: Path) -> None:
    cache, data, rows = photo_set(tmp_path / "cache", each=6), tmp_path / "set", []
    data.mkdir()
    for label in ("ant", "bee"):
        if what == "folders":
            (data / label).symlink_to(cache / label)
        for i in range(6):
            name = f"{label}/{i}.png" if what == "folders" else f"{label}{i}.png"
            if what == "photos":
                (data / name).symlink_to(cache / label / f"{i}.png")
            rows.append((name, label))
    said = house.here("check", table(data, rows), "--out", tmp_path / "out", "--json")
    assert said.status == 0 and json.loads(said.out)["listed"] == 12, said


# visual-layer/fastdup#204, ultralytics/ultralytics#13936
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_like_numbers_and_missing_values_stay_these_very_names(encoding: str, tmp_path: Path) -> None:
    labels = ["007", "10", "2", "NA", "None", "nan", "null", "true", "1e3", "a, b", 'said "x"']
    rows = []
    for number, label in enumerate(labels):
        for i in range(2):
            rows.append((f"{number}_{i}.png", label))
            drawn(10 * number + i, (24, 20)).save(tmp_path / rows[-1][0])
    found = house.read_photo_set(table(tmp_path, rows, encoding)).photos
    assert [(photo.path.name, photo.label) for photo in found] == rows


def test_the_check_counts_labels_like_numbers_by_these_very_names(tmp_path: Path) -> None:
    labels = ("007", "2", "NA", "true")
    rows = [(f"{label}_{i}.png", label) for label in labels for i in range(3)]
    for seed, (name, _) in enumerate(rows):
        (tmp_path / "set").mkdir(exist_ok=True)
        drawn(seed).save(tmp_path / "set" / name)
    said = house.here("check", table(tmp_path / "set", rows), "--out", tmp_path / "out", "--json")
    assert said.status == 0 and sorted(json.loads(said.out)["per_class"]) == sorted(labels), said


def test_a_label_that_only_the_test_part_shows_does_not_end_the_training(tmp_path: Path) -> None:
    for part in ("train", "val"):
        photo_set(tmp_path / "set" / part)
    photo_set(tmp_path / "set" / "test", ("ant", "cat"))
    said = house.here("check", tmp_path / "set", "--out", tmp_path / "out", "--json")
    assert said.status == 0, said


# NVIDIA/DIGITS#85, python-pillow/Pillow#5991
chessboard = Image.fromarray((np.indices((80, 96)).sum(0) % 2 * 255).astype(np.uint8))


def with_transparency(mode: str) -> Image.Image:
    photo = drawn(0).convert("L") if mode == "LA" else drawn(0)
    return Image.merge(mode, (*photo.split(), chessboard))


UNUSUAL = {
    "transparent": lambda: with_transparency("RGBA"),
    "transparent grey": lambda: with_transparency("LA"),
    "16-bit grey": lambda: Image.fromarray(np.asarray(drawn(0).convert("L"), np.uint16) * 256),
    "a palette": lambda: drawn(0).quantize(16),
    "grey": lambda: drawn(0).convert("L"),
    "colour": lambda: drawn(0),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_the_example_for_other_apps_sees_the_pixels_that_saji_sees(kind: str, model: Path, tmp_path: Path) -> None:
    UNUSUAL[kind]().save(tmp_path / "photo.png")
    example = house.module_at(house.EMBEDDING_EXAMPLE).Model(model)
    theirs = example.pixels(tmp_path / "photo.png").astype(int)
    ours = house.pixels(tmp_path / "photo.png", Geometry(**example.spec["geometry"]))
    assert np.abs(theirs - ours).max() <= 2
