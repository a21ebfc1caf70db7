"""`python -m lab.claims.tried`: each way to be faster that was tried, with it and without it by turns.

What is kept is how `runtime` works; what is not kept exists in this file alone, together with the reason. It takes the
models of an OUT folder, ResNet-34 and EfficientNet-Lite0.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lab.claims.loops import rate
from lab.claims.ratio import compare
from lab.claims.speed import write_photo
from runtime import golden, preprocess
from runtime.benchmark.rows import append_rows
from runtime.classifier import load
from runtime.classify import answers, in_order
from runtime.command_line import exit_with_one_sentence
from runtime.environment import usable_cores
from runtime.errors import SajiError
from runtime.receipt import Receipt

SMALL, LARGE = "efficientnet_lite0", "resnet34"
FOLDER = 60  # photos


@dataclass(frozen=True)
class Work:
    """What a run works with: the folder of models, and one for files that both sides share."""

    models: Path
    scratch: Path

    def photo(self, width: int, height: int) -> Path:
        """A JPEG of that size, drawn by whoever asks first: the pair of runs that is not counted."""
        path = self.scratch / f"{width}×{height}.jpg"
        return path if path.is_file() else write_photo(self.models / SMALL, path, width, height, 0)

    def folder(self) -> list[str]:
        """Photos of 12 megapixels, as a phone takes them."""
        return [str(self.photo(4000, 3000))] * FOLDER

    def images(self, network: str, batch: int) -> np.ndarray:
        """Black photos of the network's size, uint8 `[batch, S, S, 3]`."""
        size = Receipt.read(self.models / network).spec.geometry.size
        return np.zeros((batch, size, size, 3), np.uint8)


Run = Callable[[bool, Work], dict[str, float]]


@dataclass(frozen=True)
class Tried:
    """An idea in words, and `run(with_it, work)`, which gives what `measure` names: "wall" or a key of its answer.

    `why_not` says why it is not kept; of what is kept it is empty.
    """

    text: str
    run: Run
    why_not: str = ""
    measure: str = "per_second"


def scaled_decode(with_it: bool, work: Work) -> dict[str, float]:
    """A 12-megapixel JPEG to its label, decoded at the scale that the network needs, or whole."""
    encoded = work.photo(4000, 3000).read_bytes()
    with load(work.models / SMALL) as classifier:
        if not with_it:
            whole = replace(classifier.spec.geometry, decode="full")
            classifier.spec = replace(classifier.spec, geometry=whole)
        return {"per_second": rate(lambda: classifier(encoded))}


def another_decoder(with_it: bool, work: Work) -> dict[str, float]:
    """The same with simplejpeg's binding of libjpeg-turbo, or Pillow's. Raises SajiError without simplejpeg."""
    try:
        import simplejpeg
    except ImportError:
        raise SajiError("simplejpeg is missing; install it for this comparison with: pip install simplejpeg") from None
    encoded = work.photo(4000, 3000).read_bytes()
    with load(work.models / SMALL) as classifier:
        least = {f"min_{side}": classifier.spec.geometry.resize for side in ("height", "width")}
        decode = partial(simplejpeg.decode_jpeg, encoded, **least)
        return {"per_second": rate(lambda: classifier(decode() if with_it else encoded))}


def crop_first(with_it: bool, work: Work) -> dict[str, float]:
    """The geometry of a panorama: resizing what the crop keeps, or everything and cropping then."""
    with load(work.models / SMALL) as classifier:
        geometry = classifier.spec.geometry
    picture = preprocess.decode_for(work.photo(6000, 1000), geometry)

    def everything() -> np.ndarray:
        shorter = min(picture.size)
        width, height = (max(geometry.resize, round(side * geometry.resize / shorter)) for side in picture.size)
        resized = picture.resize((width, height), preprocess.FILTERS[geometry.interpolation])
        left, top = (width - geometry.size) // 2, (height - geometry.size) // 2
        return np.asarray(resized.crop((left, top, left + geometry.size, top + geometry.size)))

    return {"per_second": rate(partial(preprocess.fit, picture, geometry) if with_it else everything)}


def photo_a_core(with_it: bool, work: Work) -> dict[str, float]:
    """A folder: each core takes a photo from file to label, or all cores one photo after another."""
    if not with_it:
        return _folder(work, map)
    with load(work.models / SMALL, threads=1, streams=usable_cores()) as classifier:
        return _timed(answers(classifier, work.folder()))


def decode_ahead(with_it: bool, work: Work) -> dict[str, float]:
    """A folder: decoded in threads ahead of inference on all cores, or each photo before its inference."""
    return _folder(work, in_order if with_it else map)


def batches(with_it: bool, work: Work) -> dict[str, float]:
    """A folder, decoded ahead: 16 photos to a call, or one."""
    return _folder(work, in_order, 16 if with_it else 1)


def _folder(work: Work, looked: Callable[..., Iterable[np.ndarray]], batch: int = 1) -> dict[str, float]:
    with load(work.models / SMALL) as classifier:
        images = iter(looked(lambda path: preprocess.pixels(path, classifier.spec.geometry), work.folder()))
        calls = iter(lambda: [*islice(images, batch)], [])
        return _timed(classifier.predict(np.stack(call)) for call in calls)


def _timed(answered: Iterable[object]) -> dict[str, float]:
    started = time.perf_counter()
    for _ in answered:
        pass
    return {"per_second": FOLDER / (time.perf_counter() - started)}


