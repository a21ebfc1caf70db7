"""The log: whoever reads it, or does not, nobody who logs waits, and every line is JSON."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT
from test_service import wait_until

from demo.service.monitoring import DROPPED, LINES, Lines

CHATTY = """
import logging, os, sys, threading
from demo.service.monitoring import log_as_json
def chat():
    for number in range(5000):
        logging.getLogger("saji").info("request " + "x" * 200)
        print("a library says", number, "x" * 200)
with log_as_json():
    threads = [threading.Thread(target=chat, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    os._exit(any(thread.is_alive() for thread in threads))
"""


@contextmanager
def taker(what: str) -> Iterator[int]:
    """Where a log goes: to a reader that takes nothing, to one that has gone, or to a disk that is full."""
    reading, writing = os.pipe()
    if what == "gone":
        os.close(reading)
    to = os.open("/dev/full", os.O_WRONLY) if what == "full disk" else writing
    yield to
    for number in {writing, to} | ({reading} if what != "gone" else set()):
        os.close(number)


@pytest.mark.parametrize("what", ["stalled", "gone", "full disk"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_nobody_takes_holds_up_nobody(what: str) -> None:
    with taker(what) as to:
        process = subprocess.Popen([sys.executable, "-c", CHATTY], cwd=ROOT, stdout=to, stderr=to)
        try:
            assert process.wait(PATIENCE) == 0, "a thread waits for its line to be written"
        finally:
            process.kill()


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, int]]:
    """A logger, and where its lines come out."""
    reading, writing = os.pipe()
    logger, lines = logging.Logger("of no tree"), Lines(writing)
    logger.addHandler(lines)
    yield logger, reading
    os.close(reading)
    lines.close()
    os.close(writing)


def read_until(reading: int, end: str, came: bytes = b"") -> list[str]:
    """The events up to that one, of which some may have come; each line has to be JSON."""
    while f'"{end}"}}\n'.encode() not in came:
        came += os.read(reading, 65536)
    return [json.loads(line)["event"] for line in came.splitlines()]


def test_a_reader_that_comes_back_reads_on_and_what_was_dropped_is_counted(log: tuple[logging.Logger, int]) -> None:
    logger, reading = log
    before = DROPPED._value.get()
    for number in range(5 * LINES):
        logger.info("%s", number)
    assert DROPPED._value.get() > before
    came = b""
    while logger.handlers[0]._waiting:  # type: ignore[attr-defined]
        came += os.read(reading, 65536)
    logger.info("back")
    events = read_until(reading, "back", came)
    assert events[:3] == ["0", "1", "2"] and events == [*sorted(events[:-1], key=int), "back"]


def test_a_path_that_is_no_text_is_a_line_too(log: tuple[logging.Logger, int]) -> None:
    logger, reading = log
    logger.error("%s", "caf\udce9.json")
    logger.info("next")
    assert read_until(reading, "next") == ["caf\udce9.json", "next"]


def test_what_waits_is_written_at_the_end(log: tuple[logging.Logger, int]) -> None:
    logger, reading = log
    for _ in range(100):
        logger.info("last")
    logger.handlers[0].close()
    wait_until(lambda: not logger.handlers[0]._writing.is_alive())  # type: ignore[attr-defined]
    assert os.read(reading, 65536).count(b"\n") == 100
