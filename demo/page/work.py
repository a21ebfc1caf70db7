"""What the page asks of the service: an answer in a place of the queue, and long work for one visitor at a time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import gradio as gr

from demo.page.markup import refused
from demo.page.texts import language_of, say
from demo.service.decoders import Photo
from demo.service.limits import Limits
from demo.service.monitoring import ERRORS
from demo.service.problem import Problem, busy
from demo.service.queue import Result, Serving
from demo.service.shares import OWN, Holdings, visitor_of

PLACES = 5  # whoever came after them would wait for minutes
# Options of an event that shows what is there already
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Options of an event that takes a file. Without Gradio's preprocessing, which would decode, turn and convert a photo
# and write it anew: it comes as it was sent, and runtime.preprocess alone decides about pixels and says what is no
# picture. Without Gradio's own limit of one at a time: the service has the queue, and `Turns` are for long work
AS_SENT: dict[str, Any] = {"preprocess": False, "api_visibility": "private", "concurrency_limit": None}


@contextmanager
def counted() -> Iterator[None]:
    """A Problem within it is counted: Gradio answers with 200, whatever the page then shows."""
    try:
        yield
    except Problem as problem:
        ERRORS.labels(problem.cause).inc()
        raise


async def ask(serving: Serving, photo: Photo, visitor: str) -> Result:
    """Classify a photo of `visitor` within a place of the queue. Raises Problem."""
    with serving.place(visitor):
        return await serving.classify([photo])


class Turns:
    """Whose turn it is with one kind of long work, such as "comparisons"; `came` have come and are not done."""

    def __init__(self, kind: str, limits: Limits) -> None:
        self.kind, self.came = kind, Holdings(kind, limits.share_of(PLACES))
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def take(self, visitor: str = OWN) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Raises Problem 429 when PLACES have come before, or his share of them."""
        if self.came.all >= PLACES:
            raise busy(429, "busy", f"{PLACES} {self.kind} are under way or waiting; try again in a minute")
        with self.came.held(visitor):
            async with self._lock:
                yield

    def on_click(
        self,
        start: gr.Button,
        upload: gr.Image | gr.File,
        output: gr.HTML,
        work: Callable[[Any, str, str], AsyncGenerator[str, None]],
    ) -> None:
        """At a click on `start`, wait for a turn and show each state of `work(upload, language, visitor)`, as HTML.

        A Problem that it raises is shown as a sentence. When the visitor goes, the work is closed.
        """

        async def show(upload: Any, request: gr.Request) -> AsyncGenerator[str, None]:
            language, visitor = language_of(request), visitor_of(request.client)
            if not upload:
                yield f'<p class="notice">{say(language, "no_photo")}</p>'
                return
            if self.came.all:
                yield f'<p class="quiet" role="status">{say(language, "waiting", count=self.came.all)}</p>'
            try:
                with counted():
                    async with self.take(visitor), aclosing(work(upload, language, visitor)) as states:
                        async for state in states:
                            yield state
            except Problem as problem:
                yield refused(problem, language)

        start.click(show, upload, output, show_progress="hidden", **AS_SENT)
