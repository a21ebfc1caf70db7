"""A model's files with the geometry in the graph, checked again on its original photos.

On ONNX Runtime, which they are for, and on OpenVINO, whose Resize ignores antialiasing: the gate must refuse it there.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from export.geometry import FILES, Run, check_files, open_with_geometry, originals
from runtime.backends.base import outputs_of
from runtime.benchmark.rows import Row
from runtime.candidate import Candidate
from runtime.errors import SajiError
from runtime.evaluation import Figures, ValidationSet
from runtime.receipt import Receipt
from runtime.spec import side_by_side


def open_in_openvino(path: Path) -> Run:
    """A file with the geometry in the graph on OpenVINO in FP32: not to be used, here to show that the gate refuses."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.get_any_name() for output in compiled.outputs]

    def run(photo: np.ndarray) -> list[np.ndarray]:
        answer = compiled(photo)
        return [side_by_side(*(answer[place] for place in outputs_of(names))), answer["probabilities"]]

    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and its photos."""
    parser.add_argument("model", type=Path, help="a folder with model.json")
    parser.add_argument("data", type=Path, help="the photo set that it was trained on")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each verdict; raises SajiError where there is nothing to check or nothing to check it by."""
    folder, receipt = arguments.model, Receipt.read(arguments.model)
    validation = ValidationSet.load(folder / "validation.npz")
    checks = [candidate for candidate in receipt.candidates if candidate.file in FILES]
    photos = originals(arguments.data, validation, receipt.spec.geometry)
    if not checks or not photos:
        raise SajiError(
            f"{folder} has {len(checks)} files with the geometry in the graph and {arguments.data} {len(photos)} of "
            "its photos; export the model, and name the photo set that it was trained on"
        )
    for engine, opened in (("ort-cpu", open_with_geometry), ("openvino", open_in_openvino)):
        for check in check_files(checks, folder, receipt.spec, validation, photos, opened):
            yield _row(replace(check, backend=engine), receipt)


def _row(check: Candidate, receipt: Receipt) -> dict[str, Any]:
    row = {
        "experiment": "embed",
        "candidate": check.name,
        "file": check.file,
        "sha256": receipt.files[check.file].sha256,
        "image_size": receipt.spec.geometry.size,
        "drawn": bool(receipt.spec.data.get("drawn")),
        "data_fingerprint": receipt.spec.data.get("fingerprint"),
        "verdict": check.verdict,
        "reasons": check.reasons,
    }
    return row | (_figures(check.figures) if check.figures else {})


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "photos": figures.photos,
        "flips": len(figures.flipped),
        "largest_flip_margin": max((flip.margin for flip in figures.flipped), default=0.0),
        **{name: getattr(figures, name) for name in ("shift", "worst_shift", "largest_probability_difference")},
    }
