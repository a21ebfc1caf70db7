"""saji's commands on a set so small that each takes a second or two, and what they must leave behind.

They run in processes that are forked from one which has imported all libraries once (Python's forkserver): what is not
covered by that is the start of Python itself, which writes nothing. The network is one of five layers.
"""

import contextlib
import csv
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lab.torture import layer
from lab.torture.campaign import Found
from runtime.benchmark.rows import read_rows
from runtime.classifier import load
from runtime.command_line import exit_with_one_sentence
from runtime.deployment import Deployment
from runtime.evaluation import ValidationSet
from runtime.files import read_json, sha256_file, sha256_json
from runtime.receipt import Receipt

NETWORK, RUN = "tiny", "tiny"
BLOCK = 4096  # bytes that files on a disk in memory are made of
SECONDS = 300  # after which a command hangs
Prepare = Callable[[Path], None]  # called in the child, before its command begins, with a file for its trace
Digests = dict[str, str]  # of artefacts, by their paths in `out`
# What holds times, or what was measured, and is other each time
VOLATILE = ("bench.jsonl", "bench.md", "bench.svg", "report.md", "history.csv")
ROWS, DUPLICATES = "rows.csv", "cache/*.duplicates.json"

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *(
            "lab.torture.network",
            "demo.app",
            "demo.service.api",
            "training.__main__",
            "training.run.train",
            "export.__main__",
        ),
        *(
            "training.outcome.report",
            "training.photos.duplicates",
            "export.model",
            "export.heatmap",
            "runtime.__main__",
        ),
        *("runtime.backends.pytorch", "onnxruntime", "openvino", "onnxscript", "torch.onnx"),
    ]
)


@dataclass(frozen=True)
class Command:
    """`python -m MODULE ARGUMENT…`, typed in a folder that has `photos`, with artefacts in the folder `out`."""

    module: str
    arguments: tuple[str, ...]


def _train(seed: int) -> Command:
    recipe = "--recipe quick --image-size 32 --epochs 3 --batch-size 16 --precision fp32 --validation-share 0.5"
    arguments = f"--data photos --run {RUN} --out out --archs {NETWORK} {recipe} --seed {seed}"
    return Command("training.__main__", tuple(arguments.split()))


BENCH = f"bench --out out --archs {NETWORK} --seconds 0.1 --cold-starts 0 --candidates".split()
COMMANDS = {
    "train": _train(1),
    "export": Command("export.__main__", ("--run", RUN, "--out", "out", "--precisions", "fp32")),
    "bench": Command("runtime.__main__", (*BENCH, "ort-cpu fp32")),
    "classify": Command(
        "runtime.__main__", ("classify", "photos", "--model", "out/deployment.json", "--output", "out/rows.csv")
    ),
    "check": Command("training.__main__", ("check", "photos", "--out", "out")),
}


class Running:
    """A command in a process and a group of its own; what it prints goes to `log`."""

    def __init__(self, command: Command, folder: Path, prepare: Prepare | None = None, log: str = "log") -> None:
        self.log, self.started = folder / log, time.monotonic()
        self._process: ForkServerProcess = _CONTEXT.Process(target=_child, args=(command, folder, self.log, prepare))
        self._process.start()
        self.pid = self._process.pid or 0

    def kill(self) -> None:
        """End the whole group, as `kill -9` does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, 9)
        self._process.join()

    def wait(self, seconds: float = SECONDS) -> int | None:
        """The exit status; None where it still runs after so many seconds."""
        self._process.join(max(0.0, self.started + seconds - time.monotonic()))
        return self._process.exitcode

    @property
    def calls(self) -> int:
        """How many calls the layer has counted."""
        return len(self.log.with_suffix(".trace").read_bytes().splitlines())

    def said(self) -> str:
        """What it printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def _child(command: Command, folder: Path, log: Path, prepare: Prepare | None) -> None:
    os.setsid()
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(file, number)
    sys.argv = [command.module, *command.arguments]
    main = importlib.import_module(command.module).main
    if prepare:
        prepare(log.with_suffix(".trace"))
    exit_with_one_sentence(main)


