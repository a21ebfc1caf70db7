"""What can go wrong, as one sentence a person can act on.

SajiError            a misuse: exit status 2
├── BadPhoto         the bytes are no picture that can be read
│   ├── TooManyPixels    or one that would fill the memory
│   └── TooMuchMemory    or that did
├── NoAnswer         an engine gives NaN or infinity for a photo
├── BadModel         a model file, receipt or spec that cannot be trusted
├── Unavailable      this machine lacks the library, device or driver
├── NotAsAsked       an engine opened with another provider or precision than asked for
├── NotTold          an engine that does not tell the precision it computes in
└── GateFailed       a check that was asked for failed: exit status 1
"""

from collections.abc import Sequence
from pathlib import Path

from runtime.markdown import printable
from runtime.nvidia import ANEW, choose, driver, extra_of, here, unserved

_ROOT = Path(__file__).resolve().parent.parent


def some_of(names: Sequence[str], most: int = 8) -> str:
    """Names in a sentence; of many the first ones, and how many more there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class SajiError(Exception):
    """One sentence: what is wrong, what is there, what to type next."""

    exit_status = 2

    def __str__(self) -> str:
        """The sentence on a line that can be printed anywhere, whatever the names of files in it."""
        return printable(super().__str__())


class BadPhoto(SajiError):
    """The bytes are no picture that can be read."""


class TooManyPixels(BadPhoto):
    """A picture with more pixels than are let through, told by its header alone."""


class TooMuchMemory(BadPhoto):
    """A picture that takes more memory to decode than there is, or than the decoder allows itself."""


class NoAnswer(SajiError):
    """An engine that gives NaN or infinity for a photo; to others it may have an answer."""


class BadModel(SajiError):
    """A model file, receipt or spec that is missing, damaged or foreign."""


class Unavailable(SajiError):
    """This machine lacks the library, device or driver for what was asked."""


class NotAsAsked(SajiError):
    """An engine opened with another provider or precision than asked for."""


class NotTold(SajiError):
    """An engine that does not tell the precision it computes in, so that nothing is known of what was asked for."""


class GateFailed(SajiError):
    """A check that was asked for failed."""

    exit_status = 1


def missing_extra(library: str, extra: str) -> Unavailable:
    """The error for a library that is not installed, with the line that installs it where it would serve."""
    return Unavailable(f"{library} is not installed; {advice(extra)}")


def advice(extra: str, how: str = "install it with: ") -> str:
    """How to install one of our extras, or why that would not help here."""
    return unserved(extra, driver(), here()) or f"{how}{install_line(extra)}"


def install_line(extra: str) -> str:
    """What to type to install one of our extras: from the checkout that this is, or else by name.

    An extra for CUDA 13 becomes that for CUDA 12 where the driver serves no more.

    Receipts and pages keep such lines, so that the checkout's path stays out of them where `.` will do.
    """
    if extra in ("gpu", "tensorrt", "tensorrt-rtx"):
        extra = extra_of(extra, driver(), here())
    if not _is_checkout():
        return f"pip install 'saji[{extra}]'"
    return f"pip install '{'.' if Path.cwd() == _ROOT else _ROOT}[{extra}]'"


def anew_line() -> str:
    """What to type to install what this machine is served by: in a fresh environment where this is a checkout."""
    return ANEW if _is_checkout() else f"pip install 'saji[{choose(driver(), here()).extras}]'"


def _is_checkout() -> bool:
    return (_ROOT / "pyproject.toml").is_file()
