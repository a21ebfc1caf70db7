"""HTML that several tabs show. Everything comes in as text and is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from demo.texts import say
from runtime.classifier import Classifier
from runtime.deployment import Deployment


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose first column names its rows; without a `head`, only rows."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(_row(*row) for row in rows)
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="facts"><table>{top}<tbody>{body}</tbody></table></div>'


def _row(first: object, *cells: object) -> str:
    rest = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(str(first))}</th>{rest}</tr>'


def rejected(classifier: Classifier, deployment: Deployment, language: str) -> str:
    """Which candidates were not chosen, and why; "" when there is none."""
    rows = [
        (row["candidate"], row["reason"])
        for row in deployment.rejected
        if row["candidate"] != classifier.candidate.name  # a fallback that serves
    ]
    return table([say(language, "not_chosen"), say(language, "because")], rows) if rows else ""


def machine(facts: dict[str, Any], language: str) -> str:
    """A machine's facts (`runtime.environment.machine`) in one line, not escaped."""
    known = [
        facts.get("cpu"),
        facts.get("cores") and say(language, "cores", count=facts["cores"]),
        " ".join(facts.get("cpu_features") or ()),
        facts.get("memory_gib") and f"{facts['memory_gib']} GiB",
        facts.get("gpu") or say(language, "no_gpu"),
        facts.get("system"),
    ]
    return ", ".join(str(fact) for fact in known if fact)
