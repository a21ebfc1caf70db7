"""The claims about speed, each a ratio of pairs of runs, one after the other.

It takes an OUT folder with a benchmark of `resnet34`, at 224 px for the claims as they are worded, and any other
networks.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lab.claims import workloads
from lab.claims.comparison import WALL, Claim, compare, in_process
from runtime import golden, load
from runtime.benchmark.rows import Row, read_rows
from runtime.benchmark.table import pytorch_beside
from runtime.deployment import Deployment
from runtime.errors import SajiError
from runtime.files import sha256_file
from runtime.receipt import Receipt

NETWORK = "resnet34"
PHOTOS, LARGE_PHOTOS = 1000, 60  # in a folder


@dataclass(frozen=True)
class Benchmarked:
    """Artefacts with the single-stream rows of batch 1 of their last benchmark that passed, and a folder for photos.

    `rows` are those of NETWORK, `best` the fastest of them and `torch` the fastest in PyTorch on the same device;
    `accurate` is the fastest of any network within a point of the best accuracy, `fastest` that of each network.
    """

    out: Path
    scratch: Path
    rows: list[Row]
    best: Row
    torch: Row
    accurate: Row
    fastest: list[Row]

    @classmethod
    def read(cls, out: Path, scratch: Path) -> "Benchmarked":
        """Raises SajiError where OUT/bench.jsonl has no row of NETWORK."""
        path = out / "bench.jsonl"
        rows = read_rows(path) if path.is_file() else []
        rows = [row for row in rows if (row["scenario"], row["batch"], row["verdict"]) == ("single-stream", 1, "pass")]
        last = {row["candidate"]: row for row in rows}
        of_network = [row for row in last.values() if row["architecture"] == NETWORK]
        if not of_network:
            make = f"make train export bench ARCHS={NETWORK}"
            raise SajiError(f"{path} holds no benchmark of {NETWORK}; run one with: {make}")
        least = max(row["accuracy"] for row in last.values()) - 0.01
        best = _fastest(of_network)
        torch = _fastest(row for row in of_network if row["backend"] == pytorch_beside(best))
        accurate = _fastest(row for row in last.values() if row["accuracy"] >= least - 1e-9)
        names = sorted({row["architecture"] for row in last.values()})
        fastest = [_fastest(row for row in last.values() if row["architecture"] == name) for name in names]
        return cls(out, scratch, of_network, best, torch, accurate, fastest)

    @property
    def folder(self) -> str:
        """The model folder of NETWORK."""
        return str(self.out / "models" / NETWORK)

    @property
    def where(self) -> str:
        """What most claims are about."""
        return f"{NETWORK} at {self.best['image_size']} px, batch 1: {self.best['candidate']}"

    def place(self, row: Row) -> tuple[str, str]:
        """The model folder and the candidate of a row."""
        return str(self.out / "models" / row["architecture"]), row["candidate"]

    def engine(self, row: Row) -> list[str]:
        """The process that measures the row's candidate from pixels to logits."""
        return in_process(workloads.engine, *self.place(row))

    def photo(self, width: int, height: int) -> Path:
        """A JPEG of that size."""
        return write_photo(Path(self.folder), self.scratch / f"{width}.jpg", width, height, 0)


def _fastest(rows: Iterable[Row]) -> Row:
    return min(rows, key=lambda row: float(row["milliseconds"]))


def _beside_pytorch(bench: Benchmarked) -> Iterator[Claim]:
    ours, theirs = bench.engine(bench.best), bench.engine(bench.torch)
    yield Claim(f"{bench.where}, against {bench.torch['candidate']}", 5, ours, theirs)


def _beside_onnxruntime(bench: Benchmarked) -> Iterator[Claim]:
    theirs = in_process(workloads.engine, bench.folder, f"{NETWORK} · ort-cpu · fp32")
    yield Claim(f"{bench.where}, against ONNX Runtime FP32 with its defaults", 3, bench.engine(bench.best), theirs)


