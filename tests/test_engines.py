"""Engines: what is built is in the precision asked for, and only where it was built for is it ever opened."""

import ast
import contextlib
import json
import shutil
import subprocess
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tensorrt_names
import torch
from conftest import ROOT
from onnx import TensorProto, helper, numpy_helper

from export import engine, precision
from export.engine import SOURCES, build_engine, build_engines, layers_of, parse, serialised, targets_of
from export.graph import FORBIDDEN_IN_OURS, beside_logits, export_onnx, graph_facts, layer_facts, multiply_adds
from export.settings import Settings
from runtime.backends import open_backend, unavailable_because
from runtime.backends.base import BuildFacts, Request, check_precision
from runtime.backends.tensorrt.engine import TensorRt
from runtime.backends.tensorrt.fit import mismatch
from runtime.backends.tensorrt.logger import collecting_logger
from runtime.benchmark import scenarios
from runtime.errors import NotAsAsked, NotTold, SajiError, Unavailable
from runtime.evaluation import ValidationSet
from runtime.files import sha256_file
from runtime.receipt import Receipt
from runtime.spec import Geometry, ModelSpec
from training.network.architectures import ACTIVATIONS
from training.network.classifier import Normalise, PhotoClassifier, reference_logits
from training.recipe import Recipe

OURS = ("plain34", "resnet34", "se_resnet34")
RELEASED = {version: release["names"] for version, release in json.loads(tensorrt_names.FILE.read_text()).items()}
SPEC = ModelSpec("x", "tiny", tuple("abcde"), Geometry.for_size(32))


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'saji[tensorrt-rtx]'")


# What a variable of ours holds; "" is the module itself
HOLDS = {
    **{"trt": "", "builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition"},
    **{"parser": "OnnxParser", "error": "ParserError", "shapes": "IOptimizationProfile", "flags": "BuilderFlag"},
    **{"layer": "ILayer", "maker": "ILayer", "inspector": "EngineInspector", "runtime": "Runtime"},
    **{"engine": "ICudaEngine", "context": "IExecutionContext", "settings": "IRuntimeConfig"},
}
# Of modules and of our own objects that share a variable's name
NOT_TENSORRT = {"name", "ndim", "wanted", *(setting.name for setting in fields(Settings))}
RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
RTX_ONLY |= {"CudaGraphStrategy", "cuda_graph_strategy", "create_runtime_cache", "set_runtime_cache"}
RTX_ONLY |= {"DynamicShapesKernelSpecializationStrategy", "dynamic_shapes_kernel_specialization_strategy"}
READERS = (Path("export/engine.py"), *(ROOT / "runtime" / "backends" / "tensorrt").glob("*.py"))


class TestNames:
    """Every name of TensorRT that our code uses exists in each release that we support."""

    def used(self) -> set[tuple[str, str]]:
        """(class, attribute) of every access to an object of TensorRT in our sources, enumerations included."""
        found = set()
        for source in READERS:
            for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr not in NOT_TENSORRT and node.attr[0] != "_":
                    holder = self.holder(node.value)
                    if holder is not None:
                        found.add((holder, node.attr))
        return found

    def holder(self, value: ast.expr) -> str | None:
        if isinstance(value, ast.Name):
            return {**HOLDS, "flags": "NetworkDefinitionCreationFlag"}.get(value.id)
        if isinstance(value, ast.Attribute):  # self.engine.…, worker.context.…, trt.BuilderFlag.…
            return value.attr if self.holder(value.value) == "" else HOLDS.get(value.attr)
        return None

    def missing(self, names: dict[str, list[str]], used: set[tuple[str, str]]) -> list[str]:
        return sorted(f"{holder}.{name}" for holder, name in used if name not in names[holder] and name != "__name__")

    @pytest.mark.parametrize("version", RELEASED)
    def test_in_enterprise_releases(self, version: str) -> None:
        used = self.used()
        assert {
            ("Builder", "build_serialized_network"),
            ("BuilderFlag", "TF32"),
            ("ICudaEngine", "get_tensor_shape"),
        } <= used
        rtx_only = {(holder, name) for holder, name in used if {holder, name} & RTX_ONLY}
        assert len(rtx_only) >= 3 and not self.missing(RELEASED[version], used - rtx_only)

    def test_in_the_rtx_module_installed_here(self, trt) -> None:
        assert not self.missing(tensorrt_names.names_of(trt), self.used())

    def test_a_name_that_went_away_is_noticed(self) -> None:
        gone = {("BuilderFlag", "FP16"), ("IBuilderConfig", "int8_calibrator")}
        old, new = RELEASED.values()
        assert not self.missing(old, gone) and len(self.missing(new, gone)) == 2

    @pytest.mark.slow
    def test_the_committed_lists_are_those_of_the_wheels(self) -> None:
        if not shutil.which("cc"):
            pytest.skip("there is no C compiler to make the stand-in libraries with")
        try:
            fresh = tensorrt_names.all_released()
        except subprocess.SubprocessError as error:
            pytest.skip(f"the bindings' wheels cannot be had here: {error}")
        assert fresh == json.loads(tensorrt_names.FILE.read_text(encoding="utf-8"))


