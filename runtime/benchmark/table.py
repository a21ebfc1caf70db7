"""Rows as Markdown, on the terminal and in the documents (`lab/tables/documents.py`)."""

from collections.abc import Callable
from functools import partial

from runtime.backends import distributions
from runtime.benchmark.rows import TAILS, Row, per_round
from runtime.comparison import compared
from runtime.evaluation import with_interval

Column = tuple[str, Callable[[Row], str]]


def table(rows: list[Row]) -> str:
    """One line per candidate and batch, fastest first, with the conditions below; a table for each scenario."""
    by_scenario: dict[str, list[Row]] = {}
    for row in rows:
        by_scenario.setdefault(row["scenario"], []).append(row)
    return "\n\n".join(
        _server(group) if scenario == "server" else _timed(group) for scenario, group in by_scenario.items()
    )


def _timed(rows: list[Row]) -> str:
    rows = sorted(rows, key=lambda row: (row["batch"], row["milliseconds"]))
    fastest = {row["batch"]: row for row in reversed(rows)}
    torch = {row["batch"]: row for row in reversed(rows) if row["backend"] == "pytorch"}
    columns: list[Column] = [
        ("candidate", lambda row: row["candidate"]),
        ("batch", lambda row: str(row["batch"])),
        ("ms (p25–p75)", _milliseconds),
        ("tail", _tail),
        ("photos/s", lambda row: f"{row['images_per_second']:.0f}"),
        ("against the fastest PyTorch", lambda row: _speed(row, torch.get(row["batch"]))),
        ("against the fastest", lambda row: _behind(row, fastest[row["batch"]])),
        *_about(rows),
    ]
    if not any(_tail(row) for row in rows):
        columns = [column for column in columns if column[0] != "tail"]
    if any(row.get("parts") for row in rows):
        columns.insert(4, ("of it", _parts))
    if any(row.get("milliseconds_device") for row in rows):
        columns.insert(3, ("ms on the GPU alone", _on_device))
    unstable = [f"{row['candidate']}: {'; '.join(row['causes'])}" for row in rows if row.get("causes")]
    below = [conditions(rows), *(["Unstable, likely because: " + " · ".join(unstable) + "."] if unstable else [])]
    return "\n\n".join([_markdown(columns, rows), *below])


def _server(rows: list[Row]) -> str:
    rows = sorted(rows, key=lambda row: -row["rate"])
    bound = f"p{rows[0]['percentile']:g} ≤ {rows[0]['bound_ms']:g} ms"
    columns: list[Column] = [
        ("candidate", lambda row: row["candidate"]),
        (f"queries/s held at {bound}", lambda row: f"{row['rate']:.0f}"),
        *_about(rows),
    ]
    return f"{_markdown(columns, rows)}\n\n{conditions(rows)}"


