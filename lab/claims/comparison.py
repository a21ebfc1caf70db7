"""Two ways to do the same work, one after the other and each in its own process: the ratio, pair by pair."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtime.benchmark.rows import Row
from runtime.errors import SajiError
from runtime.terminal import say

WALL = "wall"  # as a measure: seconds of the whole process


@dataclass(frozen=True)
class Claim:
    """`ours` is at least `target` times as good as `theirs` by `measure`.

    Both are the arguments of a Python process whose last line on stdout is JSON, see `in_process`. `measure` is the key
    of a number in it, or WALL.
    """

    text: str
    target: float
    ours: list[str]
    theirs: list[str]
    measure: str = "per_second"
    less_is_better: bool = False


def in_process(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """The arguments of a Python process that prints the JSON of `function(*arguments)`.

    What the arguments look like in Python must be known where the function is defined.
    """
    call = f"{function.__name__}({', '.join(map(repr, arguments))})"
    return ["-c", f"import json; from {function.__module__} import *; print(json.dumps({call}))"]


def compare(claim: Claim, rounds: int) -> Row:
    """Run both processes `rounds` times, one after the other; the row says by which ratio ours is better.

    A first pair is run and not counted, so that both find warm file caches. Raises SajiError where a run fails.
    """
    if rounds < 1:
        raise SajiError(f"--rounds {rounds} would count no pair; ask for at least 1, such as 5")
    results: list[tuple[Row, Row]] = []
    for number in range(rounds + 1):
        pair = _result(claim.ours), _result(claim.theirs)
        ours, theirs = (result[claim.measure] for result in pair)
        say(f"{claim.text}: {f'round {number}' if number else 'warm-up'}: {ours:.3g} against {theirs:.3g}")
        if number:
            results.append(pair)
    values = [(ours[claim.measure], theirs[claim.measure]) for ours, theirs in results]
    ratios = sorted(b / a if claim.less_is_better else a / b for a, b in values)
    return {
        "experiment": "ratio",
        "claim": claim.text,
        "target": claim.target,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(ratios[0], 3),
        "ratio_high": round(ratios[-1], 3),
        "measure": "seconds of the whole process" if claim.measure == WALL else claim.measure,
        "ours": [round(a, 4) for a, _ in values],
        "theirs": [round(b, 4) for _, b in values],
        "rounds": rounds,
        "said": results,
    }


def _result(command: list[str]) -> dict[str, Any]:
    """The JSON on the last line of stdout, and under WALL the seconds that the process took."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise SajiError(f"the process to measure failed with status {done.returncode}: {last}")
    return {**json.loads(done.stdout.splitlines()[-1]), WALL: seconds}