def _beside_loadgen(bench: Benchmarked) -> Iterator[Claim]:
    place = bench.place(bench.accurate)
    ours, theirs = (in_process(function, *place) for function in (workloads.single_stream, workloads.loadgen))
    text = f"{bench.accurate['candidate']}, p90 of a single stream by our loop, against MLPerf's LoadGen"
    yield Claim(text, 0.9, ours, theirs, "p90_ms", less_is_better=True)


def _beside_trtexec(bench: Benchmarked) -> Iterator[Claim]:
    """Each engine's rate by our loop against NVIDIA's tool, where the tool is found."""
    for row in bench.rows:
        if (tool := workloads.TRTEXEC.get(row["backend"])) and shutil.which(tool):
            theirs = in_process(workloads.trtexec, *bench.place(row))
            yield Claim(f"{row['candidate']} by our loop, against {tool}", 0.9, bench.engine(row), theirs)


def _familiarity(bench: Benchmarked) -> Iterator[Claim]:
    """What a model's second output costs, in the engines of ONNX files."""
    for row in bench.fastest:
        theirs = in_process(workloads.without_familiarity, *bench.place(row))
        text = f"{row['candidate']} at {row['image_size']} px with familiarity, against its file without"
        yield Claim(text, 0.95, bench.engine(row), theirs)


def _share_of_the_limit(bench: Benchmarked) -> Iterator[Claim]:
    text = f"{bench.where}, share of an INT8 matrix product's multiply-adds a second"
    ours, peak = bench.engine(bench.best), in_process(workloads.int8_peak)
    yield Claim(text, 0.75, ours, peak, "multiply_adds_per_second")


def _best_network(bench: Benchmarked) -> Iterator[Claim]:
    best, torch = bench.accurate, bench.torch
    text = f"best within a point of the best accuracy ({best['candidate']} at {best['image_size']} px), against "
    text += f"{torch['candidate']} at {torch['image_size']} px"
    yield Claim(text, 15, bench.engine(best), bench.engine(torch))


def _photo(bench: Benchmarked, width: int, height: int, target: float) -> Iterator[Claim]:
    path = bench.photo(width, height)
    text = f"JPEG of {width}×{height}, {path.stat().st_size / 1e6:.1f} MB, to label with {bench.best['candidate']}"
    text += ", against torchvision's decode and v2 transforms with eager PyTorch"
    ours = in_process(workloads.photo, *bench.place(bench.best), str(path))
    yield Claim(text, target, ours, in_process(workloads.torchvision_photo, bench.folder, str(path)))


def _first_label(bench: Benchmarked, measure: str, target: float) -> Iterator[Claim]:
    deployed = bench.out / "deployment.json"
    require_choice(deployed)
    choice = Deployment.read(deployed).choice
    photo = str(bench.out / choice.folder / golden.PHOTO)
    checkpoint = _checkpoint(bench.out, Receipt.read(bench.out / choice.folder))
    ours = in_process(workloads.first_label, str(deployed), photo)
    theirs = in_process(workloads.first_label_of_checkpoint, str(checkpoint), photo)
    text = f"cold start to the first label ({choice.name}) against import torch, checkpoint, first label"
    text = text if measure == WALL else f"memory at its peak: {text}"
    yield Claim(text, target, ours, theirs, measure, less_is_better=True)


def require_choice(path: Path) -> None:
    """Open what the deployment at `path` serves here. Raises SajiError where that is not its choice.

    The figures would be another engine's.
    """
    choice = Deployment.read(path).choice.name
    with load(path) as classifier:
        if classifier.candidate.name != choice:
            raise SajiError(
                f"{path} chooses {choice}, but {classifier.candidate.name} serves here, whose figures would be "
                "another's; check and benchmark on this machine with: make bench ARGS=--force"
            )


def _checkpoint(out: Path, receipt: Receipt) -> Path:
    for path in sorted(out.glob(f"runs/*/{receipt.spec.architecture}/checkpoint.pt")):
        if sha256_file(path) == receipt.checkpoint_sha256:
            return path
    raise SajiError(f"the checkpoint that {receipt.spec.name} was exported from is not in {out / 'runs'}; train again")


