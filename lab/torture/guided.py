"""`python -m lab.torture.guided PARSER SEED RUNS FOLDER`: one of our parsers, fed by atheris, which sees where it goes.

Without atheris it is fed with seeded changes of what is right. Exit status 0 where whatever came was read or refused in
a sentence; else the input is left in FOLDER as crash-…, and stderr says what was raised. atheris ends the process by
itself, which is why this is a program of its own.
"""

import contextlib
import hashlib
import importlib.util
import json
import random
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

LONGEST, SECONDS, MEBIBYTES = 4096, 20, 2048  # bytes of an input, seconds and memory that one may take

Parse = Callable[[bytes, Path], object]


def _zip(content: bytes, file: Path) -> None:
    from demo.page.uploads import Archive
    from demo.service.limits import Limits
    from demo.service.problem import Problem

    file.write_bytes(content)
    limits = Limits(bytes=2**20, upload=2**21)
    with open(file, "rb") as upload, Archive(upload, file.name, limits) as archive:
        for entry in archive.entries:
            with contextlib.suppress(Problem):
                assert len(archive.read(entry)) <= limits.bytes


def _csv(content: bytes, file: Path) -> None:
    from training.photos.photo_set import read_photo_set

    file.write_bytes(content)
    for photo in read_photo_set(file).photos:
        assert photo.label and photo.path.resolve().is_relative_to(file.parent.resolve())


def _toml(content: bytes, file: Path) -> None:
    from training.recipe import load_recipe

    file.write_bytes(content)
    load_recipe(str(file))


def _gates(content: bytes, file: Path) -> None:
    from runtime.gate import read_gates

    file.write_bytes(content)
    read_gates(file)


def _spec(content: bytes, file: Path) -> None:
    from runtime.spec import ModelSpec

    spec = ModelSpec.from_json(content.decode(errors="replace"), file.name)
    assert ModelSpec.from_json(spec.to_json()) == spec


def _receipt(content: bytes, file: Path) -> None:
    from runtime.receipt import Receipt

    file.write_bytes(content)
    Receipt.read(file.parent)


def _deployment(content: bytes, file: Path) -> None:
    from runtime.deployment import Deployment

    file.write_bytes(content)
    Deployment.read(file).not_passed()


def _call(content: bytes, file: Path) -> None:
    """The JSON of the page's calls, as the door in front of Gradio reads it."""
    from demo.page.mount import _parsed

    _parsed(content)


# By name: the file's, and what reads it
PARSERS: dict[str, tuple[str, Parse]] = {
    "zip": ("photos.zip", _zip),
    "csv": ("labels.csv", _csv),
    "toml": ("recipe.toml", _toml),
    "gates": ("gates.toml", _gates),
    "spec": ("their.onnx", _spec),
    "receipt": ("model.json", _receipt),
    "deployment": ("deployment.json", _deployment),
    "call": ("call.json", _call),
}
TREES = ["runtime", "training", "demo", "zipfile", "tomllib"]  # whose coverage guides


