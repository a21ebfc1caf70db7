"""Devices: what a GPU changes in training and in the engines of others, tried on the CPU at the seams.

torch.cuda and ONNX Runtime's CUDA provider themselves run only where a test is marked `gpu`.
"""

import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT
from torch import nn

from export.graph import export_onnx, export_pt2
from export.precision import half_precision
from lab.tables.claims import lead
from runtime.backends import BACKENDS, Request, open_backend, pytorch, unavailable_because
from runtime.backends import onnxruntime as ort
from runtime.backends.onnxruntime import OnnxRuntimeCuda, formats_in
from runtime.backends.pytorch import PyTorch, PyTorchCuda, why_no_gpu
from runtime.benchmark.table import best, table
from runtime.errors import NotAsAsked, SajiError, Unavailable
from runtime.evaluation import ValidationSet
from runtime.nvidia import Driver, Gpu, NoSuchGpu
from runtime.spec import Geometry, ModelSpec
from training import __main__ as command_line
from training.network.classifier import Normalise
from training.recipe import Recipe
from training.run import train
from training.run.batches import Batches
from training.run.fitting import Fitting

SPEC = ModelSpec("x", "tiny", tuple("abcde"), Geometry.for_size(32))
PHOTOS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
T4, OLD = Gpu("Tesla T4", "sm75", 15360), Gpu("NVIDIA GeForce GTX 1080", "sm61", 8192)


class Tiny(nn.Module):
    """Two convolutions and a product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.normalise = Normalise((0.5,) * 3, (0.5,) * 3)
        body = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.network = nn.Sequential(*body, nn.Linear(24, 5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, kind = self.normalise(images), self.network[0].weight.dtype
        return self.network(x) if x.dtype == kind else self.network(x.to(kind)).float()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tiny = tmp_path_factory.mktemp("tiny"), Tiny().eval()
    export_pt2(tiny, SPEC, folder / "model.pt2")
    export_onnx(tiny, SPEC, folder / "model.onnx")
    export_onnx(half_precision(tiny), SPEC, folder / "model.fp16.onnx")
    return folder


class TestWhyNoGpu:
    """PyTorch's reason is told by its cause: no GPU, an old driver, wheels for another CUDA or without any."""

    def reason(self, monkeypatch: pytest.MonkeyPatch, told: Driver, built: str | None, available: bool = False) -> Any:
        monkeypatch.setattr(pytorch, "driver", lambda: told)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        return why_no_gpu()

    def test_each_cause_has_its_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        old, new = Driver("535.54", "12.2", (T4,)), Driver("580.95", "13.0", (T4,))
        assert self.reason(monkeypatch, new, "13.0", available=True) is None
        said = self.reason(monkeypatch, old, "13.0")
        assert said.startswith(
            "the driver 535.54 serves CUDA 12.2, this PyTorch needs 13.0; type: make setup EXTRAS=auto"
        )
        ancient = Driver("470.82", "11.4", (T4,))
        assert "get driver 580 or newer" in self.reason(monkeypatch, ancient, "13.0")
        assert "was built without CUDA, which the Tesla T4 needs; type: make" in self.reason(monkeypatch, new, None)
        said = self.reason(monkeypatch, Driver("580.95", "13.0", (OLD,)), "13.0", available=True)
        assert "for CUDA 13.0, has no kernels for the NVIDIA GeForce GTX 1080 (sm61)" in said and said.endswith(
            "EXTRAS=auto"
        )
        none = Driver(error="CUDA_ERROR_NO_DEVICE")
        assert "no CUDA GPU here (CUDA_ERROR_NO_DEVICE)" in self.reason(monkeypatch, none, "13.0")
        assert "beside the driver 580.95" in self.reason(monkeypatch, new, "13.0")

    def test_training_is_refused_or_goes_to_the_cpu_with_one_sentence(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
    ) -> None:
        old = Driver("535.54", "12.2", (T4,))
        monkeypatch.setattr(train, "driver", lambda: old)
        self.reason(monkeypatch, old, "13.0")
        train._say_once.cache_clear()
        with pytest.raises(SajiError, match=r"--device cuda was asked for, but the driver 535\.54 serves CUDA 12\.2"):
            train.resolve_device("cuda", "auto")
        assert {train.resolve_device("auto", "fp32") for _ in range(3)} == {("cpu", "32-true")}
        said = capfd.readouterr().err
        assert said.count("the driver 535.54") == 1 and said.endswith("; training on the CPU\n")
        monkeypatch.setattr(train, "driver", Driver)  # without a GPU there is nothing to say
        self.reason(monkeypatch, Driver(error="none"), "13.0")
        assert train.resolve_device("auto", "fp32")[0] == "cpu" and not capfd.readouterr().err


