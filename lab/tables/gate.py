"""The tables and the picture of docs/gate.md: broken and healthy files, and who refuses them."""

import inspect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.tables.markdown import NAMES, Columns, by_columns, markdown, versions
from runtime.benchmark.rows import Row, read_rows
from runtime.files import sha256_file, sha256_json
from runtime.gate import GATES, Gate

ROWS = Path(__file__).resolve().parents[2] / "results" / "mutants.jsonl"
PICTURE = "gate.svg"
PEERS = {"saji": "saji's gate", "polygraphy": "Polygraphy", "optimum": "optimum", "finite": "finite output"}
SHIFT_OF = "the class that moves most"  # in rows whose shift is the gate's of today; before it was of all classes
_FAINT = "an activation saturated", "a layer's scales shifted", "last layer in five steps"  # in rows without a kind


def trials(rows: Sequence[Row]) -> list[Row]:
    """Every outcome of some rows; where a run was examined again (`--only`), the last of each file counts."""
    last = {
        (row["run"], trial["name"], trial["backend"], trial["precision"]): trial
        for row in rows
        for trial in row["outcomes"]
    }
    return [*last.values()]


def kind(trial: Row) -> str:
    """Whether a file is "healthy", "broken", or "faint": broken no more than the precision's rounding may change."""
    if trial["name"].startswith("healthy"):
        return "healthy"
    return str(trial.get("kind") or ("faint" if trial["name"] in _FAINT else "broken"))


def _by_file(rows: list[Row], wanted: str) -> dict[tuple[str, str, str], list[Row]]:
    """The outcomes of one kind, by name, precision and backend; a check's own key is True for what it lets pass.

    What could not run there is left out.
    """
    outcomes: dict[tuple[str, str, str], list[Row]] = {}
    for trial in trials(rows):
        if kind(trial) == wanted and trial["verdict"] not in ("unchecked", "unjudged"):
            file = trial["name"], trial["precision"], trial["backend"]
            outcomes.setdefault(file, []).append(trial | {"saji": trial["verdict"] == "pass"})
    return outcomes


def faint(rows: list[Row]) -> str:
    """Broken exports that shift the logits hardly more than rounding does."""
    return mutants(rows, "faint")


def mutants(rows: list[Row], wanted: str = "broken") -> str:
    """Broken exports: how many of each kind every check refuses."""
    head = "broken file", "checked as", "logit shift", *PEERS.values()
    lines, totals = [], dict.fromkeys(PEERS, 0)
    for (name, precision, backend), outcomes in _by_file(rows, wanted).items():
        refused = {peer: sum(not trial[peer] for trial in outcomes) for peer in PEERS}
        refused["saji"] = sum(trial["verdict"] == "fail" for trial in outcomes)
        totals = {peer: totals[peer] + refused[peer] for peer in PEERS}
        cells = (f"{refused[peer]} of {len(outcomes)}" for peer in PEERS)
        lines.append((name, f"{precision}, {backend}", _span(outcomes), *cells))
    n = sum(map(len, _by_file(rows, wanted).values()))
    lines.append(("**all**", "", "", *(f"**{total} of {n}**" for total in totals.values())))
    return f"{markdown(head, lines)}\n\n{_conditions(rows)}"


def healthy(rows: list[Row]) -> str:
    """Healthy exports: how many of each kind every check lets pass, and our verdicts apart."""
    verdicts, peers = ("pass", "inconclusive", "fail"), [peer for peer in PEERS if peer != "saji"]
    head = "healthy file", "logit shift", ", ".join(verdicts), *(PEERS[peer] for peer in peers)
    lines = []
    for (name, precision, backend), outcomes in _by_file(rows, "healthy").items():
        counts = Counter(trial["verdict"] for trial in outcomes)
        passed = (f"{sum(trial[peer] for trial in outcomes)} of {len(outcomes)}" for peer in peers)
        file = f"{precision}{name.removeprefix('healthy')}, {backend}"
        lines.append((file, _span(outcomes), ", ".join(str(counts[verdict]) for verdict in verdicts), *passed))
    return f"{markdown(head, lines)}\n\n{_conditions(rows)}"


