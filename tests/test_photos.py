"""Photo sets as users have them: folders, CSVs, and their faults."""

from pathlib import Path

import pytest
from conftest import SHARED, needs_shared

from runtime.errors import SajiError
from training.photos.photo_set import read_photo_set


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_a_folder_per_class_with_any_extension(tmp_path: Path) -> None:
    touch(tmp_path, "bakso/a.JPG", "bakso/b.jpeg", "rendang/c.webp", "rendang/.DS_Store", "stray.txt")
    found = read_photo_set(tmp_path)
    assert [(p.path.name, p.label, p.split) for p in found.photos] == [
        ("a.JPG", "bakso", None),
        ("b.jpeg", "bakso", None),
        ("c.webp", "rendang", None),
    ]
    assert "1 files directly in" in found.problems[0]


def test_train_and_val_folders_are_the_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/bakso/a.jpg", "Val/bakso/b.jpg", "extra/c.jpg")
    found = read_photo_set(tmp_path)
    assert {(p.path.name, p.split) for p in found.photos} == {("a.jpg", "train"), ("b.jpg", "val")}
    assert "extra" in found.problems[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_with_faults_names_each(tmp_path: Path, encoding: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    rows = [
        "Filename, label ,split",
        "a.jpg, bakso ,train",
        ",,",
        " ",
        "missing.jpg,soto,val",
        "b.jpg",
        "b.jpg,soto,val",
    ]
    (tmp_path / "list.csv").write_bytes("\r\n".join(rows).encode(encoding))
    found = read_photo_set(tmp_path / "list.csv")
    assert [(p.path.name, p.label, p.split) for p in found.photos] == [
        ("a.jpg", "bakso", "train"),
        ("b.jpg", "soto", "val"),
    ]
    text = " ".join(found.problems)
    assert "line 3 is blank" in text and "missing.jpg does not exist" in text and "line 6 has no label" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"filename,label,lable\na.jpg,x,y\n", "columns that are not used: lable"),
        (b"filename,label\na.jpg, x\na.jpg,x \n", "2 labels with spaces around them"),
        (b"filename,label\na.jpg,gado gado\n", "1 labels with spaces in them, which stay: 'gado gado'"),
        (b"filename,label\na.jpg,x\nsoto.jpg\n", "line 3 has no label and no comma (soto.jpg)"),
        (b"filename,label\na.jpg,x\nsoto, ayam.jpg,x\n", "line 3 has more cells than the header"),
        (b'filename,label\na.jpg,x\n"soto.jpg,x\na.jpg,x\n', "or a line break in one"),
        (b"filename,label\na.jpg,x\n" + b"n" * 300 + b".jpg,x\n", "nn.jpg does not exist"),
        (b"\xef\xbb\xbffilename,label\na.jpg,x\n", "begins with a byte order mark"),
        ("filename,label\na.jpg,x\n".encode("utf-16"), "is UTF-16"),
    ],
)
def test_a_fault_of_a_csv_is_told_and_the_rest_is_read(tmp_path: Path, content: bytes, words: str) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "list.csv").write_bytes(content)
    found = read_photo_set(tmp_path / "list.csv")
    assert len(found.problems) == 1 and words in found.problems[0]
    assert {photo.path.name for photo in found.photos} == {"a.jpg"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_read_without_a_fault(tmp_path: Path, end: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_bytes(end.join(["filename,label", "a.jpg,x", "b.jpg,y"]).encode())
    found = read_photo_set(tmp_path / "list.csv")
    assert len(found.photos) == 2 and not found.problems


@pytest.mark.parametrize("other", ["Gado_gado", "gado gado", "gado-gado", "gado__gado"])
def test_two_spellings_of_one_class_are_refused(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "gado_gado/a.jpg", f"{other}/b.jpg")
    with pytest.raises(SajiError, match="differ only by case, spaces, underscores, hyphens"):
        read_photo_set(tmp_path)


def test_two_encodings_of_one_letter_are_one_class(tmp_path: Path) -> None:
    touch(tmp_path, "caf\u00e9/a.jpg", "cafe\u0301/b.jpg")
    with pytest.raises(SajiError, match="the encoding of a letter"):
        read_photo_set(tmp_path)


def test_a_class_that_cannot_be_printed_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "line\nbreak/b.jpg")
    with pytest.raises(SajiError, match=r"'line\\nbreak', whose name cannot be printed"):
        read_photo_set(tmp_path)


@needs_shared
@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("crlf_and_other_numbering", []),
        ("if25_train_18_blank_rows", ["is blank"] * 18),
        ("labels_with_spaces", ["labels with spaces in them, which stay: 'gado gado', 'nasi goreng', 'soto ayam'"]),
        ("row_without_readable_file", ["0999.jpg does not exist"]),
    ],
)
def test_real_csvs(tmp_path: Path, name: str, faults: list[str]) -> None:
    content = (SHARED / "odd_files" / "csv" / f"{name}.csv").read_bytes()
    (tmp_path / "list.csv").write_bytes(content)
    files = {line.split(",")[0] for line in content.decode().splitlines()[1:]} - {""}
    if name == "row_without_readable_file":
        files.remove("0999.jpg")
    touch(tmp_path, *files)
    found = read_photo_set(tmp_path / "list.csv")
    assert len(found.photos) >= len(files)
    assert len(found.problems) == len(faults)
    assert all(fault in problem for fault, problem in zip(faults, found.problems, strict=True))


