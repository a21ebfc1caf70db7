"""The tables of docs/study.md: networks compared, duplicates, wrong labels, unseen classes."""

import itertools
import statistics
from collections.abc import Sequence

import numpy as np

from lab.tables.markdown import NAMES, Columns, by_columns, machine
from runtime.benchmark.rows import Row
from runtime.evaluation import holm, paired_bootstrap, paired_p, wilson_interval, with_interval
from runtime.markdown import markdown

ACCURACY = "accuracy (95 % interval)"
# Validation accuracy as the students' own reports state it, by recipe and network
SEEDS = {
    "salt": {"plain34": 0.47, "resnet34": 0.671, "se_resnet34": 0.545},
    "300gecs": {"plain34": 0.54, "resnet34": 0.60, "se_resnet34": 0.706},
    "nasgor_goreng": {"plain34": 0.428, "resnet34": 0.671},
    "cosine_warmup": {"plain34": 0.82, "resnet34": 0.87},
}


def seeds(rows: list[Row]) -> str:
    """The seed experiments as reported, beside what the same recipe does on photos that chose nothing."""
    head = "recipe", "network", "reported, on a split that leaks", f"without leaks, {ACCURACY}", "epoch"
    measured = {(row["recipe"]["name"], row["architecture"]): row for row in rows if row["part"] == "seeds"}
    lines = []
    for recipe, networks in SEEDS.items():
        for network, reported in networks.items():
            row = measured.get((recipe, network))
            ours = with_interval(row["accuracy"], row["accuracy_interval"]) if row else "not run yet"
            epochs = f"{row['best_epoch']['epoch']} of {row['last_epoch']['epoch']}" if row else ""
            lines.append((recipe, NAMES[network], f"{reported:.3f}", ours, epochs))
    return f"{markdown(head, lines)}\n\n{_conditions([*measured.values()])}" if measured else markdown(head, lines)


def from_nothing(rows: list[Row]) -> str:
    """What the networks of `scratch` do on photos that chose nothing of them, by folds, and each two compared."""
    rows = [row for row in rows if row["part"] == "held_out" and row["recipe"]["name"] == "scratch"]
    return "\n\n".join([_held_out(rows), _paired(rows), _measured(rows)])


def held_out(rows: list[Row]) -> str:
    """What those of other recipes do on such photos."""
    rows = [row for row in rows if row["part"] == "held_out" and row["recipe"]["name"] != "scratch"]
    return f"{_held_out(rows)}\n\n{_measured(rows)}"


def _held_out(rows: list[Row]) -> str:
    columns: Columns = {
        "network": lambda row: str(NAMES.get(row["architecture"], row["architecture"])),
        "recipe": "{recipe[name]}, {recipe[image_size]} px",
        "photos that chose nothing": "{photos} of {scenes} scenes, {how}",
        ACCURACY: lambda row: with_interval(row["accuracy"], row["interval"]),
        "macro-F1": "{macro_f1:.3f}",
        "calibration error": "{calibration_error:.3f}",
        "at temperature 1": "{calibration_error_at_temperature_1:.3f}",
        "each fold": lambda row: ", ".join(f"{fold['accuracy']:.3f}" for fold in row["folds"]),
    }
    return by_columns(rows, columns)


def _measured(rows: list[Row]) -> str:
    return f"PyTorch {rows[-1]['versions']['torch']}, {machine(rows[-1])}; commit {rows[-1]['commit']}."


def _paired(rows: list[Row]) -> str:
    """Each two networks compared on the same photos, of which whole scenes are drawn; p adjusted for their number."""
    right = [_joined([row], "predictions") == _joined([row], "labels") for row in rows]
    scenes, lines = np.array(rows[0]["scene"]), []
    pairs = [(a, b, right[a].astype(int) - right[b]) for a, b in itertools.combinations(range(len(rows)), 2)]
    for (a, b, ahead), p in zip(pairs, holm([paired_p(ahead, scenes) for *_, ahead in pairs]), strict=True):
        names = [NAMES[rows[i]["architecture"]] for i in (a, b)]
        difference = "{:+.3f} ({:+.3f} to {:+.3f})".format(ahead.mean(), *paired_bootstrap(ahead, scenes))
        verdict = "inconclusive" if p >= 0.05 else f"{names[0 if ahead.mean() > 0 else 1]} is better"
        apart = str((ahead > 0).sum()), str((ahead < 0).sum())
        lines.append((" against ".join(names), difference, *apart, f"{p:.2g}", verdict))
    head = "first against second", f"difference of {ACCURACY}", "only first right", "only second", "p", ""
    return markdown(head, lines)


