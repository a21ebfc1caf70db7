"""Artefacts on disk: written under a temporary name and renamed, so that nothing half-written is ever seen."""

import ctypes
import dataclasses
import errno
import functools
import hashlib
import json
import os
import secrets
import shutil
import stat
import struct
import sys
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from runtime.errors import BadModel, SajiError

Record = TypeVar("Record")
# Beside what is hidden by a dot: of macOS, Windows, NAS by Synology and QNAP, Linux, Picasa
_LEFT = frozenset(("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler"))
_LEFT |= {"system volume information", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp"}
_LEFT |= {"lost+found", "picasa.ini", "@__thumb"}
DEEPEST = 50  # levels of what a record holds as it is
DAMAGE = (ValueError, KeyError, TypeError, AttributeError)  # what reading a record raises where it is damaged

# And what reading a zip does, such as PyTorch's files are
ZIP_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)


def in_words(damage: Exception) -> str:
    """What is wrong with a file, on a line; the error itself may hold all of the file."""
    if isinstance(damage, UnicodeDecodeError):
        return f"byte {damage.start} is no text"
    return repr(damage)[:160]


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def sha256_modules(*patterns: str) -> str:
    """Hexadecimal SHA-256 over modules of ours, by paths such as "runtime/backends/*.py".

    A result that other code made is not up to date.
    """
    root = Path(__file__).resolve().parent.parent
    files = sorted(file for pattern in patterns for file in root.glob(pattern))
    return sha256_json({file.relative_to(root).as_posix(): sha256_file(file) for file in files})


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def left_by_programs(name: str) -> bool:
    """Whether a folder or file of this name is what other programs leave beside photos: hidden, thumbnails, a bin."""
    return name.startswith(".") or name.lower() in _LEFT


def walk_once(
    place: Path,
    read: set[Path],
    passed_over: Callable[[Path], bool],
    again: Callable[[Path], None],
    closed: Callable[[OSError], None],
) -> Iterator[tuple[Path, Iterable[Path]]]:
    """Each folder in a place with its files, sorted; links to folders are followed, after what really lies there.

    None is entered twice, nor one of those `read` (resolved) before, of which `again` is told; `closed` is told of
    those that cannot be listed. `passed_over` says which are left out.
    """
    folders: list[tuple[Path, Path | None]] = [(place, None)]  # with where the one above really lies
    links = deque[Path]()
    while folders or links:
        folder, above = folders.pop() if folders else (links.popleft(), None)
        try:
            with os.scandir(folder) as entries:
                inside = sorted((entry.name, _is_folder(entry)) for entry in entries)
            # Windows has junctions, which are no links to Python
            real = above / folder.name if above and os.name == "posix" else folder.resolve()
        except OSError as error:
            closed(error)
            continue
        if folder != place and real in read:
            again(folder)
            continue
        read.add(real)
        yield folder, map(folder.joinpath, [name for name, is_folder in inside if not is_folder])  # may be a million
        wanted = [path for path in (folder / name for name, is_folder in inside if is_folder) if not passed_over(path)]
        folders += [(path, real) for path in reversed(wanted) if not path.is_symlink()]
        links += [path for path in wanted if path.is_symlink()]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112  of a loop, too


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise BadModel where the file system does not give what lies at `path`: a permission, a name, a failing disk."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise BadModel(f"{error.filename or path}: {why}; check the path, its permissions and the disk") from None


def exists(path: Path) -> bool:
    """Whether there is something at a path. Raises OSError where that is not told, as Path.exists did before 3.14."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether there is a regular file at a path. Raises OSError as `exists` does."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except ValueError:  # a name with a null character
        return None
    except OSError as error:
        gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)
        if not gone and getattr(error, "winerror", None) not in (21, 123, 1921):  # no drive, no such name, a loop
            raise
        return None


def lost(beginning: bytes, size: int, whole: int = 0) -> str:
    """How a file came without its contents, in words that go on from its name; "" where it came with some.

    `beginning` are its first bytes, `size` is how many it has of the `whole`, 0 where that is not known.
    """
    if beginning.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS; fetch the file itself with: git lfs pull"
    if not size:
        return "is empty; copy it again"
    cut = f"is not the file that was checked (it has {size:,} of {whole:,} bytes); copy the folder again"
    return cut if size < whole else ""


def file_lost(path: Path, whole: int = 0) -> str:
    """As `lost`, of the file at a path."""
    with open(path, "rb") as file:
        return lost(file.read(100), path.stat().st_size, whole)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let a disk that is full or fails name what was to be written: the system tells no file when a write fails."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            error.filename = error.filename or str(path)
        raise


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on an exception it is removed.

    The last suffix is kept, because several libraries choose their format by it. Unless it need not be `durable`, as
    what is written anew each epoch, either the old file or the whole new one is there after a loss of power, too.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        if durable:
            _to_disk(temporary)
        os.replace(temporary, path)
        if durable:
            _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path, *ours: str, require: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it replaces `path` whole, otherwise it is removed.

    Raises SajiError, and touches nothing, where there is something at `path` that is neither empty nor has the files
    `ours`, which every folder of its kind has: it is somebody's own. So it does where `require` raises. Both are asked
    again when it is replaced, which one process does at a time: another one may have written there meanwhile.
    On Linux either is there at any moment; elsewhere for a moment neither is, and a kill then leaves the old one under
    the temporary name with ".old" behind it.
    """
    _require_ours(path, ours)
    require()
    make_folder(path.parent)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    temporary.mkdir()  # open to whom the umask opens it, as mkdtemp's are not
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            _to_disk(written)
        with alone(path.parent):
            _require_ours(path, ours)
            require()
            _replace_folder(temporary, path)
        _to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after an exchange the old one


