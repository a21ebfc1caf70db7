"""Progress bars on a terminal, nothing in a pipe."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import track


def bar(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """Yield the items behind a progress bar on stderr; silent where stderr is no terminal."""
    return track(items, what, total, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def silent(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """A progress bar that shows nothing: the default of functions that take one."""
    return items
