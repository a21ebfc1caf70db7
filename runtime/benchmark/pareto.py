"""The picture of a race: accuracy against latency, with the candidates that no other beats in both."""

from pathlib import Path

from runtime.benchmark.rows import Row
from runtime.errors import missing_extra
from runtime.files import replacing


def frontier(rows: list[Row]) -> list[Row]:
    """The rows that no other is both as fast and as accurate as, fastest first."""
    best, kept = -1.0, []
    for row in sorted(rows, key=lambda row: (row["milliseconds"], -row["accuracy"])):
        if row["accuracy"] > best:
            best = row["accuracy"]
            kept.append(row)
    return kept


def draw(rows: list[Row], path: Path) -> None:
    """Draw the single-stream rows of the smallest batch. Raises Unavailable without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise missing_extra("matplotlib", "train") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    batch = min(row["batch"] for row in rows)
    rows = [row for row in rows if row["scenario"] == "single-stream" and row["batch"] == batch]
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        for number, backend in enumerate(sorted({row["backend"] for row in rows})):
            group = [row for row in rows if row["backend"] == backend]
            low, high = zip(*(row["accuracy_interval"] for row in group), strict=True)
            accuracy, latency = [row["accuracy"] for row in group], [row["milliseconds"] for row in group]
            spread = [
                [a - b for a, b in zip(accuracy, low, strict=True)],
                [b - a for a, b in zip(accuracy, high, strict=True)],
            ]
            axes.errorbar(latency, accuracy, spread, fmt="os^Dv*"[number % 6], elinewidth=0.4, label=backend, ms=5)
        best = frontier(rows)
        axes.step([r["milliseconds"] for r in best], [r["accuracy"] for r in best], where="post", color="0.6", lw=1)
        for row in best:
            axes.annotate(row["candidate"], (row["milliseconds"], row["accuracy"]), (4, 4), textcoords="offset points")
        axes.set(xscale="log", xlabel=f"milliseconds, batch {batch} (log scale)", ylabel="accuracy (95 % interval)")
        axes.legend(frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary)
        pyplot.close(figure)
