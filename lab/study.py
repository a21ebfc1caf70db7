"""What docs/study.md tells, one committed row per finished run.

- `held_out`: EfficientNet-Lite0 from ImageNet weights and, from scratch, plain, residual and squeeze-and-excitation
  networks, by folds: every photo is answered by a network that never saw its scene, and chose nothing of it.

The others are asked about the photos of the first of those folds alone:

- `limits`: ResNet-34 from scratch, one thing changed at a time, and with patience; EfficientNet-Lite0 from ImageNet.
- `seeds`: the four seed recipes and their networks, beside what they reported on a split that leaks.
- `distil`: ResNet-34 from scratch, taught by that EfficientNet-Lite0.

A run that has its row is not repeated; one that was cut off goes on where it was.
"""

import argparse
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.coverage import contains
from lab.tables.study import SEEDS
from runtime.benchmark.rows import Row, read_rows
from runtime.environment import usable_cores
from runtime.errors import SajiError
from runtime.evaluation import calibration_error
from runtime.spec import ModelSpec
from runtime.terminal import say
from training.network.classifier import load_checkpoint
from training.photos.dataset import Data, load_data
from training.photos.split import folds, set_aside
from training.recipe import Recipe, load_recipe
from training.run.held_out import HeldOut, made_with, of_folds, outputs_for, settle
from training.run.records import Share
from training.run.resume import finished
from training.run.train import Place, train

FOLDS = 3
# One thing changed of `scratch` at a time, as far as it can be: half the photos have as many steps, and small batches a
# rate that falls with the root of their size. The share of the photos, then what changes in the recipe
LIMITS: dict[str, tuple[float, dict[str, Any]]] = {
    "scratch": (1, {}),
    "half_the_photos": (0.5, {"epochs": 80}),
    "small_batches": (1, {"batch_size": 8, "learning_rate": 3e-4}),
    "smaller_photos": (1, {"image_size": 96}),
}
NETWORKS = ("plain34", "resnet34", "se_resnet34")
TEACHER = "efficientnet_lite0"
WAVES = (("held_out", "limits", "seeds"), ("distil",))  # the second needs the first


@dataclass(frozen=True)
class Job:
    """One network to train, by folds or on a `share` of the photos that the first fold leaves."""

    part: str
    architecture: str
    recipe: Recipe
    share: float = 1

    @property
    def name(self) -> str:
        """What the row and its folder are called, such as "held_out/scratch/plain34"."""
        return f"{self.part}/{self.recipe.name}/{self.architecture}"


def jobs(part: str, out: Path) -> list[Job]:
    """The runs of one part."""
    if part == "held_out":
        networks = [(TEACHER, "transfer"), *((network, "scratch") for network in NETWORKS), ("resnet34", "long")]
        return [Job(part, network, load_recipe(recipe)) for network, recipe in networks]
    if part == "limits":
        scratch = load_recipe("scratch")
        changed = [
            Job(part, "resnet34", replace(scratch, name=name, **changes), share)
            for name, (share, changes) in LIMITS.items()
        ]
        return [*changed, Job(part, "resnet34", load_recipe("long")), Job(part, TEACHER, load_recipe("transfer"))]
    if part == "seeds":  # at 128 px: their 224 and 300 would take five times as long
        recipes = {name: replace(load_recipe(name), image_size=128) for name in SEEDS}
        return [Job(part, network, recipes[name]) for name, reported in SEEDS.items() for network in reported]
    teacher = out / "study" / "limits" / "transfer" / TEACHER / "checkpoint.pt"
    return [Job(part, "resnet34", replace(load_recipe("distil"), teacher=str(teacher)))]


def run(job: Job, source: Path, out: Path, threads: int, at_once: int) -> Row:
    """Train one network, or take it up where it was, and say how it does on the photos it did not see."""
    torch.set_num_threads(threads)
    data = load_data(source, job.recipe.validation_share, job.recipe.seed, True, out / "cache")
    folder = out / "study" / job.name

    def fit(part: Data, into: Path) -> None:
        train(job.architecture, part, job.recipe, into, out / "cache", Place("cpu"))

    if job.part == "held_out":
        row = held_out_row(job, data, of_folds(job.architecture, data, job.recipe, FOLDS, folder, fit), folder)
    else:
        asked, own = first_fold(data, job)
        if not finished(folder, job.architecture, job.recipe, own.fingerprint):
            fit(own, folder)
        row = row_of(job, own, asked, folder)
    return row | {"threads": threads, "runs_at_once": at_once}


