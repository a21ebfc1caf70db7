"""The twin's driver and CUDA runtime keep the documented rules: what those forbid is refused, what is undefined raises.

Places are named as in NVIDIA's CUDA documentation: the Runtime API reference and the Programming Guide.
"""

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import threading
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from twin.machines import COMMON, MACHINES, RTX, SITE, environment, installed

NONBLOCKING = 1


@contextlib.contextmanager
def undefined(twin: Any, words: str):
    """The block does what is undefined behaviour on hardware, and the twin says so in these words."""
    with pytest.raises(twin.TwinError, match=words):
        yield
    twin.forget_misuse()


class Cuda:
    """The runtime, whose answers are taken apart: the value where a call succeeds, else the error's name."""

    def __init__(self, twin: Any, runtime: ModuleType) -> None:
        self.twin, self.runtime = twin, runtime

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.runtime, f"cuda{name}")

        def call(*arguments: Any) -> Any:
            status, *values = function(*arguments)
            if status.name != "cudaSuccess":
                assert all(value is None for value in values)
                return status.name.removeprefix("cudaError")
            return values[0] if len(values) == 1 else tuple(values)

        return call

    def copy(self, to: int, source: int, size: int, kind: int, stream: Any) -> Any:
        return self.MemcpyAsync(to, source, size, kind, stream)


@pytest.fixture
def cuda():
    with installed("rtx4090") as twin:
        from cuda.bindings import runtime

        yield Cuda(twin, runtime)


def pinned(cuda: Cuda, size: int) -> np.ndarray:
    address = cuda.HostAlloc(size, 0)
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8)


UP, DOWN = 1, 2


