"""The figures of a report, drawn with matplotlib; none needs a display."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from runtime.evaluation import confusion
from runtime.files import replacing
from training.outcome.summary import Outcome
from training.run.records import Share

# Okabe and Ito's palette, which colour-blind people tell apart (https://jfly.uni-koeln.de/color/)
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"
PALETTE = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "Microsoft YaHei", "Unifont")
COLUMNS, MOST_ROWS = 8, 2  # pictures in a row of a grid, rows for each network
PITCH = 1.45  # height of a row over the width of a column: a square picture and three lines of text
MOST_NAMES = 40  # classes from which a confusion matrix has no room for names and numbers

Outcomes = Sequence[Outcome]
Draw = Callable[[Outcomes], Figure]


def write(draw: Draw, outcomes: Outcomes, path: Path) -> None:
    """Draw one of the figures below and write it as PNG."""
    style: dict[Any, Any] = {
        "font.family": [font for font in FONTS if font in get_font_names()],
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
    with matplotlib.rc_context(style), replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a class name in a script that no font here has shows as boxes
        draw(outcomes).savefig(temporary, dpi=120)


def curves(outcomes: Outcomes) -> Figure:
    """Accuracy and loss per epoch of networks that have a history, side by side on the same axes."""
    figure = Figure(figsize=(1 + 3.2 * len(outcomes), 5))
    axes = figure.subplots(2, len(outcomes), sharex="col", sharey="row", squeeze=False)
    for outcome, (above, below) in zip(outcomes, axes.T, strict=True):
        best, epochs = outcome.best_epoch, outcome.curve("epoch")
        for ax, what in ((above, "accuracy"), (below, "loss")):
            for side, column, colour in (("training", f"train_{what}", BLUE), ("validation", f"val_{what}", VERMILION)):
                values = outcome.curve(column)
                known = np.isfinite(values)
                if known.any():
                    ax.plot(epochs[known], values[known], ".-", color=colour, label=side)
            if best:
                ax.axvline(best.epoch, color=GREY, linestyle=":", label=f"best epoch, {best.epoch}")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(alpha=0.25)
        above.set_title(outcome.network)
        below.set_xlabel("epoch")
        below.set_yscale("log")  # one epoch may be a hundred times worse than the others
        below.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        below.yaxis.set_major_formatter("{x:g}")
        below.yaxis.set_minor_formatter(NullFormatter())
        below.legend(fontsize=8)
    axes[0, 0].set(ylabel="accuracy", ylim=(0, 1.02))
    axes[1, 0].set(ylabel="loss")
    return figure


def confusions(outcomes: Outcomes) -> Figure:
    """A confusion matrix per network: rows are the true classes, shade is the share of a row, numbers are photos."""
    most = max(len(outcome.spec.classes) for outcome in outcomes)
    side = 1.6 + min(0.5 * most, 8)
    figure = Figure(figsize=(side * len(outcomes), side))
    for ax, outcome in zip(figure.subplots(1, len(outcomes), squeeze=False)[0], outcomes, strict=True):
        counts = confusion(outcome.logits, outcome.validation.labels)
        shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        ax.set(title=outcome.network, xlabel="predicted", ylabel="true")
        if len(counts) > MOST_NAMES:
            continue
        names = [shortened(name, 16) for name in outcome.spec.classes]
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(names)), names)
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.6 else "black"
            ax.text(column, row, counts[row, column], ha="center", va="center", color=colour)
    return figure


def reliability(outcomes: Outcomes) -> Figure:
    """Share of right answers by confidence, of networks with photos that chose nothing; dots as large as they are many.

    On the diagonal a network is as often right as it says; below it, it is too sure.
    """
    figure = Figure(figsize=(1 + 2.8 * len(outcomes), 3.2))
    for outcome, ax in zip(outcomes, figure.subplots(1, len(outcomes), sharey=True, squeeze=False)[0], strict=True):
        assert outcome.held_out
        bins, photos = outcome.held_out.reliability, outcome.held_out.photos
        sizes = [20 + 600 * each.photos / photos for each in bins]
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        ax.scatter([each.confidence for each in bins], [each.accuracy for each in bins], sizes, color=BLUE, alpha=0.7)
        ax.set(xlim=(0, 1.05), ylim=(-0.05, 1.05), xlabel="confidence", title=shortened(outcome.network, 24))
    figure.axes[0].set_ylabel("share that is right")
    return figure


def mistakes(outcomes: Outcomes) -> Figure:
    """Each network's mistakes, the most confident first."""

    def worst(outcome: Outcome) -> np.ndarray:
        order = np.argsort(-outcome.confidence, kind="stable")
        return order[~outcome.right[order]][: COLUMNS * MOST_ROWS]

    return _grids(outcomes, worst, lambda outcome: f"{outcome.network}: {(~outcome.right).sum()} mistakes")


def predictions(outcomes: Outcomes) -> Figure:
    """Each network's answers to the same photos, evenly taken from all classes and not chosen by the answer."""

    def spread(outcome: Outcome) -> np.ndarray:
        order = np.argsort(outcome.validation.labels, kind="stable")
        return order[np.linspace(0, len(order) - 1, min(len(order), COLUMNS * MOST_ROWS)).round().astype(int)]

    return _grids(outcomes, spread, lambda o: f"{o.network}: {o.right[spread(o)].sum()} of {len(spread(o))} right")