def _require_ours(path: Path, ours: Iterable[str]) -> None:
    empty = path.is_dir() and not any(path.iterdir())
    lacking = [name for name in ours if not is_file(path / name)]
    if os.path.lexists(path) and lacking and not empty:
        raise SajiError(
            f"{path} was not written by saji (it has no {lacking[0]}); move it away, or name another folder"
        )


def _replace_folder(new: Path, path: Path) -> None:
    if not path.exists():
        os.replace(new, path)
    elif not _exchanged(new, path):
        old = new.with_name(new.name + ".old")
        os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in; what is then written into it has a place after a loss of power, too."""
    if not folder.is_dir() and folder != folder.parent:  # as a drive's that is not there is
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _to_disk(folder.parent)


def require_regular(path: Path) -> None:
    """Raise SajiError where there is something else than a regular file: a device or a pipe is read without end."""
    if exists(path) and not path.is_file():
        raise SajiError(f"{path} is no regular file, so no rows can be appended to it; name another one")


def _to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk: a rename may get there before what it names."""
    if os.name == "nt" and path.is_dir():  # which Windows does not open
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two paths have changed places at once, by `renameat2` of Linux (man 2 rename)."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (OSError, TypeError, AttributeError):
        return False
    here, exchanging = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(exchange(here, os.fsencode(one), here, os.fsencode(other), exchanging) == 0)


@contextmanager
def alone(path: Path, doing: str = "") -> Iterator[None]:
    """Keep a file or folder that exists to this process, until it ends in whatever way.

    Raises SajiError where another one does it, `doing` in words; without them it waits for that one. Windows, and file
    systems without locks, let all in.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if doing else 0))
    except BlockingIOError:
        os.close(descriptor)
        raise SajiError(f"another process is {doing} {path}; wait for it to end, or name another place") from None
    except OSError:  # no locks here
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError, in words, for whatever is none; OSError when it cannot be read."""
    return parse_json(_content(path))


def _content(path: Path) -> bytes:
    if not is_file(path):  # a pipe or a device would be waited for
        raise ValueError("it is no regular file")
    return path.read_bytes()


def parse_json(text: bytes) -> Any:
    """The value that a JSON text stands for. Raises ValueError, in words, for whatever is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented for people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with replacing(path) as temporary, naming(path):
        temporary.write_bytes(as_text(text).encode())


def as_text(name: str) -> str:
    """The name of a file as UTF-8 can hold it: bytes that are no text are escaped, so that JSON reads the name back."""
    return name.encode(errors="backslashreplace").decode()


def write_record(path: Path, record: Any, version: int) -> None:
    """Write a dataclass as a JSON file, atomically, with the version of its schema."""
    write_json(path, {"schema_version": version, **dataclasses.asdict(record)})


def read_record(path: Path, kind: type[Record], version: int, advice: str, text: bytes | None = None) -> Record:
    """The dataclass that `write_record` wrote, of a file that was not read yet, or had the content `text`.

    Raises BadModel, ending in `advice`, for another version or damage.
    """
    try:
        text = _content(path) if text is None else text
        if why := lost(text, len(text)):
            raise BadModel(f"{path} {why}")
        content = parse_json(text)
        schema = content.pop("schema_version")
        if schema == version:
            return as_record(kind, content, str(path))
    except DAMAGE as error:
        if text and text.startswith(b"{") and not text.rstrip().endswith(b"}"):
            raise BadModel(f"{path} is cut off after {len(text):,} bytes; copy it again, or {advice}") from None
        raise BadModel(f"{path} is damaged ({in_words(error)}); {advice}") from None
    raise BadModel(f"{path} has version {schema}, this saji reads {version}; {advice}")


def as_record(kind: type[Record], values: Any, origin: str = "") -> Record:
    """A dataclass from its JSON form: lists become tuples and objects dataclasses, as the types of its fields say.

    A dataclass that has to check what it holds, or to read older forms, does so in a class method
    `from_values(values, origin)`; `origin` names the file for its errors. Raises one of DAMAGE where the shape, or
    what stands in it, is another: each number, text and truth value is one, and a number is finite.
    """
    kinds = get_type_hints(kind)
    return kind(**{name: _as(kinds[name], value, origin, name) for name, value in values.items()})


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that can be computed with: finite, and of no more digits than a float holds."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    float: ("number", is_number),
    int: ("whole number", lambda value: type(value) is int and is_number(value)),
    str: ("text", lambda value: isinstance(value, str)),
    bool: ("truth value", lambda value: isinstance(value, bool)),
}


def _as(kind: Any, value: Any, origin: str, name: str) -> Any:
    container, parts = get_origin(kind), get_args(kind)
    if container is UnionType:  # one of these or None
        return None if value is None else _as(parts[0], value, origin, name)
    if container is dict:
        return {key: _as(parts[1], inner, origin, name) for key, inner in value.items()}
    if container is tuple:
        if not isinstance(value, list) or (parts[-1] is not ... and len(value) != len(parts)):
            raise TypeError(f"{name} {value!r} is no list{'' if parts[-1] is ... else f' of {len(parts)}'}")
        return tuple(_as(parts[0], inner, origin, name) for inner in value)
    if dataclasses.is_dataclass(kind):
        read = getattr(kind, "from_values", None)
        return read(value, origin) if read else as_record(kind, value, origin)  # type: ignore[arg-type]
    if kind in _PLAIN and not _PLAIN[kind][1](value):
        raise TypeError(f"{name} {value!r} is no {_PLAIN[kind][0]}")
    if kind is Any:
        _require_flat(value)
    return value


def _require_flat(value: Any, levels: int = DEEPEST) -> None:
    """Raise ValueError where a JSON value is nested deeper than what walks it later may follow."""
    if not levels:
        raise ValueError("it is nested too deep")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _require_flat(inner, levels - 1)
