"""The tables of docs/gate.md: broken and healthy files, and who refuses them."""

from collections import Counter

import lab.mutants
from lab.tables.markdown import NAMES, markdown
from runtime.benchmark.rows import Row

PEERS = {"saji": "saji's gate", "polygraphy": "Polygraphy", "optimum": "optimum", "finite": "finite output"}


def _trials(rows: list[Row], kind: str) -> dict[tuple[str, str, str], list[Row]]:
    """What was judged, by name, precision and backend; the others' checks beside ours, True for what they let pass.

    `kind` is "healthy", "faint" (of `export.faults.FAINT_FAULTS`) or "broken". What could not run there is left out.
    """
    by_name: dict[tuple[str, str, str], list[Row]] = {}
    kinds = {**dict.fromkeys(lab.mutants.HEALTHY, "healthy"), **dict.fromkeys(lab.mutants.FAINT, "faint")}
    for trial in lab.mutants.trials(rows):
        if kinds.get(trial["name"], "broken") == kind and trial["verdict"] not in ("unchecked", "unjudged"):
            said = trial | {"saji": trial["verdict"] == "pass"}
            by_name.setdefault((trial["name"], trial["precision"], trial["backend"]), []).append(said)
    return by_name


def faint(rows: list[Row]) -> str:
    """Broken exports that shift the logits hardly more than rounding does."""
    return mutants(rows, "faint")


def mutants(rows: list[Row], kind: str = "broken") -> str:
    """Broken exports: how many of each kind every check refuses."""
    head = "broken file", "judged as", "logit shift", *PEERS.values()
    lines, totals = [], dict.fromkeys(PEERS, 0)
    for (name, precision, backend), trials in _trials(rows, kind).items():
        refused = {peer: sum(not trial[peer] for trial in trials) for peer in PEERS}
        refused["saji"] = sum(trial["verdict"] == "fail" for trial in trials)
        totals = {peer: totals[peer] + refused[peer] for peer in PEERS}
        cells = (f"{refused[peer]} of {len(trials)}" for peer in PEERS)
        lines.append((name, f"{precision}, {backend}", _span(trials), *cells))
    n = sum(len(trials) for trials in _trials(rows, kind).values())
    lines.append(("**all**", "", "", *(f"**{total} of {n}**" for total in totals.values())))
    return f"{markdown(head, lines)}\n\n{_mutant_conditions(rows)}"


def healthy(rows: list[Row]) -> str:
    """Healthy exports: how many of each kind every check lets pass, and our verdicts apart."""
    head = "healthy file", "logit shift", "pass, inconclusive, fail", *(PEERS[peer] for peer in PEERS if peer != "saji")
    lines = []
    for (name, precision, backend), trials in _trials(rows, "healthy").items():
        verdicts = [
            sum(trial["verdict"] == verdict for trial in trials) for verdict in ("pass", "inconclusive", "fail")
        ]
        passed = (f"{sum(trial[peer] for trial in trials)} of {len(trials)}" for peer in PEERS if peer != "saji")
        how = name.removeprefix("healthy")
        lines.append((f"{precision}{how}, {backend}", _span(trials), ", ".join(map(str, verdicts)), *passed))
    return f"{markdown(head, lines)}\n\n{_mutant_conditions(rows)}"


def embedded(rows: list[Row]) -> str:
    """`model.embed.onnx` on original photos: what resizing inside the graph changes, by engine."""
    head = "geometry in the graph", "photos", "largest difference of a probability", "flips", "logit shift", "verdict"
    lines = [
        (
            row["candidate"].replace(" (file check)", ""),
            str(row["photos"]),
            f"{row['largest_probability_difference']:.4f}",
            str(row["flips"]),
            f"{row['shift']:.2g}",
            row["verdict"],
        )
        for row in rows
    ]
    row = rows[-1]
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("onnxruntime", "openvino"))
    return f"{markdown(head, lines)}\n\n{row['image_size']} px, {versions}; commit {row['commit']}."


def _span(trials: list[Row]) -> str:
    shifts = [trial["shift"] for trial in trials if trial["shift"] is not None]
    return f"{min(shifts):.2g} to {max(shifts):.2g}" if shifts else ""


def _mutant_conditions(rows: list[Row]) -> str:
    networks = Counter({r["run"]: r["architecture"] for r in rows}.values())
    counts = ", ".join(f"{number} × {NAMES.get(name, name)}" for name, number in networks.items())
    row, commits = rows[-1], ", ".join(dict.fromkeys(r["commit"] for r in rows))
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "onnxruntime", "openvino"))
    return (
        f"{counts}, {row['image_size']} px, judged on {min(r['photos'] for r in rows)} "
        f"{'drawn' if row['drawn'] else 'real'} photos or more; {row['machine_cpu']} "
        f"({', '.join(row['machine_cpu_features'])}); {versions}; commit {commits}."
    )
