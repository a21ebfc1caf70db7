"""The table of docs/load.md."""

from collections.abc import Sequence
from statistics import median

from lab.tables.markdown import markdown
from runtime.benchmark.rows import Row


def table(rows: list[Row]) -> str:
    """What was compared, the settings, and in sentences overload, memory and conditions; the last row of each part."""
    last = {row["part"]: row for row in rows if row["part"] != "settings"}
    compared = [last[part] for part in ("clients", "plain", "queue", "http") if part in last]
    blocks = [markdown(("work", "measured", "to reach", "ratio (lowest–highest pair)"), map(_comparison, compared))]
    if settings := [row for row in rows if row["part"] == "settings"]:
        blocks.append(markdown(("workers × threads, batch", "photos/s", "p95 ms", "errors"), map(_setting, settings)))
    blocks += [
        sentence(last[part]) for part, sentence in (("overload", _overload), ("memory", _memory)) if part in last
    ]
    return "\n\n".join([*blocks, _conditions(rows)])


def _comparison(row: Row) -> tuple[str, ...]:
    ours = [pair[0] for pair in row["said"]]
    if row["measure"] == "per_second":
        spent = sum(o["client_cpu_seconds"] for o in ours), sum(o["server_cpu_seconds"] for o in ours)
        measured = f"{median(row['ours']):.0f} against {median(row['theirs']):.0f} photos/s; {_latency(ours)}, "
        measured += f"{_errors(ours)} errors, processor {spent[0]:.0f} s of the client and {spent[1]:.0f} s of ours"
    else:
        measured = f"{median(row['ours']):.2f} against {median(row['theirs']):.2f} ms"
    target = f"{row['target']:.2f}×" if row["target"] else ""
    return row["claim"], measured, target, f"{row['ratio']:.2f}× ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"


def _setting(row: Row) -> tuple[str, ...]:
    name = f"{row['workers']} × {row['threads'] or 'all'}, {row['batch']}"
    return name, f"{row['per_second']:.0f}", _worst(row["said"], "p95_ms"), str(_errors(row["said"]))


def _overload(row: Row) -> str:
    answered, accepted, refusals = row["answered"], row["accepted"], row["refusals"]
    share = answered.get("429", 0) / max(1, sum(answered.values()))
    recovered = row["recovered_seconds"]
    back = f"within {recovered:.2f} s" if recovered is not None else "not"
    return (
        f"Overload: {row['clients']} clients without pause for {row['seconds']:.0f} s: {100 * share:.0f} % were "
        f"refused with 429, p99 {_ms(refusals['p99_ms'])}; those let in took p99 {_ms(accepted['p99_ms'])}, the "
        f"slowest {_ms(accepted['max_ms'])} of the {row['bound_seconds']} s they may take, "
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


def _latency(figures: Sequence[Row]) -> str:
    return f"p95 {_worst(figures, 'p95_ms')} ms, p99 {_worst(figures, 'p99_ms')} ms"


def _worst(figures: Sequence[Row], name: str) -> str:
    known = [of_round[name] for of_round in figures if of_round[name] is not None]
    return f"{max(known):.0f}" if known else "?"


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f} ms"
