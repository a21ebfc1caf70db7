"""Benchmark: one race at a time, as a table and as accuracy against latency, and what was not chosen here."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo.page.benchmarks import COMMITTED, Race, races
from demo.page.markup import rejected
from demo.page.texts import label, language_of, say
from demo.service.queue import Serving
from runtime.benchmark.table import conditions, frontier

WIDTHS: list[str | int] = [260, 90, 130, 100, 80, 100, 190]  # pixels of the columns
MARGIN = 0.02  # of accuracy, above and below the points


def build(serving: Serving, opened: Callable[..., Any], committed: Path = COMMITTED) -> None:
    """Read the rows when the tab is opened: those beside the deployment, and those that the checkout has."""
    choice = gr.Dropdown(label=label("race"), info=label("race_info"), filterable=False)
    shown = [
        gr.ScatterPlot(x="ms", y="accuracy", color="side", tooltip=["candidate", "ms", "accuracy"], height=320),
        gr.Dataframe(interactive=False, wrap=True, buttons=[], column_widths=WIDTHS),
        gr.HTML(),
    ]
    others = gr.HTML()

    def there() -> dict[str, Race]:
        return {" ".join(race.key): race for race in races(serving.path.with_name("bench.jsonl"), committed)}

    def choose(key: str, request: gr.Request) -> list[Any]:
        race = there().get(key)
        return _shown(race, language_of(request)) if race else [gr.skip()] * len(shown)

    def fill(key: str | None, request: gr.Request) -> list[Any]:
        found, engine, language = there(), serving.engine, language_of(request)
        kept = key if key in found else next(iter(found), None)
        menu = gr.Dropdown([(name_of(race), key) for key, race in found.items()], value=kept, visible=bool(found))
        why = rejected(engine.classifier, engine.deployment, language)
        heading = f"<h2>{say(language, 'not_served')}</h2>"
        return [menu, *_shown(found[kept] if kept else None, language), heading + why if why else ""]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    opened(fill, choice, [choice, *shown, others], **quiet)
    choice.input(choose, choice, shown, **quiet)


def _shown(race: Race | None, language: str) -> list[Any]:
    """The plot, the table and what stands below it."""
    if race is None:
        nothing = f'<p class="quiet">{say(language, "no_races")}</p>'
        return [gr.ScatterPlot(visible=False), gr.Dataframe(visible=False), nothing]
    about = f'<p class="quiet" lang="en">{escape(conditions(list(race.rows)))}</p>'
    return [plot_of(race, language), gr.Dataframe(table_of(race, language), visible=True), about]


def name_of(race: Race) -> str:
    """A race in one line; the sentence below its table tells the rest."""
    file, experiment, day, _, machine, scenario, _ = race.key
    return " · ".join([file, *[experiment] * (experiment not in file), day, machine, scenario])


def table_of(race: Race, language: str) -> pd.DataFrame:
    """The candidates of a race, fastest first; numbers are numbers, so that sorting by a click is by value."""
    best = [row["candidate"] for row in frontier(list(race.rows))]
    rows = [
        (
            row["candidate"],
            row["accuracy"],
            "{:.3f}–{:.3f}".format(*row["accuracy_interval"]),
            round(row["milliseconds"], 2),
            row["verdict"],
            "✓" if row["candidate"] in best else "",
            f"{row['machine_cpu']}, {row['machine_gpu'] or say(language, 'no_gpu')}",
        )
        for row in sorted(race.rows, key=lambda row: row["milliseconds"])
    ]
    heads = ("candidate", "accuracy_column", "interval", "median", "verdict", "frontier", "machine")
    return pd.DataFrame(rows, columns=[say(language, head) for head in heads])


def plot_of(race: Race, language: str) -> gr.ScatterPlot:
    """Accuracy against latency; in another colour the candidates that no other beats in both."""
    best = [row["candidate"] for row in frontier(list(race.rows))]
    sides = say(language, "on_front"), say(language, "behind")
    points = pd.DataFrame(
        {
            "candidate": [row["candidate"] for row in race.rows],
            "ms": [row["milliseconds"] for row in race.rows],
            "accuracy": [row["accuracy"] for row in race.rows],
            "side": [sides[row["candidate"] not in best] for row in race.rows],
        }
    )
    return gr.ScatterPlot(
        points,
        x_title=say(language, "median"),
        y_title=say(language, "accuracy_column"),
        color_title=say(language, "frontier"),
        color_map=dict(zip(sides, ("#059669", "#a8a29e"), strict=True)),
        x_lim=[0, points["ms"].max() * 1.05],
        y_lim=[max(0, points["accuracy"].min() - MARGIN), min(1, points["accuracy"].max() + MARGIN)],
        title=say(language, "pareto"),
        visible=True,
    )