def bounds(rows: list[Row]) -> str:
    """The gates of healthy files by today's shift, and how much room the file that moves most leaves."""
    head = "gate", "passed", "logit shift", "bound", "room", "worst photo", "bound", "room"
    current = [row for row in rows if row.get("shift_of") == SHIFT_OF]
    lines = []
    for name, gate in GATES.items():
        alike = [t for t in trials(current) if (t["name"], t["precision"]) == ("healthy", name) and t["shift"]]
        passed = [trial for trial in alike if trial["verdict"] != "fail"]
        if passed:
            largest = [max(trial[figure] for trial in passed) for figure in ("shift", "worst_shift")]
            pairs = zip(largest, (gate.shift, gate.worst_shift), strict=True)
            cells = [(f"{shift:.2g}", f"{bound:g}", f"{bound / shift:.1f} ×") for shift, bound in pairs]
            lines.append((name, f"{len(passed)} of {len(alike)}", *cells[0], *cells[1]))
    return f"{markdown(head, lines)}\n\n{_conditions(current)}"


def embedded(rows: list[Row]) -> str:
    """`model.embed.onnx` on original photos: what resizing inside the graph changes, by engine."""
    columns: Columns = {
        "geometry in the graph": lambda row: row["candidate"].replace(" (file check)", ""),
        "photos": "{photos}",
        "largest difference of a probability": "{largest_probability_difference:.4f}",
        "flips": "{flips}",
        "logit shift": "{shift:.2g}",
        "verdict": "{verdict}",
    }
    row = rows[-1]
    conditions = f"{row['image_size']} px, {versions(row, 'onnxruntime', 'openvino')}; commit {row['commit']}."
    return f"{by_columns(rows, columns)}\n\n{conditions}"


def _span(outcomes: list[Row]) -> str:
    shifts = [trial["shift"] for trial in outcomes if trial["shift"] is not None]
    return f"{min(shifts):.2g} to {max(shifts):.2g}" if shifts else ""


def _conditions(rows: list[Row]) -> str:
    networks = Counter({r["run"]: r["architecture"] for r in rows}.values())
    counts = ", ".join(f"{number} × {NAMES.get(name, name)}" for name, number in networks.items())
    row, commits = rows[-1], ", ".join(dict.fromkeys(r["commit"] for r in rows))
    return (
        f"{counts}, {row['image_size']} px, checked on {min(r['photos'] for r in rows)} "
        f"{'drawn' if row['drawn'] else 'real'} photos or more; {row['machine_cpu']} "
        f"({', '.join(row['machine_cpu_features'])}); {versions(row, 'torch', 'onnxruntime', 'openvino')}; "
        f"commit {commits}."
    )


def _digest() -> str:
    """What the picture is drawn from: rows, bounds, and how it is drawn."""
    shifts = {precision: gate.shift for precision, gate in _measured().items()}
    return sha256_json([sha256_file(ROWS), shifts, inspect.getsource(draw)])


def _measured() -> dict[str, Gate]:
    """The gates whose files are in the rows; GPUs' are not."""
    return {name: gate for name, gate in GATES.items() if not name.endswith("-gpu")}


def is_stale(picture: Path) -> bool:
    """Whether the picture is missing, or was drawn from other rows, of other bounds or in another way."""
    return not picture.is_file() or _digest() not in picture.read_text(encoding="utf-8")


def draw(picture: Path) -> None:
    """Draw files by their logit shift as SVG, a line for each precision: healthy above, broken below, the bound across.

    The SHA-256 of what decides it is kept in the picture.
    """
    import matplotlib.pyplot as plt

    outcomes = [trial for trial in trials(read_rows(ROWS)) if trial["shift"] is not None]
    scatter, gates = np.random.default_rng(0), _measured()
    figure, axes = plt.subplots(figsize=(8, 4))
    for place, (precision, gate) in enumerate(gates.items()):
        for is_healthy, colour, height in ((True, "#2a7f62", 0.15), (False, "#c0392b", -0.15)):
            alike = [t for t in outcomes if (kind(t) == "healthy", t["precision"]) == (is_healthy, precision)]
            shifts = [trial["shift"] for trial in alike]
            heights = place + height + scatter.uniform(-0.1, 0.1, len(shifts))
            label = ("healthy" if is_healthy else "broken") if place == 0 else None
            axes.scatter(np.maximum(shifts, 1e-7), heights, s=12, color=colour, alpha=0.6, label=label)
        axes.plot([gate.shift] * 2, [place - 0.4, place + 0.4], color="black", label="bound" if place == 0 else None)
    axes.set_xscale("log")
    axes.set_yticks(range(len(gates)), list(gates))
    axes.invert_yaxis()
    axes.set_xlabel("logit shift (RMS of the change over RMS of the reference)")
    axes.legend(loc="lower left")
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "saji"
    figure.savefig(picture, metadata={"Date": None, "Description": _digest()})
