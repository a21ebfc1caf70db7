"""Work on many photos: one thread per core, behind a progress bar on a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.progress import track

from runtime.environment import usable_cores

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]  # items, what is done with them, their number


def bar(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """Yield the items behind a progress bar on stderr; silent where stderr is no terminal."""
    return track(items, what, total, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def silent(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """A progress bar that shows nothing: the default of functions that take one."""
    return items


def in_threads(
    function: Callable[[Any], Any], items: Sequence[Any], what: str = "", progress: Progress = silent
) -> Iterator[Any]:
    """The function's result for each item, in order, from one thread per core: decoding a photo releases the GIL.

    Results wait in memory until they are taken, so a slow taker gives it a few items at a time.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        yield from progress(pool.map(function, items), what, len(items))
