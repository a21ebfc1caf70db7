"""What came out of training runs, for people: `report.md` and its figures in a run's folder, and runs compared."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import numpy as np

from runtime.errors import SajiError
from runtime.evaluation import was_asked
from runtime.files import sha256_file, sha256_json, write_text
from runtime.markdown import plain, plain_table
from runtime.terminal import say, show_table, tell_programs
from training.outcome import figures
from training.outcome.summary import Outcome, differences, finished, read_outcome
from training.run.records import Share

_HEADER = (
    "network",
    "accuracy on photos that chose nothing (95 % interval)",
    "these are",
    "macro-F1",
    "calibration error",
    "accuracy on the validation photos",
    "released epoch",
    "parameters",
    "multiply-adds",
    "training time",
    "photos/s",
)
_NOTES = (
    "The accuracy to expect of the next photo is that of photos that chose nothing, neither weights nor epoch nor "
    "temperature; where it is missing, `--folds 3` or `--test-share 0.2` measures it. An interval is Wilson's for as "
    "many photos as the scenes are worth. Macro-F1 and the expected calibration error (ten bins, each photo at a "
    "temperature that it did not help to fit) are of the same photos. Validation photos compare files and engines; "
    "where they chose the released epoch, their accuracy is too high. Multiply-adds are for one photo at the network's "
    "image size; time is that of the training steps alone, photos/s the median over the epochs."
)


def write_report(run: Path) -> list[Outcome]:
    """Write `report.md` and its figures into a run's folder; gives the outcome of each finished network, by name.

    What needs `history.csv` or `gradients.csv` is left out where those are missing. Raises SajiError when no network
    is finished, and BadModel on a damaged file.
    """
    of = _of(run)  # before they are read: what is trained meanwhile is reported the next time
    outcomes = [read_outcome(folder) for folder in finished(run)]
    sections = [_head(run, outcomes), _curves(run, outcomes), _classes(run, outcomes), _pictures(run, outcomes)]
    sections += [_gradients(run, outcomes), _recipe(outcomes), of]
    write_text(run / "report.md", "\n\n".join(filter(None, sections)) + "\n")  # last: it names the figures
    return outcomes


def is_current(run: Path) -> bool:
    """Whether `report.md` is of the checkpoints that the run has: a kill may have come in between. Clocks may be wrong,
    so it is told by content."""
    report = run / "report.md"
    return report.is_file() and report.read_bytes().endswith(f"{_of(run)}\n".encode())


def _of(run: Path) -> str:
    """A line that readers of the report do not see: the hash of the run's checkpoints."""
    hashes = {file.parent.name: sha256_file(file) for file in run.glob("*/checkpoint.pt")}
    return f"<!-- checkpoints: {sha256_json(hashes)} -->"


def table(outcomes: Sequence[Outcome]) -> str:
    """The networks as a Markdown table with its notes; runs are named where there are several."""
    return "\n\n".join(filter(None, [plain_table(_HEADER, _rows(outcomes)), _NOTES, _compared(outcomes)]))


def _rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    return [_row(outcome, outcome.name if _several(outcomes) else outcome.network) for outcome in outcomes]


def _several(outcomes: Sequence[Outcome]) -> bool:
    return len({outcome.run for outcome in outcomes}) > 1


def _compared(outcomes: Sequence[Outcome]) -> str:
    """Each pair of networks that answered the same photos."""
    head = "first against second", "difference of validation accuracy (95 % interval)", "p (Holm)"
    rows, several = [], _several(outcomes)
    for pair in differences(outcomes):
        names = " against ".join(each.name if several else each.network for each in (pair.first, pair.second))
        low, high = pair.interval
        rows.append([names, f"{pair.difference:+.3f} ({low:+.3f} to {high:+.3f})", f"{pair.p:.2g}"])
    note = "Paired: whole scenes are drawn for the interval and change signs for p, which is adjusted for all pairs."
    return f"{plain_table(head, rows)}\n\n{note}" if rows else ""


