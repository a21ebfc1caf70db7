"""Compare: one photo through every candidate that passed on this machine, a row each as soon as it is there.

Each is opened in a process of its own, as in the benchmark, because engines in one process disturb each other.
"""

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup, escape

from demo.page import uploads
from demo.page.markup import dish_names, progress, table
from demo.page.texts import label, say
from demo.page.work import Turns, ask
from demo.service.problem import without_folders
from demo.service.queue import Serving
from runtime.benchmark.contestant import Contestant
from runtime.candidate import Candidate
from runtime.classifier import Classifier
from runtime.deployment import Deployment
from runtime.environment import machine
from runtime.errors import SajiError
from runtime.receipt import Receipt

CALLS_SECONDS = 0.3  # of calls after the warm-up, as long as a measurement of the benchmark
REFERENCES = "pytorch", "ort-cpu"  # as the network was trained, which an import has no file of
HEADS = ("candidate", "answer", "probability", "inference_time", "difference")


def build(serving: Serving) -> None:
    """A photo, a button, and the rows."""
    with gr.Row():
        with gr.Column():
            photo = gr.Image(
                label=label("photo"),
                placeholder=str(label("drop")),
                height=260,
                buttons=["fullscreen"],
                sources=["upload", "clipboard"],
            )
        with gr.Column():
            gr.HTML(f"<p>{label('compare_note')}</p>")
            start = gr.Button(label("compare_start"), variant="primary")

    async def states(upload: Any, language: str, visitor: str) -> AsyncGenerator[str, None]:
        """The state after each row, as HTML. Raises Problem for what is no photo."""
        deployment = serving.engine.deployment  # of the engine that is asked, not of a later one
        with uploads.opened(upload) as file:
            result = await ask(serving, file, visitor)
            file.seek(0)
            encoded = await asyncio.to_thread(file.read)
        answer = result.predictions[0].label
        contestants = contestants_here(serving.path, deployment)
        rows: list[Row] = []
        yield state_of(rows, len(contestants), answer, result.classifier, language)
        async with aclosing(compare(encoded, contestants, serving.limits.seconds)) as fresh:
            async for row in fresh:
                rows.append(row)
                yield state_of(rows, len(contestants), answer, result.classifier, language)

    Turns("comparisons", serving.limits).on_click(start, photo, gr.HTML(), states)


@dataclass(frozen=True)
class Row:
    """What one candidate answered, or in one sentence why it could not.

    `milliseconds` are the median of an inference; `difference` is the largest of a probability from the reference's,
    None where the architecture has no reference that answered; `reference` is whether it is that one itself.
    """

    name: str
    candidate: Candidate
    probabilities: dict[str, float] = field(default_factory=dict)
    milliseconds: float = 0.0
    difference: float | None = None
    problem: str = ""
    reference: bool = False

    @property
    def label(self) -> str:
        """The most likely class; empty where there is no answer."""
        return next(iter(self.probabilities), "")


def contestants_here(path: Path, deployment: Deployment) -> list[Contestant]:
    """The candidates that passed here: of the deployment at `path`, and of the receipts of all models beside its own.

    The architecture that serves comes first, and within each what others may be compared with. Each is of the file that
    was chosen or is there now; a folder that was exported again since it was chosen from adds none.
    """
    places = (deployment.choice, *deployment.fallbacks)
    chosen = [Contestant(p.candidate, path.parent / p.folder, p.threads, p.streams, sha256=p.sha256) for p in places]
    contestants, models = [*chosen], {contestant.folder.parent for contestant in chosen}
    for folder in sorted(file.parent for parent in models for file in parent.glob("*/model.json")):
        contestants += _passed_here(folder, [each for each in chosen if each.folder == folder])
    once: dict[object, Contestant] = {}
    for contestant in contestants:
        once.setdefault(contestant.key(), contestant)
    folders = list(dict.fromkeys(contestant.folder for contestant in once.values()))
    return sorted(once.values(), key=lambda each: (folders.index(each.folder), _rank(each)))


def _passed_here(folder: Path, chosen: Sequence[Contestant]) -> list[Contestant]:
    with contextlib.suppress(SajiError):  # a neighbour that is being exported again
        receipt = Receipt.read(folder)
        for each in chosen:
            receipt.require_same(folder, each.candidate.file, each.sha256)
        here = [each for each in receipt.candidates if each.machine == machine() and each.file in receipt.files]
        passed = [each for each in here if each.verdict == "pass" and each.servable]
        return [Contestant(each, folder, sha256=receipt.files[each.file].sha256) for each in passed]
    return []