@needs_shared
def test_a_real_csv_without_labels_is_one_sentence() -> None:
    with pytest.raises(SajiError, match=r"line 2 has no label \(0001.jpg\); 277 faults in all"):
        read_photo_set(SHARED / "odd_files" / "csv" / "if25_test_unlabelled.csv")


def test_a_folder_with_labels_csv_is_read_by_it(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "x/b.jpg")
    (tmp_path / "labels.csv").write_text("filename,label\nx/a.jpg,bakso\nx/b.jpg,soto\n")
    assert {p.label for p in read_photo_set(tmp_path).photos} == {"bakso", "soto"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,class\na.jpg,x\n", "has the columns image, class"),
        ("filename,label\n../a.jpg,x\n", "points outside its folder"),
        ("filename,label,split\na.jpg,x,maybe\n", "split 'maybe'"),
        ("filename,label\n", "holds no labelled photo"),
        ("", "has the columns none"),
        ("filename,label\na.jpg,bakso\na.jpg,Bakso\n", "differ only by case"),
        ("filename,label\n" + "a" * 200_000 + ",x\n", "line 2: a{400} does not exist"),
        ('filename,label\n"a.jpg,x\n' + "b.jpg,x\n" * 30_000, "look for an unquoted comma or a quote"),
        ("filename,label\na.jpg,x\0\n", "no UTF-8 text"),
    ],
)
def test_a_csv_that_cannot_be_used_is_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    touch(tmp_path, "set/a.jpg", "a.jpg")
    (tmp_path / "set" / "list.csv").write_text(content)
    with pytest.raises(SajiError, match=words) as error:
        read_photo_set(tmp_path / "set" / "list.csv")
    assert "\n" not in str(error.value)


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(SajiError, match="does not exist"):
        read_photo_set(tmp_path / "nowhere")
    with pytest.raises(SajiError, match="holds no labelled photo"):
        read_photo_set(tmp_path)


def test_a_binary_file_is_no_csv(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\x00\xff\xd8\xe0")
    with pytest.raises(SajiError, match="no UTF-8 text"):
        read_photo_set(tmp_path / "x.csv")


@needs_shared
def test_the_real_photos_are_read_with_their_split() -> None:
    photos = read_photo_set(SHARED / "food5").photos
    assert len(photos) == 805 and sum(p.split == "val" for p in photos) == 142
