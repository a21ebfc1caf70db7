"""Tables and cells in Markdown."""

from collections.abc import Iterable, Sequence

NAMES = {"plain34": "Plain-34", "resnet34": "ResNet-34", "se_resnet34": "SE-ResNet-34"}  # those of the studies


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_interval(value: float, interval: Iterable[float]) -> str:
    """A share with its interval, such as "0.831 (0.76–0.88)"."""
    low, high = interval
    return f"{value:.3f} ({low:.2f}–{high:.2f})"