def settings(outcomes: Sequence[Outcome]) -> str:
    """The settings in which networks of several runs differ, as a Markdown table; empty where they do not."""
    rows = [[name, *values] for name, values in _settings(outcomes).items() if len(set(values)) > 1]
    return plain_table(("setting", *(outcome.name for outcome in outcomes)), rows) if rows else ""


def _row(outcome: Outcome, name: str) -> list[str]:
    held, validation = outcome.held_out, Share.of(outcome.right, outcome.validation.scenes)
    released, epochs = outcome.spec.validation.get("epoch"), len(outcome.history)
    return [
        name,
        _range(held.share) if held else "not measured",
        f"{held.photos} of {held.how}" if held else "",
        f"{held.macro_f1:.3f}" if held else "",
        f"{held.calibration_error:.3f}" if held else "",
        f"{_range(validation)}, {len(outcome.right)} photos",
        f"{released} of {epochs}" if released and epochs else "",
        f"{outcome.parameters / 1e6:.2f} M",
        f"{outcome.multiply_adds / 1e6:.0f} M at {outcome.spec.geometry.size} px",
        f"{outcome.training_seconds:.0f} s" if outcome.history else "",
        f"{outcome.photos_per_second:.0f}" if outcome.history else "",
    ]


def _range(share: Share) -> str:
    low, high = share.interval
    return f"{share.share:.3f} ({low:.3f}–{high:.3f})"


def _head(run: Path, outcomes: Sequence[Outcome]) -> str:
    spec = outcomes[0].spec
    versions = ", ".join(f"{name} {spec.versions[name]}" for name in ("torch", "torchvision") if name in spec.versions)
    drawn = ", drawn dishes and not photos" if spec.data.get("drawn") else ""
    lines = [
        f"# {plain(run.resolve().name)}",
        f"{len(spec.classes)} classes, {spec.data.get('train', '?')} photos to train on and "
        f"{len(outcomes[0].validation.labels)} to validate{drawn}; {versions}.",
        table(outcomes),
    ]
    if len({str(outcome.spec.data.get("fingerprint")) for outcome in outcomes}) > 1:
        lines.append("**These networks were trained on different photos, so their figures do not compare.**")
    return "\n\n".join(lines)


def _curves(run: Path, outcomes: Sequence[Outcome]) -> str:
    measured = [outcome for outcome in outcomes if outcome.history]
    if not measured:
        return ""
    return (
        f"## Accuracy and loss per epoch\n\n{_figure(run, figures.curves, measured)}\n\nThe training loss is the one "
        "that is minimised, with the recipe's augmentation and label smoothing; the validation loss is plain "
        "cross-entropy."
    )


def _classes(run: Path, outcomes: Sequence[Outcome]) -> str:
    parts = ["## Per class"]
    for outcome in outcomes:
        rows = [
            [name, f"{scores.precision:.3f}", f"{scores.recall:.3f}", f"{scores.f1:.3f}", str(scores.support), recall]
            for name, scores, recall in zip(outcome.spec.classes, outcome.class_scores, _recalls(outcome), strict=True)
        ]
        head = outcome.network, "precision", "recall", "F1", "support", "recall on photos that chose nothing"
        parts.append(plain_table(head, rows))
    if any(outcome.held_out for outcome in outcomes):
        figure = _figure(run, figures.reliability, [outcome for outcome in outcomes if outcome.held_out])
        parts.append(f"How sure it was, and how often right, on photos that chose nothing:\n\n{figure}")
    return "\n\n".join([*parts, _figure(run, figures.confusions, outcomes)])


def _recalls(outcome: Outcome) -> list[str]:
    held = outcome.held_out
    if not held:
        return [""] * len(outcome.spec.classes)
    pairs = zip(held.recalls, held.recall_intervals, strict=True)
    return [_range(Share(recall, (edges[0], edges[1]))) if was_asked(edges) else "no photo" for recall, edges in pairs]


