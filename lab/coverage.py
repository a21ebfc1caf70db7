"""Does the interval that saji prints from some photos hold for others?

The photos are cut into folds again and again, by scene. Each time a logistic regression on the features of the offline
backbone learns all folds but one and is asked about that one. The interval of 95 % that saji prints from one fold is to
contain the accuracy on the other folds, whose photos chose nothing of it either. A regression instead of a network, for
a network takes an hour a time; those that `python -m lab study` trained are in its rows.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from runtime.benchmark.rows import Row
from training.photos.dataset import load_data
from training.photos.features import OFFLINE
from training.photos.split import folds
from training.photos.suspects import LOOSENESS, features
from training.progress import bar
from training.recipe import DEFAULTS
from training.run.records import Share


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The photos, and how often to cut them."""
    parser.add_argument("data", type=Path, help="a folder per class, or a CSV with filename,label")
    parser.add_argument("--folds", type=int, default=3, help="parts (3)")
    parser.add_argument("--repeats", type=int, default=100, help="cuts, each with a seed of its own (100)")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """One row over all cuts."""
    k = arguments.folds
    data = load_data(arguments.data, DEFAULTS.validation_share, 0, True, arguments.out / "cache", bar)
    vectors = features(OFFLINE, data.photos, bar)
    held = []
    for seed in bar(range(arguments.repeats), "cutting", arguments.repeats):
        parts = [part.val for part in folds(data, k, seed)]
        hits = np.zeros(len(vectors), bool)
        for own in parts:
            others = np.setdiff1d(np.arange(len(vectors)), own)
            with threadpool_limits(1):  # the matrices are small: threads would wait for each other
                probe = LogisticRegression(C=LOOSENESS, max_iter=1000).fit(vectors[others], data.labels[others])
            hits[own] = probe.predict(vectors[own]) == data.labels[own]
        held += [contains(hits, data.scenes, own) for own in parts]
    yield {
        "experiment": "coverage",
        "data_fingerprint": data.fingerprint,
        "photos": len(vectors),
        "scenes": len(np.unique(data.scenes)),
        "folds": k,
        "repeats": arguments.repeats,
        "accuracy": round(float(hits.mean()), 4),
        "contained": round(float(np.mean(held)), 4),
    }


def contains(hits: np.ndarray, scenes: np.ndarray, own: np.ndarray) -> bool:
    """Whether the interval from the photos at `own` contains the share of hits among all others; bool `[N]`."""
    low, high = Share.of(hits[own], scenes[own]).interval
    return low <= float(np.delete(hits, own).mean()) <= high
