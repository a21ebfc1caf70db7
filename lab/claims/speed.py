"""`python -m lab.claims.speed`: the claims about speed, each a ratio of pairs of runs by turns.

It takes an OUT folder with a race of `resnet34`, at 224 px for the claims as they are worded, and any other networks.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lab.claims.loops import TRTEXEC
from lab.claims.ratio import compare
from runtime import golden, load
from runtime.benchmark.rows import Row, append_rows, read_rows
from runtime.command_line import exit_with_one_sentence
from runtime.deployment import Deployment
from runtime.errors import SajiError
from runtime.files import sha256_file
from runtime.receipt import Receipt

NETWORK = "resnet34"
PHOTOS = 1000
_LOOP = ["-m", "lab.claims.loops"]
# PyTorch's start: import, checkpoint, first label; training is not imported here, because runtime knows nothing of it
_CHECKPOINT = (
    "import json, pathlib, sys, torch; from runtime.benchmark.watch import peak_memory_mib; "
    "from runtime.preprocess import pixels; from training.network.classifier import load_checkpoint; "
    "torch.set_grad_enabled(False); model, spec = load_checkpoint(pathlib.Path(sys.argv[1])); "
    "photo = torch.from_numpy(pixels(sys.argv[2], spec.geometry).copy())[None]; "
    "spec.classes[int(model(photo).argmax())]; print(json.dumps({'peak_memory_mib': peak_memory_mib()}))"
)


@dataclass(frozen=True)
class Claim:
    """`ours` is at least `target` times as good as `theirs` by `measure`, see `lab.claims.ratio.compare`.

    `prepare` makes what both need and takes long, before they are measured.
    """

    name: str
    text: str
    target: float
    ours: list[str]
    theirs: list[str]
    measure: str = "per_second"
    less_is_better: bool = False
    prepare: Callable[[], None] = lambda: None


def main() -> None:
    """Measure all claims, or those named, and append a row for each."""
    parser = argparse.ArgumentParser(prog="python -m lab.claims.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")
    parser.add_argument("--only", nargs="+", default=[], metavar="CLAIM", help="measure these alone")
    parser.add_argument("--rounds", type=int, default=5, help="counted pairs of runs")
    parser.add_argument("--rows", type=Path, help="append the rows to this .jsonl")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        claims = list(_claims(arguments.out, Path(folder)))
        if unknown := set(arguments.only) - {claim.name for claim in claims}:
            names = ", ".join(claim.name for claim in claims)
            raise SajiError(f"there is no claim {', '.join(sorted(unknown))}; there are {names}")
        for claim in claims:
            if not arguments.only or claim.name in arguments.only:
                claim.prepare()
                row = compare(
                    claim.text,
                    claim.ours,
                    claim.theirs,
                    claim.target,
                    arguments.rounds,
                    claim.measure,
                    less_is_better=claim.less_is_better,
                )
                if arguments.rows:
                    append_rows(arguments.rows, [row])
                print(json.dumps(row), flush=True)


def _claims(out: Path, scratch: Path) -> Iterator[Claim]:
    rows = _race(out)
    of_network = [row for row in rows if row["architecture"] == NETWORK]
    best, torch = _fastest(of_network), _fastest([row for row in of_network if row["backend"] == "pytorch"])
    within = max(row["accuracy"] for row in rows) - 0.01
    of_all = _fastest([row for row in rows if row["accuracy"] >= within - 1e-9])
    folder, size = str(out / "models" / NETWORK), best["image_size"]
    ours, theirs = _engine(out, best), _engine(out, torch)
    where = f"{NETWORK} at {size} px, batch 1: {best['candidate']}"
    yield Claim("pytorch", f"{where}, against {torch['candidate']}", 5, ours, theirs)
    ort = [*_LOOP, "engine", folder, f"{NETWORK} · ort-cpu · fp32"]
    yield Claim("onnxruntime", f"{where}, against ONNX Runtime FP32 with its defaults", 3, ours, ort)
    harness = _engine(out, of_all)[-2:]
    text = f"{of_all['candidate']}, p90 of a single stream by our loop, against MLPerf's LoadGen"
    loops = [*_LOOP, "single_stream", *harness], [*_LOOP, "loadgen", *harness]
    yield Claim("loadgen", text, 0.9, *loops, "p90_ms", less_is_better=True)
    yield from _beside_trtexec(out, of_network)
    peak = "multiply_adds_per_second"
    text = f"{where}, share of an INT8 matrix product's multiply-adds a second"
    yield Claim("limit", text, 0.75, ours, [*_LOOP, "int8_peak"], peak)
    text = f"best within a point of the best accuracy ({of_all['candidate']} at {of_all['image_size']} px), against "
    text += f"{torch['candidate']} at {size} px"
    yield Claim("best", text, 15, _engine(out, of_all), theirs)
    for name, width, height, target in (("large photo", 4000, 3000, 5.5), ("small photo", 512, 384, 4.5)):
        path = write_photo(Path(folder), scratch / f"{width}.jpg", width, height, 0)
        text = f"JPEG of {width}×{height}, {path.stat().st_size / 1e6:.1f} MB, to label with {best['candidate']}"
        text += ", against torchvision's decode and v2 transforms with eager PyTorch"
        loop = [*_LOOP, "photo", folder, best["candidate"], str(path)]
        yield Claim(name, text, target, loop, [*_LOOP, "torchvision_photo", folder, str(path)])
    yield from _starts(out)
    photos = scratch / "photos"
    text = f"{PHOTOS:,} JPEGs of 512×384 with {best['candidate']}, against a DataLoader and eager PyTorch"
    loop = [*_LOOP, "folder", folder, best["candidate"], str(photos)]
    theirs = [*_LOOP, "dataloader", folder, str(photos)]
    yield Claim("offline", text, 4, loop, theirs, prepare=lambda: _write_photos(Path(folder), photos))


def _write_photos(model: Path, folder: Path) -> None:
    folder.mkdir()
    for number in range(PHOTOS):
        write_photo(model, folder / f"{number:04}.jpg", 512, 384, number)


def _beside_trtexec(out: Path, rows: list[Row]) -> Iterator[Claim]:
    """Each engine's rate by our loop against NVIDIA's tool, where the tool is found."""
    for row in rows:
        if (tool := TRTEXEC.get(row["backend"])) and shutil.which(tool):
            command = _engine(out, row)
            theirs = [*_LOOP, "trtexec", *command[-2:]]
            yield Claim("trtexec", f"{row['candidate']} by our loop, against {tool}", 0.9, command, theirs)


def require_choice(path: Path) -> None:
    """Open what the deployment at `path` serves here. Raises SajiError where that is not its choice.

    The figures would be another engine's.
    """
    choice = Deployment.read(path).choice.name
    with load(path) as classifier:
        if classifier.candidate.name != choice:
            raise SajiError(
                f"{path} chooses {choice}, but {classifier.candidate.name} serves here, whose figures would be "
                "another's; judge and race on this machine with: make bench ARGS=--force"
            )


def _starts(out: Path) -> Iterator[Claim]:
    require_choice(out / "deployment.json")
    deployment = Deployment.read(out / "deployment.json")
    folder = out / deployment.choice.folder
    photo = str(folder / golden.PHOTO)
    ours = [*_LOOP, "first_label", str(out / "deployment.json"), photo]
    theirs = ["-c", _CHECKPOINT, str(_checkpoint(out, Receipt.read(folder))), photo]
    text = f"cold start to the first label ({deployment.choice.name}) against import torch, checkpoint, first label"
    yield Claim("cold start", text, 6, ours, theirs, "wall", less_is_better=True)
    yield Claim("memory", f"memory at its peak: {text}", 4, ours, theirs, "peak_memory_mib", less_is_better=True)


def _race(out: Path) -> list[Row]:
    """The last race's single-stream rows of batch 1 in OUT/bench.jsonl that passed."""
    path = out / "bench.jsonl"
    rows = read_rows(path) if path.is_file() else []
    rows = [row for row in rows if row["scenario"] == "single-stream" and row["batch"] == 1]
    last = {row["candidate"]: row for row in rows if row["verdict"] == "pass"}
    if not any(row["architecture"] == NETWORK for row in last.values()):
        raise SajiError(f"{path} holds no race of {NETWORK}; run one with: make train export bench ARCHS={NETWORK}")
    return [*last.values()]


def _fastest(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: float(row["milliseconds"]))


def _engine(out: Path, row: Row) -> list[str]:
    return [*_LOOP, "engine", str(out / "models" / row["architecture"]), row["candidate"]]


def write_photo(model: Path, path: Path, width: int, height: int, seed: int) -> Path:
    """The golden JPEG in another size, with grain as a camera's: a smooth picture would be decoded too easily."""
    picture = Image.open(model / golden.PHOTO).convert("RGB").resize((width, height))
    grain = np.random.default_rng(seed).normal(0, 6, (height, width, 1))
    noisy = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=90)
    return path


def _checkpoint(out: Path, receipt: Receipt) -> Path:
    for path in sorted(out.glob(f"runs/*/{receipt.spec.architecture}/checkpoint.pt")):
        if sha256_file(path) == receipt.checkpoint_sha256:
            return path
    raise SajiError(f"the checkpoint that {receipt.spec.name} was exported from is not in {out / 'runs'}; train again")


if __name__ == "__main__":
    exit_with_one_sentence(main)
