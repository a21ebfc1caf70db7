"""TensorRT's Python module in the shape of one release: exactly its public names, whether they work here or not.

Names of TensorRT 10.14 and 11.4 are those of `tests/tensorrt_names.json`, those of TensorRT-RTX 1.7 of
`rtx_names.json`, which `tests/twin/record_names.py` writes from the installed wheel. Numbers of enumerations are
RTX's where it has the name; others are counted from 1000, nobody may rely on them.
"""

import functools
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from saji_twin import misuse

HERE = Path(__file__).parent
FILES = (HERE / "rtx_names.json", HERE.parents[2] / "tensorrt_names.json")
ALIASES = {
    **{"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8", "int32": "INT32", "int64": "INT64"},
    **{"bool": "BOOL", "uint8": "UINT8", "fp8": "FP8", "int4": "INT4", "fp4": "FP4", "e8m0": "E8M0"},
}
BITS = {"FLOAT": 32, "INT32": 32, "INT64": 64, "HALF": 16, "BF16": 16, "INT4": 4, "FP4": 4}


@functools.cache
def recorded() -> dict[str, dict[str, Any]]:
    """By version: names by class, those of the module under "", and for RTX the numbers of enumerations."""
    return {key: value for file in FILES for key, value in json.loads(file.read_text(encoding="utf-8")).items()}


class Dims(tuple):
    """Sizes of a tensor, -1 where they are not known."""

    MAX_DIMS = 8

    def __new__(cls, shape: Any = ()) -> "Dims":
        return super().__new__(cls, (int(size) for size in shape))


class _Absent:
    """A name that this release does not have, on a class that has it in another."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, thing: Any, owner: type) -> Any:
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}")

    def __set__(self, thing: Any, value: Any) -> None:
        raise AttributeError(f"{type(thing).__name__!r} object has no attribute {self.name!r}")


class _NotDoubled(_Absent):
    """A name of this release that the twin cannot do."""

    def __get__(self, thing: Any, owner: type) -> Any:
        if thing is None:
            return self
        misuse(f"the twin does not double {owner.__name__}.{self.name}")

    def __set__(self, thing: Any, value: Any) -> None:
        misuse(f"the twin does not double {type(thing).__name__}.{self.name}")


class Bound:
    """What objects of TensorRT have in common: their release, and no attribute that is not theirs."""

    _trt: Any  # the module's classes by their names
    _names: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        ours = type(self).__dict__.get("_names")  # classes that users derive may hold anything
        if ours is not None and name[0] != "_" and name not in ours:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        super().__setattr__(name, value)


def enumeration(name: str, members: dict[str, int], module: str) -> type:
    """An enumeration as pybind11 makes them: no numbers, but with one each."""

    class Member:
        def __init__(self, value: int) -> None:
            try:
                self.name, self.value = next((n, v) for n, v in members.items() if v == int(value))
            except StopIteration:
                raise ValueError(f"{value} is no {name}") from None

        def __int__(self) -> int:
            return self.value

        __index__ = __hash__ = __int__

        def __eq__(self, other: object) -> bool:
            return type(other) is type(self) and other.value == self.value

        def __str__(self) -> str:
            return f"{name}.{self.name}"

        def __repr__(self) -> str:
            return f"<{name}.{self.name}: {self.value}>"

    Member.__name__ = Member.__qualname__ = name
    Member.__module__ = module
    for key, value in members.items():
        setattr(Member, key, Member(value))
    Member.__members__ = {key: getattr(Member, key) for key in members}
    if name == "DataType":
        Member.itemsize = property(lambda member: max(1, BITS.get(member.name, 8) // 8))
    return Member


def _numbered(name: str, members: list[str]) -> dict[str, int]:
    known = recorded()["1.7.1.116"]["enums"].get(name, {})
    return {member: known.get(member, 1000 + place) for place, member in enumerate(members)}


def _shaped(implementation: type, names: list[str], bases: tuple[type, ...], trt: Any) -> type:
    """A class of the twin cut to what this release has; what it has beyond stands there and complains when used."""
    public = {name for name in dir(implementation) if name[0] != "_"} - set(dir(bytes))
    members: dict[str, Any] = {name: _Absent(name) for name in public - set(names)}
    members |= {name: _NotDoubled(name) for name in set(names) - public}
    members |= {"_names": frozenset(names), "_trt": trt, "__module__": trt.__name__}
    return type(implementation.__name__, (implementation, *bases), members)


def fill(module: ModuleType, version: str) -> None:
    """Give a module the names of a release."""
    from saji_twin import build, engine, inspector, network

    names: dict[str, list[str]] = recorded()[version]["names"]
    trt = SimpleNamespace(__name__=module.__name__, __version__=version)
    for name in names[""]:
        if name in ALIASES or name not in names or not {"name", "value"} <= set(names[name]):
            continue
        members = [member for member in names[name] if member not in ("name", "value", "itemsize")]
        setattr(trt, name, enumeration(name, _numbered(name, members), module.__name__))
    severity = ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"]
    trt.Severity = enumeration("Severity", _numbered("Severity", severity), module.__name__)
    for alias, kind in ALIASES.items():
        setattr(trt, alias, getattr(trt.DataType, kind))
    trt.Dims, trt.volume = Dims, network.volume
    for implementation in [*network.CLASSES, *build.CLASSES, *inspector.CLASSES, *engine.CLASSES]:
        name = implementation.__name__
        if name in names:
            bases = tuple(
                getattr(trt, base.__name__) for base in implementation.__bases__ if hasattr(trt, base.__name__)
            )
            setattr(trt, name, _shaped(implementation, names[name], bases, trt))
    for logger in (trt.ILogger, trt.Logger):  # pybind11 exports the severities into the class
        logger.Severity = trt.Severity
        for name in severity:
            setattr(logger, name, getattr(trt.Severity, name))
    for name in names[""]:
        setattr(module, name, getattr(trt, name, None) or _undoubled(name))
    module.__version__ = version  # type: ignore[attr-defined]


def _undoubled(name: str) -> Any:
    """A class or function of this release that the twin cannot do."""

    def complain(*arguments: Any, **named: Any) -> None:
        misuse(f"the twin does not double {name}")

    return type(name, (), {"__init__": complain}) if name[0].isupper() else complain
