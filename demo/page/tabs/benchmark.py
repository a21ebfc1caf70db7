"""Benchmark: one run at a time, as a table and as accuracy against latency, and what was not chosen here."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo.page.markup import rejected
from demo.page.texts import label, language_of, say
from demo.page.work import QUIET
from demo.service.queue import Serving
from runtime.benchmark.rows import Row, read_rows
from runtime.benchmark.table import conditions, frontier
from runtime.errors import SajiError
from runtime.files import DAMAGE

COMMITTED = Path(__file__).resolve().parents[3] / "results"  # only a checkout has it
WIDTHS: list[str | int] = [260, 90, 130, 100, 80, 100, 190]  # pixels of the columns
MARGIN = 0.02  # of accuracy, above and below the points
WHOLE = 1.003  # the top of the plot: a point at 1 is a circle, too


@dataclass(frozen=True)
class Run:
    """One run of the benchmark on one machine: what rows have in common that may be held against each other."""

    file: str
    experiment: str
    day: str
    commit: str
    machine: str
    scenario: str
    photos: str

    @classmethod
    def of(cls, row: Row, file: Path) -> "Run":
        """The run that a row of `file` belongs to."""
        return cls(
            file.name,
            row["experiment"],
            row["time"][:10],
            str(row["commit"]),
            f"{row['machine_cpu']}, {row['machine_cores']} cores, {row['machine_gpu'] or 'no GPU'}",
            f"{row['scenario'].partition(',')[0]}, batch {row['batch']}",
            f"{row['photos']} {'drawings' if row['drawn'] else 'photos'} {row['data_fingerprint']}",
        )

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return " ".join(astuple(self))

    @property
    def name(self) -> str:
        """One line for the menu; the sentence below the table tells the rest."""
        experiment = "" if self.experiment in self.file else self.experiment
        return " · ".join(part for part in (self.file, experiment, self.day, self.machine, self.scenario) if part)


def runs(local: Path, committed: Path = COMMITTED) -> dict[Run, list[Row]]:
    """The rows of each run, the last of each candidate; the newest first within a file.

    First comes the local file, if there is one, then the committed ones. What is damaged is left out.
    """
    files = [local] if local.is_file() else []
    return {run: rows for file in [*files, *sorted(committed.glob("*.jsonl"))] for run, rows in _runs_in(file)}


def _runs_in(file: Path) -> list[tuple[Run, list[Row]]]:
    by_run: dict[Run, dict[str, Row]] = {}
    try:
        for row in read_rows(file):
            if "samples" in row and row.get("accuracy") is not None:  # a candidate that was timed and checked
                by_run.setdefault(Run.of(row, file), {})[row["candidate"]] = row
    except (SajiError, *DAMAGE):
        return []
    pairs = [(run, list(rows.values())) for run, rows in by_run.items()]
    return sorted(pairs, key=lambda pair: pair[1][-1]["time"], reverse=True)


def build(serving: Serving, opened: Callable[..., Any], committed: Path = COMMITTED) -> None:
    """Read the rows when the tab is opened: those beside the deployment, and those that the checkout has."""
    choice = gr.Dropdown(label=label("run"), info=label("run_info"), filterable=False)
    outputs = [
        gr.ScatterPlot(x="ms", y="accuracy", color="side", tooltip=["candidate", "ms", "accuracy"], height=320),
        gr.Dataframe(interactive=False, wrap=True, buttons=[], column_widths=WIDTHS),
        gr.HTML(),
    ]
    others = gr.HTML()

    def now() -> dict[str, tuple[Run, list[Row]]]:
        return {run.key: (run, rows) for run, rows in runs(serving.path.with_name("bench.jsonl"), committed).items()}

    def choose(key: str, request: gr.Request) -> list[Any]:
        _, rows = now().get(key, (None, []))
        return _components(rows, language_of(request)) if rows else [gr.skip()] * len(outputs)

    def fill(key: str | None, request: gr.Request) -> list[Any]:
        choices, engine, language = now(), serving.engine, language_of(request)
        chosen = key if key in choices else next(iter(choices), None)
        menu = gr.Dropdown([(run.name, key) for key, (run, _) in choices.items()], value=chosen, visible=bool(choices))
        why = rejected(engine.classifier, engine.deployment, language)
        heading = f"<h2>{say(language, 'not_served')}</h2>"
        return [menu, *_components(choices[chosen][1] if chosen else [], language), heading + why if why else ""]

    # Gradio would hold the key against the runs of a session that it may have forgotten
    opened(fill, choice, [choice, *outputs, others], preprocess=False, **QUIET)
    choice.input(choose, choice, outputs, preprocess=False, **QUIET)


def _components(rows: list[Row], language: str) -> list[Any]:
    """The plot, the table and what stands below it."""
    if not rows:
        nothing = f'<p class="quiet">{say(language, "no_runs")}</p>'
        return [gr.ScatterPlot(visible=False), gr.Dataframe(visible=False), nothing]
    points = _points(rows, say(language, "no_gpu"))
    about = f'<p class="quiet" lang="en">{escape(conditions(rows))}</p>'
    return [_plot(points, language), gr.Dataframe(_table(points, language), visible=True), about]


@dataclass(frozen=True)
class _Point:
    """A candidate of a run; `on_front` where no other beats it in both accuracy and latency."""

    candidate: str
    accuracy: float
    interval: str
    milliseconds: float
    verdict: str
    on_front: bool
    machine: str


def _points(rows: list[Row], no_gpu: str) -> list[_Point]:
    """The candidates of a run, the fastest first."""
    front = [row["candidate"] for row in frontier(rows)]
    return [
        _Point(
            row["candidate"],
            row["accuracy"],
            "{:.3f}–{:.3f}".format(*row["accuracy_interval"]),
            row["milliseconds"],
            row["verdict"],
            row["candidate"] in front,
            f"{row['machine_cpu']}, {row['machine_gpu'] or no_gpu}",
        )
        for row in sorted(rows, key=lambda row: row["milliseconds"])
    ]


def _table(points: Sequence[_Point], language: str) -> pd.DataFrame:
    """Numbers stay numbers, so that sorting by a click is by value."""
    frame = pd.DataFrame(points)
    frame["milliseconds"] = frame["milliseconds"].round(2)
    frame["on_front"] = ["✓" if point.on_front else "" for point in points]
    heads = ("candidate", "accuracy_column", "interval", "median", "verdict", "frontier", "machine")
    return frame.set_axis([say(language, head) for head in heads], axis=1)


def _plot(points: Sequence[_Point], language: str) -> gr.ScatterPlot:
    """Accuracy against latency; in another colour the candidates that no other beats in both."""
    sides = {True: say(language, "on_front"), False: say(language, "behind")}
    frame = pd.DataFrame(points).rename(columns={"milliseconds": "ms"})
    frame["side"] = frame["on_front"].map(sides)
    return gr.ScatterPlot(
        frame[["candidate", "ms", "accuracy", "side"]],
        x_title=say(language, "median"),
        y_title=say(language, "accuracy_column"),
        color_title=say(language, "frontier"),
        color_map=dict(zip(sides.values(), ("#059669", "#a8a29e"), strict=True)),
        x_lim=[0, frame["ms"].max() * 1.05],
        y_lim=[max(0, frame["accuracy"].min() - MARGIN), min(WHOLE, frame["accuracy"].max() + MARGIN)],
        title=say(language, "pareto"),
        visible=True,
    )