def _rank(contestant: Contestant) -> int:
    """Which of a model folder's is its reference, if it answers: the first of REFERENCES in FP32, then the next."""
    candidate = contestant.candidate
    plain = (candidate.precision, candidate.variant) == ("fp32", "") and candidate.backend in REFERENCES
    return REFERENCES.index(candidate.backend) if plain else len(REFERENCES)


async def compare(photo: bytes, contestants: list[Contestant], seconds: float) -> AsyncGenerator[Row, None]:
    """A row for each contestant as soon as it is there; none takes longer than `seconds`.

    `photo` is encoded, and known to be a picture within the limits. Close the iterator: it ends the process.
    """
    references = dict[Path, Row]()
    for contestant in contestants:
        folder = contestant.folder
        row = await _in_thread(contestant, seconds, references.get(folder), photo)
        if folder not in references and not row.problem and _rank(contestant) < len(REFERENCES):
            row = references[folder] = replace(row, reference=True)
        yield row


async def _in_thread(contestant: Contestant, seconds: float, reference: Row | None, photo: bytes) -> Row:
    """`measure` in a thread, which is over when this is, whatever happens."""
    job = asyncio.ensure_future(asyncio.to_thread(measure, contestant, seconds, reference, photo))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:  # the visitor has gone, or the server stops
        if contestant.process:
            contestant.process.kill()
        await asyncio.wait([job])
        raise


def measure(contestant: Contestant, seconds: float, reference: Row | None = None, photo: bytes = b"") -> Row:
    """Open the contestant in its process, let it answer an encoded photo, time its inference, and end the process.

    Without a photo it is the golden one.
    """
    started = time.monotonic()
    row = Row(contestant.name, contestant.candidate)
    try:
        receipt = Receipt.read(contestant.folder)
        receipt.require_same(contestant.folder, contestant.candidate.file, contestant.sha256)
        receipt.verify(contestant.folder, contestant.candidate.file)
        with _killed_after(seconds, contestant):
            probabilities = contestant.classify(photo).probabilities
            milliseconds = statistics.median(contestant.measure("single-stream", 1, CALLS_SECONDS).samples)
    except SajiError as error:
        late = time.monotonic() - started >= seconds
        reason = without_folders(str(error).replace(str(contestant.folder), contestant.folder.name))
        return replace(row, problem=f"no answer within {seconds:g} s" if late else reason)
    finally:
        contestant.close()
    difference = None
    if reference:
        difference = max(abs(probabilities[name] - value) for name, value in reference.probabilities.items())
    return replace(row, probabilities=probabilities, milliseconds=milliseconds, difference=difference)


@contextlib.contextmanager
def _killed_after(seconds: float, contestant: Contestant) -> Iterator[None]:
    late = threading.Timer(seconds, contestant.start().kill)
    late.start()
    try:
        yield
    finally:
        late.cancel()


def state_of(rows: Sequence[Row], count: int, answer: str, classifier: Classifier, language: str) -> str:
    """The rows so far of `count`, and what they come to beside the `answer` of what serves, as HTML."""
    names = dish_names(classifier, language)
    if len(rows) < count:
        above = progress(len(rows), count, say(language, "compare_progress", done=len(rows), count=count))
    else:
        above = _summary(rows, answer, names.get(answer, answer), language)
    heads = [say(language, head) for head in HEADS]
    return above + table(heads, [_cells(row, answer, classifier, language) for row in rows], cards=True)


def _summary(rows: Sequence[Row], answer: str, dish: str, language: str) -> str:
    answers = [row.label for row in rows if not row.problem]
    differing = sum(other != answer for other in answers)
    values = {"count": len(answers), "differing": differing, "label": escape(dish)}
    sentences = [say(language, "compare_differ" if differing else "compare_agree", **values)] if answers else []
    if len(answers) < len(rows):
        sentences.append(say(language, "compare_failed", count=len(rows) - len(answers)))
    return f'<p class="{"notice" if differing or not answers else "quiet"}" role="status">{" ".join(sentences)}</p>'


def _cells(row: Row, answer: str, classifier: Classifier, language: str) -> Sequence[object]:
    serves = row.candidate.key() == classifier.candidate.key()
    name = Markup("<b>{}</b>").format(row.name) if serves else row.name
    if row.problem:
        return name, Markup('<span class="unread">{}.</span>').format(row.problem)
    dish = dish_names(classifier, language).get(row.label, row.label)
    if row.label != answer:
        dish = Markup('<span class="otherwise">≠ {}</span>').format(dish)
    difference = "–" if row.difference is None else f"{row.difference:.4f}"
    if row.reference:
        difference = say(language, "reference")
    return name, dish, f"{row.probabilities[row.label]:.1%}", f"{row.milliseconds:.2f} ms", difference
