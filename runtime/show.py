"""`python -m runtime show`: what a model is, what its graph does, its verdicts, whether its files are unchanged."""

import argparse
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime import signature
from runtime.candidate import Candidate
from runtime.classifier import spec_of
from runtime.command_line import add_require_signature
from runtime.deployment import Deployment
from runtime.errors import BadModel, GateFailed, SajiError, install_line
from runtime.files import exists
from runtime.receipt import Receipt
from runtime.spec import ModelSpec
from runtime.terminal import tell


def add_to(verbs: Any) -> None:
    """Add the verb to the subparsers of `python -m runtime`."""
    verb = verbs.add_parser("show", aliases=["inspect"], help="say what a model is, and check it by its receipt")
    verb.add_argument("model", type=Path, help="a model folder, a deployment.json or an .onnx file")
    verb.add_argument("--json", action="store_true", help="everything known, as one JSON object")
    add_require_signature(verb)
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the description of a model. Raises GateFailed when a file is not what its receipt says."""
    description = describe(arguments.model)
    if arguments.json:
        print(json.dumps(description, ensure_ascii=False, indent=2))
    else:
        tell("\n".join(lines(description)))
    changed = [file["name"] for file in description["files"] if file["receipt"] not in ("same", "none")]
    if changed:
        raise GateFailed(f"{', '.join(changed)}: not as in the receipt, so not served; export the model again")


def describe(path: Path) -> dict[str, Any]:
    """What there is to know of a model folder, a deployment.json, or a bare .onnx or .pt2 file.

    `spec` (None for an ONNX file of another project), `files` with the outcome of the receipt's check, `graph` (its
    inputs, outputs, operators; or why it was not read), `candidates` with their verdicts, and of a deployment its
    `choice`, `reason` and `rejected`. Raises SajiError when `path` is none of these.
    """
    path = path.parent if path.name == "model.json" else path
    if not exists(path):
        raise SajiError(f"{path} does not exist; make one with: make train export bench")
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".json":
        deployment = Deployment.read(path)
        choice = deployment.choice
        return {
            "choice": choice.candidate.name,
            "milliseconds": choice.milliseconds,
            "reason": deployment.reason,
            "rejected": [dataclasses.asdict(entry) for entry in deployment.rejected],
            **_of_folder(path.parent / choice.folder, choice.candidate.file),
        }
    if path.suffix in (".onnx", ".pt2"):
        return _of_file(path)
    raise SajiError(f"{path} is no model; give a deployment.json, a model folder or an .onnx file")


def _of_folder(folder: Path, file: str = "model.onnx") -> dict[str, Any]:
    receipt, signer = Receipt.read_signed(folder)
    if signature.required():
        receipt.verify_whole(folder)
    file = file if file.endswith(".onnx") else "model.onnx"  # from which an engine or a PyTorch program was made
    operators = receipt.graph if file == "model.onnx" else {}  # known also where onnx is not installed
    graph = _graph(folder / file)
    graph.pop("spec", None)  # the receipt's is the same
    return {
        "model": str(folder),
        "signed_by": signer,
        "spec": receipt.spec.record(),
        "files": [
            {"name": name, **dataclasses.asdict(facts), "receipt": _checked(receipt, folder, name)}
            for name, facts in receipt.files.items()
        ],
        "graph": {"file": file, **operators, **graph},
        "candidates": [_candidate(candidate) for candidate in receipt.candidates],
        "skipped": list(receipt.skipped),
    }


def _of_file(path: Path) -> dict[str, Any]:
    spec: ModelSpec | None
    graph = _graph(path)
    text = graph.pop("spec", None)
    if not text and "operators" not in graph:  # onnx did not read it, but the library that runs it can
        spec = spec_of(path)
    else:
        spec = ModelSpec.from_json(text, str(path)) if text else None
    return {
        "model": str(path),
        "spec": spec.record() if spec else None,
        "files": [{"name": path.name, "bytes": path.stat().st_size, "receipt": "none"}],
        "graph": {"file": path.name, **graph},
        "candidates": [],
    }


def _checked(receipt: Receipt, folder: Path, name: str) -> str:
    try:
        receipt.verify(folder, name)
    except BadModel:
        return "differs" if exists(folder / name) else "missing"
    return "same"


def _candidate(candidate: Candidate) -> dict[str, Any]:
    values, names = dataclasses.asdict(candidate), ("verdict", "reasons", "servable", "precision_share", "figures")
    return {"name": candidate.name, **{name: values[name] for name in names}}


def _graph(path: Path) -> dict[str, Any]:
    """An ONNX file's inputs, outputs, operators by count and parameters by number format; or `unread`, why not."""
    if path.suffix != ".onnx" or not path.is_file():
        return {"unread": "there is no ONNX file to read" if path.suffix == ".onnx" else "only ONNX files are read"}
    try:
        import onnx
    except ImportError:
        return {"unread": f"inputs, outputs and operators are read by onnx; install it with: {install_line('export')}"}
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors are of no common family
        raise BadModel(f"{path} is no ONNX model that can be read ({' '.join(str(error).split())[:120]})") from None
    if not model.graph.node:
        raise BadModel(f"{path} is no ONNX model (it has no operators)")
    weights: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        weights[onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name] += math.prod(tensor.dims)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return {
        "opset": next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
        "inputs": [_signature(value, onnx) for value in model.graph.input],
        "outputs": [_signature(value, onnx) for value in model.graph.output],
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "parameters": dict(weights.most_common()),
        **({"spec": metadata["spec"]} if "spec" in metadata else {}),
    }


