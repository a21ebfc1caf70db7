"""Do the tests notice when a line that decides is wrong? Each such line is changed by cosmic-ray, one change at a time.

All tests run once without a change, and coverage.py records which of them run which line, also in processes that they
start. A change is then shown to the quickest tests that run its line, `FEW` at most, which can only lower the score.
Tests that open a browser are left out, and the small network that the others share is trained once, without a change.
Tests that take far longer with a change than without are ended, which counts as noticed: some changes never end.
A change is made in a copy of the checkout, in artifacts/mutation/; what was interrupted goes on where it was, and all
is begun anew where a Python file has changed. A change that no test notices and that no test can, because nothing that
is promised differs, is listed with its reason in lab/mutation.toml.
"""

import argparse
import ast
import importlib.util
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.benchmark.rows import Row
from runtime.errors import Unavailable
from runtime.files import sha256_file, sha256_json
from runtime.terminal import say

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "artifacts" / "mutation"
CHECKOUT = FOLDER / "checkout"
PATIENCE = 4.0, 30.0  # times as long as without a change, and seconds on top: a busy machine has not noticed anything
FEW = 20, 10.0  # tests of a change, and the seconds that they take together
# Of the ways to change an operator one or two each: its opposite, and for a comparison its bound
_OPERATORS = "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul Pow_Mul LShift_RShift RShift_LShift BitAnd_BitOr"
_COMPARISONS = "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is"
_SPARED = "|".join(
    f"core/Replace{kind}Operator_(?!{wanted.replace(' ', '$|')}$)"
    for kind, wanted in (("Binary", _OPERATORS), ("Comparison", _COMPARISONS))
)
SLOW = ("browser", "page")  # fixtures of tests that take minutes
_DECIDE = ("export/parity.py", "export/precision.py", "training/photos/split.py", "training/run/confidence.py")
# A process that a test starts reads this, too, and pytest tells it in its environment which test that is
_RECORDING = f"""[run]
core = ctrace
parallel = true
sigterm = true
context = ${{PYTEST_CURRENT_TEST-}}
source =
    {CHECKOUT}/runtime
    {CHECKOUT}/export
    {CHECKOUT}/training
    {CHECKOUT}/tests
data_file = {FOLDER}/lines
disable_warnings = no-data-collected, module-not-measured, module-not-imported
"""
_PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-p", "lab.mutation"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which modules."""
    parser.add_argument("modules", nargs="*", help="such as runtime/choice.py; by default all that decide")
    parser.add_argument("--most", type=int, help="changes of each module, drawn by chance; by default all")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each module."""
    for package in ("cosmic_ray", "coverage"):
        if not importlib.util.find_spec(package):
            raise Unavailable(f"{package} is not installed; type: .venv/bin/pip install -e '.[mutation]'")
    # Bytecode is kept apart, for cosmic-ray forbids it, and PyTorch then takes seconds longer to start, each time
    kept = {"SAJI_MADE_ONCE": FOLDER / "made", "PYTHONPYCACHEPREFIX": FOLDER / "bytecode", "PYTHONPATH": CHECKOUT}
    os.environ.update({name: str(path) for name, path in kept.items()})
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    record = recorded()
    refused = []
    for module in arguments.modules or [*all_modules()]:
        try:
            yield tried(module, record, arguments.most)
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


@dataclass(frozen=True)
class Record:
    """The seconds of each test that passed without a change, and which of them run which line of which file."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, set[str]]]

    def tests(self, module: str, line: int, source: str) -> list[str]:
        """Those that a change of this line is shown to: they run it, or else what is nearest to it."""
        lines = self.lines.get(module, {})
        names = bound_at_import(source, line)
        if not names:
            found = lines.get(max((run for run in lines if run <= line), default=0), set())
        else:
            names = with_what_they_make(names, source)
            tests = [path for path in self.lines if path.startswith("tests/")]
            found = self._naming(names, [module, *tests]) or self._naming(names, list(self.lines))
        return self.few(found or set().union(*lines.values()))

    def few(self, tests: Iterable[str]) -> list[str]:
        """The quickest, at first one of each function; at least one."""
        turn, seconds, few = Counter[str](), 0.0, list[str]()

        def in_turn(test: str) -> int:
            turn[test.partition("[")[0]] += 1
            return turn[test.partition("[")[0]]

        for test in sorted(sorted(tests, key=lambda test: (self.seconds[test], test)), key=in_turn):
            if not few or (len(few) < FEW[0] and seconds + self.seconds[test] <= FEW[1]):
                few.append(test)
                seconds += self.seconds[test]
        return few

    def _naming(self, names: set[str], modules: list[str]) -> set[str]:
        """The tests that run a line with one of these names."""
        named, found = re.compile(rf"\b({'|'.join(names)})\b"), set[str]()
        for module in modules:
            text = (CHECKOUT / module).read_text(encoding="utf-8").splitlines()
            for line, tests in self.lines.get(module, {}).items():
                # Text that a test runs under a file's name may be longer than the file
                found |= tests if named.search("".join(text[line - 1 : line])) else set()
        return found


