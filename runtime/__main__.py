"""`python -m runtime`: classify photos, show a model, tell what this machine can run, measure what is fastest."""

import argparse
import io
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from runtime import golden, show
from runtime.benchmark import command as bench
from runtime.bulk import command as bulk
from runtime.command_line import Parser, add_gpu, exit_with_one_sentence
from runtime.doctor import doctor
from runtime.errors import GateFailed, SajiError
from runtime.files import reading
from runtime.receipt import Receipt
from runtime.terminal import tell


def main() -> None:
    """Read the command line and run one verb."""
    parser = Parser(prog="python -m runtime", description="Run models that saji exported and checked.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for add_to in (bulk.add_to, show.add_to, _add_doctor, _add_selftest, bench.add_to):
        add_to(verbs)
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that its encoding lacks are escaped, not a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments.run(arguments)


def _add_doctor(verbs: Any) -> None:
    verb = verbs.add_parser("doctor", help="say what this machine can run, why not the rest, and what to type next")
    verb.add_argument("--json", action="store_true", help="everything found, as one JSON object")
    verb.set_defaults(run=lambda arguments: doctor(arguments.json))


def _add_selftest(verbs: Any) -> None:
    verb = verbs.add_parser("selftest", help="let every candidate that passed answer the golden picture")
    verb.add_argument("model", type=Path, help="a folder with model.json")
    add_gpu(verb)
    verb.set_defaults(run=_selftest)


def _selftest(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.model
    receipt, failed = Receipt.read(folder), 0
    passed = [candidate for candidate in receipt.candidates if candidate.verdict == "pass" and candidate.servable]
    for candidate in passed:
        try:
            with reading(folder):
                receipt.verify(folder, candidate.file)
                with closing(candidate.open(folder, sha256=receipt.files[candidate.file].sha256)) as engine:
                    largest = golden.check(engine, folder, receipt, candidate, (golden.PICTURE, golden.PHOTO))
            tell(f"right: {candidate.name} (a probability differs by at most {largest:.4f})")
        except SajiError as error:
            failed += 1
            tell(f"wrong: {candidate.name}: {error}")
    if failed:
        raise GateFailed(f"{failed} of {len(passed)} candidates do not answer the golden picture as they should")


if __name__ == "__main__":
    exit_with_one_sentence(main)