class TestOneGpuOfSeveral:
    def test_it_is_the_first_from_then_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        used: list[int] = []
        monkeypatch.setattr(command_line, "use", used.append)
        command = command_line._on_one_gpu(command_line.Command(device="cuda:1"))
        assert (command.device, command.devices, used) == ("cuda", 1, [1])
        for device in ("auto", "cpu", "cuda"):
            assert command_line._on_one_gpu(command_line.Command(device=device)).device == device
        assert used == [1]

    def test_what_is_none_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for device in ("gpu", "cuda:", "cuda:x", "cpu:1", "cuda:-1"):
            with pytest.raises(SajiError, match=r"is none; choose from auto, cpu, cuda, cuda:0"):
                command_line.Command(device=device)
        with pytest.raises(SajiError, match="cuda:1 is one GPU, not 2"):
            command_line.Command(device="cuda:1", devices=2)

        def none(number: int) -> None:
            raise NoSuchGpu(f"there is no GPU {number}")

        monkeypatch.setattr(command_line, "use", none)
        with pytest.raises(SajiError, match="there is no GPU 7"):
            command_line._on_one_gpu(command_line.Command(device="cuda:7"))


class TestLossThatIsNotFinite:
    def test_a_gpu_is_asked_only_now_and_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tensor without memory stands for one whose value the host would have to wait for."""
        looks: list[int] = []
        module = Fitting("resnet18", 2, Recipe(channels_last=False))
        monkeypatch.setattr(Fitting, "_require_finite", lambda self: looks.append(1))
        for step in range(120):
            module._watch(torch.zeros((), device="meta"), step)
        assert len(looks) == 2
        module._watch(torch.zeros(()), 0)
        assert len(looks) == 3, "a CPU has the loss at hand"

    def test_the_first_one_is_kept_until_it_is_looked_at(self) -> None:
        module = Fitting("resnet18", 2, Recipe(channels_last=False, learning_rate=0.5))
        module._watch(torch.tensor(1.0), 0)
        module.watched = torch.where(torch.tensor(True), torch.tensor(float("inf")), 0)
        with pytest.raises(SajiError, match=r"became inf in epoch 1; .*learning rate 0\.5, try: --learning-rate 0\.1"):
            module._watch(torch.tensor(2.0), 1)

    def test_nothing_of_such_an_epoch_is_kept(
        self, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a GPU: the steps do not look, the end of the epoch does, before anything is measured or saved."""
        from training.photos.dataset import load_data

        def watch(self: Fitting, loss: torch.Tensor, step: int) -> None:
            bad = self.current_epoch == 1 and step == 0
            if self.watched is None or self.watched.isfinite():
                self.watched = loss * float("nan") if bad else loss

        monkeypatch.setattr(Fitting, "_watch", watch)
        recipe = Recipe(image_size=32, epochs=3, batch_size=16, precision="fp32", calibration_photos=20)
        data = load_data(sample, 0.5, 0, look_alikes=False)
        with pytest.raises(SajiError, match=r"the loss became nan in epoch 2; .* --learning-rate 0\.0004"):
            train.train("resnet18", data, recipe, tmp_path / "run", tmp_path / "cache", train.Place("cpu"))
        assert not (tmp_path / "run" / "checkpoint.pt").exists()
        [state] = (tmp_path / "run").glob("last-*.ckpt")
        assert torch.load(state, weights_only=True)["epoch"] == 0


