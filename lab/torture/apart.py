"""A function in a process of its own, because what it is given may crash it, hang it or fill the memory."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lab.torture.campaign import Found

MEMORY_MIB = 4096  # that its data may take; beyond it Python raises MemoryError


class Apart:
    """Calls `function`, of a module and of plain values, in a process that is started anew where it has ended.

    It may take `seconds`, the first time `patience` more, for its imports. What it and its libraries print goes to the
    file `printed`; it runs in the folder of that.
    """

    def __init__(self, function: Callable[..., str], printed: Path, seconds: float, patience: float = 120) -> None:
        self._function, self._printed, self._seconds, self._patience = function, printed, seconds, patience
        self._process: Any = None

    def __call__(self, evidence: bytes, *arguments: str) -> str:
        """What the function gives. Raises Found, with the evidence, where it raises, ends its process or is late."""
        waits = self._seconds if self._process else self._seconds + self._patience
        if self._process is None:
            self._start()
        self._ours.send(arguments)
        if not self._ours.poll(waits):
            self.close()
            raise Found(f"took more than {waits:g} s", evidence)
        try:
            came, words = self._ours.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            self.close()
            raise Found(f"ended its process with status {status}", evidence) from None
        if not came:
            raise Found(words, evidence)
        return str(words)

    def _start(self) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._ours, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_answer, args=(self._function, theirs, str(self._printed)), daemon=True)
        self._process.start()
        theirs.close()

    def close(self) -> None:
        """End the process, whatever it is at."""
        if self._process:
            self._process.kill()
            self._process.join()
            self._ours.close()
            self._process = None


def _answer(function: Callable[..., str], pipe: Connection, printed: str) -> None:
    """The life of the process: a call after the other, until the pipe closes."""
    with open(printed, "ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(Path(printed).parent)
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MIB << 20,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError):
        while True:
            arguments = pipe.recv()
            try:
                pipe.send((True, function(*arguments)))
            except Found as found:
                pipe.send((False, str(found)))
            except Exception as error:  # whatever it is: no sentence of ours
                pipe.send((False, f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"))
