"""The report of a run: what it shows is what the checkpoint, the validation set and the files beside them say."""

import contextlib
import csv
import errno
import html
import io
import json
import os
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix
from torchvision.models import ResNet18_Weights

from runtime.errors import BadModel, SajiError
from runtime.markdown import plain, plain_table
from training.__main__ import main
from training.network.classifier import PhotoClassifier, load_checkpoint, save_checkpoint
from training.outcome import figures, report
from training.outcome.summary import Outcome, differences, multiply_adds, read_outcome
from training.run.records import Epoch, GradientNorm, read_csv, read_history

LAYERS = ("network.conv1.weight", "network.layer1.0.conv1.weight", "network.fc.weight")


def copied(network: Path, run: Path, name: str) -> Path:
    """A finished network under another run and name."""
    folder = run / name
    folder.mkdir(parents=True)
    for file in ("checkpoint.pt", "validation.npz", "history.csv"):
        shutil.copy(network / file, folder / file)
    return folder


def write_csv(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def reported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """A run of two networks with everything that a trainer may write, and its report."""
    folder = tmp_path_factory.mktemp("out") / "runs" / "dishes"
    for name in ("first", "second"):
        copied(run, folder, name)
        rows = list(csv.DictReader((run / "history.csv").open()))
        write_csv(folder / name / "history.csv", [row | {"train_accuracy": 0.5} for row in rows])
        norms = [
            {"epoch": e, "layer": layer, "norm": 10.0 ** (e - n)} for e in (1, 2) for n, layer in enumerate(LAYERS)
        ]
        write_csv(folder / name / "gradients.csv", norms)
    return folder, report.write_report(folder)


@pytest.fixture(scope="module")
def outcome(reported: tuple[Path, list[Outcome]]) -> Outcome:
    return reported[1][0]


def rows_of(text: str, first_cell: str) -> list[list[str]]:
    """The body of the Markdown table whose first cell is `first_cell`."""
    lines = text[text.index(f"| {first_cell} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def pictures(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


def test_every_figure_is_there_and_shows_something(reported: tuple[Path, list[Outcome]]) -> None:
    folder, _ = reported
    text = (folder / "report.md").read_text(encoding="utf-8")
    names = {"curves.png", "confusions.png", "mistakes.png", "predictions.png", "gradients.png", "reliability.png"}
    assert pictures(folder) == names and all(f"]({name})" in text for name in names)
    for name in names:
        pixels = np.asarray(Image.open(folder / name).convert("L"))
        assert (pixels < 250).mean() > 0.01, name


def test_the_figures_per_class_are_scikit_learns(reported: tuple[Path, list[Outcome]], outcome: Outcome) -> None:
    text = (reported[0] / "report.md").read_text(encoding="utf-8")
    labels, classes = outcome.validation.labels, list(outcome.spec.classes)
    right = classification_report(labels, outcome.logits.argmax(1), target_names=classes, output_dict=True)
    rows = rows_of(text, "first | precision")
    assert [row[0].replace("\\", "") for row in rows] == classes
    for name, *scores, recall in rows:
        assert recall.startswith(f"{right[name]['recall']:.3f} (")  # of the same photos: they chose nothing
        of = right[name]
        told = [of["precision"], of["recall"], of["f1-score"], of["support"]]
        assert [float(score) for score in scores] == pytest.approx(told, abs=5e-4)
    assert outcome.record()["macro_f1"] == pytest.approx(right["macro avg"]["f1-score"], abs=5e-5)
    assert outcome.record()["accuracy"] == outcome.spec.validation["accuracy"]
    assert outcome.record()["accuracy_interval"] == outcome.spec.validation["interval"]


def test_the_confusion_matrix_is_scikit_learns(outcome: Outcome) -> None:
    counts = confusion_matrix(outcome.validation.labels, outcome.predicted, labels=range(5))
    drawn = {text.get_position(): int(text.get_text()) for text in figures.confusions([outcome]).axes[0].texts}
    assert drawn == {(c, r): counts[r, c] for r, c in zip(*np.nonzero(counts), strict=True)}


def test_parameters_and_multiply_adds_are_the_published_ones() -> None:
    model, published = PhotoClassifier("resnet18", 1000), ResNet18_Weights.DEFAULT.meta
    assert sum(weights.numel() for weights in model.parameters()) == published["num_params"]
    assert multiply_adds(model.eval(), 224) / 1e9 == pytest.approx(published["_ops"], abs=1e-3)


def test_the_best_and_the_last_epoch_are_told(outcome: Outcome) -> None:
    history = [
        Epoch(n + 1, train, 1, accuracy, loss, 0.1, 2.5, pace)
        for n, (train, accuracy, loss, pace) in enumerate(
            zip((np.nan, 0.4, np.nan, 0.5), (0.2, 0.7, 0.7, 0.6), (1, 2, 0.5, 1), (1, 9, 9, 9), strict=True)
        )
    ]
    told = replace(outcome, history=history)
    figures_of = told.record()
    best_epoch = figures_of["best_epoch"]
    assert best_epoch["epoch"] == 3 and best_epoch["val_accuracy"] == 0.7  # of equals the lower loss, as is released
    same = [replace(row, val_loss=1) for row in history]
    assert replace(outcome, history=same).record()["best_epoch"]["epoch"] == 2  # the first
    last = {"epoch": 4, "train_accuracy": 0.5, "val_accuracy": 0.6, "train_loss": 1, "val_loss": 1}
    assert figures_of["last_epoch"] == last
    assert figures_of["training_seconds"] == 10 and figures_of["photos_per_second"] == 9
    training, validation, best = figures.curves([told]).axes[0].lines
    assert list(training.get_xdata()) == [2, 4] and list(training.get_ydata()) == [0.4, 0.5]  # not measured each epoch
    assert list(validation.get_ydata()) == [0.2, 0.7, 0.7, 0.6] and list(best.get_xdata()) == [3, 3]


def test_the_recipe_stands_once_and_differences_per_network(outcome: Outcome) -> None:
    other = replace(outcome, network="second", spec=replace(outcome.spec, recipe=outcome.spec.recipe | {"epochs": 7}))
    rows = dict(rows_of(report._recipe([outcome, other]), "setting"))
    assert set(rows) == set(outcome.spec.recipe)
    assert rows["image_size"] == "32" and rows["epochs"] == "first: 2, second: 7"
    assert rows_of(report.settings([outcome, other]), "setting") == [["epochs", "2", "7"]]


def test_the_worst_mistakes_come_first(outcome: Outcome) -> None:
    logits = np.zeros_like(outcome.logits)
    labels = outcome.validation.labels
    logits[np.arange(len(labels)), labels] = 9
    for photo, lead in ((3, 2.0), (8, 5.0), (12, 3.0)):
        logits[photo] = 0
        logits[photo, (labels[photo] + 1) % 5] = lead
    wrong = replace(outcome, logits=logits)
    grid = figures.mistakes([wrong]).axes[0]
    assert grid.get_title(loc="left") == "first: 3 mistakes" and len(grid.images) == 3
    for shown, photo in zip(grid.images, (8, 12, 3), strict=True):
        assert np.array_equal(shown.get_array(), outcome.validation.images[photo])
    told = [text.get_text() for text in grid.texts[:3]]
    classes, lead = outcome.spec.classes, np.exp(5 / outcome.spec.temperature)
    sure = lead / (lead + 4)
    assert told[0] == classes[labels[8]] and told[1] == f"✗ {sure:.2f} {classes[(labels[8] + 1) % 5]}"
    assert told[2] == Path(outcome.validation.names[8]).name


def test_each_network_answers_the_same_pictures(outcome: Outcome) -> None:
    better = np.zeros_like(outcome.logits)
    better[np.arange(len(better)), outcome.validation.labels] = 5
    ours, perfect = figures.predictions([outcome, replace(outcome, logits=better)]).axes
    assert len(ours.images) == figures.COLUMNS * figures.MOST_ROWS
    assert all(np.array_equal(a.get_array(), b.get_array()) for a, b in zip(ours.images, perfect.images, strict=True))
    assert perfect.get_title(loc="left") == "first: 16 of 16 right"
    said = [text.get_text() for text in ours.texts]
    assert ours.get_title(loc="left") == f"first: {sum(text[0] == '✓' for text in said)} of 16 right"
    assert {text for text in said if text in outcome.spec.classes} == set(outcome.spec.classes)


def test_gradients_are_told_by_layer_and_epoch(reported: tuple[Path, list[Outcome]], tmp_path: Path) -> None:
    folder, outcomes = reported
    heat = figures.gradients(outcomes).axes[0].images[0].get_array()
    assert heat.tolist() == [[10, 100], [1, 10], [0.1, 1]]
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "median over the epochs: first 100, second 100." in text
    # frozen at first, and an overflow: a gap each, the layer in its place
    rows = [{"epoch": 1, "layer": "fc", "norm": "inf"}]
    rows += [{"epoch": 2, "layer": "conv", "norm": 4}, {"epoch": 2, "layer": "fc", "norm": 2}]
    network = copied(folder / "first", tmp_path, "thawed")
    write_csv(network / "gradients.csv", rows)
    gradients = read_outcome(network).gradients
    assert gradients.layers == ("conv", "fc")
    np.testing.assert_array_equal(gradients.norms, [[np.nan, 4], [np.nan, 2]])


def test_a_difference_is_tested_on_the_same_photos_only(outcome: Outcome) -> None:
    logits = outcome.logits.copy()
    for photo in np.flatnonzero(outcome.right)[:7]:
        logits[photo] = -logits[photo]
    worse = replace(outcome, logits=logits)
    lost, won = (outcome.right & ~worse.right).sum(), (~outcome.right & worse.right).sum()
    apart = replace(outcome.validation, scenes=np.arange(len(outcome.right)))
    outcome, worse = (replace(each, validation=apart) for each in (outcome, worse))
    (pair,) = differences([worse, outcome])
    assert pair.p == pytest.approx(binomtest(int(lost), int(lost + won)).pvalue) and lost == 7
    assert pair.difference == pytest.approx((won - lost) / len(outcome.right)) and pair.interval[1] <= 0
    # Were the seven photos shots of one plate, they would be one difference and no evidence
    same = replace(apart, scenes=np.where(outcome.right & ~worse.right, -1, np.arange(len(outcome.right))))
    (pair,) = differences([replace(each, validation=same) for each in (worse, outcome)])
    assert pair.p > 0.9
    names = replace(outcome.validation, names=outcome.validation.names[::-1])
    assert differences([replace(outcome, validation=names), outcome]) == []
    foreign = replace(outcome, spec=replace(outcome.spec, data={"fingerprint": "another"}))
    assert differences([foreign, outcome]) == []
    assert "do not compare" in report._head(Path("x"), [outcome, foreign])
    assert "do not compare" not in report._head(Path("x"), [outcome, worse])


@pytest.fixture(scope="module")
def compared(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two runs as older versions left them, one of them without a history, and what the command says of them."""
    out = tmp_path_factory.mktemp("compared")
    copied(run, out / "runs" / "old", "resnet18")  # no train_accuracy, no gradients.csv
    (copied(run, out / "runs" / "bare", "resnet18") / "history.csv").unlink()
    (out / "runs" / "bare" / "crashed").mkdir()  # a network that never finished
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr("sys.argv", ["training", "report", "old", str(out / "runs" / "bare"), "--out", str(out)])
        main()
    return out, said.getvalue()


NAMES = ["old · resnet18", "bare · resnet18"]


def test_runs_are_compared(compared: tuple[Path, str], outcome: Outcome) -> None:
    out, said = compared
    *lines, last = said.splitlines()
    assert [row[0] for row in rows_of((out / "comparison.md").read_text("utf-8"), "network")] == NAMES
    assert all(any(line.startswith(f"| {name}") for line in lines) for name in NAMES)
    assert f"all of it: {out / 'comparison.md'}" in said
    assert "| setting |" not in (out / "comparison.md").read_text("utf-8")  # both are of one recipe
    networks = json.loads(last)["networks"]
    assert [(n["run"], n["accuracy"]) for n in networks] == [(r, outcome.record()["accuracy"]) for r in ("old", "bare")]
    assert (np.asarray(Image.open(out / "comparison.png").convert("L")) < 250).mean() > 0.005
    left, right = figures.comparison([outcome, replace(outcome, run="other", history=())]).axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["dishes · first", "other · first"]
    assert list(left.lines[0].get_xdata()) == outcome.spec.validation["interval"]
    assert len(right.lines) == 1 and right.lines[0].get_ydata().tolist() == outcome.curve("val_accuracy").tolist()


def test_runs_of_one_name_are_told_apart_by_the_folders_that_they_lie_in(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    runs = [tmp_path / out / "runs" / "k" for out in ("a", "b")]
    for run in runs:
        run.mkdir(parents=True)
    monkeypatch.setattr(report, "write_report", lambda run: [replace(outcome, run=run.name)])
    report.report([*map(str, runs), str(runs[0] / ".." / "k")], tmp_path)
    names = [row[0] for row in rows_of((tmp_path / "comparison.md").read_text("utf-8"), "network")]
    assert names == ["a/runs/k · first", "b/runs/k · first"]
    networks = json.loads(capsys.readouterr().out.splitlines()[-1])["networks"]
    assert [network["run"] for network in networks] == ["a/runs/k", "b/runs/k"]


def test_what_is_missing_is_left_out(compared: tuple[Path, str]) -> None:
    out, _ = compared
    always = {"confusions.png", "mistakes.png", "predictions.png", "reliability.png"}
    assert pictures(out / "runs" / "old") == {"curves.png", *always}
    assert pictures(out / "runs" / "bare") == always
    text = (out / "runs" / "bare" / "report.md").read_text(encoding="utf-8")
    (row,) = rows_of(text, "network")
    assert row[0] == "resnet18" and row[6] == "" and row[9:] == ["", ""] and "curves.png" not in text


def test_class_names_of_any_kind(run: Path, tmp_path: Path) -> None:
    names = ("ソト・アヤム", "price $5 | $7", "a" * 200, "caf\udce9", "<b>*bold* line</b>")
    network = copied(run, tmp_path, "resnet18")
    model, spec = load_checkpoint(network / "checkpoint.pt")
    spec = replace(spec, classes=names)
    odd = replace(read_outcome(network), spec=spec)
    save_checkpoint(network / "checkpoint.pt", model, replace(spec, classes=("caf?", *names[:3], names[4])))
    report.write_report(tmp_path)
    rows = rows_of((tmp_path / "report.md").read_text(encoding="utf-8"), "resnet18 | precision")
    assert [len(row) for row in rows] == [6] * 5
    assert rows[1][0] == "ソト・アヤム" and rows[3][0] == "a" * 200 and rows[4][0] == r"\<b\>\*bold\* line\</b\>"
    labels = [tick.get_text() for tick in figures.confusions([odd]).axes[0].get_yticklabels()]
    assert labels == ["ソト・アヤム", r"price \$5 | \$7", "a" * 15 + "…", "caf?", "<b>*bold* line<…"]


@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        (["runs/other/resnet18"], r"there is no run 'mine' in .*runs \(other\); .*make train RUN=mine"),
        ([], r"there is no run 'mine' in .*runs \(no run at all\)"),
        (["runs/mine/resnet18"], "mine has no finished network .* make train RUN=mine"),
    ],
)
def test_a_run_that_is_not_there_or_not_finished(there: list, sentence: str, tmp_path: Path, monkeypatch) -> None:
    for folder in there:
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["training", "report", "mine", "--out", str(tmp_path)])
    with pytest.raises(SajiError, match=sentence):
        main()


@pytest.mark.parametrize("days", [-1, 1])
def test_a_report_is_current_for_its_very_checkpoints_whatever_clocks_say(run: Path, tmp_path: Path, days: int) -> None:
    """A training that was killed before its report, and files that were dated by a wrong clock."""
    checkpoint = copied(run, tmp_path, "resnet18") / "checkpoint.pt"
    assert not report.is_current(tmp_path)
    report.write_report(tmp_path)
    dated = checkpoint.stat().st_mtime + days * 86400
    os.utime(tmp_path / "report.md", (dated, dated))
    assert report.is_current(tmp_path)
    model, spec = load_checkpoint(checkpoint)
    save_checkpoint(checkpoint, model, replace(spec, temperature=spec.temperature + 1))
    os.utime(checkpoint, (dated, dated))
    assert not report.is_current(tmp_path)


# Of a row, or of two of which the first lost its end
WHOLE_LINES = [(f"epoch,layer,norm\n{row}\n", "its rows are not whole") for row in ("1,a", "1,a,2,1,b,3")]


@pytest.mark.parametrize(
    ("text", "why"), [("epoch,norm\n1,2\n", "no column layer"), ("epoch,layer,norm\n1,a,b\n", "'b'"), *WHOLE_LINES]
)
def test_a_damaged_file_is_named(text: str, why: str, run: Path, tmp_path: Path) -> None:
    network = copied(run, tmp_path, "resnet18")
    (network / "gradients.csv").write_text(text)
    with pytest.raises(BadModel, match=rf"gradients\.csv .*{why}.*train again"):
        report.write_report(tmp_path)
    assert not (tmp_path / "report.md").exists()


HISTORY = ",".join(field.name for field in fields(Epoch)) + "\r\n"
HISTORY += "".join(f"{epoch},0.5,2.0,nan,3.17,,100.25,8.0\r\n" for epoch in (1, 2, 3))


def test_a_history_that_is_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(len(HISTORY)):
        (tmp_path / "history.csv").write_bytes(HISTORY[:length].encode())
        with pytest.raises(BadModel, match=r"history\.csv .*; delete it for a report without it, or train again"):
            read_history(tmp_path, 3)
            pytest.fail(HISTORY[:length])
    (tmp_path / "history.csv").write_bytes(HISTORY.encode())
    rows = read_history(tmp_path, 3)
    assert len(read_history(tmp_path)) == 3 and [row.photos_per_second for row in rows] == [8, 8, 8]
    assert np.isnan([rows[0].val_accuracy, rows[0].learning_rate]).all(), "not measured"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("3,0.5", "2,0.5"),
        ("\r\n2,", "\r\n4,"),
        ("\r\n2,", "2,"),
        ("8.0\r", "\r"),
        ("100.25", "nan"),
        ("1,", "x" * 200_000),
    ],
    ids=["twice", "another", "two in one row", "no cell", "no number", "too long"],
)
def test_a_history_that_is_damaged_inside_is_refused(right: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_bytes(HISTORY.replace(right, wrong, 1).encode())
    with pytest.raises(BadModel, match=r"history\.csv (is damaged|has . rows)"):
        read_history(tmp_path)


def test_gradients_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    text = "epoch,layer,norm\n1,a,inf\n1,b,22.5\n"
    for length in set(range(len(text))) - {17, 25}:  # where a row ends
        (tmp_path / "gradients.csv").write_text(text[:length])
        with pytest.raises(BadModel, match=r"gradients\.csv .*train again"):
            read_csv(tmp_path / "gradients.csv", GradientNorm)


def test_a_report_holds_the_history_against_the_checkpoint(run: Path, tmp_path: Path) -> None:
    history = copied(run, tmp_path, "resnet18") / "history.csv"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(BadModel, match=r"history\.csv has 1 rows, not one for each epoch from 1 to 2; delete it"):
        read_outcome(history.parent)


def test_a_failure_leaves_the_report_as_it_was(run: Path, tmp_path: Path, monkeypatch) -> None:
    copied(run, tmp_path, "resnet18")
    (tmp_path / "report.md").write_text("as it was")

    def full(figure: object, path: Path, **options: object) -> None:
        path.write_bytes(b"half a figure")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(figures.Figure, "savefig", full)
    with pytest.raises(OSError, match="No space"):
        report.write_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "resnet18"}
    assert (tmp_path / "report.md").read_text() == "as it was"


@pytest.mark.parametrize(
    "name",
    [
        "&amp;.jpg", "&#65;", "<b>", "a<br>b", "~~s~~", "~x~", "_em_", "__init__", "p/_em_.jpg", "nasi__goreng__ x",
        "*em*", "`c`", "[a](b)", "![a](b)", "$x$", "a\\b", "a|b", "- li", "+ li", "-", "1. x", "1) x", "# h", "> q",
        "===", "---", "- -", "new\nline", "nasi_goreng 0.jpg",
    ],
)  # fmt: skip
def test_names_are_shown_as_they_are_wherever_they_stand_in_a_document(name: str) -> None:
    reader, shown = MarkdownIt().enable(["table", "strikethrough"]), html.escape(name.replace("\n", " "), quote=False)
    assert reader.render(f"- {plain(name)}") == f"<ul>\n<li>{shown}</li>\n</ul>\n"
    assert reader.render(f"# {plain(name)}") == f"<h1>{shown}</h1>\n"
    assert reader.render(f"text\n\n{plain(name)}") == f"<p>text</p>\n<p>{shown}</p>\n"
    assert f"<td>{shown}</td>" in reader.render(plain_table(["c"], [[name]]))


@pytest.mark.parametrize("name", ["http://a.org", "www.a.org", "a@b.org", "@user", ":smile:"])
def test_names_are_no_addresses_nor_mentions(name: str) -> None:
    """As GitHub finds them in plain text."""
    assert not re.search(r"www\.|(?<!\\)[@:]\S", plain(name))
    assert MarkdownIt().render(plain(name)) == f"<p>{name}</p>\n"
