"""What a network does on photos that chose nothing of it: the accuracy that saji leads with, and where it comes from.

- A test split that the set brings, or that `--test-share` holds back: for sets of some thousand photos.
- Folds (`--folds K`): K networks are trained beside the released one, each without a part of the photos, which it is
  then asked about. Together they answer every photo, so that a few hundred are enough, at K times the work.
- The validation photos, where the last epoch is released whatever they say.

Where they chose the epoch and there is nothing else, nothing is known, and saji says so. Photos that may show what a
training photo shows are left out everywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from runtime.errors import BadModel
from runtime.evaluation import Bin, calibration_error, reliability
from runtime.files import replacing
from runtime.preprocess import pixels
from runtime.spec import Geometry, ModelSpec, side_by_side
from training.network.classifier import PhotoClassifier, load_checkpoint, reference_outputs, replace_spec
from training.photos.photo_set import Photo
from training.photos.split import Data, folds, set_aside
from training.progress import in_threads
from training.recipe import Recipe
from training.run.confidence import cross_fitted, settled
from training.run.records import HeldOutFigures, Share, rounded
from training.run.resume import finished

FILE = "held_out.npz"
AT_ONCE = 256  # photos in memory


@dataclass(frozen=True)
class HeldOut:
    """Logits float32 `[N, C]` to photos that trained nothing, their labels int `[N]`, the scenes they show int `[N]`.

    `how` is "test photos", "validation photos" or such as "3 folds"; `chose` is whether they chose the epoch.
    `familiarity` float32 `[N]` is the networks' second output.
    """

    how: str
    logits: np.ndarray
    labels: np.ndarray
    scenes: np.ndarray
    chose: bool = False
    familiarity: np.ndarray | None = None

    @classmethod
    def of(cls, how: str, spec: ModelSpec, outputs: np.ndarray, labels: np.ndarray, scenes: np.ndarray) -> "HeldOut":
        """Of a model's outputs side by side."""
        return cls(how, spec.logits(outputs), labels, scenes, familiarity=spec.familiarity_of(outputs))

    @property
    def outputs(self) -> np.ndarray:
        """Side by side, see `runtime.spec.ModelSpec`."""
        return side_by_side(self.logits, self.familiarity)

    def save(self, folder: Path) -> None:
        """Write `held_out.npz`, atomically."""
        arrays = {"how": np.array(self.how), "logits": self.logits, "labels": self.labels, "scenes": self.scenes}
        arrays |= {} if self.familiarity is None else {"familiarity": self.familiarity}
        with replacing(folder / FILE) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # numpy's stub mixes up its keyword arguments

    @classmethod
    def load(cls, folder: Path) -> "HeldOut | None":
        """Read it back; None where there is none. Raises BadModel on a damaged file."""
        if not (folder / FILE).is_file():
            return None
        try:
            with np.load(folder / FILE, allow_pickle=False) as arrays:
                logits, labels, scenes = (arrays[name] for name in ("logits", "labels", "scenes"))
                return cls(str(arrays["how"]), logits, labels, scenes, familiarity=arrays.get("familiarity"))
        except Exception as error:  # zipfile.BadZipFile and friends are no common family
            raise BadModel(f"{folder / FILE} is damaged ({error}); train again to write it anew") from None


def of_validation(spec: ModelSpec, outputs: np.ndarray, data: Data, recipe: Recipe) -> HeldOut:
    """The validation photos, from the outputs float `[len(data.val), …]`, without those that may leak."""
    clean = ~np.isin(data.scenes[data.val], data.scenes[data.train])
    own = np.isin(data.val, data.val[clean] if clean.any() else data.val)
    kept, chose = data.val[own], recipe.epoch_is_chosen or not clean.any()
    answers = HeldOut.of("validation photos", spec, outputs[own], data.labels[kept], data.scenes[kept])
    return replace(answers, chose=chose)


def of_test(model: PhotoClassifier, spec: ModelSpec, data: Data) -> HeldOut | None:
    """A network's answers to a test split; None where there is none."""
    test = data.test
    if not test.photos:
        return None
    return HeldOut.of("test photos", spec, outputs_for(model, test.photos, spec.geometry), test.labels, test.scenes)


def of_folds(
    architecture: str, data: Data, recipe: Recipe, k: int, folder: Path, train: Callable[[Data, Path], object]
) -> HeldOut:
    """What is said of every photo by a network that did not see its scene; `train` fills the folder of each fold.

    Finished folds are not repeated. Where one is of an earlier saji, without familiarity, nothing is known of that.
    """
    logits = np.full((len(data.photos), len(data.classes)), np.nan, np.float32)
    familiarity = np.full(len(data.photos), np.nan, np.float32)
    for number, part in enumerate(folds(data, k, recipe.seed)):
        own = made_with(part, recipe)
        place = folder / "folds" / f"{number}-of-{k}"
        if not finished(place, architecture, recipe, own.fingerprint):
            train(own, place)
        model, spec = load_checkpoint(place / "checkpoint.pt")
        outputs = outputs_for(model, [data.photos[i] for i in part.val], spec.geometry)
        logits[part.val] = spec.logits(outputs)
        familiarity[part.val] = outputs[:, -1] if spec.familiarity else np.nan
    asked = np.isfinite(logits).all(axis=1)  # what weights had seen before is in no fold
    known = familiarity[asked] if np.isfinite(familiarity[asked]).all() else None
    return HeldOut(f"{k} folds", logits[asked], data.labels[asked], data.scenes[asked], familiarity=known)


