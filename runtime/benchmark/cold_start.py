"""`python -m runtime.benchmark.cold_start`: from starting a process to the first label, against PyTorch's start."""

import argparse
import json
from pathlib import Path

from runtime.benchmark.ratio import compare
from runtime.benchmark.rows import append_rows
from runtime.deployment import Deployment
from runtime.errors import SajiError, exit_with_one_sentence
from runtime.files import sha256_file
from runtime.receipt import Receipt

_OURS = "import runtime, sys; print(runtime.load(sys.argv[1])(sys.argv[2]).label)"
# PyTorch's side does not even classify: importing it and loading the checkpoint is the bar
_THEIRS = (
    "import pathlib, sys, torch; from training.classifier import load_checkpoint; "
    "load_checkpoint(pathlib.Path(sys.argv[1]))"
)


def main() -> None:
    """Compare the deployed choice's cold start with `import torch` and loading its checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m runtime.benchmark.cold_start", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")
    parser.add_argument("--rounds", type=int, default=5, help="counted pairs of runs")
    parser.add_argument("--rows", type=Path, help="append the row to this .jsonl")
    arguments = parser.parse_args()
    deployment = Deployment.read(arguments.out / "deployment.json")
    folder = arguments.out / deployment.choice.folder
    checkpoint = _checkpoint(arguments.out, Receipt.read(folder))
    photo = sorted((folder / "examples").glob("*.png"))[0]
    row = compare(
        f"cold start to the first label ({deployment.choice.candidate.name}) against import torch + checkpoint",
        ["-c", _OURS, str(arguments.out / "deployment.json"), str(photo)],
        ["-c", _THEIRS, str(checkpoint)],
        target=4.0,
        rounds=arguments.rounds,
        measure="wall",
    )
    if arguments.rows:
        append_rows(arguments.rows, [row])
    print(json.dumps(row))


def _checkpoint(out: Path, receipt: Receipt) -> Path:
    for path in sorted(out.glob(f"runs/*/{receipt.spec.architecture}/checkpoint.pt")):
        if sha256_file(path) == receipt.checkpoint_sha256:
            return path
    raise SajiError(f"the checkpoint that {receipt.spec.name} was exported from is not in {out / 'runs'}; train again")


if __name__ == "__main__":
    exit_with_one_sentence(main)
