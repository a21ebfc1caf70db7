"""Command lines by argparse: a dataclass gives the flags, and what goes wrong is said in one sentence."""

import argparse
import ast
import contextlib
import dataclasses
import importlib.util
import inspect
import math
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Container
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import pairwise, takewhile
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from runtime import signature
from runtime.errors import SajiError, Unavailable, missing_extra
from runtime.nvidia import NoSuchGpu, use
from runtime.terminal import open_missing_streams, printable, say

Record = TypeVar("Record")
# A scheduler's time limit and a terminal that closes; Windows has no SIGHUP
_STOPS = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
stopped_by = signal.SIGINT  # whose KeyboardInterrupt it is
_REPEATED = 3.0  # seconds in which another signal is the same one, such as the SIGHUP that a shell hands on
_stopped = -math.inf  # when


class Parser(argparse.ArgumentParser):
    """An argument parser that raises SajiError instead of printing its usage, and takes no shortened flags.

    An empty path is none, not the current folder, and a number is a finite one.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **more})
        self.register("type", Path, _path)
        self.register("type", float, _finite)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, with --image_size for --image-size; an optional value of a flag stands behind `=`."""
        typed = sys.argv[1:] if args is None else args
        flags = [*takewhile(lambda argument: argument != "--", typed)]  # behind it stand names, as they are
        found, rest = super().parse_known_args([*map(self._spelled, flags), *typed[len(flags) :]], namespace)
        if "gpu" in found:  # the last that was typed
            _use(found.gpu)
            del found.gpu
        return found, rest

    def _spelled(self, argument: str) -> str:
        typed, equals, value = argument.partition("=")
        flag = typed.replace("_", "-")
        if not flag.startswith("--") or flag not in self._option_string_actions:
            return argument
        return f"{flag}{equals or '=' * (self._option_string_actions[flag].nargs == '?')}{value}"

    def error(self, message: str) -> NoReturn:
        """Raise SajiError with argparse's own words."""
        raise SajiError(f"{message}; see {self.prog} --help")


def _path(typed: str) -> Path:
    if not typed:
        raise argparse.ArgumentTypeError("the path is empty; name a file or a folder (the current one is .)")
    return Path(typed)


def _finite(typed: str) -> float:
    if not math.isfinite(number := float(typed)):
        raise argparse.ArgumentTypeError(f"{typed} is no finite number")
    return number


def add_flags(parser: argparse._ActionsContainer, defaults: Any, skip: Container[str] = ()) -> None:
    """A flag for each field of the dataclass instance `defaults`, whose values are what holds without the flag.

    Fields that `skip` names have none.
    The docstring below a field is its help. Its type is bool, int, float, str, Path, a Literal, a tuple of these, or
    one of these or None.
    """
    kinds, helps = get_type_hints(type(defaults)), _docstrings(type(defaults))
    for field in dataclasses.fields(defaults):
        if field.name in skip:
            continue
        kind, value, words = kinds[field.name], getattr(defaults, field.name), helps.get(field.name, "")
        if value not in (None, "", ()) and kind is not bool:
            words += f" (default: {_as_typed(value)})"
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, default=value, help=words.replace("%", "%%"), **_options(kind))


def add_gpu(parser: argparse._ActionsContainer) -> None:
    """The flag that names the one GPU to use, from parsing on: for this process and those that it starts."""
    words = "use this one of the visible GPUs, counted from 0 in the order of doctor, and no other (the first)"
    parser.add_argument("--gpu", type=int, metavar="N", default=argparse.SUPPRESS, help=words)


def _use(number: int) -> None:
    try:
        use(number)
    except NoSuchGpu as error:
        raise SajiError(str(error)) from None


class _Require(argparse.Action):
    """`--require-signature KEY` takes effect as it is read: before anything is opened."""

    def __call__(self, parser: argparse.ArgumentParser, arguments: argparse.Namespace, key: Any, *_: Any) -> None:
        signature.require(key)


def add_require_signature(parser: argparse._ActionsContainer) -> None:
    """The flag that names the one key whose models are opened."""
    words = "open only model folders that this public key (a PEM file) signed, whole and unchanged"
    default = argparse.SUPPRESS
    parser.add_argument("--require-signature", type=Path, action=_Require, metavar="KEY", default=default, help=words)