def gradients(outcomes: Outcomes) -> Figure:
    """Gradient norm of each layer over the epochs, of networks that have gradients.csv, on one colour scale."""
    measured = [(outcome.network, outcome.gradients) for outcome in outcomes if outcome.gradients]
    figure = Figure(figsize=(1.5 + 3.6 * len(measured), 5))
    axes = figure.subplots(1, len(measured), squeeze=False)[0]
    positive = np.concatenate([each.norms[each.norms > 0] for _, each in measured])
    for ax, (network, each) in zip(axes, measured, strict=True):
        layers, (first, last) = len(each.layers), each.epochs[[0, -1]]
        extent = (first - 0.5, last + 0.5, layers - 0.5, -0.5)
        scale = LogNorm(positive.min(), positive.max())
        image = ax.imshow(each.norms, norm=scale, aspect="auto", interpolation="nearest", extent=extent)
        shown = np.unique(np.linspace(0, layers - 1, 10).round().astype(int))
        names = [each.layers[i].removeprefix("network.").removesuffix(".weight") for i in shown]
        ax.set_yticks(shown, [shortened(name, 20) for name in names], fontsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(title=network, xlabel="epoch")
    axes[0].set_ylabel("layer, the input's at the top")
    figure.colorbar(image, ax=axes, label="L2 norm of the gradient of the layer's weights")
    return figure


def comparison(outcomes: Outcomes) -> Figure:
    """Accuracy with its interval, and validation accuracy per epoch, of the networks of several runs."""
    figure = Figure(figsize=(11, 1.6 + max(2.4, 0.32 * len(outcomes))))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    for row, outcome in enumerate(outcomes):
        colour, line = PALETTE[row % len(PALETTE)], ("-", "--", ":", "-.")[row // len(PALETTE) % 4]
        held_out = outcome.held_out
        accuracy = held_out.share if held_out else Share.of(outcome.right, outcome.validation.scenes)
        left.plot(accuracy.interval, (row, row), line, color=colour, linewidth=2)
        left.plot(accuracy.share, row, "o", color=colour)
        if outcome.history:
            right.plot(outcome.curve("epoch"), outcome.curve("val_accuracy"), line, color=colour)
    left.set_yticks(range(len(outcomes)), [shortened(outcome.name, 40) for outcome in outcomes])
    left.set(xlabel="accuracy on photos that chose nothing, if known; 95 % interval", ylim=(len(outcomes) - 0.5, -0.5))
    right.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1.02))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in (left, right):
        ax.grid(alpha=0.25)
    return figure


def shortened(name: str, most: int) -> str:
    """A name of at most `most` characters in one line; what is left out shows as an ellipsis; for matplotlib."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    name = name if len(name) <= most else name[: most - 1] + "…"
    return name.replace("$", r"\$")  # or matplotlib sets what is between two of them as a formula


def _grids(outcomes: Outcomes, choose: Callable[[Outcome], np.ndarray], title: Callable[[Outcome], str]) -> Figure:
    """A block of pictures per network: `choose` names the photos, `title` the block."""
    chosen = [choose(outcome) for outcome in outcomes]
    rows = [max(1, -(-len(photos) // COLUMNS)) for photos in chosen]
    figure = Figure(figsize=(1.25 * COLUMNS, sum(1.25 * PITCH * n + 0.3 for n in rows)))
    axes = figure.subplots(len(outcomes), 1, squeeze=False, height_ratios=rows)[:, 0]
    for ax, outcome, photos, n in zip(axes, outcomes, chosen, rows, strict=True):
        for place, photo in enumerate(photos):
            _picture(ax, outcome, photo, place % COLUMNS, PITCH * (place // COLUMNS))
        ax.set(xlim=(0, COLUMNS), ylim=(PITCH * n, 0), aspect="equal")
        ax.set_title(title(outcome), loc="left")
        ax.axis("off")
    return figure


def _picture(ax: Axes, outcome: Outcome, photo: int, x: float, y: float) -> None:
    """One photo in a square of side 0.94, framed by right or wrong, above its true and its predicted class."""
    side, classes, right = 0.94, outcome.spec.classes, outcome.right[photo]
    colour = BLUE if right else VERMILION
    ax.imshow(outcome.validation.images[photo], extent=(x, x + side, y + side, y))
    ax.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=colour, linewidth=2.5))
    answer = "" if right else f" {shortened(classes[outcome.predicted[photo]], 12)}"
    lines = (
        (shortened(classes[outcome.validation.labels[photo]], 18), "black"),
        (f"{'✓' if right else '✗'} {outcome.confidence[photo]:.2f}{answer}", colour),
        (shortened(Path(outcome.validation.names[photo]).name[-25:], 25), GREY),  # names differ at their end
    )
    for n, (text, shade) in enumerate(lines):
        ax.text(x, y + side + 0.05 + 0.14 * n, text, va="top", fontsize=8 if n < 2 else 6, color=shade)
