"""Do the tests notice when a line that decides is wrong? Each such line is changed by cosmic-ray, one change at a time.

The tests are those files that import the module, the nearest where they are many, which can only lower the score; tests
that open a browser are left out, and the small network that the others share is trained once, without a change. Tests
that take far longer with a change than without are ended, which counts as noticed: some changes never end.
A change is made in a copy of the checkout, in artifacts/mutation/; what was interrupted goes on where it was, and a
module is begun anew where it or its tests have changed. A change that no test notices and that no test can, because
nothing that is promised differs, is listed with its reason in lab/mutation.toml.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.benchmark.rows import Row
from runtime.errors import Unavailable
from runtime.files import sha256_file, sha256_json
from runtime.terminal import say

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "artifacts" / "mutation"
PATIENCE = 4.0, 30.0  # times as long as without a change, and seconds on top: a busy machine has not noticed anything
NEAREST = 4  # files of tests
# Of the ways to change an operator one or two each: its opposite, and for a comparison its bound
_OPERATORS = "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul Pow_Mul LShift_RShift RShift_LShift BitAnd_BitOr"
_COMPARISONS = "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is"
_SPARED = [
    f"core/Replace{kind}Operator_(?!{wanted.replace(' ', '$|')}$)"
    for kind, wanted in (("Binary", _OPERATORS), ("Comparison", _COMPARISONS))
]
SLOW = ("browser", "page")  # fixtures of tests that take minutes
_DECIDE = ("export/parity.py", "export/precision.py", "training/photos/split.py", "training/run/confidence.py")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which modules."""
    parser.add_argument("modules", nargs="*", help="such as runtime/choice.py; by default all that decide")
    parser.add_argument("--most", type=int, help="changes of each module, drawn by chance; by default all")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each module."""
    if not importlib.util.find_spec("cosmic_ray"):
        raise Unavailable("cosmic-ray is not installed; type: .venv/bin/pip install -e '.[mutation]'")
    shutil.rmtree(FOLDER / "made", ignore_errors=True)
    refused = []
    for module in arguments.modules or [*all_modules()]:
        try:
            yield tried(module, arguments.most)
        except Unavailable as error:  # costs its module, not the hours of the others
            refused.append(f"{module}: {error}")
    if refused:
        raise Unavailable("; ".join(refused))


def all_modules() -> Iterator[str]:
    """What decides whether an answer is right: runtime without the benchmark's tables, and some of the other stages."""
    for path in sorted((ROOT / "runtime").rglob("*.py")):
        if path.stat().st_size and path.name != "table.py":
            yield path.relative_to(ROOT).as_posix()
    yield from _DECIDE


def tests_of(module: str) -> list[str]:
    """The test files that import a module, or else those of the modules that do; of many the `NEAREST`."""
    package, name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".").rpartition(".")[::2]
    imports = re.compile(rf"from {package} import [^\n]*\b{name}\b|\b{package}\.{name}\b")

    def importing(folder: str, pattern: str) -> list[str]:
        files = sorted((ROOT / folder).rglob(pattern))
        return [f.relative_to(ROOT).as_posix() for f in files if imports.search(f.read_text(encoding="utf-8"))]

    def distance(test: str) -> tuple[bool, int]:
        return Path(test).stem != f"test_{name}", -(ROOT / test).read_text(encoding="utf-8").count(name)

    own = importing("tests", "test_*.py")
    own = own or sorted({test for each in importing("runtime", "*.py") if each != module for test in tests_of(each)})
    return sorted(own, key=distance)[:NEAREST]


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """As a plugin of pytest: leave out the tests that take minutes."""
    items[:] = [item for item in items if not set(SLOW) & set(getattr(item, "fixturenames", ()))]


def tried(module: str, most: int | None = None) -> Row:
    """Make every change, or `most` of them, or those that are left, and count what the tests noticed."""
    tests = tests_of(module)
    if not tests:
        raise Unavailable(f"no test imports {module}; name another module")
    folder = FOLDER / module.removesuffix(".py").replace("/", ".")
    session = _prepared(folder, module, tests, most)
    say(f"{module}: {', '.join(tests)}")
    _cosmic_ray(folder / "checkout", "exec", folder / "settings.toml", session)
    dumped = _cosmic_ray(folder / "checkout", "dump", session).splitlines()
    return row_of(module, tests, [json.loads(line) for line in dumped if line.strip()]) | {"drawn": most is not None}