def _signature(value: Any, onnx: Any) -> dict[str, Any]:
    kind = value.type.tensor_type
    shape = [size.dim_param or (size.dim_value if size.HasField("dim_value") else "?") for size in kind.shape.dim]
    return {"name": value.name, "type": onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, "shape": shape}


def lines(description: dict[str, Any]) -> Iterator[str]:
    """A description for people."""
    if "choice" in description:
        yield f"choice: {description['choice']}\nreason: {description['reason']}\n"
    yield from _spec_lines(description["model"], description["spec"])
    if "signed_by" in description:
        trusted = ", the key that is required" if signature.required() else ", a key that nobody has required"
        signer = description["signed_by"]
        yield f"signed by {signer}{trusted}" if signer else "not signed: the receipt tells of changes, not of its maker"
    yield "\nfiles"
    outcomes = {"same": ", unchanged", "differs": ", NOT the file of the receipt", "missing": ", MISSING"}
    for file in description["files"]:
        digest = f"  sha256 {file['sha256'][:12]}…{outcomes[file['receipt']]}" if "sha256" in file else ""
        yield f"  {file['name']:32} {file['bytes'] / 1e6:8.1f} MB{digest}"
    yield from _graph_lines(description["graph"])
    if description["candidates"]:
        yield "\ncandidates"
    for candidate in description["candidates"]:
        share = ", ".join(f"{100 * part:.0f} % {kind}" for kind, part in candidate["precision_share"].items())
        facts = [candidate["verdict"], *candidate["reasons"], share]
        yield f"  {candidate['name']}: {'; '.join(filter(None, facts))}"
    yield from (f"  left out: {reason}" for reason in description.get("skipped", []))
    yield from (f"  not chosen: {entry['candidate']}: {entry['reason']}" for entry in description.get("rejected", []))


def _spec_lines(model: str, spec: dict[str, Any] | None) -> Iterator[str]:
    if not spec:
        yield f"{model}: no saji spec, so classes and geometry are unknown; bring it in with: python -m export --onnx …"
        return
    classes, rejection = spec["classes"], spec["rejection"]
    size, version = spec["geometry"]["size"], spec["geometry"]["version"]
    yield f"{spec['name']}: {spec['architecture']}, {size} px, preprocessing version {version}"
    yield f"{len(classes)} classes: {', '.join(classes)}"
    if validation := spec["validation"]:  # an imported model without photos to judge it by has none
        if held := validation.get("held_out"):
            interval = "{:.3f} to {:.3f}".format(*held["interval"])
            photos = f"{held['photos']} photos that chose nothing ({held['how']})"
            yield f"checkpoint: accuracy {held['accuracy']:.3f} (95 % interval {interval}) on {photos}"
        yield f"checkpoint: accuracy {validation['accuracy']:.3f} on {validation['photos']} validation photos"
    if published := spec["data"].get("published"):
        figure = f"{published['accuracy']} on {published['of']}, {published['source']}"
        yield f"checkpoint: accuracy not measured here; published: {figure}"
    for what, file in spec["data"].get("started_from", {}).items():
        known = f"it had seen {file['seen']} photos"
        seen = "what it was trained on is not known" if file["seen"] == "unknown" else known
        licence = f", {file['licence']}" if "licence" in file else ""
        yield f"started from {what} {file['name']} (sha256 {file['sha256'][:12]}…{licence}): {seen}"
    rule = f"{rejection['rule']} below {rejection['threshold']:.3g} is not sure" if rejection else "always sure"
    yield f"temperature {spec['temperature']:.3g}, {rule}"
    if guard := spec.get("guard"):
        yield f"{guard['absent']!r} where all else is below {guard['presence']:.3g}; {guard['unnamed']!r} is no name"


def _graph_lines(graph: dict[str, Any]) -> Iterator[str]:
    if "unread" in graph:
        yield f"\n{graph['file']}: {graph['unread']}"
    else:
        yield f"\n{graph['file']}, opset {graph['opset']}"
    for way in ("inputs", "outputs"):
        for value in graph.get(way, []):
            yield f"  {way[:-1]:10} {value['name']}: {value['type']} [{', '.join(map(str, value['shape']))}]"
    if "operators" in graph:
        yield f"  {'operators':10} {', '.join(f'{count} {name}' for name, count in graph['operators'].items())}"
    if "parameters" in graph:
        yield f"  {'parameters':10} {', '.join(f'{count:,} {kind}' for kind, count in graph['parameters'].items())}"
