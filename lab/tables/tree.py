"""The tree of the house in CONTRIBUTING.md: each folder's files with the first sentence of their docstrings."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("training", "export", "runtime", "demo", "lab")


def tree(root: Path) -> str:
    """Every module with a docstring as a line of Markdown code, a folder's own files before its rooms."""
    return "\n".join(["```", *(line for room in ROOMS for line in _lines(root / room, 0)), "```"])


def _lines(folder: Path, depth: int) -> Iterator[str]:
    """The lines of one folder; `demo/embed`, the examples for other apps, is not part of the house."""
    modules = [(file, _purpose(file)) for file in sorted(folder.glob("*.py"))]
    rooms = [room for room in sorted(folder.iterdir()) if room.is_dir() and room.name != "embed"]
    yield f"{'  ' * depth}{folder.name}/"
    for file, purpose in modules:
        if purpose:
            yield f"{'  ' * (depth + 1) + file.name:28} {purpose}"
    for room in rooms:
        if any(room.rglob("*.py")):
            yield from _lines(room, depth + 1)


def _purpose(file: Path) -> str:
    """The first line of a module's docstring; without one it has nothing to say."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
