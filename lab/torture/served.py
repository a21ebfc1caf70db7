"""The service without its page, in the folder it is started in: what `out/deployment.json` chose, until it is ended.

The file `trouble` there says what is wrong with it for the moment: "raises", "hangs", or "slow-disk", and a number,
for a slow disk of seconds.
"""

import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from demo.app import listen
from demo.service.limits import Limits
from lab.torture.campaign import Found
from lab.torture.commands import Command, Running
from runtime.backends import Backend
from runtime.classifier import Classifier, load

SECONDS = 2  # that a request may wait for its answer
DEPLOYMENT, TROUBLE = Path("out/deployment.json"), Path("trouble")
PATIENCE = 30.0  # seconds until what should be there has to be there
SAME = 1e-4  # of a probability: that much may engines differ with other threads
CLIENTS, PAUSE = 4, 0.05  # that ask at a time, and the seconds between two requests of one
EACH = 9  # of the photos is asked about
Answers = dict[bytes, dict[str, float]]  # to photos: each label's probability

_ADDRESS = re.compile(r" on (http://\S+)")


def main() -> None:
    """Serve until a signal."""
    from demo.service.api import Server, build_api
    from demo.service.monitoring import log_as_json
    from demo.service.queue import Serving

    TROUBLE.write_text("")
    _slow_disk()
    limits = Limits(seconds=SECONDS, decode_seconds=SECONDS, decoders=2, decode_memory=200)
    with listen("127.0.0.1", 0) as listener, Serving(DEPLOYMENT, _troubled, limits, workers=0) as serving:
        print(f"serving on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        with log_as_json():
            Server(build_api(serving), limits).run(sockets=[listener])


def _now(kind: str) -> float:
    """The seconds of a trouble that is on; 0 where it is not."""
    name, _, seconds = TROUBLE.read_text().partition(" ")
    return float(seconds) if name == kind else 0.0


def _troubled(path: Path, **settings: Any) -> Classifier:
    classifier = load(path, **settings)
    classifier.backend = _Troubled(classifier.backend)  # type: ignore[assignment]
    return classifier


class _Troubled:
    """An engine that raises or hangs when it is told to."""

    def __init__(self, engine: Backend) -> None:
        self._engine = engine

    def run(self, images: np.ndarray) -> np.ndarray:
        if _now("raises"):
            raise RuntimeError("the engine has failed")
        while _now("hangs"):
            time.sleep(0.05)
        return self._engine.run(images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _slow_disk() -> None:
    """Let each look at the deployment take the seconds of the trouble."""
    plain = os.stat

    def slow(path: Any, *more: Any, **how: Any) -> os.stat_result:
        if str(path).endswith(DEPLOYMENT.name):
            time.sleep(_now("slow-disk"))
        return plain(path, *more, **how)

    os.stat = slow  # type: ignore[assignment]


def answers_of(folder: Path) -> Answers:
    """What the chosen classifier says by itself of some photos in a folder that has `photos` and `out`."""
    with load(folder / DEPLOYMENT) as classifier:
        photos = sorted((folder / "photos").rglob("*.jpg"))[::EACH]
        return {photo.read_bytes(): classifier(photo).probabilities for photo in photos}


@dataclass(frozen=True)
class Service:
    """A service that runs in a folder of artefacts."""

    running: Running
    place: Path
    address: str

    def ready(self) -> bool:
        """What /readyz says."""
        return _ask(f"{self.address}/readyz")[0] == 200

    def trouble(self, words: str = "") -> None:
        """Put it into this trouble, or end the one that it is in."""
        (self.place / "next").write_text(words)
        os.replace(self.place / "next", self.place / TROUBLE)


@contextmanager
def service(place: Path) -> Iterator[Service]:
    """A service in the folder `place`, which has the artefacts in `out`. Raises Found when it does not start."""
    running = Running(Command(__name__, ()), place, log=f"service{time.monotonic_ns()}.log")
    try:
        address = until(lambda: _ADDRESS.search(running.said()), f"the service does not start: {running.said()[-300:]}")
        yield Service(running, place, address[1])
    finally:
        running.kill()


def classified(address: str, photo: bytes, answers: Answers) -> int:
    """The status of a service's answer to a photo; 0 where the connection broke. Raises Found for a wrong answer."""
    status, answer = _ask(f"{address}/v1/classify", photo)
    if status == 200:
        told, right = answer["answers"][0]["probabilities"], answers[photo]
        if told.keys() != right.keys() or any(abs(told[name] - p) > SAME for name, p in right.items()):
            raise Found(f"a wrong answer: {told} instead of {right}", photo)
    return status


@dataclass
class Clients:
    """What came of their requests: how many of each status, the longest in seconds, and a wrong answer if any."""

    came: Counter[int] = field(default_factory=Counter)
    longest: float = 0.0
    wrong: Found | None = None


@contextmanager
def asking(address: str, answers: Answers, chance: random.Random, pause: float = PAUSE) -> Iterator[Clients]:
    """CLIENTS that ask one photo after the other."""
    clients, done = Clients(), threading.Event()

    def ask(photos: list[bytes]) -> None:
        try:
            while not done.wait(pause):
                started = time.monotonic()
                clients.came[classified(address, photos[clients.came.total() % len(photos)], answers)] += 1
                clients.longest = max(clients.longest, time.monotonic() - started)
        except Found as found:
            clients.wrong = found

    threads = [Thread(target=ask, args=(chance.sample([*answers], len(answers)),)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        done.set()
        for thread in threads:
            thread.join()


def until(look: Callable[[], Any], otherwise: str, seconds: float = PATIENCE) -> Any:
    """What `look` gives as soon as it gives anything. Raises Found when it does not within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise Found(otherwise)


def _ask(url: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, body, {"content-type": "image/jpeg"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {}
    except (OSError, ValueError):
        return 0, {}