def from_flags(defaults: Record, arguments: argparse.Namespace, skip: Container[str] = ()) -> Record:
    """The dataclass instance with what was typed for its fields but those that `skip` names."""
    names = [field.name for field in dataclasses.fields(defaults) if field.name not in skip]  # type: ignore[arg-type]
    typed = {name: getattr(arguments, name) for name in names}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in typed.items()}
    return dataclasses.replace(defaults, **values)  # type: ignore[type-var]


def _docstrings(record: type) -> dict[str, str]:
    """The text below each field of a class, which Python itself does not keep; none without the source."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(record))).body[0].body  # type: ignore[attr-defined]
    except OSError:
        return {}
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _options(kind: Any) -> dict[str, Any]:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is Literal:
        return {"choices": parts}
    if origin in (Union, UnionType):
        return _options(parts[0])
    if origin is tuple:
        return {**_options(parts[0]), "nargs": "*" if parts[-1] is Ellipsis else len(parts)}
    return {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, kind.__name__.upper())}


def _as_typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def require_extra(extra: str, *modules: str) -> None:
    """End the command line with the install line when a module of an extra is missing; nothing is imported.

    For the imports that follow it, which would fail with a traceback. Of one that is there and cannot be loaded tells
    `exit_with_one_sentence`.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            sys.exit(_one_sentence(str(missing_extra(module, extra)), Unavailable.exit_status))


def stop_by_signals() -> None:
    """Let SIGTERM and SIGHUP stop this process as Ctrl-C does, so that nothing half-written stays behind.

    For a process of ours alone, never for one that imports us. What it is to ignore, as under nohup, it ignores.
    """
    for number in _STOPS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, _: object) -> None:
    global stopped_by, _stopped
    if time.monotonic() - _stopped < _REPEATED:  # cleaning up takes its time
        return
    stopped_by, _stopped = signal.Signals(number), time.monotonic()
    raise KeyboardInterrupt


def exit_with_one_sentence(main: Callable[[], None]) -> None:
    """Run a command line; turn an expected failure into one sentence on stderr and its exit status.

    A sign that the output's encoding lacks, such as an arrow in a file on Windows, is written as its escape.
    """
    stop_by_signals()
    open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except SajiError as error:
        sys.exit(_one_sentence("; ".join([str(error), *_notes(error)]), error.exit_status))
    except KeyboardInterrupt:
        how = "Ctrl-C" if stopped_by == signal.SIGINT else stopped_by.name
        sys.exit(_one_sentence(f"stopped by {how}; finished files are kept", 128 + stopped_by))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output (head, a pager) has gone: nothing to say to it
        sys.exit(141)
    except OSError as error:  # read-only folder, full disk, missing file: the system's words name the cause
        where = f" ({error.filename})" if error.filename else ""
        what = f"{error.strerror or error}{where}; check the path, its permissions and free space"
        sys.exit(_one_sentence("; ".join([what, *_notes(error)]), 2))
    except ImportError as error:
        if not (library := _not_loaded(error)):
            raise
        what = f"{library} is installed and cannot be loaded ({error}); allow this process more memory if it "
        sys.exit(_one_sentence(what + "has a limit (ulimit -v), or else install it anew", Unavailable.exit_status))


def _not_loaded(error: BaseException | None) -> str:
    """The library with a compiled file that the system does not load; "" where an import failed otherwise."""
    while error:
        if isinstance(error, ImportError) and (error.path or "").endswith(tuple(EXTENSION_SUFFIXES)):
            place = Path(error.path or "")
            while (place.parent / "__init__.py").is_file():
                place = place.parent
            return place.name.partition(".")[0]
        error = error.__cause__ or error.__context__
    return ""


def _notes(error: BaseException) -> list[str]:
    """What was noted on an error on its way: see `runtime.terminal.stage`."""
    return getattr(error, "__notes__", [])


def _one_sentence(sentence: str, status: int) -> int:
    with contextlib.suppress(OSError):  # the terminal has gone
        say(f"saji: {printable(sentence)}")
    return status
