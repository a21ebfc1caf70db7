"""Files that visitors uploaded: the only ones of this machine that a request can have read."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from gradio.utils import get_upload_folder

from demo.service.problem import Problem

# Of what is no regular file, opening would wait for its other end, and a link may have been put there since
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def opened(upload: Any) -> Iterator[BinaryIO]:
    """The file of an upload, Gradio's dict with its `path`, open for reading; nothing else is opened in its place.

    Raises Problem 422, the same for everything that was not uploaded, whether it is there or not.
    """
    with _handle(upload.get("path") if isinstance(upload, dict) else None) as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise not_uploaded()
        yield handle


def _handle(path: Any) -> BinaryIO:
    folder = Path(get_upload_folder()).resolve()
    # By its letters before the disk is asked: how long that takes would tell what is there
    if not isinstance(path, str) or folder not in Path(path).parents or ".." in Path(path).parts:
        raise not_uploaded()
    try:
        file = Path(path).resolve(strict=True)
        if folder not in file.parents:  # a link
            raise not_uploaded()
        return open(file, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS))
    except (OSError, ValueError, RuntimeError):  # the last of links in a circle
        raise not_uploaded() from None


def name_of(upload: Any) -> str:
    """The name of the visitor's file, as the browser told it, without folders."""
    names = [upload.get(key) for key in ("orig_name", "path")] if isinstance(upload, dict) else []
    return next((PurePath(name).name for name in names if isinstance(name, str) and name), "the file")


def not_uploaded() -> Problem:
    """The refusal of a path that is none of an upload, or of one that has been deleted since."""
    return Problem(422, "not-uploaded", "this is no photo that was uploaded here within the hour; upload it again")
