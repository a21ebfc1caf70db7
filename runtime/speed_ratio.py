"""Is one candidate faster than another? A ratio over interleaved rounds, with an interval and a word for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Candidates within 3 % of each other tie: nobody would notice, and another run could turn them round
TIE = 0.03
RESAMPLES = 4000


@dataclass(frozen=True)
class Ratio:
    """How many times as long the second takes as the first, with a 95 % interval, and what that says of the first.

    `verdict` is "faster", "slower", "tie" (the whole interval lies within TIE of 1) or "inconclusive".
    """

    ratio: float
    low: float
    high: float
    verdict: str

    def __str__(self) -> str:
        """For people, e.g. "faster, 1.84× (1.79–1.90)"."""
        return f"{self.verdict}, {self.ratio:.2f}× ({self.low:.2f}–{self.high:.2f})"


def compared(first: Sequence[float], second: Sequence[float], paired: bool = True) -> Ratio:
    """The ratio of two candidates' milliseconds, second over first.

    Each sequence holds one figure a round, such as the median of that round's calls. `paired` are those that ran in the
    same rounds, of which there must be as many: what disturbed a round disturbed both. The interval is the percentile
    bootstrap over rounds (Efron and Tibshirani 1993) of the median of log ratios.
    """
    lots = np.random.default_rng(0)
    a, b = np.log(np.asarray(first, float)), np.log(np.asarray(second, float))
    if paired:
        drawn = lots.integers(0, len(a), (RESAMPLES, len(a)))
        logs, middle = np.median((b - a)[drawn], axis=1), float(np.median(b - a))
    else:
        ours, theirs = (np.median(x[lots.integers(0, len(x), (RESAMPLES, len(x)))], axis=1) for x in (a, b))
        logs, middle = theirs - ours, float(np.median(b) - np.median(a))
    low, high = (float(math.exp(bound)) for bound in np.quantile(logs, (0.025, 0.975)))
    if min(len(a), len(b)) < 5:  # of fewer rounds the bootstrap sees too little of what may happen
        return Ratio(math.exp(middle), low, high, "inconclusive")
    if low >= 1 / (1 + TIE) and high <= 1 + TIE:
        verdict = "tie"
    else:
        verdict = "faster" if low > 1 else "slower" if high < 1 else "inconclusive"
    return Ratio(math.exp(middle), low, high, verdict)


def percentile(samples: Sequence[float], percent: float) -> float | None:
    """A percentile of the samples, or None where they are too few to bound it from both sides.

    The order-statistics interval of a percentile has an upper end only if the largest sample exceeds it with 97.5 %
    confidence: `(percent / 100) ** n <= 0.025`, 36 samples for p90, 72 for p95, 368 for p99. That bounds the figure; to
    know it within a twentieth of the tail at 99 % confidence, MLPerf asks for 24,576, 57,344 and 270,336 queries.
    """
    if len(samples) < samples_needed(percent):
        return None
    return float(np.quantile(np.asarray(samples, float), percent / 100))


def samples_needed(percent: float) -> int:
    """The fewest independent samples that bound a percentile from both sides with 95 % confidence."""
    tail = min(percent, 100 - percent) / 100
    return math.ceil(math.log(0.025) / math.log(1 - tail))
