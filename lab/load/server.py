"""The service under load, in a process of its own: its answers by status, its memory, its processor seconds."""

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from runtime.errors import SajiError

START_SECONDS, STOP_SECONDS = 120, 60
_ADDRESS = re.compile(r" on (http://[^\s/]+)")
_ANSWERS = re.compile(r'^saji_requests_total\{route="/v1/classify",status="(\d+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Server:
    """A server that answers at `address`, and its process."""

    address: str
    process: psutil.Process

    def memory_mib(self) -> float:
        """Resident memory now."""
        return round(self.process.memory_info().rss / 2**20, 1)

    def peak_memory_mib(self) -> float:
        """The largest resident memory so far."""
        return peak_memory_mib(self.process)

    def cpu_seconds(self) -> float:
        """Processor seconds so far, user and system, of all threads and of the processes that decode."""
        spent = [each.cpu_times() for each in (self.process, *self.process.children(recursive=True))]
        return sum(times.user + times.system for times in spent)

    def answers(self) -> Counter[str]:
        """How many requests for a label were answered so far, by status, as the service itself counts them."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=START_SECONDS) as answer:
            return Counter({status: int(float(n)) for status, n in _ANSWERS.findall(answer.read().decode())})


def peak_memory_mib(process: psutil.Process) -> float:
    """The largest resident memory of a process so far, which psutil does not tell on Linux."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 2**10, 1)


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[Server]:
    """`python -m MODULE ARGUMENT…`, once it has said "… on ADDRESS". Raises SajiError when it ends before."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with open(log, "wb") as file:
            process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=file, stderr=file)
        try:
            yield Server(_address(process, log), psutil.Process(process.pid))
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: subprocess.Popen, log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        text = log.read_text(encoding="utf-8", errors="replace")
        if address := _ADDRESS.search(text):
            return address[1]
        if process.poll() is not None:
            raise SajiError(f"the server to measure did not start: {(text.strip() or 'no message').splitlines()[-1]}")
        time.sleep(0.05)
    raise SajiError(f"the server to measure did not start within {START_SECONDS} s")
