"""Work on many photos: one thread per core, behind a progress bar on a terminal."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from runtime.environment import usable_cores
from runtime.terminal import track

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]  # items, what is done with them, their number


bar: Progress = track


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
