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


def read_classes(path: Path) -> tuple[str, ...]:
    """The names in a text file, one a line; blank lines are left out.

    Raises SajiError for what is no text, cannot be printed or is there twice.
    """
    require_file(path, "a file, a class a line")
    with reading(path):
        text = unicode_text(path.read_bytes())
    if text is None:
        raise SajiError(f"{path} is no UTF-8 text; save it as UTF-8, with a class a line")
    lines = _written_out(text) or _bare([line.strip() for line in text.splitlines()])
    if strange := [line for line in lines if not is_printable(line)]:
        raise SajiError(f"{path} has the class {strange[0]!r}, whose name cannot be printed; rename it")
    for name, count in Counter(map(composed, filter(None, lines))).items():
        if count > 1:
            at = ", ".join(str(number) for number, line in enumerate(lines, 1) if composed(line) == name)
            raise SajiError(f"{path} names {name!r} {count} times (lines {at}); tell them apart, such as {name!r} (2)")
    return tuple(filter(None, lines))


def _written_out(text: str) -> list[str]:
    """The names in a list or dict of JSON or Python, which has them in the order of the logits or with their numbers;
    none where the text is something else."""
    found: Any = None
    for read in (ast.literal_eval, json.loads):  # JSON last, which escapes more: what both can read is read by it
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an escape that only JSON has
            found = read(text.strip())
    if isinstance(found, dict):
        pairs = [(key, name) if str(key).isdecimal() else (name, key) for key, name in found.items()]
        numbered = {int(at): name for at, name in pairs if str(at).isdecimal()}
        found = [numbered[at] for at in sorted(numbered)] if [*range(len(found))] == sorted(numbered) else None
    names = found if isinstance(found, list | tuple) else ()
    return [name.strip() for name in names] if all(isinstance(name, str) for name in names) else []


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
