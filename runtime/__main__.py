"""`python -m runtime`: classify photos, show a model, tell what this machine can run."""

import io
import sys
from pathlib import Path

from runtime import golden
from runtime.classify import classify as classify_photos
from runtime.command_line import Parser, exit_with_one_sentence
from runtime.doctor import doctor
from runtime.errors import GateFailed, SajiError
from runtime.preprocess import MAX_PIXELS
from runtime.receipt import Receipt
from runtime.show import show


def main() -> None:
    """Read the command line and run one verb."""
    parser = Parser(prog="python -m runtime", description="Run models that saji exported and judged.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    classify = verbs.add_parser("classify", help="say what photos show, one row each")
    classify.add_argument("photos", nargs="+", metavar="PHOTO|FOLDER|-", help=_PHOTOS_HELP)
    classify.add_argument("--model", type=Path, default=Path("artifacts/deployment.json"), help=_MODEL_HELP)
    forms = classify.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="one JSON object a line, with all probabilities")
    forms.add_argument("--csv", action="store_true", help="comma-separated values, with a header")
    classify.add_argument("--output", type=Path, metavar="FILE", help=_OUTPUT_HELP)
    described = verbs.add_parser("show", aliases=["inspect"], help="say what a model is, and check it by its receipt")
    described.add_argument("model", type=Path, help="a model folder, a deployment.json or an .onnx file")
    described.add_argument("--json", action="store_true", help="everything known, as one JSON object")
    selftest = verbs.add_parser("selftest", help="let every candidate that passed answer the golden picture")
    selftest.add_argument("model", type=Path, help="a folder with model.json")
    examined = verbs.add_parser("doctor", help="say what this machine can run, why not the rest, and what to type next")
    examined.add_argument("--json", action="store_true", help="everything found, as one JSON object")
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that its encoding lacks are escaped, not a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    if arguments.verb == "classify":
        form = "json" if arguments.json else "csv" if arguments.csv else ""
        classify_photos(arguments.photos, arguments.model, form, arguments.output)
    elif arguments.verb in ("show", "inspect"):
        show(arguments.model, arguments.json)
    elif arguments.verb == "selftest":
        _selftest(arguments.model)
    else:
        doctor(arguments.json)


_PHOTOS_HELP = (
    f"picture files of up to {MAX_PIXELS // 10**6} megapixels, folders of any size, or - to read such names from "
    "standard input, one a line"
)
_OUTPUT_HELP = (
    "append the rows to this file, as CSV if it ends with .csv, else as JSON lines; photos that it already holds are "
    "skipped, so the same command goes on after a stop; a file that another model wrote is refused"
)
_MODEL_HELP = "a deployment.json, a model folder or an .onnx file (default: artifacts/deployment.json)"


def _selftest(folder: Path) -> None:
    receipt, failed = Receipt.read(folder), 0
    passed = [candidate for candidate in receipt.candidates if candidate.verdict == "pass" and candidate.servable]
    for candidate in passed:
        try:
            receipt.verify(folder, candidate.file)
            engine = candidate.open(folder)
            found = golden.check(engine, folder, receipt.spec, candidate, (golden.PICTURE, golden.PHOTO))
            engine.close()
            print(f"right: {candidate.name} (a probability differs by at most {found:.4f})")
        except SajiError as error:
            failed += 1
            print(f"wrong: {candidate.name}: {error}")
    if failed:
        raise GateFailed(f"{failed} of {len(passed)} candidates do not answer the golden picture as they should")


if __name__ == "__main__":
    exit_with_one_sentence(main)
