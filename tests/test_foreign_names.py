"""What a foreign network is given wrongly: numbers to normalise by, and names that are not those of its logits."""

import codecs
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from PIL import Image

from export.foreign.classes import read_classes
from export.foreign.names import require_names
from export.foreign.source import ForeignModel
from export.settings import Foreign, Triple
from runtime.errors import SajiError

COLOURS = ("red", "green", "blue")


def colours(
    folder: Path, names: Sequence[str] = COLOURS, sign: float = 1, bias: Sequence[float] = (0, 0, 0), own: str = ""
) -> Foreign:
    """A network that answers by the mean of red, of green and of blue, and twelve photos of each."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        theirs (float[N, 3, 24, 24] photo) => (float[N, 3] scores)
        {
            means = GlobalAveragePool (photo)
            flat = Flatten (means)
            signed = Mul (flat, sign)
            scores = Add (signed, bias)
        }""")
    constants = {"sign": np.float32(sign), "bias": np.float32(bias)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants.items()
    )
    onnx.helper.set_model_props(model, {"names": own})
    onnx.save(model, folder / "net.onnx")
    (folder / "names.txt").write_text("\n".join(names) + "\n")
    for place, label in enumerate(COLOURS):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng([place, i]).integers(0, 120, (24, 24, 3), np.uint8)
            pixels[..., place] += 60
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i}.png")
    return Foreign(folder / "net.onnx", folder / "names.txt", (0, 0, 0), (0.1, 0.1, 0.1), data=folder / "photos")


def brought(asked: Foreign) -> list[str]:
    """What is said while it is brought in."""
    said: list[str] = []
    ForeignModel(asked, said.append)
    return said


def test_names_in_the_order_of_the_logits_are_taken_without_a_word(tmp_path: Path) -> None:
    assert brought(colours(tmp_path, own="{0: 'red', 1: 'green', 2: 'blue'}")) == []


@pytest.mark.parametrize("names", [("blue", "red", "green"), ("green", "red", "blue")])
def test_photos_tell_the_order_of_the_logits(names: Sequence[str], tmp_path: Path) -> None:
    """All names in another order, and two of three."""
    with pytest.raises(SajiError, match=f"logit 0, which --classes calls '{names[0]}', answers for photos of 'red'"):
        brought(colours(tmp_path, names))


def test_a_network_that_is_right_less_often_than_by_chance_is_refused(tmp_path: Path) -> None:
    """As with logits of the other sign, of which no order of the names makes right ones."""
    with pytest.raises(
        SajiError, match=r"right about 0\.000 of 36 photos, by chance 0.33.*look at the order of the names"
    ):
        brought(colours(tmp_path, sign=-1))


def test_a_network_that_is_no_better_than_chance_is_told(tmp_path: Path) -> None:
    """As one whose photos were divided by 255 twice, and which answers with the class of its largest bias."""
    chance, better = brought(colours(tmp_path, bias=(9, 0, 0)))
    assert "do not show that it knows its classes" in chance and "--std" in chance, chance
    assert "is right about 1.000 of 36 photos with --mean 0 0 0 --std 1 1 1 --scale 1, about 0.333 as typed" in better


def test_another_order_in_the_files_own_metadata_is_refused(tmp_path: Path) -> None:
    asked = colours(tmp_path, own="{0: 'blue', 1: 'green', 2: 'red'}")
    with pytest.raises(SajiError, match=r"calls logit 0 'red', and .*net.onnx itself, in its metadata, 'blue'"):
        brought(replace(asked, data=None))


@pytest.mark.parametrize(
    "own",
    [
        "",
        "red",
        "{0: 'rot', 1: 'gruen'}",
        "['red']",
        "{'a': []}",
        "7",
        "(" * 9999,
        "{[]: 1}",
        "{0.0: 'blue'}",
        "{True: 'red'}",
        "{'blue', 'red'}",
        "'blue'",
        "['blue', 'green', 'blue']",
    ],
)
def test_metadata_that_contradicts_nothing_is_no_matter(own: str, tmp_path: Path) -> None:
    assert brought(colours(tmp_path, own=own)) == []


def answers(labels: np.ndarray, classes: int, right: float, seed: int, **confused: int) -> np.ndarray:
    """Logits that are right about a share of photos, and else any; `{label: answer}` as of a network that confuses."""
    random = np.random.default_rng(seed)
    given = np.where(random.random(len(labels)) < right, labels, random.integers(0, classes, len(labels)))
    for label, answer in confused.items():
        given[labels == int(label[1:])] = answer
    return np.eye(classes, dtype=np.float32)[given]


