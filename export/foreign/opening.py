"""A file of another project as a graph that onnx takes: told by what it is where it is none, else mended.

Mended is what leaves no doubt of the network, such as a graph without a name.
"""

import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
from google.protobuf.message import Message
from onnx.serialization import registry

from export.graph import all_graphs, inner_graphs
from runtime.errors import BadModel
from runtime.files import exists, reading
from runtime.markdown import is_printable

# From IR 4 on initialisers need not be inputs; 10 is of ONNX 1.16 and 1.17, which every ONNX Runtime that we allow
# reads. Other versions add types, not meaning
OLDEST_IR, NEWEST_IR = 4, 10
_EXPORT = "export the network to ONNX"
_MADE_FROM = "give the ONNX file that it was made from"
_UNPACK = "unpack it first"
# By what a file begins with: what it is, and what to do about it
OTHERS = {
    rb"\Z": "an empty file; fetch it again",
    rb"\0{512}": "zeros, as a download that broke off leaves them; fetch it again",
    rb"version https://git-lfs": "a pointer of Git LFS; fetch the file itself with: git lfs pull",
    rb"PK\x03\x04": f"a zip archive, as those of PyTorch and Keras are; {_EXPORT}",
    rb"\x80[\2-\5][c}(\x8a\x95]": f"a pickle, as older files of PyTorch and scikit-learn are; {_EXPORT}",
    rb"\x89HDF": f"an HDF5 file, as those of Keras are; {_EXPORT}",
    rb".{8}\{\s*\"": f"weights without a network (safetensors); {_EXPORT}",
    rb".{4}TFL3": f"a model of TensorFlow Lite; {_EXPORT}",
    rb".{4}ORTM": f"a model in ONNX Runtime's own format (ORT); {_MADE_FROM}",
    rb"[fp]trt": f"an engine of TensorRT; {_MADE_FROM}",
    rb"\x1f\x8b": f"packed (gzip); {_UNPACK}",
    rb"BZh\d": f"packed (bzip2); {_UNPACK}",
    rb"\xfd7zXZ\0": f"packed (xz); {_UNPACK}",
    rb"\x28\xb5\x2f\xfd": f"packed (Zstandard); {_UNPACK}",
    rb"7z\xbc\xaf\x27\x1c": f"packed (7z); {_UNPACK}",
    rb"Rar!": f"packed (rar); {_UNPACK}",
    rb".{257}ustar": f"packed (tar); {_UNPACK}",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|title)\b": "a page of the web; download the file itself",
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<net\b": f"a model of OpenVINO (IR); {_MADE_FROM}",
}
_BEGINNING = 512  # bytes


def opened(path: Path) -> onnx.ModelProto:
    """The graph in a file, mended, with what lies beside it. Raises BadModel where there is none."""
    _require_onnx(path)
    try:
        model = onnx.load(path, load_external_data=False)
        _use_text(model)
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # protobuf's, onnx's and the system's errors are of no common family
        raise BadModel(
            f"{path} cannot be read as ONNX ({in_one_line(error)}); give the complete file, with what belongs to it "
            "beside it and no links"
        ) from None
    if not model.graph.node:  # files of others of protobuf may be read as one
        raise BadModel(f"{path} holds no layer of ONNX, as files of TensorFlow and Caffe; {_EXPORT}")
    model.ir_version = min(max(model.ir_version, OLDEST_IR), NEWEST_IR)
    _use_one_opset(model)
    _name_and_sort(model)
    _use_keys_once(model, path)
    return model


def require_file(path: Path, wanted: str) -> None:
    """Raise BadModel where there is none: a pipe or a device would be waited for."""
    if not path.is_file():
        raise BadModel(f"{path} is {'no regular file' if exists(path) else 'not there'}; give {wanted}")


def in_one_line(error: Exception) -> str:
    """What a library says, shortened."""
    return " ".join(str(error).split())[:200]


