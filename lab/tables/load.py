"""The table of docs/load.md."""

from collections.abc import Sequence
from statistics import median

from lab.tables.markdown import Columns, by_columns
from runtime.benchmark.rows import Row


def table(rows: list[Row]) -> str:
    """What was compared, the settings, and in sentences overload, memory and conditions; the last row of each part."""
    last = {row["part"]: row for row in rows if row["part"] != "settings"}
    compared = [last[part] for part in ("clients", "plain", "queue", "http") if part in last]
    blocks = [by_columns(compared, _COMPARED)]
    if settings := [row for row in rows if row["part"] == "settings"]:
        blocks.append(by_columns(settings, _SETTINGS))
    blocks += [
        sentence(last[part]) for part, sentence in (("overload", _overload), ("memory", _memory)) if part in last
    ]
    return "\n\n".join([*blocks, _conditions(rows)])


def page(rows: list[Row]) -> str:
    """The last measurement of the page in a browser, as a sentence."""
    row = rows[-1]
    return (
        f"A JPEG of {row['width']}×{row['height']} pixels ({row['bytes'] / 1e6:.1f} MB) is answered "
        f"**{row['best']:.2f} s** after it was chosen, to reach {row['target']:.0f} s: the best of "
        f"{len(row['seconds'])} fresh pages, median {row['median']:.2f} s, slowest {max(row['seconds']):.2f} s beside "
        f"other work of this machine. The service's own part of the best: {row['said']}.\n\n"
        f"{row['candidate']} on {row['machine_cores']} cores of {row['machine_cpu']}, which browser and service share; "
        f"commit {row['commit']}{' with local changes' if row['dirty'] else ''}, {row['time'][:10]}."
    )


def _measured(row: Row) -> str:
    medians = median(row["ours"]), median(row["theirs"])
    if row["measure"] != "per_second":
        return "{:.2f} against {:.2f} ms".format(*medians)
    ours = [pair[0] for pair in row["said"]]
    client, server = (sum(figures[f"{who}_cpu_seconds"] for figures in ours) for who in ("client", "server"))
    return (
        f"{medians[0]:.0f} against {medians[1]:.0f} photos/s; p95 {_worst(ours, 'p95_ms')} ms, "
        f"p99 {_worst(ours, 'p99_ms')} ms, {_errors(ours)} errors, "
        f"processor {client:.0f} s of the client and {server:.0f} s of ours"
    )


def _workers(row: Row) -> str:
    return f"{row['workers']} × {row['threads'] or 'all'}" if row["workers"] else "as many as there are photos"


_COMPARED: Columns = {
    "work": "{claim}",
    "measured": _measured,
    "to reach": lambda row: f"{row['target']:.2f}×" if row["target"] else "",
    "ratio (lowest–highest pair)": "{ratio:.2f}× ({ratio_low:.2f}–{ratio_high:.2f})",
}
_SETTINGS: Columns = {
    "workers × threads, batch": lambda row: f"{_workers(row)}, {row['batch']}",
    "photos/s": "{per_second:.0f}",
    "p95 ms": lambda row: _worst(row["said"], "p95_ms"),
    "errors": lambda row: str(_errors(row["said"])),
}


def _overload(row: Row) -> str:
    answered, accepted, refusals = row["answered"], row["accepted"], row["refusals"]
    share = answered.get("429", 0) / max(1, sum(answered.values()))
    recovered = row["recovered_seconds"]
    back = f"within {recovered:.2f} s" if recovered is not None else "not"
    return (
        f"Overload: {row['clients']} clients without pause for {row['seconds']:.0f} s: {100 * share:.0f} % were "
        f"refused with 429, {_p99(refusals)}; of those let in, {_p99(accepted)}; the slowest took "
        f"{_ms(accepted['max_ms'])} of the {row['bound_seconds']} s they may take, "
        f"{row['per_second']:.0f} photos/s; {row['broken']} broken connections; afterwards a lone request was {back} "
        f"as fast as before ({row['ordinary_ms']:.1f} ms)."
    )


def _memory(row: Row) -> str:
    return (
        f"Memory over {row['seconds']:.0f} s of {row['clients']} clients: {row['first_mib']} MiB in the first tenth, "
        f"{row['last_mib']} in the last ({100 * row['growth']:+.1f} %), peak {row['peak_memory_mib']} MiB."
    )


def _conditions(rows: list[Row]) -> str:
    row, changes = rows[-1], " with local changes" if any(row["dirty"] for row in rows) else ""
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    return (
        f"{row['candidate']} on {row['machine_cores']} cores of {row['machine_cpu']}, which client and service share; "
        f"JPEGs of 512×384; wrk asks, against the plain demo threads of one process; latencies are those of the worst "
        f"round; commit {commits}{changes}, {row['time'][:10]}."
    )


def _errors(figures: Sequence[Row]) -> int:
    return sum(of_round["refused"] + of_round["broken"] for of_round in figures)


def _worst(figures: Sequence[Row], name: str) -> str:
    known = [of_round[name] for of_round in figures if of_round[name] is not None]
    return f"{max(known):.0f}" if known else "?"


def _p99(figures: Row) -> str:
    return "too few were timed for a p99" if figures["p99_ms"] is None else f"p99 {_ms(figures['p99_ms'])}"


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f} ms"
