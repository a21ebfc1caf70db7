"""Model files, receipts and deployments of strangers: opened as what they are, or refused in one sentence.

None of them runs code, reaches outside its folder, waits for ever, or is served as something that it is not.
"""

import contextlib
import json
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import house
import numpy as np
import onnx
import onnx.parser
import pytest
from house import BadModel, Geometry, ModelSpec, Receipt, SajiError

import runtime
from demo.page.tabs.benchmark import runs
from runtime.benchmark.rows import read_rows
from training.network.classifier import load_checkpoint

SPEC = ModelSpec("x", "resnet18", ("a", "b"), Geometry.for_size(8))


def sums(path: Path, spec: str = "") -> Path:
    """A file of one layer within our contract, which carries our spec or the given text."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 18]>
        sums (uint8[batch, 8, 8, 3] images) => (float[batch, 2] logits)
        {
            pixels = Cast <to = 1> (images)
            flat = Flatten (pixels)
            logits = MatMul (flat, weights)
        }""")
    weights = np.linspace(-1, 1, 384, dtype=np.float32).reshape(192, 2)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    onnx.helper.set_model_props(model, {"spec": spec or SPEC.to_json(), "multiply_adds": "{}"})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


@contextmanager
def refused(*kinds: type[SajiError]) -> Iterator[None]:
    """What happens inside is refused in one line, and not one that holds a whole file."""
    with pytest.raises(kinds or SajiError) as error:
        yield
    assert "\n" not in str(error.value) and 20 < len(str(error.value)) < 500


# --- programs of PyTorch, which can hold code


