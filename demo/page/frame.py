"""The frame of the page: what serves now, above the tabs."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr

from demo.page.markup import dish_names
from demo.page.tabs import about, batch, benchmark, classify, compare
from demo.page.texts import label, language_of, say
from demo.page.uploads import KEPT_SECONDS
from demo.page.work import QUIET
from demo.service.network import in_svg
from demo.service.queue import Serving
from runtime.classifier import Classifier


def build(serving: Serving, top: int = 5, examples: Sequence[Path] = (), link: str = "") -> gr.Blocks:
    """The page of `serving`; an answer shows `top` classes, `examples` are pictures to click, `link` lets phones in."""
    # Uploads are somebody's photos: Gradio forgets them after an hour (examples stay)
    with gr.Blocks(title="saji", delete_cache=(600, KEPT_SECONDS)) as page:
        head = gr.HTML(head_of(serving.engine.classifier, "en"))
        facts = gr.HTML(facts_of(serving.engine.classifier, "en", link), elem_id="facts")
        with gr.Tab(label("classify")):
            classify.build(serving, page.load, top, examples)
        with gr.Tab(label("compare")):
            compare.build(serving)
        with gr.Tab(label("batch")):
            batch.build(serving)
        with gr.Tab(label("benchmark")) as tab:
            benchmark.build(serving, tab.select)
        with gr.Tab(label("about")) as tab:
            about.build(serving, tab.select)

        def now(request: gr.Request) -> tuple[str, str]:
            classifier, language = serving.engine.classifier, language_of(request)
            return head_of(classifier, language), facts_of(classifier, language, link)

        page.load(now, None, [head, facts], **QUIET)
    return page


def head_of(classifier: Classifier, language: str) -> str:
    """What stands above all, as HTML: the question, and a warning where the model never saw a photo."""
    spec = classifier.spec
    what = "starter" if spec.published else "drawn" if spec.data.get("drawn") else ""
    notice = f'<p class="notice">{say(language, what)}</p>' if what else ""
    return f"<h1>{say(language, 'title')}</h1>{notice}"


def facts_of(classifier: Classifier, language: str, link: str = "") -> str:
    """What stands above the tabs, on a phone below them, as HTML: the dishes, what serves, the way in for a phone."""
    named = classifier.spec.named
    dishes = [name for name, is_name in zip(dish_names(classifier, language).values(), named, strict=True) if is_name]
    names = escape(f": {', '.join(dishes)}") if len(dishes) <= 20 else ""
    knows = say(language, "knows", count=len(dishes), names=names)
    return f"<p>{knows}</p>{_chips(classifier, language)}{_phone(link, language) if link else ''}"


def _phone(link: str, language: str) -> str:
    shown = f'<p><a href="{escape(link)}">{escape(link)}</a></p>'
    summary = f"<summary>{say(language, 'on_phone')}</summary>"
    return f'<details class="phone">{summary}<p>{say(language, "scan")}</p>{in_svg(link)}{shown}</details>'


def _chips(classifier: Classifier, language: str) -> str:
    candidate = classifier.candidate
    facts = [*candidate.name.split(" · "), say(language, "parity", verdict=candidate.verdict)]
    if candidate.figures and not classifier.spec.published:
        facts.append(say(language, "accuracy", value=candidate.figures.accuracy))
    chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return f'<p class="chips"><b>{say(language, "served_by")}</b>{chips}</p>'
