"""Whether a foreign network's logits are of the classes that --classes names: by photos and by its own metadata."""

import ast
from collections import Counter

import numpy as np
import onnx

from export.model import Say
from export.settings import Foreign
from runtime.errors import SajiError, some_of
from runtime.evaluation import accuracy, mcnemar_p

SHUFFLES = 1000  # of the labels: how often answers are right that know nothing of the photos
RARELY = 1 / SHUFFLES  # as often a network with the right names may be refused
ENOUGH = 20  # photos: fewer tell too little to speak of it
NAMED = 3  # classes in a sentence


def require_own_names(model: onnx.ModelProto, classes: tuple[str, ...], foreign: Foreign) -> None:
    """Raise SajiError where the file's metadata has a class at another place; Ultralytics writes `{0: 'tench', …}`."""
    written = {entry.key: entry.value for entry in model.metadata_props}.get("names", "")
    try:
        own = ast.literal_eval(written)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # text of another kind
        return
    own = dict(enumerate(own)) if isinstance(own, list | tuple) else own if isinstance(own, dict) else {}
    names = {place: name for place, name in own.items() if type(place) is int and isinstance(name, str)}
    once = Counter(names.values())  # two of one name are told apart in --classes, in whatever way
    for place, name in names.items():
        if once[name] == 1 and name in classes and place in range(len(classes)) and classes[place] != name:
            raise SajiError(
                f"{foreign.classes} calls logit {place} {classes[place]!r}, and {foreign.onnx} itself, in its "
                f"metadata, {name!r}; give the names in the order of the logits"
            )


def require_names(logits: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], foreign: Foreign, say: Say) -> None:
    """Raise SajiError where photos prove that logits `[N, C]` are of other classes, or are worse than chance.

    Chance is how often the answers fit the labels `[N]` shuffled. What is no better is said: a weak network may be so,
    and one that gets photos normalised otherwise than it learnt.
    """
    answers, right, lots = logits.argmax(1), accuracy(logits, labels), np.random.default_rng(0)
    shuffled = [float((lots.permutation(labels) == answers).mean()) for _ in range(SHUFFLES)]
    one_class = bool((labels == labels[0]).all())  # of which each shuffle is the same
    knows = right > (0.5 if one_class else np.quantile(shuffled, 0.95))
    if others := _others(answers, labels, knows):
        told = [
            f"logit {answer}, which --classes calls {classes[answer]!r}, answers for photos of {classes[label]!r}"
            for label, answer in sorted(others.items(), key=lambda pair: pair[1])
        ]
        raise SajiError(
            f"{foreign.classes} is not in the order of the logits: {some_of(told, NAMED)}; order the names "
            f"so, or look at --channels and at the labels in {foreign.data}, if it is those that are wrong"
        )
    found = f"{foreign.onnx} is right about {right:.3f} of {len(labels)} photos, by chance {np.mean(shuffled):.3f}"
    causes = "the order of the names in --classes, --channels, --mean, --std, --scale and --resize"
    if right < min(shuffled):
        raise SajiError(f"{found}, so that something is wrong; look at {causes}, and at the labels of the photos")
    if not knows and len(labels) >= ENOUGH:
        say(f"these photos do not show that it knows its classes: {found}; look at {causes}")


def _others(answers: np.ndarray, labels: np.ndarray, knows: bool) -> dict[int, int]:
    """Which other logit answers for the photos of a label: for most of them, and for no other label.

    They are looked for in every other photo and held against the rest; empty where they are not better there for sure
    (McNemar), or where it is only one. Where a network knows its classes, the label of that logit has to be answered by
    another, too: photos of cups may be those of mugs to it.
    """
    by_label = np.argsort(labels, kind="stable")
    chosen, rest = by_label[::2], by_label[1::2]
    usual = dict[int, int]()
    for label in map(int, np.unique(labels[chosen])):
        counts = np.bincount(answers[chosen][labels[chosen] == label])
        if 2 * counts.max() > counts.sum():
            usual[label] = int(counts.argmax())
    times = Counter(usual.values())
    others = {label: answer for label, answer in usual.items() if answer != label and times[answer] == 1}
    if knows:
        others = {label: answer for label, answer in others.items() if answer in others}
    renamed = {answer: label for label, answer in others.items()}
    then = np.array([renamed.get(int(answer), int(answer)) for answer in answers[rest]]) == labels[rest]
    now = answers[rest] == labels[rest]
    won, lost = int((then & ~now).sum()), int((now & ~then).sum())
    return others if len(others) > 1 and won > lost and mcnemar_p(lost, won) < RARELY else {}
