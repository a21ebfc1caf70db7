"""Faults of disks, processes and engines: each campaign's first attempts, and what the campaigns have found."""

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import PATIENCE
from test_decoders import DISH, GEOMETRY
from test_demo import colour_classifier, running, serving_of
from test_service import photo, send

from demo.service import queue
from demo.service.decoders import Decoders
from demo.service.limits import Limits
from demo.service.problem import Problem
from lab import soak
from lab.torture import disks, kills, layer, troubles
from lab.torture.commands import COMMANDS, NETWORK, Running, World, disk, may_mount
from runtime import files
from runtime.benchmark.rows import append_rows, read_rows
from runtime.errors import SajiError
from runtime.evaluation import ValidationSet
from runtime.files import alone, make_folder, replacing_folder
from runtime.rowfile import RowFile

on_linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="processes and files are looked at by Linux")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The artefacts of a tiny network, before and after the commands that take least."""
    return World(tmp_path_factory.mktemp("world"), ("classify", "check"))


# --- the campaigns


@on_linux
@pytest.mark.parametrize(("campaign", "number"), [(kills, 2), (disks, 3), (troubles, 1)])
def test_the_first_attempts_find_nothing(campaign: Any, number: int, world: World) -> None:
    attempt = campaign.attempts(world)
    for seed in range(number):
        assert attempt(random.Random(seed))


@on_linux
def test_the_layer_does_what_it_is_told(world: World) -> None:
    with world.fresh("check") as place:
        killed = Running(COMMANDS["check"], place, partial(layer.kill_at, 3))
        assert killed.wait() == -signal.SIGKILL and killed.calls == 3
        failed = Running(COMMANDS["check"], place, partial(layer.fail_at, 1, errno.ENOSPC, True), log="failed.log")
        assert failed.wait() == 2 and "No space left on device" in failed.said()
    with pytest.raises(Exception, match="half-made"), world.fresh("check") as place:
        damaged = place / "out" / next(file for file in world.after["check"] if file not in world.before["check"])
        damaged.parent.mkdir(parents=True, exist_ok=True)
        damaged.write_text("half")
        world.require_whole("check", place)


@on_linux
def test_a_disk_that_is_full_is_a_real_one(tmp_path: Path) -> None:
    if not may_mount(tmp_path):
        pytest.skip("this process may not mount a disk")
    with pytest.raises(OSError, match="No space left"), disk(make(tmp_path / "small"), 2 * 4096):
        (tmp_path / "small" / "large").write_bytes(bytes(3 * 4096))


def make(folder: Path) -> Path:
    make_folder(folder)
    return folder


@on_linux
def test_engines_leave_nothing_behind(world: World) -> None:
    looks = soak.loads(world.folder / "out" / "models" / NETWORK, "ort-cpu", 12)
    assert looks[-1][1:] == looks[2][1:]  # threads and open files


def test_a_slope_has_its_interval() -> None:
    """Of samples that grow by 0.1 each, 95 % of the intervals hold that; what is level is said to be."""
    chance, held = np.random.default_rng(0), 0
    for _ in range(400):
        looks = [(100 + 0.1 * n + noise, 5.0, 7.0) for n, noise in enumerate(chance.normal(0, 1, 300))]
        facts = soak.slopes(looks, 10)
        low, slope, high = facts["memory_mib"]["growth"]
        held += low < 1 < high
        assert abs(slope - 1) < 0.2 and facts["threads"] == {"first": 5.0, "last": 5.0, "growth": [0.0, 0.0, 0.0]}
    assert 0.92 < held / 400 < 0.98


# --- what they found: files


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, replace = make(tmp_path / "model"), os.replace
    (model / "old").write_text("")

    def full(source: Any, target: Any) -> None:
        if target == model and not Path(source).name.endswith(".old"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"), replacing_folder(model, "old") as new:
        (new / "new").write_text("")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/old"]


def test_a_folder_that_is_made_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "_to_disk", synced.append)
    make_folder(tmp_path / "out" / "models")
    make_folder(tmp_path / "out" / "models")
    assert (tmp_path / "out" / "models").is_dir() and synced == [tmp_path, tmp_path / "out"]


@pytest.mark.parametrize("last", ['{"n": 2', '{"n": 2}', ""])
def test_rows_go_on_behind_one_that_was_cut_off(last: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    file.write_text('{"n": 1}\n' + last)
    append_rows(file, [{"n": 3}])
    assert [row["n"] for row in read_rows(file)] == ([1, 2, 3] if last.endswith("}") else [1, 3])


def test_rows_are_appended_behind_what_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text('{\n "mine": 1\n}')
    append_rows(tmp_path / "mine", [{"n": 3}])
    assert (tmp_path / "mine").read_text() == '{\n "mine": 1\n}\n{"n": 3}\n'


@on_linux
def test_what_is_no_regular_file_gets_no_rows_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/full")):
        for write in (
            RowFile(path, "csv", ("photo", "served_by"), "me").__enter__,
            lambda to=path: append_rows(to, []),
        ):
            with pytest.raises(SajiError, match=r"is no regular file.*; name another one"):
                write()


@on_linux
def test_rows_on_a_full_disk_come_all_or_not_at_all(tmp_path: Path) -> None:
    if not may_mount(tmp_path):
        pytest.skip("this process may not mount a disk")
    file = make(tmp_path / "small") / "bench.jsonl"
    with disk(tmp_path / "small", 2 * 4096):
        append_rows(file, [{"n": 1}])
        with pytest.raises(OSError, match="No space left"):
            append_rows(file, [{"n": "2" * 9000}])
        assert read_rows(file) == [{"n": 1}]


@on_linux
def test_one_place_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    def rows() -> RowFile:
        return RowFile(tmp_path / "a.csv", "csv", ("photo", "served_by"), "me")

    again = pytest.raises(SajiError, match=r"another process is writing rows into .*; wait for it")
    with rows(), again, rows():
        pass
    with rows():  # it was let go
        pass


@on_linux
def test_a_network_is_trained_by_one_process_at_a_time(world: World) -> None:
    with world.fresh() as place, alone(place / "out" / "runs" / "tiny" / NETWORK, "training into"):
        second = Running(COMMANDS["train"], place)
        assert second.wait() == 2 and "another process is training into" in second.said()


@on_linux
def test_an_old_checkpoint_beside_what_a_killed_training_wrote_is_not_exported(world: World) -> None:
    with world.fresh() as place:
        file = place / "out" / "runs" / "tiny" / NETWORK / "validation.npz"
        ValidationSet.load(file).save(file.with_name("calibration.npz"))
        export = Running(COMMANDS["export"], place)
        assert export.wait() == 2 and "calibration.npz is of another training than" in export.said()


@on_linux
def test_duplicates_are_looked_for_again_where_their_record_is_cut_off(world: World) -> None:
    with world.fresh("check") as place:
        [found] = (world.folder / "after" / "check" / "cache").glob("*.duplicates.json")
        (place / "out" / "cache" / found.name).write_bytes(found.read_bytes()[:-9])
        world.require_same_again("check", place)


# --- what they found: the service


class Failing:
    """An engine that fails while it is told to, or waits."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.fails, self.goes_on = engine, False, threading.Event()
        self.goes_on.set()

    def run(self, images: np.ndarray) -> np.ndarray:
        self.goes_on.wait(PATIENCE)
        if self.fails:
            raise RuntimeError
        return np.asarray(self.engine.run(images))

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[Failing, httpx.Client]]:
    classifier = colour_classifier()
    classifier.backend = engine = Failing(classifier.backend)  # type: ignore[assignment]
    with (
        serving_of(classifier, tmp_path, Limits(seconds=1)) as serving,
        running(serving) as address,
        httpx.Client(base_url=address, timeout=PATIENCE) as client,
    ):
        yield engine, client


