"""The names of a foreign network's classes, from the file that --classes gives."""

import ast
import json
import re
import unicodedata
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from export.foreign.opening import require_file
from runtime.errors import SajiError
from runtime.files import reading
from runtime.markdown import is_printable
from training.photos.listing import unicode_text

# What lists put around a name, here or there with the number of its logit: YAML, labels.txt, the class_indices of Keras
_AROUND = [
    re.compile(r"[-*] +(?P<name>.+)"),
    re.compile(r"""(?P<quote>["']?)(?P<at>\d{1,9})(?P=quote)(?:\s*[:,;=]\s*|[.)]?\s+)(?P<name>.+)"""),
    re.compile(r"""(?P<name>.+?)\s*[:,;=\t]\s*(?P<quote>["']?)(?P<at>\d{1,9})(?P=quote)"""),
]
_QUOTED = re.compile(r"""(["'])(?:(?!\1)[^\\]|\\.)+\1""")  # one text, not several

_SIDE_BY_SIDE = re.compile(r"""["']\s+["']""")  # which Python makes one text of, and NumPy prints


def read_classes(path: Path) -> tuple[str, ...]:
    """The names in a text file, one a line; blank lines are left out.

    Raises SajiError for what is no text, cannot be printed or is there twice.
    """
    require_file(path, "a file, a class a line")
    with reading(path):
        text = unicode_text(path.read_bytes())
    if text is None:
        raise SajiError(f"{path} is no UTF-8 text; save it as UTF-8, with a class a line")
    lines = _written_out(text, path) or _bare([line.strip() for line in text.splitlines()])
    if strange := [line for line in lines if not is_printable(line)]:
        raise SajiError(f"{path} has the class {strange[0]!r}, whose name cannot be printed; rename it")
    for name, count in Counter(map(composed, filter(None, lines))).items():
        if count > 1:
            at = ", ".join(str(number) for number, line in enumerate(lines, 1) if composed(line) == name)
            raise SajiError(f"{path} names {name!r} {count} times (lines {at}); tell them apart, such as {name!r} (2)")
    return tuple(filter(None, lines))


def _written_out(text: str, path: Path) -> list[str]:
    """The names in a list or dict of JSON, or in one line of Python, in the order of the logits or with their numbers.

    None where the text is something else. Raises SajiError where it does not name each logit.
    """
    found: Any = None
    without_last_comma = re.sub(r",\s*([\]}])", r"\1", text)
    one_line = text.strip() if len(text.split("\n")) <= 2 and not _SIDE_BY_SIDE.search(text) else ""
    for read, each in ((ast.literal_eval, one_line), (json.loads, without_last_comma), (json.loads, text)):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an escape that only JSON has
            found = read(each)
    if isinstance(found, dict):
        inner = found.get("id2label")  # of a config.json of Hugging Face
        found = _in_order(inner if isinstance(inner, dict) else found)
    if not isinstance(found, list | tuple):
        return []
    names = [str(name).strip() if isinstance(name, str | int) else "" for name in found]
    if not names or not all(names):
        raise SajiError(f"{path} is a list or a dict that does not name each logit; write a class a line")
    return names


def _in_order(found: dict[Any, Any]) -> list[Any]:
    """The names of a dict from numbers to names, or from names to numbers; empty where it is neither."""
    to_numbers = all(isinstance(at, int) for at in found.values()) or not all(str(at).isdecimal() for at in found)
    numbered = {str(at): name for name, at in found.items()} if to_numbers else {str(at): found[at] for at in found}
    return [numbered[str(at)] for at in range(len(found))] if {*map(str, range(len(found)))} == {*numbered} else []


def _bare(lines: list[str]) -> list[str]:
    """Lines without what JSON, YAML or the numbers of the logits put around the name in each of them.

    What is around some alone is part of their names, and so are numbers that are not those of the logits.
    """
    filled = {place: line for place, line in enumerate(lines) if line}
    names = [*filled.values()]
    if len(names) > 2 and names[0] + names[-1] in ("[]", "{}"):
        filled = dict([*filled.items()][1:-1])
        names = names[1:-1]
    if all(line.endswith(",") for line in names[:-1]):
        names = [line.removesuffix(",").strip() for line in names]
    for around in _AROUND:
        matches = [match for match in map(around.fullmatch, names) if match]
        numbers = [int(match["at"]) for match in matches if "at" in match.groupdict()]
        if len(matches) == len(names) and numbers in ([], [*range(len(names))]):
            names = [match["name"] for match in matches]
    if all(map(_QUOTED.fullmatch, names)):
        names = [_unquoted(line) for line in names]
    bare = dict(zip(filled, names, strict=True))
    return [bare.get(place, "") for place in range(len(lines))]


def _unquoted(name: str) -> str:
    """A name without its quotes; in double ones JSON writes some letters by their number."""
    try:
        return json.loads(name).strip()
    except ValueError:
        return name[1:-1].strip()


def composed(name: str) -> str:
    """A name with each accent in its letter (NFC): macOS writes names of folders the other way."""
    return unicodedata.normalize("NFC", name)
