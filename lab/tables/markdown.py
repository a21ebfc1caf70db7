"""Tables in Markdown from rows, and what their conditions are made of."""

from collections.abc import Callable, Iterable, Sequence

from runtime.benchmark.rows import Row

NAMES = {"plain34": "Plain-34", "resnet34": "ResNet-34", "se_resnet34": "SE-ResNet-34"}  # those of the studies
Columns = dict[str, str | Callable[[Row], str]]  # by title: a text for `str.format`, or a function of the row


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def by_columns(rows: Iterable[Row], columns: Columns) -> str:
    """A Markdown table with a line for each row."""
    cells = columns.values()
    lines = [[cell.format(**row) if isinstance(cell, str) else cell(row) for cell in cells] for row in rows]
    return markdown([*columns], lines)


def machine(row: Row) -> str:
    """The processor that a row was measured on."""
    return f"{row['machine_cores']} cores of {row['machine_cpu']} ({', '.join(row['machine_cpu_features'])})"


def versions(row: Row, *names: str) -> str:
    """The versions of some libraries."""
    return ", ".join(f"{name} {row['versions'][name]}" for name in names)
