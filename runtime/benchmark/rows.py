"""Benchmark rows: flat JSON lines that carry their conditions."""

import json
import statistics
from pathlib import Path
from typing import Any

from runtime import environment
from runtime.benchmark.rounds import Entrant
from runtime.receipt import Receipt

SCHEMA_VERSION = 1
SCENARIO = "single stream, inference only: uint8 batch in host memory to float32 logits in host memory"
UNSTABLE = 0.25  # spread (p75 − p25) / median above which a figure is marked as unstable

Row = dict[str, Any]


def rows_of(entrant: Entrant, receipt: Receipt, experiment: str, seconds: float) -> list[Row]:
    """One row per batch size of an entrant that ran."""
    candidate, stamp = entrant.candidate, environment.stamp()
    rows = []
    for batch, rounds in sorted(entrant.samples.items()):
        samples = [value for round_samples in rounds for value in round_samples]
        low, median, high = statistics.quantiles(samples, n=4)
        rows.append(
            {
                "schema_version": SCHEMA_VERSION,
                "experiment": experiment,
                "architecture": candidate.architecture,
                "backend": candidate.backend,
                "precision": candidate.precision,
                "variant": candidate.variant,
                "candidate": candidate.name,
                "file": candidate.file,
                "sha256": receipt.files[candidate.file]["sha256"],
                "file_bytes": receipt.files[candidate.file]["bytes"],
                "image_size": receipt.spec.geometry.size,
                "drawn": bool(receipt.spec.data.get("drawn")),
                "data_fingerprint": receipt.spec.data.get("fingerprint"),
                "scenario": SCENARIO,
                "batch": batch,
                "threads": entrant.threads or "engine default",
                "budget_seconds": seconds,
                "rounds": len(rounds),
                "milliseconds": round(median, 4),
                "p25": round(low, 4),
                "p75": round(high, 4),
                "unstable": (high - low) / median > UNSTABLE,
                "images_per_second": round(1000 * batch / median, 2),
                "accuracy": candidate.figures.get("accuracy"),
                "accuracy_interval": candidate.figures.get("accuracy_interval"),
                "agreement": candidate.figures.get("agreement"),
                "photos": candidate.figures.get("photos"),
                "verdict": candidate.verdict,
                "precision_share": candidate.precision_share,
                "load_seconds": round(entrant.facts["load_seconds"], 3),
                "peak_memory_mib": entrant.facts["peak_memory_mib"],
                **stamp,
                "samples": [[round(value, 4) for value in round_samples] for round_samples in rounds],
            }
        )
    return rows


def append_rows(path: Path, rows: list[Row]) -> None:
    """Add rows to a JSON lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Read a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
