"""What a person sees: sentences, headings, tables and progress, and nothing of what libraries say, which goes to a log.

On a terminal rich draws, where it is installed; it is imported for nothing else. A pipe gets plain text: no colours, no
bars, and of progress a line now and then.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from runtime.markdown import markdown, printable

WIDEST = 100  # columns: lines longer than this are hard to read, and tables never need more
NOW_AND_THEN = 30  # seconds between two lines of progress in a pipe
_BAR = 12  # columns
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}

Advance = Callable[..., None]  # advance(steps=1, now="what is done now")

_ours: dict[int, TextIO] = {}  # stdout (1) and stderr (2) as they were, while they are the libraries'
_live: Any = None  # rich's Progress, while it draws


def out() -> TextIO:
    """Where results go: stdout."""
    return _ours.get(1) or sys.stdout


def err() -> TextIO:
    """Where progress and errors go: stderr."""
    return _ours.get(2) or sys.stderr


def open_missing_streams() -> None:
    """Give this process and those that it starts the null device for each standard stream that was closed before.

    Python has None for such a stream, and the next file that is opened would get its number, and what is printed in C.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))


def width() -> int:
    """How many columns there are to fill: the terminal's or those of COLUMNS, and never more than WIDEST."""
    if (typed := os.environ.get("COLUMNS", "")).isdecimal() and int(typed):
        return min(int(typed), WIDEST)
    for stream in (out(), err()):
        with contextlib.suppress(OSError, ValueError):  # a pipe, or no file at all
            return min(os.get_terminal_size(stream.fileno()).columns or WIDEST, WIDEST)
    return WIDEST


def wrapped(text: str) -> str:
    """Lines as wide as there is room; paths and names stay whole, so that they can be copied."""
    return "\n".join(map(_filled, text.split("\n")))


def _filled(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def say(text: str) -> None:
    """Tell progress on stderr; what cannot be written there is dropped, since the work goes on without it."""
    _remark(text)


def tell(text: str) -> None:
    """Tell a result on stdout; nothing where the text is empty."""
    if text:
        _write(out(), text)


def tell_programs(values: dict[str, Any]) -> None:
    """Tell a result as one line of JSON, for programs: in a pipe, and not to who sits at the terminal.

    JSON has neither NaN nor infinity: what is no number is null.
    """
    if not _is_terminal(out()):
        finite = json.loads(json.dumps(values), parse_constant=lambda _: None)
        print(json.dumps(finite), file=out(), flush=True)


def heading(text: str) -> None:
    """Begin a stage, on stderr."""
    say("")
    _remark(f"== {printable(text)}", "bold")


def _remark(text: str, style: str = "") -> None:
    """Write lines on stderr, whatever a program has there: none, a pipe without a reader, or an object of its own."""
    if (stream := err()) is not None:
        with contextlib.suppress(Exception):  # of somebody's own object, any
            _write(stream, text, style)


def _is_terminal(stream: TextIO) -> bool:
    """Whether somebody sits at it; one that stands for a log has often no such method."""
    return bool(getattr(stream, "isatty", bool)())


def _write(stream: TextIO, text: str, style: str = "") -> None:
    """Write lines, wrapped on a terminal; in a pipe each stays one, for who searches in it."""
    text = wrapped(text) if _is_terminal(stream) else text
    console = _live.console if _live and _is_terminal(stream) else _console(stream) if style else None
    if console:  # above the bars that are drawn
        console.print(text, style=style, soft_wrap=True)
    else:
        print(text, file=stream, flush=True)


def _console(stream: TextIO) -> Any:
    """rich's console on a terminal; None in a pipe, and where rich is not installed."""
    if not _is_terminal(stream):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, width=width(), highlight=False, markup=False, emoji=False)


# --- tables


