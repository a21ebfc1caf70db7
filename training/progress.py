"""Work on many photos: one thread per core, behind a progress bar on a terminal."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from runtime.terminal import track
from runtime.threads import in_order

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]  # items, what is done with them, their number


bar: Progress = track


def silent(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """A progress bar that shows nothing: the default of functions that take one."""
    return items


def in_threads(
    function: Callable[[Any], Any], items: Sequence[Any], what: str = "", progress: Progress = silent
) -> Iterator[Any]:
    """The function's result for each item, in order, from one thread per core, a few items ahead of the taker."""
    yield from progress(in_order(function, items), what, len(items))