# Photos of each class shown, classes of the network, share that it knows, labels that it takes for another
HONEST = {
    "weak": (40, 5, range(5), 0.25, {}),
    "few photos": (2, 3, range(3), 0.0, {}),
    "three of a thousand": (12, 1000, range(3), 0.9, {}),
    "weak, three of a thousand": (12, 1000, range(3), 0.1, {}),
    "one class": (40, 1000, range(1), 0.9, {}),
    "one class that is called otherwise": (40, 1000, range(1), 0.9, {"_0": 7}),
    "two of five called otherwise": (40, 1000, range(5), 0.9, {"_0": 700, "_1": 701}),
    "one taken for another": (40, 5, range(5), 0.9, {"_0": 1}),
    "all for one": (40, 5, range(5), 0.0, {f"_{label}": 2 for label in range(5)}),
    "each for the one below": (40, 5, range(5), 0.9, {"_4": 3, "_3": 2, "_2": 2}),
}


@pytest.mark.parametrize("case", HONEST)
def test_weak_networks_and_few_photos_are_not_refused(case: str) -> None:
    each, classes, shown, right, confused = HONEST[case]
    labels = np.repeat(np.array(shown), each)
    for seed in range(10):
        logits = answers(labels, classes, right, seed, **confused)
        require_names(logits, labels, tuple(map(str, range(classes))), Foreign(), lambda line: None)


@pytest.mark.parametrize(("first", "shown"), [(0, range(20)), (10, range(20)), (18, range(20)), (0, range(0, 20, 4))])
def test_names_that_are_one_line_off_from_somewhere_on_are_refused(first: int, shown: Sequence[int]) -> None:
    """Of all lines, of the last ten, of the last two; and of all where the photos show every fourth class alone."""
    labels = np.repeat(np.array(shown), 24)
    moved = {f"_{label}": first + (label + 1 - first) % (20 - first) for label in range(first, 20) if label != 13}
    logits = answers(labels, 20, 0.9, 0, **moved)
    with pytest.raises(SajiError, match=r"logit \d+, which --classes calls '\d+', answers for photos of '\d+'"):
        require_names(logits, labels, tuple(map(str, range(20))), Foreign(), lambda line: None)


IMAGENET = {1 / 255: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))}


@pytest.mark.parametrize(
    ("mean", "std", "scale", "words"),
    [
        ((0, 0, 0), (255, 255, 255), 1 / 255, "--std 255 is above white"),
        ((0, 0, 0), IMAGENET[1][1], 1 / 255, "--std 58.4 is above white"),
        ((0, 0, 0), (127.5, 127.5, 127.5), 1 / 255, "--std 127.5 is above white"),
        (IMAGENET[1][0], (0.229, 0.224, 0.225), 1 / 255, "--mean 123.7 is above white"),
        (IMAGENET[1 / 255][0], (0.229, 57.1, 0.225), 1 / 255, "--std 0.229 57.1 0.225 is of two scales"),
        (IMAGENET[1][0], (58.4, 57.1, 0.225), 1, "--std 58.4 57.1 0.225 is of two scales"),
        ((123.7, 0.456, 103.5), IMAGENET[1][1], 1, "--mean 123.7 0.456 103.5 is of two scales"),
        (IMAGENET[1 / 255][0], IMAGENET[1][1], 1, "--mean 0.485 is of another scale than --std 58.4"),
        ((0, 0, 0), IMAGENET[1 / 255][1], 1, "--std 0.229 is far below white"),
    ],
)
def test_numbers_of_two_scales_are_refused(mean: Triple, std: Triple, scale: float, words: str) -> None:
    with pytest.raises(SajiError, match=words):
        Foreign(mean=mean, std=std, scale=scale)


@pytest.mark.parametrize(
    ("mean", "std", "scale"),
    [
        *[(*numbers, scale) for scale, numbers in IMAGENET.items()],
        *[((0, 0, 0), (white, white, white), scale) for white, scale in ((1, 1 / 255), (255, 1), (256, 1), (1, 1))],
        ((127.5, 127.5, 127.5), (128, 128, 128), 1),
        ((1, 1, 1), (1, 1, 1), 1 / 127.5),
        (IMAGENET[1][0], (1, 1, 1), 1),
        ((1.77, 1.77, 2.1), (1, 1, 1), 0.017),
        ((0.5, 0, 0.5), (0.5, 1, 0.5), 1 / 255),
        ((0.0012, 0.002, 0.003), (0.01, 0.01, 0.01), 1 / 255),  # by night
        ((0.8, 0.8, 0.8), (5, 5, 5), 1),
    ],
)
def test_numbers_that_others_normalise_by_are_taken(mean: Triple, std: Triple, scale: float) -> None:
    Foreign(mean=mean, std=std, scale=scale)