def made_with(part: Data, recipe: Recipe) -> Data:
    """A fold as its network is trained on it: photos that choose an epoch are not those that it is asked about."""
    return set_aside(part, recipe.validation_share, recipe.seed) if recipe.epoch_is_chosen else part


def outputs_for(model: PhotoClassifier, photos: Sequence[Photo], geometry: Geometry) -> np.ndarray:
    """A network's outputs side by side, float32 `[N, …]`, for photos as files."""
    blocks = [photos[start : start + AT_ONCE] for start in range(0, len(photos), AT_ONCE)]
    images = (np.stack(list(in_threads(lambda photo: pixels(photo.source(), geometry), block))) for block in blocks)
    return np.concatenate([reference_outputs(model, block) for block in images])


def settle(folder: Path, spec: ModelSpec, validation: HeldOut, held_out: HeldOut | None) -> ModelSpec:
    """The spec with its temperature, its rejection rule and the figures of what was held out, which is kept beside it.

    Folds settle temperature and threshold, else the validation photos; those that chose the epoch are too sure of
    themselves, so they leave the temperature at 1.
    """
    by_folds = held_out is not None and held_out.how != "test photos"
    source = held_out if held_out and by_folds else validation
    spec = settled(spec, source.outputs, source.labels, source.scenes, fit=not source.chose)
    judge = held_out or (None if validation.chose else validation)
    if judge is None:
        return spec
    judge.save(folder)
    return replace(spec, validation={**spec.validation, "held_out": asdict(_figures(judge, spec, judge is source))})


def settle_by_folds(folder: Path, answers: HeldOut) -> ModelSpec:
    """The spec of a released network, settled anew once its folds have answered."""
    spec = settle(folder, load_checkpoint(folder / "checkpoint.pt")[1], answers, answers)
    replace_spec(folder / "checkpoint.pt", spec)
    return spec


def settle_by_test(folder: Path, data: Data, recipe: Recipe) -> ModelSpec:
    """The spec of a finished network; settled anew where the test split is not the one that it was measured on.

    Photos and labels are then those of today: `validation.npz` has them in the order in which they were listed once.
    """
    (model, spec), kept = load_checkpoint(folder / "checkpoint.pt"), HeldOut.load(folder)
    test = None if kept and kept.how.endswith("folds") else of_test(model, spec, data)
    if test is None or (kept and _same(kept, test)):
        return spec
    outputs = outputs_for(model, [data.photos[i] for i in data.val], spec.geometry)
    spec = settle(folder, spec, of_validation(spec, outputs, data, recipe), test)
    replace_spec(folder / "checkpoint.pt", spec)
    return spec


def _same(kept: HeldOut, now: HeldOut) -> bool:
    """Whether these are the same photos, labels and scenes: the logits tell photos apart, and another machine rounds
    them otherwise."""
    pairs = (kept.labels, now.labels), (kept.scenes, now.scenes), (kept.logits.shape, now.logits.shape)
    exact = kept.how == now.how and all(np.array_equal(a, b) for a, b in pairs)
    return exact and np.allclose(kept.logits, now.logits, 1e-3, 1e-3 * float(np.abs(now.logits).max()))


def in_words(spec: ModelSpec) -> str:
    """What is known of photos that chose nothing, or how to come to know it."""
    figures = HeldOutFigures.from_record(spec.validation.get("held_out"))
    if not figures:
        return (
            "on photos that chose nothing the accuracy is not known, and likely lower; --folds 3 measures it at three "
            "times the cost, --test-share 0.2 on a fifth of the photos"
        )
    return (
        f"accuracy {figures.share.in_words()} on {figures.photos} photos that chose nothing ({figures.how}), "
        f"calibration error {figures.calibration_error:.3f}"
    )


def _figures(judge: HeldOut, spec: ModelSpec, fitted: bool) -> HeldOutFigures:
    """`fitted`: whether these very photos settled the temperature, so that each is to be asked at another one."""
    labels, predicted = judge.labels, judge.logits.argmax(1)
    temperatures = (
        cross_fitted(judge.logits, labels, judge.scenes) if fitted else np.full(len(labels), spec.temperature)
    )
    calm = judge.logits / temperatures[:, None]
    right = Share.of(predicted == labels, judge.scenes)
    macro_f1 = f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    members = [labels == k for k in range(len(spec.classes))]
    recalls = [Share.of((predicted == k)[own], judge.scenes[own]) for k, own in enumerate(members)]
    sure = spec.sure(judge.outputs)[predicted == labels]
    return HeldOutFigures(
        how=judge.how,
        photos=len(labels),
        scenes=len(np.unique(judge.scenes)),
        accuracy=right.share,
        interval=right.interval,
        macro_f1=round(float(macro_f1), 4),
        calibration_error=round(calibration_error(calm, labels), 4),
        # JSON has no NaN: of a class without a photo nothing is known, see `runtime.evaluation.was_asked`
        recalls=tuple(recall.share if own.any() else 0.0 for recall, own in zip(recalls, members, strict=True)),
        recall_intervals=tuple(recall.interval for recall in recalls),
        reliability=tuple(Bin(**rounded(asdict(each))) for each in reliability(calm, labels)),
        right_kept=round(float(sure.mean()), 4) if len(sure) else None,
    )
