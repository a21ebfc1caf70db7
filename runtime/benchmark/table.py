"""Rows as Markdown, on the terminal and in the README; the README's tables are generated and a test holds them fresh.

`python -m runtime.benchmark.table README.md` rewrites every block between `<!-- table FILE.jsonl -->` and
`<!-- end -->` from that file of rows; with the word `best` after the file, only the fastest candidate of each
architecture and its fastest PyTorch variant.
"""

import re
import sys
from pathlib import Path

from runtime.benchmark.rounds import ROOT
from runtime.benchmark.rows import Row, read_rows
from runtime.errors import SajiError, exit_with_one_sentence

_COLUMNS = (
    "candidate",
    "batch",
    "ms (p25–p75)",
    "photos/s",
    "against the fastest PyTorch",
    "accuracy (95 % interval)",
    "parity",
    "file MB",
    "peak MiB",
)
_BLOCK = re.compile(r"(?P<begin><!-- table (?P<file>\S+)(?P<best> best)? -->\n).*?(?P<end><!-- end -->)", re.DOTALL)


def table(rows: list[Row]) -> str:
    """One line per candidate and batch, fastest first, with the conditions below."""
    baseline: dict[int, float] = {}  # the fastest PyTorch variant of each batch size, whatever the architecture
    for row in rows:
        if row["backend"] == "pytorch":
            baseline[row["batch"]] = min(row["milliseconds"], baseline.get(row["batch"], row["milliseconds"]))
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---|" + "---:|" * 5 + "---|---:|---:|"]
    for row in sorted(rows, key=lambda row: (row["batch"], row["milliseconds"])):
        low, high = row["accuracy_interval"]
        cells = (
            row["candidate"],
            str(row["batch"]),
            f"{row['milliseconds']:.2f} ({row['p25']:.2f}–{row['p75']:.2f}){' unstable' if row['unstable'] else ''}",
            f"{row['images_per_second']:.0f}",
            f"{baseline[row['batch']] / row['milliseconds']:.2f}×" if row["batch"] in baseline else "",
            f"{row['accuracy']:.3f} ({low:.2f}–{high:.2f})",
            row["verdict"],
            f"{row['file_bytes'] / 1e6:.1f}",
            f"{row['peak_memory_mib'] or 0:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", conditions(rows)])


def best(rows: list[Row]) -> list[Row]:
    """Of each architecture and batch size the fastest row, and the fastest of PyTorch."""
    fastest: dict[tuple[str, int, bool], Row] = {}
    for row in sorted(rows, key=lambda row: -row["milliseconds"]):
        fastest[row["architecture"], row["batch"], row["backend"] == "pytorch"] = row
    return list(fastest.values())


def claims(rows: list[Row]) -> str:
    """Rows of `runtime.benchmark.ratio` as a table: what was claimed, what was measured."""
    lines = ["| work | to reach | measured (lowest–highest pair) | rounds |", "|---|---:|---:|---:|"]
    lines += [
        f"| {row['claim']} | {row['target']:g}× | {row['ratio']:.1f}× ({row['ratio_low']:.1f}–{row['ratio_high']:.1f}) "
        f"| {row['rounds']} |"
        for row in rows
    ]
    return "\n".join(lines)


def engine_sizes(rows: list[Row]) -> str:
    """Rows of `export.engine_sizes` as a table: megabytes by precision and whether a second build is the same file."""
    lines = ["| network | FP32 MB | FP16 MB | INT8 MB | ratio | second build |", "|---|---:|---:|---:|---:|---|"]
    for row in rows:
        sizes = " | ".join(f"{row['bytes'][precision] / 1e6:.1f}" for precision in ("fp32", "fp16", "int8"))
        again = "the same bytes" if row["identical"] else "other bytes"
        lines.append(f"| {row['architecture']} | {sizes} | {row['ratio']} | {again} |")
    row = rows[0]
    where = f"for {', '.join(row['targets'])}, {row['image_size']} px, untrained"
    version = row["versions"]["tensorrt-rtx-cu13"]
    return "\n".join(
        [*lines, "", f"TensorRT-RTX {version}, built {where}; commit {row['commit']}, {row['time'][:10]}."]
    )


def conditions(rows: list[Row]) -> str:
    """One sentence: what was timed, on what, with which versions."""
    row = rows[0]
    sizes = "/".join(sorted({f"{r['image_size']} px" for r in rows}))
    versions = row["versions"]
    names = [f"{n} {versions[n]}" for n in ("torch", "onnxruntime", "openvino", "tensorrt-rtx-cu13") if n in versions]
    where = f"{row['machine_cores']} cores of {row['machine_cpu']} ({', '.join(row['machine_cpu_features'])})"
    gpu = row["machine_gpu"] or "no GPU"
    data = "drawn dishes, not photos" if row["drawn"] else "real photos"
    return (
        f"{row['scenario'].capitalize()}; {sizes}; {row['rounds']} interleaved rounds, each candidate in its own "
        f"process; {where}, {gpu}; accuracy on {row['photos']} validation pictures ({data}); {', '.join(names)}; "
        f"commit {row['commit']}{' with local changes' if row['dirty'] else ''}, {row['time'][:10]}."
    )


def refreshed(text: str, root: Path) -> str:
    """`text` with every table block generated anew from the rows it names, relative to `root`."""

    def block(match: re.Match[str]) -> str:
        rows = read_rows(root / match["file"])
        if rows[0]["experiment"] == "ratio":
            return f"{match['begin']}{claims(rows)}\n{match['end']}"
        if rows[0]["experiment"] == "engine sizes":
            return f"{match['begin']}{engine_sizes(rows)}\n{match['end']}"
        return f"{match['begin']}{table(best(rows) if match['best'] else rows)}\n{match['end']}"

    return _BLOCK.sub(block, text)


def main() -> None:
    """Rewrite the tables of the Markdown files named on the command line."""
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        raise SajiError("name the Markdown files to refresh: python -m runtime.benchmark.table README.md")
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(refreshed(path.read_text(encoding="utf-8"), ROOT), encoding="utf-8")


if __name__ == "__main__":
    exit_with_one_sentence(main)
