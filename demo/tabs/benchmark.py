"""Benchmark: one race at a time, as a table and as accuracy against latency, and what was not chosen here."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo.markup import rejected
from demo.races import COMMITTED, Race, races
from demo.serving import Serving
from demo.texts import label, language_of, say
from runtime.benchmark.pareto import frontier
from runtime.benchmark.table import conditions


def build(serving: Serving, opened: Callable[..., Any], committed: Path = COMMITTED) -> None:
    """Read the rows when the tab is opened: those beside the deployment, and those that the checkout has."""
    choice = gr.Dropdown(label=label("race"), info=label("race_info"), filterable=False)
    shown = [
        gr.ScatterPlot(x="ms", y="accuracy", color="on_frontier", tooltip=["candidate", "ms", "accuracy"], height=320),
        gr.Dataframe(interactive=False, wrap=True, buttons=[]),
        gr.HTML(),
    ]
    others = gr.HTML()

    def race_of(key: str | None) -> Race | None:
        there = races(serving.path.with_name("bench.jsonl"), committed)
        return next((race for race in there if name_of(race) == key), there[0] if there else None)

    def choose(key: str | None, request: gr.Request) -> list[Any]:
        race, language = race_of(key), language_of(request)
        if race is None:
            nothing = gr.HTML(f'<p class="quiet">{say(language, "no_races")}</p>')
            return [gr.ScatterPlot(visible=False), gr.Dataframe(visible=False), nothing]
        about = f'<p class="quiet" lang="en">{escape(conditions(list(race.rows)))}</p>'
        return [plot_of(race, language), gr.Dataframe(table_of(race, language), visible=True), about]

    def fill(key: str | None, request: gr.Request) -> list[Any]:
        names = [name_of(race) for race in races(serving.path.with_name("bench.jsonl"), committed)]
        kept = key if key in names else next(iter(names), None)
        engine, language = serving.engine, language_of(request)
        why = rejected(engine.classifier, engine.deployment, language)
        heading = f"<h2>{say(language, 'not_served')}</h2>"
        drop_down = gr.Dropdown(choices=list(names), value=kept, visible=bool(names))
        return [drop_down, *choose(kept, request), heading + why if why else ""]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    opened(fill, choice, [choice, *shown, others], **quiet)
    choice.input(choose, choice, shown, **quiet)


def name_of(race: Race) -> str:
    """A race in one line; what tells it from others of the same day is in the sentence below its table."""
    file, experiment, day, commit, machine, scenario, _ = race.key
    return " · ".join([file, *[experiment] * (experiment not in file), day, commit[:7], scenario, machine])


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
    sides = say(language, "unbeaten"), say(language, "beaten")
    points = pd.DataFrame(
        {
            "candidate": [row["candidate"] for row in race.rows],
            "ms": [row["milliseconds"] for row in race.rows],
            "accuracy": [row["accuracy"] for row in race.rows],
            "on_frontier": [sides[row["candidate"] not in best] for row in race.rows],
        }
    )
    spare = 0.02
    return gr.ScatterPlot(
        points,
        x_title=say(language, "median"),
        y_title=say(language, "accuracy_column"),
        color_title=say(language, "frontier"),
        color_map=dict(zip(sides, ("#059669", "#a8a29e"), strict=True)),
        x_lim=[0, points["ms"].max() * 1.05],
        y_lim=[max(0, points["accuracy"].min() - spare), min(1, points["accuracy"].max() + spare)],
        label=say(language, "pareto"),
        visible=True,
    )
