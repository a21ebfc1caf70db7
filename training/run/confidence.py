"""How far an answer can be trusted: the temperature of the probabilities, and when to say "none of these"."""

from dataclasses import asdict, replace

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from runtime.evaluation import calibration_error
from runtime.spec import FAMILIARITY, ModelSpec, Rejection
from training.run.records import Calibration

WITHOUT = "max_probability"  # the rejection rule of a model without familiarity
KEPT = 0.95  # share of the rightly classified validation photos that the rejection rule must keep
FOLDS = 5
SEED = 0


def settled(
    spec: ModelSpec, outputs: np.ndarray, labels: np.ndarray, scenes: np.ndarray | None = None, fit: bool = True
) -> ModelSpec:
    """The spec with its temperature and rejection rule, and how they were found, from photos that trained nothing.

    `outputs` float `[N, …]` of the model, `labels` and `scenes` int `[N]`; without scenes each photo is its own. Where
    they lack the familiarity that the model has, as those of an earlier saji's folds do, probability decides.
    `validation["calibration"]` has the expected calibration error before and after; after is cross-fitted, no photo is
    scored at a temperature that its scene helped to fit. Without `fit` the temperature is 1. Without a single right
    answer there is nothing to set a threshold by, and no rejection rule.
    """
    temperature, validation, logits = 1.0, {**spec.validation}, spec.logits(outputs)
    if fit:
        temperature = fitted_temperature(logits, labels)
        calibration = Calibration(
            temperature=round(temperature, 4),
            ece_before=round(calibration_error(logits, labels), 4),
            ece_after=round(calibration_error(logits / cross_fitted(logits, labels, scenes)[:, None], labels), 4),
            folds=FOLDS,
        )
        validation |= {"calibration": asdict(calibration)}
    spec = replace(spec, temperature=temperature, validation=validation)
    right = outputs[logits.argmax(1) == labels]
    if not len(right):
        return spec
    rule = FAMILIARITY if spec.familiarity and outputs.shape[1] > len(spec.classes) else WITHOUT
    scores = replace(spec, temperature=temperature, rejection=Rejection(rule, 0.0)).score(right)
    return replace(spec, rejection=Rejection(rule, threshold_keeping(scores)))


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

    if n == 0:
        return 1.0
    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def cross_fitted(logits: np.ndarray, labels: np.ndarray, scenes: np.ndarray | None = None) -> np.ndarray:
    """For each photo the temperature fitted to the scenes of the other folds, none of them its own; float64 `[N]`."""
    scenes = np.arange(len(labels)) if scenes is None else scenes
    temperatures = np.ones(len(labels))
    distinct = np.unique(scenes)
    for fold in np.array_split(np.random.default_rng(SEED).permutation(distinct), min(FOLDS, len(distinct))):
        own = np.isin(scenes, fold)
        temperatures[own] = fitted_temperature(logits[~own], labels[~own])
    return temperatures


def threshold_keeping(scores: np.ndarray, share: float = KEPT) -> float:
    """What at least `share` of the scores `[N]` reach: as high as that goes, and halfway to the next lower score.

    At a score itself another order of sums would decide about its photo.
    """
    may_miss, ordered = int(len(scores) * (1 - share) + 1e-9), np.sort(scores)
    return float(ordered[max(may_miss - 1, 0) : may_miss + 1].mean())