FACTS = BuildFacts(flavour="tensorrt", version="10.14.1.48", system="Linux x86_64", targets=("sm86",))
HERE = ("tensorrt", "10.14.1.48", "sm86", "Linux x86_64")


class TestMismatch:
    """A plan that was built for something else is refused by name before it is deserialised."""

    def test_what_fits_is_opened(self) -> None:
        assert mismatch(FACTS, *HERE) is None
        assert mismatch(replace(FACTS, targets=()), *HERE) is None

    @pytest.mark.parametrize(
        "here",
        [
            ("tensorrt_rtx", "10.14.1.48", "sm86", "Linux x86_64"),
            ("tensorrt", "10.16.0.1", "sm86", "Linux x86_64"),
            ("tensorrt", "10.14.1.48", "sm89", "Linux x86_64"),
            ("tensorrt", "10.14.1.48", "sm86", "Windows AMD64"),
        ],
    )
    def test_each_difference_is_refused_with_both_sides_named(self, here: tuple[str, str, str, str]) -> None:
        reason = mismatch(FACTS, *here)
        assert reason is not None and "was built for sm86 with TensorRT 10.14.1.48 on Linux" in reason
        assert all(part in reason.partition("this machine has")[2] for part in here[1:])

    def test_what_compatible_engines_allow(self) -> None:
        version = replace(FACTS, version_compatible=True)
        others = ("10.16.0.1", "10.9.0.1", "11.4.0.1", "12.0.0.1")
        allowed = {v: mismatch(version, "tensorrt", v, *HERE[2:]) for v in others}
        assert [v for v, reason in allowed.items() if reason is None] == ["10.16.0.1", "11.4.0.1"]
        newer = replace(version, version="11.4.0.1")
        assert mismatch(newer, *HERE), "no earlier version runs it"
        hardware = replace(FACTS, hardware_compatible=True)
        gpus = {gpu: mismatch(hardware, *HERE[:2], gpu, HERE[3]) for gpu in ("sm75", "sm80", "sm120")}
        assert [gpu for gpu, reason in gpus.items() if reason is None] == ["sm80", "sm120"]

    @pytest.mark.parametrize("facts", [BuildFacts(), replace(FACTS, flavour="tensorrt_rtx", version="1.0")])
    def test_opening_asks_before_it_reads_the_file(self, trt, facts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("runtime.backends.cuda.compute_capability", lambda: "sm86")
        monkeypatch.setattr(TensorRt, "where", contextlib.nullcontext)
        with pytest.raises(Unavailable, match=r"gone\.engine (was built for|has no facts)"):
            TensorRt(Request("tensorrt-rtx", Path("gone.engine"), "fp16", facts=facts))


class TestOnAGpu:
    @pytest.mark.gpu
    @pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
    def test_device_time_is_less_than_that_of_a_call(self, backend: str, model: Path) -> None:
        reason = unavailable_because(backend)
        if reason:
            pytest.skip(reason)
        images = ValidationSet.load(model / "validation.npz").images[:1]
        here = [c for c in Receipt.read(model).candidates if c.backend == backend and c.verdict == "pass"]
        for candidate in here:
            opened = candidate.open(model)
            calls = scenarios.timed(lambda opened=opened: opened.run(images), 0.2)
            alone = [opened.device_milliseconds(images) for _ in range(20)]
            opened.close()
            assert 0 < np.median(alone) < np.median(calls), candidate.name


class TestProof:
    def test_declared_layers_are_set_apart_and_others_are_named(self) -> None:
        layers = [("a", "int8", 60.0), ("b", "fp32", 30.0), ("c", "int8", 10.0)]
        assert check_precision(layers, "int8", "x", {"b": 0.3}) == {"fp32": 0.3, "int8": 0.7}
        with pytest.raises(NotAsAsked, match=r"70 % int8, 30 % fp32 \(b\)"):
            check_precision(layers, "int8", "x", {})
        with pytest.raises(NotAsAsked):
            check_precision(layers, "int8", "x", {"b": 0.2})

    def test_what_a_profile_did_not_show_counts_as_unseen(self, model: Path, tmp_path: Path) -> None:
        graph = onnx.load(model / "model.onnx")
        for entry in graph.metadata_props:
            if entry.key == "multiply_adds":
                entry.value = json.dumps({**json.loads(entry.value), "node_nobody_ran": 10**9})
        onnx.save(graph, tmp_path / "model.onnx")
        opened = open_backend("ort-cpu", tmp_path / "model.onnx", "fp32")
        assert opened.precision_share()["untold"] > 0.9  # its answers tell whether that is FP32
        with pytest.raises(NotTold, match=r"asked for int8 and does not tell what it computes in \(node_nobody_ran"):
            check_precision([("a", "int8", 1e9), *opened.layers()], "int8", "x", {})


class Outlier(torch.nn.Module):
    """A network whose second convolution reads one channel a thousand times larger than the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.normalise = Normalise((0.5,) * 3, (0.5,) * 3)
        self.convolutions = torch.nn.ModuleList(torch.nn.Conv2d(a, 16, 3, bias=False) for a in (3, 16, 16, 16))
        self.last = torch.nn.Linear(16, 5, bias=False)
        with torch.no_grad():
            self.convolutions[0].weight[0] *= 1000
            self.convolutions[1].weight[:, 0] /= 1000

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.normalise(images)
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        return self.last(x.mean((2, 3)))


def test_recovery_returns_the_layer_that_hurts_and_declares_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    export_onnx(Outlier(), SPEC, tmp_path / "model.onnx")
    precision.quantise(tmp_path / "model.onnx", photos, SPEC, tmp_path / "recovered.onnx")
    monkeypatch.setattr(precision, "AIM", 1e9)
    precision.quantise(tmp_path / "model.onnx", photos, SPEC, tmp_path / "plain.onnx")
    assert layer_facts(tmp_path / "plain.onnx")["kept"] == {}
    work = list(layer_facts(tmp_path / "model.onnx")["multiply_adds"])
    facts = layer_facts(tmp_path / "recovered.onnx")
    assert work[1] in facts["kept"] and work[3] not in facts["kept"]
    reference = precision._logits(onnx.load(tmp_path / "model.onnx"), photos)
    error = {
        name: np.abs(precision._logits(onnx.load(tmp_path / name), photos) - reference).mean()
        for name in ("plain.onnx", "recovered.onnx")
    }
    assert error["recovered.onnx"] < 0.5 * error["plain.onnx"]
    opened = open_backend("ort-cpu", tmp_path / "recovered.onnx", "int8", facts=BuildFacts(**facts))
    assert opened.precision_share()["fp32"] > 0.05
    with pytest.raises(NotAsAsked, match="asked for int8"):
        open_backend("ort-cpu", tmp_path / "recovered.onnx", "int8").precision_share()


def test_the_overflow_fix_keeps_weights_in_half_their_range(tmp_path: Path) -> None:
    """255 × 64 twice fits into 16 bits, which is how x86 without VNNI adds them."""
    photos = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    export_onnx(Outlier(), SPEC, tmp_path / "model.onnx")
    largest = {}
    for fix in (False, True):
        precision.quantise(tmp_path / "model.onnx", photos, SPEC, tmp_path / "int8.onnx", False, overflow_fix=fix)
        constants = onnx.load(tmp_path / "int8.onnx").graph.initializer
        filters = [t for t in constants if len(t.dims) == 4 and t.data_type == TensorProto.INT8]
        assert len(filters) == 4
        largest[fix] = max(int(np.abs(numpy_helper.to_array(tensor).astype(int)).max()) for tensor in filters)
    assert largest[True] <= 64 < largest[False]


class TestModelFolder:
    """What an export leaves behind about its engines."""

    def test_the_int8_file_for_tensorrt_is_a_file_check_here(self, model: Path) -> None:
        candidates = Receipt.read(model).candidates
        (check,) = (c for c in candidates if c.file == SOURCES["int8"])
        (served,) = (c for c in candidates if c.file == "model.int8.onnx" and c.backend == "ort-cpu")
        assert not check.servable and check.backend == "ort-cpu" and check.precision == "int8"
        assert check.figures.shift < 2 * served.figures.shift  # one and the same calibration

    def test_its_activations_are_signed_about_zero_and_the_rest_is_fp16(self, model: Path) -> None:
        graph = onnx.load(model / SOURCES["int8"]).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert len(pairs) > 40
        for node in pairs:
            scale, zero = (constants[name] for name in node.input[1:])
            assert scale.dtype == np.float16 and (scale > 0).all() and zero.dtype == np.int8 and not zero.any()
        weights = [node for node in pairs if constants.get(node.input[0]) is not None]
        assert all(constants[node.input[1]].size > 1 for node in weights)  # a scale per channel
        singles = {name for name, value in constants.items() if value.dtype == np.float32}
        beside = beside_logits(onnx.load(model / SOURCES["int8"]))
        of_logits = {name for node in graph.node if node.name not in beside for name in node.input}
        assert singles & of_logits <= {"normalise.mean", "normalise.std"}

    def test_engines_come_with_their_facts(self, trt, model: Path) -> None:
        receipt, targets = Receipt.read(model), targets_of(trt, Settings())
        for name in SOURCES:
            file = f"engines/tensorrt-rtx.{name}.engine"
            built = receipt.engines[file]
            assert built["engine_sha256"] == sha256_file(model / file) == receipt.files[file].sha256
            assert built["onnx_sha256"] == sha256_file(model / SOURCES[name])
            assert built["version"] == trt.__version__ and tuple(built["targets"]) == targets
            assert built["cuda"][0].isdigit() and built["precision_share"][name] > 0.95
            kinds = {kind for _, kind, _ in built["layers"]}
            assert "CONVOLUTION" in kinds and ("DEQUANTIZE" in kinds) == (name == "int8")
            launched, graph = (c for c in receipt.candidates if c.file == file)
            assert (launched.variant, graph.variant) == ("", "CUDA graph")
            for candidate in (launched, graph):
                assert candidate.verdict == "unchecked" or candidate.machine.gpu
                assert candidate.facts.targets == targets and candidate.facts.multiply_adds


# ResNet-34 stands for the three in each run; the others are exported with the long tests
@pytest.fixture(
    scope="module",
    params=[name if name == "resnet34" else pytest.param(name, marks=pytest.mark.slow) for name in OURS],
)
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PhotoClassifier, Path]:
    """A network of ours, untrained, and its FP16 file."""
    network = PhotoClassifier(request.param, 5).eval()
    file = tmp_path_factory.mktemp(request.param) / "model.fp16.onnx"
    export_onnx(precision.half_precision(network), replace(SPEC, architecture=request.param), file)
    return network, file


def test_our_graphs_hold_no_dynamic_shape_work(half: tuple[PhotoClassifier, Path]) -> None:
    network, file = half
    assert not set(FORBIDDEN_IN_OURS) & set(graph_facts(file)["operators"])
    assert sum(multiply_adds(onnx.load(file)).values()) == macs_by_hooks(network, SPEC.geometry.size)


def macs_by_hooks(network: torch.nn.Module, size: int) -> int:
    """Multiply-adds of one photo, counted on the running PyTorch modules: an independent count."""
    total = 0

    def count(module, inputs, output) -> None:
        nonlocal total
        total += module.weight[0].numel() * output[0].numel()

    hooks = [
        m.register_forward_hook(count) for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    ]
    network(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return total


class TestBuilder:
    """The builder for real, without a GPU: TensorRT-RTX compiles ahead of time."""

    def test_builds_an_fp16_engine_of_every_architecture(
        self, trt, half: tuple[PhotoClassifier, Path], tmp_path: Path
    ) -> None:
        network, file = half
        settings = Settings(targets=("sm86", "sm89"))
        built = build_engine(trt, file, tmp_path / "x.engine", "fp16", settings)
        assert built.precision_share == {"fp16": 1.0} and built.targets == ("sm86", "sm89")
        fp16_weights = 2 * sum(p.numel() for p in network.parameters())
        assert 0.9 * fp16_weights < (tmp_path / "x.engine").stat().st_size < 1.6 * fp16_weights

    @pytest.mark.slow
    @pytest.mark.parametrize("architecture", OURS)
    def test_each_precision_halves_the_engine_and_int8_is_int8(self, trt, architecture: str, tmp_path: Path) -> None:
        from lab.engine_sizes import write_files

        write_files(architecture, tmp_path, 64)
        size = {}
        for name, source in {"fp32": "model.onnx", **SOURCES}.items():
            built = build_engine(trt, tmp_path / source, tmp_path / "x.engine", name, Settings(targets=("sm86",)))
            assert built.precision_share[name] > 0.95
            size[name] = (tmp_path / "x.engine").stat().st_size
        assert size["fp32"] > 1.8 * size["fp16"] and size["fp16"] > 1.5 * size["int8"]

    @pytest.mark.slow
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_activation_of_the_experiments_exports_and_is_read(
        self, trt, activation: str, tmp_path: Path
    ) -> None:
        torch.manual_seed(0)
        network = PhotoClassifier("se_resnet34", 5, Recipe(activation=activation, head_dropout=0.2)).eval()
        spec = replace(SPEC, architecture="se_resnet34")
        export_onnx(network, spec, tmp_path / "model.onnx")
        photos = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
        opened = open_backend("ort-cpu", tmp_path / "model.onnx", "fp32")
        assert np.allclose(opened.run(photos), reference_logits(network, photos), atol=1e-4)
        opened.close()
        export_onnx(precision.half_precision(network), spec, tmp_path / "model.fp16.onnx")
        logger = collecting_logger(trt)
        builder = trt.Builder(logger)
        for file in ("model.onnx", "model.fp16.onnx"):
            assert parse(trt, builder, logger, tmp_path / file).num_outputs == 1

    def test_a_second_build_is_the_same_size_if_not_the_same_bytes(self, trt, model: Path, tmp_path: Path) -> None:
        """RTX 1.7.1 numbers its tensors anew in each build, so every built file is judged and known by its sha256."""
        for name in ("first", "second"):
            build_engine(trt, model / SOURCES["fp16"], tmp_path / name, "fp16", Settings(targets=("sm86",)))
        first, second = (np.fromfile(tmp_path / name, np.uint8) for name in ("first", "second"))
        assert abs(len(first) - len(second)) < 1e-4 * len(first)

    def test_asked_fp16_but_parsed_fp32_is_a_failure(self, trt, model: Path, tmp_path: Path) -> None:
        with pytest.raises(NotAsAsked, match="asked for fp16, but computes 100 % fp32"):
            build_engine(trt, model / "model.onnx", tmp_path / "x.engine", "fp16", Settings())
        assert not list(tmp_path.iterdir())

    def test_an_engine_that_was_not_asked_for_is_left_out_with_its_reason(
        self, trt, model: Path, tmp_path: Path
    ) -> None:
        for file in SOURCES.values():
            shutil.copy(model / "model.onnx", tmp_path / file)
        built, skipped = build_engines(tmp_path, Settings(), lambda line: None)
        assert not built and any("asked for fp16, but computes 100 % fp32" in reason for reason in skipped)
        with pytest.raises(NotAsAsked):
            build_engines(tmp_path, Settings(precisions=("fp16",)), lambda line: None)

    def test_timings_are_kept_between_builds_of_enterprise_tensorrt(
        self, trt, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its builder needs a GPU; RTX's has the same calls, so it stands in for it under its name."""
        enterprise = SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt)} | {"__name__": "tensorrt"})
        monkeypatch.setattr("runtime.backends.cuda.compute_capability", lambda: "sm86")
        cache, settings = tmp_path / "cache", Settings(targets=())
        given = []
        create = trt.IBuilderConfig.create_timing_cache
        monkeypatch.setattr(
            trt.IBuilderConfig,
            "create_timing_cache",
            lambda config, known: given.append(known) or create(config, known),
        )
        for _ in range(2):
            built = build_engine(enterprise, model / SOURCES["fp16"], tmp_path / "x.engine", "fp16", settings, cache)
        (timings,) = cache.iterdir()
        assert built.targets == ("sm86",) and given == [b"", timings.read_bytes()] and given[1]


