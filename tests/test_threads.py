"""One classifier serves many threads: each gets the answer that it would get alone."""

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from twin.product import place

import runtime
from runtime.backends import BACKENDS, unavailable_because
from runtime.choice import Policy, choose
from runtime.evaluation import ValidationSet
from runtime.machine import machine
from runtime.receipt import Receipt

THREADS, TURNS = 16, 4


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """PyTorch's count of threads is the whole process's: given back to the other tests."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if unavailable_because(name) is None])
def test_16_threads_get_the_answers_of_one(backend: str, model: Path) -> None:
    images = ValidationSet.load(model / "validation.npz").images
    batches = [images[i % len(images) : i % len(images) + 1 + i % 2] for i in range(THREADS * TURNS)]  # of 1 and of 2
    start = Barrier(THREADS)
    precision = next(offer.precision for offer in BACKENDS[backend].offers if offer.servable)  # TensorRT has no fp32
    with runtime.load(model, backend, precision, threads=1) as classifier:  # 16 callers are enough for two cores
        alone = [classifier.logits(batch) for batch in batches]

        def ask(thread: int) -> list[np.ndarray]:
            start.wait(30)
            return [classifier.logits(batch) for batch in batches[thread::THREADS]]

        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(pool.map(ask, range(THREADS)))
        for thread, found in enumerate(answers):
            for mine, right in zip(found, alone[thread::THREADS], strict=True):
                assert np.abs(mine - right).max() <= 1e-6, f"thread {thread}"
        right_answer = classifier(images[0]).probabilities
        with ThreadPoolExecutor(THREADS) as pool:
            for answer in pool.map(lambda _: classifier(images[0]).probabilities, range(THREADS)):
                assert answer == pytest.approx(right_answer, abs=1e-6)


@pytest.mark.parametrize("backend", ["ort-cpu", "openvino"])
def test_a_photo_has_all_cores_while_it_is_alone_and_one_among_others(
    backend: str, model: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from demo.service import engine
    from demo.service.limits import Limits
    from demo.service.queue import Serving

    receipt = Receipt.read(model)
    candidate = next(c for c in receipt.candidates if (c.backend, c.precision, c.verdict) == (backend, "fp32", "pass"))
    spot, path = place(candidate, receipt, os.path.relpath(model, tmp_path), 1.0), tmp_path / "deployment.json"
    choose([spot], [], Policy(), machine(), {}).write(path)
    photos = [photo.read_bytes() for photo in sorted(sample.rglob("*.jpg"))[::7][:8]]
    monkeypatch.setattr(engine, "usable_cores", lambda: 2)
    asked: list[tuple[int, int]] = []
    backend_class = type(candidate.open(model))
    run = backend_class.run

    def noted(self: Any, images: np.ndarray) -> np.ndarray:
        asked.append((self.request.threads, self.request.streams))
        return run(self, images)

    async def ask(serving: Serving) -> list[list[Any]]:
        del asked[:]
        alone = [await serving.classify([photo]) for photo in photos]
        assert asked == [(0, 1)] * len(photos)
        together = await asyncio.gather(*(serving.classify([photo]) for photo in photos * 3))
        assert (1, 2) in asked
        return [[answer.predictions[0].probabilities for answer in answers] for answers in (alone * 3, together)]

    monkeypatch.setattr(backend_class, "run", noted)
    with Serving(path, runtime.load, Limits(), workers=0) as serving:
        alone, together = asyncio.run(ask(serving))
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_engines_of_two_processes_are_not_bound_to_the_same_core(model: Path) -> None:
    """OpenVINO binds the threads of each to the first cores, unless it is told otherwise."""
    pytest.importorskip("openvino")
    with runtime.load(model, "openvino", "fp32", threads=1) as classifier:
        assert classifier.backend.compiled[0].get_property("ENABLE_CPU_PINNING") is False  # type: ignore[attr-defined]
