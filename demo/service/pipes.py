"""Pipes that take more at a time than a system gives each by itself."""

import contextlib
from typing import IO

PIPE_BYTES = 2**20  # Linux has 64 KiB


def widen(pipe: int | IO[bytes]) -> None:
    """Let a pipe take PIPE_BYTES, if that can be had.

    Linux bounds what all pipes of a user hold together, also those of other containers; narrow ones do as well.
    """
    with contextlib.suppress(ImportError, OSError):
        from fcntl import F_SETPIPE_SZ, fcntl

        fcntl(pipe, F_SETPIPE_SZ, PIPE_BYTES)