def _offline(bench: Benchmarked) -> Iterator[Claim]:
    photos = bench.scratch / "photos"
    photos.mkdir()
    for number in range(PHOTOS):
        write_photo(Path(bench.folder), photos / f"{number:04}.jpg", 512, 384, number)
    text = f"{PHOTOS:,} JPEGs of 512×384 with {bench.best['candidate']}, against a DataLoader and eager PyTorch"
    ours = in_process(workloads.photos_of_folder, *bench.place(bench.best), str(photos))
    yield Claim(text, 4, ours, in_process(workloads.dataloader, bench.folder, str(photos)))


# What `runtime` does to be faster, with it and without it


def _alone(bench: Benchmarked) -> Iterator[Claim]:
    for row in (row for row in bench.fastest if row["backend"] == "openvino"):
        theirs = in_process(workloads.for_any_number, *bench.place(row))
        text = f"{row['candidate']} at {row['image_size']} px compiled for one photo, against for any number"
        yield Claim(text, 1, bench.engine(row), theirs)


def _scaled_decode(bench: Benchmarked) -> Iterator[Claim]:
    work = *bench.place(bench.best), str(bench.photo(4000, 3000))
    ours, theirs = (in_process(workloads.photo, *work, whole) for whole in (False, True))
    yield Claim("12-megapixel JPEG to label: decode at the scale that the network needs", 1, ours, theirs)


def _crop_first(bench: Benchmarked) -> Iterator[Claim]:
    path = str(bench.photo(6000, 1000))
    ours, theirs = (in_process(workloads.resizing, bench.folder, path, crop_first) for crop_first in (True, False))
    yield Claim("resize of a 6:1 panorama: only what the crop keeps", 1, ours, theirs)


def _photo_a_core(bench: Benchmarked) -> Iterator[Claim]:
    photos, photo = bench.scratch / "large", bench.photo(4000, 3000)
    photos.mkdir()
    for number in range(LARGE_PHOTOS):
        (photos / f"{number}.jpg").hardlink_to(photo)
    work = *bench.place(bench.best), str(photos)
    ours, theirs = (in_process(workloads.photos_of_folder, *work, core_each) for core_each in (True, False))
    yield Claim(f"{LARGE_PHOTOS} JPEGs of 12 megapixels to labels: a core for each photo", 1, ours, theirs)


def write_photo(model: Path, path: Path, width: int, height: int, seed: int) -> Path:
    """The golden JPEG in another size, with grain as a camera's: a smooth picture would be decoded too easily."""
    picture = Image.open(model / golden.PHOTO).convert("RGB").resize((width, height))
    grain = np.random.default_rng(seed).normal(0, 6, (height, width, 1))
    noisy = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=90)
    return path


KEPT = {"scaled decode": _scaled_decode, "crop first": _crop_first, "photo a core": _photo_a_core}
CLAIMS: dict[str, Callable[[Benchmarked], Iterator[Claim]]] = {
    "pytorch": _beside_pytorch,
    "onnxruntime": _beside_onnxruntime,
    "loadgen": _beside_loadgen,
    "trtexec": _beside_trtexec,
    "familiarity": _familiarity,
    "alone": _alone,
    "limit": _share_of_the_limit,
    "best": _best_network,
    "large photo": partial(_photo, width=4000, height=3000, target=5.5),
    "small photo": partial(_photo, width=512, height=384, target=4.5),
    "cold start": partial(_first_label, measure=WALL, target=6),
    "memory": partial(_first_label, measure="peak_memory_mib", target=4),
    "offline": _offline,
    **KEPT,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and on what."""
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")
    names = ", ".join(f'"{name}"' for name in CLAIMS)
    parser.add_argument("--only", nargs="+", default=[*CLAIMS], choices=CLAIMS, metavar="CLAIM", help=f"of {names}")
    parser.add_argument("--rounds", type=int, default=5, help="counted pairs of runs (5)")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each claim."""
    with tempfile.TemporaryDirectory() as scratch:
        bench = Benchmarked.read(arguments.out, Path(scratch))
        for name in arguments.only:
            for claim in CLAIMS[name](bench):
                yield compare(claim, arguments.rounds)
