"""ONNX Runtime on its CPU and CUDA providers. A fallback to another provider is an error, not a slow success."""

import contextlib
import functools
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends import BACKENDS
from runtime.backends.base import UNTOLD, Backend, Layer, outputs_of
from runtime.backends.cuda import first_gpu
from runtime.errors import BadModel, NotAsAsked, Unavailable, advice, install_line, missing_extra
from runtime.spec import side_by_side


def require_contract(session: Any, path: Path) -> None:
    """Raise BadModel unless the file takes uint8 photos in batches of any size, as every file that we export does."""
    inputs = session.get_inputs()
    of_photos = [(value.name, value.type, value.shape[3:]) for value in inputs] == [("images", "tensor(uint8)", [3])]
    if not of_photos or isinstance(inputs[0].shape[0], int):
        signature = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
        raise BadModel(
            f"{path} takes {signature}, a saji model images uint8 [batch, S, S, 3]; export it with: make export"
        )


class OnnxRuntime(Backend):
    """An ONNX Runtime session on exactly the provider asked for.

    Variant "as written" computes each layer in its own type.
    """

    title = "ONNX Runtime"
    answers_in_forks = True
    checks_at_opening = False  # which takes a second session and a run of it
    provider_options: dict[str, str] = {}  # noqa: RUF012  # replaced, never changed

    @classmethod
    def check_available(cls, backend: str) -> None:
        """Raise Unavailable when onnxruntime, or the provider this backend needs, is missing."""
        provider, extra = BACKENDS[backend].provider, BACKENDS[backend].extra
        load_cuda_runtime()
        try:
            import onnxruntime
        except ImportError as error:
            if importlib.util.find_spec("onnxruntime") is None:
                raise missing_extra("onnxruntime", extra) from None
            line = f"{install_line(extra)} --force-reinstall"
            raise Unavailable(f"onnxruntime cannot be imported ({str(error)[:100]}); type: {line}") from None
        if not hasattr(onnxruntime, "InferenceSession"):
            raise Unavailable(
                "the folder of onnxruntime is half empty, as after uninstalling either of onnxruntime and "
                f"onnxruntime-gpu; type: {install_line(extra)} --force-reinstall"
            )
        onnxruntime.disable_telemetry_events()  # before 1.31 it read no variable, see runtime.telemetry
        if provider not in onnxruntime.get_available_providers():
            line = advice("gpu", "replace it with: pip uninstall onnxruntime && ")
            raise Unavailable(f"this onnxruntime has no {provider}; {line}")

    def open(self) -> None:
        """Open the session and check its provider and its inputs."""
        self.provider = BACKENDS[self.request.backend].provider
        self.rewrite = self.request.variant != "as written"
        self.session = self._session()
        require_contract(self.session, self.request.path)
        names = [value.name for value in self.session.get_outputs()]
        self.outputs = [names[place] for place in outputs_of(names)]

    def _session(self, profile: str = "") -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.request.threads
        if self.provider != "CPUExecutionProvider":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # A file of a receipt has no weights beside it, which are found by its path
        model = self.request.content() if self.request.sha256 else str(self.request.path)
        if not self.rewrite:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            model = _with_all_outputs(self.request.path)
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
            if self.rewrite:  # one level less: the last changes layouts, not formats, and renames what it changes
                options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        how = {} if profile else self.provider_options  # a graph that is replayed shows no layers
        try:
            # Its own fallback would compute on the processor where a GPU is full, now or in the middle of a call
            session = onnxruntime.InferenceSession(
                model, options, providers=[self.provider], provider_options=[how], enable_fallback=0
            )
        except Exception as error:  # onnxruntime raises its own classes, which have no public base
            why = str(error).splitlines()[0][:160]
            raise BadModel(f"{self.request.path} cannot be opened by ONNX Runtime ({why})") from None
        session._model_bytes = None  # it would be kept for a fallback that we do not want
        if session.get_providers()[0] != self.provider:
            raise NotAsAsked(f"asked ONNX Runtime for {self.provider}, got {session.get_providers()[0]}")
        return session

    def compute(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 outputs side by side."""
        return side_by_side(*self.session.run(self.outputs, {"images": images}))

    def layers(self) -> Iterable[Layer]:
        """The operators that a profiled session really runs, with the multiply-adds in the file's metadata.

        What was not seen running under its name is UNTOLD.
        """
        table = json.loads(self.session.get_modelmeta().custom_metadata_map.get("multiply_adds", "{}"))
        shape = self.session.get_inputs()[0].shape
        with tempfile.TemporaryDirectory() as folder:
            session = self._session(profile=str(Path(folder) / "profile"))
            session.run(None, {"images": np.zeros((1, *shape[1:]), np.uint8)})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        formats = formats_in(events, table)
        return [(node, formats.get(node, UNTOLD), macs) for node, macs in table.items()]

    def close(self) -> None:
        """Free the session."""
        del self.session


class OnnxRuntimeCuda(OnnxRuntime):
    """An ONNX Runtime session on the first GPU; each call copies from and to pageable memory.

    Variant "CUDA graph" replays a batch size's kernels as one graph, by the rules of ONNX Runtime's documentation
    (onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "Using CUDA Graphs"): all nodes on the GPU;
    one `gpu_graph_id` for each shape, with inputs and outputs at fixed addresses; and one thread that runs the session.
    """

    device = "cuda"
    answers_in_forks = False
    where = staticmethod(first_gpu)

    def open(self) -> None:
        """Open the session, once CUDA's libraries are found."""
        preload_cuda()
        # TF32 is a 10-bit mantissa under the name of FP32: off, so that FP32 means what it says
        self.provider_options = {"use_tf32": "0"}
        self.graphs = self.request.variant == "CUDA graph"
        if self.graphs:
            self.provider_options["enable_cuda_graph"] = "1"
            self.bound: dict[int, tuple[Any, Any, Any, list[Any]]] = {}  # by batch size
            self.caller = ThreadPoolExecutor(1, "CUDA graph")
        super().open()
        self.classes = self.session.get_outputs()[0].shape[-1]
        if self.graphs and not isinstance(self.classes, int):
            raise Unavailable(
                f"{self.request.path} does not tell how many classes it has, which a CUDA graph has to know"
            )

    def compute(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 outputs side by side."""
        return self.caller.submit(self._replay, images).result() if self.graphs else super().compute(images)

    def _replay(self, images: np.ndarray) -> np.ndarray:
        if len(images) not in self.bound:
            self.bound[len(images)] = self._bind(images.shape)
        binding, options, photos, outputs = self.bound[len(images)]
        photos.update_inplace(np.ascontiguousarray(images))
        self.session.run_with_iobinding(binding, options)
        return side_by_side(*(np.array(output.numpy()) for output in outputs))

    def _bind(self, shape: tuple[int, ...]) -> tuple[Any, Any, Any, list[Any]]:
        """Binding and options of the graph of a shape `[N, H, W, 3]`, and its input and outputs on the GPU."""
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        photos = make(shape, np.uint8, self.device, 0)
        binding, options, outputs = self.session.io_binding(), onnxruntime.RunOptions(), []
        binding.bind_ortvalue_input("images", photos)
        for name, sizes in zip(self.outputs, ((self.classes,), ()), strict=False):
            outputs.append(make((shape[0], *sizes), np.float32, self.device, 0))
            binding.bind_ortvalue_output(name, outputs[-1])
        options.add_run_config_entry("gpu_graph_id", str(shape[0]))
        return binding, options, photos, outputs

    def close(self) -> None:
        """Free the session and what is bound to it."""
        if self.graphs:
            self.caller.shutdown()
            self.bound.clear()
        super().close()


@functools.cache
def load_cuda_runtime() -> None:
    """Load libcudart from NVIDIA's package, where onnxruntime-gpu is installed.

    From 1.27 on its module is linked to it, and cannot even be imported without (microsoft/onnxruntime#29500); its own
    `preload_dlls` comes too late for that.
    """
    with contextlib.suppress(Exception):  # of several kinds; the import tells what is missing
        metadata.version("onnxruntime-gpu")
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("cudart")


@functools.cache
def preload_cuda() -> None:
    """Load CUDA and cuDNN from NVIDIA's packages, before the first session that needs them.

    ONNX Runtime finds them by itself only where PyTorch was imported first. It is `onnxruntime.preload_dlls`, which
    came with version 1.21 and does nothing in a build without CUDA.
    """
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it did not find; stdout is for results
            onnxruntime.preload_dlls()


def formats_in(events: Iterable[dict[str, Any]], table: dict[str, float]) -> dict[str, str]:
    """The number format of each node of the multiply-adds `table` that the events of a profile show running.

    Only events with types are of kernels; up to 1.13 there are fences, too, which have the operator's name alone.
    """
    formats: dict[str, str] = {}
    for event in events:
        arguments = event.get("args", {})
        if event.get("cat") == "Node" and "input_type_shape" in arguments:
            formats[_node_of(event["name"], table)] = _format(arguments)
    return formats


def _with_all_outputs(path: Path) -> bytes:
    """The graph with every layer's output among its outputs: what is asked for cannot be fused or cast away."""
    try:
        import onnx
    except ImportError:
        raise missing_extra("onnx", "export") from None
    model = onnx.load(path)
    known = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in known]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return model.SerializeToString()


def _node_of(event: str, table: dict[str, float]) -> str:
    # Fusions append to the node's name ("node_Conv_5_token_3_kernel_time"); the longest known prefix is the node
    return max((name for name in table if event == name or event.startswith(name + "_")), key=len, default="")


def _format(arguments: dict[str, Any]) -> str:
    types = {name for value in arguments.get("input_type_shape", []) for name in value}
    if arguments["op_name"].startswith("QLinear") or arguments["op_name"] in ("ConvInteger", "MatMulInteger", "QGemm"):
        return "int8"
    return "fp16" if "float16" in types else "fp32"
