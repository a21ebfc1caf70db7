"""How the house is built: which room may use which, no circle, and the laboratory apart from the product."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

# What each package may import beside itself
ARROWS = {
    "runtime": set[str](),
    "training": {"runtime"},
    "export": {"training", "runtime"},
    "demo": {"runtime"},
    "lab": {"training", "export", "runtime", "demo"},
}
PRODUCT = ("training", "export", "runtime", "demo")
IMPORT_IN_TEXT = re.compile(rf"^\s*(?:from|import) ((?:{'|'.join(ARROWS)})[\w.]*)", re.MULTILINE)


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name; a package's `__init__` has the package's."""
    files = [file for package in ARROWS for file in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return {name: file for name, file in zip(names, files, strict=True) if not name.startswith("demo.embed.")}


def module_of(dotted: str) -> str | None:
    """The module of ours that `dotted`, such as "runtime.errors.SajiError", lies in."""
    while dotted and dotted not in modules():
        dotted = dotted.rpartition(".")[0]
    return dotted or None


@cache
def imported_by(name: str) -> frozenset[str]:
    """The modules of ours that a module imports anywhere in it, or names in a text that is run as a program."""
    found = set[str]()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(IMPORT_IN_TEXT.findall(node.value))
            found |= {node.value} & set(modules())  # python -m
    return frozenset(filter(None, map(module_of, found))) - {name}


def require_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


def room(module: str) -> str:
    """The folder that a module lies in, or the module itself where it lies in a package's own folder."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("package", ARROWS)
def test_imports_follow_the_arrows(package: str) -> None:
    for name in modules():
        if name.split(".")[0] == package:
            others = {other.split(".")[0] for other in imported_by(name)} - {package}
            assert others <= ARROWS[package], (name, others)


def test_no_file_imports_itself_in_a_circle() -> None:
    require_no_circle({name: set(imported_by(name)) for name in modules()})


def test_no_room_imports_itself_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for name in modules():
        rooms.setdefault(room(name), set()).update(room(other) for other in imported_by(name))
    require_no_circle({name: others - {name} for name, others in rooms.items()})


def test_the_laboratory_is_not_installed() -> None:
    packages = re.search(r"^packages = (\[.*\])$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert packages and ast.literal_eval(packages[1]) == list(PRODUCT)


def test_documents_are_documents() -> None:
    assert not list((ROOT / "docs").rglob("*.py"))


def test_functions_stay_short() -> None:
    lengths = []
    for file in modules().values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append((node.end_lineno or 0) - node.lineno + 1)
                assert lengths[-1] <= 50, f"{file.name}: {node.name} has {lengths[-1]} lines"
    assert sorted(lengths)[len(lengths) * 9 // 10] < 25


def test_text_is_written_where_names_that_are_no_text_are_thought_of() -> None:
    """By `runtime.files.write_text`: a photo's name may be any bytes, and no report of it may end in a traceback."""
    for name, file in modules().items():
        if name.split(".")[0] in PRODUCT:
            assert ".write_text(" not in file.read_text(encoding="utf-8"), name


def test_no_stage_folder_shadows_a_library() -> None:
    import sys

    names = {name.split(".")[1] for name in modules() if name.count(".") == 1} - {"__main__"}
    libraries = {
        "onnx",
        "onnxruntime",
        "openvino",
        "tensorrt",
        "torch",
        "gradio",
        "numpy",
        "lightning",
        "nncf",
        "triton",
    }
    assert not names & (libraries | set(sys.stdlib_module_names))


def test_the_service_knows_nothing_of_the_page() -> None:
    for name in modules():
        if name.startswith("demo.service."):
            assert not {other for other in imported_by(name) if other.startswith("demo.page")}, name
            assert "import gradio" not in modules()[name].read_text(encoding="utf-8")
