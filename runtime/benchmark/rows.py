"""Benchmark rows: flat JSON lines that carry their conditions."""

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime import environment
from runtime.benchmark.contestant import Contestant
from runtime.benchmark.scenarios import ON_DEVICE, SCENARIOS, Measurement
from runtime.benchmark.watch import Disturbance, causes_of
from runtime.errors import SajiError
from runtime.files import DAMAGE, as_text, in_words, make_folder, naming, parse_json, require_regular
from runtime.receipt import Receipt
from runtime.speed_ratio import percentile

SCHEMA_VERSION = 2
UNSTABLE = 0.25  # spread (p75 − p25) / median above which a figure is marked as unstable
TAILS = (90, 95, 99)

Row = dict[str, Any]


def rows_of(contestant: Contestant, receipt: Receipt, experiment: str, seconds: float) -> list[Row]:
    """One row per scenario and batch size of a contestant that was measured."""
    conditions = conditions_of(contestant, receipt, experiment)
    rows = []
    for (scenario, batch), measurements in sorted(contestant.measurements.items()):
        figures = measurements[-1].figures or {"budget_seconds": seconds, **_latency(measurements, batch)}
        load = {"scenario": scenario, "timed": SCENARIOS[scenario].timed, "batch": batch}
        rows.append({**conditions, **load, **figures})
    return rows


def _latency(measurements: Sequence[Measurement], batch: int) -> dict[str, Any]:
    """Milliseconds of all calls and what they are made of, memory, and likely causes where they do not repeat."""
    samples = [value for measurement in measurements for value in measurement.samples]
    low, median, high = (float(value) for value in np.quantile(samples, (0.25, 0.5, 0.75)))
    device = [value for measurement in measurements for value in measurement.device]
    parts = [measurement.parts for measurement in measurements]
    tails = {f"p{percent}": percentile(samples, percent) for percent in TAILS}
    unstable, last = (high - low) / median > UNSTABLE, measurements[-1]
    disturbances = [measurement.disturbance for measurement in measurements if measurement.disturbance]
    return {
        "rounds": len(measurements),
        "milliseconds": round(median, 4),
        "p25": round(low, 4),
        "p75": round(high, 4),
        **{name: value and round(value, 4) for name, value in tails.items()},
        "milliseconds_device": round(statistics.median(device), 4) if device else None,
        "timed_device": ON_DEVICE if device else None,
        "unstable": unstable,
        "causes": causes_of(disturbances) if unstable else [],
        "parts": {name: round(statistics.median(part[name] for part in parts), 4) for name in parts[0]},
        "images_per_second": round(1000 * batch / median, 2),
        "load_seconds": round(last.load_seconds, 3),
        "peak_memory_mib": last.peak_memory_mib,
        "gpu_memory_mib": last.gpu_memory_mib,
        **_of_gpu(disturbances),
        "samples": [[round(value, 4) for value in measurement.samples] for measurement in measurements],
    }


def _of_gpu(disturbances: Sequence[Disturbance]) -> dict[str, Any]:
    """What the GPU ran under and what held it back, also where that was so all the time; empty without a GPU."""
    told = [measured.gpu_conditions for measured in disturbances if measured.gpu_conditions]
    if not told:
        return {}
    clocks = [conditions["gpu_sm_mhz"] for conditions in told if "gpu_sm_mhz" in conditions]
    clock = {"gpu_sm_mhz": statistics.median(clocks)} if clocks else {}
    return {**told[-1], **clock, "gpu_held_back": sorted({why for measured in disturbances for why in measured.gpu})}


def conditions_of(contestant: Contestant, receipt: Receipt, experiment: str) -> Row:
    """What was measured and where: every setting, the file, its verdict and accuracy, the machine, the versions."""
    candidate, spec, file = contestant.candidate, receipt.spec, receipt.files[contestant.candidate.file]
    cold_starts, figures = contestant.cold_starts, ("accuracy", "accuracy_interval", "agreement", "photos")
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment,
        "architecture": candidate.architecture,
        "backend": candidate.backend,
        "precision": candidate.precision,
        "variant": candidate.variant,
        "candidate": contestant.name,
        "threads": contestant.threads or "engine default",
        "streams": contestant.streams,
        "file": candidate.file,
        "sha256": file.sha256,
        "file_bytes": file.bytes,
        "image_size": spec.geometry.size,
        "drawn": bool(spec.data.get("drawn")),
        "labelled": not spec.published,
        "data_fingerprint": spec.data.get("fingerprint"),
        "cold_start_seconds": round(statistics.median(cold_starts), 3) if cold_starts else None,
        "cold_starts": [round(seconds, 3) for seconds in cold_starts],
        **{name: getattr(candidate.figures, name, None) for name in figures},
        "verdict": candidate.verdict,
        "precision_share": candidate.precision_share,
        **environment.stamp(),
    }


def per_round(row: Row) -> list[float]:
    """The median milliseconds of each round of a row: what `runtime.speed_ratio.compared` pairs."""
    return [statistics.median(samples) for samples in row["samples"]]


def append_rows(path: Path, rows: list[Row]) -> None:
    """Add rows to a JSON lines file, all or none; a last one that is half-written, as by a kill, goes.

    Whatever else the file holds stays there. Raises SajiError where it is no regular file.
    """
    require_regular(path)
    make_folder(path.parent)
    with naming(path), open(path, "a+b", buffering=0) as file:
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        try:
            json.loads(content[whole:] or b"{}")
        except ValueError:
            if content.startswith(b'{"', whole):
                file.truncate(whole)
                content = content[:whole]
        ended = b"" if content.endswith(b"\n") or not content else b"\n"
        left = memoryview(ended + as_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)).encode())
        try:
            while left:  # a disk takes what it has room for
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(len(content))
            raise


def require_appendable(path: Path) -> None:
    """Raise SajiError or OSError where no rows can be added to a file, as to what holds anything else.

    None stays behind that was not there.
    """
    require_regular(path)
    make_folder(path.parent)
    there = path.exists()
    with open(path, "a+b") as file:
        file.seek(0)
        if not _is_of_rows(file.readline()):
            raise SajiError(f"{path} holds something else than rows of experiments; name another file")
    if not there:
        path.unlink()


def _is_of_rows(first: bytes) -> bool:
    """Whether a file that begins with this line has our rows: all name their experiment; none is there yet, or half."""
    try:
        return "experiment" in dict(parse_json(first or b'{"experiment": ""}'))
    except DAMAGE:
        return first.startswith(b'{"') and not first.endswith(b"\n")  # which goes: see `append_rows`


def read_rows(path: Path) -> list[Row]:
    """Read a JSON lines file. Raises SajiError that names the line where one is damaged."""
    return [_row(path, n, line) for n, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        return dict(json.loads(line))
    except DAMAGE as error:
        raise SajiError(f"{path}, line {number}, is no row ({in_words(error)}); remove that line") from None