def bound_at_import(source: str, line: int) -> set[str]:
    """The names that a line outside functions gives to something; none inside, where a test is what runs it.

    A comment gives none either.
    """
    around = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    around = [node for node in around if node.lineno <= line <= (node.end_lineno or 0)]
    functions = [node for node in around if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    if not around or any(node.body[0].lineno <= line for node in functions):
        return set()
    if isinstance(around[-1], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {around[-1].name}
    return {node.id for node in ast.walk(around[-1]) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def with_what_they_make(names: set[str], source: str) -> set[str]:
    """Names that a module gives to something, and those that it gives to what is made of them, as a table of rows."""
    before: set[str] = set()
    while names != before:
        before, named = names, re.compile(rf"\b({'|'.join(names)})\b")
        lines = (number for number, line in enumerate(source.splitlines(), 1) if named.search(line))
        names = before.union(*(bound_at_import(source, line) for line in lines))
    return names


def recorded() -> Record:
    """A copy of the checkout, and what its tests run, anew where a Python file has changed."""
    listed = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    files = [name for name in names if name and (ROOT / name).is_file()]
    state = sha256_json({name: sha256_file(ROOT / name) for name in files if name.endswith(".py")})
    mark = FOLDER / "state"
    if fresh := not mark.is_file() or mark.read_text() != state:
        shutil.rmtree(FOLDER, ignore_errors=True)
    for name in files:  # each time, for a run that was killed leaves its change behind
        (CHECKOUT / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, CHECKOUT / name)
    if fresh:
        _record()
        mark.write_text(state)
    return _read_record()


def _record() -> None:
    """Run all tests once: the file `lines` then has who runs which line, and `tests` who passes in how long."""
    from coverage import Coverage

    settings = FOLDER / "coverage.ini"
    settings.write_text(_RECORDING, encoding="utf-8")
    say("all tests, once without a change; this takes minutes")
    line = [*_PYTEST, "-n", "2", "--dist", "loadfile", "-rp", "--durations=0", "--durations-min=0"]
    with (FOLDER / "tests").open("w", encoding="utf-8") as out:
        environ = {**os.environ, "COVERAGE_PROCESS_START": str(settings)}
        done = subprocess.run(line, cwd=CHECKOUT, env=environ, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    if done.returncode > 1:  # 1: some failed, which are shown no change
        raise Unavailable(f"the tests cannot be run; {out.name} has what pytest says; type: make test")
    parts = Coverage(config_file=str(settings))
    parts.combine()
    parts.save()


def _read_record() -> Record:
    from coverage import CoverageData

    said = (FOLDER / "tests").read_text(encoding="utf-8")
    seconds = dict.fromkeys(re.findall(r"^PASSED (.+)$", said, re.M), 0.0)
    for took, test in re.findall(r"^([\d.]+)s \w+ +(.+)$", said, re.M):
        if test in seconds:
            seconds[test] += float(took)
    data, lines = CoverageData(str(FOLDER / "lines")), dict[str, dict[int, set[str]]]()
    data.read()
    for path in data.measured_files():
        lines[Path(path).relative_to(CHECKOUT).as_posix()] = {
            line: tests
            for line, contexts in data.contexts_by_lineno(path).items()
            if (tests := {re.sub(r" \(\w+\)$", "", context) for context in contexts} & seconds.keys())
        }
    return Record(seconds, lines)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """As a plugin of pytest: leave out the tests that take minutes."""
    items[:] = [item for item in items if not set(SLOW) & set(getattr(item, "fixturenames", ()))]


def pytest_runtest_setup(item: Any) -> None:
    """As a plugin of pytest: what is run from here on is run by this test."""
    if "COVERAGE_PROCESS_START" in os.environ:
        from coverage import Coverage

        if recording := Coverage.current():
            recording.switch_context(item.nodeid)


def tried(module: str, record: Record, most: int | None = None) -> Row:
    """Make every change, or `most` of them, or those that are left, and count what the tests noticed."""
    if not record.lines.get(module):
        raise Unavailable(f"no test runs {module}; name another module")
    from cosmic_ray.commands import init
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.work_db import use_db

    source = (CHECKOUT / module).read_text(encoding="utf-8")
    with chdir(CHECKOUT), use_db(FOLDER / f"{module.replace('/', '.')}.sqlite") as database:
        if not database.num_work_items:
            init([Path(module)], database, {})
        items = _drawn(database.work_items, source)[:most]
        tests = {item.job_id: record.tests(module, item.mutations[0].start_pos[0], source) for item in items}
        results = dict(database.results)
        left = [item for item in items if item.job_id not in results]
        say(f"{module}: {len(left)} changes")
        limit = _limit(module, sorted({test for item in left for test in tests[item.job_id]})) if left else 0.0
        for item in left:
            results[item.job_id] = mutate_and_test(item.mutations, _command(tests[item.job_id]), limit)
            database.set_result(item.job_id, results[item.job_id])
    files = sorted({test.partition("::")[0] for few in tests.values() for test in few})
    return row_of(module, files, [results.get(item.job_id) for item in items]) | {"drawn": most is not None}


def _drawn(items: Iterable[Any], source: str) -> list[Any]:
    """The changes in an order of chance, the same each time, without those of decorators, which decide nothing."""
    lines = source.splitlines()
    wanted = sorted(
        (item for item in items
         if not re.match(_SPARED, item.mutations[0].operator_name)
         and not lines[item.mutations[0].start_pos[0] - 1].startswith("@")),
        key=lambda item: repr(item.mutations),
    )  # fmt: skip
    random.Random(0).shuffle(wanted)
    return wanted


def _limit(module: str, tests: list[str]) -> float:
    """The seconds that tests of one change may take: `PATIENCE` with all of them, which pass without a change."""
    from cosmic_ray.testing import run_tests

    started = time.perf_counter()
    outcome, said = run_tests(_command(tests), None)
    if outcome != "survived":
        last = (said.strip().splitlines() or ["without a word"])[-1][:200]
        raise Unavailable(f"its tests fail without a change ({last}); run the tests of {module} first")
    return PATIENCE[0] * (time.perf_counter() - started) + PATIENCE[1]


def _command(tests: list[str]) -> str:
    return shlex.join([*_PYTEST, "-x", "-n", "0", *tests])


def row_of(module: str, tests: list[str], results: list[Any]) -> Row:
    """The score: of the changes that some test could notice, the share that one did; the survivors by their lines."""
    judged = {(each["line"], each["change"]): each["reason"] for each in equivalents(module)}
    survived, done = [], 0
    for result in results:
        done += result is not None
        if result and result.test_outcome == "survived":
            survived.append(_change(result.diff))
    left = [change for change in survived if change not in judged]
    count = done - (len(survived) - len(left))
    return {
        "experiment": "mutation",
        "module": module,
        "tests": tests,
        "mutants": len(results),
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
