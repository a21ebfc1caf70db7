"""The trained module: uint8 photos in, logits out; and the checkpoint file that carries it with its spec."""

import copy
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from runtime.errors import BadModel, SajiError
from runtime.evaluation import compare
from runtime.files import DAMAGE, ZIP_DAMAGE, is_file, replacing, sha256_file
from runtime.spec import ModelSpec, side_by_side
from training.network import architectures
from training.network.familiarity import BUFFERS, Familiarity
from training.recipe import DEFAULTS, Recipe


class Normalise(nn.Module):
    """uint8 `[N, H, W, 3]` RGB → float32 `[N, 3, H, W]` with the weights' own mean and standard deviation.

    The only place where they exist: every exported graph begins with this layer.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[N, H, W, 3]` RGB → float32 `[N, 3, H, W]`."""
        return self.scaled(planes(images))

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """The arithmetic alone, of float32 `[N, 3, H, W]` RGB on a scale of 0 to 255."""
        return (x - self.mean) / self.std


def planes(images: torch.Tensor) -> torch.Tensor:
    """uint8 `[N, H, W, 3]` → float32 `[N, 3, H, W]`, still on a scale of 0 to 255."""
    # Cast first: TensorRT's parser does not transpose uint8. Contiguous: otherwise the exporter emits a strided
    # gather before the head, which OpenVINO computes wrongly in INT8 without a word.
    return images.float().permute(0, 3, 1, 2).contiguous()


