"""The twin's TensorRT: three releases with exactly their names, engines that compute, refusals that tell the logger."""

import contextlib
import ctypes
import importlib
import json
import threading
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_twin import Cuda, undefined
from twin.machines import MACHINES, SHAPES, SITE, installed

BATCH, SIZE, CLASSES = 4, 8, 3


def photos(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def classifier(kind: str = "fp16") -> bytes:
    """A tiny classifier of photos: convolution, activation, mean, product; INT8 between Q/DQ where asked for."""
    lots = np.random.default_rng(1)
    real = np.float32 if kind == "fp32" else np.float16
    element = TensorProto.FLOAT if kind == "fp32" else TensorProto.FLOAT16
    weight = lots.normal(0, 0.1, (6, 3, 3, 3)).astype(real)
    values = {"weight": weight, "bias": np.zeros(6, real), "to": lots.normal(0, 1, (6, CLASSES)).astype(real)}
    values |= {"add": np.zeros(CLASSES, real), "axes": np.array([2, 3]), "flat": np.array([-1, 6])}
    node = helper.make_node
    start = [
        node("Cast", ["images"], ["real"], "cast", to=element),
        node("Transpose", ["real"], ["x"], "transpose", perm=[0, 3, 1, 2]),
    ]
    taken, kernel = "x", "weight"
    if kind == "int8":
        values |= {"s": real(2), "sw": real(0.01), "z": np.int8(0)}
        values["weight"] = np.clip(weight / 0.01, -127, 127).astype(np.int8)
        start += [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"], "q"),
            node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dq"),
            node("DequantizeLinear", ["weight", "sw", "z"], ["wd"], "dqw"),
        ]
        taken, kernel = "xd", "wd"
    end = [
        node("Conv", [taken, kernel, "bias"], ["c"], "conv", kernel_shape=[3, 3]),
        node("Relu", ["c"], ["r"], "relu"),
        node("ReduceMean", ["r", "axes"], ["m"], "mean"),
        node("Reshape", ["m", "flat"], ["f"], "flatten"),
        node("Gemm", ["f", "to", "add"], ["l"], "head"),
        node("Cast", ["l"], ["logits"], "out", to=TensorProto.FLOAT),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph([*start, *end], "graph", [images], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Bench:
    """A release on a machine, and what a user does with it."""

    def __init__(self, twin: Any, module: str) -> None:
        self.twin, self.trt = twin, importlib.import_module(module)
        from cuda.bindings import runtime

        self.cuda = Cuda(twin, runtime)
        self.messages: list[str] = []
        messages, trt = self.messages, self.trt

        class Collecting(trt.ILogger):
            def log(self, severity: Any, message: str) -> None:
                messages.append(f"{severity.name} {message}")

        self.logger = Collecting()

    def plan(
        self, data: bytes | None = None, verbosity: str = "DETAILED", targets: tuple[str, ...] = (), flags: int = 1
    ):
        trt = self.trt
        builder = trt.Builder(self.logger)
        network = builder.create_network(flags << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert trt.OnnxParser(network, self.logger).parse(classifier() if data is None else data)
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        config.profiling_verbosity = getattr(trt.ProfilingVerbosity, verbosity)
        profile.set_shape("images", *((n, SIZE, SIZE, 3) for n in (1, 2, BATCH)))
        assert config.add_optimization_profile(profile) == 0
        if targets:
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                assert config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
        return builder.build_serialized_network(network, config)

    def engine(self, plan: Any = None) -> Any:
        return self.trt.Runtime(self.logger).deserialize_cuda_engine(self.plan() if plan is None else plan)

    def fed(self, engine: Any, images: np.ndarray, config: Any = None) -> tuple[Any, Any, int]:
        """A context that is ready to run, its stream, and where its logits come."""
        context = engine.create_execution_context() if config is None else engine.create_execution_context(config)
        stream = self.cuda.StreamCreateWithFlags(1)
        addresses = self.cuda.Malloc(images.nbytes), self.cuda.Malloc(4 * len(images) * CLASSES)
        for name, address in zip(("images", "logits"), addresses, strict=True):
            assert context.set_tensor_address(name, address)
        assert context.set_input_shape("images", images.shape)
        self.cuda.copy(addresses[0], images.ctypes.data, images.nbytes, 1, stream)
        return context, stream, addresses[1]

    def answers(self, address: int, count: int, stream: Any) -> np.ndarray:
        logits = np.zeros((count, CLASSES), np.float32)
        self.cuda.copy(logits.ctypes.data, address, logits.nbytes, 2, stream)
        return logits


@contextlib.contextmanager
def bench(shape: str = "10.14", machine: str = "rtx4090", **changes: Any):
    backend, distributions = SHAPES[shape]
    with installed(machine, installed=distributions, **changes) as twin:
        yield Bench(twin, backend.replace("-", "_"))


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if name[0] != "_" and hasattr(thing, name)}


class TestNames:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_release_has_exactly_its_names(self, shape: str) -> None:
        with bench(shape) as here:
            recorded = importlib.import_module("saji_twin.shapes").recorded()[here.trt.__version__]["names"]
            assert set(recorded[""]) <= public(here.trt)
            own = {name for name in public(here.trt) if not isinstance(getattr(here.trt, name), ModuleType)}
            assert own - set(recorded[""]) <= {"fill", "machine"}
            for name, members in recorded.items():
                if name and name not in ("IHostMemory", "Dims", "Permutation"):
                    extra = public(getattr(here.trt, name)) - set(members)
                    assert not extra, (name, extra)

    def test_names_that_a_release_lacks(self) -> None:
        for shape, has in (("10.14", True), ("11.4", False), ("rtx", False)):
            with bench(shape) as here:
                assert hasattr(here.trt.BuilderFlag, "FP16") == has
                assert hasattr(here.trt, "CudaGraphStrategy") == (shape == "rtx")
                with pytest.raises(AttributeError):
                    here.trt.Builder(here.logger).create_builder_config().profiling_verbostiy = 1
                with undefined(here.twin, "does not double IBuilderConfig.DLA_core"):
                    here.trt.Builder(here.logger).create_builder_config().DLA_core = 1

    def test_the_recorded_names_are_those_of_the_installed_wheel(self) -> None:
        trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx-cu13")
        from twin.record_names import FILE, recorded

        known = json.loads(FILE.read_text(encoding="utf-8"))
        if trt.__version__ not in known:
            pytest.skip(f"another release is installed: {trt.__version__}")
        assert recorded(trt) == known

    def test_the_parser_makes_the_layers_that_the_real_one_makes(self) -> None:
        real = pytest.importorskip(
            "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx-cu13"
        )

        def layers(trt: Any, data: bytes) -> list[Any]:
            class Silent(trt.ILogger):
                def log(self, severity: Any, message: str) -> None: ...

            logger = Silent()
            builder = trt.Builder(logger)
            network = builder.create_network(1)
            assert trt.OnnxParser(network, logger).parse(data)
            found = [network.get_layer(i) for i in range(network.num_layers)]
            return [
                (layer.name, layer.type.name, layer.metadata,
                 [(t.dtype.name, tuple(t.shape)) for t in map(layer.get_input, range(layer.num_inputs))],
                 [(t.dtype.name, tuple(t.shape)) for t in map(layer.get_output, range(layer.num_outputs))])
                for layer in found
            ]  # fmt: skip

        for kind in ("fp32", "fp16", "int8"):
            expected = layers(real, classifier(kind))
            with bench("rtx") as here:
                assert layers(here.trt, classifier(kind)) == expected


class TestAnswers:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
    def test_an_engine_computes_its_file(self, shape: str, kind: str) -> None:
        expected = onnxruntime.InferenceSession(classifier(kind), providers=["CPUExecutionProvider"])
        images = photos()
        with bench(shape) as here:
            engine = here.engine(here.plan(classifier(kind)))
            context, stream, address = here.fed(engine, images)
            assert context.execute_async_v3(stream)
            told = here.answers(address, 2, stream)
        assert np.abs(told - expected.run(None, {"images": images})[0]).max() < 0.05 * np.abs(told).max()
        assert tuple(engine.get_tensor_shape("logits")) == (-1, CLASSES)
        assert [shape[0] for shape in engine.get_tensor_profile_shape("images", 0)] == [1, 2, BATCH]

    def test_work_is_queued_and_reads_its_input_when_it_runs(self) -> None:
        """Docstring of execute_async_v3: memory must stay as it is until the stream was waited for."""
        with bench() as here:
            context, stream, address = here.fed(here.engine(), photos())
            assert context.execute_async_v3(stream) and here.twin.counts["executions"] == 0
            here.cuda.MemsetAsync(context.get_tensor_address("images"), 0, photos().nbytes, stream)
            first = here.answers(address, 2, stream)
            assert context.execute_async_v3(stream)
            second = here.answers(address, 2, stream)
            assert np.abs(first[0] - first[1]).max() > 0 and np.abs(second[0] - second[1]).max() == 0
            assert here.twin.counts["executions"] == 2

    @pytest.mark.parametrize(("answers", "right"), [(None, True), ("wrong", False), ("nan", False)])
    def test_answers_can_be_planted(self, answers: str | None, right: bool) -> None:
        with bench() as here:
            context, stream, address = here.fed(here.engine(), photos())
            context.execute_async_v3(stream)
            good = here.answers(address, 2, stream)
        with bench(faults={"answers": answers} if answers else {}) as here:
            context, stream, address = here.fed(here.engine(), photos())
            context.execute_async_v3(stream)
            assert np.array_equal(here.answers(address, 2, stream), good) == right


class TestRefusals:
    """Nothing is raised: a call returns None or False, and the logger has the reason."""

    def reason(self, here: Bench) -> str:
        return next((message for message in reversed(here.messages) if message.startswith("ERROR")), "")

    def test_files_that_are_none(self) -> None:
        with bench() as here:
            builder = here.trt.Builder(here.logger)
            parser = here.trt.OnnxParser(builder.create_network(), here.logger)
            assert not parser.parse(b"garbage") and "Failed to parse" in parser.get_error(0).desc()
            assert here.engine(b"garbage" * 9) is None and "magicTag" in self.reason(here)
            plan = here.plan()
            assert here.engine(plan[:-1]) is None

    @pytest.mark.parametrize(
        ("built", "opened", "words"),
        [
            (("10.14", "rtx4090"), ("11.4", "rtx4090"), "not compatible with this version"),
            (("10.14", "rtx4090"), ("10.14", "t4"), "incompatible device"),
            (("10.14", "rtx4090"), ("rtx", "rtx4090"), "magicTag"),
            (("rtx", "rtx4090"), ("rtx", "t4"), "incompatible device"),  # the default targets leave Turing out
            (("rtx", "rtx4090"), ("rtx", "h100"), "incompatible device"),  # no target of RTX is SM90
            (("rtx", "rtx4090"), ("rtx", "old-driver"), "driver version is insufficient"),
            (("rtx", "none"), ("rtx", "a100"), ""),  # built without a GPU
        ],
    )
    def test_plans_fit_their_flavour_version_and_gpu(self, built: Any, opened: Any, words: str) -> None:
        with bench(*built) as here:
            plan = bytes(here.plan())
        with bench(*opened) as here:
            assert (here.engine(plan) is None) == bool(words) and words in self.reason(here)

    def test_targets_of_rtx_are_kept(self) -> None:
        with bench("rtx") as here:
            plan = bytes(here.plan(targets=("SM75", "SM120")))
        for machine, fits in (("t4", True), ("rtx5090", True), ("rtx4090", False)):
            with bench("rtx", machine) as here:
                assert (here.engine(plan) is not None) == fits

    def test_builders_without_a_driver(self) -> None:
        """NVIDIA/TensorRT#308 and #2913; RTX builds ahead of time."""
        for machine, faults in (("none", {}), ("old-driver", {}), ("t4", {"builder": True})):
            for shape in ("10.14", "11.4"):
                with bench(shape, machine, faults=faults) as here, pytest.raises(TypeError, match="factory function"):
                    here.trt.Builder(here.logger)
        with bench("rtx", "none") as here:
            assert here.plan()

    def test_a_missing_profile_and_a_shape_beyond_it(self) -> None:
        with bench() as here:
            builder = here.trt.Builder(here.logger)
            network = builder.create_network(1 << int(here.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            here.trt.OnnxParser(network, here.logger).parse(classifier())
            assert builder.build_serialized_network(network, builder.create_builder_config()) is None
            assert "no optimization profile" in self.reason(here)
            context = here.engine().create_execution_context()
            assert not context.set_input_shape("images", (BATCH + 1, SIZE, SIZE, 3))
            assert not context.set_tensor_address("pictures", 1)
            assert not context.execute_async_v3(here.cuda.StreamCreate()) and "is not set" in self.reason(here)

    def test_memory_that_is_short(self) -> None:
        with bench(faults={"allocations": 1}) as here:  # the weights
            engine = here.engine()
            assert engine.create_execution_context() is None and "out of memory" in self.reason(here)
        with bench(faults={"allocations": 0}) as here:
            assert here.engine() is None and "out of memory" in self.reason(here)

    def test_what_lives_holds_memory_and_what_is_freed_gives_it_back(self) -> None:
        with bench() as here:
            before = here.cuda.MemGetInfo()[0]
            engine = here.engine()
            loaded = here.cuda.MemGetInfo()[0]
            context = engine.create_execution_context()
            assert before > loaded > here.cuda.MemGetInfo()[0]
            del context, engine
            assert here.cuda.MemGetInfo()[0] == before

    def test_timing_caches_of_another_version_or_gpu(self) -> None:
        """Docstring of set_timing_cache: the cache's verification header."""
        with bench("10.14") as here:
            config = here.trt.Builder(here.logger).create_builder_config()
            assert config.get_timing_cache() is None
            cache = config.create_timing_cache(b"")
            assert config.set_timing_cache(cache, False)
            data = bytes(config.get_timing_cache().serialize())
            assert config.create_timing_cache(data[:-3]) is None
        for shape, machine, created, taken in (("11.4", "rtx4090", False, False), ("10.14", "t4", True, False)):
            with bench(shape, machine) as here:
                config = here.trt.Builder(here.logger).create_builder_config()
                cache = config.create_timing_cache(data)
                assert (cache is not None) == created
                assert not created or config.set_timing_cache(cache, False) == taken
                with pytest.raises(TypeError):
                    config.set_timing_cache(None, False)

    def test_one_logger_is_registered_as_long_as_its_objects_live(self) -> None:
        """A warning of TensorRT-RTX 1.7.1: "the current new logger is ignored"."""
        with bench("rtx") as here:
            first, second = here, Bench(here.twin, "tensorrt_rtx")
            runtime = first.trt.Runtime(first.logger)
            assert second.engine(b"garbage") is None
            assert not second.messages and "magicTag" in self.reason(first)
            del runtime
            assert second.engine(b"garbage") is None and "magicTag" in self.reason(second)


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

            def work() -> None:
                for _ in range(20):
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


def test_every_device_says_that_it_is_a_twin() -> None:
    for name, machine in MACHINES.items():
        with installed(name) as twin:
            assert all(gpu.name.startswith("twin of ") for gpu in twin.machine().gpus)
            assert len(twin.machine().gpus) == len(machine.gpus) and SITE.is_dir()
