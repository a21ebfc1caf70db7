"""Folders and listings as people have them: every way to write the same photos gives the same photos."""

import csv
import os
import re
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import house
import pytest
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.files import left_by_programs
from training.photos.photo_set import Photo, read_photo_set, spoken


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def listed(root: Path) -> list[tuple[str, str, str | None]]:
    """Each photo's path in the folder, class and split."""
    found = read_photo_set(root).photos
    return sorted((os.path.relpath(p.path, root), p.label, p.split) for p in found)


# Whatever a file system and a spreadsheet take: no slash, no NUL, no return (which spreadsheets read as a line's end)
NAMES = st.text(st.characters(exclude_characters="/\0\r\\", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
LINES = st.text(st.sampled_from("ab \n,;\t|\"'"), max_size=9)
LABELS = st.one_of(
    st.sampled_from(
        ["007", "7", "1e3", "NA", "nan", "None", "null", "true", "-", "=1+1", "train", "a,b", 'said "x"', "é"]
    ),
    st.text(st.characters(categories=("Lu", "Ll", "Nd", "Po", "Sm")), min_size=1, max_size=8),
)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.one_of(NAMES, LINES), min_size=1, max_size=4, unique_by=lambda n: unicodedata.normalize("NFC", n)
    ),
    label=LABELS,
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    form=st.sampled_from(["NFC", "NFD"]),
)
@example(names=["two\nlines"], label="x", delimiter=",", end="\n", encoding="utf-8", form="NFC")
@example(names=[" spaced "], label="x", delimiter=";", end="\n", encoding="utf-8", form="NFC")
@example(names=["crème"], label="brûlée", delimiter="\t", end="\r\n", encoding="utf-16", form="NFD")
def test_a_listing_is_read_however_it_was_written(
    names: list[str], label: str, delimiter: str, end: str, encoding: str, form: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, files = Path(folder), [f"{name}.jpg" for name in names if not re.match(r'\.| +"', name)]
        touch(root, *(unicodedata.normalize("NFC", file) for file in files))
        with open(root / "labels.csv", "w", newline="", encoding=encoding) as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
            writer.writerows([["filename", "label"], *([unicodedata.normalize(form, each), label] for each in files)])
        if files:
            found = read_photo_set(root).photos
            assert {photo.label for photo in found} == {label.strip()}
            assert sorted(p.path.name for p in found) == sorted(unicodedata.normalize("NFC", each) for each in files)


@pytest.mark.parametrize(
    "start", ["sep=;\n", "sep=;\r\n", "SEP=;\n", "\n", "\n \r\n;;\n", "\nsep=;\n\n", "sep=;\n;;\n"]
)
def test_excels_line_about_the_delimiter_and_blank_lines_are_no_header(start: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    text = f"{start}filename;label;split\na.jpg;x;train\nb.jpg;y, or z;val\n"
    (tmp_path / "labels.csv").write_text(text, newline="")
    assert listed(tmp_path) == [("a.jpg", "x", "train"), ("b.jpg", "y, or z", "val")]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_any_end_of_lines_is_told_before_the_columns_and_a_return_in_quotes_stays(end: str, tmp_path: Path) -> None:
    rows = ["filename\tlabel\tnote", '"a\nb.jpg"\tx\tred, hot, big, hot', '"a\rb.jpg"\ty\tno, not this, no, no']
    (touch(tmp_path, "a\nb.jpg", "a\rb.jpg") / "labels.csv").write_text(end.join(["", *rows, ""]), newline="")
    assert listed(tmp_path) == [("a\nb.jpg", "x", None), ("a\rb.jpg", "y", None)]


@pytest.mark.parametrize(
    "row", ['0.jpg, "ant, fried"', '"0.jpg" , "ant, fried"', ' "0.jpg", "ant, fried"', '0.jpg,"ant, fried"']
)
def test_a_space_ahead_of_quotes_is_no_part_of_a_cell(row: str, tmp_path: Path) -> None:
    (touch(tmp_path, "0.jpg") / "labels.csv").write_text(f"filename,label\n{row}\n")
    assert listed(tmp_path) == [("0.jpg", "ant, fried", None)]


def test_what_programs_leave_in_a_listing_is_no_fault_of_each_row(tmp_path: Path) -> None:
    """Two marks ahead, an end of lines that was written as text again, a picture in a column of its own."""
    field = csv.field_size_limit()
    rows = ["\ufeff\ufefffilename,label,thumbnail", f"0.jpg,ant,{'A' * 200_000}", "1.jpg,ant,", ""]
    (touch(tmp_path, "0.jpg", "1.jpg") / "labels.csv").write_text("\r\r\n".join(rows), "utf-8", newline="")
    assert listed(tmp_path) == [("0.jpg", "ant", None), ("1.jpg", "ant", None)]
    assert len(read_photo_set(tmp_path).problems) == 2 and csv.field_size_limit() == field


@pytest.mark.parametrize("sign", ["\u200b", "\ufeff", "\u00ad", "\ufe0f", "\u2060", "\u200d"])
def test_a_sign_that_nobody_sees_makes_no_class(sign: str, tmp_path: Path) -> None:
    (touch(tmp_path, "0.jpg", "1.jpg") / "labels.csv").write_text(
        f"filename,label\n0.jpg,ant\n1.jpg,ant{sign}\n", "utf-8"
    )
    with pytest.raises(house.SajiError, match=r"differ only by .* signs that nobody sees; merge them"):
        read_photo_set(tmp_path)


def test_flags_that_unseen_signs_tell_apart_are_two_classes() -> None:
    england, scotland = (
        "\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in f"gb{part}\x7f") for part in ("eng", "sct")
    )
    assert spoken(england) != spoken(scotland)


@pytest.mark.parametrize(
    "path", [r"ant\0.jpg", r".\ant\0.jpg", "ant//0.jpg", "./ant/0.jpg", "ant/../ant/0.jpg", " ant/0.jpg "]
)
def test_a_path_is_found_however_it_is_spelled(path: str, tmp_path: Path) -> None:
    touch(tmp_path, "ant/0.jpg")
    (tmp_path / "labels.csv").write_text(f"filename,label\n{path},x\n")
    assert listed(tmp_path) == [("ant/0.jpg", "x", None)]


@pytest.mark.parametrize("path", [r"..\other.jpg", "../other.jpg", "/etc/passwd", r"a\..\..\other.jpg"])
def test_a_path_out_of_the_folder_is_refused_however_it_is_spelled(path: str, tmp_path: Path) -> None:
    touch(tmp_path, "other.jpg", "set/0.jpg")
    (tmp_path / "set" / "labels.csv").write_text(f"filename,label\n0.jpg,y\n{path},x\n")
    with pytest.raises(house.SajiError, match="points outside its folder"):
        read_photo_set(tmp_path / "set")


def test_an_absolute_path_of_the_folder_is_inside_whatever_link_leads_there(tmp_path: Path) -> None:
    """As /data is a link to a disk, and /tmp to another folder on macOS; also to photos that are links into a cache."""
    touch(tmp_path, "disk/set/ant/0.jpg", "cache/1.jpg")
    (tmp_path / "data").symlink_to("disk")
    (tmp_path / "disk" / "set" / "1.jpg").symlink_to(tmp_path / "cache" / "1.jpg")
    for called in ("data", "disk"):
        rows = [f"{tmp_path / called / 'set' / name},x" for name in ("ant/0.jpg", "1.jpg")]
        (tmp_path / "disk" / "set" / "labels.csv").write_text("\n".join(["filename,label", *rows]))
        for source in ("data", "disk"):
            assert len(read_photo_set(tmp_path / source / "set").photos) == 2


@pytest.mark.parametrize(
    "path", [r"C:\photos\0.jpg", r"\\server\share\0.jpg", "n" * 300, "a\\" + "n" * 300, "https://x.org/0.jpg"]
)
def test_a_path_that_leads_to_nothing_is_a_fault_of_its_line(path: str, tmp_path: Path) -> None:
    touch(tmp_path, "0.jpg")
    (tmp_path / "labels.csv").write_text(f"filename,label\n0.jpg,y\n{path},x\n")
    try:
        found = read_photo_set(tmp_path)
    except house.SajiError as refusal:
        assert "points outside its folder" in str(refusal)
    else:
        assert len(found.photos) == 1 and "line 3" in found.problems[0]


def test_a_folder_in_place_of_a_photo_is_told_to_be_one(tmp_path: Path) -> None:
    (touch(tmp_path, "0.jpg", "ant/1.jpg") / "labels.csv").write_text("filename,label\n0.jpg,x\nant,x\n")
    assert read_photo_set(tmp_path).problems == ("labels.csv line 3: ant is a folder; a row is for one photo",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"filename,label,label\n0.jpg,x,y\n", "column label twice"),
        ("filename,label\n0.jpg,cr\xe8me\n".encode("cp1252"), "no UTF-8 text"),
        ("filename,label\n0.jpg,x\n".encode("utf-16-le"), "no UTF-8 text"),
        ("filename,label\n0.jpg,x\n".encode("utf-32"), "no UTF-8 text"),
        (b"0.jpg,x\n", "it needs filename,label"),
        (b"sep=;\n", "it needs filename,label"),
        (b"", "it needs filename,label"),
        (b'"filename,label\n' + b"0.jpg,x\n" * 999, "it needs filename,label"),
        (b"PK\3\4" + bytes(40), "no UTF-8 text"),
    ],
)
def test_a_listing_that_would_be_guessed_at_is_one_sentence(content: bytes, words: str, tmp_path: Path) -> None:
    touch(tmp_path, "0.jpg")
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(house.SajiError, match=words) as refusal:
        read_photo_set(tmp_path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_no_photo_set(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(house.SajiError, match="no file and no folder"):
        read_photo_set(tmp_path / "pipe")


# What stands in the folder, and what is read of it: a class for each photo
SETS = {
    "a class called train": (["train/0.jpg", "plane/0.jpg", "car/0.jpg"], {"train", "plane", "car"}),
    "a class called test": (["test/0.jpg", "control/0.jpg"], {"test", "control"}),
    "a class called like a split, in a split": (
        ["train/test/0.jpg", "train/ant/0.jpg", "val/ant/0.jpg"],
        {"test", "ant"},
    ),
    "folders in classes": (["ant/red/small/0.jpg", "bee/0.jpg"], {"ant", "bee"}),
    "numbered folders in classes": (["ant/batch1/0.jpg", "ant/batch2/0.jpg", "bee/batch1/0.jpg"], {"ant", "bee"}),
    "one folder of a name in each class": (["ant/images/0.jpg", "bee/images/1.jpg"], {"ant", "bee"}),
    "some folders of a name": (["ant/a/0.jpg", "ant/new/1.jpg", "bee/b/2.jpg", "bee/new/3.jpg"], {"ant", "bee"}),
    "tests that are classes": (
        ["test good/p1/0.jpg", "test bad/p1/1.jpg", "test bad/p2/1.jpg"],
        {"test good", "test bad"},
    ),
    "a bench for tests": (["test_bench/cam1/0.jpg", "chair/cam1/1.jpg"], {"test_bench", "chair"}),
    "a class that is empty": (["ant/a/0.jpg", "ant/b/1.jpg", "bee/.x"], {"ant"}),
    "the same folders in classes of a split": (["train/ant/left/0.jpg", "train/bee/left/0.jpg"], {"ant", "bee"}),
    "train and test": (["train/ant/0.jpg", "test/bee/0.jpg"], {"ant", "bee"}),
    "Training and Testing": (["Training/ant/0.jpg", "Testing/bee/0.jpg"], {"ant", "bee"}),
    "Training and Validation": (["Training/ant/0.jpg", "Validation/ant/0.jpg"], {"ant"}),
    "names like a tool's": (["#1/0.jpg", "@home/0.jpg", "$100/0.jpg"], {"#1", "@home", "$100"}),
}


@pytest.mark.parametrize("name", SETS)
def test_classes_and_splits_are_told_apart(name: str, tmp_path: Path) -> None:
    files, classes = SETS[name]
    assert {label for _, label, _ in listed(touch(tmp_path, *files))} == classes


# Folders that are no classes, as archives of photos have them, and what the sentence names
PARTS = {
    "splits of other names": (["training_set/cat/0.jpg", "training_set/dog/1.jpg", "test_set/cat/2.jpg"], "call them"),
    "one too deep": (["seg_train/seg_train/sea/0.jpg", "seg_test/seg_test/sea/1.jpg"], "in seg_test/seg_test, seg_tr"),
    "splits of digits": (["X_train/0/a.jpg", "X_train/1/b.jpg", "X_test/0/c.jpg"], "call them train"),
    "kinds of photos": (["colour/ant/0.jpg", "colour/bee/1.jpg", "grey/ant/0.jpg", "grey/bee/1.jpg"], "colour, grey"),
    "one folder more": (["dataset/train/ant/0.jpg", "dataset/val/ant/1.jpg"], "give {}/dataset as DATA"),
    "beside texts": (["images/ant/0.jpg", "images/bee/1.jpg", "meta/classes.txt"], "give {}/images as DATA"),
    "a split in itself": (["train/train/ant/0.jpg", "train/train/bee/1.jpg"], "give {}/train/train as DATA"),
}


@pytest.mark.parametrize("name", PARTS)
def test_splits_and_parts_of_a_set_are_not_taken_for_classes(name: str, tmp_path: Path) -> None:
    files, words = PARTS[name]
    with pytest.raises(house.SajiError, match=words.format(tmp_path)):
        read_photo_set(touch(tmp_path, *files))


def test_where_there_is_no_train_nothing_is_kept_of_it(tmp_path: Path) -> None:
    assert not read_photo_set(touch(tmp_path, "test/ant/0.jpg", "test/bee/1.jpg")).problems


def test_photos_alone_in_train_and_val_have_no_class(tmp_path: Path) -> None:
    with pytest.raises(house.SajiError, match="holds no labelled photo"):
        read_photo_set(touch(tmp_path, "train/0.jpg", "val/0.jpg"))


def test_a_class_that_is_called_like_a_split_is_told(tmp_path: Path) -> None:
    found = read_photo_set(touch(tmp_path, "test/0.jpg", "control/0.jpg"))
    assert found.problems == ("test is taken for a class: a split has train/ with a folder for each class",)


@pytest.mark.parametrize(
    "name", ["#1.jpg", "@home.jpg", "$5.jpg", "~0.jpg", "a'b\".jpg", "[0].jpg", "two\nlines.jpg", "*.jpg"]
)
def test_a_photo_may_be_called_anything(name: str, tmp_path: Path) -> None:
    assert listed(touch(tmp_path, f"ant/{name}")) == [(f"ant/{name}", "ant", None)]


@pytest.mark.parametrize("folder", [".git", "@eaDir", "__MACOSX", ".ipynb_checkpoints", "#recycle", "lost+found"])
def test_what_is_left_out_is_counted_and_no_fault(folder: str, tmp_path: Path) -> None:
    touch(tmp_path, "ant/0.jpg", f"ant/{folder}/1.jpg", f"ant/{folder}/deep/2.jpg", "ant/.DS_Store", "ant/Thumbs.db")
    found = read_photo_set(tmp_path)
    assert len(found.photos) == 1 and not found.problems and left_by_programs(folder)
    assert found.notes == (f"2 files in folders of other programs are left out: {folder}",)


@pytest.mark.parametrize(
    "beside",
    [
        *("IMG_1.AAE", "IMG_1.mov", "IMG_1.xmp", "IMG_1.dng", "IMG_1.jpg.json", "IMG_1.jpg_original"),
        *("IMG_1.jpg.supplemental-metada.json", "IMG_1.jpg(1).json", "IMG_1.d/deep.txt"),
    ],
)
def test_what_is_called_like_the_photo_beside_it_is_no_broken_photo(beside: str, tmp_path: Path) -> None:
    """A phone's edits and films, Takeout's and Lightroom's metadata, labels of detectors, the same photo raw."""
    found = read_photo_set(touch(tmp_path, "ant/IMG_1.jpg", "ant/IMG_2.png", f"ant/{beside}", "bee/IMG_1.aae"))
    kept = [] if "/" not in beside else [f"ant/{beside}"]  # in another folder it is beside no photo
    assert [str(photo.path.relative_to(tmp_path)) for photo in found.photos] == sorted(
        ["ant/IMG_1.jpg", "ant/IMG_2.png", *kept, "bee/IMG_1.aae"]
    )
    suffix = Path(beside).suffix.lower()
    told = f"1 files called like the photo beside them are left out: {suffix}"
    assert found.notes == (() if kept else (told,)) and not found.problems


def test_what_saji_itself_wrote_among_the_photos_is_no_class(tmp_path: Path) -> None:
    """`--data . --out artifacts`, for a second time."""
    files = ("ant/0.jpg", "artifacts/cache/0f.duplicates.json", "artifacts/data/set/duplicates.png")
    found = read_photo_set(touch(tmp_path, *files))
    assert [photo.label for photo in found.photos] == ["ant"] and not found.problems
    assert found.notes == ("2 files in folders of other programs are left out: artifacts",)


def test_where_names_are_read_as_ascii_that_is_what_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "crème brûlée/0.jpg", "ant/0.jpg")
    code = "from pathlib import Path; from training.photos.photo_set import read_photo_set; read_photo_set(Path('.'))"
    how = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env={**os.environ, **how}, capture_output=True, text=True)
    assert "rename it, or set PYTHONUTF8=1: names are read as ascii here" in done.stderr