def test_loaders_beside_a_gpu_pin_their_memory_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.run.batches.usable_cores", lambda: 12)
    photos = ValidationSet(PHOTOS, np.zeros(5, np.int64), tuple("abcde"))
    for kind, pinned in (
        (L.pytorch.accelerators.CUDAAccelerator, True),
        (L.pytorch.accelerators.CPUAccelerator, False),
    ):
        batches = Batches(None, photos, photos, Recipe(), 0)  # type: ignore[arg-type]
        batches.trainer = SimpleNamespace(  # type: ignore[assignment]
            accelerator=object.__new__(kind), global_rank=1, world_size=4, num_devices=4
        )
        assert [loader.pin_memory for loader in batches.val_dataloader()] == [pinned] * 2
        loading = batches._loading()
        assert loading["pin_memory"] == pinned and loading["num_workers"] == (3 if pinned else 0)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes for GPUs with the CPU as their device."""
    for backend in (PyTorchCuda, OnnxRuntimeCuda):
        monkeypatch.setattr(backend, "device", "cpu")
        monkeypatch.setattr(backend, "where", nullcontext)


@pytest.mark.usefixtures("on_cpu")
class TestPyTorchOnAGpu:
    def opened(self, files: Path, precision: str, variant: str = "") -> PyTorchCuda:
        return PyTorchCuda(Request("pytorch-cuda", files / "model.pt2", precision, variant))

    @pytest.mark.parametrize(("precision", "apart"), [("fp32", 1e-6), ("fp16", 3e-3), ("bf16", 3e-2)])
    def test_it_computes_in_the_precision_that_it_is_asked_for(self, files: Path, precision: str, apart: float) -> None:
        reference = PyTorch(Request("pytorch", files / "model.pt2")).run(PHOTOS)
        backend = self.opened(files, precision)
        logits = backend.run(PHOTOS)
        assert logits.dtype == np.float32 and 0 <= np.abs(logits - reference).max() < apart
        assert (precision == "fp32") == (np.abs(logits - reference).max() < 1e-6)
        assert backend.precision_share() == {precision: 1.0}
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        backend.close()

    def test_what_computes_is_read_and_not_what_was_exported(self, files: Path) -> None:
        backend = self.opened(files, "fp16")
        backend.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
        with pytest.raises(NotAsAsked, match=r"asked for fp16, but computes 100 % bf16 \(conv2d"):
            backend.precision_share()

    def test_a_compiler_that_does_not_work_is_told(self, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(photos: torch.Tensor) -> None:
            raise RuntimeError("Cannot find a working triton installation.\nmore lines")

        monkeypatch.setattr(torch, "compile", lambda module, dynamic: broken)
        with pytest.raises(Unavailable, match=r"does not work here \(Cannot find a working triton installation\.\)"):
            self.opened(files, "fp16", "compiled")

    def test_it_compiles_for_one_photo_and_for_more(self, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []
        monkeypatch.setattr(
            torch, "compile", lambda module, dynamic: lambda photos: (seen.append(len(photos)), module(photos))[1]
        )
        assert self.opened(files, "fp16", "compiled").run(PHOTOS).shape == (5, 5)
        assert seen == [1, 2, 5]

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_what_was_really_compiled_is_right_and_read(self, files: Path, precision: str) -> None:
        reference = self.opened(files, precision).run(PHOTOS)
        compiled = self.opened(files, precision, "compiled")
        assert np.abs(compiled.run(PHOTOS) - reference).max() < 1e-2
        assert compiled.precision_share() == {precision: 1.0}

    def test_beside_a_gpu_that_pytorch_does_not_see_it_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("runtime.backends.require_gpu", lambda: None)
        monkeypatch.setattr(pytorch, "why_no_gpu", lambda: "PyTorch sees no CUDA GPU here (nothing)")
        assert unavailable_because("pytorch-cuda") == "PyTorch sees no CUDA GPU here (nothing)"


# PyTorch's ways, old and new, to have FP32 computed in less; the same of both devices, of one, or of one operation
REDUCED = [
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'bf16'",
    "torch.backends.cudnn.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.mkldnn.conv.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.autocast('cpu', torch.bfloat16).__enter__()",
    "torch.set_default_device('meta')",
]
PROGRAM = """
import sys, numpy as np, torch
from pathlib import Path
from runtime.backends import Request
from runtime.backends.pytorch import PyTorch, PyTorchCuda
PyTorchCuda.device, PyTorchCuda.where = "cpu", PyTorch.where
file, backends = Path(sys.argv[1]), torch.backends
photos = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
engines = [kind(Request(name, file)) for kind, name in ((PyTorch, "pytorch"), (PyTorchCuda, "pytorch-cuda"))]
right = engines[0].run(photos)
for change in sys.argv[2:]:
    for engine in engines:
        exec(change)
        assert (engine.run(photos) == right).all(), (change, engine.request)
        each = backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul
        assert {of.fp32_precision for of in each} == {"ieee"}, (change, [of.fp32_precision for of in each])
        # These raise where the old switches and the new contradict one another, in torch.compile, too
        told = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()
        assert told == (False, False, "highest"), change
    again = [type(engine)(engine.request) for engine in engines]
    assert all((engine.run(photos) == right).all() for engine in again), ("opened", change)
