"""Write the tables of documents anew from the committed rows: `python -m lab.tables.write README.md docs/results.md`.

A block between `<!-- table FILE.jsonl KIND -->` and `<!-- end -->` is the table of that kind of the rows in that file.
With `--check` nothing is written, and the exit status is 1 when a table is stale.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import lab.load.table
from lab import engine_sizes, unseen
from lab.tables import capacity, gate_tables
from lab.tables import study as study_tables
from lab.tables.markdown import NAMES, markdown
from runtime.benchmark.rows import Row, read_rows
from runtime.benchmark.table import best, table
from runtime.command_line import exit_with_one_sentence
from runtime.errors import GateFailed

ROOT = Path(__file__).resolve().parents[2]

_BLOCK = re.compile(r"(?P<begin><!-- table (?P<file>\S+) (?P<kind>\S+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)


def claims(rows: list[Row]) -> str:
    """Ratios of `lab.claims.ratio`: what was claimed, what was measured."""
    head = "work", "to reach", "measured (lowest–highest pair)", "rounds", "measured on"
    lines = [
        (
            row["claim"],
            f"{row['target']:.3g}×",
            _measured(row),
            str(row["rounds"]),
            f"{row['machine_cores']} cores of {row['machine_cpu']} ({', '.join(row['machine_cpu_features'])})",
        )
        for row in rows
    ]
    return markdown(head, lines)


def _measured(row: Row) -> str:
    digits = 2 if row["ratio"] < 2 else 1
    low, high = (f"{row[name]:.{digits}f}" for name in ("ratio_low", "ratio_high"))
    harness = {theirs["result"] for _, theirs in row.get("said", []) if "result" in theirs}  # LoadGen's own verdict
    return ", ".join([f"{row['ratio']:.{digits}f}× ({low}–{high})", *sorted(harness)])


def tried(rows: list[Row]) -> str:
    """What `lab.claims.tried` found: with the idea against without it, and what became of it."""
    head = "idea", "as fast with it as without (lowest–highest pair)", "kept"
    lines = [
        (
            row["claim"],
            f"{row['ratio']:.2f}× ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})",
            f"no: {row['why_not']}" if row["why_not"] else "yes",
        )
        for row in rows
    ]
    row = rows[-1]
    machine = f"{row['machine_cores']} cores of {row['machine_cpu']} ({', '.join(row['machine_cpu_features'])})"
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("onnxruntime", "openvino", "pillow"))
    return (
        f"{markdown(head, lines)}\n\n{row['rounds']} pairs of runs each; {machine}; {versions}; commit {row['commit']}."
    )


def cost(rows: list[Row]) -> str:
    """What an export takes."""
    head = "export of", "size", "files", "candidates judged", "validation photos", "seconds", "peak memory, MiB"
    lines = [
        (
            NAMES[row["architecture"]],
            f"{row['image_size']} px",
            str(row["files"]),
            str(row["judged"]),
            str(row["photos"]),
            f"{row['seconds']:.0f}",
            f"{row['peak_memory_mib']:,}",
        )
        for row in rows
    ]
    row = rows[-1]
    machine = f"{row['machine_cores']} cores of {row['machine_cpu']}"
    return f"{markdown(head, lines)}\n\n{machine}, with recovery and engines for all targets; commit {row['commit']}."


KINDS: dict[str, Callable[[list[Row]], str]] = {
    "all": table,
    "best": lambda rows: table(best(rows)),
    "claims": claims,
    "tried": tried,
    "seeds": study_tables.seeds,
    "folds": study_tables.folds,
    "finest": study_tables.finest,
    "duplicates": study_tables.duplicates,
    "growth": study_tables.growth,
    "suspects": study_tables.suspects,
    "unseen": unseen.table,
    "load": lab.load.table.table,
    "engine_sizes": engine_sizes.table,
    "mutants": gate_tables.mutants,
    "faint": gate_tables.faint,
    "cost": cost,
    "healthy": gate_tables.healthy,
    "embedded": gate_tables.embedded,
    "capacity": capacity.table,
    "bottleneck": capacity.bottleneck,
    "capacity_check": capacity.check,
}


def refreshed(text: str) -> str:
    """`text` with every table block generated anew from the rows it names."""
    return _BLOCK.sub(lambda m: f"{m['begin']}{_table(m['file'], m['kind'])}\n{m['end']}", text)


def _table(file: str, kind: str) -> str:
    there = (ROOT / file).is_file()
    return KINDS[kind](read_rows(ROOT / file)) if there else f"Not measured yet: there is no `{file}`."


def main() -> None:
    """Rewrite or check the documents named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.tables.write", description=__doc__)
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when a table is stale")
    arguments = parser.parse_args()
    for path in arguments.documents:
        text = path.read_text(encoding="utf-8")
        if arguments.check and refreshed(text) != text:
            raise GateFailed(f"{path} has a table that is not that of its rows; run: make readme")
        path.write_text(refreshed(text), encoding="utf-8")


if __name__ == "__main__":
    exit_with_one_sentence(main)
