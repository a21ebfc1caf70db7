"""What a number that somebody types may be, in words and as a test, which NaN and infinity do not pass.

`require_right` holds a dataclass to what the types of its fields say.
"""

import sys
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from runtime.errors import SajiError

MOST = 1_000_000
LARGEST = sys.float_info.max  # a whole number in TOML or JSON may have any number of digits
MOST_SEED = 2**32 - 1  # of NumPy
MOST_THREADS = 1024  # or streams, that may be asked for: far above any machine

Count = Annotated[int, f"a whole number, at least 1 and at most {MOST}", lambda n: 1 <= n <= MOST]
CountOrNone = Annotated[int, f"a whole number, at least 0 and at most {MOST}", lambda n: 0 <= n <= MOST]
Seed = Annotated[int, f"a whole number, at least 0 and at most {MOST_SEED}", lambda n: 0 <= n <= MOST_SEED]
Threads = Annotated[int, f"a whole number, at least 0 and at most {MOST_THREADS}", lambda n: 0 <= n <= MOST_THREADS]
Streams = Annotated[int, f"a whole number, at least 1 and at most {MOST_THREADS}", lambda n: 1 <= n <= MOST_THREADS]
Positive = Annotated[float, f"above 0 and at most {LARGEST:.2g}", lambda x: 0 < x <= LARGEST]
AtLeast0 = Annotated[float, f"at least 0 and at most {LARGEST:.2g}", lambda x: 0 <= x <= LARGEST]
Share = Annotated[float, "at least 0 and at most 1", lambda x: 0 <= x <= 1]
Part = Annotated[float, "at least 0 and below 1", lambda x: 0 <= x < 1]
SomePart = Annotated[float, "above 0 and below 1", lambda x: 0 < x < 1]
SomeShare = Annotated[float, "above 0 and at most 1", lambda x: 0 < x <= 1]
Seconds = Annotated[float, f"above 0 and at most {MOST}", lambda x: 0 < x <= MOST]
# Each photo of a batch is asked alone, too, before the batch is timed
Batch = Annotated[int, "a whole number, at least 1 and at most 4096", lambda n: 1 <= n <= 4096]
# Further out, more calls would be needed than anybody measures
Percentile = Annotated[float, "a percentile, at least 0.01 and at most 99.99", lambda x: 0.01 <= x <= 99.99]


def require_right(record: Any, flags: bool = False) -> None:
    """Raise SajiError where a dataclass's field has a value that its type does not allow; `flags` names it as one."""
    for name, kind in get_type_hints(type(record), include_extras=True).items():
        _require_right(f"--{name.replace('_', '-')}" if flags else name, getattr(record, name), kind)


def _require_right(name: str, value: Any, kind: Any) -> None:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is tuple:
        for each in value:
            _require_right(name, each, parts[0])
        return
    if origin in (Union, UnionType):  # one of these or None
        if value is not None:
            _require_right(name, value, parts[0])
        return
    if origin is Annotated:
        number, words, allows = parts
        right = isinstance(value, int | number) and not isinstance(value, bool) and allows(value)
    elif origin is Literal:
        words, right = f"one of {', '.join(parts)}", value in parts
    else:
        words = "true or false" if kind is bool else "text"
        right = isinstance(value, kind) if kind in (bool, str) else True
    if not right:
        endless = isinstance(value, int) and abs(value) > LARGEST
        shown = "a whole number of over 300 digits" if endless else repr(value)
        raise SajiError(f"{name} is {shown}; it must be {words}")
