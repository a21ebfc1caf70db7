"""The tables of what an export takes and how large engines are."""

from lab.tables.markdown import NAMES, markdown
from runtime.benchmark.rows import Row


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


def engine_sizes(rows: list[Row]) -> str:
    """Megabytes by precision and whether a second build is the same file."""
    head = "network", "FP32 MB", "FP16 MB", "INT8 MB", "ratio", "second build"
    lines = []
    for row in rows:
        sizes = (f"{row['bytes'][precision] / 1e6:.1f}" for precision in ("fp32", "fp16", "int8"))
        lines.append(
            (row["architecture"], *sizes, row["ratio"], "the same bytes" if row["identical"] else "other bytes")
        )
    row = rows[0]
    where = f"for {', '.join(row['targets'])}, {row['image_size']} px, untrained"
    version = row["versions"]["tensorrt-rtx-cu13"]
    conditions = f"TensorRT-RTX {version}, built {where}; commit {row['commit']}, {row['time'][:10]}."
    return f"{markdown(head, lines)}\n\n{conditions}"