LISTS = {
    "of PowerShell": "crème\r\nbee\r\ncat\r\n".encode("utf-16"),
    "big-endian": codecs.BOM_UTF16_BE + "crème\nbee\ncat".encode("utf-16-be"),
    "in quotes": '"crème"\n"bee"\n"cat"\n',
    "out of JSON": '  "cr\\u00e8me",\n  "bee",\n\n  "cat"\n',
    "JSON": '[\n  "cr\\u00e8me",\n  "bee",\n  "cat"\n]\n',
    "JSON by number": '{\n  "0": "crème",\n  "1": "bee",\n  "2": "cat"\n}\n',
    "of Keras": '{\n  "crème": 0,\n  "bee": 1,\n  "cat": 2\n}\n',
    "of Python": "['crème',\n'bee',\n\"cat\",\n]".replace("[", "[\n"),
    "JSON in one line": '["cr\\u00e8me", "bee", "cat"]',
    "JSON with a last comma": '[\n  "cr\\u00e8me",\n  "bee",\n  "c\\u0061t",\n]',
    "config.json": '{"id2label": {"0": "cr\\u00e8me", "1": "bee", "2": "cat"}, "layers": 3}',
    "JSON by number in one line": '{"0": "cr\\u00e8me", "1": "bee", "2": "cat"}',
    "JSON in another order": '{"cat": "2", "bee": "1",\n "crème": "0"}',
    "Hugging Face's label2id": '  "crème": "0",\n  "bee": "1",\n  "cat": "2"\n',
    "printed by Python": "{0: 'crème', 1: 'bee', 2: 'cat'}\n",
    "a tuple": "'crème', 'bee', 'cat'",
    "with commas": "crème,\nbee,\ncat\n",
    "YAML": "- crème\n- bee\n- cat\n",
    "YAML in quotes": "- 'crème'\n- 'bee'\n- \"cat\"\n",
    "YAML by number": "  0: crème\n  1: bee\n  2: cat\n",
    "with numbers": "0 crème\n1 bee\n2 cat",
    "with tabs": "0\tcrème\n1\tbee\n2\tcat",
    "CSV": "crème,0\nbee,1\ncat,2\n",
}


@pytest.mark.parametrize("how", LISTS)
def test_what_a_list_puts_around_each_name_is_no_part_of_it(how: str, tmp_path: Path) -> None:
    content = LISTS[how]
    (tmp_path / "names.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_classes(tmp_path / "names.txt") == ("crème", "bee", "cat")


@pytest.mark.parametrize(
    "names",
    [
        ("1 cup", "2 cups", "3 cups"),
        ("0", "1", "2"),
        ("0.5 l", "1.5 l"),
        ("- none -", "bee", "cat"),
        ('"other"', "bee", "cat"),
        ("7 up", "cola", "tea"),
        ("fish, fried", "fish, raw", "rice"),
        ("n01440764 tench", "n01443537 goldfish"),
        ("[unknown]", "bee", "cat"),
        ("shepherd's pie", "chef's salad"),
        ('"1": "bee"', '"0": "ant"'),
        ("[1, 2]", "[3]"),
        ("{'a', 'b'}", "7"),
    ],
)
def test_what_stands_around_some_names_alone_is_a_part_of_them(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert read_classes(tmp_path / "names.txt") == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"0": 0, "1": 1, "2": 2}', ("0", "1", "2")),
        ('{"7": 1, "3": 0}', ("3", "7")),
        ("[0, 1]", ("0", "1")),
        ('{"id2label": 0, "other": 1}', ("id2label", "other")),
        (r'["AC\/DC", "b",]', ("AC/DC", "b")),
        (r'["\ud83c\udf55", "b"]', ("\U0001f355", "b")),
    ],
)
def test_numbers_are_names_too_and_json_escapes_as_json_does(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    assert read_classes(tmp_path / "names.txt") == names


@pytest.mark.parametrize("text", ['["cat", "", "dog"]', '{"0": ["n01", "tench"]}', '{"a": 1, "b": 2}', "[]", "[null]"])
def test_a_list_that_does_not_name_each_logit_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(SajiError, match=r"names\.txt is a list or a dict that does not name each logit; write a class"):
        read_classes(tmp_path / "names.txt")


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "utf-16-le", "utf-32"])
def test_names_in_another_encoding_are_to_be_saved_as_utf_8(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cr\u00e8\u00eame" if encoding != "gbk" else "蚂蚁", encoding=encoding)
    with pytest.raises(SajiError, match="is no UTF-8 text; save it as UTF-8, with a class a line"):
        read_classes(tmp_path / "names.txt")
