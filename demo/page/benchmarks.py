"""Benchmark rows that may be held against each other: those of one race, on one machine."""

from dataclasses import dataclass
from pathlib import Path

from runtime.benchmark.rows import Row, read_rows

COMMITTED = Path(__file__).resolve().parents[2] / "results"  # only a checkout has it


@dataclass(frozen=True)
class Race:
    """The rows of one race, the last of each candidate; `key` is what they have in common."""

    key: tuple[str, ...]
    rows: tuple[Row, ...]


def races(local: Path, committed: Path = COMMITTED) -> list[Race]:
    """The races of the local file of rows, which need not be there, and then of the committed ones, newest first."""
    files = [local] if local.is_file() else []
    return [race for file in [*files, *sorted(committed.glob("*.jsonl"))] for race in _races_in(file)]


def _races_in(file: Path) -> list[Race]:
    by_key: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in read_rows(file):
        if "samples" in row and row.get("accuracy") is not None:  # a timed candidate that was judged
            by_key.setdefault(_key(file, row), {})[row["candidate"]] = row
    found = [Race(key, tuple(rows.values())) for key, rows in by_key.items()]
    return sorted(found, key=lambda race: race.rows[-1]["time"], reverse=True)


def _key(file: Path, row: Row) -> tuple[str, ...]:
    machine = f"{row['machine_cpu']}, {row['machine_cores']} cores, {row['machine_gpu'] or 'no GPU'}"
    photos = f"{row['photos']} {'drawings' if row['drawn'] else 'photos'} {row['data_fingerprint']}"
    scenario = f"{row['scenario'].partition(',')[0]}, batch {row['batch']}"
    return file.name, row["experiment"], row["time"][:10], str(row["commit"]), machine, scenario, photos
