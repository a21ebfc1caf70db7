"""`python -m runtime`: classify photos, show a model, tell what this machine can run."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from runtime import environment, golden
from runtime.backends import available_backends
from runtime.classifier import load
from runtime.errors import BadPhoto, GateFailed, SajiError, exit_with_one_sentence
from runtime.preprocess import MAX_PIXELS
from runtime.receipt import Receipt


def main() -> None:
    """Read the command line and run one verb."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description="Run models that saji exported and judged.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    classify = verbs.add_parser("classify", help="say what photos show, one line each")
    classify.add_argument("photos", nargs="+", type=Path, help=f"picture files, up to {MAX_PIXELS // 10**6} megapixels")
    classify.add_argument("--model", type=Path, default=Path("artifacts/deployment.json"), help=_MODEL_HELP)
    classify.add_argument("--json", action="store_true", help="one JSON object a line, with all probabilities")
    show = verbs.add_parser("show", help="print a model folder's receipt: spec, files, verdicts")
    show.add_argument("model", type=Path, help="a folder with model.json")
    selftest = verbs.add_parser("selftest", help="let every candidate that passed answer the golden picture")
    selftest.add_argument("model", type=Path, help="a folder with model.json")
    verbs.add_parser("doctor", help="say which backends this machine can run, and what the others need")
    arguments = parser.parse_args()
    if arguments.verb == "classify":
        _classify(arguments.photos, arguments.model, arguments.json)
    elif arguments.verb == "show":
        _show(arguments.model)
    elif arguments.verb == "selftest":
        _selftest(arguments.model)
    else:
        _doctor()


_MODEL_HELP = "a deployment.json, a model folder or an .onnx file (default: artifacts/deployment.json)"


def _classify(photos: list[Path], model: Path, as_json: bool) -> None:
    unreadable = 0
    with load(model) as classifier:
        print(f"{classifier.candidate.name}: {classifier.reason}", file=sys.stderr)
        for photo in photos:
            try:
                prediction = classifier(photo)
            except BadPhoto as error:
                unreadable += 1
                print(f"saji: {photo}: {error}", file=sys.stderr)
                continue
            if as_json:
                print(json.dumps({"photo": str(photo), "label": prediction.label, **asdict(prediction)}))
            else:
                answer = prediction.label if prediction.sure else f"not sure (perhaps {prediction.label})"
                print(
                    f"{photo}\t{answer}\t{prediction.probability:.3f}\t{sum(prediction.milliseconds.values()):.1f} ms"
                )
    if unreadable:
        raise GateFailed(f"{unreadable} of {len(photos)} photos could not be read and were skipped")


def _show(folder: Path) -> None:
    receipt = Receipt.read(folder)
    for file in receipt.files:
        receipt.verify(folder, file)
    spec = receipt.spec
    print(f"{spec.name}: {spec.architecture}, {spec.geometry.size} px, classes {', '.join(spec.classes)}")
    if validation := spec.validation:  # an imported model without photos to judge it by has none
        print(f"checkpoint: accuracy {validation['accuracy']:.3f} on {validation['photos']} validation photos")
    for name, facts in receipt.files.items():
        print(f"  {name}  {facts['bytes'] / 1e6:.1f} MB  sha256 {facts['sha256'][:12]}… as in the receipt")
    for candidate in receipt.candidates:
        print(
            f"  {candidate.name}: {candidate.verdict}{'; ' if candidate.reasons else ''}{'; '.join(candidate.reasons)}"
        )


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


def _doctor() -> None:
    machine = environment.machine()
    features = ", ".join(machine["cpu_features"]) or "no vector features that matter here"
    print(f"{machine['cores']} cores of {machine['cpu']} ({features}), {machine['gpu'] or 'no GPU'}")
    for name, reason in available_backends().items():
        print(f"{name:13} {'ready' if reason is None else f'not here: {reason}'}")


if __name__ == "__main__":
    exit_with_one_sentence(main)
