"""Two ways to do the same work, by turns and each in its own process: the ratio, pair by pair."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from runtime import environment
from runtime.errors import SajiError


def compare(
    claim: str,
    ours: list[str],
    theirs: list[str],
    target: float,
    rounds: int,
    measure: str,
    less_is_better: bool = False,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Run both commands `rounds` times by turns and return a row with the ratio that says how much better ours is.

    `measure` is "wall" (seconds of the whole process) or the key of a number in the JSON on the last line of stdout.
    A first pair is run and not counted, so that both find warm file caches. Raises SajiError where a run fails.
    """
    if rounds < 1:
        raise SajiError(f"--rounds {rounds} would count no pair; ask for at least 1, such as 5")
    values: list[tuple[float, float]] = []
    said: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for turn in range(rounds + 1):
        both = _told(ours), _told(theirs)
        pair = both[0][measure], both[1][measure]
        say(f"{claim}: {'warm-up' if turn == 0 else f'round {turn}'}: {pair[0]:.3g} against {pair[1]:.3g}")
        if turn:
            values.append(pair)
            said.append(both)
    ratios = sorted(b / a if less_is_better else a / b for a, b in values)
    return {
        "experiment": "ratio",
        "claim": claim,
        "target": target,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(ratios[0], 3),
        "ratio_high": round(ratios[-1], 3),
        "measure": "seconds of the whole process" if measure == "wall" else measure,
        "ours": [round(a, 4) for a, _ in values],
        "theirs": [round(b, 4) for _, b in values],
        "rounds": rounds,
        "said": said,
        **environment.stamp(),
    }


def _told(command: list[str]) -> dict[str, Any]:
    """The JSON on the last line of stdout, if it is any, and under "wall" the seconds that the process took."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise SajiError(f"the command to measure failed with status {done.returncode}: {last}")
    last = (done.stdout.splitlines() or [""])[-1]
    return {**(json.loads(last) if last.startswith("{") else {}), "wall": seconds}
