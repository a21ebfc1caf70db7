"""Each fault that a review found on the GPU path, planted in the twin: what the product does about it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from twin.faults import fault
from twin.machines import MACHINES, RTX, SHAPES, T4, TENSORRT_10, TENSORRT_11, Gpu, Machine, changed, installed
from twin.product import CAPTURED, built, engine_in, spec_of

from runtime.errors import NotAsAsked, SajiError, Unavailable

ENTERPRISE = ("10.14", "11.4")


class TestProof:
    """Fault 1: the precision is read from the engine, and what an engine does not tell is never taken for right."""

    @pytest.mark.parametrize("shape", ENTERPRISE)
    @fault(1)
    def test_int8_engines_prove_their_precision(self, shape: str, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, shape, "int8") as engine:
            opened = engine.open()
            assert opened.precision_share()["int8"] >= 0.95
            assert engine.right(opened.run(engine.validation.images[:3]))
            opened.close()

    @pytest.mark.parametrize("shape", ENTERPRISE)
    @fault(1)
    def test_an_engine_that_computes_in_fp32_is_refused(self, shape: str, model: Path, tmp_path: Path) -> None:
        with (
            built(model, tmp_path, shape, faults={"lie": "fp32"}) as engine,
            pytest.raises(NotAsAsked, match=r"asked for fp16, but computes (99|100) % fp32"),
        ):
            engine.open()

    @pytest.mark.parametrize(("shape", "inspector"), [("10.14", "mute"), ("11.4", "mute"), ("10.14", "names")])
    @fault(1)
    def test_an_engine_that_tells_nothing_passes_by_its_networks_types(
        self, shape: str, inspector: str, model: Path, tmp_path: Path
    ) -> None:
        with built(model, tmp_path, shape, faults={"inspector": inspector}) as engine:
            opened = engine.open()
            told = opened.precision_share()
            opened.close()
        assert set(told) == {"fp16 as typed", "fp32 as typed"} and told["fp16 as typed"] > 0.99, (
            "familiarity stays FP32"
        )

    @fault(1)
    def test_int8_that_is_not_told_is_inconclusive(self, model: Path, tmp_path: Path) -> None:
        """Between Q and DQ TensorRT may compute in another type: the network's own prove nothing."""
        with built(model, tmp_path, "10.14", "int8", faults={"inspector": "mute"}) as engine:
            judged = engine.judged()
        assert judged.verdict == "inconclusive" and "does not tell" in judged.reasons[0]

    @pytest.mark.parametrize("context", [True, False])
    @fault(1)
    def test_formats_stand_in_where_weights_and_tactics_are_silent(
        self, context: bool, model: Path, tmp_path: Path
    ) -> None:
        with built(model, tmp_path, "10.14", faults={"inspector": "silent" if context else "mute"}) as engine:
            opened = engine.open()
            told = opened.precision_share()
            opened.close()
        assert (told.get("fp16", 0) >= 0.95) == context, told


class TestTargets:
    @pytest.mark.parametrize("name", ["t4", "a100"])
    @fault(2)
    def test_rtx_builds_for_the_gpu_that_is_here(self, name: str, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, "rtx", machine=name) as engine:
            major, minor = MACHINES[name].gpus[0].capability
            assert f"sm{major}{minor}" in engine.facts.targets


class TestRequest:
    """Fault 3: what decides which engines are built is part of what makes an export up to date."""

    def decides(self, machine: Machine, run: Path) -> tuple[str, str]:
        """What `export.model.up_to_date` compares beside libraries: the request, and the machine."""
        from export.model import Checkpoint, request
        from export.settings import Settings
        from runtime.machine import machine as this_machine

        with installed(machine):
            return repr(request(Checkpoint(run), Settings())), repr(this_machine())

    @fault(3)
    def test_flavour_version_and_gpu_make_an_export_anew(self, run: Path) -> None:
        machine = changed("rtx4090", installed={"cuda-bindings": "13.5.0"})
        flavours = [{}, TENSORRT_10, TENSORRT_11, RTX]
        decided = [self.decides(changed(machine, installed={**machine.installed, **one}), run) for one in flavours]
        assert len({request for request, _ in decided}) == len(flavours)
        other = self.decides(changed(machine, gpus=(T4,)), run)
        assert other[1] != decided[0][1]


