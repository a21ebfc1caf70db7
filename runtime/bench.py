"""`python runtime/bench.py`: race every candidate, print the table, choose what is served (`deployment.json`)."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a plain path: Python put runtime/ first, where our names would shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from runtime import environment
from runtime.benchmark.rounds import Entrant, race
from runtime.benchmark.rows import Row, append_rows, rows_of
from runtime.benchmark.table import table
from runtime.candidate import Candidate
from runtime.deployment import Deployment, Measured, Policy, choose
from runtime.errors import BadModel, SajiError, exit_with_one_sentence
from runtime.files import sha256_file, sha256_json
from runtime.receipt import Receipt


def main() -> None:
    """Read the command line, race, write rows and the choice; the last line of stdout is JSON."""
    arguments = _arguments()
    models = arguments.out / "models"
    receipts = _receipts(models, arguments.archs)
    policy = Policy(arguments.max_accuracy_drop, min(arguments.batch))
    inputs = {
        "receipts": {name: sha256_file(models / name / "model.json") for name in receipts},
        "settings": {"seconds": arguments.seconds, "batch": sorted(arguments.batch), "threads": arguments.threads},
        "versions": environment.versions(),
    }
    chosen_at = arguments.out / "deployment.json"
    earlier = None if arguments.force else _up_to_date(chosen_at, policy, inputs)
    if earlier:
        _say(f"up to date in {chosen_at}, --force to redo")
        _report(earlier, chosen_at)
        return
    with _entrants(receipts, models, arguments.threads) as entrants:
        _judge_here(entrants, receipts)
        racing = [entrant for entrant in entrants if entrant.candidate.verdict == "pass" and entrant.candidate.servable]
        finished = race(racing, arguments.batch, arguments.seconds, arguments.seed, _say)
    rows = [
        row
        for entrant in finished
        for row in rows_of(entrant, receipts[entrant.candidate.architecture], arguments.experiment, arguments.seconds)
    ]
    if rows:
        append_rows(arguments.rows or arguments.out / "bench.jsonl", rows)
        print(table(rows))
    left_out = [entrant.candidate for entrant in entrants if entrant not in finished]
    deployment = choose(_measured(rows, finished, policy), left_out, policy, environment.machine(), inputs)
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
    parser.add_argument("--seconds", type=float, default=180, help="length of the race")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes; the smallest is the served one")
    parser.add_argument("--threads", type=int, default=0, help="threads per engine; 0 leaves it to the engine")
    parser.add_argument("--max-accuracy-drop", type=float, default=0.01, help="below the best model, as a fraction")
    parser.add_argument("--rows", type=Path, help="append rows to this .jsonl instead of OUT/bench.jsonl")
    parser.add_argument("--experiment", default="bench", help="name stored in the rows")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order within rounds")
    parser.add_argument("--force", action="store_true", help="race again even when nothing has changed")
    arguments = parser.parse_args()
    if min(arguments.batch) < 1 or arguments.seconds <= 0 or arguments.threads < 0:
        raise SajiError("--batch and --seconds must be positive, --threads not negative")
    return arguments


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
def _entrants(receipts: dict[str, Receipt], models: Path, threads: int) -> Iterator[list[Entrant]]:
    entrants = []
    for name, receipt in receipts.items():
        for candidate in receipt.candidates:
            receipt.verify(models / name, candidate.file)
            entrants.append(Entrant(candidate, models / name, threads))
    try:
        yield entrants
    finally:
        for entrant in entrants:
            entrant.close()


def _judge_here(entrants: list[Entrant], receipts: dict[str, Receipt]) -> None:
    """Keep verdicts given on this very machine with these versions, take all others anew: parity depends on both."""
    here, versions = environment.machine(), environment.versions()
    for entrant in entrants:
        same = entrant.candidate.machine == here and receipts[entrant.candidate.architecture].versions == versions
        if same or not entrant.candidate.servable:
            continue
        try:
            entrant.judge()
        except SajiError as error:
            entrant.candidate = replace(entrant.candidate, verdict="fail", reasons=(str(error),))
        finally:
            entrant.close()
        _say(f"{entrant.candidate.name}: judged on this machine: {entrant.candidate.verdict}")


def _measured(rows: list[Row], finished: list[Entrant], policy: Policy) -> list[Measured]:
    served = {row["candidate"]: row for row in rows if row["batch"] == policy.batch}
    return [
        Measured(
            candidate=entrant.candidate,
            folder=f"models/{entrant.folder.name}",
            sha256=served[entrant.candidate.name]["sha256"],
            file_bytes=served[entrant.candidate.name]["file_bytes"],
            milliseconds=served[entrant.candidate.name]["milliseconds"],
        )
        for entrant in finished
    ]


def _up_to_date(path: Path, policy: Policy, inputs: dict[str, Any]) -> Deployment | None:
    try:
        deployment = Deployment.read(path)
    except BadModel:
        return None
    same = deployment.policy == policy and sha256_json(deployment.inputs) == sha256_json(inputs)
    return deployment if same and deployment.machine == environment.machine() else None


def _report(deployment: Deployment, path: Path) -> None:
    choice: Candidate = deployment.choice.candidate
    skipped = [entry for entry in deployment.rejected if "unjudged" in entry["reason"]]
    failed = [entry for entry in deployment.rejected if "verdict fail" in entry["reason"]]
    for what, entries in (("not run here", skipped), ("refused", failed)):
        for entry in entries:
            print(f"{what}: {entry['candidate']}: {entry['reason'].partition(': ')[2]}")
    print(f"\nchoice: {choice.name}\nreason: {deployment.reason}\nopen the demo: make demo")
    print(json.dumps({"choice": choice.name, "milliseconds": deployment.choice.milliseconds, "deployment": str(path)}))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    exit_with_one_sentence(main)
