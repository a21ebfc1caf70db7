"""Rows as Markdown, on the terminal and in the documents (`lab/tables/documents.py`), and as a picture."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from runtime.backends import BACKENDS, distributions
from runtime.benchmark.rows import TAILS, Row, per_round
from runtime.benchmark.scenarios import SCENARIOS, Column
from runtime.errors import missing_extra
from runtime.evaluation import with_interval
from runtime.files import replacing
from runtime.markdown import markdown, plain_table
from runtime.speed_ratio import compared
from runtime.terminal import show_table

# What must be the same for two figures to be of the same thing; the commit is what a comparison is about
_SAME = {"file": "sha256", "processor": "machine_cpu", "cores": "machine_cores", "versions": "versions"}
_SAME |= {"GPU or driver": "machine_gpu", "power limit": "gpu_power_limit_watts", "compute mode": "gpu_compute_mode"}

_FIRST = ("ms", "accuracy", "photos/s", "peak MiB", "cold start s")  # on a terminal
_TORCH = {False: "pytorch", True: "pytorch-cuda"}  # by whether it runs on a GPU


def table(rows: Sequence[Row]) -> str:
    """One line per candidate and batch, fastest first, with the conditions below; a table for each scenario."""
    blocks = []
    for group in _by_scenario(rows):
        blocks += [plain_table(*_cells(group)), conditions(group)]
        if unstable := [f"{row['candidate']}: {'; '.join(row['causes'])}" for row in group if row.get("causes")]:
            blocks.append(f"Unstable, likely because: {' · '.join(unstable)}.")
        if held := sorted({why for row in group for why in row.get("gpu_held_back", ())}):
            blocks.append(f"What held the GPU back: {'; '.join(held)}.")
    return "\n\n".join(blocks)


def show(rows: Sequence[Row], full: Path) -> None:
    """The tables as a terminal has room for them; all of them are in the file `full`."""
    for group in _by_scenario(rows):
        several = len({row["batch"] for row in group}) > 1
        show_table(*_cells(group), [*(["batch"] if several else []), *_FIRST], full)


def _by_scenario(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["scenario"], []).append(row)
    return list(groups.values())


def _cells(rows: list[Row]) -> tuple[list[str], list[list[str]], str]:
    """Head, lines and alignment of the table of one scenario."""
    # Rows of earlier versions describe it instead
    scenario = SCENARIOS.get(rows[0]["scenario"], SCENARIOS["single-stream"])
    rows = sorted(rows, key=lambda row: (row["batch"], scenario.slowness(row)))
    middle = scenario.columns(rows) if scenario.columns else _latency_columns(rows)
    columns: list[Column] = [("candidate", lambda row: row["candidate"]), *middle, *_about(rows)]
    align = "".join("l" if title in ("candidate", "parity") else "r" for title, _ in columns)
    return [title for title, _ in columns], [[cell(row) for _, cell in columns] for row in rows], align


def _latency_columns(rows: list[Row]) -> list[Column]:
    fastest = {row["batch"]: row for row in reversed(rows)}
    baselines = {(row["backend"], row["batch"]): row for row in reversed(rows) if row["backend"] in _TORCH.values()}
    names = {row["candidate"] for row in baselines.values()}  # in the head where it is one, else in each cell
    columns: list[Column] = [("batch", lambda row: str(row["batch"])), ("ms (p25–p75)", _milliseconds)]
    if any(row.get("milliseconds_device") for row in rows):
        columns.append(("ms on the GPU alone", partial(_number, "milliseconds_device", ".2f")))
    if any(map(_tail, rows)):
        columns.append(("tail", _tail))
    if any(row.get("parts") for row in rows):
        columns.append(("of it", lambda row: ", ".join(f"{name} {ms:.1f}" for name, ms in row["parts"].items())))
    return [
        *columns,
        ("photos/s", lambda row: f"{row['images_per_second']:.0f}"),
        (
            f"against {names.pop()}" if len(names) == 1 else "against PyTorch there",
            lambda row: _speed(row, baselines.get((pytorch_beside(row), row["batch"])), bool(names)),
        ),
        ("against the fastest", lambda row: _behind(row, fastest[row["batch"]])),
    ]


def _about(rows: list[Row]) -> list[Column]:
    """What any row tells of its candidate; there is no column for what none of `rows` knows."""
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


def _milliseconds(row: Row) -> str:
    unstable = " unstable" if row["unstable"] else ""
    return f"{row['milliseconds']:.2f} ({row['p25']:.2f}–{row['p75']:.2f}){unstable}"


def _tail(row: Row) -> str:
    """The outermost percentile that the sample supports."""
    known = [percent for percent in TAILS if row.get(f"p{percent}") is not None]
    return f"p{known[-1]} {row[f'p{known[-1]}']:.2f}" if known else ""


def pytorch_beside(row: Row) -> str:
    """The PyTorch that an engine's speed is told against: that on the same device."""
    known = BACKENDS.get(row["backend"])
    return _TORCH[known is not None and known.gpu]


def _speed(row: Row, baseline: Row | None, named: bool) -> str:
    if baseline is None:
        return ""
    ratio = compared(per_round(row), per_round(baseline))
    if row is baseline:
        return "1×"
    return f"{ratio.ratio:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})" + (f" {baseline['candidate']}" if named else "")


