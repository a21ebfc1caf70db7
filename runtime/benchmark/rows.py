"""Benchmark rows: flat JSON lines that carry their conditions."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from runtime import environment
from runtime.benchmark.disturbance import disturbed_by
from runtime.benchmark.rounds import Entrant
from runtime.benchmark.scenarios import ON_DEVICE, SCENARIOS
from runtime.comparison import percentile
from runtime.receipt import Receipt

SCHEMA_VERSION = 2
UNSTABLE = 0.25  # spread (p75 − p25) / median above which a figure is marked as unstable
TAILS = (90, 95, 99)
_FIGURES = ("accuracy", "accuracy_interval", "agreement", "photos")

Row = dict[str, Any]


def rows_of(entrant: Entrant, receipt: Receipt, experiment: str, seconds: float) -> list[Row]:
    """One row per scenario and batch size of an entrant that ran."""
    conditions = conditions_of(entrant, receipt, experiment)
    return [
        {
            **conditions,
            "scenario": scenario,
            "timed": SCENARIOS[scenario].timed,
            "batch": batch,
            "budget_seconds": seconds,
            **_figures(turns, batch),
        }
        for (scenario, batch), turns in sorted(entrant.turns.items())
    ]


def server_row(entrant: Entrant, receipt: Receipt, experiment: str, held: dict[str, Any]) -> Row:
    """The row of the server scenario: what `runtime.benchmark.scenarios.highest_rate` found."""
    return {
        **conditions_of(entrant, receipt, experiment),
        "scenario": "server",
        "timed": "inference only, Poisson arrivals: from a query's arrival to its logits, waiting included",
        "batch": 1,
        **held,
    }


def _figures(turns: list[dict[str, Any]], batch: int) -> Row:
    samples = [value for turn in turns for value in turn["samples"]]
    low, median, high = (float(value) for value in np.quantile(samples, (0.25, 0.5, 0.75)))
    parts = [turn["parts"] for turn in turns if "parts" in turn]
    device = [value for turn in turns for value in turn.get("device", ())]
    tails = {f"p{percent}": percentile(samples, percent) for percent in TAILS}
    unstable = (high - low) / median > UNSTABLE
    return {
        "rounds": len(turns),
        "milliseconds": round(median, 4),
        "p25": round(low, 4),
        "p75": round(high, 4),
        **{name: value and round(value, 4) for name, value in tails.items()},
        "milliseconds_device": round(statistics.median(device), 4) if device else None,
        "timed_device": ON_DEVICE if device else None,
        "unstable": unstable,
        "causes": disturbed_by(turn["meanwhile"] for turn in turns) if unstable else [],
        "parts": {name: round(statistics.median(part[name] for part in parts), 4) for name in parts[0]}
        if parts
        else {},
        "images_per_second": round(1000 * batch / median, 2),
        "load_seconds": round(turns[-1]["load_seconds"], 3),
        "peak_memory_mib": turns[-1]["peak_memory_mib"],
        "gpu_memory_mib": turns[-1].get("gpu_memory_mib"),
        "samples": [[round(value, 4) for value in turn["samples"]] for turn in turns],
    }


def conditions_of(entrant: Entrant, receipt: Receipt, experiment: str) -> Row:
    """What was measured and where: every knob, the file, its verdict and accuracy, the machine, the versions."""
    candidate, spec = entrant.candidate, receipt.spec
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment,
        "architecture": candidate.architecture,
        "backend": candidate.backend,
        "precision": candidate.precision,
        "variant": candidate.variant,
        "candidate": entrant.name,
        "threads": entrant.threads or "engine default",
        "streams": entrant.streams,
        "file": candidate.file,
        "sha256": receipt.files[candidate.file].sha256,
        "file_bytes": receipt.files[candidate.file].bytes,
        "image_size": spec.geometry.size,
        "drawn": bool(spec.data.get("drawn")),
        "data_fingerprint": spec.data.get("fingerprint"),
        "cold_start_seconds": round(statistics.median(entrant.cold_starts), 3) if entrant.cold_starts else None,
        "cold_starts": [round(seconds, 3) for seconds in entrant.cold_starts],
        **{
            name: getattr(candidate.figures, name, None)
            for name in ("accuracy", "accuracy_interval", "agreement", "photos")
        },
        "verdict": candidate.verdict,
        "precision_share": candidate.precision_share,
        **environment.stamp(),
    }


def per_round(row: Row) -> list[float]:
    """The median milliseconds of each round of a row: what `runtime.comparison.compared` pairs."""
    return [statistics.median(samples) for samples in row["samples"]]


def append_rows(path: Path, rows: list[Row]) -> None:
    """Add rows to a JSON lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Read a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