def test_folders_may_lie_as_deep_as_the_disk_has_them(tmp_path: Path) -> None:
    folders = [tmp_path / "ant"]
    while len(folders) < 1100:
        folders.append(folders[-1] / "d")
    for folder in folders:
        folder.mkdir()
    touch(folders[-1], "0.jpg")
    touch(folders[0], "1.jpg")
    assert [label for _, label, _ in listed(tmp_path)] == ["ant", "ant"]
    (folders[-1] / "0.jpg").unlink()
    (folders[0] / "1.jpg").unlink()
    for folder in reversed(folders):
        folder.rmdir()


def test_links_are_followed_and_loops_are_told(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "0.jpg", "deep/1.jpg")
    root = touch(tmp_path / "set", "ant/own.jpg")
    (root / "ant" / "more").symlink_to(elsewhere)
    (root / "ant" / "again").symlink_to(root / "ant")
    (root / "ant" / "more again").symlink_to(elsewhere)
    (root / "ant" / "up").symlink_to(root)
    (root / "ant" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "ant" / "itself.jpg").symlink_to("itself.jpg")
    (root / "bee").symlink_to(elsewhere)
    found = read_photo_set(root)
    names = sorted((os.path.relpath(p.path, root), p.label) for p in found.photos)
    assert names == [
        ("ant/more/0.jpg", "ant"), ("ant/more/deep/1.jpg", "ant"), ("ant/own.jpg", "ant"),
        ("bee/0.jpg", "bee"), ("bee/deep/1.jpg", "bee"),
    ]  # fmt: skip
    said = "\n".join(found.problems)
    assert said.count("a link to a folder that is read already") == 3 and said.count("a link to nothing") == 2


