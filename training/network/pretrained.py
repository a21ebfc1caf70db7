"""Pretrained weights in a local file, for a network whose last layer is new: training without a download."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime.errors import SajiError

_WRAPPERS = ("state_dict", "model", "model_state_dict", "weights")  # keys under which training scripts save weights

_OURS = "network."  # what a checkpoint of saji has in front, beside the normalisation


def load_weights(network: nn.Module, head: nn.Module, path: Path) -> None:
    """Fill a network with the weights of a `.pt`, `.pth` or `.safetensors` file, all but those of its `head`.

    The file may be a checkpoint of saji, use the network's own names, or those of another library with the same layers
    in the same order (timm's for a torchvision network, or the other way round). Raises SajiError when the layers do
    not fit.
    """
    wanted = network.state_dict(keep_vars=True)
    own = {id(parameter) for parameter in head.parameters()}
    body = [name for name, tensor in wanted.items() if id(tensor) not in own and not _counter(name)]
    tensors = {name: tensor for name, tensor in _read(path).items() if not _counter(name)}
    # in another library's names the order tells; what the file has beyond the body is its own head, which comes last
    chosen = tensors if set(body) <= set(tensors) else dict(zip(body, tensors.values(), strict=False))
    odd = [name for name in body if name not in chosen or chosen[name].shape != wanted[name].shape]
    if odd:
        shape = list(chosen[odd[0]].shape) if odd[0] in chosen else "nothing"
        raise SajiError(
            f"{path} does not fit the network: {len(odd)} of {len(body)} tensors differ, {odd[0]} needs "
            f"{list(wanted[odd[0]].shape)} and the file has {shape}; name the architecture that the file belongs to"
        )
    with torch.no_grad():
        for name in body:
            wanted[name].copy_(chosen[name])


def _counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise SajiError(f"{path} does not exist; --weights takes a .pt, .pth or .safetensors file")
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise SajiError(f"{path} needs the safetensors package; install it with: pip install safetensors") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError):
        raise SajiError(f"{path} is truncated or holds code instead of weights and was refused") from None
    except Exception as error:  # safetensors raises a class of its own, which has no public base
        raise SajiError(f"{path} cannot be read ({str(error)[:80]})") from None
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise SajiError(f"{path} holds no weights by name; save a network's state_dict() into it")
    ours = {name.removeprefix(_OURS): value for name, value in content.items() if name.startswith(_OURS)}
    return ours or {name.removeprefix("module."): value for name, value in content.items()}
