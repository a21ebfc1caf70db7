"""About the model: what it learned from, how right it is, how far to trust it, and what it is not for."""

from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path, PureWindowsPath
from typing import Any

import gradio as gr
import numpy as np

from demo.page.markup import dish_names, table
from demo.page.texts import language_of, say
from demo.page.work import QUIET
from demo.service.engine import Engine
from demo.service.queue import Serving
from runtime.classifier import Classifier
from runtime.errors import BadModel, SajiError
from runtime.evaluation import PHOTOS, confusion, was_asked
from runtime.receipt import Receipt
from runtime.spec import ModelSpec

MOST_CLASSES = 30  # above it a confusion matrix is no picture any more, and the commonest confusions are listed
MOST_CONFUSIONS = 20


def build(serving: Serving, opened: Callable[..., Any]) -> None:
    """The model card of what serves when the tab is opened."""
    card = gr.HTML()

    def fill(request: gr.Request) -> str:
        return card_of(serving.engine, serving.path.parent, language_of(request))

    opened(fill, None, card, **QUIET)


def card_of(engine: Engine, out: Path, language: str) -> str:
    """The card as HTML; what the model or its folder below `out` does not tell is left out."""
    classifier, spec = engine.classifier, engine.classifier.spec
    names = [dish_names(classifier, language)[name] for name in spec.classes]
    parts = [
        ("model", table([], _model(engine, language))),
        ("data", table([], _data(spec, language))),
        ("recipe", _recipe(spec, language)),
        ("accuracy_column", _accuracy(classifier, language)),
        ("confusions", _confusions(engine, out, names, language)),
        ("calibration", _calibration(spec, language)),
        ("rejection", f"<p>{_rejection(spec, language)}</p>"),
        ("limits", _limits(spec, language)),
    ]
    sections = "".join(f"<section><h2>{say(language, title)}</h2>{body}</section>" for title, body in parts if body)
    return f'<div class="card">{sections}</div>'


def _model(engine: Engine, language: str) -> Iterator[tuple[str, object]]:
    spec, candidate = engine.classifier.spec, engine.classifier.candidate
    yield say(language, "name"), spec.name
    yield say(language, "architecture"), spec.architecture
    yield say(language, "pixels"), f"{spec.geometry.size} × {spec.geometry.size}"
    yield say(language, "serves"), candidate.name
    if candidate.precision_share:
        share = ", ".join(f"{100 * part:.0f} % {kind}" for kind, part in candidate.precision_share.items())
        yield say(language, "computed_in"), share
    if place := engine.deployment.place_of(candidate):
        sha256 = engine.classifier.sha256
        yield say(language, "file"), f"{candidate.file}, {place.file_bytes / 1e6:.1f} MB, sha256 {sha256[:12]}…"


def _data(spec: ModelSpec, language: str) -> Iterator[tuple[str, object]]:
    yield say(language, "kind"), say(language, "drawings" if spec.data.get("drawn") else "photos")
    yield say(language, "classes"), ", ".join(name.replace("_", " ") for name in spec.classes)
    for what, file in spec.data.get("started_from", {}).items():
        name = PureWindowsPath(file["name"]).name  # of a path as it was typed, which is nobody's business
        facts = ", ".join(filter(None, (name, file.get("licence"), f"sha256 {file['sha256'][:12]}…")))
        yield say(language, f"started_{what}"), facts
    for key, count in (("trained_on", spec.data.get("train")), ("checked_on", spec.validation.get("photos"))):
        if count:
            yield say(language, key), count
    if spec.data.get("fingerprint"):
        yield say(language, "fingerprint"), spec.data["fingerprint"]


def _recipe(spec: ModelSpec, language: str) -> str:
    settings = {name: value for name, value in spec.recipe.items() if value not in ("", None)}
    if not settings:
        return ""
    facts = table([], ((name.replace("_", " "), value) for name, value in settings.items()))
    return f'<details lang="en"><summary>{escape(str(settings.get("name", spec.name)))}</summary>{facts}</details>'


def _accuracy(classifier: Classifier, language: str) -> str:
    validation, figures = classifier.spec.validation, classifier.candidate.figures
    rows = []
    if classifier.spec.published:
        return f"<p>{say(language, 'not_measured', **classifier.spec.published)}</p>"
    if figures:
        rows.append((classifier.candidate.name, f"{figures.accuracy:.3f}", _between(figures.accuracy_interval)))
    if "accuracy" in validation.get("held_out", {}):
        held = validation["held_out"]
        of = say(language, "held_out", photos=held["photos"])
        rows.insert(0, (of, f"{held['accuracy']:.3f}", _between(held["interval"])))
    if "accuracy" in validation:
        interval = _between(validation.get("interval"))
        rows.append((say(language, _network(classifier.spec)), f"{validation['accuracy']:.3f}", interval))
    return table([say(language, head) for head in ("of", "accuracy_column", "wilson")], rows) if rows else ""


