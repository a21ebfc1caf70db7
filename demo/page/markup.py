"""HTML that several tabs show. Everything comes in as text and is escaped here, but for what is `Markup` already."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from markupsafe import Markup, escape

from demo.page.texts import refusal, say
from demo.service.problem import Problem
from runtime.classifier import Classifier, Prediction
from runtime.deployment import Deployment
from runtime.machine import Machine

# Of `Rejected`, the ones that a visitor can do something about first
CAUSES = ("speed", "accuracy", "memory", "size", "fail", "inconclusive", "not measured", "unchecked", "file check")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], cards: bool = False) -> str:
    """A table whose first column names its rows; without a `head`, only rows.

    The last cell of a short row takes the place of those that it lacks. With `cards`, a row is a card of its own where
    the page is narrow.
    """
    names = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in head)
    body = "".join(_row(head, *row) for row in rows)
    top = f"<thead><tr>{names}</tr></thead>" if head else ""
    kind = "facts cards" if cards else "facts"
    return f'<div class="{kind}"><table>{top}<tbody>{body}</tbody></table></div>'


def _row(head: Sequence[str], first: object, *cells: object) -> str:
    missing = max(0, len(head) - 1 - len(cells))
    names = () if missing else head[1:]  # on a card a cell says what it is, unless it is all there is
    rest = Markup("").join(
        Markup('<td data-head="{}" colspan="{}">{}</td>').format(name, missing + 1, cell)
        for cell, name in zip_longest(cells, names, fillvalue="")
    )
    return f'<tr><th scope="row">{escape(first)}</th>{rest}</tr>'


def refused(problem: Problem, language: str) -> str:
    """Why a request was refused, in one sentence."""
    return f'<p class="problem" role="alert">{escape(refusal(language, problem))}</p>'


def dish_names(classifier: Classifier, language: str) -> dict[str, str]:
    """How each class is written on the page, not escaped."""
    classes = classifier.spec.classes
    translated = classifier.spec.translations.get(language, classes)
    names = {name: title.replace("_", " ") for name, title in zip(classes, translated, strict=True)}
    # two would be one on the page
    return names if len(set(names.values())) == len(names) else {name: name for name in names}


def headline(classifier: Classifier, prediction: Prediction, language: str) -> str:
    """An answer in one short line, not escaped: the dish, and how sure the model is."""
    dish = dish_names(classifier, language)[prediction.label]
    if classifier.spec.guard and not prediction.sure:
        return say(language, f"briefly_{prediction.answer}")
    key = "surely" if prediction.sure else "perhaps"
    return say(language, key, label=dish, probability=prediction.probability)


def progress(done: int, count: int, sentence: str) -> str:
    """How far a longer work has come: a bar, and the sentence, which a screen reader says as it changes."""
    bar = Markup('<progress value="{}" max="{}" aria-hidden="true"></progress>').format(done, count)
    return f'<div class="progress" role="status">{bar}<p class="quiet">{escape(sentence)}</p></div>'


def rejected(classifier: Classifier, deployment: Deployment, language: str) -> str:
    """Which candidates were not chosen, folded by the kind of cause, as HTML; "" when there is none.

    Candidates of one and the same reason are one row. Reasons are shown as they were recorded, in English.
    """
    groups: dict[str, dict[str, list[str]]] = {cause: {} for cause in (*CAUSES, "other")}
    for row in deployment.rejected:
        if row.candidate != classifier.candidate.name:  # a fallback that serves
            cause = row.cause if row.cause in groups else "other"
            groups[cause].setdefault(row.reason, []).append(row.candidate)
    return "".join(_folded(cause, reasons, language) for cause, reasons in groups.items() if reasons)


def _folded(cause: str, reasons: dict[str, list[str]], language: str) -> str:
    count = sum(map(len, reasons.values()))
    summary = say(language, f"rejected_{cause.replace(' ', '_')}", count=count)
    rows = table([], [(", ".join(names), reason) for reason, names in reasons.items()])
    return f'<details class="rejected"><summary>{escape(summary)}</summary><div lang="en">{rows}</div></details>'


def machine(facts: Machine | None, language: str) -> str:
    """A machine in one line, not escaped; "" where it is not known."""
    if not facts:
        return ""
    parts = [
        facts.cpu,
        say(language, "cores", count=facts.cores),
        " ".join(facts.cpu_features),
        facts.memory_gib and f"{facts.memory_gib} GiB",
        facts.gpu or say(language, "no_gpu"),
        facts.system,
    ]
    return ", ".join(str(fact) for fact in parts if fact)
