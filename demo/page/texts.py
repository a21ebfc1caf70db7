"""Every word of the page, in the languages of `languages/*.toml`; another language is another file there.

What a component shows of itself (label, placeholder, name of a tab) is `label("key")`, which the browser fills in; what
Python renders is `say(language_of(request), "key", …)`. Both go by the visitor's first language. What saji recorded
when it chose (reasons, names of candidates) is shown as it was written: in English.
"""

import json
import tomllib
from pathlib import Path

import gradio as gr

from demo.service.problem import Problem

ENGLISH = "en"
_FILES = {
    file.stem: tomllib.loads(file.read_text(encoding="utf-8"))
    for file in sorted((Path(__file__).parent / "languages").glob("*.toml"))
}
# A refusal is a sentence in English already; in other languages its cause names the text
REFUSALS: dict[str, dict[str, str]] = {language: texts.pop("refusals", {}) for language, texts in _FILES.items()}
TEXTS: dict[str, dict[str, str]] = {language: _FILES[ENGLISH] | texts for language, texts in _FILES.items()}

label = gr.I18n(**TEXTS)


def language_of(request: gr.Request | None) -> str:
    """The visitor's first language, as Gradio's own words go by in the browser; English where we do not speak it."""
    accepted = (request.headers.get("accept-language") or "") if request else ""
    first = accepted.partition(",")[0].partition(";")[0].partition("-")[0].strip().lower()
    return first if first in TEXTS else ENGLISH


def say(language: str, key: str, **values: object) -> str:
    """A text with its values filled in; values that others wrote have to be escaped before."""
    return TEXTS[language][key].format(**values)


def script(key: str) -> str:
    """A text in the visitor's language, as an expression of JavaScript."""
    texts = json.dumps({language: say(language, key) for language in TEXTS})
    return f"(words => words[document.documentElement.lang] ?? words.{ENGLISH})({texts})"


def refusal(language: str, problem: Problem) -> str:
    """A refused request as a sentence, without HTML."""
    return f"{REFUSALS[language].get(problem.cause, problem.detail)}."
