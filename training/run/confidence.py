"""How far an answer can be trusted: the temperature of the probabilities, and when to say "none of these"."""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from runtime.evaluation import calibration_error
from runtime.spec import RULES, ModelSpec, Rejection

RULE = "max_probability"  # the rejection rule that ships
KEPT = 0.95  # share of the rightly classified validation photos that the rejection rule must keep
FOLDS = 5
SEED = 0


def settled(spec: ModelSpec, logits: np.ndarray, labels: np.ndarray) -> ModelSpec:
    """The spec with its temperature and rejection rule, and how they were found, from validation photos.

    `logits` float `[N, C]` of the FP32 checkpoint, `labels` int `[N]`. `validation["calibration"]` has the expected
    calibration error before and after; after is cross-fitted, no photo is scored at a temperature it helped to fit.
    Without a single right answer there is nothing to set a threshold by, and no rejection rule.
    """
    temperature = fitted_temperature(logits, labels)
    calibration: dict[str, Any] = {
        "temperature": round(temperature, 4),
        "ece_before": round(calibration_error(logits, labels), 4),
        "ece_after": round(calibration_error(logits / cross_fitted(logits, labels)[:, None], labels), 4),
        "folds": FOLDS,
    }
    spec = replace(spec, temperature=temperature, validation={**spec.validation, "calibration": calibration})
    right = logits[logits.argmax(1) == labels]
    if not len(right):
        return spec
    threshold = threshold_keeping(RULES[RULE](np.asarray(right, np.float64) / temperature, temperature))
    return replace(spec, rejection=Rejection(RULE, threshold))


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that gives the labels their highest likelihood under softmax(logits / T) (Guo et al. 2017).

    Targets are Platt's (1999): 1 − 1/(n + 2) for the label, the rest shared by the other classes. Otherwise photos
    that are all right would be best explained by T → 0, and a few of them would make every answer certain.
    """
    n, classes = logits.shape
    miss = 1 / (n + 2)
    targets = np.full((n, classes), miss / max(1, classes - 1))
    targets[np.arange(n), labels] = 1 - miss

    def loss(log_temperature: float) -> float:
        return -float((targets * log_softmax(logits / np.exp(log_temperature), axis=1)).sum())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded") if n else None
    return float(np.exp(found.x)) if found else 1.0


def cross_fitted(logits: np.ndarray, labels: np.ndarray, folds: int = FOLDS, seed: int = SEED) -> np.ndarray:
    """For each photo the temperature fitted to the photos of the other folds; float64 `[N]`."""
    temperatures = np.ones(len(labels))
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(labels)), folds):
        others = np.setdiff1d(np.arange(len(labels)), fold)
        temperatures[fold] = fitted_temperature(logits[others], labels[others])
    return temperatures


def threshold_keeping(scores: np.ndarray, share: float = KEPT) -> float:
    """The highest of the scores `[N]` that at least `share` of them reach."""
    return float(np.quantile(scores, 1 - share, method="lower"))
