"""`python -m lab.load`: see `lab.load.parts`."""

import argparse
import json
import tempfile
from pathlib import Path

from lab.claims.speed import require_choice, write_photo
from lab.load.parts import PARTS, Plan
from lab.load.sides import Load
from runtime.benchmark.rows import append_rows
from runtime.command_line import exit_with_one_sentence
from runtime.deployment import Deployment

PHOTO_SIZE = 512, 384
LEAST_PHOTOS, MOST_PHOTOS = 64, 1000  # offline takes each once; short runs get fewer, for they take time to draw


def main() -> None:
    """Measure all parts, or those named, and append a row for each."""
    arguments = _arguments()
    require_choice(arguments.out / "deployment.json")
    folder = arguments.out / Deployment.read(arguments.out / "deployment.json").choice.folder
    with tempfile.TemporaryDirectory() as photos:
        for number in range(max(LEAST_PHOTOS, min(MOST_PHOTOS, round(20 * arguments.seconds)))):
            write_photo(folder, Path(photos) / f"{number:04}.jpg", *PHOTO_SIZE, number)
        settings = {name: getattr(arguments, name) for name in ("seconds", "clients", "workers", "threads", "batch")}
        plan = Plan(Load(str(arguments.out), photos, **settings), arguments.rounds, arguments.memory_seconds)
        for name in arguments.only or PARTS:
            for row in PARTS[name](plan):
                if arguments.rows:
                    append_rows(arguments.rows, [row])
                print(json.dumps(row), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab.load", description="Measure the service under load, on loopback; wrk makes the load."
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")
    add("--only", nargs="+", default=[], choices=PARTS, metavar="PART", help=f"these alone, of {', '.join(PARTS)}")
    add("--seconds", type=float, default=60, help="of each load (60)")
    add("--memory-seconds", type=float, default=600, help="of the part that looks at memory (600)")
    add("--rounds", type=int, default=3, help="counted pairs of runs, where two are compared (3)")
    add("--clients", type=int, default=32, help="connections that ask without pause (32)")
    for name, default in (("workers", 1), ("threads", 0), ("batch", 1)):
        add(f"--{name}", type=int, default=default, help=f"of the service, see python -m demo --help ({default})")
    add("--rows", type=Path, help="append the rows to this .jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with_one_sentence(main)