def spinning(with_it: bool, work: Work) -> dict[str, float]:
    """ONNX Runtime's threads busy while they wait for work, or asleep."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(with_it)))
    session = onnxruntime.InferenceSession(str(work.models / SMALL / "model.onnx"), options, ["CPUExecutionProvider"])
    return {"per_second": rate(partial(session.run, None, {"images": work.images(SMALL, 1)}))}


def graph_saved(with_it: bool, work: Work) -> dict[str, float]:
    """From nothing to the first logits with ONNX Runtime: a graph that was optimised before, or the one that ships."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    model, saved = work.models / LARGE / "model.onnx", work.scratch / "saved.onnx"
    if with_it and saved.is_file():
        model, options.graph_optimization_level = saved, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif with_it:
        options.optimized_model_filepath = str(saved)
    session = onnxruntime.InferenceSession(str(model), options, ["CPUExecutionProvider"])
    session.run(None, {"images": work.images(LARGE, 1)})
    return {}


def model_cache(with_it: bool, work: Work) -> dict[str, float]:
    """From nothing to the first logits with OpenVINO: from its cache of compiled models, or compiled."""
    compiled = _compiled(work.models / LARGE / "model.int8.onnx", CACHE_DIR=str(work.scratch) if with_it else "")
    compiled.create_infer_request().infer([work.images(LARGE, 1)])
    return {}


def zero_copy(with_it: bool, work: Work) -> dict[str, float]:
    """OpenVINO reads the photos where they are, or from a copy that it makes; 16 in a call."""
    request, images = _compiled(work.models / SMALL / "model.onnx").create_infer_request(), work.images(SMALL, 16)
    return {"per_second": rate(lambda: request.infer([images], share_inputs=with_it, share_outputs=False))}


def pinned(with_it: bool, work: Work) -> dict[str, float]:
    """OpenVINO's threads each bound to a core, or where the system puts them."""
    request = _compiled(work.models / SMALL / "model.onnx", ENABLE_CPU_PINNING=with_it).create_infer_request()
    images = work.images(SMALL, 1)
    return {"per_second": rate(lambda: request.infer([images], share_inputs=True, share_outputs=False))}


def _compiled(path: Path, **settings: Any) -> Any:
    import openvino

    settings |= {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(path, "CPU", settings)


_UNJUDGED = "what is opened is not the file that was judged, and fits one processor and version only"
_FOLDER = f"{FOLDER} JPEGs of 12 megapixels to labels"
IDEAS: dict[str, Tried] = {
    "scaled decode": Tried("12-megapixel JPEG to label: decode at the scale that the network needs", scaled_decode),
    "another decoder": Tried("12-megapixel JPEG to label: simplejpeg in place of Pillow", another_decoder, "a tie"),
    "crop first": Tried("resize of a 6:1 panorama: only what the crop keeps", crop_first),
    "photo a core": Tried(f"{_FOLDER}: a core for each photo", photo_a_core),
    "decode ahead": Tried(f"{_FOLDER}: decode ahead of inference", decode_ahead, "a core for each photo gains more"),
    "batches": Tried(f"{_FOLDER}, decoded ahead: 16 in a call", batches, "a row would wait for 15 others"),
    "spinning": Tried(
        "ONNX Runtime, batch 1: threads spin while they wait", spinning, "a tie; left to its default, on"
    ),
    "graph saved": Tried("ONNX Runtime, start to logits: a graph optimised before", graph_saved, _UNJUDGED, "wall"),
    "model cache": Tried("OpenVINO INT8, start to logits: its model cache", model_cache, _UNJUDGED, "wall"),
    "zero copy": Tried("OpenVINO, batch 16: photos read where they are", zero_copy, "a tie"),
    "pinned": Tried("OpenVINO, batch 1: threads bound to cores", pinned, "a tie; left as it comes"),
}


def main() -> None:
    """Try all ideas, or those named, and append a row for each."""
    parser = argparse.ArgumentParser(prog="python -m lab.claims.tried", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")
    parser.add_argument("--only", nargs="+", choices=IDEAS, default=[*IDEAS], metavar="IDEA", help="try these alone")
    parser.add_argument("--rounds", type=int, default=5, help="counted pairs of runs")
    parser.add_argument("--rows", type=Path, help="append the rows to this .jsonl")
    parser.add_argument("--run", nargs=2, metavar=("SIDE", "SCRATCH"), help=argparse.SUPPRESS)  # one side, once
    arguments = parser.parse_args()
    models = arguments.out / "models"
    if arguments.run:
        side, scratch = arguments.run
        print(json.dumps(IDEAS[arguments.only[0]].run(side == "with", Work(models, Path(scratch)))))
        return
    for network in (SMALL, LARGE):
        if not (models / network / golden.PHOTO).is_file():
            raise SajiError(f"{models} holds no {network}; export one with: make train export ARCHS={network}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only:
            idea = IDEAS[name]
            command = ["-m", __spec__.name, "--out", str(arguments.out), "--only", name, "--run"]
            ours, theirs = ([*command, side, scratch] for side in ("with", "without"))
            lower = idea.measure == "wall"
            row = compare(idea.text, ours, theirs, 1, arguments.rounds, idea.measure, less_is_better=lower)
            row |= {"experiment": "tried", "idea": name, "why_not": idea.why_not}
            if arguments.rows:
                append_rows(arguments.rows, [row])
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    exit_with_one_sentence(main)