"""


def test_fp32_is_fp32_whatever_the_program_around_it_chooses(files: Path) -> None:
    """The settings show it, and the answers where a processor multiplies bf16. In a process: they are all PyTorch's."""
    command = [sys.executable, "-c", PROGRAM, str(files / "model.pt2"), *REDUCED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("offer", BACKENDS["pytorch-cuda"].offers, ids=lambda o: f"{o.precision} {o.variant}".strip())
def test_pytorch_on_this_gpu(files: Path, offer: Any) -> None:
    if reason := unavailable_because("pytorch-cuda"):
        pytest.skip(reason)
    reference = PyTorch(Request("pytorch", files / "model.pt2")).run(PHOTOS)
    try:
        backend = open_backend("pytorch-cuda", files / "model.pt2", offer.precision, offer.variant)
    except Unavailable as error:
        pytest.skip(str(error))
    assert np.abs(backend.run(PHOTOS) - reference).max() < {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}[offer.precision]
    assert backend.precision_share() == {offer.precision: 1.0}
    assert backend.device_milliseconds(PHOTOS) > 0  # type: ignore[attr-defined]


@pytest.mark.gpu
@pytest.mark.parametrize("offer", BACKENDS["ort-cuda"].offers, ids=lambda o: f"{o.precision} {o.variant}".strip())
def test_onnxruntime_on_this_gpu(files: Path, offer: Any) -> None:
    if reason := unavailable_because("ort-cuda"):
        pytest.skip(reason)
    reference = PyTorch(Request("pytorch", files / "model.pt2")).run(PHOTOS)
    backend = open_backend("ort-cuda", files / offer.file, offer.precision, offer.variant)
    assert list(backend.precision_share()) == [offer.precision]
    for size in (1, 5, 1, 3, 5):  # captured, replayed
        assert np.abs(backend.run(PHOTOS[:size]) - reference[:size]).max() < 1e-2
    backend.close()


@pytest.fixture
def cpu_provider(monkeypatch: pytest.MonkeyPatch, on_cpu: None) -> list[tuple[int, str]]:
    """ONNX Runtime for a GPU with the CPU's provider: (thread, graph's id) of each call with bound memory."""
    calls: list[tuple[int, str]] = []
    session = onnxruntime.InferenceSession
    made, asked = session.__init__, session.run_with_iobinding

    def make(self: Any, model: Any, options: Any, *, providers: list, provider_options: list, **others: Any) -> None:
        assert providers == ["CUDAExecutionProvider"] and provider_options[0].get("use_tf32", "0") == "0"
        assert others == {"enable_fallback": 0}, "it would compute on the CPU without a word where the GPU is full"
        self.asked_for = provider_options[0]
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
        made(self, model, options, providers=["CPUExecutionProvider"])

    def run(self: Any, binding: Any, options: Any) -> None:
        calls.append((threading.get_ident(), options.get_run_config_entry("gpu_graph_id")))
        asked(self, binding, options)

    monkeypatch.setattr(session, "__init__", make)
    monkeypatch.setattr(session, "run_with_iobinding", run)
    monkeypatch.setattr(session, "get_providers", lambda self: ["CUDAExecutionProvider"])
    return calls


class TestOnnxRuntimeOnAGpu:
    def test_a_graph_for_each_batch_in_one_thread(self, files: Path, cpu_provider: list[tuple[int, str]]) -> None:
        request = Request("ort-cuda", files / "model.onnx", "fp32", "CUDA graph")
        reference = PyTorch(Request("pytorch", files / "model.pt2")).run(PHOTOS)
        backend = OnnxRuntimeCuda(request)
        assert backend.session.asked_for == {"use_tf32": "0", "enable_cuda_graph": "1"}
        answers: list[tuple[int, np.ndarray]] = []

        def ask() -> None:
            answers.extend((size, backend.run(PHOTOS[:size])) for size in (1, 3, 1, 3))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        addresses = {size: bound[2].data_ptr() for size, bound in backend.bound.items()}
        backend.run(PHOTOS[:3])
        assert addresses == {size: bound[2].data_ptr() for size, bound in backend.bound.items()}
        assert len(answers) == 16 and {graph for _, graph in cpu_provider} == {"1", "3"}
        assert len({thread for thread, _ in cpu_provider}) == 1 and threading.get_ident() != cpu_provider[0][0]
        for size, logits in answers:  # none was written over by a later replay
            assert np.abs(logits - reference[:size]).max() < 1e-5
        assert backend.precision_share() == {"fp32": 1.0}, "it is read from a session that shows its layers"
        backend.close()

    def test_without_a_graph_it_runs_as_ever(self, files: Path, cpu_provider: list[tuple[int, str]]) -> None:
        backend = OnnxRuntimeCuda(Request("ort-cuda", files / "model.onnx"))
        assert backend.run(PHOTOS).shape == (5, 5) and not cpu_provider
        assert backend.session.asked_for == {"use_tf32": "0"}
        backend.close()

    def test_cuda_is_loaded_once_before_the_first_session(
        self, files: Path, cpu_provider: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        loaded: list[str] = []

        def preload() -> None:
            loaded.append("cuda")
            print("Failed to load libcublas.so.13")

        monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
        ort.preload_cuda.cache_clear()
        for _ in range(2):
            OnnxRuntimeCuda(Request("ort-cuda", files / "model.onnx")).close()
        assert loaded == ["cuda"]
        told = capsys.readouterr()
        assert not told.out and "libcublas" in told.err, "stdout is for results"
        monkeypatch.delattr(onnxruntime, "preload_dlls")  # before version 1.21
        ort.preload_cuda.cache_clear()
        ort.preload_cuda()

    def test_fp16_is_read_from_a_profile_of_cuda(self) -> None:
        """Events as ONNX Runtime writes them (core/framework/sequential_executor.cc); fences until 1.13."""
        table = {"node_Conv_1": 10.0, "node_Conv_12": 10.0, "node_MatMul_3": 1.0}
        half = {"input_type_shape": [{"float16": [1, 3, 8, 8]}, {"float16": [8, 3, 3, 3]}]}
        single = {"input_type_shape": [{"float": [1, 8]}, {"float": [8, 5]}], "provider": "CUDAExecutionProvider"}
        events = [
            {"cat": "Node", "name": "node_Conv_1_fence_before", "args": {"op_name": "Conv"}},
            {"cat": "Node", "name": "node_Conv_1_kernel_time", "args": {"op_name": "Conv", **half}},
            {"cat": "Node", "name": "node_Conv_1_fence_after", "args": {"op_name": "Conv"}},
            {"cat": "Kernel", "name": "void cudnn::winograd…", "args": {"op_name": "", "stream": "7"}},
            {"cat": "Node", "name": "node_Conv_12_kernel_time", "args": {"op_name": "FusedConv", **half}},
            {"cat": "Node", "name": "node_MatMul_3_kernel_time", "args": {"op_name": "MatMul", **single}},
            {"cat": "Session", "name": "model_run"},
        ]
        assert formats_in(events, table) == dict(zip(table, ("fp16", "fp16", "fp32"), strict=True))


def row(backend: str, milliseconds: float, variant: str = "", precision: str = "fp32") -> dict[str, Any]:
    name = " · ".join(part for part in ("resnet34", backend, precision, variant) if part)
    return {
        **{"scenario": "single-stream", "architecture": "resnet34", "candidate": name, "backend": backend, "batch": 1},
        **{"precision": precision, "variant": variant, "milliseconds": milliseconds, "p25": 1, "p75": 9},
        **{"unstable": False, "images_per_second": 1000 / milliseconds, "samples": [[milliseconds]] * 5},
        **{"accuracy": 0.9, "accuracy_interval": [0.8, 0.95], "verdict": "pass", "file_bytes": 1e6, "image_size": 32},
        **{"versions": {}, "machine_cores": 2, "machine_cpu": "x", "machine_cpu_features": [], "machine_gpu": None},
        **{"drawn": True, "photos": 9, "commit": "c", "dirty": False, "time": "2026-01-01T00", "rounds": 5},
    }


def test_an_engine_is_compared_with_pytorch_on_its_own_device() -> None:
    rows = [row("pytorch", 12), row("openvino", 4), row("pytorch-cuda", 3), row("tensorrt", 0.5, "", "fp16")]
    rows += [row("pytorch-cuda", 2, "compiled", "fp16"), row("pytorch", 24, "channels-last")]
    of_both = table(rows)
    lines = {line.split(" | ")[0]: line for line in of_both.splitlines()}
    assert "| against PyTorch there |" in of_both
    assert "3.00× (3.00–3.00) resnet34 · pytorch · fp32 |" in lines["| resnet34 · openvino · fp32"]
    assert "4.00× (4.00–4.00) resnet34 · pytorch-cuda · fp16 · compiled |" in lines["| resnet34 · tensorrt · fp16"]
    alone = table(rows[:2])
    assert "| against resnet34 · pytorch · fp32 |" in alone and "| 3.00× (3.00–3.00) |" in alone
    assert {each["candidate"] for each in best(rows)} == {
        "resnet34 · pytorch · fp32", "resnet34 · pytorch-cuda · fp16 · compiled", "resnet34 · tensorrt · fp16"
    }  # fmt: skip
    first = lead([*rows, row("ort-cuda", 1)])
    assert "| against pytorch-cuda · fp16 · compiled |" in first and "4.0×" in first and "openvino" not in first
    assert "| against pytorch · fp32 |" in lead(rows[:2])