def row_of(module: str, tests: list[str], work: list[Any]) -> Row:
    """The score: of the changes that some test could notice, the share that one did; the survivors by their lines."""
    judged = {(each["line"], each["change"]): each["reason"] for each in equivalents(module)}
    survived, done = [], 0
    work = [(item, result) for item, result in work if not result or result["worker_outcome"] != "skipped"]
    for _, result in work:
        done += result is not None
        if result and result["test_outcome"] == "survived":
            survived.append(_change(result["diff"]))
    left = [change for change in survived if change not in judged]
    count = done - (len(survived) - len(left))
    return {
        "experiment": "mutation",
        "module": module,
        "tests": tests,
        "mutants": len(work),
        "tried": done,
        "score": round(1 - len(left) / count, 4) if count else None,
        "survivors": [{"line": line, "change": change} for line, change in left],
        "equivalent": [{"line": line, "change": change, "reason": judged[line, change]}
                       for line, change in survived if (line, change) in judged],
    }  # fmt: skip


def equivalents(module: str) -> list[dict[str, str]]:
    """The changes of a module that no test can notice, each with its line, what it becomes, and the reason."""
    text = (ROOT / "lab" / "mutation.toml").read_text(encoding="utf-8")
    return tomllib.loads(text).get("equivalent", {}).get(module, [])


def _change(diff: str) -> tuple[str, str]:
    """The line that was changed and what it became, without its indentation."""
    before = [line[1:].strip() for line in diff.splitlines() if line.startswith("-") and not line.startswith("---")]
    after = [line[1:].strip() for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    return " ".join(before), " ".join(after)


def _prepared(folder: Path, module: str, tests: list[str], most: int | None) -> Path:
    """The session's file beside a copy of the checkout, made anew where the module or its tests have changed."""
    state = sha256_json({name: sha256_file(ROOT / name) for name in (module, *tests)} | {"most": most})
    mark, session = folder / "state", folder / "session.sqlite"
    if mark.is_file() and mark.read_text() == state:
        return session
    shutil.rmtree(folder, ignore_errors=True)
    names = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "checkout" / name)
    how = "-x -q -n 0 -p no:cacheprovider --hypothesis-seed=0 -p lab.mutation"
    pytest = f"{sys.executable} -m pytest {how} {' '.join(tests)}"
    settings = folder / "settings.toml"
    _write_settings(settings, module, pytest, 3600.0)
    started = time.perf_counter()
    _cosmic_ray(folder / "checkout", "baseline", settings)
    times, more = PATIENCE
    _write_settings(settings, module, pytest, times * (time.perf_counter() - started) + more)
    _cosmic_ray(folder / "checkout", "init", settings, session)
    _cosmic_ray(folder / "checkout", session, settings, program="tools.filters.operators_filter")
    _draw(session, most)
    mark.write_text(state)
    return session


def _write_settings(path: Path, module: str, pytest: str, limit: float) -> None:
    """What cosmic-ray is asked; `limit` in seconds, for the tests with one change."""
    settings = {"module-path": module, "timeout": limit, "excluded-modules": [], "test-command": pytest}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    lines += ["[cosmic-ray.distributor]", 'name = "local"', "[cosmic-ray.filters.operators-filter]"]
    text = "\n".join(["[cosmic-ray]", *lines, f"exclude-operators = {json.dumps(_SPARED)}", ""])
    path.write_text(text, encoding="utf-8")


def _draw(session: Path, most: int | None) -> None:
    """Skip all but `most` changes, the same ones each time, and those of decorators, which decide nothing."""
    from cosmic_ray.work_db import use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    def decorates(item: Any) -> bool:
        change = item.mutations[0]
        line = (session.parent / "checkout" / change.module_path).read_text(encoding="utf-8").splitlines()
        return line[change.start_pos[0] - 1].startswith("@")

    with use_db(session) as database:
        items = sorted(database.pending_work_items, key=lambda item: repr(item.mutations))
        random.Random(0).shuffle(items)
        items.sort(key=decorates)
        wanted = sum(not decorates(item) for item in items)
        for item in items[min(wanted, wanted if most is None else most) :]:
            database.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))


def _cosmic_ray(checkout: Path, *words: str | Path, program: str = "cli") -> str:
    """What a command of cosmic-ray prints. Raises Unavailable where it fails: the baseline, where tests fail."""
    line = [sys.executable, "-m", f"cosmic_ray.{program}", *map(str, words)]
    once = {**os.environ, "SAJI_MADE_ONCE": str(FOLDER / "made"), "PYTHONPATH": str(checkout)}
    done = subprocess.run(line, cwd=checkout, env=once, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["without a word"]
        raise Unavailable(f"cosmic-ray {words[0]} failed ({said[-1][:200]}); run the tests of the module first")
    return done.stdout
