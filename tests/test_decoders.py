"""Photos are decoded in processes that may hang, swell and crash, and nobody else notices."""

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_strangers_costs import progressive

from demo.service import decoding
from demo.service.decoders import Decoders
from demo.service.limits import Limits
from demo.service.pipes import PIPE_BYTES
from demo.service.problem import Problem
from runtime.preprocess import pixels
from runtime.spec import Geometry
from training.photos.drawn import DISHES, draw_dish

GEOMETRY = Geometry.for_size(64)
BOUNDS = Limits(decoders=1, decode_seconds=1, decode_memory=60, bytes=2_000_000, pixels=50_000_000)
linux_only = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory as Linux bounds it")
posix_only = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the deadline is a signal")


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


DISH = encoded(draw_dish(DISHES[0], 1), "JPEG")


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(BOUNDS)
    yield decoders
    decoders.close()


def test_pixels_are_those_of_this_process(decoders: Decoders, tmp_path: Path) -> None:
    (tmp_path / "dish.jpg").write_bytes(DISH)
    with (tmp_path / "dish.jpg").open("rb") as file:
        for photo in (DISH, file):
            image, milliseconds = decoders.pixels(photo, GEOMETRY)
            np.testing.assert_array_equal(image, pixels(DISH, GEOMETRY))
            assert list(milliseconds) == ["decode", "geometry"]


def test_a_picture_is_upright_and_fits(decoders: Decoders) -> None:
    image, turned = Image.new("RGB", (300, 100), "red"), Image.Exif()
    turned[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=turned)
    assert decoders.picture(file.getvalue(), 90).size == (30, 90)


REFUSED = {
    "no picture": (b"no picture", 422, "not-a-picture"),
    "too many pixels": (encoded(Image.new("L", (8000, 8000))), 413, "too-many-pixels"),
    "too much memory": pytest.param(
        encoded(Image.new("RGBA", (5000, 5000), (1, 2, 3, 9))), 413, "too-much-memory", marks=linux_only
    ),
    "too many scans": (progressive(scans=300, side=64), 422, "not-a-picture"),
}


@pytest.mark.parametrize(("photo", "status", "cause"), REFUSED.values(), ids=REFUSED.keys())
def test_what_costs_too_much_is_refused_and_the_next_is_answered(
    photo: bytes, status: int, cause: str, decoders: Decoders
) -> None:
    with pytest.raises(Problem) as problem:
        decoders.pixels(photo, GEOMETRY)
    assert (problem.value.status_code, problem.value.cause) == (status, cause)
    assert "the file" in problem.value.detail and "\n" not in problem.value.detail
    assert decoders.pixels(DISH, GEOMETRY)[0].any()


@posix_only
def test_a_decoder_has_a_deadline() -> None:
    patient = Decoders(replace(BOUNDS, pixels=150_000_000, decode_memory=1000))  # for what takes 5 s here
    with pytest.raises(Problem, match="takes more than 1 s to decode") as problem:
        patient.pixels(progressive(scans=98, side=12_000), GEOMETRY)
    assert (problem.value.status_code, problem.value.cause) == (413, "decodes-too-long")
    assert patient.pixels(DISH, GEOMETRY)[0].any()
    patient.close()


def test_a_file_of_too_many_bytes_is_refused_by_its_name(decoders: Decoders, tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(bytes(BOUNDS.bytes + 1))
    with (tmp_path / "large.jpg").open("rb") as file, pytest.raises(Problem, match=r"large\.jpg has more than"):
        decoders.pixels(file, GEOMETRY)


def test_a_process_that_was_killed_is_replaced(decoders: Decoders) -> None:
    decoders.pixels(DISH, GEOMETRY)
    [process] = decoders._free.queue
    os.kill(process._popen.pid, signal.SIGTERM)
    process._popen.wait()
    assert decoders.pixels(DISH, GEOMETRY)[0].any()


@posix_only
def test_what_a_photo_did_to_a_decoder_is_not_laid_to_the_next_one(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders.pixels(DISH, GEOMETRY)
    [process] = decoders._free.queue
    os.kill(process._popen.pid, signal.SIGSEGV)
    process._popen.wait()
    monkeypatch.setattr(type(process), "ended", False)  # as if it ended once it is asked
    assert decoders.pixels(DISH, GEOMETRY)[0].any()


@posix_only
def test_a_decoder_that_cannot_start_is_not_laid_to_the_photo(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether there is no program, or one that ends before it has read a photo; once there is one, all is well."""
    decoders = Decoders(BOUNDS)
    for module, executable in ((decoding.__name__, "/nonexistent/python"), ("demo.nothing", sys.executable)):
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "__name__", module)
            patch.setattr(sys, "executable", executable)
            with pytest.raises(Problem, match="at the moment") as problem:
                decoders.pixels(DISH, GEOMETRY)
        assert (problem.value.status_code, problem.value.cause) == (503, "no-decoder")
        assert decoders.failing and "no decoder" in caplog.text
        decoders.warm()
        assert not decoders.failing and decoders.pixels(DISH, GEOMETRY)[0].any()
        decoders.close()
        decoders = Decoders(BOUNDS)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has pipes of a chosen size")
def test_decoders_start_where_a_users_pipes_are_as_large_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux bounds them together: those of some thirty decoders, whichever of his containers they are in."""
    import fcntl

    sizes = []

    def refuse(pipe: int, command: int, size: int = 0) -> int:
        sizes.append(size)
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    decoders = Decoders(BOUNDS)
    assert decoders.pixels(DISH, GEOMETRY)[0].any() and not decoders.failing
    assert sizes == [PIPE_BYTES] * 2
    decoders.close()


@pytest.mark.parametrize(
    "said", [b"", b"no JSON\n", b'{"bytes": 9}\nshort', b'{"bytes": 99999}\n', b'{"bytes": -1}\n', b"[]\n"]
)
def test_what_has_been_taken_over_is_not_believed(said: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        decoding.read(io.BytesIO(said), 1000)
