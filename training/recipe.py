"""How a network is trained: every hyperparameter, one flat record, loaded from `recipes/*.toml`."""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from runtime.errors import SajiError
from runtime.files import is_file, sha256_file
from runtime.ranges import AtLeast0, Count, CountOrNone, Part, Positive, Seed, Share, SomePart, SomeShare, require_right
from runtime.spec import MOST_PIXELS

FOLDER = Path(__file__).parent / "recipes"

MOST_SIDE = MOST_PIXELS * 7 // 8  # pixels, before which a photo is resized to 8/7 of it
CHANGES_NOTHING = ("name", "workers")  # fields that what comes out does not depend on

Side = Annotated[int, f"a whole number, at least 1 and at most {MOST_SIDE}", lambda n: 1 <= n <= MOST_SIDE]
Workers = Annotated[int, "a whole number, at least -1 and at most 1000", lambda n: -1 <= n <= 1000]
Factor = Annotated[float, "at least 0 and at most 100", lambda x: 0 <= x <= 100]  # of a learning rate
Temperature = Annotated[float, "at least 0.01 and at most 100", lambda x: 0.01 <= x <= 100]


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one training run. Any of them can be overridden on the command line."""

    name: str = "scratch"
    """Which recipe this is."""
    image_size: Side = 128
    """Side of the square that the network sees, pixels."""
    epochs: Count = 40
    """Passes over the training photos."""
    batch_size: Count = 32
    """Photos per optimiser step."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimiser; sgd has Nesterov momentum 0.9."""
    learning_rate: Positive = 2e-3
    """Peak learning rate."""
    weight_decay: Factor = 0.05
    """Weight decay, of matrices and filters only for adamw."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_epochs: AtLeast0 = 5
    """Epochs over which the learning rate rises linearly from zero."""
    step_epochs: Count = 5
    """With schedule=step: epochs between two falls."""
    step_gamma: Share = 0.1
    """With schedule=step: the factor of each fall."""
    label_smoothing: Part = 0.1
    """Share of each target spread over all classes."""
    augmentation: Literal["none", "flip", "crop", "trivial"] = "trivial"
    """none; flip; crop = random resized crop and flip; trivial = crop and TrivialAugment."""
    smallest_crop: SomeShare = 0.35
    """Smallest area of a random crop, as a share of the photo."""
    mix: bool = False
    """Mix pairs of photos of a batch (MixUp and CutMix by turns)."""
    clip_norm: AtLeast0 = 1.0
    """Gradients are clipped to this norm; 0 = never."""
    accumulate: Count = 1
    """Batches whose gradients are added up for one optimiser step."""
    ema_decay: Part = 0.0
    """Evaluate and release a moving average of the weights with this decay per step; 0 = the weights themselves."""
    patience: CountOrNone = 0
    """Stop after so many epochs without a better validation loss; 0 = never."""
    release: Literal["best", "last"] = "last"
    """Which epoch becomes the checkpoint: the last, which nothing chose, or that of the best validation accuracy."""
    validation_share: SomePart = 0.2
    """Share of photos kept for validation where the data has no split of its own."""
    test_share: Part = 0.0
    """Share of photos that nothing is trained or chosen by, to measure the accuracy on; 0 = none."""
    calibration_photos: Count = 300
    """Training photos kept for INT8 calibration; 300 is NNCF's default."""
    pretrained: bool = False
    """Start from published weights instead of random ones."""
    weights: str = ""
    """Start from the weights in this local file, of torchvision's or timm's names."""
    freeze_epochs: CountOrNone = 0
    """Epochs at the start in which only the last layer learns."""
    backbone_rate: Factor = 1.0
    """Learning rate of everything before the last layer, as a share of the last layer's."""
    start_share: Part = 0.0
    """Share of the weights that it started from in what is released, whose last layer is then fitted anew."""
    teacher: str = ""
    """Learn the answers of this checkpoint beside the labels (distillation); photos that it saw do not validate."""
    teacher_share: Share = 0.7
    """With a teacher: its share of the loss."""
    teacher_temperature: Temperature = 2.0
    """With a teacher: the temperature at which its answers are softened."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of training; auto = bf16 where that is quicker, then fp16 on a GPU, then fp32."""
    channels_last: bool = True
    """Keep activations as NHWC in memory, which convolutions run faster on."""
    workers: Workers = -1
    """Processes that prepare batches; -1 = none on a CPU, up to 8 beside a GPU."""
    deterministic: bool = False
    """On a GPU, use only algorithms that give the same result each time, at a cost of speed; a CPU always does."""
    seed: Seed = 0
    """Seed of the split, the weights and the augmentation."""
    activation: Literal["relu", "mish", "silu", "leaky_relu", "gelu"] = "relu"
    """se_resnet34: what follows each convolution's batch norm."""
    se_ratio: Count = 16
    """se_resnet34: channels over the squeezed channels."""
    head_dropout: Part = 0.0
    """se_resnet34: dropout before the last layer."""
    head_batch_norm: Literal["none", "before_dropout", "after_dropout"] = "none"
    """se_resnet34: a batch norm in the head, and where."""

    def __post_init__(self) -> None:
        require_right(self)
        if self.start_share and not (self.pretrained or self.weights):
            raise SajiError("start_share needs weights to start from; use --pretrained, or --start-share 0")
        if self.weights and self.pretrained:
            raise SajiError(
                "pretrained and weights are two starts; choose one with --no-pretrained or without --weights"
            )

    @property
    def epoch_is_chosen(self) -> bool:
        """Whether the validation photos have a say in when training ends."""
        return self.release == "best" or self.patience > 0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Recipe":
        """The recipe in a checkpoint: what was no field yet when it was trained has its default.

        What is no field any more is left out. Raises SajiError or TypeError on values that no recipe has.
        """
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in names})

    @property
    def files(self) -> dict[str, Path]:
        """The files that a run starts from, by the field that names them."""
        return {name: Path(getattr(self, name)) for name in ("weights", "teacher") if getattr(self, name)}

    def by_content(self) -> dict[str, Any]:
        """What decides what comes out: fields, with the SHA-256 of each file instead of its path."""
        return _deciding({**asdict(self), **{name: sha256_file(path) for name, path in self.files.items()}})

    def same_settings(self, record: Mapping[str, Any], files: Mapping[str, str] | None = None) -> bool:
        """Whether a run with this record in its checkpoint was trained as this recipe says.

        A field that the run did not know yet had the effect of its default; one that this saji does not know may have
        changed anything. `files` has the SHA-256 of the files that the run started from, by field; None where it did
        not keep them, and they are told by their paths.
        """
        theirs = {**asdict(DEFAULTS), **record, **(files or {})}
        return _deciding(theirs) == (_deciding(asdict(self)) if files is None else self.by_content())