def limits(rows: list[Row]) -> str:
    """ResNet-34 from nothing with one thing changed at a time and with more help, compared with the first row."""
    rows = [row for row in rows if row["part"] in ("limits", "distil")]
    labels = _joined(rows[:1], "labels")
    right = {row["run"]: (_joined([row], "predictions") == labels).astype(int) for row in rows}

    def gained(row: Row) -> str:
        if row is rows[0]:
            return ""
        difference = right[row["run"]] - right[rows[0]["run"]]
        return "{:+.3f} ({:+.3f} to {:+.3f})".format(
            difference.mean(), *paired_bootstrap(difference, np.array(row["scene"]))
        )

    columns: Columns = {
        "changed": lambda row: row["recipe"]["name"].replace("_", " "),
        "network": lambda row: str(NAMES.get(row["architecture"], row["architecture"])),
        "size": "{recipe[image_size]} px",
        "photos": "{trained_on}",
        "epochs": "{recipe[epochs]}",
        "steps": lambda row: str(row["recipe"]["epochs"] * -(-row["trained_on"] // row["recipe"]["batch_size"])),
        "accuracy on photos that it learned": "{accuracy_on_training_photos:.3f}",
        f"on others {ACCURACY[9:]}": lambda row: with_interval(row["accuracy"], row["accuracy_interval"]),
        "against the first": gained,
    }
    return f"{by_columns(rows, columns)}\n\n{_conditions(rows)}"


def headline(rows: list[Row]) -> str:
    """The accuracy that the first page leads with, and what it is of."""
    row = next(row for row in rows if row["run"] == "held_out/transfer/efficientnet_lite0")
    interval = "{:.2f}–{:.2f}".format(*row["interval"])
    return (
        f"**{row['accuracy']:.3f}** of {row['photos']} photos that chose nothing are named rightly (95 % interval "
        f"{interval}; {row['how']}, calibration error {row['calibration_error']:.3f})."
    )


def coverage(rows: list[Row]) -> str:
    """How often the interval of one fold contains the accuracy on the other folds."""
    columns: Columns = {
        "photos": "{photos} of {scenes} scenes",
        "folds": "{folds}",
        "intervals": lambda row: str(row["folds"] * row["repeats"]),
        "accuracy": "{accuracy:.3f}",
        "contain the accuracy on the other folds": lambda row: f"{100 * row['contained']:.0f} %",
    }
    return by_columns(rows, columns)


def duplicates(rows: list[Row]) -> str:
    """The search for duplicates where they are known."""
    columns: Columns = {
        "photo set": "{data}",
        "photos": "{photos}",
        "true pairs": "{true_pairs}",
        "found": "{found_pairs}",
        "recall": "{recall:.3f}",
        "precision": "{precision:.3f}",
        "missed": lambda row: ", ".join(" = ".join(pair) for pair in row["missed"]) or "none",
    }
    return by_columns([row for row in rows if "recall" in row], columns)


def planted(rows: list[Row]) -> str:
    """How many planted copies of each kind are found, and how many of all pairs are right."""
    row = [row for row in rows if row["experiment"] == "planted duplicates"][-1]
    cells = [(kind, f"{recall:.2f}") for kind, recall in row["recall_by_kind"].items()]
    conditions = f"{row['planted']} copies of each kind among {row['photos']} photos; precision {row['precision']:.3f}"
    return f"{markdown(('kind of copy', 'recall'), cells)}\n\n{conditions}; commit {row['commit']}."


def growth(rows: list[Row]) -> str:
    """The search for duplicates among more and more drawn photos, and the power of their number that it grows with."""
    columns: Columns = {
        "photos": "{photos:,}",
        "photos/s": "{photos_per_second:.0f}",
        "seconds": "{seconds:.0f}",
        "peak memory, MiB": "{peak_memory_mib:.0f}",
        "of it private": "{private_memory_mib:.0f}",
    }
    drawn = [row for row in rows if row["experiment"] == "duplicates among drawn photos"]
    row = drawn[-1]
    conditions = f"Processor seconds grow with the power {row['growth_exponent']} of the number of photos; "
    conditions += f"{row['image_size']} px, {machine(row)}; commit {row['commit']}."
    return f"{by_columns(drawn, columns)}\n\n{conditions}"


def suspects(rows: list[Row]) -> str:
    """Mislabelled photos that were mixed into a set, and how many of them the list begins with."""
    columns: Columns = {
        "photos": "{photos}",
        "mislabelled ones mixed in": "{planted}",
        "found among the first": "{found} of {first}",
        "recall (95 % interval)": lambda row: with_interval(
            row["recall"], wilson_interval(row["found"], row["planted"])
        ),
    }
    return by_columns([row for row in rows if row["experiment"] == "suspects"], columns)


def sources(rows: list[Row]) -> str:
    """What a network does on the collection that it was not trained on, by the share of published weights in it."""
    head = ["left out", "photos", *(name if " " in name else f"share {name}" for name in rows[0]["accuracy"])]
    lines = []
    for name in dict.fromkeys(row["left_out"] for row in rows):
        runs = [row for row in rows if row["left_out"] == name]
        cells = [
            ", ".join(with_interval(run["accuracy"][how]["share"], run["accuracy"][how]["interval"]) for run in runs)
            for how in runs[0]["accuracy"]
        ]
        lines.append([name, str(runs[0]["photos"]), *cells])
    row, recipe = rows[0], rows[0]["recipe"]
    conditions = (
        f"{row['architecture']}, recipe {recipe['name']}, {recipe['epochs']} epochs at {recipe['image_size']} px; "
        f"{machine(row)}; commit {row['commit']}."
    )
    return f"{markdown(head, lines)}\n\n{conditions}"


def unseen(rows: list[Row]) -> str:
    """How well each rule notices a class that was left out: its AUROC for each class, the means at the end."""
    by_class = {
        name: [row for row in rows if row["unseen"] == name] for name in dict.fromkeys(r["unseen"] for r in rows)
    }
    kept, absent = f"{100 * rows[0]['right_kept']:g} %", [row for row in rows if row.get("absent")]
    head = ["rule", *by_class, "mean AUROC", f"unknown rejected where {kept} of right ones are kept"]
    figures = [*(means(runs, "auroc") for runs in by_class.values())]
    figures += [means(rows, "auroc"), means(rows, "unknown_rejected")]
    if absent:
        head.append(f"of {absent[0]['absent']} photos without food")
        figures.append(means(absent, "absent_rejected"))
    lines = [[rule, *(f"{figure[rule]:.3f}" for figure in figures)] for rule in figures[0]]
    row, recipe, seeds = rows[0], rows[0]["recipe"], {row["recipe"]["seed"] for row in rows}
    conditions = (
        f"AUROC of validation photos of the other classes against all photos of the class that is left out; "
        f"{row['architecture']}, recipe {recipe['name']}, {recipe['epochs']} epochs at {recipe['image_size']} px, "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}, "
        f"accuracy {min(r['accuracy'] for r in rows):.3f} to {max(r['accuracy'] for r in rows):.3f}; "
        f"commit {', '.join(sorted({r['commit'] for r in rows}))}, {row['time'][:10]}."
    )
    return f"{markdown(head, lines)}\n\n{conditions}"


def means(rows: list[Row], figure: str) -> dict[str, float]:
    """The mean of a figure that each row has by rule, for each rule."""
    return {rule: round(statistics.mean(row[figure][rule] for row in rows), 4) for rule in rows[0][figure]}


def _joined(runs: Sequence[Row], what: str) -> np.ndarray:
    """The classes of all photos of several runs, which `lab.study` writes as digits of base 36."""
    return np.array([int(digit, 36) for run in runs for digit in run[what]])


def _conditions(rows: Sequence[Row]) -> str:
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    return f"{rows[0]['photos']} photos that chose nothing; {machine(rows[-1])}; commit {commits}."
