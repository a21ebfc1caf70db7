"""The frame of the page: what serves now, above the tabs."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr

from demo.page.markup import dish_names
from demo.page.tabs import about, batch, benchmark, classify, compare
from demo.page.texts import label, language_of, say
from demo.page.work import QUIET
from demo.service.queue import Serving
from runtime.classifier import Classifier


def build(serving: Serving, top: int = 5, examples: Sequence[Path] = (), link: str = "") -> gr.Blocks:
    """The page of `serving`; an answer shows `top` classes, `examples` are pictures to click, `link` lets phones in."""
    # Uploads are somebody's photos: Gradio forgets them after an hour (examples stay)
    with gr.Blocks(title="saji", delete_cache=(600, 3600)) as page:
        head = gr.HTML(head_of(serving.engine.classifier, "en"))
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

        def now(request: gr.Request) -> str:
            return head_of(serving.engine.classifier, language_of(request))

        page.load(now, None, head, **QUIET)
    return page


def head_of(classifier: Classifier, language: str) -> str:
    """What stands above the tabs, as HTML: the dishes, what serves, and a warning where it never saw a photo."""
    dishes = list(dish_names(classifier).values())
    names = escape(f": {', '.join(dishes)}") if len(dishes) <= 20 else ""
    knows = say(language, "knows", count=len(dishes), names=names)
    drawn = f'<p class="notice">{say(language, "drawn")}</p>' if classifier.spec.data.get("drawn") else ""
    return f"<h1>{say(language, 'title')}</h1><p>{knows}</p>{_chips(classifier, language)}{drawn}"


def _chips(classifier: Classifier, language: str) -> str:
    candidate = classifier.candidate
    facts = [*candidate.name.split(" · "), say(language, "parity", verdict=candidate.verdict)]
    if candidate.figures:
        facts.append(say(language, "accuracy", value=candidate.figures.accuracy))
    chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return f'<p class="chips"><b>{say(language, "served_by")}</b>{chips}</p>'
