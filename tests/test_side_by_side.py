"""Checkpoints exported side by side: the receipts come in their order, and whatever happens is told as of one."""

import multiprocessing
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from export import side_by_side
from export.settings import Settings
from export.side_by_side import exported, places
from runtime import command_line
from runtime.errors import BadModel, SajiError

FP32 = Settings(precisions=("fp32",))


@pytest.mark.parametrize(
    ("cores", "free", "limit", "gpu", "most"),
    [(2, 23.5, None, None, 2), (8, 10.0, None, None, 2), (8, 64.0, 9.0, None, 2), (8, 3.0, None, None, 1),
     (1, 64.0, None, None, 1), (8, 64.0, None, "RTX 4090, 570", 1)],
)  # fmt: skip
def test_as_many_at_a_time_as_cores_and_memory_bear_and_one_beside_a_gpu(
    cores: int, free: float, limit: float | None, gpu: str | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()._replace(available=int(free * 2**30))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(side_by_side, "usable_cores", lambda: cores)
    monkeypatch.setattr(side_by_side, "cgroup_limits", lambda: (None, limit))
    monkeypatch.setattr(side_by_side, "gpu_name", lambda: gpu)
    assert places() == most


@pytest.fixture
def two(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(side_by_side, "places", lambda: 2)
    return [Path(shutil.copytree(run, tmp_path / "runs" / "two" / name)) for name in ("b", "a")]


def test_what_is_wrong_with_a_checkpoint_is_told_as_by_one_export(two: list[Path], tmp_path: Path) -> None:
    for run in two:
        (run / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(BadModel, match=r"b/checkpoint\.pt"):
        list(exported(two, tmp_path, FP32, print))
    assert not any((tmp_path / "models").glob("*"))


@pytest.mark.slow
def test_two_give_what_one_after_another_gives(two: list[Path], tmp_path: Path) -> None:
    said: list[str] = []
    receipts = list(exported(two, tmp_path, FP32, said.append))
    for run, receipt in zip(two, receipts, strict=True):
        [alone] = exported([run], tmp_path / "alone", FP32, lambda line: None)
        assert receipt.files["model.onnx"] == alone.files["model.onnx"] and receipt.candidates == alone.candidates
        assert (tmp_path / "models" / run.name / "model.json").is_file()
    assert said.count("resnet18 · ort-cpu · fp32: pass") == 2


@pytest.mark.slow
def test_an_export_that_the_system_ends_is_told_in_one_sentence(two: list[Path], tmp_path: Path) -> None:
    def end(line: str) -> None:
        for child in psutil.Process().children():
            if any("spawn_main" in word for word in child.cmdline()):
                child.kill()

    with pytest.raises(SajiError, match="most likely for memory; export one network at a time"):
        list(exported(two, tmp_path, FP32, end))


def test_a_stop_that_reaches_the_command_alone_ends_its_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `kill -INT` and an IDE's stop button send it; a terminal's Ctrl-C reaches all of them."""
    monkeypatch.setattr(command_line, "stopped_by", signal.SIGINT)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), side_by_side._pool(1, print) as pool:
        pool.submit(time.sleep, 300)
        while not multiprocessing.active_children():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 200 and not multiprocessing.active_children()
