"""The service with something wrong for some seconds, beside clients: it recovers by itself, and says how it is.

The engine raises or hangs, decoders are killed, the process gets no more memory, or the disk of the deployment is slow.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from lab.torture.campaign import Attempt, Found
from lab.torture.commands import World
from lab.torture.served import CLIENTS, PATIENCE, PAUSE, SECONDS, Clients, Service, answers_of, asking, service, until

ATTEMPTS = 60
LONGEST = 2 * SECONDS + 1  # seconds of a trouble
AT_ONCE = 0.5  # seconds in which /readyz has to tell that the engine fails
ROOM = 32 * 2**20  # bytes that the service gets at most, above what it has
PATIENT, SLOWER = 1.5, 3  # seconds that a client may wait while another disk is slow, and times as in calm

Trouble = Callable[[Service, Clients, float, random.Random], None]


@contextmanager
def prepared(folder: Path) -> Iterator[Attempt]:
    """The artefacts of a tiny network."""
    yield attempts(World(folder, ()))


def attempts(world: World) -> Attempt:
    """Troubles of a service, each with a service of its own."""
    answers = answers_of(world.folder)

    def attempt(chance: random.Random) -> str:
        name, seconds = chance.choice([*KINDS]), chance.uniform(0.5, LONGEST)
        trouble, may_come, patience = KINDS[name]
        with world.fresh() as place, service(place) as serving, asking(serving.address, answers, chance) as clients:
            until(lambda: clients.came[200] >= CLIENTS, "the service answers nobody before there is any trouble")
            calm_longest, clients.longest = _in_calm(clients), 0.0
            trouble(serving, clients, seconds, chance)
            serving.trouble()
            calm = clients.came[200]
            until(lambda: clients.came[200] >= calm + 2 * CLIENTS, f"{name}: it does not recover")
            until(serving.ready, f"{name}: it answers, and /readyz is red")
        if clients.wrong:
            raise clients.wrong
        if clients.longest > patience + SLOWER * calm_longest:
            raise Found(f"{name}: a client waits {clients.longest:.1f} s")
        if others := {status: n for status, n in clients.came.items() if status not in (200, *may_come)}:
            raise Found(f"{name}: these statuses came as well: {others}", serving.running.said().encode())
        return name

    return attempt


def _in_calm(clients: Clients) -> float:
    """The seconds that a client waits at most for a while in which nothing is wrong, and decoders have started."""
    clients.longest = 0.0
    time.sleep(1)
    return clients.longest


def _raising(serving: Service, clients: Clients, seconds: float, chance: random.Random) -> None:
    serving.trouble("raises 1")
    _require_red(serving, seconds, after=AT_ONCE)


def _hanging(serving: Service, clients: Clients, seconds: float, chance: random.Random) -> None:
    serving.trouble("hangs 1")
    _require_red(serving, seconds, after=SECONDS + AT_ONCE)


def _require_red(serving: Service, seconds: float, after: float) -> None:
    """Look at /readyz for some seconds. Raises Found where it is green `after` so many in which nobody is answered."""
    started = time.monotonic()
    while (passed := time.monotonic() - started) < seconds:
        if passed > after and serving.ready():
            raise Found(f"/readyz is green after {passed:.1f} s in which the engine answers nobody")
        time.sleep(PAUSE)


def _without_decoders(serving: Service, clients: Clients, seconds: float, chance: random.Random) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for decoder in psutil.Process(serving.running.pid).children():
            with suppress(psutil.NoSuchProcess):
                decoder.kill()
        time.sleep(chance.uniform(0.2, 1))


def _without_memory(serving: Service, clients: Clients, seconds: float, chance: random.Random) -> None:
    process = psutil.Process(serving.running.pid)
    soft, hard = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + chance.randrange(ROOM), hard))
    time.sleep(seconds)
    process.rlimit(psutil.RLIMIT_AS, (soft, hard))


def _on_a_slow_disk(serving: Service, clients: Clients, seconds: float, chance: random.Random) -> None:
    serving.trouble(f"slow-disk {seconds}")
    time.sleep(seconds)


# With the statuses that may come beside 200, and the seconds that a client may wait
KINDS: dict[str, tuple[Trouble, tuple[int, ...], float]] = {
    "the engine raises": (_raising, (500,), PATIENCE),
    "the engine hangs": (_hanging, (429, 503), PATIENCE),
    "decoders are killed": (_without_decoders, (503,), PATIENCE),
    "no more memory": (_without_memory, (0, 500, 503), PATIENCE),
    "the disk is slow": (_on_a_slow_disk, (), PATIENT),
}
