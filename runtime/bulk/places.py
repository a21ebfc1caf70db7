"""Where bytes lie: paths and URIs of whatever pyarrow has a file system for.

pyarrow is imported where it is needed, for it comes with the extra `scale`.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.errors import SajiError


def located(place: str) -> tuple[Any, str]:
    """The file system (of pyarrow) of a path or URI, and the path in it."""
    scheme, _, rest = absolute(place).rpartition("://")
    host, _, path = rest.partition("/")
    files, root = _file_system(scheme or "file", host)
    return files, f"{root.rstrip('/')}/{path}"


@functools.cache
def _file_system(scheme: str, host: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    with saying(f"{scheme}://{host} cannot be reached; give a folder, or a URI such as s3://bucket/folder"):
        files, root = FileSystem.from_uri(f"{scheme}://{host}/")
    return files, root


def absolute(place: str) -> str:
    """A path as it is from any folder; a URI as it is."""
    return place.rstrip("/") if "://" in place else str(Path(place).absolute())


@contextmanager
def saying(sentence: str) -> Iterator[None]:
    """What pyarrow raises as a sentence of ours; its own base, as for an Azure that lets nobody in, is no OSError."""
    import pyarrow as pa

    try:
        yield
    except (ValueError, OSError, pa.ArrowException) as error:
        head, _, advice = sentence.partition(";")
        raise SajiError(f"{head} ({line_of(error)})" + (f";{advice}" if advice else "")) from None


def line_of(error: Exception) -> str:
    """The first line of an error, at most 160 characters; its kind where it says nothing."""
    told = str(getattr(error, "strerror", None) or error)
    return next(iter(told.splitlines()), type(error).__name__)[:160]


def content_of(uri: str) -> bytes:
    """The bytes of a photo. Raises OSError, or what pyarrow has of its own."""
    files, path = located(uri)
    with files.open_input_file(path) as file:
        content: bytes = file.read()
    return content
