"""`python -m lab VERB`: what shows that saji is right and fast, and is no part of what a user runs.

Every verb but `tables` measures something. Its rows all get the same conditions (time, commit, machine, versions) here,
are appended to a .jsonl file, and are printed to stdout as JSON.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

# What every verb needs; said here, where any Python can, before the imports below end in a traceback
_NEEDED = {"numpy": "numpy", "PIL": "pillow", "psutil": "psutil"}
_lacking = [package for name, package in _NEEDED.items() if importlib.util.find_spec(name) is None]
if sys.version_info < (3, 11) or _lacking:
    version = f"saji needs Python 3.11 or newer, this is {sys.version.split()[0]}; type: python3.12 -m lab …"
    install = f"{sys.executable} -m pip install {' '.join(_NEEDED.values())}"
    line = f"{', '.join(_lacking)} is not installed for {sys.executable}; type: {install}"
    print(f"saji: {version if sys.version_info < (3, 11) else line}", file=sys.stderr)
    sys.exit(2)

from runtime import environment
from runtime.benchmark.rows import Row, append_rows, require_appendable
from runtime.command_line import Parser, exit_with_one_sentence
from runtime.errors import Unavailable


@dataclass(frozen=True)
class Verb:
    """`module` has `add_arguments(parser)` and `measure(arguments)`, which yields rows without their conditions.

    They are appended to the file `rows` unless --rows names another; where there is neither, they are only printed.
    Not `printed` are those of a verb that prints something shorter itself.
    """

    module: str
    help: str
    rows: str = ""
    printed: bool = True


VERBS = {
    "speed": Verb("lab.claims.speed", "claims about speed, each a ratio of pairs of runs"),
    "training": Verb("lab.claims.training", "photos a second of our trainer beside other loops"),
    "load": Verb("lab.load.experiments", "the service under load"),
    "page": Verb("lab.load.page", "seconds to an answer on the page, in a browser", "results/page.jsonl"),
    "mutants": Verb("lab.mutants", "does the gate catch broken exports?", "results/mutants.jsonl"),
    "foreign": Verb("lab.foreign", "how closely other people's graphs agree with PyTorch", "results/foreign.jsonl"),
    "study": Verb("lab.study", "networks and recipes compared", "results/study.jsonl"),
    "networks": Verb("lab.networks", "every network of torchvision, tried", "results/networks.jsonl"),
    "first-use": Verb("lab.first_use", "how long a newcomer waits", "results/first_use.jsonl"),
    "mutation": Verb("lab.mutation", "do the tests notice wrong lines?", "results/mutation.jsonl"),
    "torture": Verb("lab.torture.campaign", "thousands of attempts to break it", "results/torture.jsonl"),
    "supply": Verb("lab.supply", "what serving installs, and what is known of it", "results/supply.jsonl"),
    "soak": Verb("lab.soak", "does anything grow in half an hour of load?", "results/soak.jsonl"),
    "sources": Verb("lab.sources", "does a classifier hold for another collection?", "results/sources.jsonl"),
    "unseen": Verb("lab.unseen", "does a classifier notice a class that it never saw?", "results/unseen.jsonl"),
    "coverage": Verb("lab.coverage", "does an interval hold for the next photos?", "results/coverage.jsonl"),
    "duplicates": Verb("lab.duplicates", "how well duplicates are found, and how the search grows"),
    "geometry": Verb("lab.geometry", "does resizing in the graph keep the answers?"),
    "suspects": Verb("lab.suspects", "how many mislabelled photos are found", "results/suspects.jsonl"),
    "engine-sizes": Verb("lab.engine_sizes", "how large TensorRT-RTX engines are, by precision"),
    "gpu-check": Verb("lab.gpu_check.command", "what only a GPU can settle", "results/gpu.jsonl", printed=False),
    "containers": Verb("lab.containers", "images, and the service as it is deployed", "results/containers.jsonl"),
    "scale": Verb("lab.scale", "what a fleet loses where its replicas are killed", "results/scale.jsonl"),
    "bulk": Verb("lab.bulk", "what Ray costs beside classify on the same cores", "results/bulk.jsonl"),
    "export-cost": Verb("lab.export_cost", "seconds and memory that an export takes", "results/export.jsonl"),
}
TABLES = Verb("lab.tables.documents", "write the tables of documents anew from the committed rows")


def main() -> None:
    """Read the command line, then measure and keep the rows, or write the tables."""
    parser = Parser(prog="python -m lab", description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in {**VERBS, "tables": TABLES}.items():
        form = argparse.RawDescriptionHelpFormatter
        flags = verbs.add_parser(name, help=verb.help, formatter_class=form)
        if name in sys.argv[1:2]:  # no other verb's libraries are needed
            module = _imported(verb.module)
            flags.description = module.__doc__
            module.add_arguments(flags)
            if name in VERBS:
                kept = f"append the rows to this .jsonl ({verb.rows or 'none'})"
                flags.add_argument("--rows", type=Path, default=verb.rows or None, help=kept)
    arguments = parser.parse_args()
    if arguments.verb in VERBS:
        keep(module.measure(arguments), arguments.rows, VERBS[arguments.verb].printed)
    else:
        module.write(arguments)


def keep(rows: Iterable[Row], path: Path | None, printed: bool = True) -> None:
    """Add to each row the conditions it was measured in, append it to a .jsonl if one is given, and print it if so.

    Where that file cannot be written is said before anything is measured.
    """
    if path:
        require_appendable(path)
    for row in rows:
        stamped = {**row, **environment.stamp()}
        if path:
            append_rows(path, [stamped])
        if printed:
            print(json.dumps(stamped, ensure_ascii=False), flush=True)


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed; install all that the lab needs with: make setup") from None


if __name__ == "__main__":
    exit_with_one_sentence(main)
