"""Pretrained weights in a local file, for a network whose last layer is new: training without a download."""

import argparse
import codecs
import pickle
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import nn

from runtime.errors import SajiError, some_of
from runtime.files import exists

Tensors = Mapping[str, torch.Tensor]

# Keys under which training scripts save weights; the average beside them, where they have one, comes last
_WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "model_state", "weights", "net", "network", "params", "module"),
    *("state_dict_ema", "model_ema", "ema"),
)
_KINDS = ("weight", "bias", "running_mean", "running_var")  # of tensors, by the ends of their names in any library
# What scripts keep beside weights and what runs no code: their arguments, paths, numbers of numpy
_HARMLESS: list[Any] = [argparse.Namespace, np.dtype, codecs.encode]
_HARMLESS += [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
_HARMLESS += [
    (PurePosixPath, f"{module}.{name}")
    for module in ("pathlib", "pathlib._local")  # of Python 3.13
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
]
_HARMLESS += [(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]

_OURS, _STATISTICS = "network.", ("mean", "std")  # of a saji model (`PhotoClassifier`): the network, the normalisation

_FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64


def load_weights(network: nn.Module, head: nn.Module, path: Path) -> dict[str, torch.Tensor] | None:
    """Fill a network with the weights of a `.pt`, `.pth` or `.safetensors` file, all but those of its `head`.

    The file may be a checkpoint of saji, use the network's own names, whatever stands in front of them, or those of
    another library with the same layers in the same order (timm's for a torchvision network, or the other way round).
    Gives the state of the normalisation that the weights were trained with, None where the file does not tell. Raises
    SajiError, and leaves the network as it was, where the layers do not fit or are more than those of the network.
    """
    own = {id(parameter) for parameter in head.parameters()}
    everything = network.state_dict(keep_vars=True)
    body = {name: tensor for name, tensor in everything.items() if id(tensor) not in own and not _beside(name)}
    tensors = _read(path)
    place, chosen = _chosen({name: tensor for name, tensor in tensors.items() if not _beside(name)}, body, path)
    _require_to_fit(chosen, body, path)
    parts = next(name for name, module in network.named_modules() if module is head).split(".")
    _require_no_more(chosen, body, f"{parts[0]}.", head.get_parameter("weight").shape[1:], path)
    with torch.no_grad():
        for name, tensor in body.items():
            tensor.copy_(chosen[name])
    return _statistics(tensors, place)


def _beside(name: str) -> bool:
    """Whether a tensor is a counter, or of a head that only helps training from scratch."""
    parts = name.split(".")
    return parts[-1] == "num_batches_tracked" or not {"aux1", "aux2", "AuxLogits"}.isdisjoint(parts)


def _chosen(tensors: Tensors, body: Tensors, path: Path) -> tuple[str, Tensors]:
    """The file's tensors by the names of the network, and what stands before those in the file.

    What the file has beyond the body of the network is there, too, by other names.
    """
    first = next(iter(body))
    places = {name.removesuffix(first): 0 for name in tensors if name.endswith(first)}
    for place in places:
        places[place] = sum(place + name in tensors for name in body)
    whole = [place for place, found in places.items() if found == len(body)]
    if len(whole) > 1:
        raise SajiError(
            f"{path} has the network {len(whole)} times, as {' and '.join(place + first for place in whole)}; save the "
            "one to start from into a file of its own"
        )
    ways = [(place, _under(tensors, place)) for place in whole or places]
    # In another library's names the order tells; what the file has beyond the body is its own head, which comes last
    saji = [name.removesuffix("normalise.mean") + _OURS for name in tensors if name.endswith("normalise.mean")]
    ours = saji[0] if saji else ""
    listed = list(_under(tensors, ours).items())
    # safetensors sorts by name, which puts a bias before its weight: that is no order of layers
    pairs = ((name, tensor) for name, (theirs, tensor) in zip(body, listed, strict=False) if _same_kind(name, theirs))
    in_order = dict(pairs) | dict(listed[len(body) :])
    return min(ways if whole else [*ways, (ours, in_order)], key=lambda way: len(_odd(way[1], body)))


def _under(tensors: Tensors, place: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(place): tensor for name, tensor in tensors.items() if name.startswith(place)}


def _same_kind(name: str, theirs: str) -> bool:
    ends = [each.rpartition(".")[2] for each in (name, theirs)]
    return ends[0].endswith(ends[1]) or ends[1].endswith(ends[0]) or set(_KINDS).isdisjoint(ends)


def _odd(chosen: Tensors, body: Tensors) -> list[str]:
    return [name for name, wanted in body.items() if name not in chosen or chosen[name].shape != wanted.shape]


def _require_to_fit(chosen: Tensors, body: Tensors, path: Path) -> None:
    """Raise SajiError where a tensor is missing, of another shape, or holds no numbers to go on from."""
    if odd := _odd(chosen, body):
        shape = list(chosen[odd[0]].shape) if odd[0] in chosen else "nothing"
        raise SajiError(
            f"{path} does not fit the network: {len(odd)} of {len(body)} tensors differ, {odd[0]} needs "
            f"{list(body[odd[0]].shape)} and the file has {shape}; name the architecture that the file belongs to"
        )
    for name, wanted in body.items():
        kinds = _FLOATS if wanted.is_floating_point() else (wanted.dtype,)
        tensor = chosen[name]
        if tensor.dtype not in kinds or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise SajiError(
                f"{path} has {name} as {tensor.dtype} and {tensor.layout} on the device {tensor.device}, which are no "
                "weights to go on from; save the state_dict() of the network that was trained, in float32"
            )
        if not tensor.to(wanted.dtype).isfinite().all():
            raise SajiError(
                f"{path} has NaN or infinite numbers in {name}, so the training that wrote it ran away; take a file of "
                "an earlier epoch, or leave --weights out"
            )


def _require_no_more(chosen: Tensors, body: Tensors, top: str, shape: torch.Size, path: Path) -> None:
    """Raise SajiError where the file has more than the body and a head, which is called like the network's, below
    `top`, or has a weight of its `shape` for each class."""
    rest = [name for name in chosen if name not in body and not name.startswith(top)]
    weights = {name: chosen.get(f"{name.rpartition('.')[0]}.weight", chosen[name]) for name in rest}
    more = [name for name, weight in weights.items() if weight.shape[1:] != shape]
    if more:
        raise SajiError(
            f"{path} is of another network: it has {len(more)} tensors more than this one, such as {more[0]}; name the "
            "architecture that the file belongs to"
        )


def _statistics(tensors: Tensors, place: str) -> dict[str, torch.Tensor] | None:
    """The state of the normalisation beside the network of a saji model that stands at `place`."""
    beside = f"{place.removesuffix(_OURS)}normalise."
    state = {name: tensors[beside + name] for name in _STATISTICS if beside + name in tensors}
    right = len(state) == len(_STATISTICS) and all(
        tensor.shape == (1, 3, 1, 1) and tensor.dtype in _FLOATS and tensor.isfinite().all()
        for tensor in state.values()
    )
    return state if right and (state["std"] > 0).all() else None


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        what = "is no file" if exists(path) else "does not exist"
        raise SajiError(f"{path} {what}; --weights takes a .pt, .pth or .safetensors file")
    try:
        content = _safetensors(path) if _is_safetensors(path) else _pickled(path)
    except ImportError:
        raise SajiError(f"{path} needs the safetensors package; install it with: pip install safetensors") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        code = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"TorchScript", str(error))
        if not code:
            raise SajiError(f"{path} is truncated or holds code instead of weights and was refused") from None
        raise SajiError(
            f"{path} holds code ({code[code.re.groups]}) and was refused; save the weights alone by the program that "
            "wrote it: torch.save(model.state_dict(), 'weights.pt')"
        ) from None
    except Exception as error:  # safetensors raises a class of its own, which has no public base
        raise SajiError(f"{path} cannot be read ({str(error)[:80]})") from None
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not all(isinstance(value, torch.Tensor) and not value.is_nested for value in content.values()):
        has = f" but {some_of([*content])}" if named and content else ""
        raise SajiError(f"{path} holds no weights by name{has}; save a network's state_dict() into it")
    return dict(content)


def _is_safetensors(path: Path) -> bool:
    """By its first bytes, the length of its JSON and a brace, or where nothing speaks against it by its name."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" or path.suffix.lower() == ".safetensors"


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _pickled(path: Path) -> Any:
    with torch.serialization.safe_globals(_HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)
