"""The twin's execution contexts and inspectors keep TensorRT's rules, and answer as each release does."""

import ctypes
import json
import threading
import time
from typing import Any

import pytest
from test_twin import undefined
from test_twin_tensorrt import SIZE, Bench, bench, classifier, photos


class TestContexts:
    def captured(self, here: Bench, warm: bool = True) -> tuple[bool, Any, Any, int, Any]:
        context, stream, address = here.fed(here.engine(), photos())
        if warm:
            assert context.execute_async_v3(stream)
            here.cuda.StreamSynchronize(stream)
        here.cuda.StreamBeginCapture(stream, 1)
        done = context.execute_async_v3(stream)
        return done, here.cuda.StreamEndCapture(stream), stream, address, context

    def test_a_captured_execution_runs_at_each_launch(self) -> None:
        with bench() as here:
            done, graph, stream, address, context = self.captured(here)
            executable = here.cuda.GraphInstantiate(graph, 0)
            count = here.twin.counts["executions"]
            for _ in range(2):
                here.cuda.GraphLaunch(executable, stream)
            assert done and here.answers(address, 2, stream).any()
            assert here.twin.counts["executions"] == count + 2
            context.set_input_shape("images", (1, SIZE, SIZE, 3))
            here.cuda.GraphLaunch(executable, stream)
            with undefined(here.twin, "has another shape than captured"):
                here.cuda.StreamSynchronize(stream)

    def test_the_first_call_of_a_shape_must_not_be_captured(self) -> None:
        """Reference of IExecutionContext::enqueueV3 on CUDA graphs."""
        with bench() as here:
            assert self.captured(here, warm=False)[:2] == (False, "StreamCaptureInvalidated")

    @pytest.mark.parametrize(("capture", "nodes"), [("empty", 0), ("invalid", None)])
    def test_a_refusal_within_a_capture(self, capture: str, nodes: int | None) -> None:
        with bench(faults={"capture": capture}) as here:
            done, graph, *_ = self.captured(here)
            assert not done
            assert graph == "StreamCaptureInvalidated" if nodes is None else here.cuda.GraphGetNodes(graph, 0)[1] == 0

    def test_one_context_for_two_threads_at_once_raises(self) -> None:
        """TensorRT Developer Guide, Threading: one execution context per thread, or locks."""
        with bench() as here:
            context, stream, _ = here.fed(here.engine(), photos())
            errors: list[str] = []
            together, until = threading.Barrier(2), time.monotonic() + 20

            def work() -> None:
                together.wait()
                while not errors and time.monotonic() < until:
                    try:
                        context.execute_async_v3(stream)
                    except AssertionError as error:
                        errors.append(str(error))

            threads = [threading.Thread(target=work) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            here.cuda.StreamSynchronize(stream)
            assert any("another thread is using the same execution context" in error for error in errors)
            here.twin.forget_misuse()

    def test_buffers_that_are_too_small_or_not_on_the_device(self) -> None:
        with bench() as here:
            context, stream, _ = here.fed(here.engine(), photos())
            context.set_tensor_address("logits", here.cuda.Malloc(4))
            with undefined(here.twin, "run over the end"):
                context.execute_async_v3(stream)
            host = ctypes.create_string_buffer(64)
            context.set_tensor_address("logits", ctypes.addressof(host))
            with undefined(here.twin, "device memory is wanted"):
                context.execute_async_v3(stream)

    def test_contexts_may_share_memory_that_the_user_gives(self) -> None:
        """Reference of IExecutionContext::setDeviceMemoryV2: not while another context uses it."""
        with bench() as here:
            engine = here.engine()
            users = here.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            first, stream, _ = here.fed(engine, photos(), users)
            assert not first.execute_async_v3(stream)
            scratch, size = here.cuda.Malloc(engine.device_memory_size_v2), engine.device_memory_size_v2
            second, other, _ = here.fed(engine, photos(), users)
            with undefined(here.twin, "too small"):
                first.set_device_memory(scratch, size - 1)
            for context in (first, second):
                context.set_device_memory(scratch, size)
            assert first.execute_async_v3(stream)
            with undefined(here.twin, "same device memory is queued on another stream"):
                second.execute_async_v3(other)
            here.cuda.StreamSynchronize(stream)
            assert second.execute_async_v3(other)
            here.cuda.Free(scratch)

    def test_rtx_serves_a_fallback_until_its_kernel_is_compiled(self) -> None:
        """TensorRT-RTX, Working with Dynamic Shapes: LAZY compiles in the background, EAGER before it runs."""
        for strategy, fallbacks in (("LAZY", 3), ("EAGER", 0), ("NONE", 5)):
            with bench("rtx") as here:
                engine = here.engine()
                config = engine.create_runtime_config()
                strategies = here.trt.DynamicShapesKernelSpecializationStrategy
                config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, strategy)
                context, stream, _ = here.fed(engine, photos(), config)
                for _ in range(5):
                    context.execute_async_v3(stream)
                here.cuda.StreamSynchronize(stream)
                assert here.twin.counts["fallback kernels"] == fallbacks

    def test_rtx_keeps_compiled_kernels_in_its_cache(self) -> None:
        """Docstring of IRuntimeCache.deserialize: another version, GPU or driver's major is refused."""
        with bench("rtx") as here:
            plan = bytes(here.plan())
            data = self.with_cache(here, plan, b"")
            assert here.twin.counts["kernels compiled"] == 1
        with bench("rtx") as here:
            self.with_cache(here, plan, data)
            assert here.twin.counts["kernels compiled"] == 0 and here.twin.counts["kernels from the cache"] == 1
        for machine, changes in (("a100", {}), ("rtx4090", {"driver": "590.10"})):
            with bench("rtx", machine, **changes) as here:
                config = here.engine(plan).create_runtime_config()
                assert not config.create_runtime_cache().deserialize(data)

    def with_cache(self, here: Bench, plan: bytes, data: bytes) -> bytes:
        engine = here.engine(plan)
        config = engine.create_runtime_config()
        cache = config.create_runtime_cache()
        assert not data or cache.deserialize(data)
        config.set_runtime_cache(cache)
        assert engine.create_execution_context(config)
        return bytes(cache.serialize())