def _pictures(run: Path, outcomes: Sequence[Outcome]) -> str:
    return (
        "## Worst mistakes\n\nThe most confident first: true class, predicted class with its probability, file.\n\n"
        f"{_figure(run, figures.mistakes, outcomes)}\n\n## Test pictures\n\nTaken evenly from all classes, whatever "
        f"the answer, the same for each network.\n\n{_figure(run, figures.predictions, outcomes)}"
    )


def _gradients(run: Path, outcomes: Sequence[Outcome]) -> str:
    norms = {outcome.network: outcome.gradients.norms for outcome in outcomes if outcome.gradients}
    if not norms:
        return ""
    ratios = [f"{network} {_shortened(np.nanmedian(norm[0] / norm[-1]))}" for network, norm in norms.items()]
    return (
        f"## Gradients\n\n{_figure(run, figures.gradients, outcomes)}\n\nNorm of the first layer's gradient over that "
        f"of the last, median over the epochs: {', '.join(ratios)}."
    )


def _recipe(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for setting, values in _settings(outcomes).items():
        each = [f"{outcome.network}: {value}" for outcome, value in zip(outcomes, values, strict=True)]
        rows.append([setting, values[0] if len(set(values)) == 1 else ", ".join(each)])
    return f"## Recipe\n\n{plain_table(('setting', 'value'), rows)}"


def _settings(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Each setting of the recipes with its value for each network."""
    recipes = [outcome.spec.recipe for outcome in outcomes]
    return {name: [str(recipe.get(name)) for recipe in recipes] for name in dict.fromkeys(chain(*recipes))}


def _figure(run: Path, draw: figures.Draw, outcomes: Sequence[Outcome]) -> str:
    name = f"{draw.__name__}.png"
    figures.write(draw, outcomes, run / name)
    return f"![{draw.__name__}]({name})"


def _shortened(number: float) -> str:
    return np.format_float_positional(number, precision=3, fractional=False, trim="-")


def _run_folder(name: str, out: Path) -> Path:
    """The folder of a run that is given by its name in `out`, or as a folder."""
    for folder in (out / "runs" / name, Path(name)):
        if folder.is_dir():
            return folder
    runs = sorted(path.name for path in (out / "runs").glob("*") if path.is_dir())
    raise SajiError(
        f"there is no run {name!r} in {out / 'runs'} ({', '.join(runs) or 'no run at all'}); "
        f"train it with: make train RUN={name}"
    )


def _told_apart(runs: Sequence[Path]) -> list[str]:
    """The names of runs, behind as many of the folders that they lie in as it takes to tell them apart."""
    places = [run.resolve().parts for run in runs]
    depth = next(depth for depth in count(1) if len({parts[-depth:] for parts in places}) == len(runs))
    return [Path(*parts[-depth:]).as_posix() for parts in places]


def report(names: Sequence[str], out: Path) -> None:
    """Write the report of each run in `out`, given by name or as a folder, and compare the networks of several."""
    runs = list({run.resolve(): run for run in (_run_folder(name, out) for name in names)}.values())
    outcomes = []
    for run, name in zip(runs, _told_apart(runs), strict=True):
        outcomes += [replace(outcome, run=name) for outcome in write_report(run)]
        say(f"report: {run / 'report.md'}")
    full = runs[0] / "report.md"
    if len(runs) > 1:
        full = out / "comparison.md"
        write_text(full, "\n\n".join(filter(None, [table(outcomes), settings(outcomes)])) + "\n")
        figures.write(figures.comparison, outcomes, out / "comparison.png")
        say(f"comparison: {out / 'comparison.png'}")
    first = "accuracy on photos that chose nothing", "accuracy on the validation photos"
    show_table(_HEADER, _rows(outcomes), "lr", first, full)
    networks = [outcome.record() for outcome in outcomes]
    tell_programs({"reports": [str(run / "report.md") for run in runs], "networks": networks})