class World:
    """The artefacts before and after some of COMMANDS, typed one after the other, in an empty folder.

    `calls` and `seconds` are those of each command when nothing disturbs it.
    """

    def __init__(self, folder: Path, names: Sequence[str] = tuple(COMMANDS)) -> None:
        from training.photos.drawn import write_sample

        self.folder, self.calls, self.seconds = folder, dict[str, int](), dict[str, float]()
        write_sample(folder / "photos", per_class=14, size=64)
        for command in (_train(0), COMMANDS["export"], COMMANDS["bench"]):
            self._undisturbed(command, folder)
        for name in names:
            if name == "check":
                for file in (folder / "out").glob(DUPLICATES):
                    file.unlink()
            shutil.copytree(folder / "out", folder / "before" / name)
            done = self._undisturbed(COMMANDS[name], folder)
            self.calls[name], self.seconds[name] = done.calls, time.monotonic() - done.started
            shutil.copytree(folder / "out", folder / "after" / name)
        self.before = {name: digests(folder / "before" / name) for name in names}
        self.after = {name: digests(folder / "after" / name) for name in names}

    def _undisturbed(self, command: Command, folder: Path) -> Running:
        log = f"{command.arguments[0]}.{len(list(folder.glob('*.log')))}.log"
        done = Running(command, folder, layer.watch, log)
        if done.wait() != 0:
            raise RuntimeError(f"{command} fails undisturbed: {done.said()[-500:]}")
        return done

    @contextlib.contextmanager
    def fresh(self, name: str = "", room: int | None = None) -> Iterator[Path]:
        """A folder to type a command in, as it was before, or without a name as all is now; it goes afterwards.

        With `room`, its artefacts are on a disk of their own, which has so many more bytes; see `may_mount`.
        """
        before = self.folder / "before" / name if name else self.folder / "out"
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary, contextlib.ExitStack() as mounted:
            place = Path(temporary)
            (place / "photos").symlink_to(self.folder / "photos")
            (place / "out").mkdir()
            if room is not None:
                blocks = sum(-(-file.stat().st_size // BLOCK) for file in before.rglob("*") if file.is_file())
                mounted.enter_context(disk(place / "out", blocks * BLOCK + room))
            shutil.copytree(before, place / "out", dirs_exist_ok=True)
            yield place

    def require_whole(self, name: str, place: Path) -> str:
        """How far a disturbed command has come, in words. Raises Found where an artefact is not what it was before or
        is afterwards, or does not open."""
        before, after, now = self.before[name], self.after[name], digests(place / "out")
        for file in before.keys() & after.keys():
            if now.get(file) not in (before[file], after[file]) and file != ROWS:
                raise Found(f"{name}: {file} is {'another' if file in now else 'gone'}")
        for file in after.keys() - before.keys():
            if file in now and now[file] != after[file] and file != ROWS:
                raise Found(f"{name}: {file} is half-made")
        opened = Running(Command(__name__, ("out",)), place, log="opened.log")
        if opened.wait() != 0:
            raise Found(f"{name}: an artefact does not open: {opened.said()[-300:]}", opened.said().encode())
        new = {file for file in after if before.get(file) != after[file]}
        done = sum(now.get(file) == after[file] for file in new)
        return "as before" if not done else "done" if done == len(new) else "half way"

    def require_same_again(self, name: str, place: Path) -> None:
        """Type the command again. Raises Found where it fails, or ends otherwise than without the disturbance."""
        again = Running(COMMANDS[name], place, log="again.log")
        if again.wait() != 0:
            raise Found(f"{name}: the same command fails: {again.said()[-300:]}", again.said().encode())
        now = digests(place / "out")
        for file in now.keys() | self.after[name].keys():
            if now.get(file) != self.after[name].get(file):
                raise Found(f"{name}: the same command ends with another {file}", again.said().encode())


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """A disk in memory of `size` bytes, mounted on an empty folder. Raises OSError where this process may not mount."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "saji", folder], capture_output=True)
    if done.returncode:
        raise PermissionError(done.stderr.decode().strip())
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def may_mount(folder: Path) -> bool:
    """Whether this process may mount disks."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=folder) as place, disk(Path(place), BLOCK):
        return True
    return False


def digests(out: Path) -> Digests:
    """What the artefacts of a folder say, each as a SHA-256; of a choice and of rows without what was timed."""
    found = {}
    for file in sorted(out.rglob("*")):
        path = file.relative_to(out)
        hidden = any(part.startswith(".") for part in path.parts)
        if file.is_file() and not hidden and path.name not in VOLATILE and path.parts[0] != "logs":
            found[path.as_posix()] = _digest(file)
    return found


def _digest(file: Path) -> str:
    if file.name == "deployment.json":
        choice = Deployment.read(file).choice
        return sha256_json([choice.name, choice.sha256])
    if file.name == ROWS:
        with open(file, newline="", encoding="utf-8") as lines:
            return sha256_json(sorted(row[:-1] for row in csv.reader(lines)))
    return sha256_file(file)


def main() -> None:
    """Open every artefact of a folder, as whoever uses it does. Raises what is wrong."""
    from training.outcome.summary import read_outcome

    out = Path(sys.argv[1])
    for checkpoint in out.glob("runs/*/*/checkpoint.pt"):
        read_outcome(checkpoint.parent)
    for photos in [*out.glob("runs/*/*/validation.npz"), *out.glob("runs/*/*/calibration.npz")]:
        ValidationSet.load(photos)
    for receipt in out.glob("models/[!.]*/model.json"):
        facts = Receipt.read(receipt.parent)
        for file in facts.files:
            facts.verify(receipt.parent, file)
        load(receipt.parent).close()
    for record in out.rglob("[!.]*.json"):
        read_json(record)
    if (out / "bench.jsonl").exists():
        read_rows(out / "bench.jsonl")
    deployment = Deployment.read(out / "deployment.json")
    folder = out / deployment.choice.folder
    if Receipt.read(folder).files[deployment.choice.candidate.file].sha256 == deployment.choice.sha256:
        load(out / "deployment.json").close()
