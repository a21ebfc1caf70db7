"""`kill -9` at a random moment of each command: what exists is whole, and the command typed again ends as undisturbed.

The moment is a time, or a call by which a file is made, written or renamed: those windows are too short for a clock.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from lab.torture import layer
from lab.torture.campaign import Attempt, Found
from lab.torture.commands import COMMANDS, Running, World
from lab.torture.served import Answers, Service, answers_of, classified, service
from runtime.deployment import Deployment

ATTEMPTS = 200
LONGER = 1.2  # times the seconds of an undisturbed run: some kills come too late
RELOAD_SECONDS = 1.5  # in which a service takes over another deployment


@contextmanager
def prepared(folder: Path) -> Iterator[Attempt]:
    """The artefacts before and after each command."""
    yield attempts(World(folder))


def attempts(world: World) -> Attempt:
    """Kills of the commands that a world knows, and of its service."""
    answers = answers_of(world.folder)
    kinds = [partial(_killed, world, name) for name in world.after] + [partial(_reloaded, world, answers)]
    kinds += [partial(_chosen, world)] if "bench" in world.after else []
    return lambda chance: chance.choice(kinds)(chance)


def _killed(world: World, name: str, chance: random.Random) -> str:
    """A command is killed at a moment of its whole run."""
    seconds = chance.uniform(0, LONGER * world.seconds[name])
    at = chance.randint(1, world.calls[name]) if chance.random() < 0.5 else 0
    with world.fresh(name) as place:
        running = Running(COMMANDS[name], place, partial(layer.kill_at, at))
        if not at:
            running.wait(seconds)
            running.kill()
        running.wait()
        came = world.require_whole(name, place)
        world.require_same_again(name, place)
    return came


def _chosen(world: World, chance: random.Random) -> str:
    """The benchmark is killed at one of its calls: it makes them when all is measured, to keep and to choose."""
    at = chance.randint(1, world.calls["bench"])
    with world.fresh("bench") as place:
        Running(COMMANDS["bench"], place, partial(layer.kill_at, at)).wait()
        came = world.require_whole("bench", place)
        world.require_same_again("bench", place)
    return came


def _reloaded(world: World, answers: Answers, chance: random.Random) -> str:
    """The service is killed while it takes over another deployment; another one serves what is there."""
    with world.fresh() as place:
        file, photos = place / "out" / "deployment.json", list(answers)
        earlier = Deployment.read(file)
        with service(place) as serving:
            replace(earlier, choice=replace(earlier.choice, threads=1)).write(file)
            end = time.monotonic() + chance.uniform(0, RELOAD_SECONDS)
            while time.monotonic() < end:
                _require_answer(serving, chance.choice(photos), answers)
            serving.running.kill()
        with service(place) as serving:
            _require_answer(serving, chance.choice(photos), answers)
    return "served again"


def _require_answer(serving: Service, photo: bytes, answers: Answers) -> None:
    status = classified(serving.address, photo, answers)
    if status != 200:
        raise Found(f"the service answers with {status}")
