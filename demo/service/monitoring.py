"""What an operator sees: the numbers of `/metrics`, and log lines as JSON on stderr.

Nothing of a photo is in them, neither content nor name.
"""

import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge, Histogram, Info

from demo.service.pipes import widen

# Names follow Prometheus: base units, `_total` for counters
_LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# Routes are templates (/v1/classify), never paths as sent: those are without bound and hold names of files
REQUESTS = Counter("saji_requests_total", "Requests by route and status", ["route", "status"])
ERRORS = Counter("saji_errors_total", "Refused and failed requests by cause", ["cause"])
REQUEST_SECONDS = Histogram(
    "saji_request_seconds",
    "From the end of a request's head to the last byte of its answer",
    ["route"],
    buckets=_LATENCIES,
)
PART_SECONDS = Histogram("saji_part_seconds", "Parts of an answer, per photo", ["part"], buckets=_LATENCIES)
QUEUE_DEPTH = Gauge("saji_queue_depth", "Requests whose photos are being decoded, wait, or are being answered")
BATCH_SIZE = Histogram("saji_batch_size", "Photos that went through the engine together", buckets=(1, 2, 4, 8, 16, 32))
ENGINE = Info("saji_engine", "What serves now")
RELOADS = Counter("saji_reloads_total", "Deployments that were looked at again", ["outcome"])
DROPPED = Counter("saji_log_lines_dropped_total", "Lines of the log that could not be written, or not soon enough")

LINES = 2_000  # of the log that wait for its reader, a few hundred bytes each
TOGETHER_SECONDS = 0.05  # of lines that are written at a time: to wake a thread for each would hold up who answers
LAST_SECONDS = 1.0  # for what waits when the process ends
_PRINTED = logging.getLogger("printed")


# By hand: python-json-logger needs a subclass as long as this one for our keys, their order and the traceback
class JsonLine(logging.Formatter):
    """A record as one JSON object; `extra={"facts": {...}}` adds keys."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, also of an exception with its traceback."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Lines(logging.Handler):
    """Writes the log to a file descriptor by a thread of its own, and drops what nobody takes.

    A reader that stalls (a terminal at Ctrl-S) or has gone, and a full disk, then hold up nobody who logs. That is told
    by a metric alone: what is printed is logged, too.
    """

    def __init__(self, to: int) -> None:
        super().__init__()
        self.setFormatter(JsonLine())
        self._to, self._waiting, self._ending = to, deque[bytes](), threading.Event()
        self._writing = threading.Thread(target=self._write, daemon=True)
        self._writing.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written soon; never waits."""
        if len(self._waiting) >= LINES:
            return DROPPED.inc()
        try:
            # A path may be no text, which JSON can tell as an escape of its own
            self._waiting.append(self.format(record).encode(errors="backslashreplace") + b"\n")
        except Exception:  # a library's call that does not fit its own message
            self.handleError(record)

    def _write(self) -> None:
        cut, ended = b"", False  # what ends a line of which only a part was taken
        while not ended:
            ended = self._ending.wait(TOGETHER_SECONDS)
            left = b"".join(self._waiting.popleft() for _ in range(len(self._waiting)))
            try:
                while left:
                    left = left[os.write(self._to, cut + left) - len(cut) :]
                    cut = b""
            except OSError:
                cut = b"\n"
                DROPPED.inc(left.count(b"\n"))

    def close(self) -> None:
        """Give what waits a moment to be written."""
        self._ending.set()
        self._writing.join(LAST_SECONDS)
        super().close()


@contextmanager
def log_as_json() -> Iterator[None]:
    """Send our own log and warnings of every library to stderr as JSON lines, and whatever is printed, too.

    What a library prints, in Python or in C, is a line's `event`, under the name of no logger.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before = {number: os.dup(number) for number in (1, 2)}
    printed, pipe = os.pipe()
    widen(pipe)  # more may be printed before this process has a moment to read it
    logging.basicConfig(level=logging.WARNING, handlers=[Lines(os.dup(2))], force=True)
    logging.getLogger("saji").setLevel(logging.INFO)
    for number in before:
        os.dup2(pipe, number)
    os.close(pipe)
    reading = threading.Thread(target=_log_lines, args=(printed,), daemon=True)
    reading.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in before.items():
            os.dup2(original, number)
            os.close(original)
        reading.join(1)  # longer only where a process that was started meanwhile holds on to it


def _log_lines(printed: int) -> None:
    with os.fdopen(printed, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            if line.strip():
                _PRINTED.warning("%s", line.rstrip("\n"))