def becomes(client: httpx.Client, status: int) -> None:
    """The readiness is this one within a while."""
    end = time.monotonic() + PATIENCE
    while client.get("/readyz").status_code != status:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_is_not_ready_while_the_engine_fails(failing: tuple[Failing, httpx.Client]) -> None:
    engine, client = failing
    assert send(client, photo()).status_code == 200
    engine.fails = True
    assert send(client, photo()).status_code == 500 and client.get("/readyz").status_code == 503
    engine.fails = False
    becomes(client, 200)  # though nobody else asks it
    assert send(client, photo()).status_code == 200


def test_requests_that_are_given_up_do_not_make_a_hung_engine_ready(failing: tuple[Failing, httpx.Client]) -> None:
    engine, client = failing
    engine.goes_on.clear()
    asking = [threading.Thread(target=send, args=(client, photo())) for _ in range(2 * (os.cpu_count() or 1) + 2)]
    for thread in asking:
        thread.start()
    for thread in asking:  # more than there are threads: the others wait, and are given up
        thread.join()
    ready = client.get("/readyz").status_code
    engine.goes_on.set()
    assert ready == 503
    becomes(client, 200)


def test_a_slow_disk_keeps_nobody_waiting(
    failing: tuple[Failing, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = failing
    looked, goes_on = threading.Event(), threading.Event()

    def slow(self: Any) -> None:
        looked.set()
        goes_on.wait(PATIENCE)

    monkeypatch.setattr(queue.Serving, "_stamp_now", slow)
    try:
        assert looked.wait(PATIENCE)
        assert client.get("/healthz", timeout=PATIENCE / 2).status_code == 200
    finally:
        goes_on.set()


@on_linux
def test_a_photo_is_decoded_again_where_the_system_has_killed_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = Decoders(Limits(decoders=1))
    try:
        right, _ = decoders.pixels(DISH, GEOMETRY)
        for times in (1, 2):
            killed = dying(decoders, times, monkeypatch)
            if times == 1:
                assert (decoders.pixels(DISH, GEOMETRY)[0] == right).all()
            else:
                with pytest.raises(Problem) as refused:
                    decoders.pixels(DISH, GEOMETRY)
                assert (refused.value.status_code, refused.value.cause) == (503, "no-decoder")
            assert not killed
    finally:
        decoders.close()


def dying(decoders: Decoders, times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the next so many processes be killed when they are asked; those that are left to be."""
    from demo.service import decoders as module

    left, ask = list(range(times)), module._Process.ask

    def asked(self: Any, *order: Any) -> Any:
        if left:
            left.pop()
            self._popen.send_signal(signal.SIGKILL)
            self._popen.wait()
        return ask(self, *order)

    monkeypatch.setattr(module._Process, "ask", asked)
    return left
