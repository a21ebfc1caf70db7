"""Odd pictures through the running service, honest ones between them: documented answers only, and the right ones.

Its decoders are those of the campaign `pictures`, which tries ten times as many; what is tried here is all around them:
forms and names of files, what is said of a refusal, that the next visitor gets his own answer, memory in the long run.
"""

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path

import psutil

from lab.load.clients import CLASSIFY, connect
from lab.load.server import serving
from lab.torture import honest
from lab.torture.campaign import Attempt, Found
from lab.torture.odd_pictures import OddPictures
from lab.torture.pictures import CAUSES, is_sentence

ATTEMPTS = 20_000
HONEST, LOOK = 0.2, 0.02  # shares of attempts: that send an honest photo, and that ask for the decoders' memory
MORE_MIB = 64  # that the service may come to hold beyond what it held when it was warm
DECODER_MIB = 512 + 128  # its bound, and what it holds without a picture
WARM = 50  # honest photos before
DOCUMENTED = {"answers", "served_by"}
TYPES = ("image/jpeg", "image/png", "application/octet-stream", "image/anything", "")
NAMES = ("photo.jpg", "../../etc/passwd", "C:\\photo.png", "a\u202egpj.exe", "x" * 300, "<b>.png", "%00.jpg", "")


@contextmanager
def prepared(folder: Path) -> Iterator[Attempt]:
    """A service of a tiny network."""
    from lab.torture import tiny

    tiny.train_and_export(folder)
    with ExitStack() as stack:
        yield _Asking(folder, stack)


class _Asking:
    """An attempt: a request with odd pictures, or an honest one. A service that has ended is started anew."""

    def __init__(self, out: Path, stack: ExitStack) -> None:
        self._out, self._stack, self._pictures = out, stack, OddPictures()
        self._honest = honest.photos(out / "deployment.json")
        self._start()

    def _start(self) -> None:
        self._server = self._stack.enter_context(serving("demo", f"--out={self._out}", "--port=0", "--all-formats"))
        self._connection = connect(self._server.address)
        for number in range(WARM):
            self._ask_honestly(self._honest[number % len(self._honest)])
        self._most = self._server.memory_mib() + MORE_MIB

    def __call__(self, chance: random.Random) -> str:
        request = b""
        try:
            if chance.random() < HONEST:
                self._ask_honestly(chance.choice(self._honest))
                return "honest: right"
            request, kind = self._request(chance)
            came = _documented(*self._send(request, kind), request)
        except (OSError, HTTPException) as error:
            self._connection.close()
            if self._server.process.is_running() and self._server.process.status() != psutil.STATUS_ZOMBIE:
                raise Found(f"was not answered: {error!r}", request) from None
            self._start()
            raise Found("ended the service", request) from None
        self._look_at_memory(request, thoroughly=chance.random() < LOOK)
        return came

    def _request(self, chance: random.Random) -> tuple[bytes, str]:
        """A body and its content type."""
        if chance.random() < 0.6:
            return self._pictures(chance), chance.choice(TYPES)
        boundary, body = f"b{chance.getrandbits(40)}", b""
        for _ in range(chance.choice((1, 1, 2, 3))):
            head = f'--{boundary}\r\ncontent-disposition: form-data; name="photo"; filename="{chance.choice(NAMES)}"'
            body += f"{head}\r\n\r\n".encode() + self._pictures(chance) + b"\r\n"
        return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"

    def _send(self, body: bytes, kind: str) -> tuple[int, str]:
        self._connection.request("POST", CLASSIFY, body, {"content-type": kind} if kind else {})
        answer = self._connection.getresponse()
        return answer.status, answer.read().decode()

    def _ask_honestly(self, photo: honest.Honest) -> None:
        status, answer = self._send(photo.photo, "image/jpeg")
        if wrong := photo.wrong(answer.encode()) if status == 200 else f"{status} {answer}":
            raise Found(f"an honest photo was answered wrongly: {wrong}", photo.photo)

    def _look_at_memory(self, request: bytes, thoroughly: bool) -> None:
        if (held := self._server.memory_mib()) > self._most:
            self._most = held + MORE_MIB
            raise Found(f"the service came to hold {held} MiB", request)
        for decoder in self._server.process.children() if thoroughly else ():
            if (held := decoder.memory_info().rss / 2**20) > DECODER_MIB:
                raise Found(f"a decoder came to hold {held:.0f} MiB", request)


def _documented(status: int, answer: str, request: bytes) -> str:
    """The answer in a word. Raises Found where no document tells of such a one."""
    said = json.loads(answer)
    if status == 200 and said.keys() == DOCUMENTED:
        return "answered"
    form = (
        status in (400, 413, 422)
        and said.get("status") == status
        and said.get("cause") in CAUSES | {"no-photo", "form"}
    )
    if not form or not is_sentence(said["detail"]) or "ends the program" in said["detail"]:
        raise Found(f"was answered {status} {answer[:250]}", request)
    return str(said["cause"])