def _markdown(columns: list[Column], rows: list[Row]) -> str:
    head = "| " + " | ".join(name for name, _ in columns) + " |"
    rule = "|---|" + "|".join("---" if name == "parity" else "---:" for name, _ in columns[1:]) + "|"
    return "\n".join([head, rule, *("| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in rows)])


def _milliseconds(row: Row) -> str:
    unstable = " unstable" if row["unstable"] else ""
    return f"{row['milliseconds']:.2f} ({row['p25']:.2f}–{row['p75']:.2f}){unstable}"


def _tail(row: Row) -> str:
    """The outermost percentile that the sample supports."""
    told = [percent for percent in TAILS if row.get(f"p{percent}") is not None]
    return f"p{told[-1]} {row[f'p{told[-1]}']:.2f}" if told else ""


def _on_device(row: Row) -> str:
    return f"{row['milliseconds_device']:.2f}" if row.get("milliseconds_device") else ""


def _parts(row: Row) -> str:
    return ", ".join(f"{name} {milliseconds:.1f}" for name, milliseconds in row["parts"].items())


def _speed(row: Row, baseline: Row | None) -> str:
    if baseline is None:
        return ""
    ratio = compared(per_round(row), per_round(baseline))
    return f"{ratio.ratio:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})" if row is not baseline else "1×"


def _behind(row: Row, fastest: Row) -> str:
    if row is fastest:
        return ""
    ratio = compared(per_round(fastest), per_round(row))
    verdict = {"faster": "slower", "slower": "faster"}.get(ratio.verdict, ratio.verdict)
    return f"{verdict}, {ratio.ratio:.2f}×"


def _about(rows: list[Row]) -> list[Column]:
    """What any row tells of its candidate; what none of `rows` knows has no column."""
    columns: list[Column] = [
        ("accuracy (95 % interval)", lambda row: with_interval(row["accuracy"], row["accuracy_interval"])),
        ("parity", lambda row: row["verdict"]),
        ("file MB", lambda row: f"{row['file_bytes'] / 1e6:.1f}"),
        ("peak MiB", lambda row: f"{row.get('peak_memory_mib') or 0:.0f}"),
    ]
    for title, name, form in (("GPU MiB", "gpu_memory_mib", ".0f"), ("cold start s", "cold_start_seconds", ".2f")):
        if any(row.get(name) for row in rows):
            columns.append((title, partial(_number, name, form)))
    return columns


def _number(name: str, form: str, row: Row) -> str:
    return f"{row[name]:{form}}" if row.get(name) else ""


def best(rows: list[Row]) -> list[Row]:
    """Of each architecture and batch size the fastest row, and the fastest of PyTorch."""
    fastest: dict[tuple[str, int, bool], Row] = {}
    for row in sorted(rows, key=lambda row: -row["milliseconds"]):
        fastest[row["architecture"], row["batch"], row["backend"] == "pytorch"] = row
    return list(fastest.values())


def conditions(rows: list[Row]) -> str:
    """What was timed, on what, with which versions."""
    row = rows[0]
    sizes = "/".join(sorted({f"{r['image_size']} px" for r in rows}))
    versions = row["versions"]
    names = [f"{n} {versions[n]}" for n in distributions(*(r.get("backend", "") for r in rows)) if n in versions]
    where = f"{row['machine_cores']} cores of {row['machine_cpu']} ({', '.join(row['machine_cpu_features'])})"
    gpu = row["machine_gpu"] or "no GPU"
    data = "drawn dishes, not photos" if row["drawn"] else "real photos"
    timed = f"{row['scenario']}, {row['timed']}" if "timed" in row else row["scenario"]
    rounds = f"{row['rounds']} interleaved rounds, " if "rounds" in row else ""
    return (
        f"{timed[0].upper()}{timed[1:]}; {sizes}; {rounds}each candidate in its own "
        f"process; {where}, {gpu}; accuracy on {row['photos']} validation pictures ({data}); {', '.join(names)}; "
        f"commit {row['commit']}{' with local changes' if row['dirty'] else ''}, {row['time'][:10]}."
    )


def comparison(before: list[Row], after: list[Row]) -> str:
    """Two files of rows beside each other: what both measured, and how much faster the second says it is."""
    key = lambda row: (row["scenario"], row["candidate"], row["batch"])  # noqa: E731
    there = {key(row): row for row in before if "samples" in row}  # of a repeated measurement the last
    pairs = [(there[key(row)], row) for row in after if "samples" in row and key(row) in there]
    lines = [
        "| candidate | scenario | batch | ms before | ms after | after is | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for old, new in pairs:
        ratio = compared(per_round(new), per_round(old), paired=False)
        notes = [f"other {what}" for what, name in _COMPARED.items() if old.get(name) != new.get(name)]
        cells = (new["candidate"], new["scenario"], str(new["batch"]), f"{old['milliseconds']:.2f}")
        lines.append("| " + " | ".join((*cells, f"{new['milliseconds']:.2f}", str(ratio), ", ".join(notes))) + " |")
    return "\n".join(lines)


# What must be the same for two figures to be of the same thing; the commit is what a comparison is about
_COMPARED = {"file": "sha256", "processor": "machine_cpu", "cores": "machine_cores", "versions": "versions"}
