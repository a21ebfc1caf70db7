"""`python runtime/bench.py`: race every candidate, print the table, choose what is served (`deployment.json`)."""

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # run as a plain path: Python put runtime/ first, where our names would shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from runtime import environment
from runtime.benchmark.pareto import draw
from runtime.benchmark.rows import Row, append_rows, read_rows
from runtime.benchmark.run import Race, measured, receipts_in
from runtime.benchmark.scenarios import SCENARIOS
from runtime.benchmark.table import comparison, table
from runtime.choice import Policy, choose
from runtime.command_line import Parser, exit_with_one_sentence, say
from runtime.deployment import Deployment
from runtime.errors import SajiError, Unavailable
from runtime.preprocess import decode


def main() -> None:
    """Read the command line, race, write rows and the choice; the last line of stdout is JSON."""
    asked = _arguments()
    if asked.compare:
        _compare(*asked.compare)
        return
    names = ("candidates", "seconds", "batch", "threads", "streams", "scenario", "latency_bound", "photo")
    named = {name: getattr(asked, name) for name in (*names, "cold_starts", "experiment", "seed")}
    models, chosen_at = asked.out / "models", asked.out / "deployment.json"
    race = Race(models, receipts_in(models, asked.archs), **named)
    policy = Policy(
        max_accuracy_drop=asked.max_accuracy_drop,
        batch=min(asked.batch),
        percentile=asked.percentile,
        max_memory=asked.max_memory,
        max_size=asked.max_size,
    )
    inputs = race.inputs()
    deployment = None if asked.force else Deployment.up_to_date(chosen_at, policy.values(), inputs)
    if deployment:
        say(f"up to date in {chosen_at}, --force to redo")
    else:
        finished, left_out, rows = race.run(say)
        if rows:
            append_rows(asked.rows or asked.out / "bench.jsonl", rows)
            print(table(rows))
            _draw(rows, asked.out / "bench.svg")
        places = [measured(entrant, race.receipts[entrant.candidate.architecture], policy) for entrant in finished]
        deployment = choose(places, left_out, policy, environment.machine(), inputs)
        deployment.write(chosen_at)
    print(deployment.summary())
    choice = deployment.choice
    print(json.dumps({"choice": choice.name, "milliseconds": choice.milliseconds, "deployment": str(chosen_at)}))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python runtime/bench.py",
        description="Race every candidate that passed parity, each in its own process, and choose what is served.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")
    parser.add_argument("--archs", nargs="*", default=[], help="architectures; all exported ones by default")
    words = 'only those with, e.g. "openvino int8"'
    parser.add_argument("--candidates", nargs="+", default=[], metavar="WORDS", help=words)
    parser.add_argument("--seconds", type=float, default=180, help="length of the race")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes; the smallest is the served one")
    parser.add_argument("--threads", type=int, nargs="+", default=[0], help="threads of a call; 0: the engine's own")
    parser.add_argument("--streams", type=int, nargs="+", default=[1], help="calls side by side (offline and server)")
    scenarios, besides = [*SCENARIOS, "server"], "what is timed besides single-stream, which the choice is made by"
    parser.add_argument("--scenario", nargs="+", choices=scenarios, default=["single-stream"], help=besides)
    parser.add_argument("--latency-bound", type=float, default=50, help="of the server scenario, milliseconds")
    parser.add_argument("--photo", type=Path, help="the photo of end-to-end; each model's golden JPEG by default")
    cold = "processes started anew for each candidate, to time the start to the first label"
    parser.add_argument("--cold-starts", type=int, default=1, metavar="N", help=cold)
    parser.add_argument("--max-accuracy-drop", type=float, default=0.01, help="below the best model, as a fraction")
    parser.add_argument("--percentile", type=float, default=50, help="of the latency, which the choice is made by")
    parser.add_argument("--max-memory", type=float, help="peak memory of a candidate's process that is allowed, MiB")
    parser.add_argument("--max-size", type=float, help="file size that is allowed, MB")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="compare two .jsonl; no race"
    )
    parser.add_argument("--rows", type=Path, help="append rows to this .jsonl instead of OUT/bench.jsonl")
    parser.add_argument("--experiment", default="bench", help="name stored in the rows")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order within rounds")
    parser.add_argument("--force", action="store_true", help="race again even when nothing has changed")
    return parser


def _arguments() -> argparse.Namespace:
    """The command line; raises SajiError for what contradicts itself or is none."""
    arguments = _parser().parse_args()
    positive = (*arguments.batch, *arguments.streams, arguments.seconds, arguments.latency_bound)
    if min(positive) <= 0 or min(*arguments.threads, arguments.cold_starts) < 0:
        raise SajiError(
            "--batch, --streams, --seconds and --latency-bound must be positive, --threads and --cold-starts 0 or more"
        )
    if "server" in arguments.scenario and 1 not in arguments.batch:
        raise SajiError("the server scenario answers one photo at a time; add 1 to --batch")
    if not 0 < arguments.percentile < 100:
        raise SajiError(f"--percentile {arguments.percentile:g} is none; give one between 0 and 100, such as 95")
    if arguments.photo:
        decode(arguments.photo)  # a photo that cannot be read is said now, not by every candidate
    return arguments


def _compare(before: Path, after: Path) -> None:
    for path in (before, after):
        if not path.is_file():
            raise SajiError(f"{path} does not exist; --compare takes two files of rows, such as artifacts/bench.jsonl")
    rows = comparison(read_rows(before), read_rows(after))
    print(rows)
    print(json.dumps({"before": str(before), "after": str(after), "compared": len(rows.splitlines()) - 2}))


def _draw(rows: list[Row], path: Path) -> None:
    try:
        draw(rows, path)
        say(f"accuracy against latency: {path}")
    except Unavailable as error:
        say(f"no picture of the race: {error}")


if __name__ == "__main__":
    exit_with_one_sentence(main)