def _deciding(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in CHANGES_NOTHING}


DEFAULTS = Recipe()  # also what holds where no recipe is given


def names() -> list[str]:
    """The recipes that come with saji."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """A recipe by name, or from a path to a TOML file. Raises SajiError naming what exists."""
    path = Path(name) if name.lower().endswith(".toml") else FOLDER / f"{name}.toml"
    if not is_file(path):
        raise SajiError(f"there is no recipe {name!r}; choose from {', '.join(names())}, or a path to a .toml file")
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise SajiError(f"{path} is no recipe, as it is no UTF-8 text; save it as UTF-8") from None
    except (OSError, ValueError, RecursionError) as error:  # no TOML
        raise SajiError(f"{path} is no recipe ({error}); write a field a line, such as: epochs = 30") from None
    every = [field.name for field in fields(Recipe)]
    if unknown := [name for name in values if name not in every]:
        near = difflib.get_close_matches(unknown[0].replace("-", "_").lower(), every, 1)
        like = f"did you mean {near[0]}?" if near else f"its fields are {', '.join(every)}"
        raise SajiError(f"{path} is no recipe ({unknown[0]!r} is no field of one); {like}")
    try:
        return Recipe(**{"name": path.stem, **values})
    except (SajiError, ValueError, TypeError) as error:
        raise SajiError(f"{path} is no recipe ({error}); see docs/train.md") from None
