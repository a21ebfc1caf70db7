"""A model repository for Triton Inference Server: what passed its gate here, each file under its own backend.

TensorRT-RTX plans stay out: Triton opens plans of enterprise TensorRT only.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from runtime.backends import BACKENDS
from runtime.candidate import Candidate
from runtime.errors import BadModel, SajiError
from runtime.files import replacing_folder, write_text
from runtime.receipt import Receipt
from runtime.spec import ModelSpec

_SERVED = {name: row.triton for name, row in BACKENDS.items() if row.triton}
_CONFIG, _SPEC = "config.pbtxt", re.compile(r'key: "spec" value { string_value: (".*") } }')
_LARGEST_BATCH = 32  # of files that take any batch; engines have their profile's
_WITHOUT_TF32 = '{ name: "cuda" parameters { key: "use_tf32" value: "0" } }'
_QUEUE_MICROSECONDS = 1000  # how long a photo may wait for others to share its batch


def write_models(folder: Path, receipt: Receipt, repository: Path, say: Callable[[str], None]) -> list[str]:
    """Write one Triton model for each candidate of a model folder that passed and that Triton can run.

    Returns their names, such as "resnet34-ort-cpu-int8". What an earlier export of the model wrote is replaced whole,
    removed where it passes no more, and told where it cannot be checked here; all else in the repository stays. Raises
    SajiError, and writes nothing, where another model has one of these names.
    """
    offered = {}
    for candidate in receipt.candidates:
        triton = _SERVED.get(candidate.backend)
        if triton and triton.backend == "onnxruntime" and candidate.variant:
            continue  # its backend of that name knows no CUDA graphs: the folder would be the plain one by another name
        if triton and candidate.servable:
            parts = (candidate.architecture, candidate.backend, candidate.precision, *candidate.variant.lower().split())
            offered["-".join(parts)] = candidate
    passed = {name: candidate for name, candidate in offered.items() if candidate.verdict == "pass"}
    for name, candidate in passed.items():
        receipt.verify(folder, candidate.file)
        path = repository / name
        if (path / _CONFIG).exists() and _whose(path) != _identity(receipt.spec):
            raise SajiError(f"{path} is not of {receipt.spec.name}; move it away, or name another folder for --triton")
    for name, candidate in passed.items():
        _write_model(folder / candidate.file, repository / name, candidate, receipt)
    say(f"Triton models in {repository}: {', '.join(passed) or 'none, no candidate that Triton runs has passed here'}")
    if any(candidate.facts.version_compatible for candidate in passed.values()):
        say("Triton opens version-compatible plans with: --backend-config=tensorrt,version-compatible=true")
    ours = (path for path in sorted(repository.glob("*")) if _whose(path) == _identity(receipt.spec))
    for path in (path for path in ours if path.name not in passed):
        if path.name in offered and offered[path.name].verdict == "unchecked":
            say(f"{path} is of an earlier export and stays, for it cannot be checked here; delete it where it is old")
        else:
            shutil.rmtree(path)
            say(f"{path} is removed: it is of an earlier export, and nothing like it has passed here")
    return [*passed]


def _identity(spec: ModelSpec) -> tuple[object, ...]:
    """What is the same of a model that is trained or exported again."""
    return spec.name, spec.architecture, spec.classes


def _whose(path: Path) -> tuple[object, ...]:
    """The identity of the model that we wrote this folder of; empty where we did not."""
    file = path / _CONFIG
    found = _SPEC.search(file.read_text("utf-8", "replace")) if file.is_file() else None
    try:
        return _identity(ModelSpec.from_json(json.loads(found[1]), str(file))) if found else ()
    except (ValueError, BadModel):
        return ()


def _write_model(file: Path, path: Path, candidate: Candidate, receipt: Receipt) -> None:
    profile = receipt.engines.get(candidate.file, {}).get("profile")
    with replacing_folder(path, _CONFIG, "labels.txt") as new:
        (new / "1").mkdir()
        shutil.copyfile(file, new / "1" / _SERVED[candidate.backend].file)
        write_text(new / "labels.txt", "\n".join(receipt.spec.classes) + "\n")
        text = config(path.name, receipt.spec, candidate, profile[2] if profile else _LARGEST_BATCH)
        write_text(new / _CONFIG, text)


def config(name: str, spec: ModelSpec, candidate: Candidate, largest_batch: int) -> str:
    """Triton's `config.pbtxt`: the contract's input and output, dynamic batching, and the spec as a parameter.

    Triton's TensorRT backend captures a CUDA graph of each batch size where `optimization.cuda.graphs` says so. That
    for ONNX hands options on to ONNX Runtime, whose FP32 on a GPU is TF32 otherwise, which is not what passed.
    """
    triton, size = _SERVED[candidate.backend], spec.geometry.size
    how = "cuda { graphs: true }" if candidate.variant == "CUDA graph" else ""
    if candidate.backend == "ort-cuda":
        how = f"execution_accelerators {{ gpu_execution_accelerator: [ {_WITHOUT_TF32} ] }}"
    optimization = f"optimization {{ {how} }}\n" if how else ""
    familiarity = 'output { name: "familiarity" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } }\n'
    return f"""\
name: {_quoted(name)}
backend: {_quoted(triton.backend)}
default_model_filename: {_quoted(triton.file)}
max_batch_size: {largest_batch}
input {{ name: "images" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }}
output {{ name: "logits" data_type: TYPE_FP32 dims: [ {len(spec.classes)} ] label_filename: "labels.txt" }}
{familiarity if spec.familiarity else ""}dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_MICROSECONDS} }}
instance_group {{ kind: {triton.kind} count: 1 }}
{optimization}parameters {{ key: "spec" value {{ string_value: {_quoted(spec.to_json())} }} }}
"""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # the text format's escapes of quotes and backslashes are JSON's
