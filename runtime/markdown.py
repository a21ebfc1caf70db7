"""Tables in Markdown, for the terminal and for documents."""

from collections.abc import Iterable, Sequence


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], align: str = "lr", padded: bool = False) -> str:
    """A table of texts in Markdown.

    `align` has an "l" or "r" for each column, of which the last also holds for all further ones. `padded` fills cells
    so that the columns stand below each other on a terminal, too.
    """
    rows = [list(head), *map(list, lines)]
    widths = [max(3, *(len(row[i]) for row in rows)) if padded else 0 for i in range(len(head))]
    sides = align.ljust(len(head), align[-1])
    dashes = [
        "-" * ((width or 3) - (padded and side == "r")) + (":" if side == "r" else "")
        for side, width in zip(sides, widths, strict=False)
    ]
    text = [f"| {' | '.join(map(_beside, row, widths, sides))} |" for row in rows]
    return "\n".join([text[0], f"| {' | '.join(dashes)} |", *text[1:]])


def _beside(cell: str, width: int, side: str) -> str:
    return cell.ljust(width) if side == "l" else cell.rjust(width)