class TestInspector:
    def told(self, here: Bench, plan: Any = None, batch: int = 0) -> tuple[str, list[Any]]:
        engine = here.engine(plan)
        inspector = engine.create_engine_inspector()
        if batch:
            inspector.execution_context = engine.create_execution_context()
            inspector.execution_context.set_input_shape("images", (batch, SIZE, SIZE, 3))
        text = inspector.get_engine_information(here.trt.LayerInformationFormat.JSON)
        return text, json.loads(text, strict=False)["Layers"]

    def of(self, layers: list[Any], words: str = "conv") -> dict[str, Any]:
        return next(layer for layer in layers if layer["Name"].startswith(words))

    def test_10_tells_weights_and_tactics_and_formats_with_a_context(self) -> None:
        with bench("10.14") as here:
            text, layers = self.told(here)
            conv = self.of(layers)
            assert conv["Weights"]["Type"] == "Half" and "f16f16_f16f16" in conv["TacticName"]
            assert conv["Inputs"][0]["Format/Datatype"] == "N/A due to dynamic shapes"
            assert conv["Name"] == "conv + relu" and "\x1f" in text
            reformat = self.of(layers, "Reformatting")
            assert reformat["Name"].endswith("to conv + relu") and reformat["LayerType"] == "Reformat"
            _, layers = self.told(here, batch=2)
            assert "FP16" in self.of(layers)["Inputs"][0]["Format/Datatype"]
        with bench("10.14", faults={"inspector": "context"}) as here:
            _, layers = self.told(here, batch=2)
            assert "N/A" in self.of(layers)["Inputs"][0]["Format/Datatype"]

    def test_11_has_two_keys(self) -> None:
        with bench("11.4") as here:
            tensor = self.of(self.told(here)[1])["Inputs"][0]
            assert (tensor["Datatype"], tensor["Format"]) == ("FP16", "kHWC8") and "Format/Datatype" not in tensor

    def test_rtx_tells_names(self) -> None:
        with bench("rtx") as here:
            assert set(self.of(self.told(here)[1])["Inputs"][0]) == {"Name"}

    def test_int8_and_a_network_that_is_not_strongly_typed(self) -> None:
        with bench("10.14") as here:
            assert self.of(self.told(here, here.plan(classifier("int8")))[1])["Weights"]["Type"] == "Int8"
            assert self.of(self.told(here, here.plan(flags=0))[1])["Weights"]["Type"] == "Float"
        with bench("10.14", faults={"lie": "fp32"}) as here:
            assert self.of(self.told(here)[1])["Weights"]["Type"] == "Float"

    def test_names_alone_unless_the_plan_is_detailed(self) -> None:
        with bench("10.14") as here:
            assert all(isinstance(layer, str) for layer in self.told(here, here.plan(verbosity="LAYER_NAMES_ONLY"))[1])
        for silent in ("silent", "mute"):
            with bench("10.14", faults={"inspector": silent}) as here:
                assert not {"Weights", "TacticName"} & set(self.of(self.told(here)[1]))
