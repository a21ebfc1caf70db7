"""The product on the twin of a machine with a GPU, from export to service: one list for three shapes of TensorRT."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from twin.faults import fault
from twin.machines import SHAPES, installed
from twin.product import CAPTURED, export, place

import runtime
from runtime.choice import Policy, choose
from runtime.evaluation import ValidationSet
from runtime.machine import machine
from runtime.receipt import Receipt

# Enterprise TensorRT's inspector stopped the whole export
IN_SHAPES = [pytest.param(shape, marks=[fault(1)] if shape != "rtx" else []) for shape in SHAPES]


@dataclass(frozen=True)
class Exported:
    """A model folder that was exported on the twin, in whose machine the test is."""

    twin: Any
    shape: str
    backend: str
    folder: Path
    receipt: Receipt

    @property
    def engines(self) -> list[Any]:
        """The candidates of the engine that was built."""
        return [candidate for candidate in self.receipt.candidates if candidate.backend == self.backend]

    @property
    def portable(self) -> Any:
        return next(candidate for candidate in self.receipt.candidates if candidate.backend == "ort-cpu")

    def deployment(self, path: Path, engine_ms: float, portable_ms: float) -> Any:
        """What is chosen when the engines take so long, the first the shortest, and written to `path`."""
        folder = os.path.relpath(self.folder, path.parent)
        places = [place(c, self.receipt, folder, engine_ms * (1 + 0.5 * i)) for i, c in enumerate(self.engines)]
        places.append(place(self.portable, self.receipt, folder, portable_ms))
        chosen = choose(places, [], Policy(), machine(), {})
        chosen.write(path)
        return chosen


@pytest.fixture(scope="module", params=IN_SHAPES)
def exported(request: Any, run: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    backend, distributions = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("gpu") / "models" / "resnet18"
    with installed("rtx4090", installed=distributions) as twin:
        receipt = export(run, model, folder, [])
        yield Exported(twin, request.param, backend, folder, receipt)


@pytest.fixture
def gpu(exported: Exported) -> Iterator[Exported]:
    yield exported
    exported.twin.require_no_misuse()


def photos(gpu: Exported) -> ValidationSet:
    return ValidationSet.load(gpu.folder / "validation.npz")


def command(*words: str, **how: Any) -> subprocess.CompletedProcess:
    """`python -m …` of ours on the machine that the test is on."""
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, **how)


class TestOneListForThreeShapes:
    def test_export_builds_an_engine_for_this_gpu(self, gpu: Exported) -> None:
        facts = gpu.receipt.engines[f"engines/{gpu.backend}.fp16.engine"]
        assert facts["flavour"] == gpu.backend.replace("-", "_") and "sm89" in facts["targets"]
        assert facts["gpu"].startswith("twin of NVIDIA GeForce RTX 4090") and not gpu.receipt.skipped[1:]

    @fault(1)
    def test_its_precision_is_read_from_the_engine(self, gpu: Exported) -> None:
        """RTX's inspector tells no types as far as is known: then the network's own stand in, and it is said."""
        for candidate in gpu.engines:
            told = candidate.precision_share
            assert sum(share for kind, share in told.items() if kind.startswith("fp16")) >= 0.95, told
            assert ("fp16" in told) == (gpu.shape != "rtx"), told

    @fault(1)
    def test_parity_passes_with_and_without_a_graph(self, gpu: Exported) -> None:
        assert [(c.variant, c.verdict, c.reasons) for c in gpu.engines] == [("", "pass", ()), (CAPTURED, "pass", ())]
        assert all(c.figures.photos == len(photos(gpu).labels) for c in gpu.engines)
        assert "twin of" in (gpu.folder / "model.json").read_text(encoding="utf-8")

    def test_rtx_captures_a_graph_where_that_is_what_the_candidate_is(self, gpu: Exported) -> None:
        if gpu.shape != "rtx":
            pytest.skip("enterprise TensorRT is captured by us")
        for candidate in gpu.engines:
            with closing(candidate.open(gpu.folder)) as engine:
                strategy = engine._settings(candidate.variant == CAPTURED).cuda_graph_strategy.name
            assert (strategy == "WHOLE_GRAPH_CAPTURE") == (candidate.variant == CAPTURED)

    @fault(1)
    def test_the_choice_follows_the_durations(self, gpu: Exported, tmp_path: Path) -> None:
        faster = gpu.deployment(tmp_path / "deployment.json", 1.0, 5.0)
        assert faster.choice.candidate == gpu.engines[0]
        slower = gpu.deployment(tmp_path / "deployment.json", 5.0, 1.0)
        assert slower.choice.candidate == gpu.portable
        assert any(entry.candidate == gpu.engines[0].name and "slower" in entry.reason for entry in slower.rejected)

    @fault(1)
    @pytest.mark.parametrize("variant", ["", CAPTURED])
    def test_what_is_served_gives_the_same_answers(self, gpu: Exported, variant: str, tmp_path: Path) -> None:
        if variant:
            gpu.engines.reverse()
        known = photos(gpu)
        with runtime.load(self.served(gpu, variant, tmp_path)) as classifier:
            assert classifier.candidate.backend == gpu.backend and classifier.candidate.variant == variant
            assert not classifier.passed_over
            for batch in (1, 2, 1, 7, 2):  # each shape anew, and again
                logits = classifier.logits(known.images[:batch])
                assert np.abs(logits - known.logits[:batch]).max() < 0.02 * np.abs(known.logits).max(), batch
            everything = classifier.logits(np.concatenate([known.images, known.images]))  # more than one batch holds
            assert np.abs(everything[: len(known.logits)] - known.logits).max() < 0.02 * np.abs(known.logits).max()

    def served(self, gpu: Exported, variant: str, folder: Path) -> Path:
        """A deployment of one variant."""
        path = folder / "deployment.json"
        candidate = next(c for c in gpu.engines if c.variant == variant)
        spot = place(candidate, gpu.receipt, os.path.relpath(gpu.folder, folder), 1.0)
        choose([spot], [], Policy(), machine(), {}).write(path)
        return path

    @fault(1)
    @pytest.mark.parametrize("variant", ["", CAPTURED])
    def test_many_threads_get_the_answers_of_one(self, gpu: Exported, variant: str, tmp_path: Path) -> None:
        known = photos(gpu)
        parts = [known.images[i % 30 : i % 30 + 1 + i % 3] for i in range(24)]
        with runtime.load(self.served(gpu, variant, tmp_path), streams=3) as classifier:
            alone = [classifier.logits(part) for part in parts]
            with ThreadPoolExecutor(8) as pool:
                together = list(pool.map(classifier.logits, parts))
        assert all(np.abs(a - b).max() <= 1e-6 for a, b in zip(alone, together, strict=True))

    @fault(1)
    def test_closing_gives_everything_back(self, gpu: Exported, tmp_path: Path) -> None:
        from saji_twin import memory, streams

        before = len(memory.live())
        with runtime.load(self.served(gpu, CAPTURED, tmp_path)) as classifier:
            classifier.logits(photos(gpu).images[:2])
            assert len(memory.live()) > before
        assert len(memory.live()) == before
        left = {type(thing).__name__ for thing in streams.objects.values() if thing.alive}
        assert not left, f"{left} were never destroyed"

    @fault(1)
    def test_device_time_is_told(self, gpu: Exported) -> None:
        for candidate in gpu.engines:
            backend = candidate.open(gpu.folder)
            assert backend.device_milliseconds(photos(gpu).images[:2]) > 0
            backend.close()

    @fault(1)
    def test_hot_reload_between_cpu_and_engine(self, gpu: Exported, tmp_path: Path) -> None:
        from demo.service.limits import Limits
        from demo.service.queue import Serving

        path, limits = tmp_path / "deployment.json", Limits(bytes=10**7, pixels=10**7, photos=3, queue=4, seconds=60)
        photo, names = (gpu.folder / "golden.png").read_bytes(), []

        async def walk(serving: Serving) -> list[Any]:
            answers = []
            for engine_ms, portable_ms in ((1.0, 5.0), (5.0, 1.0), (1.0, 5.0)):
                gpu.deployment(path, engine_ms, portable_ms)
                await serving.reload()
                names.append(serving.engine.classifier.candidate.backend)
                answers.append((await serving.classify([photo])).predictions[0])
            return answers

        gpu.deployment(path, 5.0, 1.0)
        with Serving(path, runtime.load, limits) as serving:
            answers = asyncio.run(walk(serving))
        assert names == [gpu.backend, "ort-cpu", gpu.backend]
        first = answers[1].probabilities
        for answer in answers:
            assert answer.label == answers[1].label
            assert all(abs(first[name] - value) < 0.02 for name, value in answer.probabilities.items())

    @fault(1)
    @pytest.mark.parametrize("variant", ["", CAPTURED])
    def test_eight_clients_get_the_answers_of_their_own_photos(
        self, gpu: Exported, variant: str, sample: Path, tmp_path: Path
    ) -> None:
        from demo.service.limits import Limits
        from demo.service.queue import Serving

        encoded = [path.read_bytes() for path in sorted(sample.rglob("*.jpg"))[::7][:8]]
        path = self.served(gpu, variant, tmp_path)
        with runtime.load(path) as classifier:
            alone = [classifier(photo).probabilities for photo in encoded]

        async def ask(serving: Serving) -> list[Any]:
            return await asyncio.gather(*(serving.classify([photo]) for photo in encoded * 3))

        with Serving(path, runtime.load, Limits()) as serving:
            answers = asyncio.run(ask(serving))
        assert [answer.predictions[0].probabilities for answer in answers] == alone * 3
        assert len({str(probabilities) for probabilities in alone}) == len(encoded)

    def test_triton_gets_a_folder_a_variant(self, gpu: Exported, tmp_path: Path) -> None:
        from export.triton_repository import write_models

        written = write_models(gpu.folder, gpu.receipt, tmp_path, lambda line: None)
        plans = [name for name in written if "tensorrt" in name]
        if gpu.shape == "rtx":  # Triton opens plans of enterprise TensorRT only
            assert not plans
            return
        assert len(set(plans)) == len(plans) == 2
        texts = {name: (tmp_path / name / "config.pbtxt").read_text(encoding="utf-8") for name in plans}
        graphs = [name for name, text in texts.items() if "graphs: true" in text]
        assert len(graphs) == 1 and "graph" in graphs[0] and all("max_batch_size: 32" in t for t in texts.values())

    @fault(1)
    def test_selftest_classify_and_bench_worker(self, gpu: Exported, tmp_path: Path) -> None:
        """In processes of their own, as people type them."""
        told = command("runtime", "selftest", str(gpu.folder))
        assert told.returncode == 0 and told.stdout.count(f"right: resnet18 · {gpu.backend} · fp16") == 2, told.stderr
        path, photo = self.served(gpu, "", tmp_path), gpu.folder / "golden.png"
        told = command("runtime", "classify", "--model", str(path), str(photo))
        assert told.returncode == 0 and told.stdout.strip(), told.stderr
        from runtime.benchmark.contestant import Contestant

        contestant = Contestant(gpu.engines[0], gpu.folder)
        try:
            measured = contestant.measure("single-stream", 1, 0.05)
            assert measured.samples and min(measured.samples) > 0
        finally:
            contestant.close()

    def test_doctor_finds_it_ready(self, gpu: Exported) -> None:
        told = command("runtime", "doctor", "--json").stdout
        report = json.loads(told)
        assert gpu.backend in report["ready"] and "twin of NVIDIA GeForce RTX 4090" in told
        other = "tensorrt-rtx" if gpu.backend == "tensorrt" else "tensorrt"
        assert "cannot be imported" in report["backends"][other]
