"""Tables in Markdown, for the terminal and for documents, and names in them."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

# Also GitHub's: strikethrough, mathematics, mentions, emoji, and addresses that need no brackets
_MARKUP = r"[\\`*~&!#<>\[\]|$@]|(?<![^\W_])_|_(?![^\W_])|:(?=\S)|(?<=www)\."
# What is not for a name: control signs, halves of letters, what is no letter yet, and separators of lines, by category;
# and what turns the direction in which a line is read (Bidi_Control of Unicode)
_STEERING = ("Cc", "Cs", "Cn", "Zl", "Zp")
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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


def plain_table(head: Sequence[str], lines: Iterable[Sequence[str]], align: str = "lr", padded: bool = False) -> str:
    """`markdown` of cells that are shown as they are."""
    return markdown([*map(plain, head)], ([*map(plain, line)] for line in lines), align, padded)


def plain(text: str) -> str:
    """A text as one line that Markdown shows as it is, wherever it stands: nothing in it is markup.

    An underscore between letters is none anyway; what begins a list or underlines a title is only that in the front.
    """
    line = re.sub(_MARKUP, r"\\\g<0>", printable(" ".join(text.split())))
    return re.sub(r"^(\d{1,9})(?=[.)](\s|$))|^(?=[-+](\s|$)|[-=][-=\s]*$)", r"\1\\", line)


def is_printable(text: str) -> bool:
    """Whether text stays on one line and steers no terminal: the one rule for names, of classes, models and runs.

    Joiners, as Persian has them, and spaces that do not break are parts of words; str.isprintable knows none.
    """
    return not any(unicodedata.category(letter) in _STEERING or letter in _TURNING for letter in text)


def printable(text: str) -> str:
    """Text for one line of a terminal: what would break the line, colour it or is no text is escaped."""
    return "".join(letter if is_printable(letter) else repr(letter)[1:-1] for letter in text)


def _beside(cell: str, width: int, side: str) -> str:
    return cell.ljust(width) if side == "l" else cell.rjust(width)
