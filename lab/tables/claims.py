"""The tables of claims about speed, and of ideas that were tried to be faster."""

from lab.tables.markdown import markdown
from runtime.benchmark.rows import Row


def claims(rows: list[Row]) -> str:
    """Ratios of `lab.claims.comparison`: what was claimed, what was measured."""
    head = "work", "to reach", "measured (lowest–highest pair)", "rounds", "measured on"
    lines = [(row["claim"], f"{row['target']:.3g}×", _measured(row), str(row["rounds"]), machine(row)) for row in rows]
    return markdown(head, lines)


def _measured(row: Row) -> str:
    digits = 2 if row["ratio"] < 2 else 1
    low, high = (f"{row[name]:.{digits}f}" for name in ("ratio_low", "ratio_high"))
    verdicts = {theirs["result"] for _, theirs in row.get("said", []) if "result" in theirs}  # LoadGen's own
    return ", ".join([f"{row['ratio']:.{digits}f}× ({low}–{high})", *sorted(verdicts)])


def tried(rows: list[Row]) -> str:
    """Each idea: how fast with it against without it, and what became of it.

    `lab.claims.speed` still measures those that are kept. The others' code is in the commit that the rows name.
    """
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
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("onnxruntime", "openvino", "pillow"))
    conditions = f"{row['rounds']} pairs of runs each; {machine(row)}; {versions}; commit {row['commit']}."
    return f"{markdown(head, lines)}\n\n{conditions}"


def machine(row: Row) -> str:
    """The processor that a row was measured on."""
    return f"{row['machine_cores']} cores of {row['machine_cpu']} ({', '.join(row['machine_cpu_features'])})"