def _network(spec: ModelSpec) -> str:
    """The text that names what was there before the candidates."""
    return "imported" if "onnx" in spec.data.get("started_from", {}) else "checkpoint"


def _of_unknown_origin(spec: ModelSpec) -> bool:
    """Whether it came from a file of which nobody recorded what trained it."""
    return any(file.get("seen") == "unknown" for file in spec.data.get("started_from", {}).values())


def _between(interval: Sequence[float] | None) -> str:
    return "{:.3f}–{:.3f}".format(*interval) if interval else "–"


def _confusions(engine: Engine, out: Path, names: list[str], language: str) -> str:
    try:
        counts = confusion_of(*engine.exported(out), len(names))
    except SajiError:
        return ""
    if counts is None:
        return ""
    spec = engine.classifier.spec
    note = say(language, "confusions_note", network=say(language, _network(spec)), photos=counts.sum())
    note = f"<p>{note} {say(language, 'seen_unknown' if _of_unknown_origin(spec) else 'seen_none')}</p>"
    return note + (_matrix if len(names) <= MOST_CLASSES else _list)(counts, names, language)


def confusion_of(folder: Path, receipt: Receipt, classes: int) -> np.ndarray | None:
    """Counts int `[C, C]` of the FP32 checkpoint (row = true class), from the model's validation.npz; None without it.

    Nor where it is not that of the receipt. Only labels and logits are read: the photos in it may be gigabytes.
    """
    try:
        receipt.verify(folder, PHOTOS)
        with np.load(folder / PHOTOS, allow_pickle=False) as arrays:
            logits, labels = arrays["logits"], arrays["labels"]
    except (BadModel, OSError, KeyError):
        return None
    return confusion(logits, labels) if logits.ndim == 2 and logits.shape[1] == classes and len(labels) else None


def _matrix(counts: np.ndarray, names: list[str], language: str) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for true, (name, row) in enumerate(zip(names, counts, strict=True)):
        shares = row / max(1, row.sum())
        cells = "".join(
            f'<td class="{"right" if true == answer else "wrong"}" style="--share: {100 * share:.0f}%">{count}</td>'
            for answer, (count, share) in enumerate(zip(row, shares, strict=True))
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    corner = f'<th scope="col">{say(language, "true_answer")}</th>'
    inside = f"<table><thead><tr>{corner}{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    title = say(language, "confusions")
    return f'<div class="facts confusions" tabindex="0" role="region" aria-label="{title}">{inside}</div>'


def _list(counts: np.ndarray, names: list[str], language: str) -> str:
    wrong = counts - np.diag(np.diag(counts))
    commonest = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = zip(*np.unravel_index(commonest, wrong.shape), strict=True)
    rows = [(names[true], names[answer], wrong[true, answer]) for true, answer in pairs if wrong[true, answer]]
    return table([say(language, head) for head in ("true", "answer", "count")], rows)


def _calibration(spec: ModelSpec, language: str) -> str:
    calibration = spec.validation.get("calibration", {})
    key = "temperature_beside" if _of_unknown_origin(spec) else "temperature"
    fitted = bool(calibration) or spec.temperature != 1
    sentences = say(language, key if fitted else "no_temperature", value=spec.temperature)
    if "ece_after" in calibration:
        before, after = calibration["ece_before"], calibration["ece_after"]
        sentences += " " + say(language, "ece", before=before, after=after)
    return f"<p>{sentences}</p>{_reliability(spec, language)}"


def _reliability(spec: ModelSpec, language: str) -> str:
    """How often right by how sure, and the recall of each class, on photos that chose nothing; "" without such."""
    held = spec.validation.get("held_out")
    if not held:
        return ""
    bins = [(f"{b['confidence']:.2f}", f"{b['accuracy']:.2f}", b["photos"]) for b in held["reliability"]]
    recalls = zip(spec.classes, held["recalls"], held["recall_intervals"], strict=True)
    rows = [
        (name.replace("_", " "), *((f"{recall:.3f}", _between(interval)) if was_asked(interval) else ("–",)))
        for name, recall, interval in recalls
    ]
    return (
        f"<p>{say(language, 'reliability')}</p>"
        + table([say(language, head) for head in ("how_sure", "how_right", "count")], bins)
        + table([say(language, head) for head in ("true", "recall", "wilson")], rows)
    )


def _rejection(spec: ModelSpec, language: str) -> str:
    if not spec.rejection:
        return say(language, "no_rejection")
    rule = escape(spec.rejection.rule.replace("_", " "))
    return say(language, "rejection_note", rule=rule, threshold=spec.rejection.threshold)


def _limits(spec: ModelSpec, language: str) -> str:
    keys = ["limit_dishes", "limit_photos", "limit_health"]
    if spec.published:
        keys = ["limit_starter", *keys[1:]]
    elif spec.data.get("drawn"):
        keys.insert(0, "limit_drawn")
    items = "".join(f"<li>{say(language, key, count=len(spec.classes))}</li>" for key in keys)
    return f"<ul>{items}</ul>"
