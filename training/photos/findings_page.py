"""The findings about a photo set for people: a few lines, a page, and a contact sheet of the duplicates."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from runtime.errors import BadPhoto
from runtime.markdown import plain, plain_table, printable
from runtime.preprocess import decode
from training.photos.findings import KINDS, Findings, PhotoFacts

IMBALANCE = 3  # photos of the largest class over those of the smallest, from which it is worth a line
ROWS, COLUMNS = 40, 8  # of the contact sheet
CELL, LINE, MARGIN = 160, 16, 8  # side of a picture, height of a line of text, space around; pixels
RED, BLACK, GREY = "#c00000", "black", "#888888"


def faults(findings: Findings) -> list[str]:
    """What `--strict` refuses, each with its number."""
    counts = {
        "held-out photos that leak": len(findings.leaks),
        "pictures with two labels": len(findings.two_labels),
        "unreadable files": len(findings.unreadable),
        "faults in the listing": len(findings.problems),
        "sides without a class": len(findings.one_sided),
    }
    return [f"{what}: {number}" for what, number in counts.items() if number]


def describe(findings: Findings) -> str:
    """The findings as a few lines."""
    per_class = ", ".join(f"{name} {c['train']}+{c['val']}" for name, c in findings.per_class.items())
    used = findings.used
    lines = [f"{used['train']} to train on + {used['val']} to validate ({per_class})"]
    lines += [*findings.one_sided, *findings.seen, *findings.notes]
    if used["test"]:
        lines.append(f"{findings.measuring} of {used['test']} photos of a test split measure the accuracy")
    if _imbalance(findings) >= IMBALANCE:
        lines.append(f"the largest class has {_imbalance(findings):.1f} times the photos of the smallest")
    for items, what in (
        (findings.unreadable, "unreadable files, left out"),
        (findings.problems, "faults in the listing"),
        (_suspicious(findings), "suspicious files"),
    ):
        if items:
            lines.append(f"{what}: {len(items)} ({'; '.join(_first(items, 5))})")
    if findings.groups:
        lines.append(_duplicates(findings))
    if findings.two_labels:
        lines.append(f"pictures with two labels: {len(findings.two_labels)}")
    if findings.leaks:
        lines.append(_leak(findings))
    if findings.perhaps:
        lines.append(_perhaps(findings))
    return "\n".join(f"data: {printable(line)}" for line in lines)


def page(findings: Findings) -> str:
    """The findings as a Markdown page, beside which `duplicates.png` lies when there are duplicates."""
    sides = [side for side, number in findings.used.items() if number]
    rows = [[name, *(str(counts[side]) for side in sides)] for name, counts in findings.per_class.items()]
    groups = findings.groups
    parts = [
        f"# {plain(findings.source)}",
        f"{findings.listed} photos are listed, {sum(findings.used.values())} can be read.",
        *map(plain, [*findings.notes, *findings.one_sided]),
        plain_table(["class", *sides], rows),
        f"The largest class has {_imbalance(findings):.1f} times the photos of the smallest.",
        *(_section("Seen before", findings.seen) if findings.seen else []),
        *_section("Leaks across the split", [f"{n}: {kind}" for n, kind in findings.leaks.items()], _leak(findings)),
        *_section("Perhaps the same plate", findings.perhaps, _perhaps(findings)),
        *_section("Same picture under two labels", [" = ".join(names) for names in findings.two_labels]),
        *_section("Unreadable files", findings.unreadable),
        *_section("Suspicious files", _suspicious(findings)),
        *_section("Faults in the listing", findings.problems),
        f"## Duplicates: {f'{len(groups)} groups' if groups else 'none'}",
    ]
    if not findings.look_alikes:
        parts.append("Only identical files were looked for.")
    if groups:
        lines = [f"{group.kind}: {' / '.join(map(_picture, group.pictures))}" for group in groups]
        parts += [f"{_duplicates(findings)}.", f"![the first {ROWS} groups](duplicates.png)", _list(lines)]
    return "\n\n".join(parts) + "\n"


def _section(title: str, items: Sequence[str], sentence: str = "") -> list[str]:
    if not items:
        return [f"## {title}: none"]
    return [f"## {title}: {len(items)}", *filter(None, [sentence and f"{sentence}."]), _list(items)]


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {plain(item)}" for item in _first(items, 50))


def _suspicious(findings: Findings) -> list[str]:
    return [f"{name}: {', '.join(what)}" for name, what in findings.suspicious.items()]


def _imbalance(findings: Findings) -> float:
    sizes = [sum(counts.values()) for counts in findings.per_class.values()]
    return max(sizes) / min(sizes)


def _leak(findings: Findings) -> str:
    held_out = findings.used["val"] + findings.used["test"]
    return (
        f"The given split LEAKS: {len(findings.leaks)} of {held_out} held-out photos show what another side shows "
        f"too ({_kinds(findings.leaks.values())}), so the accuracy is too high"
    )


def _perhaps(findings: Findings) -> str:
    return f"{len(findings.perhaps)} held-out photos perhaps show a plate of another side too; see the contact sheet"


def _duplicates(findings: Findings) -> str:
    groups = findings.groups
    photos = sum(len(picture) for group in groups for picture in group.pictures)
    return f"groups of duplicates: {len(groups)}, of {photos} photos ({_kinds(group.kind for group in groups)})"


def _kinds(kinds: Iterable[str]) -> str:
    counts = Counter(kinds)
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])


def _picture(photos: list[PhotoFacts]) -> str:
    return " = ".join(f"{photo.photo} ({photo.label}, {photo.side})" for photo in photos)


def _first(items: Sequence[str], most: int) -> list[str]:
    return [*items[:most], *([f"… and {len(items) - most} more, all in data.json"] if len(items) > most else [])]


def contact_sheet(findings: Findings) -> Image.Image:
    """The first groups of duplicates, a row each: what leaks or has two labels comes first, and is red.

    Under each photo stand its label, its side of the split and its name. Between different pictures there is a line.
    """
    groups = findings.groups[:ROWS]
    height = CELL + 4 * LINE + MARGIN
    wide = min(COLUMNS, max(sum(len(picture) for picture in group.pictures) for group in groups))
    sheet = Image.new("RGB", (MARGIN + wide * (CELL + MARGIN), height * len(groups) + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    source = Path(findings.source)
    root = source if source.is_dir() else source.parent
    for row, group in enumerate(groups):
        photos = [(photo, n) for n, picture in enumerate(group.pictures) for photo in picture]
        top = MARGIN + row * height
        title = f"{row + 1}  {group.kind}" + (f", {group.leaks} LEAK" if group.leaks else "")
        title += ", TWO LABELS" if group.two_labels else ""
        title += f", {len(photos) - COLUMNS} more photos" if len(photos) > COLUMNS else ""
        draw.text((MARGIN, top), title, RED if group.leaks or group.two_labels else BLACK, font)
        for column, (photo, picture) in enumerate(photos[:COLUMNS]):
            left, below = MARGIN + column * (CELL + MARGIN), top + LINE
            if column and picture != photos[column - 1][1]:
                draw.line((left - MARGIN / 2, below, left - MARGIN / 2, below + CELL + 2 * LINE), BLACK, 2)
            sheet.paste(thumbnail(root / photo.photo), (left, below))
            side = RED if photo.photo in findings.leaks else BLACK
            draw.text((left, below + CELL), photo.label[:24], RED if group.two_labels else BLACK, font)
            draw.text((left, below + CELL + LINE), photo.side, side, font)
            draw.text((left + 36, below + CELL + LINE), Path(photo.photo).name[-17:], GREY, font)
    return sheet


def thumbnail(path: Path) -> Image.Image:
    """A photo in a white square of CELL pixels; a grey one where it cannot be read."""
    try:
        return ImageOps.pad(decode(path, CELL), (CELL, CELL), color="white")
    except BadPhoto:  # its name is no text, or it has gone
        return Image.new("RGB", (CELL, CELL), GREY)