class TestCaptures:
    """Fault 5: a graph is replayed only where it holds the work; where it cannot, the kernels run and it is said."""

    def answers(self, engine: Any) -> list[bool]:
        """Whether each of several calls answers its own photos."""
        opened, told = engine.open(CAPTURED), []
        for start in (0, 3, 6, 9):
            told.append(engine.right(opened.run(engine.validation.images[start : start + 2]), start))
        opened.close()
        return told

    @pytest.fixture(autouse=True)
    def proven(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The proof of precision has tests of its own."""
        from runtime.backends.base import Backend

        monkeypatch.setattr(Backend, "precision_share", lambda backend: {backend.request.precision: 1.0})

    @pytest.mark.parametrize("capture", ["empty", "invalid", "refused"])
    @fault(5)
    def test_a_capture_that_fails_leaves_the_answers_right(self, capture: str, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, faults={"capture": capture}) as engine:
            assert self.answers(engine) == [True] * 4

    @pytest.mark.parametrize("capture", ["empty", "invalid", "refused"])
    @fault(5)
    def test_what_runs_without_its_graph_says_so(self, capture: str, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, faults={"capture": capture}) as engine:
            judged = engine.judged(CAPTURED)
        assert judged.verdict != "pass" and any("without the CUDA graph" in reason for reason in judged.reasons)

    @fault(5)
    def test_other_threads_may_use_the_legacy_stream(self, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, faults={"legacy": True}) as engine:
            assert self.answers(engine) == [True] * 4
            assert engine.judged(CAPTURED).verdict == "pass"

    def test_captures_beside_each_other(self, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path) as engine:
            opened = engine.open(CAPTURED, streams=4)
            with ThreadPoolExecutor(4) as pool:
                starts = [i % 30 for i in range(16)]
                told = list(pool.map(lambda i: opened.run(engine.validation.images[i : i + 1 + i % 3]), starts))
            assert all(engine.right(logits, start) for start, logits in zip(starts, told, strict=True))
            opened.close()


class TestContexts:
    @pytest.fixture(autouse=True)
    def proven(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from runtime.backends.base import Backend

        monkeypatch.setattr(Backend, "precision_share", lambda backend: {backend.request.precision: 1.0})

    def by_threads(self, engine: Any, streams: int, threads: int) -> list[bool]:
        opened = engine.open(streams=streams)
        with ThreadPoolExecutor(threads) as pool:
            told = list(pool.map(lambda i: opened.run(engine.validation.images[i : i + 1]), range(2 * threads)))
        opened.close()
        return [engine.right(logits, start) for start, logits in enumerate(told)]

    @fault(6)
    def test_threads_share_as_many_contexts_as_there_are_streams(self, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path) as engine:
            before = engine.twin.counts["contexts"]
            assert all(self.by_threads(engine, 2, 12))
            assert engine.twin.counts["contexts"] - before <= 2

    @fault(7)
    def test_where_memory_holds_one_context_all_share_it(self, model: Path, tmp_path: Path) -> None:
        """A GPU on which a second worker does not fit any more: 22.4 MB of weights, 2 MB for each context."""
        small = Machine((Gpu("NVIDIA GeForce RTX 4090", (8, 9), 24),))
        with built(model, tmp_path, machine=small) as engine:
            assert all(self.by_threads(engine, 4, 8))


class TestReasons:
    """Fault 7: one sentence and the next candidate, never a traceback."""

    @pytest.mark.parametrize("shape", SHAPES)
    @fault(7)
    def test_no_memory_for_a_context(self, shape: str, model: Path, tmp_path: Path) -> None:
        with (
            built(model, tmp_path, shape, faults={"context": True}) as engine,
            pytest.raises(Unavailable, match="not enough memory"),
        ):
            engine.open()

    @pytest.mark.parametrize("count", range(4))
    @fault(7)
    def test_no_memory_for_buffers(self, count: int, model: Path, tmp_path: Path) -> None:
        """Whichever allocation fails, it is said in a sentence."""
        with built(model, tmp_path, faults={"allocations": count}) as engine:
            with pytest.raises(SajiError):
                engine.open().run(engine.validation.images[:1])
            assert engine.judged().verdict == "unchecked"

    @pytest.mark.parametrize(
        ("name", "verdict"),
        [
            ("cudaErrorDevicesUnavailable", "unchecked"),  # such as by nvidia-smi -c EXCLUSIVE_PROCESS
            ("cudaErrorSystemNotReady", "unchecked"),
            ("cudaErrorMpsConnectionFailed", "unchecked"),
            ("cudaErrorUnknown", "fail"),
        ],
    )
    def test_a_gpu_that_is_anothers_for_now_is_no_verdict(
        self, name: str, verdict: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with built(model, tmp_path) as engine:
            from cuda.bindings import runtime as cuda

            with monkeypatch.context() as patched:
                patched.setattr(cuda, "cudaStreamCreateWithFlags", lambda *_: (cuda.cudaError_t[name], None))
                judged = engine.judged()
            assert judged.verdict == verdict and name in judged.reasons[0]
            assert engine.judged().verdict == "pass"

    @fault(7)
    def test_a_failed_opening_leaves_nothing_on_the_gpu(self, model: Path, tmp_path: Path) -> None:
        import gc

        with built(model, tmp_path, faults={"allocations": 2}) as engine:
            from saji_twin import memory

            with pytest.raises(Unavailable):
                engine.open()
            gc.collect()
            assert memory.live() == []

    @pytest.mark.parametrize("shape", ENTERPRISE)
    @fault(7)
    def test_a_builder_without_a_driver_is_skipped_with_its_reason(
        self, shape: str, model: Path, tmp_path: Path
    ) -> None:
        from export.engine import SOURCES, build_engines
        from export.settings import Settings

        _, distributions = SHAPES[shape]
        for file in SOURCES.values():
            (tmp_path / file).write_bytes((model / file).read_bytes())
        with installed("rtx4090", installed=distributions, faults={"builder": True}):
            made, skipped = build_engines(tmp_path, Settings(), lambda line: None)
        assert not made and any("cannot build here" in reason for reason in skipped)

    @pytest.mark.parametrize("timing_cache", ["none", "false"])
    @fault(7)
    def test_timings_that_are_refused_are_done_without(self, timing_cache: str, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, faults={"timing_cache": timing_cache}) as engine:
            assert engine_in(engine.folder, engine.backend, "fp16", tmp_path / "cache").flavour == "tensorrt"

    @pytest.mark.parametrize(
        "other", [changed("rtx4090", installed=SHAPES["11.4"][1]), changed("t4", installed=SHAPES["10.14"][1])]
    )
    @fault(7)
    def test_timings_of_another_version_or_gpu(self, other: Machine, model: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        with built(model, tmp_path, "10.14") as engine:
            engine_in(engine.folder, engine.backend, "fp16", cache)
        for file in [cache, *cache.rglob("*")]:
            if file.is_file():
                file.write_bytes(file.read_bytes()[:-9])  # and damaged
        with installed(other):
            assert engine_in(tmp_path, "tensorrt", "fp16", cache).targets

    @pytest.mark.parametrize("shape", SHAPES)
    @fault(7)
    def test_a_call_that_fails_has_its_own_reason_and_none_of_an_earlier_call(
        self, shape: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with built(model, tmp_path, shape) as engine:
            opened, images = engine.open(), engine.validation.images[:1]
            with pytest.raises(SajiError, match=r"takes no photos of shape \[1, 16, 16, 3\] \(.*profile"):
                opened.run(images[:, :16, :16])
            cuda = opened.workers.all[0].cuda
            with monkeypatch.context() as broken, pytest.raises(SajiError) as refusal:
                broken.setattr(cuda, "cudaStreamSynchronize", lambda stream: (cuda.cudaError_t.cudaErrorUnknown,))
                opened.run(images)
            assert str(refusal.value).endswith("the GPU reports cudaErrorUnknown; look with: nvidia-smi")
            opened.close()

    def test_an_engine_that_does_not_fit_fails_with_its_reason(self, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, machine=changed("rtx4090", gpus=(Gpu("Small", (8, 9), 16),))) as engine:
            judged = engine.judged()
        assert judged.verdict == "unchecked" and "memory" in " ".join(judged.reasons)

    @pytest.mark.parametrize("answers", ["wrong", "nan"])
    @fault(1)
    def test_an_engine_that_answers_wrongly_is_refused(self, answers: str, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, faults={"answers": answers}) as engine:
            assert engine.judged().verdict == "fail"


class TestRtx:
    """Fault 8: what serves is the kernel that was judged, and it is compiled once."""

    @pytest.fixture(autouse=True)
    def proven(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from runtime.backends.base import Backend

        monkeypatch.setattr(Backend, "precision_share", lambda backend: {backend.request.precision: 1.0})

    @pytest.mark.parametrize("variant", ["", CAPTURED])
    @fault(8)
    def test_no_fallback_kernel_answers(self, variant: str, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, "rtx") as engine:
            opened = engine.open(variant)
            for batch in (1, 2, 1):
                assert engine.right(opened.run(engine.validation.images[:batch]))
            opened.close()
            assert engine.twin.counts["fallback kernels"] == 0 < engine.twin.counts["specialised kernels"]

    @fault(8)
    def test_the_second_start_compiles_nothing(self, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, "rtx") as engine:
            for compiled in (1, 1):
                opened = engine.open()
                opened.run(engine.validation.images[:1])
                opened.close()
                assert engine.twin.counts["kernels compiled"] == compiled

    @fault(8)
    def test_a_damaged_cache_is_done_without(self, model: Path, tmp_path: Path) -> None:
        with built(model, tmp_path, "rtx") as engine:
            engine.open().run(engine.validation.images[:1])
            (cache,) = (engine.folder / "engines").glob("*.cache")
            cache.write_bytes(cache.read_bytes()[:-5])
            assert engine.right(engine.open().run(engine.validation.images[:1]))


class TestMachine:
    @fault(9)
    def test_a_driver_that_is_too_old_is_named(self) -> None:
        from runtime.backends import cuda

        with installed("old-driver"), pytest.raises(Unavailable, match=r"535\.54\.03.*12\.2.*13"):
            cuda.require_gpu()

    def test_no_gpu_is_no_gpu(self) -> None:
        from runtime.backends import cuda

        with installed("none"), pytest.raises(Unavailable, match="no CUDA GPU"):
            cuda.require_gpu()

    @pytest.mark.parametrize(("visible", "name"), [(None, "RTX 4090"), ("1", "Tesla T4")])
    @fault(10)
    def test_the_gpu_is_the_first_that_cuda_sees(
        self, visible: str | None, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from runtime.backends import cuda
        from runtime.machine import machine

        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with installed("two"):
            gpu, capability = machine().gpu, cuda.compute_capability()
        assert gpu and name in gpu and "\n" not in gpu and "580.95.05" in gpu
        assert capability == {"RTX 4090": "sm89", "Tesla T4": "sm75"}[name]

    @fault(12)
    def test_photos_and_answers_are_copied_from_and_to_pinned_memory(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from runtime.backends.base import Backend

        monkeypatch.setattr(Backend, "precision_share", lambda backend: {})
        with built(model, tmp_path) as engine:
            opened = engine.open()
            assert engine.right(opened.run(engine.validation.images[:2]))
            opened.close()
            assert engine.twin.counts["pageable copies"] == 0


def test_an_engine_is_on_the_first_gpu_whatever_the_current_device_of_a_thread(model: Path, tmp_path: Path) -> None:
    """CUDA keeps it by thread; a program that uses another one finds it as it was."""
    with built(model, tmp_path, machine="two") as engine:
        from cuda.bindings import runtime as cuda

        cuda.cudaSetDevice(1)
        opened, images = engine.open(), engine.validation.images[:4]
        with ThreadPoolExecutor(1) as other:  # whose current device is 0
            assert engine.right(opened.run(images)) and engine.right(other.submit(opened.run, images).result())
        assert opened.device_milliseconds(images) >= 0 and opened.precision_share()
        opened.close()
        assert cuda.cudaGetDevice()[1] == 1
        cuda.cudaSetDevice(0)


def test_what_opens_here_does_not_open_elsewhere(model: Path, tmp_path: Path) -> None:
    """An engine is refused by name on another GPU, before TensorRT sees it."""
    with built(model, tmp_path) as engine:
        assert spec_of(engine.folder).classes and (engine.folder / engine.file).stat().st_size
    for other in ("t4", "h100"):
        with installed(other, installed=SHAPES["10.14"][1]), pytest.raises(Unavailable, match="was built for sm89"):
            engine.open()
    assert np.isfinite(engine.validation.logits).all()


def test_a_version_compatible_engine_runs_on_the_next_major_version(model: Path, tmp_path: Path) -> None:
    """NVIDIA's "Support Matrix" of TensorRT 11.4: those of 10 run with 11."""
    with built(model, tmp_path) as engine:
        compatible = replace(engine, facts=engine_in(tmp_path, "tensorrt", "fp16", version_compatible=True))
    with installed("rtx4090", installed=SHAPES["11.4"][1]):
        opened = compatible.open()
        assert engine.right(opened.run(engine.validation.images[:2]))
        opened.close()


def test_a_gpu_that_rtx_has_no_kernels_for_is_told_what_serves_it(model: Path, tmp_path: Path) -> None:
    with (
        built(model, tmp_path, "rtx", machine="h100") as engine,
        pytest.raises(Unavailable, match=r"does not serve sm90, this GPU's; TensorRT does: pip install .*tensorrt"),
    ):
        engine.open()