def seeds(name: str) -> list[bytes]:
    """What a parser reads without complaint, to begin with."""
    if name == "zip":
        return [_zipped(method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    if name == "csv":
        rows = b"filename,label,split\nlabels.csv,a,train\nlabels.csv,b,val\n"
        return [rows, b"sep=;\nlabel;filename\n'a';labels.csv\n", rows.decode().encode("utf-16")]
    if name == "toml":
        return [file.read_bytes() for file in sorted(RECIPES.glob("*.toml"))]
    if name == "gates":
        return [b"int8.shift = 0.2\n", b"[fp16]\nshift = 1e-2\n[int8-gpu]\naccuracy_drop = 0.01\n"]
    if name == "call":
        return [b'{"data": [{"path": "a.jpg", "meta": {}}], "fn_index": 1, "session_hash": "abc"}']
    return [json.dumps(_record(name)).encode()]


RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"


def _zipped(method: int) -> bytes:
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", method) as archive:
            for name in ("a.jpg", "folder/b.png", "../c.jpg", "d.zip"):
                archive.writestr(name, b"photo" * 9)
        file.seek(0)
        return file.read()


def _record(name: str) -> object:
    """A record as it is written, without the checksum of its spec, which nothing that is changed would get past."""
    from runtime.candidate import Candidate
    from runtime.deployment import Deployment, Measured, Rejected
    from runtime.files import read_json
    from runtime.machine import machine
    from runtime.receipt import FileFacts, Receipt
    from runtime.spec import Geometry, Guard, ModelSpec, Rejection

    spec = ModelSpec("x", "tiny", ("a", "b", "c"), Geometry.for_size(32), rejection=Rejection("energy", 1.5),
                     guard=Guard("a", "b", 0.4), translations={"id": ("d", "e", "f")}, schema_version=2)  # fmt: skip
    candidate = Candidate("tiny", "model.onnx", "ort-cpu", "fp32", verdict="pass", machine=machine())
    with tempfile.TemporaryDirectory() as folder:
        if name == "deployment":
            file, place = Path(folder) / "deployment.json", Measured(candidate, "models/x", "0" * 64, 9, 1.5)
            Deployment(place, "fastest", (place,), (Rejected("y", "slow: 3", "speed"),), {}, machine(), {}).write(file)
        else:
            file = Path(folder) / "model.json"
            Receipt(spec, {"model.onnx": FileFacts("0" * 64, 9)}, (candidate,), "0" * 64, {}).write(Path(folder))
        record = read_json(file)
    record.pop("spec_sha256", None)
    return record["spec"] if name == "spec" else record


def main() -> None:
    """Feed one parser. Arguments: its name, a seed, how many inputs, and the folder for what it works with."""
    name, seed, runs, folder = *sys.argv[1:4], Path(sys.argv[4])
    if importlib.util.find_spec("atheris"):
        _guide(name, seed, runs, folder)
    else:
        feed(one_of(name, folder), seeds(name), seed, runs, folder)


def one_of(name: str, folder: Path) -> Callable[[bytes], None]:
    """What feeds a parser one input, and raises where that is neither read nor refused in a sentence."""
    file, parse = PARSERS[name]
    (folder / "given").mkdir()

    def one(content: bytes) -> None:
        from demo.service.problem import Problem
        from runtime.errors import SajiError

        try:
            parse(content, folder / "given" / file)
        except SajiError as error:
            assert "\n" not in str(error), error
        except Problem as problem:
            assert "\n" not in problem.detail, problem.detail

    return one


def _guide(name: str, seed: str, runs: str, folder: Path) -> None:
    import atheris

    one = one_of(name, folder)
    (folder / "corpus").mkdir()
    with atheris.instrument_imports(include=TREES):
        for number, content in enumerate(seeds(name)):
            (folder / "corpus" / str(number)).write_bytes(content)
            one(content)  # imports what it needs
    flags = {"runs": runs, "seed": seed, "artifact_prefix": f"{folder}/", "max_len": LONGEST, "timeout": SECONDS}
    flags |= {"rss_limit_mb": MEBIBYTES}
    atheris.Setup(["guided", *(f"-{flag}={value}" for flag, value in flags.items()), str(folder / "corpus")], one)
    atheris.Fuzz()


def feed(one: Callable[[bytes], None], whole: list[bytes], seed: str, runs: str, folder: Path) -> None:
    """Feed it seeded changes of what is right, guided by nothing; what it raises is raised, once its input is kept."""
    from lab.torture.odd_pictures import OF_BYTES

    chance = random.Random(int(seed))
    for _ in range(int(runs)):
        content = chance.choice(whole)
        for _ in range(chance.choice((1, 1, 2, 4))):
            content = chance.choice(OF_BYTES)(chance, content)
        content = content[:LONGEST]
        try:
            _alarm(SECONDS)  # it ends the process
            one(content)
        except BaseException:
            (folder / f"crash-{hashlib.sha1(content).hexdigest()}").write_bytes(content)
            raise
        finally:
            _alarm(0)


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


if __name__ == "__main__":
    main()