class TestRefusals:
    """Each refusal reaches the user with TensorRT's own reason, though it is told to the logger only."""

    def build(self, trt, file: Path, change=lambda config: None, targets: tuple[str, ...] = ()) -> None:
        logger = collecting_logger(trt)
        builder = trt.Builder(logger)
        network = parse(trt, builder, logger, file)
        config = engine._config(trt, builder, network, Settings(targets=targets), logger)
        change(config)
        serialised(builder, network, config, "refused")

    @pytest.mark.parametrize(
        ("tensor", "image", "sizes", "words"),
        [
            ("pictures", (32, 32, 3), (1, 1, 8), "tensor images is missing dimensions in profile"),
            ("images", (64, 64, 3), (1, 1, 8), "axis 1, profile has min=64, opt=64, max=64 but tensor has 32"),
            ("images", (32, 32, 3), (8, 4, 1), "profile->isValid()"),
        ],
    )
    def test_a_profile_that_does_not_fit(self, trt, model: Path, tensor: str, image, sizes, words: str) -> None:
        logger = collecting_logger(trt)
        builder = trt.Builder(logger)
        network = parse(trt, builder, logger, model / SOURCES["fp16"])
        config = builder.create_builder_config()
        with pytest.raises(SajiError) as error:
            engine.add_profile(builder, config, tensor, image, sizes, logger)
            serialised(builder, network, config, "refused")
        assert words in str(error.value)

    def test_settings_that_this_machine_or_a_gpu_does_not_have(self, trt, model: Path) -> None:
        workspace = trt.MemoryPoolType.WORKSPACE
        cases = {
            "requires workspace memory": lambda config: config.set_memory_pool_limit(workspace, 0),
            "graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS)": lambda config: config.set_flag(
                trt.BuilderFlag.STRIP_PLAN
            ),
            "CHECK(status == CUDA_SUCCESS)": lambda config: config.set_flag(trt.BuilderFlag.REFIT),
            "nvinfer_lean": lambda config: config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE),
        }
        if engine.machine().gpu:
            pytest.skip("with a GPU these may be allowed")
        for words, change in cases.items():
            with pytest.raises(SajiError) as error:
                self.build(trt, model / SOURCES["fp16"], change=change)
            assert words in str(error.value)

    def test_fp32_products_for_turing(self, trt, model: Path) -> None:
        with pytest.raises(SajiError, match=r"Turing \(SM75\): FP32 GEMM is not supported"):
            self.build(trt, model / "model.onnx", targets=("sm75",))

    def test_fp8_for_ampere(self, trt, tmp_path: Path) -> None:
        (tmp_path / "fp8.onnx").write_bytes(fp8_product().SerializeToString())
        self.build(trt, tmp_path / "fp8.onnx", targets=("sm89",))
        with pytest.raises(SajiError, match=r"sm86, because the model contains HW-specific datatypes: fp8"):
            self.build(trt, tmp_path / "fp8.onnx", targets=("sm86",))

    def test_files_that_hold_no_model(self, trt, tmp_path: Path) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"garbage")
        with pytest.raises(SajiError, match=r"cannot read bad\.onnx: .*parse"):
            self.build(trt, tmp_path / "bad.onnx")
        strange = helper.make_node("NoSuchOperator", ["images"], ["logits"])
        (tmp_path / "strange.onnx").write_bytes(model_of([strange], TensorProto.FLOAT).SerializeToString())
        with pytest.raises(SajiError, match=r"cannot read strange\.onnx: NoSuchOperator .*Plugin not found"):
            self.build(trt, tmp_path / "strange.onnx")

    def test_what_a_user_may_mistype(self, trt, model: Path, tmp_path: Path) -> None:
        with pytest.raises(SajiError, match="batch sizes 8 4 1 are no profile; give --batch smallest typical largest"):
            Settings(batch=(8, 4, 1))
        with pytest.raises(SajiError, match=r"no target 'sm99'; choose from .*sm86"):
            build_engines(tmp_path, Settings(targets=("sm99",)), lambda line: None)
        for file in SOURCES.values():  # other flavours build from them, and not into the model of all tests
            shutil.copy(model / file, tmp_path / file)
        _, skipped = build_engines(tmp_path, Settings(version_compatible=True), lambda line: None)
        assert any("TensorRT-RTX ties a plan to its version" in reason for reason in skipped)


