"""Each command on disks that fail, are full or read-only, while clocks jump, and beside another one that does the same.

It ends in one sentence, or as if nothing had happened; what was good before stays good, and the command typed again
ends as undisturbed. Where this process may mount one, full disks are real ones, too.
"""

import errno
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lab.torture import layer
from lab.torture.campaign import Attempt, Found
from lab.torture.commands import COMMANDS, NETWORK, Command, Running, World, may_mount
from runtime.receipt import Receipt

ATTEMPTS = 200
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS)
ROOM = 2**20  # bytes that a full disk has at most above what lies there already
READERS = 3  # while an export replaces what they read
ONE_SENTENCE = "saji: "


@contextmanager
def prepared(folder: Path) -> Iterator[Attempt]:
    """The artefacts before and after each command."""
    yield attempts(World(folder))


def attempts(world: World) -> Attempt:
    """Disturbances of the commands that a world knows."""
    kinds: list[Callable[[World, random.Random], str]] = [_failing, _failing, _failing, _jumping, _twice]
    kinds += [_full] if may_mount(world.folder) else []
    kinds += [_read] if "export" in world.after else []
    return lambda chance: chance.choice(kinds)(world, chance)


def _failing(world: World, chance: random.Random) -> str:
    """One call fails, or all from one on."""
    name, lasts = chance.choice([*world.after]), chance.random() < 0.5
    at, error = chance.randint(1, world.calls[name]), chance.choice(ERRORS)
    with world.fresh(name) as place:
        came = _ended(world, name, place, Running(COMMANDS[name], place, partial(layer.fail_at, at, error, lasts)))
        world.require_same_again(name, place)
    return came


def _jumping(world: World, chance: random.Random) -> str:
    """The clock jumps, and the time zone is another."""
    name = chance.choice([*world.after])
    with world.fresh(name) as place:
        came = _ended(world, name, place, Running(COMMANDS[name], place, partial(layer.jump, chance.getrandbits(32))))
        world.require_same_again(name, place)
    return came


def _full(world: World, chance: random.Random) -> str:
    """A disk of its own with a little room; it is real, so that libraries which write in C meet it, too."""
    name = chance.choice([*world.after])
    with world.fresh(name, chance.randint(0, ROOM)) as place:
        came = _ended(world, name, place, Running(COMMANDS[name], place))
        subprocess.run(["mount", "-o", "remount,size=100%", place / "out"], check=True)
        world.require_same_again(name, place)
    return came


def _twice(world: World, chance: random.Random) -> str:
    """The same command is typed in two windows at about the same time."""
    name = chance.choice([*world.after])
    with world.fresh(name) as place:
        first = Running(COMMANDS[name], place, log="first.log")
        first.wait(chance.uniform(0, world.seconds[name]))
        second = Running(COMMANDS[name], place, log="second.log")
        came = {_ended(world, name, place, running) for running in (first, second)}
        if came == {"refused"}:
            raise Found(f"{name}: each of two refuses for the other: {first.said()[-200:]} {second.said()[-200:]}")
        world.require_same_again(name, place)
    return "refused" if "refused" in came else "harmless"


def _read(world: World, chance: random.Random) -> str:
    """Somebody classifies with a model while it is exported anew."""
    command = Command("runtime.__main__", ("classify", "photos", "--model", f"out/models/{NETWORK}", "--csv"))
    with world.fresh("export") as place:
        files = {Receipt.read(place / "out" / "models" / NETWORK).files["model.onnx"].sha256}
        export = Running(COMMANDS["export"], place)
        export.wait(world.seconds["export"] * chance.uniform(0.6, 0.9))
        readers = [Running(command, place, log=f"reader{number}.log") for number in range(READERS)]
        came = {_sentence_or_end("classify", reader) for reader in readers}
        came.add(_ended(world, "export", place, export))
        files.add(Receipt.read(place / "out" / "models" / NETWORK).files["model.onnx"].sha256)
        for reader in readers:
            served_by = {
                line.split(",")[-2].rpartition(" ")[2] for line in reader.said().splitlines() if ".jpg," in line
            }
            if len(served_by) > 1 or not all(any(sha.startswith(by) for sha in files) for by in served_by):
                raise Found(f"a reader was answered by {served_by}", reader.said().encode())
    return "refused" if "refused" in came else "harmless"


def _ended(world: World, name: str, place: Path, running: Running) -> str:
    """How a disturbed command has ended. Raises Found for anything else than one sentence, or an end as undisturbed."""
    came = _sentence_or_end(name, running)
    whole = world.require_whole(name, place)
    if came == "harmless" and whole != "done":
        raise Found(f"{name}: it says that all is well, and things are {whole}", running.said().encode())
    return came


def _sentence_or_end(name: str, running: Running) -> str:
    status, said = running.wait(), running.said()
    if status is None:
        running.kill()
        raise Found(f"{name}: it does not end", said.encode())
    if "Traceback" in said or "Exception" in said:
        raise Found(f"{name}: a traceback: {said.strip().splitlines()[-1][:200]}", said.encode())
    if status and not said.strip().splitlines()[-1].startswith(ONE_SENTENCE):
        raise Found(f"{name}: ends with {status} and says {said.strip()[-200:]}", said.encode())
    return "refused" if status else "harmless"
