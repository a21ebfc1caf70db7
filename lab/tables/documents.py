"""Write the tables of documents anew from the committed rows, and the pictures that they show.

A block between `<!-- table FILE.jsonl KIND -->` and `<!-- end -->` is the table of that kind of the rows in that file,
or in several with commas between, one between `<!-- tree -->` and `<!-- end -->` is the tree of all modules. With
--check nothing is written, and the exit status is 1 when one of them or a picture is stale.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from lab.tables import capacity, claims, gate, load, networks, study
from lab.tables.tree import tree
from runtime.benchmark.rows import Row, read_rows
from runtime.benchmark.table import best, table
from runtime.errors import GateFailed
from runtime.files import replacing

ROOT = Path(__file__).resolve().parents[2]

_BLOCK = re.compile(r"(<!-- (?:table (?P<file>\S+) (?P<kind>\S+)|tree) -->\n).*?(?=<!-- end -->)", re.DOTALL)

KINDS: dict[str, Callable[[list[Row]], str]] = {
    "all": table,
    "best": lambda rows: table(best(rows)),
    "lead": claims.lead,
    "claims": claims.claims,
    "tried": claims.tried,
    "seeds": study.seeds,
    "from_nothing": study.from_nothing,
    "held_out": study.held_out,
    "limits": study.limits,
    "headline": study.headline,
    "coverage": study.coverage,
    "duplicates": study.duplicates,
    "planted": study.planted,
    "growth": study.growth,
    "suspects": study.suspects,
    "unseen": study.unseen,
    "sources": study.sources,
    "load": load.table,
    "page": load.page,
    "cost": claims.export_cost,
    "first_use": claims.first_use,
    "torture": claims.torture,
    "soak": claims.soak,
    "containers": claims.containers,
    "engine_sizes": claims.engine_sizes,
    "mutants": gate.mutants,
    "faint": gate.faint,
    "healthy": gate.healthy,
    "bounds": gate.bounds,
    "embedded": gate.embedded,
    "networks": networks.networks,
    "bulk": capacity.bulk,
    "scale": claims.scale,
    "capacity": capacity.table,
    "bottleneck": capacity.bottleneck,
    "capacity_check": capacity.check,
}


def refreshed(text: str) -> str:
    """`text` with every block generated anew, a table from the rows it names."""
    return _BLOCK.sub(lambda m: f"{m[1]}{_table(m['file'], m['kind']) if m['file'] else tree(ROOT)}\n", text)


def _table(file: str, kind: str) -> str:
    files = file.split(",")
    for name in files:
        if not (ROOT / name).is_file():
            return f"Not measured yet: there is no `{name}`."
    return KINDS[kind]([row for name in files for row in read_rows(ROOT / name)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The documents."""
    parser.add_argument("documents", nargs="+", type=Path, help="Markdown files, such as README.md docs/*.md")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when a table or picture is stale")


def write(arguments: argparse.Namespace) -> None:
    """Rewrite the named documents where they are stale, or raise GateFailed for the first that is."""
    for path in arguments.documents:
        text = path.read_text(encoding="utf-8")
        if (fresh := refreshed(text)) != text:
            _require_change(arguments.check, f"{path} has a table that is not that of its rows")
            with replacing(path) as temporary:
                temporary.write_text(fresh, encoding="utf-8")
        if f"({gate.PICTURE})" in text and gate.is_stale(path.parent / gate.PICTURE):
            _require_change(arguments.check, f"{path.parent / gate.PICTURE} was drawn from other rows or bounds")
            gate.draw(path.parent / gate.PICTURE)


def _require_change(check: bool, what: str) -> None:
    if check:
        raise GateFailed(f"{what}; run: make readme")
