"""`python -m training`: photos → checkpoints, one per architecture."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.command_line import require_extra

require_extra("train", "torch", "torchvision", "lightning", "sklearn", "matplotlib")

from runtime.command_line import Parser, add_flags, exit_with_one_sentence, from_flags
from runtime.files import write_json
from training.network import architectures
from training.photos.dataset import load_data, run_name
from training.photos.drawn import write_sample
from training.photos.findings_page import describe
from training.recipe import Recipe, load_recipe, names

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Command:
    """Train networks on photos: a folder per class, or a CSV with filename,label[,split]."""

    data: Path | None = None
    """Photo set; without it the built-in drawn sample dishes."""
    archs: tuple[str, ...] = ("plain34", "resnet34", "se_resnet34")
    """Architectures: plain34, se_resnet34 and every torchvision classification network by name."""
    run: str = ""
    """Name of the run; by default that of the data."""
    out: Path = Path("artifacts")
    """Folder of all artefacts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a CUDA GPU when there is one."""
    devices: int = 0
    """Processes that share the work: 0 = all GPUs, or one process on a CPU."""
    tensorboard: bool = False
    """Write TensorBoard logs beside the checkpoint as well."""
    force: bool = False
    """Train again even when nothing has changed, and from the start where a run was interrupted."""


def main() -> None:
    """Read the command line, prepare the data once, train what is out of date."""
    command, recipe = _read(sys.argv[1:])
    for architecture in command.archs:
        architectures.check_name(architecture)
    from training.network.classifier import finished
    from training.outcome.report import write_report
    from training.progress import bar  # after the command line is read, so that --help is quick
    from training.run.train import Place, train

    place = Place(command.device, command.devices, command.tensorboard, resume=not command.force)
    drawn = command.data is None
    source = command.data or write_sample(command.out / "sample")
    run = command.run or ("sample" if drawn else run_name(source))
    # The drawn dishes are known to have no look-alikes
    data = load_data(source, recipe.validation_share, recipe.seed, not drawn, command.out / "cache", bar)
    data.report["drawn"] = drawn
    write_json(command.out / "runs" / run / "data.json", data.report)
    print(describe(data.report), file=sys.stderr)
    trained = False
    for architecture in command.archs:
        folder = command.out / "runs" / run / architecture
        if not command.force and finished(folder, architecture, asdict(recipe), data.fingerprint):
            print(f"{architecture}: up to date in {folder}, --force to redo", file=sys.stderr)
            continue
        spec = train(architecture, data, recipe, folder, command.out / "cache", place, bar)
        if spec.validation:  # empty in all but the first of several processes
            print(_told(architecture, spec.validation, folder))
            trained = True
    if trained:
        write_report(command.out / "runs" / run)
        print(f"report: {command.out / 'runs' / run / 'report.md'}", file=sys.stderr)
    print(json.dumps({"run": run, "out": str(command.out), "archs": command.archs}))


def _told(architecture: str, facts: dict[str, Any], folder: Path) -> str:
    low, high = facts["interval"]
    told = (
        f"{architecture}: accuracy {facts['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, {facts['photos']} "
        f"validation photos) at epoch {facts['epoch']}; epoch {facts['last_epoch']['epoch']}, the last, has "
        f"{facts['last_epoch']['accuracy']:.3f} → {folder / 'checkpoint.pt'}"
    )
    if leaks := facts.get("without_leaks"):
        there = "unknown" if leaks["accuracy"] is None else f"{leaks['accuracy']:.3f}"
        told += (
            f"\n{architecture}: {leaks['leaking']} of these photos LEAK, training shows them too; "
            f"on the {leaks['photos']} others the accuracy is {there}"
        )
    return told


def _read(arguments: list[str]) -> tuple[Command, Recipe]:
    """The command and the recipe; what `--recipe` names gives the defaults of all other flags of the recipe."""
    parser = Parser(prog="python -m training", description=Command.__doc__)
    parser.add_argument("--recipe", metavar="NAME", help=f"where the hyperparameters start from: {', '.join(names())}")
    add_flags(parser, Command())
    known, _ = parser.parse_known_args([argument for argument in arguments if argument not in ("-h", "--help")])
    recipe = load_recipe(known.recipe or ("scratch" if known.data else "quick"))
    add_flags(parser.add_argument_group("hyperparameters"), recipe)
    typed = parser.parse_args(arguments)
    return from_flags(Command(), typed), from_flags(recipe, typed)


if __name__ == "__main__":
    exit_with_one_sentence(main)
