"""What a run that was cut off goes on from, and when there is nothing left of it to do."""

import json
import zipfile
from pathlib import Path

import torch

from runtime.errors import BadModel
from runtime.files import sha256_json
from runtime.spec import PREPROCESS_VERSION, ModelSpec
from runtime.terminal import say
from training.network.classifier import PhotoClassifier, complete, load_checkpoint, require_own
from training.recipe import Recipe

# Of what a state file keeps; raise it with every change there, so that a run that an older saji left begins anew
STATE_VERSION = 5


def state_file(folder: Path, architecture: str, recipe: Recipe, fingerprint: str) -> Path:
    """What a run resumes from until it is finished; each has a name of its own, so that none takes another's place."""
    return folder / f"last-{sha256_json([architecture, fingerprint, recipe.by_content()])[:8]}.ckpt"


def finished(
    folder: Path, architecture: str, recipe: Recipe, fingerprint: str
) -> tuple[PhotoClassifier, ModelSpec] | None:
    """What a run's folder holds if it is this very run and complete, else None."""
    # They stay where this run was interrupted; in earlier versions all runs had the same
    states = state_file(folder, architecture, recipe, fingerprint), folder / "last.ckpt"
    whole = complete(folder) and (folder / "calibration.npz").is_file()
    if not whole or any(state.exists() for state in states):
        return None
    try:
        model, spec = load_checkpoint(folder / "checkpoint.pt")
        require_own(folder / "checkpoint.pt")
    except (BadModel, OSError):
        return None
    same = spec.architecture == architecture and spec.data["fingerprint"] == fingerprint
    started_from = spec.data.get("started_from")
    files = {name: each["sha256"] for name, each in started_from.items()} if started_from else None
    return (model, spec) if same and recipe.same_settings(spec.recipe, files) else None


def identity_of(architecture: str, recipe: Recipe, fingerprint: str) -> str:
    """What a state file says of the run that it is of; a run goes on from none but its own."""
    return json.dumps([STATE_VERSION, PREPROCESS_VERSION, architecture, fingerprint, recipe.by_content()])


def resumable(architecture: str, last: Path, identity: str) -> int:
    """How many epochs of this very run a state file holds, which is told; without any, what other runs were stopped in
    the folder: their epochs wait for a command with their settings."""
    start, found = _state(last)
    if start and found == identity:
        say(f"{architecture}: resuming after epoch {start}")
        return start
    for file in sorted(last.parent.glob("last*.ckpt")):  # not before: each is read to its end
        epochs, theirs = _state(file)
        if epochs:
            say(f"{file} keeps {epochs} epochs of a run {_difference(theirs, identity)}; this one begins at the first")
    return 0


def _state(file: Path) -> tuple[int, str]:
    """How many epochs a state file holds, and of which run."""
    try:
        with zipfile.ZipFile(file) as archive:  # it is not waited for until it is on the disk
            if archive.testzip():
                return 0, ""
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return int(content["epoch"]) + 1, str(content["identity"])
    except Exception:  # missing, damaged or of another version of Lightning: begin anew
        return 0, ""


def _difference(theirs: str, ours: str) -> str:
    """What makes a run another than ours, by their identities."""
    try:
        (*code, photos, recipe), (*our_code, our_photos, settings) = json.loads(theirs), json.loads(ours)
        other = [f"{name} {recipe.get(name)!r:.20}" for name in settings if recipe.get(name) != settings[name]]
    except (AttributeError, TypeError, ValueError):
        code, our_code = [], ["of today"]
    if code != our_code:
        return "by another saji, which cannot go on"
    what = [*(["other photos"] if photos != our_photos else []), *other]
    return f"with {', '.join(what)}, which goes on with the same"
