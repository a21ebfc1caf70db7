"""Rows as Markdown, on the terminal and in the documents (`docs/tables.py`)."""

from runtime.benchmark.rows import Row

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