def _require_onnx(path: Path) -> None:
    """Raise BadModel for what is no file, and for files of other kinds that are taken for one."""
    require_file(path, "the ONNX file")
    with reading(path), open(path, "rb") as file:
        beginning = file.read(_BEGINNING)
    for known, what in OTHERS.items():
        if re.match(known, beginning, re.DOTALL):
            raise BadModel(f"{path} is no ONNX but {what}")
    text = " ".join(beginning.decode("utf-8", "replace").rstrip("\N{REPLACEMENT CHARACTER}").split())  # cut in a letter
    is_text = is_printable(text) and "\N{REPLACEMENT CHARACTER}" not in text
    if is_text and registry.get_format_from_file_extension(path.suffix) in (None, "protobuf"):
        raise BadModel(
            f"{path} is no ONNX but a text ({text[:60]} …); download the file itself, or call it .onnxtxt, .json or "
            ".textproto where it is a network in that form"
        )


def _use_text(model: onnx.ModelProto) -> None:
    """Spell out the bytes of names that are no UTF-8, as exporters write those in GBK: each stays another.

    protobuf gives them as bytes, which onnx and ONNX Runtime take for no names.
    """
    taken = {name for _, _, names in _strings(model) for name in names}
    texts = dict[str | bytes, str]()
    for name in sorted(name for name in taken if isinstance(name, bytes)):
        text = name.decode("utf-8", "backslashreplace")
        while text in taken:
            text += "_"
        texts[name] = text
        taken.add(text)
    for message, field, names in [*_strings(model)] if texts else []:
        spelled = [texts.get(name, name) for name in names]
        if isinstance(getattr(message, field), str | bytes):
            setattr(message, field, spelled[0])
        else:
            getattr(message, field)[:] = spelled


def _strings(message: Message) -> Iterator[tuple[Message, str, list[str | bytes]]]:
    """Every field of text in a message and those inside it, with what is in it."""
    for field, value in message.ListFields():
        values = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == field.TYPE_MESSAGE:
            for inner in values:
                yield from _strings(inner)
        elif field.type == field.TYPE_STRING:
            yield message, field.name, [*values]


def _parts(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """What has nodes in a model: the graph, functions, and the branches and loops inside them."""
    yield from all_graphs(model.graph)
    for function in model.functions:
        yield function
        for node in function.node:
            yield from inner_graphs(node)


def _use_one_opset(model: onnx.ModelProto) -> None:
    """Write the standard's domain as "", which is also called "ai.onnx", and import each domain once.

    Of several versions it is the last, which ONNX Runtime takes.
    """
    for whole in (model, *model.functions):
        versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in whole.opset_import}
        del whole.opset_import[:]
        whole.opset_import.extend(onnx.helper.make_opsetid(*pair) for pair in versions.items())
    for part in _parts(model):
        for node in part.node:
            node.domain = "" if node.domain == "ai.onnx" else node.domain


def _name_and_sort(model: onnx.ModelProto) -> None:
    """Name each graph, no two nodes alike, and put nodes behind those whose outputs they take; circles stay."""
    used = set[str]()
    for part in reversed([*_parts(model)]):  # what is inside a node before the node is copied
        part.name = part.name or "graph"
        for node in part.node:
            node.name = "" if node.name in used else node.name
            used.add(node.name)
        made_by = {name: place for place, node in enumerate(part.node) for name in node.output if name}
        needed = {
            place: {made_by[name] for name in _taken(node) if name in made_by} for place, node in enumerate(part.node)
        }
        if all(max(places, default=-1) < place for place, places in needed.items()):
            continue
        try:
            order = [*TopologicalSorter(needed).static_order()]
        except CycleError:
            continue
        nodes = [part.node[place] for place in order]
        del part.node[:]
        part.node.extend(nodes)


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node takes, its branches and loops among it."""
    yield from node.input
    for inner in inner_graphs(node):
        yield from (name for each in inner.node for name in each.input)
        yield from (value.name for value in inner.output)


def _use_keys_once(model: onnx.ModelProto, path: Path) -> None:
    """Write what stands in the metadata twice once. Raises BadModel where its values differ."""
    values = dict[str, str]()
    for entry in model.metadata_props:
        if values.setdefault(entry.key, entry.value) != entry.value:
            raise BadModel(f"{path} has {entry.key!r} twice in its metadata, with two values; write it with one")
    onnx.helper.set_model_props(model, values)
