"""What visitors uploaded, the only files of this machine that a request can have read: photos, and zips of photos.

A zip is read entry by entry into memory: nothing of it is ever written anywhere.
"""

import asyncio
import io
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, BinaryIO

from gradio.utils import get_upload_folder

from demo.service.limits import Limits
from demo.service.problem import Problem, busy, too_large
from demo.service.shares import Holdings

# Of what is no regular file, opening would wait for its other end, and a link may have been put there since
OPEN_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
KEPT_SECONDS = 3600  # until Gradio forgets an upload
DIRECTORY_BYTES = 2**20  # of a zip's table of contents: thousands of entries, and zipfile makes an object of each
JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # what systems put beside photos, as they do hidden files
ENCRYPTED = 0x1  # a flag of an entry
PIECE = 2**16  # bytes
# The others inflate without a bound on what comes out of one read
INFLATED_IN_PIECES = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Room:
    """Room for `limits.uploads` bytes in Gradio's upload folder: those that it keeps, and those on their way."""

    def __init__(self, limits: Limits) -> None:
        self._most, self._coming = limits.uploads, 0
        share = limits.share_of(limits.uploads, min(limits.upload, limits.uploads))
        self._sent = Holdings("bytes of uploads, each for an hour and", share)

    @contextmanager
    def taken(self, size: int, visitor: str) -> Iterator[None]:
        """Room for an upload of so many bytes while it comes. Raises Problem 429 where there is none, or of his none.

        What came counts as his for as long as it is kept.
        """
        if self._kept() + self._coming + size > self._most:
            raise busy(429, "uploads-full", "there is no room for more uploads; older ones go within the hour")
        with ExitStack() as his:
            his.enter_context(self._sent.held(visitor, size))
            self._coming += size
            try:
                yield
            finally:
                self._coming -= size
            asyncio.get_running_loop().call_later(KEPT_SECONDS, his.pop_all().close)

    def _kept(self) -> int:
        size = 0
        for file in Path(get_upload_folder()).glob("*/*"):  # what is on its way has no folder of its own yet
            with suppress(OSError):  # it has just been deleted
                size += file.lstat().st_size
        return size


@contextmanager
def opened(upload: Any) -> Iterator[BinaryIO]:
    """The file of an upload, Gradio's dict with its `path`, open for reading; nothing else is opened in its place.

    Raises Problem 422, the same for everything that was not uploaded, whether it is there or not.
    """
    with _handle(upload.get("path") if isinstance(upload, dict) else None) as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise _not_uploaded()
        yield handle


def _handle(path: Any) -> BinaryIO:
    folder = Path(get_upload_folder()).resolve()
    # Its text is checked before the disk is asked: how long that takes would tell what is there
    if not isinstance(path, str) or folder not in Path(path).parents or ".." in Path(path).parts:
        raise _not_uploaded()
    try:
        file = Path(path).resolve(strict=True)
        if folder not in file.parents:  # a link
            raise _not_uploaded()
        return open(file, "rb", opener=lambda name, flags: os.open(name, flags | OPEN_FLAGS))
    except (OSError, ValueError, RuntimeError):  # the last of links in a circle
        raise _not_uploaded() from None


def name_of(upload: Any) -> str:
    """The name of the visitor's file, as the browser told it, without folders."""
    names = [upload.get(key) for key in ("orig_name", "path")] if isinstance(upload, dict) else []
    return next((PurePath(name).name for name in names if isinstance(name, str) and name), "the file")


def _not_uploaded() -> Problem:
    """The refusal of a path that is no upload's, or of an upload that has been deleted since."""
    return Problem(422, "not-uploaded", "this is no photo that was uploaded here within the hour; upload it again")


class Archive(AbstractContextManager["Archive"]):
    """An opened zip file; use it as a context manager, or close it. `entries` are its files, system files left out.

    Raises Problem, in one sentence about the `name` of the zip: 422 when it cannot be read, 413 when it says that it
    holds more than `limits` let in.
    """

    def __init__(self, file: BinaryIO, name: str, limits: Limits) -> None:
        self.name, self._limits = name, limits
        self._file = _ReadInPieces(os.dup(file.fileno()))
        try:
            self._zip = zipfile.ZipFile(self._file)
            self.entries = [entry for entry in self._zip.infolist() if not entry.is_dir() and not _is_junk(entry)]
            self._check_size()
        except BaseException as error:
            self._file.close()
            if isinstance(error, Problem) or not isinstance(error, Exception):
                raise
            # zipfile raises whatever damaged bytes lead it to
            raise Problem(422, "broken-zip", f"{name} is no zip that can be read; zip the photos again") from None

    def _check_size(self) -> None:
        most = self._limits.upload
        if sum(entry.file_size for entry in self.entries) > most:
            detail = f"{self.name} would unpack to more than {most:,} bytes; send fewer photos at a time"
            raise Problem(413, "zip-too-large", detail)

    def read(self, entry: zipfile.ZipInfo) -> bytes:
        """An entry's bytes. Raises Problem in one sentence: 413 for too many, 422 for what is not to be read."""
        self._check(entry)
        content = io.BytesIO()
        try:
            with self._zip.open(entry) as file:
                shutil.copyfileobj(file, content, PIECE)  # never more than it says: zipfile stops there
        except Exception:
            raise Problem(422, "broken-entry", "the file is damaged in the zip; zip it again") from None
        return content.getvalue()

    def _check(self, entry: zipfile.ZipInfo) -> None:
        name = PureWindowsPath(entry.filename)  # knows both separators, and drives
        if name.anchor or ".." in name.parts:
            raise Problem(422, "outside-zip", "the file has a name that points outside the zip; zip the folder itself")
        if name.suffix.lower() == ".zip":
            raise Problem(422, "zip-in-zip", "the file is a zip in a zip, which is not opened; send it by itself")
        if entry.flag_bits & ENCRYPTED:
            raise Problem(422, "encrypted", "the file is encrypted; zip it again without a password")
        if entry.compress_type not in INFLATED_IN_PIECES:
            raise Problem(422, "compression", "the file is compressed in an unusual way; zip it again with Deflate")
        if entry.file_size > self._limits.bytes:
            raise too_large(name.name, self._limits.bytes)

    def close(self) -> None:
        """Close it; the file that it was made of stays open."""
        self._zip.close()
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class _ReadInPieces(io.FileIO):
    """A file that refuses to give much at a time: zipfile reads the whole table of contents at once.

    What the table says of its own size cannot be trusted, and to find out would be to copy zipfile's search for it.
    """

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > DIRECTORY_BYTES:
            raise Problem(413, "zip-too-large", "the zip has too many entries; send fewer photos at a time")
        return super().read(wanted) or b""


def _is_junk(entry: zipfile.ZipInfo) -> bool:
    name = PureWindowsPath(entry.filename)
    return bool(JUNK.intersection(name.parts)) or (name.name.startswith(".") and ".." not in name.parts)