class TestDriver:
    """What a process learns of the machine before it uses it."""

    def seen(self) -> dict[str, Any]:
        """By ctypes: what libcuda and NVML say, as runtime/nvidia.py asks them."""
        cuda, count, version, text = (
            *(ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()),
            ctypes.create_string_buffer(80),
        )
        status = cuda.cuInit(0)
        cuda.cuDriverGetVersion(ctypes.byref(version))
        names = []
        if status == 0:
            cuda.cuDeviceGetCount(ctypes.byref(count))
        for number in range(count.value):
            device, major = ctypes.c_int(), ctypes.c_int()
            assert cuda.cuDeviceGet(ctypes.byref(device), number) == 0
            assert cuda.cuDeviceGetName(text, 80, device) == 0
            assert cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device) == 0
            names.append((text.value.decode(), major.value))
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        assert nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, 80) == 0
        return {"status": status, "cuda": version.value, "gpus": names, "driver": text.value.decode()}

    @pytest.mark.parametrize("name", [name for name, machine in MACHINES.items() if machine.driver])
    def test_the_driver_tells_its_machine(self, name: str) -> None:
        with installed(name):
            seen, machine = self.seen(), MACHINES[name]
        expected = sorted(machine.gpus, key=lambda gpu: gpu.capability, reverse=True)
        assert seen["gpus"] == [(f"twin of {gpu.name}", gpu.capability[0]) for gpu in expected]
        assert seen["driver"] == machine.driver and seen["cuda"] // 1000 == int(machine.cuda.split(".")[0])

    def test_without_a_driver_its_libraries_are_not_found(self) -> None:
        with installed("none"):
            from cuda.bindings import runtime

            for library in ("libcuda.so.1", "libnvidia-ml.so.1"):
                with pytest.raises(OSError, match="cannot open shared object file"):
                    ctypes.CDLL(library)
            assert runtime.cudaGetDeviceCount() == (runtime.cudaError_t.cudaErrorInsufficientDriver, None)
            assert runtime.cudaDriverGetVersion() == (0, 0)

    def test_a_driver_below_the_toolkits_major_serves_nothing(self) -> None:
        """CUDA Compatibility: a newer driver runs older programs, within a major version any minor."""
        with installed("old-driver"):
            from cuda.bindings import runtime

            assert runtime.cudaGetDeviceCount() == (runtime.cudaError_t.cudaErrorInsufficientDriver, None)
        with installed("old-driver", toolkit="12.9"):
            from cuda.bindings import runtime

            assert runtime.cudaGetDeviceCount() == (0, 1)

    @pytest.mark.parametrize(
        ("variables", "names"),
        [
            ({}, ["RTX 4090", "T4"]),  # the fastest first, whatever nvidia-smi lists first
            ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["T4", "RTX 4090"]),
            ({"CUDA_VISIBLE_DEVICES": "1"}, ["T4"]),
            ({"CUDA_VISIBLE_DEVICES": "1,0"}, ["T4", "RTX 4090"]),
            ({"CUDA_VISIBLE_DEVICES": "0,7,1"}, ["RTX 4090"]),  # up to the first that does not exist
            ({"CUDA_VISIBLE_DEVICES": "GPU-00000074"}, ["T4"]),
            ({"CUDA_VISIBLE_DEVICES": ""}, []),
            ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ],
    )
    def test_which_gpus_are_visible(
        self, variables: dict[str, str], names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Programming Guide, CUDA Environment Variables."""
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with installed("two"):
            assert [name.rpartition("Tesla ")[2].rpartition("GeForce ")[2] for name, _ in self.seen()["gpus"]] == names
            import pynvml

            pynvml.nvmlInit()
            assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)) == "twin of Tesla T4"

    def test_only_what_is_installed_can_be_imported_and_told(self) -> None:
        with installed("t4", installed={**RTX, **COMMON}):
            import tensorrt_rtx

            assert str(SITE) in tensorrt_rtx.__file__ and metadata.version("tensorrt-rtx-cu13") == "1.7.1.116"
            for name in ("tensorrt-cu13", "tensorrt"):
                with pytest.raises(metadata.PackageNotFoundError):
                    metadata.version(name)
            with pytest.raises(ModuleNotFoundError):
                import tensorrt  # noqa: F401
        with installed("t4", installed={}):
            for module in ("tensorrt_rtx", "cuda.bindings", "pynvml"):
                with pytest.raises(ModuleNotFoundError):
                    __import__(module)
            assert "tensorrt_rtx" not in metadata.packages_distributions()  # the real wheel is hidden

    def test_every_python_of_the_environment_is_on_the_machine(self) -> None:
        code = 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))'
        for python in (sys.executable, "python3"):
            told = subprocess.run([python, "-c", code], env=environment("a100"), capture_output=True, text=True)
            assert told.stdout == "0\n", told.stderr
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        told = subprocess.run(command, env=environment("a100"), capture_output=True, text=True)
        assert told.stdout == "twin of NVIDIA A100-SXM4-40GB, 580.95.05\n"

    def test_pytorch_sees_no_gpu(self) -> None:
        """It is not doubled; were it told of GPUs, it would fail to use them."""
        torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'saji[train]'")
        with installed("rtx4090"):
            assert not torch.cuda.is_available() and torch.cuda.device_count() == 0

    def test_a_process_without_the_variable_is_as_always(self) -> None:
        code = "import sys, ctypes; print('saji_twin' in sys.modules, ctypes.CDLL.__module__, len(sys.meta_path))"
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        plain = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
        beside = subprocess.run(
            [sys.executable, "-c", code], env={**variables, "PYTHONPATH": str(SITE)}, capture_output=True, text=True
        )
        assert plain.stdout == beside.stdout and beside.stdout.startswith("False ctypes")

    def test_what_the_twin_leaves_behind(self) -> None:
        before = (dict(os.environ), list(sys.path), list(sys.meta_path), ctypes.CDLL, set(sys.modules))
        with installed("h100"):
            from cuda.bindings import runtime  # noqa: F401
        after = (dict(os.environ), list(sys.path), list(sys.meta_path), ctypes.CDLL, set(sys.modules))
        assert before[:4] == after[:4] and not {name for name in after[4] - before[4] if "twin" in name}

    def test_nothing_of_the_product_knows_the_twin(self) -> None:
        for package in ("runtime", "export", "training", "demo", "lab"):
            for file in (ROOT / package).rglob("*.py"):
                assert not re.search("saji_twin|SAJI_TWIN|tests.twin", file.read_text(encoding="utf-8")), file

    def test_no_figure_of_it_is_a_row(self) -> None:
        for file in (ROOT / "results").glob("*.jsonl"):
            assert "twin of" not in file.read_text(encoding="utf-8"), file


def test_names_and_numbers_are_those_of_the_real_binding(cuda: Cuda) -> None:
    doubled = {name: value for name, value in vars(cuda.runtime).items() if name.startswith(("cuda", "getLocal"))}
    code = "from cuda.bindings import runtime as r; import json; print(json.dumps({n: [m.name for m in v] and {m.name: int(m) for m in v} if hasattr(v, '__members__') else v if isinstance(v, int) else 0 for n, v in vars(r).items() if n[0] != '_'}))"  # noqa: E501
    variables = {k: v for k, v in os.environ.items() if k not in ("SAJI_TWIN", "PYTHONPATH")}
    told = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    if told.returncode:
        pytest.skip("cuda-bindings is not installed: pip install cuda-bindings")
    real = json.loads(told.stdout)
    for name, value in doubled.items():
        assert name in real, name
        if hasattr(value, "__members__"):
            assert {m.name: int(m) for m in value}.items() <= real[name].items(), name
        elif isinstance(value, int):
            assert value == real[name], name


class TestMemory:
    def test_pinned_memory_is_read_when_the_copy_runs(self, cuda: Cuda) -> None:
        """API synchronization behavior, Asynchronous; and the reference of execute_async_v3 on released inputs."""
        stream, device, host = cuda.StreamCreateWithFlags(NONBLOCKING), cuda.Malloc(4), pinned(cuda, 4)
        host[:] = 1
        cuda.copy(device, host.ctypes.data, 4, UP, stream)
        host[:] = 2  # too early
        back = pinned(cuda, 4)
        back[:] = 0
        cuda.copy(back.ctypes.data, device, 4, DOWN, stream)
        assert back.tolist() == [0] * 4
        cuda.StreamSynchronize(stream)
        assert back.tolist() == [2] * 4

    def test_pageable_memory_is_staged_and_waited_for(self, cuda: Cuda) -> None:
        """The same: "from device memory to pageable host memory, the function will return only once …"."""
        stream, device, host, back = cuda.StreamCreate(), cuda.Malloc(4), np.full(4, 1, np.uint8), np.zeros(4, np.uint8)
        cuda.copy(device, host.ctypes.data, 4, UP, stream)
        host[:] = 2
        cuda.copy(back.ctypes.data, device, 4, DOWN, stream)
        assert back.tolist() == [1] * 4

    def test_a_device_holds_what_it_holds(self) -> None:
        with installed("small") as twin:
            from cuda.bindings import runtime

            cuda = Cuda(twin, runtime)
            free, total = cuda.MemGetInfo()
            assert free == total == 16 * 2**20
            held = cuda.Malloc(12 * 2**20)
            assert cuda.Malloc(5 * 2**20) == "MemoryAllocation"
            cuda.Free(held)
            assert cuda.MemGetInfo()[0] == total and isinstance(cuda.Malloc(5 * 2**20), int)

    def test_allocations_are_refused_when_planted(self) -> None:
        with installed("t4", faults={"allocations": 1}) as twin:
            from cuda.bindings import runtime

            cuda = Cuda(twin, runtime)
            assert [type(cuda.Malloc(8)), cuda.Malloc(8)] == [int, "MemoryAllocation"]

    def test_what_is_undefined_raises(self, cuda: Cuda) -> None:
        stream, device, host = cuda.StreamCreate(), cuda.Malloc(16), pinned(cuda, 16)
        address, pageable = host.ctypes.data, np.zeros(16, np.uint8).ctypes.data
        with undefined(cuda.twin, "run over the end"):
            cuda.copy(device + 8, address, 16, UP, stream)
        with undefined(cuda.twin, "asked for cudaMemcpyDeviceToHost, the addresses are cudaMemcpyHostToDevice"):
            cuda.copy(device, address, 16, DOWN, stream)
        with undefined(cuda.twin, "is no address"):
            cuda.copy(0, address, 16, UP, stream)
        with undefined(cuda.twin, "that is pinned memory"):
            cuda.Free(address)
        with undefined(cuda.twin, "no allocation of cudaHostAlloc"):
            cuda.FreeHost(pageable)
        cuda.copy(device, address, 16, UP, stream)
        with undefined(cuda.twin, "queued work still uses the memory"):
            cuda.FreeHost(address)
        cuda.Free(device)
        with undefined(cuda.twin, "freed before"):
            cuda.Free(device)
        with undefined(cuda.twin, "that was freed"):
            cuda.copy(device, address, 16, UP, stream)
        cuda.StreamDestroy(stream)
        with undefined(cuda.twin, "was destroyed"):
            cuda.StreamSynchronize(stream)
        with undefined(cuda.twin, "is no stream"):
            cuda.StreamSynchronize(cuda.EventCreate())

    def test_what_code_under_test_swallows_is_raised_at_the_end(self) -> None:
        with pytest.raises(AssertionError, match="is no allocation"), installed("t4"):
            from cuda.bindings import runtime

            with contextlib.suppress(Exception):
                runtime.cudaFree(12345)


class TestStreams:
    def test_events_tell_time_once_they_have_happened(self, cuda: Cuda) -> None:
        """Reference of cudaEventElapsedTime: which errors events give that were not recorded or did not happen."""
        stream, began, ended = cuda.StreamCreate(), cuda.EventCreate(), cuda.EventCreate()
        assert cuda.EventElapsedTime(began, ended) == "InvalidResourceHandle"
        cuda.EventRecord(began, stream)
        cuda.EventRecord(ended, stream)
        assert cuda.EventElapsedTime(began, ended) == "NotReady"
        cuda.EventSynchronize(ended)
        assert cuda.EventElapsedTime(began, ended) >= 0

    def test_the_legacy_stream_waits_for_blocking_streams_alone(self, cuda: Cuda) -> None:
        """Stream synchronization behavior, Legacy default stream."""
        for flags, seen in ((0, 1), (NONBLOCKING, 0xA5)):
            stream, device, host, back = (
                *(cuda.StreamCreateWithFlags(flags), cuda.Malloc(1)),
                *(pinned(cuda, 1), pinned(cuda, 1)),
            )
            host[:] = 1
            cuda.copy(device, host.ctypes.data, 1, UP, stream)
            cuda.Memcpy(back.ctypes.data, device, 1, DOWN)
            assert back[0] == seen
            cuda.StreamSynchronize(stream)

    def test_the_current_device_is_a_threads_own(self) -> None:
        """Programming Guide, Device Selection."""
        with installed("two") as twin:
            from cuda.bindings import runtime

            cuda, other = Cuda(twin, runtime), []
            assert cuda.SetDevice(2) == "InvalidDevice"
            cuda.SetDevice(1)
            thread = threading.Thread(target=lambda: other.append(cuda.GetDevice()))
            thread.start()
            thread.join()
            assert (cuda.GetDevice(), other) == (1, [0])
            stream = cuda.StreamCreate()
            cuda.SetDevice(0)
            with undefined(twin, "the stream is of device 1"):
                cuda.MemsetAsync(cuda.Malloc(1), 0, 1, stream)


GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2


class TestCapture:
    """Programming Guide, Creating a Graph Using Stream Capture, and Prohibited and Unhandled Operations."""

    def begun(self, cuda: Cuda, flags: int = NONBLOCKING, mode: int = THREAD_LOCAL) -> Any:
        stream = cuda.StreamCreateWithFlags(flags)
        assert cuda.StreamBeginCapture(stream, mode) == ()
        return stream

    def test_a_graph_holds_what_was_queued_and_runs_when_launched(self, cuda: Cuda) -> None:
        device, back, stream = cuda.Malloc(1), pinned(cuda, 1), self.begun(cuda)
        cuda.MemsetAsync(device, 7, 1, stream)
        cuda.copy(back.ctypes.data, device, 1, DOWN, stream)
        graph = cuda.StreamEndCapture(stream)
        assert cuda.GraphGetNodes(graph, 0)[1] == 2
        executable = cuda.GraphInstantiate(graph, 0)
        cuda.GraphDestroy(graph)
        assert back[0] == 0xA5  # nothing has run
        cuda.GraphLaunch(executable, stream)
        cuda.StreamSynchronize(stream)
        assert back[0] == 7
        cuda.GraphExecDestroy(executable)
        with undefined(cuda.twin, "the executable was destroyed"):
            cuda.GraphLaunch(executable, stream)

    @pytest.mark.parametrize("call", ["StreamSynchronize", "StreamQuery"])
    def test_waiting_for_a_capturing_stream_breaks_the_capture(self, cuda: Cuda, call: str) -> None:
        stream = self.begun(cuda)
        assert getattr(cuda, call)(stream) == "StreamCaptureUnsupported"
        assert cuda.MemsetAsync(self.memory(cuda), 0, 1, stream) == "StreamCaptureInvalidated"
        assert cuda.StreamEndCapture(stream) == "StreamCaptureInvalidated"
        assert cuda.StreamEndCapture(stream) == "IllegalState"

    def memory(self, cuda: Cuda) -> int:
        """Device memory that another thread allocates: a thread that captures may not."""
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(cuda.Malloc(1)))
        thread.start()
        thread.join()
        return found[0]

    def test_the_whole_device_must_not_be_waited_for(self, cuda: Cuda) -> None:
        stream = self.begun(cuda)
        assert cuda.DeviceSynchronize() == "StreamCaptureUnsupported"
        assert cuda.StreamEndCapture(stream) == "StreamCaptureInvalidated"

    @pytest.mark.parametrize(("flags", "legacy", "end"), [(0, "StreamCaptureImplicit", "StreamCaptureInvalidated"),
                                                          (NONBLOCKING, (), None)])  # fmt: skip
    def test_legacy_stream_of_another_thread(self, cuda: Cuda, flags: int, legacy: Any, end: str | None) -> None:
        """cudaStreamNonBlocking alone helps: "any attempted use of the legacy stream is invalid" for blocking ones."""
        device = cuda.Malloc(1)
        stream, told = self.begun(cuda, flags), []
        thread = threading.Thread(target=lambda: told.append(cuda.MemsetAsync(device, 0, 1, 0)))
        thread.start()
        thread.join()
        assert told == [legacy]
        ended = cuda.StreamEndCapture(stream)
        assert ended == end if end else cuda.GraphGetNodes(ended, 0)[1] == 0

    @pytest.mark.parametrize(("mode", "own", "other"), [(GLOBAL, False, False), (THREAD_LOCAL, False, True),
                                                        (RELAXED, True, True)])  # fmt: skip
    def test_who_may_allocate_during_a_capture(self, cuda: Cuda, mode: int, own: bool, other: bool) -> None:
        """Reference of cudaThreadExchangeStreamCaptureMode."""
        stream, told = self.begun(cuda, mode=mode), []
        thread = threading.Thread(target=lambda: told.append(cuda.Malloc(1)))
        thread.start()
        thread.join()
        assert (told[0] != "StreamCaptureUnsupported") == other
        assert (cuda.Malloc(1) != "StreamCaptureUnsupported") == own
        assert (cuda.StreamEndCapture(stream) == "StreamCaptureInvalidated") == (not (own and other))

    def test_copies_of_pageable_memory_cannot_be_captured(self, cuda: Cuda) -> None:
        device, host = cuda.Malloc(4), np.zeros(4, np.uint8)
        stream = self.begun(cuda)
        assert cuda.copy(device, host.ctypes.data, 4, UP, stream) == "StreamCaptureUnsupported"
        assert cuda.StreamEndCapture(stream) == "StreamCaptureInvalidated"

    def test_other_rules(self, cuda: Cuda) -> None:
        assert cuda.StreamBeginCapture(0, THREAD_LOCAL) == "StreamCaptureUnsupported"
        stream, event, told = self.begun(cuda), cuda.EventCreate(), []
        assert cuda.StreamBeginCapture(stream, THREAD_LOCAL) == "IllegalState"
        assert cuda.StreamIsCapturing(stream) == 1
        cuda.EventRecord(event, stream)
        assert cuda.EventSynchronize(event) == "CapturedEvent" and cuda.StreamIsCapturing(stream) == 2
        thread = threading.Thread(target=lambda: told.append(cuda.StreamEndCapture(stream)))
        thread.start()
        thread.join()
        assert told == ["StreamCaptureWrongThread"]
        cuda.StreamEndCapture(stream)

    def test_planted_faults(self) -> None:
        for faults, flags, begins, ends in (
            ({"capture": "refused"}, 0, "StreamCaptureUnsupported", "IllegalState"),
            ({"legacy": True}, 0, (), "StreamCaptureInvalidated"),
            ({"legacy": True}, NONBLOCKING, (), None),
        ):
            with installed("t4", faults=faults) as twin:
                from cuda.bindings import runtime

                cuda = Cuda(twin, runtime)
                stream = cuda.StreamCreateWithFlags(flags)
                assert cuda.StreamBeginCapture(stream, THREAD_LOCAL) == begins
                ended = cuda.StreamEndCapture(stream)
                assert ended == ends if ends else not isinstance(ended, str)


def test_an_unknown_fault_is_no_fault() -> None:
    with pytest.raises(ValueError, match="the twin knows no fault 'rain'"), installed("t4", faults={"rain": True}):
        pass
    assert "SAJI_TWIN" not in os.environ and "saji_twin" not in sys.modules
