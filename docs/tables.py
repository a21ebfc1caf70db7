"""Write the tables of the documents anew from the committed rows: `python docs/tables.py README.md docs/results.md`.

A block between `<!-- table FILE.jsonl KIND -->` and `<!-- end -->` is the table of that kind of the rows in that file.
With `--check` nothing is written, and the exit status is 1 when a table is stale.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # run as a plain path: Python put docs/ first

import numpy as np
from sklearn.metrics import f1_score

import demo.load.table
import export.mutants
from export import engine_sizes
from runtime.benchmark.rows import Row, read_rows
from runtime.benchmark.table import best, table
from runtime.errors import GateFailed, exit_with_one_sentence
from runtime.evaluation import mcnemar_p, paired_bootstrap, wilson_interval
from training import unseen
from training.study import SEEDS

_BLOCK = re.compile(r"(?P<begin><!-- table (?P<file>\S+) (?P<kind>\S+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
ACCURACY = "accuracy (95 % interval)"
NAMES = {"plain34": "Plain-34", "resnet34": "ResNet-34", "se_resnet34": "SE-ResNet-34"}


def claims(rows: list[Row]) -> str:
    """Ratios of `runtime.benchmark.ratio`: what was claimed, what was measured."""
    head = "work", "to reach", "measured (lowest–highest pair)", "rounds"
    lines = [
        (
            row["claim"],
            f"{row['target']:g}×",
            f"{row['ratio']:.1f}× ({row['ratio_low']:.1f}–{row['ratio_high']:.1f})",
            str(row["rounds"]),
        )
        for row in rows
    ]
    return markdown(head, lines)


def seeds(rows: list[Row]) -> str:
    """The seed experiments as reported, beside the same recipe on a split without leaks."""
    head = "recipe", "network", "reported, on a split that leaks", "the same, without leaks (95 % interval)", "epochs"
    measured = {(row["recipe"]["name"], row["architecture"]): row for row in rows if row["part"] == "seeds"}
    lines = []
    for recipe, networks in SEEDS.items():
        for network, reported in networks.items():
            row = measured.get((recipe, network))
            found = _accuracy(row["accuracy"], row["accuracy_interval"]) if row else "not run yet"
            epochs = f"{row['best_epoch']['epoch']} of {row['last_epoch']['epoch']}" if row else ""
            lines.append((recipe, NAMES[network], f"{reported:.3f}", found, epochs))
    return (
        f"{markdown(head, lines)}\n\n{_study_conditions([*measured.values()])}" if measured else markdown(head, lines)
    )


def folds(rows: list[Row]) -> str:
    """Three networks, every photo answered by one that never saw it, and each pair of networks compared."""
    rows = sorted((row for row in rows if row["part"] == "folds"), key=lambda row: row["run"])
    by_network = {name: [row for row in rows if row["architecture"] == name] for name in NAMES}
    by_network = {name: runs for name, runs in by_network.items() if runs}
    head = (
        "network",
        "folds",
        "photos",
        "accuracy (95 % interval)",
        "macro-F1",
        "calibration error",
        "parameters",
    )
    lines = []
    for name, runs in by_network.items():
        labels, predictions = _joined(runs, "labels"), _joined(runs, "predictions")
        right, n = int((labels == predictions).sum()), len(labels)
        error = sum(run["calibration_error"] * run["photos"] for run in runs) / n
        f1 = f1_score(labels, predictions, average="macro")
        cells = NAMES[name], str(len(runs)), str(n), _accuracy(right / n, wilson_interval(right, n)), f"{f1:.3f}"
        lines.append((*cells, f"{error:.3f}", f"{runs[0]['parameters'] / 1e6:.2f} M"))
    pairs = [_compared(*pair) for pair in itertools.combinations(by_network.items(), 2)]
    return "\n\n".join([markdown(head, lines), markdown(_PAIR, pairs), _study_conditions(rows)])


_PAIR = (
    "first against second",
    "photos",
    "difference of accuracy (95 % interval)",
    "only first right",
    "only second",
    "p",
    "",
)


def _compared(first: tuple[str, list[Row]], second: tuple[str, list[Row]]) -> tuple[str, ...]:
    """Paired on the same photos: bootstrap interval of the difference, exact McNemar test."""
    common = {run["fold"] for run in first[1]} & {run["fold"] for run in second[1]}
    a, b = ([run for run in runs if run["fold"] in common] for _, runs in (first, second))
    labels = _joined(a, "labels")
    ours, theirs = (_joined(runs, "predictions") == labels for runs in (a, b))
    low, high = paired_bootstrap(ours.astype(int) - theirs)
    won, lost = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    p = mcnemar_p(lost, won)
    difference = float(ours.mean() - theirs.mean())
    said = "inconclusive" if p >= 0.05 else f"{NAMES[(first if difference > 0 else second)[0]]} is better"
    name = f"{NAMES[first[0]]} against {NAMES[second[0]]}"
    return (
        name,
        str(len(labels)),
        f"{difference:+.3f} ({low:+.3f} to {high:+.3f})",
        str(won),
        str(lost),
        f"{p:.2g}",
        said,
    )


def finest(rows: list[Row]) -> str:
    """The best recipes on the given split."""
    head = "run", "network", "size", "epochs", ACCURACY, "released epoch"
    chosen = [row for row in rows if row["part"] in ("transfer", "distil", "long")]
    lines = [
        (
            row["part"],
            row["architecture"],
            f"{row['recipe']['image_size']} px",
            str(row["recipe"]["epochs"]),
            _accuracy(row["accuracy"], row["accuracy_interval"]),
            str(row["best_epoch"]["epoch"]),
        )
        for row in chosen
    ]
    return f"{markdown(head, lines)}\n\n{_study_conditions(chosen)}"


def duplicates(rows: list[Row]) -> str:
    """The search for duplicates where they are known."""
    head = ("photo set", "photos", "true pairs", "found", "recall", "precision", "missed")
    lines = [
        (
            row["data"],
            str(row["photos"]),
            str(row["true_pairs"]),
            str(row["found_pairs"]),
            f"{row['recall']:.3f}",
            f"{row['precision']:.3f}",
            ", ".join(" = ".join(pair) for pair in row["missed"]) or "none",
        )
        for row in rows
        if "recall" in row
    ]
    return markdown(head, lines)


def growth(rows: list[Row]) -> str:
    """The search for duplicates among more and more drawn photos."""
    head = ("photos", "photos/s", "seconds", "peak memory, MiB", "of it private")
    lines = [
        (
            f"{row['photos']:,}",
            f"{row['photos_per_second']:.0f}",
            f"{row['seconds']:.0f}",
            f"{row['peak_memory_mib']:.0f}",
            f"{row['private_memory_mib']:.0f}",
        )
        for row in rows
        if row["experiment"] == "duplicates among drawn photos"
    ]
    return markdown(head, lines)


def suspects(rows: list[Row]) -> str:
    """Mislabelled photos that were mixed into a set, and how many of them the list begins with."""
    head = ("photos", "mislabelled ones mixed in", "found among the first", "recall (95 % interval)")
    lines = [
        (
            str(row["photos"]),
            str(row["planted"]),
            f"{row['found']} of {row['first']}",
            _accuracy(row["recall"], wilson_interval(row["found"], row["planted"])),
        )
        for row in rows
    ]
    return markdown(head, lines)


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


PEERS = {"saji": "saji's gate", "polygraphy": "Polygraphy", "optimum": "optimum", "finite": "finite output"}


def _trials(rows: list[Row], kind: str) -> dict[tuple[str, str, str], list[Row]]:
    """What was judged, by name, precision and backend; the others' checks beside ours, True for what they let pass.

    `kind` is "healthy", "faint" (of `export.faults.FAINT_FAULTS`) or "broken".
    """
    by_name: dict[tuple[str, str, str], list[Row]] = {}
    kinds = {"healthy": "healthy", **dict.fromkeys(export.mutants.FAINT, "faint")}
    for trial in export.mutants.trials(rows):
        if kinds.get(trial["name"], "broken") == kind:
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
    for (_, precision, backend), trials in _trials(rows, "healthy").items():
        verdicts = [
            sum(trial["verdict"] == verdict for trial in trials) for verdict in ("pass", "inconclusive", "fail")
        ]
        passed = (f"{sum(trial[peer] for trial in trials)} of {len(trials)}" for peer in PEERS if peer != "saji")
        lines.append((f"{precision}, {backend}", _span(trials), ", ".join(map(str, verdicts)), *passed))
    return f"{markdown(head, lines)}\n\n{_mutant_conditions(rows)}"


def _span(trials: list[Row]) -> str:
    shifts = [trial["shift"] for trial in trials if trial["shift"] is not None]
    return f"{min(shifts):.2g} to {max(shifts):.2g}" if shifts else ""


def _mutant_conditions(rows: list[Row]) -> str:
    runs = {r["run"]: r["architecture"] for r in rows}
    networks = ", ".join(f"{sum(a == name for a in runs.values())} × {NAMES[name]}" for name in NAMES)
    row, commits = rows[-1], ", ".join(dict.fromkeys(r["commit"] for r in rows))
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "onnxruntime", "openvino"))
    return (
        f"{networks}, {row['image_size']} px, judged on {min(r['photos'] for r in rows)} "
        f"{'drawn' if row['drawn'] else 'real'} photos or more; {versions}; commit {commits}."
    )


def _joined(runs: Sequence[Row], what: str) -> np.ndarray:
    """The classes of all photos of several runs, which `training.study` writes as digits of base 36."""
    return np.array([int(digit, 36) for run in runs for digit in run[what]])


def _accuracy(value: float, interval: Iterable[float]) -> str:
    low, high = interval
    return f"{value:.3f} ({low:.2f}–{high:.2f})"


def _study_conditions(rows: Sequence[Row]) -> str:
    row = rows[-1]
    sizes = ", ".join(sorted({f"{r['recipe']['image_size']} px" for r in rows}))
    commits = ", ".join(sorted({r["commit"] for r in rows}))
    return (
        f"{sizes}, {row['photos']} photos to validate on in the last run; PyTorch {row['versions']['torch']} on "
        f"{row['machine_cores']} cores of {row['machine_cpu']}, shared by {row['runs_at_once']} runs; commit {commits}."
    )


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


KINDS: dict[str, Callable[[list[Row]], str]] = {
    "all": table,
    "best": lambda rows: table(best(rows)),
    "claims": claims,
    "seeds": seeds,
    "folds": folds,
    "finest": finest,
    "duplicates": duplicates,
    "growth": growth,
    "suspects": suspects,
    "unseen": unseen.table,
    "load": demo.load.table.table,
    "engine_sizes": engine_sizes.table,
    "mutants": mutants,
    "faint": faint,
    "cost": cost,
    "healthy": healthy,
}


def refreshed(text: str) -> str:
    """`text` with every table block generated anew from the rows it names."""
    return _BLOCK.sub(lambda m: f"{m['begin']}{KINDS[m['kind']](read_rows(ROOT / m['file']))}\n{m['end']}", text)


def main() -> None:
    """Rewrite or check the documents named on the command line."""
    parser = argparse.ArgumentParser(prog="python docs/tables.py", description=__doc__)
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when a table is stale")
    arguments = parser.parse_args()
    for path in arguments.documents:
        text = path.read_text(encoding="utf-8")
        if arguments.check and refreshed(text) != text:
            raise GateFailed(f"{path} has a table that is not that of its rows; run: make readme")
        path.write_text(refreshed(text), encoding="utf-8")


if __name__ == "__main__":
    exit_with_one_sentence(main)