def first_fold(data: Data, job: Job) -> tuple[np.ndarray, Data]:
    """The indices of the photos of the first fold of `held_out`, and the job's share of the others to train with."""
    part = own = folds(data, FOLDS, job.recipe.seed)[0]
    if job.share < 1:
        own = replace(part, train=set_aside(part, 1 - job.share, job.recipe.seed).train)
    return part.val, made_with(own, job.recipe)


def held_out_row(job: Job, data: Data, answers: HeldOut, folder: Path) -> Row:
    """What all folds together say of photos that chose nothing; `folds` has each fold's own accuracy and interval, and
    whether that contains the accuracy on the other folds."""
    spec = settle(folder, ModelSpec(job.name, job.architecture, data.classes), answers, answers)
    hits, apart = answers.logits.argmax(1) == answers.labels, []
    for part in folds(data, FOLDS, job.recipe.seed):
        share = Share.of(hits[part.val], answers.scenes[part.val])
        held = contains(hits, answers.scenes, part.val)
        apart.append({"accuracy": share.share, "interval": share.interval, "contains_the_others": held})
    return {
        "experiment": "study",
        "part": job.part,
        "run": job.name,
        "architecture": job.architecture,
        "recipe": asdict(job.recipe),
        "data_fingerprint": data.fingerprint,
        **spec.validation["held_out"],
        "temperature": round(spec.temperature, 4),
        "calibration_error_at_temperature_1": spec.validation["calibration"]["ece_before"],
        "folds": apart,
        "labels": _digits(answers.labels),
        "predictions": _digits(answers.logits.argmax(1)),
        "scene": answers.scenes.tolist(),
    }


def row_of(job: Job, data: Data, asked: np.ndarray, folder: Path) -> Row:
    """The facts of a finished run; `labels` and `predictions` have a digit per photo, in one order for all networks."""
    model, spec = load_checkpoint(folder / "checkpoint.pt")
    logits = spec.logits(outputs_for(model, [data.photos[i] for i in asked], spec.geometry))
    labels, scenes = data.labels[asked], data.scenes[asked]
    right = Share.of(logits.argmax(1) == labels, scenes)
    history = np.genfromtxt(folder / "history.csv", delimiter=",", names=True)
    return {
        "experiment": "study",
        "part": job.part,
        "run": job.name,
        "architecture": job.architecture,
        "recipe": asdict(job.recipe) | {"teacher": Path(job.recipe.teacher).parent.name},  # not its place here
        "data_fingerprint": data.fingerprint,
        "trained_on": len(data.train),
        "photos": len(labels),
        "accuracy_on_training_photos": round(float(history["train_accuracy"][-1]), 4),
        "accuracy": right.share,
        "accuracy_interval": right.interval,
        "calibration_error": round(calibration_error(logits, labels), 4),
        "best_epoch": spec.validation["best_epoch"],
        "last_epoch": spec.validation["last_epoch"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(float(history["seconds"].sum()), 1),
        "labels": _digits(labels),
        "predictions": _digits(logits.argmax(1)),
        "scene": scenes.tolist(),
    }


def _digits(classes: np.ndarray) -> str:
    return "".join(np.base_repr(number, 36) for number in classes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The photos, and what to run on them."""
    parser.add_argument("data", type=Path, help="photo set with a split of its own")
    parts = [part for wave in WAVES for part in wave]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to run; all by default")
    parser.add_argument("--only", default="", metavar="TEXT", help="runs with this in their name, such as transfer")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")
    parser.add_argument("--at-once", type=int, default=usable_cores(), help="runs that share the cores; 1 thread each")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of the runs that have none yet in --rows."""
    if arguments.at_once < 1:
        raise SajiError("--at-once must be at least 1")
    done = {row["run"] for row in read_rows(arguments.rows)} if arguments.rows.is_file() else set()
    for wave in WAVES:
        todo = [job for part in wave if part in arguments.parts for job in jobs(part, arguments.out)]
        todo = [job for job in todo if job.name not in done and arguments.only in job.name]
        for row in _run_all(todo, arguments.data, arguments.out, arguments.at_once):
            say(f"{row['run']}: accuracy {row['accuracy']:.3f} on {row['photos']} photos")
            yield row


def _run_all(todo: list[Job], source: Path, out: Path, at_once: int) -> Iterator[Row]:
    """The row of each job as it is finished, from processes that share the cores; a failure is raised at the end."""
    if not todo:
        return
    at_once = min(at_once, len(todo))
    threads = max(1, usable_cores() // at_once)
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run, job, source, out, threads, at_once) for job in todo]
        failed = []
        for future in as_completed(futures):
            if future.exception():
                failed.append(future)
            else:
                yield future.result()
    for future in failed:
        future.result()
