"""Tables and cells in Markdown."""

from collections.abc import Iterable, Sequence

NAMES = {"plain34": "Plain-34", "resnet34": "ResNet-34", "se_resnet34": "SE-ResNet-34"}  # those of the studies


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
