"""`python runtime/bench.py`: race every candidate, print the table, choose what is served (`deployment.json`)."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a plain path: Python put runtime/ first, where our names would shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from runtime import environment
from runtime.benchmark.pareto import draw
from runtime.benchmark.rounds import Entrant, hold, race
from runtime.benchmark.rows import Row, append_rows, read_rows, rows_of, server_row
from runtime.benchmark.scenarios import SCENARIOS
from runtime.benchmark.table import comparison, table
from runtime.benchmark.verdict import percentile, samples_needed
from runtime.candidate import Candidate
from runtime.deployment import Deployment, Measured, Policy, choose
from runtime.errors import BadModel, SajiError, Unavailable, exit_with_one_sentence
from runtime.files import sha256_file, sha256_json
from runtime.preprocess import decode
from runtime.receipt import Receipt

SERVER_PERCENTILE = 99  # MLPerf's server scenario bounds p99 of ResNet-50


def main() -> None:
    """Read the command line, race, write rows and the choice; the last line of stdout is JSON."""
    arguments = _arguments()
    if arguments.compare:
        _compare(*arguments.compare)
        return
    models = arguments.out / "models"
    receipts = _receipts(models, arguments.archs)
    policy = Policy(
        arguments.max_accuracy_drop,
        min(arguments.batch),
        arguments.percentile,
        arguments.max_memory,
        arguments.max_size,
    )
    settings = {
        name: getattr(arguments, name) for name in ("seconds", "batch", "threads", "streams", "scenario", "candidates")
    }
    inputs = {
        "receipts": {name: sha256_file(models / name / "model.json") for name in receipts},
        "settings": {**settings, "latency_bound": arguments.latency_bound},
        "versions": environment.versions(),
    }
    chosen_at = arguments.out / "deployment.json"
    earlier = None if arguments.force else _up_to_date(chosen_at, policy, inputs)
    if earlier:
        _say(f"up to date in {chosen_at}, --force to redo")
        _report(earlier, chosen_at)
        return
    with _entrants(receipts, models, arguments) as entrants:
        _judge_here(entrants, receipts)
        racing = [entrant for entrant in entrants if entrant.candidate.verdict == "pass" and entrant.candidate.servable]
        loads = [(scenario, batch) for scenario in _raced(arguments.scenario) for batch in arguments.batch]
        finished = race(racing, loads, arguments.seconds, arguments.seed, _say)
        rows = [row for entrant in finished for row in _rows(entrant, receipts, arguments)]
    if rows:
        append_rows(arguments.rows or arguments.out / "bench.jsonl", rows)
        print(table(rows))
        _draw(rows, arguments.out / "bench.svg")
    raced = {entrant.candidate.key() for entrant in finished}
    left_out = {entrant.candidate.key(): entrant.candidate for entrant in entrants}
    left_out = {key: candidate for key, candidate in left_out.items() if key not in raced}
    deployment = choose(
        _measured(finished, receipts, policy), [*left_out.values()], policy, environment.machine(), inputs
    )
    deployment.write(chosen_at)
    _report(deployment, chosen_at)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python runtime/bench.py",
        description="Race every candidate that passed parity, each in its own process, and choose what is served.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts")
    parser.add_argument("--archs", nargs="*", default=[], help="architectures; all exported ones by default")
    parser.add_argument(
        "--candidates", nargs="+", default=[], metavar="WORDS", help='only those with, e.g. "openvino int8"'
    )
    parser.add_argument("--seconds", type=float, default=180, help="length of the race")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes; the smallest is the served one")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[0], help="threads of a call; 0 leaves it to the engine"
    )
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[1], help="calls side by side, for offline and server"
    )
    parser.add_argument(
        "--scenario",
        nargs="+",
        choices=[*SCENARIOS, "server"],
        default=["single-stream"],
        help="what is timed besides single-stream, which the choice is made by",
    )
    parser.add_argument("--latency-bound", type=float, default=50, help="of the server scenario, milliseconds")
    parser.add_argument("--photo", type=Path, help="the photo of end-to-end; each model's golden JPEG by default")
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
    arguments = parser.parse_args()
    positive = (*arguments.batch, *arguments.streams, arguments.seconds, arguments.latency_bound)
    if min(positive) <= 0 or min(arguments.threads) < 0:
        raise SajiError("--batch, --streams, --seconds and --latency-bound must be positive, --threads not negative")
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
        _say(f"accuracy against latency: {path}")
    except Unavailable as error:
        _say(f"no picture of the race: {error}")


def _raced(scenarios: list[str]) -> list[str]:
    return list(dict.fromkeys(["single-stream", *(name for name in scenarios if name != "server")]))


def _receipts(models: Path, archs: list[str]) -> dict[str, Receipt]:
    there = sorted(path.parent.name for path in models.glob("*/model.json"))
    unknown = [name for name in archs if name not in there]
    if unknown or not there:
        raise SajiError(
            f"{models} holds {', '.join(there) or 'no exported model'}"
            f"{', not ' + ', '.join(unknown) if unknown else ''}; export first with: make train export"
        )
    receipts = {name: Receipt.read(models / name) for name in archs or there}
    by_data: dict[str, list[str]] = {}
    for name, receipt in receipts.items():
        by_data.setdefault(str(receipt.spec.data.get("fingerprint")), []).append(name)
    if len(by_data) > 1:
        groups = " | ".join(" ".join(names) for names in by_data.values())
        raise SajiError(f"these models were trained on different photos and cannot be compared: {groups}; use --archs")
    return receipts


@contextmanager
def _entrants(receipts: dict[str, Receipt], models: Path, arguments: argparse.Namespace) -> Iterator[list[Entrant]]:
    entrants, photo = [], str(arguments.photo.resolve()) if arguments.photo else ""
    for name, receipt in receipts.items():
        for candidate in receipt.candidates:
            if arguments.candidates and not any(_named(candidate, words) for words in arguments.candidates):
                continue
            receipt.verify(models / name, candidate.file)
            for threads, streams in itertools.product(arguments.threads, arguments.streams):
                entrants.append(Entrant(candidate, models / name, threads, streams, photo))
    if not entrants:
        there = "; ".join(candidate.name for receipt in receipts.values() for candidate in receipt.candidates)
        raise SajiError(f"no candidate is named {' or '.join(arguments.candidates)}; there are {there}")
    try:
        yield entrants
    finally:
        for entrant in entrants:
            entrant.close()


def _named(candidate: Candidate, words: str) -> bool:
    return set(words.replace("·", " ").split()) <= set(candidate.name.replace("·", " ").split())


def _judge_here(entrants: list[Entrant], receipts: dict[str, Receipt]) -> None:
    """Keep verdicts given on this very machine with these versions, take all others anew: parity depends on both."""
    here, versions = environment.machine(), environment.versions()
    judged: dict[Any, Candidate] = {}  # threads and streams change the order of sums, which no gate is as narrow as
    for entrant in entrants:
        same = entrant.candidate.machine == here and receipts[entrant.candidate.architecture].versions == versions
        if same or not entrant.candidate.servable:
            continue
        if entrant.candidate.key() in judged:
            entrant.candidate = judged[entrant.candidate.key()]
            continue
        try:
            entrant.judge()
        except SajiError as error:
            entrant.candidate = replace(entrant.candidate, verdict="fail", reasons=(str(error),))
        finally:
            entrant.close()
        judged[entrant.candidate.key()] = entrant.candidate
        _say(f"{entrant.candidate.name}: judged on this machine: {entrant.candidate.verdict}")


def _rows(entrant: Entrant, receipts: dict[str, Receipt], arguments: argparse.Namespace) -> list[Row]:
    receipt = receipts[entrant.candidate.architecture]
    rows = rows_of(entrant, receipt, arguments.experiment, arguments.seconds)
    if "server" in arguments.scenario:
        held = hold(entrant, arguments.latency_bound, SERVER_PERCENTILE, arguments.seed)
        _say(f"{entrant.name}: {held['rate']:.0f} queries/s held")
        rows.append(server_row(entrant, receipt, arguments.experiment, held))
    return rows


def _measured(finished: list[Entrant], receipts: dict[str, Receipt], policy: Policy) -> list[Measured]:
    measured = []
    for entrant in finished:
        turns = entrant.turns["single-stream", policy.batch]
        calls = [value for turn in turns for value in turn["samples"]]
        at = percentile(calls, policy.percentile)
        if at is None:
            needed = samples_needed(policy.percentile)
            raise SajiError(
                f"{len(calls)} calls of {entrant.name} do not tell p{policy.percentile:g}, which takes {needed}; "
                "race longer with --seconds"
            )
        facts = receipts[entrant.candidate.architecture].files[entrant.candidate.file]
        measured.append(
            Measured(
                candidate=entrant.candidate,
                folder=f"models/{entrant.folder.name}",
                sha256=facts["sha256"],
                file_bytes=facts["bytes"],
                milliseconds=round(at, 4),
                rounds=tuple(round(float(np.percentile(turn["samples"], policy.percentile)), 4) for turn in turns),
                peak_memory_mib=turns[-1]["peak_memory_mib"],
                threads=entrant.threads,
                streams=entrant.streams,
            )
        )
    return measured


def _up_to_date(path: Path, policy: Policy, inputs: dict[str, Any]) -> Deployment | None:
    try:
        deployment = Deployment.read(path)
    except BadModel:
        return None
    same = deployment.policy == policy and sha256_json(deployment.inputs) == sha256_json(inputs)
    return deployment if same and deployment.machine == environment.machine() else None


def _report(deployment: Deployment, path: Path) -> None:
    choice = deployment.choice
    skipped = [entry for entry in deployment.rejected if "unjudged" in entry["reason"]]
    failed = [entry for entry in deployment.rejected if "verdict fail" in entry["reason"]]
    for what, entries in (("not run here", skipped), ("refused", failed)):
        by_reason: dict[str, list[str]] = {}
        for entry in entries:
            by_reason.setdefault(entry["reason"].partition(": ")[2], []).append(entry["candidate"])
        for reason, names in by_reason.items():
            print(f"{what}: {', '.join(names)}: {reason}")
    print(f"\nchoice: {choice.name}\nreason: {deployment.reason}\nopen the demo: make demo")
    print(json.dumps({"choice": choice.name, "milliseconds": deployment.choice.milliseconds, "deployment": str(path)}))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    exit_with_one_sentence(main)