def show_table(
    head: Sequence[str], lines: Iterable[Sequence[str]], align: str, first: Sequence[str], full: Path | None
) -> None:
    """Tell a table on stdout in as many columns as fit, and name the others and the file that has all.

    The first column is always there. The others go without what stands in brackets; those in `first` come first, then
    the narrow before the wide. `align` as in `runtime.markdown.markdown`.
    """
    rows = [[row[0], *(re.sub(r" \([^()]*\)", "", cell) for cell in row[1:])] for row in (head, *lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = _that_fit(rows[0], widths, first)
    sides = "".join(align.ljust(len(head), align[-1])[i] for i in shown)
    _draw([[row[i] for i in shown] for row in rows], sides)
    left_out = [name for i, name in enumerate(rows[0]) if i not in shown]
    notes = [f"not shown: {', '.join(left_out)}"] if left_out else []
    tell("; ".join([*notes, *([f"all of it: {full}"] if full else [])]))


def _that_fit(head: Sequence[str], widths: Sequence[int], first: Sequence[str]) -> list[int]:
    """The numbers of the columns that there is room for, in their order."""
    rank = {i: (first.index(name) if name in first else len(first), widths[i]) for i, name in enumerate(head)}
    shown, room = {0}, width() - widths[0] - 4
    for i in sorted(range(1, len(head)), key=lambda i: rank[i]):
        if widths[i] + 3 <= room:
            shown.add(i)
            room -= widths[i] + 3
    return sorted(shown)


def _draw(rows: Sequence[Sequence[str]], sides: str) -> None:
    console = _console(out())
    if not console:
        print(markdown(rows[0], rows[1:], sides, padded=True), file=out())
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, side in zip(rows[0], sides, strict=True):
        drawn.add_column(Text(name), justify="left" if side == "l" else "right")
    for row in rows[1:]:
        drawn.add_row(*(Text(cell, _COLOURS.get(cell, "")) for cell in row))
    (_live.console if _live else console).print(drawn)


# --- progress


@contextlib.contextmanager
def progress(what: str, total: float | None) -> Iterator[Advance]:
    """Show how far work of `total` steps has come, and the time that is left; None where their number is not known.

    Gives `advance(steps, now)`, which is called after some steps; `now` tells what was done, in a pipe on a line.
    """
    global _live
    if not (_live or (console := _console(err()))):
        yield _in_lines(what, total)
        return
    outer, bars = _live, _live or _bars(console)
    task = bars.add_task(_short(what), total=total)

    def advance(steps: float = 1, now: str = "") -> None:
        bars.update(task, advance=steps, **({"description": _short(now)} if now else {}))

    with contextlib.nullcontext() if outer else bars:
        _live = bars
        try:
            yield advance
        finally:
            bars.remove_task(task)
            _live = outer


def doing(what: str) -> None:
    """Say beside the bar, where there is one, what the work is at."""
    if _live and _live.tasks:
        _live.update(_live.task_ids[-1], description=_short(what))


def track(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """Yield the items behind a progress bar."""
    with progress(what, total) as advance:
        for item in items:
            yield item
            advance()


def _short(what: str) -> str:
    """As much of a text as fits on a line with a bar, per cent and time."""
    room = width() - _BAR - 20
    return what if len(what) <= room else f"{what[: room - 1]}…"


def _bars(console: Any) -> Any:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    text, left = TextColumn("{task.description}", markup=False), TimeRemainingColumn(compact=True)
    return Progress(
        text, BarColumn(_BAR), TaskProgressColumn(), left, TextColumn("left"),
        console=console, transient=True, redirect_stdout=False, redirect_stderr=False,
        speed_estimate_period=300,  # seconds: steps of an export take up to a minute
    )  # fmt: skip


def _in_lines(what: str, total: float | None) -> Advance:
    started = told = time.monotonic()
    done = 0.0

    def advance(steps: float = 1, now: str = "") -> None:
        nonlocal done, told
        done, seconds = done + steps, time.monotonic() - started
        if now:
            say(now)
        elif total and done and started + seconds - told >= NOW_AND_THEN:
            told = started + seconds
            say(f"{what}: {100 * done / total:.0f} %, about {seconds * (total / done - 1):.0f} s left")

    return advance


# --- libraries


@contextlib.contextmanager
def stage(name: str, title: str, folder: Path) -> Iterator[None]:
    """A part of the work under a heading, in which only `say`, `tell`, tables and progress reach the user.

    What libraries write goes to `folder/logs/NAME.log`, which an exception that leaves the stage names.
    """
    heading(title)
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # several processes of one training have one each, and the last one's is kept
    try:
        with quiet(log):
            yield
    except Exception as error:
        if log.is_file() and log.stat().st_size:
            error.add_note(f"what the libraries said is in {log}")
        raise
    finally:
        with contextlib.suppress(OSError):  # nothing was said
            if not log.stat().st_size:
                log.unlink()
            log.parent.rmdir()


@contextlib.contextmanager
def quiet(log: Path = Path(os.devnull)) -> Iterator[None]:
    """Write what others than this module print, from C too, to a file; within another one, that one's file has it."""
    if _ours:
        yield
        return
    with open(log, "ab") as file, contextlib.ExitStack() as undo:
        undo.enter_context(_lent(1, sys.stdout, file.fileno(), contextlib.redirect_stdout))
        undo.enter_context(_lent(2, sys.stderr, file.fileno(), contextlib.redirect_stderr))
        yield


def library_output() -> int | None:
    """Where a process that is started is to write what is not for the user: see `subprocess.Popen`."""
    return None if _ours else subprocess.DEVNULL  # as this one does


@contextlib.contextmanager
def _lent(number: int, stream: TextIO, log: int, redirect: Callable[[TextIO], Any]) -> Iterator[None]:
    """Let a standard stream be the libraries', while `_ours` keeps what it was."""
    encoding = getattr(stream, "encoding", None) or "utf-8"

    def text_to(file: int) -> TextIO:
        return os.fdopen(os.dup(file), "w", buffering=1, encoding=encoding, errors="backslashreplace")

    stream.flush()
    with contextlib.ExitStack() as undo:
        undo.callback(_ours.pop, number)
        try:
            before = os.dup(number)
        except OSError:  # closed by who started us
            _ours[number] = stream
        else:
            undo.callback(os.close, before)
            undo.callback(os.dup2, before, number)
            own = _number_of(stream) == number
            _ours[number] = undo.enter_context(text_to(before)) if own else stream
            os.dup2(log, number)
        # A logging handler that is made meanwhile keeps this stream, so it is never closed
        undo.enter_context(redirect(text_to(log)))
        yield


def _number_of(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # a stream in memory
        return None
