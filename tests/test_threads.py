"""One classifier serves many threads: each gets the answer that it would get alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

import runtime
from runtime.backends import BACKENDS, unavailable_because
from runtime.evaluation import ValidationSet

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