def test_what_lies_in_a_class_has_its_own_name_whatever_links_to_it(tmp_path: Path) -> None:
    root = touch(tmp_path, "ant/a/0.jpg", "ant/b/1.jpg", "bee/2.jpg")
    (root / "ant" / "a" / "link").symlink_to(root / "ant" / "b")
    assert [name for name, _, _ in listed(root)] == ["ant/a/0.jpg", "ant/b/1.jpg", "bee/2.jpg"]


def test_a_class_that_is_a_link_to_what_is_read_already_is_told_and_none(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "0.jpg")
    root = touch(tmp_path / "set", "ant/0.jpg", "bee/0.jpg")
    for name, target in (
        ("0", root / "ant"), ("self", root), ("up", tmp_path), ("cat", elsewhere), ("dog", elsewhere),
        ("ant/more", root / "bee"),
    ):  # fmt: skip
        (root / name).symlink_to(target)
    found = read_photo_set(root)
    names = [(os.path.relpath(p.path, root), p.label) for p in found.photos]
    assert names == [("ant/0.jpg", "ant"), ("bee/0.jpg", "bee"), ("cat/0.jpg", "cat")]
    told = {os.path.relpath(line.partition(" is a link to a folder that is read")[0], root) for line in found.problems}
    assert told == {"0", "self", "up", "dog", "ant/more"} and len(found.problems) == 5


