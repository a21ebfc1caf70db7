"""Candidates checked in a process beside the export: what ends that one costs the candidate that it was at.

That is a fault of an engine's library, or want of memory; the others are checked in another process.

Speaks pickles, for both sides are this module: first what `check_candidate` takes beside a candidate, then one
candidate after the other, each answered by itself with its verdict.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.candidate import Candidate, check_candidate
from runtime.evaluation import ValidationSet
from runtime.machine import machine
from runtime.spec import ModelSpec
from runtime.terminal import library_output

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 10  # seconds that a process may take from closing its pipe to its end


class OwnProcess(contextlib.AbstractContextManager["OwnProcess"]):
    """Where the candidates of a model folder are checked on its validation photos; leaving the block ends it."""

    def __init__(self, folder: Path, validation: ValidationSet, spec: ModelSpec) -> None:
        self.given = folder.resolve(), validation, spec  # in the process the working directory is another
        self.process: subprocess.Popen[bytes] | None = None

    def check(self, candidate: Candidate) -> Candidate:
        """As `runtime.candidate.check_candidate`; a candidate that ends the process fails."""
        # The checkpoint's own library runs in this one already, and takes seconds to start
        here = candidate.backend == "pytorch"
        checked = check_candidate(candidate, *self.given) if here else self._ask(candidate)
        folder = f"{self.given[0]}{os.sep}"  # soon renamed
        reasons = tuple(reason.replace(folder, "") for reason in checked.reasons)
        return replace(checked, reasons=reasons, machine=machine())

    def _ask(self, candidate: Candidate) -> Candidate:
        process = self.process = self.process or self._started()
        assert process.stdin and process.stdout
        try:
            _send(candidate, process.stdin)
            answer: Candidate = pickle.load(process.stdout)
            return answer
        except (EOFError, OSError, pickle.UnpicklingError):  # the last where it died amid an answer
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)  # it is at its end, of which it tells how
            self.close()
            reason = f"it ended the process that ran it ({_status(process.returncode)})"
            return replace(candidate, verdict="fail", reasons=(reason,))

    def _started(self) -> subprocess.Popen[bytes]:
        command, pipe = [sys.executable, "-m", "export.own_process"], subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=library_output(), cwd=ROOT)
        with contextlib.suppress(OSError):  # it died at its start, as the answer that never comes will say
            _send(self.given, process.stdin)
        return process

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it is at."""
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _send(what: Any, stream: Any) -> None:
    pickle.dump(what, stream)
    stream.flush()


def _status(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"status {code}"


def main() -> None:
    """Check what comes through stdin until that is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print must not break the protocol
    with contextlib.suppress(EOFError):
        given = pickle.load(sys.stdin.buffer)
        while True:
            _send(check_candidate(pickle.load(sys.stdin.buffer), *given), answers)


if __name__ == "__main__":
    main()