class Intruder:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def rewritten(path: Path, out: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of a .pt2 file with other members."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            new.writestr(item.filename, change(item.filename, old.read(item)))
    return out


def with_pickled_example(model: Path, out: Path, code: bytes) -> Path:
    return rewritten(model, out, lambda name, content: code if "sample_inputs" in name else content)


def with_pickled_weight(model: Path, out: Path, code: bytes) -> Path:
    def change(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            for entry in config["config"].values():
                entry["use_pickle"] = True
            return json.dumps(config).encode()
        return code if "/data/weights/" in name else content

    return rewritten(model, out, change)


def with_pickled_constant(model: Path, out: Path, code: bytes) -> Path:
    with zipfile.ZipFile(rewritten(model, out, lambda name, content: content), "a") as archive:
        archive.writestr("archive/data/constants/opaque_0", code)
    return out


def of_the_older_format(model: Path, out: Path, code: bytes) -> Path:
    from torch._export.serde.schema import SCHEMA_VERSION

    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        archive.writestr("serialized_exported_program.json", "{}")
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", code)
    return out


PROGRAMS = [with_pickled_example, with_pickled_weight, with_pickled_constant, of_the_older_format]


@pytest.mark.parametrize("make", PROGRAMS)
@pytest.mark.parametrize("read", [runtime.load, house.spec_of], ids=["load", "spec"])
def test_a_program_with_pickled_members_is_refused_before_any_of_its_code_runs(
    read: Callable, make: Callable, model: Path, tmp_path: Path
) -> None:
    intruder = tmp_path / "was here"
    file = make(model / "model.pt2", tmp_path / "evil.pt2", pickle.dumps(Intruder(intruder)))
    if read is runtime.load:
        with refused(BadModel):
            read(file)
    else:  # what a file says of itself may be told, but not by running it
        try:
            assert read(file) == Receipt.read(model).spec
        except BadModel as error:
            assert "\n" not in str(error)
    assert not intruder.exists()


def test_a_receipt_that_fits_does_not_make_such_a_program_good(model: Path, tmp_path: Path) -> None:
    """Who writes the program writes the receipt: a sha256 proves that nothing has changed, and not where it is from."""
    folder, intruder = house.linked(model, tmp_path / "model", "model.json", "golden.json"), tmp_path / "was here"
    with_pickled_example(model / "model.pt2", folder / "model.pt2", pickle.dumps(Intruder(intruder)))
    with house.changing(folder / "model.json") as receipt:
        receipt["files"]["model.pt2"] = {"sha256": house.sha256_file(folder / "model.pt2"), "bytes": 1}
    with refused(BadModel):
        runtime.load(folder, "pytorch")
    assert not intruder.exists()


def test_our_own_program_opens(model: Path) -> None:
    with runtime.load(model / "model.pt2") as classifier:
        assert classifier.logits(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 5)


# --- what is opened is what was written, and what was checked


def test_a_file_that_is_exchanged_after_its_check_is_not_opened(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write there could otherwise put another in its place between the two."""
    verify = Receipt.verify

    def verify_then_exchange(self: Receipt, folder: Path, file: str) -> None:
        verify(self, folder, file)
        (folder / file).unlink()
        (folder / file).write_bytes(other[file])

    pt2 = rewritten(model / "model.pt2", tmp_path / "other.pt2", lambda name, content: content)
    other = {"model.onnx": sums(tmp_path / "other.onnx").read_bytes(), "model.pt2": pt2.read_bytes()}
    monkeypatch.setattr(Receipt, "verify", verify_then_exchange)
    for backend in ("ort-cpu", "openvino", "pytorch"):
        folder = house.linked(model, tmp_path / backend)
        with pytest.raises(BadModel, match="changed while it was opened"):
            runtime.load(folder, backend)


# --- weights outside of the file


def with_weights_at(path: Path, location: str) -> Path:
    """`sums` with its weights in another file, which the graph names."""
    model = onnx.load(sums(path))
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
    return path


WEIGHTS = np.linspace(-1, 1, 384, dtype=np.float32).tobytes()
ELSEWHERE = {"above": "../outside.bin", "absolute": "{outside}", "link": "link.bin", "folder link": "down/outside.bin"}


@pytest.mark.parametrize("backend", ["ort-cpu", "openvino"])
@pytest.mark.parametrize("where", ELSEWHERE)
def test_weights_outside_of_a_models_folder_are_not_read(where: str, backend: str, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside.bin", tmp_path / "model"
    outside.write_bytes(WEIGHTS)
    file = with_weights_at(folder / "model.onnx", ELSEWHERE[where].format(outside=outside))
    (folder / "link.bin").symlink_to(outside)
    (folder / "down").symlink_to(tmp_path)
    with refused():
        runtime.load(file, backend)


@pytest.mark.parametrize("state", ["as exported", "changed since"])
def test_weights_that_no_receipt_tells_of_are_not_served(state: str, model: Path, tmp_path: Path) -> None:
    folder = house.linked(model, tmp_path / "model", "golden.png", "golden.json", "model.json")
    graph = onnx.load(model / "model.onnx")
    onnx.save_model(
        graph, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024
    )
    with house.changing(folder / "model.json") as receipt:
        receipt["files"]["model.onnx"] = {"sha256": house.sha256_file(folder / "model.onnx"), "bytes": 1}
    if state == "changed since":
        weights = np.fromfile(folder / "weights.bin", np.float32) * np.float32(1.00005)
        weights.tofile(folder / "weights.bin")
    with pytest.raises(SajiError):
        runtime.load(folder).close()


def test_a_spec_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = sums(tmp_path / "their.onnx")
    file.write_bytes(file.read_bytes().replace(b'"architecture"', b'"\xacrchitecture"'))
    with refused(BadModel):
        runtime.load(file)


# --- deployment.json

Change = Callable[[dict[str, Any]], Any]


def choice(**values: Any) -> Change:
    return lambda deployment: deployment["choice"].update(values)


def candidate(**values: Any) -> Change:
    return lambda deployment: deployment["choice"]["candidate"].update(values)


DEPLOYMENTS: dict[str, Change] = {
    "verdict fail": candidate(verdict="fail"),
    "verdict inconclusive": candidate(verdict="inconclusive"),
    "verdict unchecked": candidate(verdict="unchecked"),
    "verdict PASS": candidate(verdict="PASS"),
    "verdict null": candidate(verdict=None),
    "a file check": candidate(servable=False),
    "a file above": candidate(file="../resnet18/model.onnx"),
    "a file that is a folder": candidate(file="examples"),
    "a file that is a number": candidate(file=3),
    "a backend that does not exist": candidate(backend="os"),
    "a precision that does not exist": candidate(precision="fp33"),
    "folder null": choice(folder=None),
    "folder a number": choice(folder=7),
    "folder gone": choice(folder="gone"),
    "sha256 null": choice(sha256=None),
    "sha256 of another": choice(sha256="0" * 64),
    "threads text": choice(threads="x"),
    "threads negative": choice(threads=-1),
    "threads two thousand": choice(threads=2000),
    "streams null": choice(streams=None),
    "streams two thousand": choice(streams=2000),
    "candidate a list": choice(candidate=[]),
    "no choice": lambda deployment: deployment.pop("choice"),
    "fallbacks text": lambda deployment: deployment.update(fallbacks="none"),
    "policy null": lambda deployment: deployment.update(policy=None),
    "version text": lambda deployment: deployment.update(schema_version="2"),
}


@pytest.mark.parametrize("what", DEPLOYMENTS)
def test_a_deployment_that_cannot_be_right_is_refused_in_one_sentence(what: str, model: Path, tmp_path: Path) -> None:
    path = house.write_deployment(model, tmp_path / "deployment.json", "ort-cpu")
    with house.changing(path) as deployment:
        DEPLOYMENTS[what](deployment)
    with refused():
        runtime.load(path).close()


def test_what_did_not_pass_is_passed_over_for_the_next_in_line(model: Path, tmp_path: Path) -> None:
    path = house.write_deployment(model, tmp_path / "deployment.json", "ort-cpu")
    with house.changing(path) as deployment:
        deployment["fallbacks"] = [json.loads(json.dumps(deployment["choice"]))]
        deployment["choice"]["candidate"]["verdict"] = "fail"
    with runtime.load(path) as classifier:
        assert classifier.candidate.verdict == "pass" and len(classifier.passed_over) == 1


@contextmanager
def pipe(path: Path) -> Iterator[list[float]]:
    """A named pipe into which nobody writes; what is yielded lists when somebody opened it, who then reads nothing."""
    os.mkfifo(path)
    opened, over = list[float](), Event()

    def watch() -> None:
        while not over.wait(0.02):
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                opened.append(time.monotonic())
            except OSError:  # nobody reads
                pass

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield opened
    finally:
        over.set()
        watcher.join()


UNREADABLE = {
    "nested deep": b"[" * 100_000,
    "objects nested deep": b'{"a":' * 100_000,
    "no UTF-8": b"\xff\xfe\x00",
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number of many digits": b"9" * 100_000,
}


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    """A folder with a model that is served by one engine, and its deployment.json."""
    names = ("model.json", "model.onnx", "golden.json", "golden.png")
    folder = house.linked(model, tmp_path / "models" / "resnet18", *names)
    house.write_deployment(folder, tmp_path / "deployment.json", "ort-cpu")
    return tmp_path


FILES = ["deployment.json", "models/resnet18/model.json", "models/resnet18/golden.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", UNREADABLE)
def test_a_file_that_is_not_what_it_is_called_is_refused_in_one_sentence(content: str, file: str, copied: Path) -> None:
    (copied / file).write_bytes(UNREADABLE[content])
    with refused():
        runtime.load(copied / ("deployment.json" if file == "deployment.json" else "models/resnet18")).close()


# --- what a disk or a network does to a file: found by `python -m lab torture artefacts`


def changed(path: Path, before: bytes, after: bytes) -> None:
    """Put a copy with other bytes into the place of a file, which may be linked to by others."""
    content = path.read_bytes()
    assert before in content
    path.unlink()
    path.write_bytes(content.replace(before, after, 1))


CHANGES = {
    "a byte that is no text": ("models/resnet18/model.json", b'"spec"', b'"sp\xe5c"'),
    "another class": ("models/resnet18/model.json", b'"bakso"', b'"bikso"'),
    "another temperature": ("models/resnet18/model.json", b'"temperature": ', b'"temperature": 1'),
    "another picture": ("models/resnet18/golden.json", b'"golden.png"', b'"golden.pnf"'),
    "another engine": ("models/resnet18/golden.json", b'"ort-cpu"', b'"ort-cpv"'),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_byte_is_refused_in_one_short_sentence(change: str, copied: Path) -> None:
    file, before, after = CHANGES[change]
    changed(copied / file, before, after)
    with refused():
        runtime.load(copied / "models/resnet18").close()


Change = Callable[[Any], object]
RECEIPTS: dict[str, Change] = {  # each as if this machine had given no verdict yet
    "a gate that is text": lambda t: [c["gate"].update(shift="much") for c in t["candidates"] if c["gate"]],
    "a gate without bounds": lambda t: [c["gate"].update(shift=1e12) for c in t["candidates"] if c["gate"]],
    "a gate of NaN": lambda t: [c["gate"].update(shift=float("nan")) for c in t["candidates"] if c["gate"]],
    "reasons that are numbers": lambda t: [c.update(reasons=[1], verdict="fail") for c in t["candidates"]],
    "a size that is text": lambda t: [f.update(bytes="9") for f in t["files"].values()],
    "a request nested deep": lambda t: t.update(request={"x": json.loads("[" * 500 + "]" * 500)}),
    "a recipe nested deep": lambda t: t["spec"].update(recipe={"x": json.loads("[" * 500 + "]" * 500)}),
    "an interval of three": lambda t: [
        c["figures"].update(accuracy_interval=[0, 1, 2]) for c in t["candidates"] if c["figures"]
    ],
    "held out of many digits": lambda t: t["spec"].update(
        validation={
            "held_out": {
                "accuracy": int("9" * 400),
                "photos": 1,
                "calibration_error": 0,
                "how": "",
                "recalls": [0] * 5,
                "interval": [0, 1],
                "recall_intervals": [[0, 1]] * 5,
                "reliability": [],
            }
        }
    ),
    "other classes, and nothing to tell by": lambda t: (t.pop("spec_sha256"), t["spec"]["classes"].reverse()),
}


@pytest.mark.parametrize("change", RECEIPTS)
def test_a_receipt_that_holds_something_else_is_refused_in_one_sentence(change: str, model: Path, copied: Path) -> None:
    (copied / "models/resnet18/validation.npz").symlink_to(model / "validation.npz")
    with house.changing(copied / "models/resnet18/model.json") as receipt:
        for candidate in receipt["candidates"]:
            (candidate["machine"] or {}).update(cpu_features=["another"])
        RECEIPTS[change](receipt)
    with refused():
        runtime.load(copied / "models/resnet18").close()


def test_a_receipt_of_an_earlier_version_which_has_no_sha256_of_its_spec_opens(copied: Path) -> None:
    with house.changing(copied / "models/resnet18/model.json") as receipt:
        receipt.pop("spec_sha256")
    runtime.load(copied / "models/resnet18").close()


def test_a_checkpoint_with_a_flipped_bit_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(run / "checkpoint.pt", tmp_path))
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1  # within a weight
    copy.write_bytes(content)
    with pytest.raises(BadModel, match="damaged"):
        load_checkpoint(copy)


def test_a_bare_program_with_a_flipped_bit_is_refused(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(model / "model.pt2", tmp_path))
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with refused():
        runtime.load(copy).close()


def test_a_bare_file_that_opens_but_does_not_compute_is_refused(model: Path, tmp_path: Path) -> None:
    graph = onnx.load(model / "model.onnx")
    layer = next(node for node in graph.graph.node if node.op_type == "Conv")
    shape = next(attribute for attribute in layer.attribute if attribute.name == "kernel_shape")
    shape.ints[0] -= 1
    onnx.save(graph, tmp_path / "bare.onnx")
    with refused():
        runtime.load(tmp_path / "bare.onnx").close()


@pytest.mark.parametrize("line", [b'{"experiment": "ben', b"\xff", b"[1]", b"1"])
def test_a_row_that_was_cut_off_is_told_by_its_line(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "bench.jsonl").write_bytes(b'{"experiment": "bench"}\n' + line)
    with pytest.raises(SajiError, match=r"bench\.jsonl, line 2, is no row .*; remove that line"):
        read_rows(tmp_path / "bench.jsonl")
    assert runs(tmp_path / "bench.jsonl", tmp_path / "none") == {}


@pytest.mark.parametrize("file", [*FILES, "models/resnet18/golden.png", "models/resnet18/model.onnx"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(file: str, copied: Path) -> None:
    (copied / file).unlink()
    with pipe(copied / file) as opened, refused():
        runtime.load(copied / ("deployment.json" if file == "deployment.json" else "models/resnet18")).close()
    assert not opened


@pytest.mark.parametrize("name", ["bare.onnx", "bare.pt2"])
def test_a_pipe_that_is_called_like_a_model_is_not_waited_for(name: str, tmp_path: Path) -> None:
    with pipe(tmp_path / name) as opened, refused():
        runtime.load(tmp_path / name).close()
    assert not opened


# --- the spec that a file carries

SPECS: dict[str, dict[str, Any]] = {
    "classes text": {"classes": "ab"},
    "classes numbers": {"classes": [1, 2]},
    "classes an object": {"classes": {"a": 1, "b": 2}},
    "classes null": {"classes": None},
    "a class null": {"classes": ["a", None]},
    "a class twice": {"classes": ["a", "a"]},
    "no class": {"classes": []},
    "temperature 0": {"temperature": 0},
    "temperature negative": {"temperature": -1},
    "temperature text": {"temperature": "1"},
    "temperature NaN": {"temperature": float("nan")},
    "temperature infinite": {"temperature": float("inf")},
    "temperature true": {"temperature": True},
    "size 0": {"geometry.size": 0},
    "size negative": {"geometry.size": -8},
    "size a million": {"geometry.size": 10**6, "geometry.resize": 10**6},
    "size text": {"geometry.size": "8"},
    "size 8.5": {"geometry.size": 8.5},
    "resize below size": {"geometry.resize": 2},
    "interpolation": {"geometry.interpolation": "x"},
    "decode": {"geometry.decode": "x"},
    "crop": {"geometry.crop": "x"},
    "version text": {"geometry.version": "2"},
    "version 0": {"geometry.version": 0},
    "geometry null": {"geometry": None},
    "threshold infinite": {"rejection": {"rule": "energy", "threshold": float("inf")}},
    "threshold NaN": {"rejection": {"rule": "energy", "threshold": float("nan")}},
    "threshold true": {"rejection": {"rule": "energy", "threshold": True}},
    "rule a list": {"rejection": {"rule": ["energy"], "threshold": 1}},
    "name a list": {"name": ["x"]},
    "validation text": {"validation": "good"},
}


def changed_spec(what: str) -> str:
    values = json.loads(SPEC.to_json())
    for name, value in SPECS[what].items():
        outer, _, inner = name.partition(".")
        if inner:
            values[outer][inner] = value
        else:
            values[name] = value
    return json.dumps(values)


@pytest.mark.parametrize("what", SPECS)
def test_a_spec_that_cannot_be_right_is_refused_by_the_name_of_its_file(what: str) -> None:
    with pytest.raises(BadModel, match=r"^their\.onnx ") as error:
        ModelSpec.from_json(changed_spec(what), "their.onnx")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", UNREADABLE)
def test_a_spec_that_is_no_spec_is_refused(content: str) -> None:
    with refused(BadModel):
        ModelSpec.from_json(UNREADABLE[content].decode(errors="replace"), "their.onnx")


@pytest.mark.parametrize("what", ["classes text", "a class twice", "temperature 0", "size 0"])
def test_neither_load_nor_show_takes_such_a_file(what: str, tmp_path: Path) -> None:
    file = sums(tmp_path / "their.onnx", changed_spec(what))
    with refused(BadModel):
        runtime.load(file)
    said = house.here("runtime", "show", file)
    assert said.refused and said.out == "", said


@pytest.mark.parametrize("verb", ["show", "classify"])
@pytest.mark.parametrize("name", ["\x1b[2Jcake", "cake\rsoup", "\x1b]0;title\x07", "cake\u202esoup"])
def test_a_strangers_class_name_does_not_steer_the_terminal(name: str, verb: str, tmp_path: Path) -> None:
    spec = json.loads(SPEC.to_json()) | {"classes": [name, f"{name}!"]}
    file = sums(tmp_path / "their.onnx", json.dumps(spec))
    photo = house.drawn(0, (20, 16), tmp_path / "photo.png")
    said = (
        house.here("runtime", "show", file)
        if verb == "show"
        else house.here("runtime", "classify", photo, "--model", file)
    )
    assert said.status == 0 or said.refused, said
    assert all(letter.isprintable() for letter in (said.out + said.err).replace("\n", "").replace("\t", "")), said


@pytest.mark.parametrize(
    ("called", "harmless"),
    [
        *((f"torch.ops.aten.{name}", True) for name in ("mul.Tensor", "sym_size.int")),
        *((f"_operator.{name}", True) for name in ("mul", "floordiv", "ge")),  # on sizes, as attention has them
        *((f"_operator.{name}", False) for name in ("call", "attrgetter", "methodcaller", "pow", "mul.__self__.eval")),
        *((name, False) for name in ("os.system", "torch.load", "torch.ops.load_library", "builtins.eval")),
    ],
)
def test_a_program_calls_operators_and_arithmetic_on_sizes_only(called: str, harmless: bool, tmp_path: Path) -> None:
    from runtime.backends.pytorch import require_no_code

    graph = {"graph_module": {"graph": {"nodes": [{"target": called}]}}}
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("archive/models/model.json", json.dumps(graph))
    with contextlib.nullcontext() if harmless else refused(BadModel):
        require_no_code(tmp_path / "model.pt2", (tmp_path / "model.pt2").read_bytes())