def test_a_split_that_is_a_link_to_another_is_told(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/ant/0.jpg", "train/bee/0.jpg")
    (root / "test").symlink_to(root / "train")
    found = read_photo_set(root)
    assert {photo.split for photo in found.photos} == {"train"} and len(found.photos) == 2
    assert sum("is a link to a folder that is read already" in line for line in found.problems) == 2


def test_what_is_left_out_beside_classes_is_counted_once(tmp_path: Path) -> None:
    found = read_photo_set(touch(tmp_path, "ant/0.jpg", "@eaDir/1.jpg"))
    assert found.notes == ("1 files in folders of other programs are left out: @eaDir",)


@pytest.mark.parametrize(
    ("one", "other"), [("A", "A-"), ("1", "-1"), ("1-2", "12"), ("1-0", "10"), ("hot dog", "hotdog")]
)
def test_a_dash_that_means_something_tells_classes_apart(one: str, other: str, tmp_path: Path) -> None:
    """Grades, signs, ranges and scores; photos of the one are never counted as the other."""
    found = read_photo_set(touch(tmp_path, f"{one}/0.jpg", f"{other}/0.jpg"))
    assert {photo.label for photo in found.photos} == {one, other} and spoken(one) != spoken(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("bakso", "bakso "), ("bakso", " bakso"), ("nasi goreng", "nasi_goreng"), ("nasi-goreng", "Nasi Goreng"),
        ("nasi\u2010goreng", "nasi\u2013goreng"), ("nasi__goreng", "nasi goreng_"),
    ],
)  # fmt: skip
def test_classes_that_only_spaces_underscores_or_hyphens_tell_apart_are_refused(
    one: str, other: str, tmp_path: Path
) -> None:
    touch(tmp_path / "folders", f"{one}/0.jpg", f"{other}/0.jpg")
    listing = touch(tmp_path / "listing", "0.jpg", "1.jpg") / "labels.csv"
    listing.write_text(f"filename,label\n0.jpg,{one}\n1.jpg,{other}\n", encoding="utf-8")
    for source in ("folders", "listing") if one.strip() != other.strip() else ("folders",):
        with pytest.raises(house.SajiError, match="which differ only by case, spaces, underscores"):
            read_photo_set(tmp_path / source)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_of_a_class_folder_without_permission_the_error_names_that_folder() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own lie in one that is its owner's alone
        closed = touch(Path(place), "ant/0.jpg", "bee/0.jpg") / "bee"
        Path(place).chmod(0o755)
        closed.chmod(0)
        try:
            os.seteuid(os.getuid() or 65534)  # the superuser may read everything
            with pytest.raises(PermissionError) as refused:
                read_photo_set(Path(place))
        finally:
            os.seteuid(os.getuid())
            closed.chmod(0o700)
    assert str(refused.value.filename) == str(closed)


def test_a_val_without_photos_is_told_as_one_that_is_not_there(tmp_path: Path) -> None:
    touch(tmp_path, "train/ant/0.jpg", "train/bee/0.jpg")
    (tmp_path / "val" / "ant").mkdir(parents=True)
    told = read_photo_set(tmp_path).problems
    assert told[0] == f"class folder {Path('val', 'ant')} is empty"
    assert told[1].startswith("there is no photo in val/") and "a part of train/" in told[1]


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(touch(tmp_path / "dishes", "train/ant/0.jpg", "train/stray.jpg"))
    found = read_photo_set(Path())
    assert "files directly in train/" in found.problems[0] and "no val/ in dishes" in found.problems[1]
    assert found.photos == (Photo(Path("train/ant/0.jpg"), "ant", "train"),)
