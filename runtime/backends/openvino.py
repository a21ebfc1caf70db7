"""OpenVINO on the CPU. Its default on processors with bf16 is bf16, so the precision is always set and checked."""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from runtime.backends.base import UNTOLD, Backend, Layer, outputs_of
from runtime.errors import BadModel, Unavailable, missing_extra
from runtime.machine import machine
from runtime.spec import side_by_side

_HINTS = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}  # int8 comes from the file; the rest of it stays FP32
_FORMATS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}


class OpenVino(Backend):
    """The model compiled for one photo, which is what a service is asked for, and for any number of them.

    Where the number is free, every operator works out its shape anew in each call; `python -m lab speed --only alone`
    measures that.
    """

    title = "OpenVINO"
    answers_in_forks = True

    @classmethod
    def check_available(cls, backend: str) -> None:
        """Raise Unavailable when OpenVINO is not installed."""
        try:
            import openvino  # noqa: F401
        except ImportError:
            raise missing_extra("openvino", "openvino") from None

    def open(self) -> None:
        """Compile the model for the CPU in the precision asked for."""
        import openvino

        path, precision = self.request.path, self.request.precision
        threads, streams = self.request.threads, self.request.streams
        if precision == "bf16" and not {"avx512_bf16", "amx_bf16", "bf16"} & set(machine().cpu_features):
            raise Unavailable(f"this processor ({machine().cpu}) has no bf16 arithmetic; use fp32 or int8")
        # Pinned, the threads of two processes are bound to the same first cores, and both go at half their rate
        settings: dict[str, Any] = {"ENABLE_CPU_PINNING": False, "PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_PRECISION_HINT"] = _HINTS[precision]
        if streams > 1:  # each has its share of the threads; one call alone is slower for it
            settings |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads * streams
        self.settings = settings
        try:
            # A file of a receipt has no weights beside it, which are found by its path
            self.model = openvino.Core().read_model(self.request.content() if self.request.sha256 else path)
            alone = self.model.clone()
            alone.reshape([1, *alone.input().get_partial_shape()[1:]])
            self.models = (alone, self.model)
            self.compiled = [self._compile(model) for model in self.models]
        except RuntimeError as error:
            why = next((line for line in reversed(str(error).splitlines()) if line.strip()), "without a word")
            raise BadModel(f"{path} cannot be opened by OpenVINO ({why.strip()[:160]})") from None
        self.outputs = outputs_of([output.get_any_name() for output in self.model.outputs])
        # That nobody uses, of each; ends of a deque may be used by several threads
        self.requests: tuple[deque[Any], ...] = (deque(), deque())

    def _compile(self, model: Any) -> Any:
        import openvino

        return openvino.Core().compile_model(model, "CPU", self.settings)

    def compute(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, 3]` RGB → float32 outputs side by side."""
        which = 0 if len(images) == 1 else 1
        try:
            # The one that was used last: what it works on is still in the processor's caches
            request = self.requests[which].pop()
        except IndexError:
            request = self.compiled[which].create_infer_request()
        try:
            outputs = request.infer([images])
        except RuntimeError:
            # What is compiled has half taken on the shape that it failed at, and may fail at every one from now on
            self.compiled[which] = self._compile(self.models[which])
            self.requests[which].clear()
            raise
        self.requests[which].append(request)
        return side_by_side(*(outputs[place] for place in self.outputs))

    def layers(self) -> Iterable[Layer]:
        """The convolutions and matrix products of the model, each with the executed node's real precision.

        Of a layer that the two compiled models compute differently, the precision that was not asked for.
        """
        both = [_precisions(compiled) for compiled in self.compiled]
        for op in self.models[0].get_ops():  # of one photo, so that all shapes are known
            if op.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
                kinds = [known.get(_executed_as(op, known), UNTOLD) for known in both]
                kind = next((kind for kind in kinds if kind != self.request.precision), kinds[0])
                yield op.get_friendly_name(), kind, _multiply_adds(op)

    def close(self) -> None:
        """Free the compiled model."""
        del self.requests, self.compiled, self.models, self.model


def _precisions(compiled: Any) -> dict[str, str]:
    """The precision that each operator of the model is computed in, whatever node it became part of."""
    found = {}
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if "runtimePrecision" in facts and "originalLayersNames" in facts:
            name = _FORMATS.get(str(facts["runtimePrecision"].value), str(facts["runtimePrecision"].value))
            for original in str(facts["originalLayersNames"].value).split(","):
                if str(facts["layerType"].value) not in ("Const", "Reorder", "Reshape"):
                    found[original] = name
    return found


def _executed_as(op: Any, known: dict[str, str]) -> str:
    """The executed node that an operator is part of: fused with what follows (scale, bias), it takes its name.

    Of several that follow it is the nearest that is known, whatever their order, which OpenVINO changes each time; what
    asks for a shape alone is none. Empty where none is known.
    """
    reached = [op]
    for _ in range(4):
        if found := sorted(known.keys() & {each.get_friendly_name() for each in reached}):
            return found[0]
        inputs = [taken for each in reached if each.outputs() for taken in each.output(0).get_target_inputs()]
        reached = [taken.get_node() for taken in inputs if taken.get_node().get_type_name() != "ShapeOf"]
    return ""


def _multiply_adds(op: Any) -> float:
    out, weight = (
        [size.get_length() if size.is_static else 1 for size in of.get_partial_shape()]
        for of in (op.output(0), op.input(1))
    )
    if op.get_type_name() == "MatMul":  # [in, out], [out, in] or [in]
        summed = weight[-2:][-1 if op.get_attributes()["transpose_b"] else 0]
    else:  # filters are [out, in, kh, kw], of a group convolution [groups, out, in, kh, kw]: what counts follows `out`
        summed = math.prod(weight[2 if op.get_type_name() == "GroupConvolution" else 1 :])
    return float(math.prod(out) * summed)
