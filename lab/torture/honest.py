"""Honest photos with the answers that they must get, and clients that ask for them while others do their worst."""

import io
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import runtime
from lab.load.clients import CLASSIFY
from training.photos.drawn import DISHES, draw_dish

CLIENTS, PAUSE = 4, 0.1  # seconds between an answer and the next question
PATIENCE = 60  # seconds that one waits for an answer
CLOSE = 1e-5  # that a probability may differ by: the engine adds up in another order with other threads


@dataclass(frozen=True)
class Honest:
    """A photo as a client sends it, and the probabilities that the classifier gives it without a service."""

    photo: bytes
    probabilities: dict[str, float]

    def wrong(self, answer: bytes) -> str:
        """What is wrong with an answer of status 200, in words; empty where nothing is."""
        [told] = json.loads(answer)["answers"]
        theirs, best = told["probabilities"], max(self.probabilities, key=self.probabilities.__getitem__)
        right = theirs.keys() == self.probabilities.keys() and told["label"] == best
        if right and all(abs(theirs[name] - value) < CLOSE for name, value in self.probabilities.items()):
            return ""
        return f"told {told['label']} {theirs}, it is {best} {self.probabilities}"


def photos(deployment: Path) -> list[Honest]:
    """One of each dish, with the answers of what a deployment chose."""
    with runtime.load(deployment) as classifier:
        found = []
        for number, dish in enumerate(DISHES):
            file = io.BytesIO()
            draw_dish(dish, 1000 + number, 96).save(file, "JPEG")
            found.append(Honest(file.getvalue(), classifier(file.getvalue()).probabilities))
    return found


@dataclass
class Answers:
    """What came of the honest clients' questions: milliseconds of each, and in words what was not as it should be."""

    milliseconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@contextmanager
def clients(address: str, asked: Sequence[Honest]) -> Iterator[Any]:
    """CLIENTS in a process of their own, so that what the others do here does not make them slow.

    What is yielded gives the Answers since it was last called.
    """
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_ask, args=(address, list(asked), theirs), daemon=True)
    process.start()

    def since() -> Answers:
        ours.send(None)
        answers: Answers = ours.recv()
        return answers

    try:
        since()
        yield since
    finally:
        process.kill()
        process.join()


def _ask(address: str, asked: list[Honest], pipe: Any) -> None:
    lock, answers = threading.Lock(), Answers()

    def client(number: int) -> None:
        place = address.removeprefix("http://").split(":")
        connection = HTTPConnection(place[0], int(place[1]), PATIENCE, source_address=(f"127.0.0.{10 + number}", 0))
        while True:
            for one in asked[number:] + asked[:number]:
                started, fault = time.perf_counter(), ""
                try:
                    connection.request("POST", CLASSIFY, one.photo, {"content-type": "image/jpeg"})
                    answer = connection.getresponse()
                    body = answer.read()
                    fault = one.wrong(body) if answer.status == 200 else f"{answer.status} {body[:200].decode()}"
                except (OSError, HTTPException) as error:
                    connection.close()
                    fault = f"no answer: {error!r}"
                with lock:
                    answers.milliseconds.append(1000 * (time.perf_counter() - started))
                    answers.faults += [fault] if fault else []
                time.sleep(PAUSE)

    for number in range(CLIENTS):
        threading.Thread(target=client, args=(number,), daemon=True).start()
    while True:
        pipe.recv()
        with lock:
            pipe.send(answers)
            answers.milliseconds, answers.faults = [], []