class PhotoClassifier(nn.Module):
    """Normalisation and network in one module: uint8 `[N, H, W, 3]` RGB → logits `[N, classes]`.

    With `apart`, float32 `[classes, members]`, each class is the sum of some of the network's own: those of 0 in its
    row, the others have a number there that is far below any logit. With `familiarity` the answer is a pair, of which
    that is the second, `[N]`.
    """

    apart: torch.Tensor | None

    def __init__(
        self,
        architecture: str,
        classes: int,
        recipe: Recipe = DEFAULTS,
        pretrained: bool = False,
        apart: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        expected = architectures.find(architecture, pretrained or bool(recipe.weights))
        self.normalise = Normalise(expected.mean, expected.std)
        members = classes if apart is None else apart.shape[1]
        self.network = architectures.build(architecture, members, recipe, pretrained)
        self.register_buffer("apart", apart)
        self.familiarity: Familiarity | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """uint8 `[N, H, W, 3]` RGB → logits float `[N, classes]`, or a pair of them and the familiarity `[N]`."""
        x = self.normalise(images)
        if self.familiarity is None:
            return self._logits(x)
        features, logits = self.seen(x)
        return logits, self.familiarity(features, logits)

    def seen(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised photos `[N, 3, H, W]` → what the last layer takes, `[N, D]`, averaged over places where it has
        several, and logits `[N, classes]`."""
        taken: list[torch.Tensor] = []
        head = architectures.head(self.network)
        hook = head.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
        try:
            logits = self._logits(x)
        finally:
            hook.remove()
        features = taken[-1]
        places = (2, 3) if isinstance(head, nn.Conv2d) else tuple(range(1, features.ndim - 1))
        return _as(features.mean(places) if places else features, x.dtype), logits

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        logits = _as(self.network(_as(x, next(self.network.parameters()).dtype)), x.dtype)
        return logits if self.apart is None else torch.logsumexp(logits[:, None] + self.apart, dim=2)


def _as(x: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    return x if x.dtype == kind else x.to(kind)  # no cast in the graph where there is none


def save_checkpoint(
    path: Path,
    model: PhotoClassifier,
    spec: ModelSpec,
    seen: Mapping[str, list[str]] | None = None,
    beside: Sequence[Path] = (),
) -> None:
    """Write `checkpoint.pt` atomically: the spec as JSON and contiguous CPU weights; loads with weights_only=True.

    `seen` is the record of the photos that the model saw (`training.photos.seen`), which is too large for the spec.
    Files that stand `beside` it belong to it, see `require_own`.
    """
    more: dict[str, object] = {"seen": dict(seen)} if seen else {}
    more |= {"beside": {file.name: sha256_file(file) for file in beside}} if beside else {}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save({"spec": spec.to_json(), "weights": weights} | more, path)


def save(content: object, path: Path, durable: bool = True) -> None:
    """`torch.save`, atomically. What stops it, the system's OSError or Ctrl-C, is not hidden by PyTorch's own error."""
    with replacing(path, durable) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # after that one, of the archive that it ends all the same
            if isinstance(error.__context__, OSError | KeyboardInterrupt):
                raise error.__context__ from None
            raise


def require_own(path: Path) -> None:
    """Raise BadModel where files beside a checkpoint are those of another training.

    They are written before it: a training that is cut off in between leaves them beside an earlier checkpoint.
    """
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for name, digest in content.get("beside", {}).items():
        file = path.with_name(name)
        if file.is_file() and sha256_file(file) != digest:
            raise BadModel(f"{file} is of another training than {path}; train again")


def replace_spec(path: Path, spec: ModelSpec) -> None:
    """Give a checkpoint another spec; its weights and its record of photos stay."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    save({**content, "spec": spec.to_json()}, path)


def load_checkpoint(path: Path) -> tuple[PhotoClassifier, ModelSpec]:
    """Read a checkpoint; the module in evaluation mode on the CPU. No code in the file is ever executed.

    Raises BadModel when the file is missing, truncated, pickled code or another project's.
    """
    if not is_file(path):
        raise BadModel(f"{path} does not exist; train first with: make train")
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch does not compare the checksums that it writes
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        content = torch.load(path, map_location="cpu", weights_only=True)
        text, weights = content["spec"], content["weights"]
    except (KeyError, TypeError, IndexError):
        raise BadModel(f"{path} is no saji checkpoint (it has no spec); train one with: make train") from None
    except (pickle.UnpicklingError, *ZIP_DAMAGE):
        what = "no checkpoint: of another kind, damaged, or with code in it"
        raise BadModel(f"{path} is {what}; give a run's checkpoint.pt, or train again") from None
    spec = ModelSpec.from_json(text, str(path))
    try:
        recipe = Recipe.from_record(spec.recipe)
    except (SajiError, TypeError) as error:
        raise BadModel(f"{path} was trained with a recipe that cannot be right ({error}); train again") from None
    try:
        model = PhotoClassifier(spec.architecture, len(spec.classes), recipe, apart=weights.get("apart"))
        if spec.familiarity:
            model.familiarity = Familiarity(**{name: weights[f"familiarity.{name}"] for name in BUFFERS})
        model.load_state_dict(_with_versions(weights, model))
        size = spec.geometry.size
        reference_outputs(model, np.full((1, size, size, 3), 128, np.uint8))  # parts that do not fit one another
    except (RuntimeError, IndexError, *DAMAGE) as error:
        what = " ".join(str(error).split())[:120]
        raise BadModel(f"{path} has weights that do not fit {spec.architecture} ({what}…)") from None
    return model.eval(), spec


def _with_versions(weights: Mapping[str, torch.Tensor], model: nn.Module) -> Mapping[str, torch.Tensor]:
    """Weights as the model's own `state_dict` would give them: with its layers' versions, which MNASNet asks for."""
    versioned = model.state_dict()
    versioned.clear()
    versioned.update(weights)
    return versioned


def complete(folder: Path) -> bool:
    """Whether a network's folder has a checkpoint and its validation set, in earlier versions judging.npz."""
    photos = (folder / "validation.npz", folder / "judging.npz")
    return (folder / "checkpoint.pt").is_file() and any(path.is_file() for path in photos)


def reference_outputs(
    model: nn.Module, images: np.ndarray, batch: int = 32, precision: torch.dtype = torch.float32
) -> np.ndarray:
    """The FP32 answer on the CPU that every candidate is held against; uint8 `[N, S, S, 3]` → float32 `[N, …]`, all
    outputs side by side (`runtime.spec.ModelSpec`)."""
    images = np.require(images, requirements="W")  # PyTorch warns of read-only memory, which it would not write to
    model = model.to("cpu", precision).eval()  # plain arithmetic, whatever the training used
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            answer = model(torch.from_numpy(images[start : start + batch]))
            outputs = answer if isinstance(answer, tuple) else (answer,)
            parts.append(side_by_side(*(output.numpy() for output in outputs)))
    return np.concatenate(parts)


def reference_logits(
    model: nn.Module, images: np.ndarray, batch: int = 32, precision: torch.dtype = torch.float32
) -> np.ndarray:
    """The logits `[N, C]` among `reference_outputs`."""
    outputs = reference_outputs(model, images, batch, precision)
    return outputs[:, :-1] if getattr(model, "familiarity", None) is not None else outputs


def rounding(model: nn.Module, images: np.ndarray, logits: np.ndarray) -> float:
    """How far FP32 alone moves the answers: the shift (`runtime.evaluation.Figures`) of FP64 from the logits.

    `images` are uint8 `[N, S, S, 3]`, `logits` float32 `[N, C]` the model's own of them.
    """
    exact = reference_logits(copy.deepcopy(model), images, precision=torch.float64)
    return compare(logits, exact, logits.argmax(1)).shift