def model_of(nodes: list, kind: int, *constants: onnx.TensorProto) -> onnx.ModelProto:
    """A graph images [batch, 16] → logits around some nodes."""
    images = helper.make_tensor_value_info("images", kind, ["batch", 16])
    logits = helper.make_tensor_value_info("logits", kind, None)
    graph = helper.make_graph(nodes, "graph", [images], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


def fp8_product() -> onnx.ModelProto:
    """A matrix product of FP8 numbers."""
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    scale = numpy_helper.from_array(np.float16(0.1), "scale")
    weight = numpy_helper.from_array(np.eye(16, dtype=np.float16), "weight")
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["images_q"]),
        helper.make_node("DequantizeLinear", ["images_q", "scale", "zero"], ["images_dq"]),
        helper.make_node("QuantizeLinear", ["weight", "scale", "zero"], ["weight_q"]),
        helper.make_node("DequantizeLinear", ["weight_q", "scale", "zero"], ["weight_dq"]),
        helper.make_node("MatMul", ["images_dq", "weight_dq"], ["logits"], name="product"),
    ]
    return model_of(nodes, TensorProto.FLOAT16, zero, scale, weight)


def test_pooling_does_not_hide_that_a_convolution_is_int8(trt, model: Path) -> None:
    logger = collecting_logger(trt)
    builder = trt.Builder(logger)
    network = parse(trt, builder, logger, model / SOURCES["int8"])
    share = {kind for _, name, kind in layers_of(trt, network) if name == "CONVOLUTION"}
    assert share == {"int8"}


def test_an_input_that_is_left_out_has_no_number_format() -> None:
    """As of ShuffleNet's slices, where TensorRT gives None for it."""
    names = SimpleNamespace(float32="fp32", float16="fp16", bfloat16="bf16", int8="int8")
    names.LayerType = SimpleNamespace(CONSTANT=0, CONVOLUTION=1, MATRIX_MULTIPLY=2, POOLING=3, DEQUANTIZE=4, SLICE=5)
    tensor, kind = SimpleNamespace(name="x", dtype="fp16", shape=(1,)), SimpleNamespace(name="SLICE")
    names.LayerType.SLICE = kind
    inputs, output = [tensor, None, None], SimpleNamespace(name="y", dtype="fp16", shape=(1,))
    layer = SimpleNamespace(name="cut", type=kind, num_inputs=3, num_outputs=1, get_input=inputs.__getitem__)
    layer.get_output = lambda index: output
    network = SimpleNamespace(num_layers=1, get_layer=lambda index: layer)
    assert layers_of(names, network) == (("cut", "SLICE", "fp16"),)
