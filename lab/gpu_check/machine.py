"""What this machine is, and what its GPU's arithmetic does to a network."""

import dataclasses
from collections.abc import Iterator

from lab.gpu_check.step import Place
from runtime.benchmark.rows import Row
from runtime.errors import Unavailable


def no_gpu() -> str:
    """Why no GPU can be used here and what to type, in a sentence; empty where one can."""
    from runtime.nvidia import driver, here, refusal

    told = driver()
    if told.gpus and not told.error:
        return ""
    says, line = refusal(told, here())
    return f"{says}; type: {line}" if says else f"this machine has no NVIDIA GPU ({told.error or 'no driver'})"


def environment(_: Place) -> Iterator[Row]:
    """Driver, GPUs and versions, and what the doctor makes of them."""
    from runtime.doctor import examine, findings, states
    from runtime.nvidia import driver

    here, facts = driver(), examine()
    gpu = here.gpus[0]
    says = f"{gpu.name} ({gpu.capability}), driver {here.version} serves CUDA {here.cuda}"
    more = [dataclasses.asdict(finding) for finding in findings(facts)]
    says += f"; the doctor finds: {', '.join(finding['about'] for finding in more) or 'nothing'}"
    yield {"driver": dataclasses.asdict(here), "backends": states(facts), "findings": more, "says": says}
    yield _torch()


def _torch() -> Row:
    """What PyTorch says of itself and of the GPU."""
    import torch

    found = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "torch_gpu": torch.cuda.is_available()}
    if not torch.cuda.is_available():
        return {**found, "lacks": f"PyTorch {torch.__version__} sees no GPU"}
    return {**found, "torch_names": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}


def require_torch_gpu() -> None:
    """Raise Unavailable where PyTorch sees no GPU, though the driver does."""
    import torch

    if not torch.cuda.is_available():
        raise Unavailable(f"PyTorch {torch.__version__} sees no GPU")


def fp16_keeps_the_gate(place: Place) -> Iterator[Row]:
    """Does FP16 in PyTorch on this GPU keep the bounds, which were never measured on one?"""
    import torch

    from export.precision import half_precision
    from lab.gpu_check.models import ARCHITECTURES, drawn, network
    from runtime.gate import GATES, apply_gate
    from training.network.classifier import reference_logits

    require_torch_gpu()
    images, labels = drawn(place.size)
    for architecture in ARCHITECTURES:
        model = network(architecture)
        half = half_precision(model).cuda().eval()
        with torch.inference_mode():
            logits = half(torch.from_numpy(images).cuda()).cpu().numpy()
        result = apply_gate(reference_logits(model, images), logits, labels, GATES["fp16-gpu"])
        shift = result.figures.shift if result.figures else float("nan")
        found = {"architecture": architecture, "verdict_of_gate": result.verdict, "shift": shift}
        found["says"] = f"{architecture} shifts by {shift:.2g}"
        yield found | ({"wrong": f"{architecture}: {'; '.join(result.reasons)}"} if result.verdict != "pass" else {})
