"""Draw docs/gate.svg, healthy and broken files by their logit shift, from results/mutants.jsonl.

The sha256 of the rows is kept in the picture; a test fails when it is not that of the rows any more.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lab import mutants
from runtime.benchmark.rows import read_rows
from runtime.evaluation import GATES
from runtime.files import sha256_file

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "results" / "mutants.jsonl"


def main() -> None:
    """One line of points for each precision: healthy files above, broken ones below, the gate's bound across."""
    trials = [trial for trial in mutants.trials(read_rows(ROWS)) if trial["shift"] is not None]
    scatter = np.random.default_rng(0)
    figure, axes = plt.subplots(figsize=(8, 4))
    for place, (precision, gate) in enumerate(GATES.items()):
        for healthy, colour, height in ((True, "#2a7f62", 0.15), (False, "#c0392b", -0.15)):
            alike = [t for t in trials if (t["name"] in mutants.HEALTHY, t["precision"]) == (healthy, precision)]
            shifts = [t["shift"] for t in alike]
            heights = place + height + scatter.uniform(-0.1, 0.1, len(shifts))
            label = ("healthy" if healthy else "broken") if place == 0 else None
            axes.scatter(np.maximum(shifts, 1e-7), heights, s=12, color=colour, alpha=0.6, label=label)
        axes.plot([gate.shift] * 2, [place - 0.4, place + 0.4], color="black", label="bound" if place == 0 else None)
    axes.set_xscale("log")
    axes.set_yticks(range(len(GATES)), list(GATES))
    axes.invert_yaxis()
    axes.set_xlabel("logit shift (RMS of the change over RMS of the reference)")
    axes.legend(loc="lower left")
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "saji"
    figure.savefig(ROOT / "docs" / "gate.svg", metadata={"Date": None, "Description": sha256_file(ROWS)})


if __name__ == "__main__":
    main()
