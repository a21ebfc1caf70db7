"""Photo sets as users have them: folders, CSVs, and their faults."""

from pathlib import Path

import pytest
from conftest import SHARED, needs_shared

from runtime.errors import SajiError
from runtime.photos import read_photo_set


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
    with pytest.raises(SajiError, match="not a UTF-8 text file"):
        read_photo_set(tmp_path / "x.csv")


@needs_shared
def test_the_real_photos_are_read_with_their_split() -> None:
    photos = read_photo_set(SHARED / "food5").photos
    assert len(photos) == 805 and sum(p.split == "val" for p in photos) == 142
