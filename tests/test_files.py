"""Files and folders are replaced whole, whenever the power goes and the process is killed."""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

from runtime import command_line, files
from runtime.errors import SajiError
from runtime.files import (
    DAMAGE,
    alone,
    as_record,
    make_folder,
    read_json,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Path]]:
    """A disk that keeps of each file that is renamed nothing but what was synced before; the folders that were."""
    synced: set[tuple[int, int]] = set()
    folders: set[Path] = set()
    fsync, replace = os.fsync, os.replace

    def recorded(descriptor: int) -> None:
        fsync(descriptor)
        facts = os.fstat(descriptor)
        synced.add((facts.st_dev, facts.st_ino))
        folders.add(Path(f"/proc/self/fd/{descriptor}").readlink())

    def forgetting(source: Any, target: Any) -> None:
        for path in (source, *Path(source).rglob("*")):
            facts = Path(path).stat()
            if Path(path).is_file() and (facts.st_dev, facts.st_ino) not in synced:
                os.truncate(path, 0)
        replace(source, target)
        folders.discard(Path(target).parent)

    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", forgetting)
    yield folders


on_linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what is synced is told by Linux")


@on_linux
def test_a_loss_of_power_leaves_a_whole_file(forgetful: set[Path], tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").read_text() and tmp_path in forgetful
    with replacing(tmp_path / "a.json", durable=False) as temporary:
        temporary.write_text("anew each epoch")
    assert not (tmp_path / "a.json").read_text()  # the disk does forget


def test_who_writes_one_file_at_a_time_never_share_a_temporary_one(tmp_path: Path) -> None:
    """As threads do, and containers of one folder, in each of which a process has the number 1."""
    with replacing(tmp_path / "a.json") as first, replacing(tmp_path / "a.json") as second:
        first.write_text("the first")
        second.write_text("the second")
    assert (tmp_path / "a.json").read_text() == "the first" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_on_a_drive_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `OUT=Z:\\artifacts` on Windows: no folder above it is there."""

    def missing(path: Path, **how: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    monkeypatch.setattr(Path, "mkdir", missing)
    with pytest.raises(FileNotFoundError):
        make_folder(Path("/artifacts/models"))


@on_linux
def test_a_loss_of_power_leaves_a_whole_folder(forgetful: set[Path], tmp_path: Path) -> None:
    for text in ("old", "new"):
        with replacing_folder(tmp_path / "model", "engines/a") as new:
            (new / "engines").mkdir()
            (new / "engines" / "a").write_text(text)
        assert (tmp_path / "model" / "engines" / "a").read_text() == text and tmp_path in forgetful


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole_or_not_at_all(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    for text in ("old", "new"):
        with replacing_folder(tmp_path / "model", "old") as new:
            (new / text).write_text(text)
    with pytest.raises(KeyError), replacing_folder(tmp_path / "model", "new") as new:
        (new / "third").write_text("")
        raise KeyError
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/new"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_a_folder_is_open_to_whom_the_umask_opens_it(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        for _ in ("new", "replaced"):
            with replacing_folder(tmp_path / "model"):
                pass
            assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~umask
    finally:
        os.umask(before)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="Linux alone exchanges two names at once")
@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_two_folders_change_places_at_once_by_relative_paths_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        Path(name).mkdir()
        Path(name, name).touch()
    assert files._exchanged(Path("one"), Path("other"))
    assert Path("one", "other").exists() and Path("other", "one").exists()


def test_a_kill_at_any_moment_leaves_one_of_both_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with replacing_folder(tmp_path / "model", "old") as new:
        (new / "old").write_text("")

    def there(*_: Any, **__: Any) -> None:  # each step that changes a name, and the end
        assert (tmp_path / "model").is_dir()

    monkeypatch.setattr(os, "replace", there)
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **how: (there(), rmtree(*args, **how)))
    with replacing_folder(tmp_path / "model", "old") as new:
        (new / "new").write_text("")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]


WRITES = """
import signal, sys, time
from pathlib import Path
from export.side_by_side import _pool
from runtime.command_line import exit_with_one_sentence
from runtime.files import replacing, replacing_folder

def write(place):
    with replacing_folder(place / "model"), replacing(place / "file") as file:
        file.touch()
        print("writing", flush=True)
        time.sleep(100)

def main():
    if sys.argv[2] == "alone":
        write(Path(sys.argv[1]))
    with _pool(1, print) as pool:
        list(pool.map(write, [Path(sys.argv[1])]))

if __name__ == "__main__":
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "who only imports us has his own"
    exit_with_one_sentence(main)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows ends a process at once")
@pytest.mark.parametrize("how", ["alone", "by a child"])
@pytest.mark.parametrize(("stop", "ignored"), [("SIGTERM", False), ("SIGHUP", False), ("SIGTERM", True)])
def test_a_signal_leaves_nothing_half_written(how: str, stop: str, ignored: bool, tmp_path: Path) -> None:
    """Of a scheduler, or of a terminal that closes, whose shell hands it on; under nohup that one does not stop."""
    (tmp_path / "work.py").write_text(WRITES)
    (tmp_path / "torch.py").write_text("def set_num_threads(n): pass")  # which takes seconds to import
    (tmp_path / "place").mkdir()
    process = subprocess.Popen(
        [sys.executable, tmp_path / "work.py", tmp_path / "place", how],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "writing\n"
        assert len(list((tmp_path / "place").iterdir())) == 2
        process.send_signal(signal.SIGHUP if ignored else signal.Signals[stop])
        process.send_signal(signal.Signals[stop])
        said = process.communicate(timeout=50)[1]
        assert process.returncode == 128 + signal.Signals[stop], said
        assert said == f"saji: stopped by {stop}; finished files are kept\n"
        assert not list((tmp_path / "place").iterdir())
    finally:
        process.kill()


def test_a_stop_that_got_lost_is_heeded_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python swallows what is raised while it frees an object."""
    now = itertools.chain([0.0, 0.0, 1.0, 9.0, 9.0])
    monkeypatch.setattr(command_line, "time", SimpleNamespace(monotonic=lambda: next(now)))
    for name in ("stopped_by", "_stopped"):
        monkeypatch.setattr(command_line, name, getattr(command_line, name))
    with pytest.raises(KeyboardInterrupt):
        command_line._stop(signal.SIGTERM, None)
    command_line._stop(signal.SIGTERM, None)  # the same one, handed on
    with pytest.raises(KeyboardInterrupt):
        command_line._stop(signal.SIGTERM, None)


@pytest.mark.parametrize("theirs", ["a folder", "a file", "a link"])
def test_what_somebody_else_put_there_is_never_replaced(theirs: str, tmp_path: Path) -> None:
    there, notes = tmp_path / "model", tmp_path / "notes" / "thesis.txt"
    notes.parent.mkdir()
    notes.write_text("years of work")
    if theirs == "a link":
        there.symlink_to(notes.parent)
    else:
        notes.parent.rename(there) if theirs == "a folder" else notes.rename(there)
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(SajiError, match=r"was not written by saji \(it has no model.json\)"),
        replacing_folder(there, "model.json"),
    ):
        raise AssertionError("hours of work come first")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_came_to_a_place_meanwhile_is_looked_at_again_and_nobody_else_comes_now(tmp_path: Path) -> None:
    looks, free = list[bool](), list[bool]()

    def look() -> None:
        looks.append((tmp_path / "model").exists())
        try:
            with alone(tmp_path, "looking at"):
                free.append(True)
        except SajiError:
            free.append(False)

    with pytest.raises(SajiError, match=r"was not written by saji \(it has no model.json\)"):  # noqa: SIM117
        with replacing_folder(tmp_path / "model", "model.json"):
            write_text(tmp_path / "model" / "own.txt", "somebody's")
    assert (tmp_path / "model" / "own.txt").read_text() == "somebody's"
    shutil.rmtree(tmp_path / "model")
    with replacing_folder(tmp_path / "model", require=look):
        write_text(tmp_path / "model" / "theirs.txt", "another process's")
    assert looks == [False, True] and free == [True, os.name == "nt"]


def test_a_name_that_is_no_text_can_be_written_and_json_reads_it_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_json(tmp_path / "names.json", {"photo": name, "class": "é🍜"})
    write_text(tmp_path / "parity.md", f"| {name} | é🍜 |\n")
    assert read_json(tmp_path / "names.json") == {"photo": name, "class": "é🍜"}
    assert (tmp_path / "parity.md").read_text(encoding="utf-8") == "| caf\\udce9.png | é🍜 |\n"


# --- records: what a JSON file has to hold, by the types of a dataclass


@dataclass(frozen=True)
class Kept:
    """Every kind of field that a record of ours has."""

    name: str = ""
    share: float = 0.0
    photos: int = 0
    right: bool = False
    most: float | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    reasons: tuple[str, ...] = ()
    by_name: dict[str, float] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    within: "Kept | None" = None


RIGHT = {"share": "1", "photos": "-3", "most": "null", "interval": "[0, 0.5]", "within": '{"share": 0.5}'}
RIGHT |= {"others": '{"any": [1, "x", null, NaN]}', "by_name": '{"x": 0.5}', "reasons": "[]"}
WRONG = {
    "name": ["null", "1", '["x"]'],
    "share": ['"much"', "true", "null", "NaN", "Infinity", "-1e999", "9" * 400, "[1]"],
    "photos": ['"3"', "3.0", "true", "null", "9" * 400],
    "right": ["1", '"true"', "null"],
    "most": ['"much"', "NaN", "{}"],
    "interval": ["[0]", "[0, 0.5, 1]", "0.5", "[0, null]", '{"0": 1, "1": 2}'],
    "reasons": ["[1]", '"because"', "[[]]", "[null]"],
    "by_name": ['{"x": "y"}', "[]", '{"x": NaN}', "null"],
    "others": ['{"any": ' + "[" * 500 + "]" * 500 + "}", "[]"],
    "within": ["[]", '{"share": "much"}', '{"nothing": 1}', '"x"'],
    "nothing": ["1"],
}


@pytest.mark.parametrize(("name", "text"), RIGHT.items())
def test_a_record_holds_what_its_fields_say(name: str, text: str) -> None:
    assert as_record(Kept, json.loads(f'{{"{name}": {text}}}')) is not None


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_a_record_with_anything_else_is_damaged(name: str, text: str) -> None:
    with pytest.raises(DAMAGE):
        as_record(Kept, json.loads(f'{{"{name}": {text}}}'))


def test_a_full_disk_tells_the_file_that_was_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_json(tmp_path / "deployment.json", {})
    assert error.value.filename == str(tmp_path / "deployment.json")