def without_network(row: Row) -> str:
    """What a row's candidate is beside its network, e.g. "pytorch-cuda · fp16 · compiled"."""
    return str(row["candidate"]).partition(" · ")[2]


def _behind(row: Row, fastest: Row) -> str:
    if row is fastest:
        return ""
    ratio = compared(per_round(fastest), per_round(row))
    verdict = {"faster": "slower", "slower": "faster"}.get(ratio.verdict, ratio.verdict)
    return f"{verdict}, {ratio.ratio:.2f}×"


def conditions(rows: Sequence[Row]) -> str:
    """What was timed, on what, with which versions."""
    row = rows[0]
    sizes = "/".join(sorted({f"{r['image_size']} px" for r in rows}))
    versions = row["versions"]
    names = [f"{n} {versions[n]}" for n in distributions(*(r.get("backend", "") for r in rows)) if n in versions]
    where = f"{row['machine_cores']} cores of {row['machine_cpu']} ({', '.join(row['machine_cpu_features'])})"
    gpu = row["machine_gpu"] or "no GPU"
    gpu += f" at {row['gpu_power_limit_watts']:.0f} W" if row.get("gpu_power_limit_watts") else ""
    data = "drawn dishes, not photos" if row["drawn"] else "real photos"
    data += "" if row.get("labelled", True) else ", whose labels are the checkpoint's own answers"
    timed = f"{row['scenario']}, {row['timed']}" if "timed" in row else row["scenario"]
    rounds = f"{row['rounds']} interleaved rounds, " if "rounds" in row else ""
    return (
        f"{timed[0].upper()}{timed[1:]}; {sizes}; {rounds}each candidate in its own "
        f"process; {where}, {gpu}; accuracy on {row['photos']} validation pictures ({data}); {', '.join(names)}; "
        f"commit {row['commit']}{' with local changes' if row['dirty'] else ''}, {row['time'][:10]}."
    )


def comparison(before: Sequence[Row], after: Sequence[Row]) -> str:
    """Two files of rows beside each other: what both measured, and how much faster the second says it is."""
    key = lambda row: (row["scenario"], row["candidate"], row["batch"])  # noqa: E731
    earlier = {key(row): row for row in before if "samples" in row}  # of a repeated measurement the last
    lines = []
    for new in after:
        if "samples" in new and key(new) in earlier:
            old = earlier[key(new)]
            ratio = compared(per_round(new), per_round(old), paired=False)
            notes = ", ".join(f"other {what}" for what, name in _SAME.items() if old.get(name) != new.get(name))
            times = f"{old['milliseconds']:.2f}", f"{new['milliseconds']:.2f}"
            lines.append((new["candidate"], new["scenario"], str(new["batch"]), *times, str(ratio), notes))
    head = ("candidate", "scenario", "batch", "ms before", "ms after", "after is", "")
    return markdown(head, lines, "llrrrrl")


def best(rows: Sequence[Row]) -> list[Row]:
    """Of each architecture and batch size the fastest row, and the fastest of PyTorch on each kind of device."""
    fastest: dict[tuple[str, int, str], Row] = {}
    for row in sorted(rows, key=lambda row: -row["milliseconds"]):
        torch = row["backend"] if row["backend"] in _TORCH.values() else ""
        fastest[row["architecture"], row["batch"], torch] = row
    return list(fastest.values())


def frontier(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other is both as fast and as accurate as, fastest first."""
    highest, unbeaten = -1.0, []
    for row in sorted(rows, key=lambda row: (row["milliseconds"], -row["accuracy"])):
        if row["accuracy"] > highest:
            highest = row["accuracy"]
            unbeaten.append(row)
    return unbeaten


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against latency, single stream at the smallest batch. Raises Unavailable without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise missing_extra("matplotlib", "train") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    batch = min(row["batch"] for row in rows)
    rows = [row for row in rows if row["scenario"] == "single-stream" and row["batch"] == batch]
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        for number, backend in enumerate(sorted({row["backend"] for row in rows})):
            group = [row for row in rows if row["backend"] == backend]
            latency, accuracy = ([row[name] for row in group] for name in ("milliseconds", "accuracy"))
            low = [row["accuracy"] - row["accuracy_interval"][0] for row in group]
            high = [row["accuracy_interval"][1] - row["accuracy"] for row in group]
            marker = "os^Dv*"[number % 6]
            axes.errorbar(latency, accuracy, [low, high], fmt=marker, elinewidth=0.4, label=backend, ms=5)
        unbeaten = frontier(rows)
        corners = ([row[name] for row in unbeaten] for name in ("milliseconds", "accuracy"))
        axes.step(*corners, where="post", color="0.6", lw=1)
        for row in unbeaten:
            axes.annotate(row["candidate"], (row["milliseconds"], row["accuracy"]), (4, 4), textcoords="offset points")
        axes.set(xscale="log", xlabel=f"milliseconds, batch {batch} (log scale)", ylabel="accuracy (95 % interval)")
        axes.legend(frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary)
        pyplot.close(figure)
