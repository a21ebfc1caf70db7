"""docs/colab.ipynb: a notebook without outputs, whose commands exist, and which runs from first cell to last."""

import ast
import json
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "docs" / "colab.ipynb"


@cache
def cells() -> list[dict]:
    found: list[dict] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return found


def code() -> list[str]:
    return ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]


def settings() -> dict[str, object]:
    """What the first code cell sets."""
    values: dict[str, object] = {}
    exec(code()[0], values)
    return {name: value for name, value in values.items() if name.isupper()}


def commands() -> list[list[str]]:
    """Every command line that a cell runs, for whatever machine, with the settings as they are."""
    names = {**settings(), "PYTHON": "python", "data": "--data photos", "extras": "gpu,tensorrt", "shlex": shlex}
    names |= {"sys": sys, "str": str}
    found = []
    for node in ast.walk(ast.parse("\n".join(code()))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run" and node.args:
            found.append(shlex.split(eval(ast.unparse(node.args[0]), {}, dict(names))))
        if isinstance(node, ast.List) and ast.unparse(node).startswith("[sys.executable"):
            found.append(["python", *eval(ast.unparse(node), {}, dict(names))[1:]])
    return found


def test_it_is_a_notebook_of_version_4_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (
        notebook["nbformat"] == 4 and notebook["nbformat_minor"] >= 5 and notebook["metadata"]["accelerator"] == "GPU"
    )
    assert len({cell["id"] for cell in cells()}) == len(cells()) > 10
    for cell in cells():
        assert cell["cell_type"] in ("code", "markdown") and "".join(cell["source"]).strip()
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            compile("".join(cell["source"]), cell["id"], "exec")


def test_what_only_colab_has_is_asked_for_on_colab_alone() -> None:
    for text in code():
        for node in ast.parse(text).body:
            source = ast.unparse(node)
            assert not re.search(r"google\.colab import|nvidia-smi|git clone|pip install", source) or (
                isinstance(node, ast.If) and "COLAB" in ast.unparse(node.test)
            ), source


def test_its_commands_and_their_flags_exist() -> None:
    ours = [line for line in commands() if line[0] == "python" and line[1:3] != ["-m", "pip"]]
    assert len(ours) >= 7
    for line in ours:
        words = line[2:4] if line[1] == "-m" and line[2] in ("runtime", "lab") else line[2:3] if line[1] == "-m" else []
        start = ["-m", *words] if words else line[1:2]
        assert words or (ROOT / line[1]).is_file(), line
        if line[1] != "runtime/nvidia.py":
            told = subprocess.run([sys.executable, *start, "--help"], cwd=ROOT, capture_output=True, text=True)
            assert told.returncode == 0, told.stderr
            flags = {word for word in line if word.startswith("--")}
            missing = {flag for flag in flags if flag not in told.stdout.replace("--[no-]", "--no-")}
            assert not missing, (line, missing)


def test_what_it_installs_is_ours_to_install() -> None:
    (asked,) = [line[-1] for line in commands() if line[1:3] == ["-m", "pip"]]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    extras = set(asked.removeprefix(".[").removesuffix("]").split(","))
    assert {"train", "export", "demo"} < extras <= set(known)


@pytest.mark.slow
def test_it_runs_from_the_first_cell_to_the_last(tmp_path: Path) -> None:
    from training.photos.drawn import write_sample

    sample = write_sample(tmp_path / "sample", per_class=40, size=72)  # a verdict takes 30 validation photos
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {"PHOTOS": str(sample), "OUT": str(tmp_path / "out"), "PORT": port, "BENCH": "--seconds 3"}
    own["TRAIN"] = "--recipe quick --archs resnet18 --epochs 1 --image-size 32 --device cpu"
    first, *others = code()
    script = "\n".join([first, *(f"{name} = {value!r}" for name, value in own.items()), *others])
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "choice: resnet18" in done.stdout and re.search(r"^resnet18 · .* says \w+$", done.stdout, re.MULTILINE)
    assert (tmp_path / "out" / "deployment.json").is_file()
