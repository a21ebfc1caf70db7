"""`python -m runtime classify`: say what photos show, a row each and as they come, from one photo to any number."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.classifier import Classifier, Prediction, load
from runtime.command_line import add_gpu, add_require_signature
from runtime.environment import usable_cores
from runtime.errors import BadPhoto, GateFailed, NoAnswer, SajiError
from runtime.files import left_by_programs, walk_once
from runtime.preprocess import MAX_PIXELS, SUFFIXES
from runtime.rowfile import RowFile, csv_line
from runtime.spec import NAMED, UNKNOWN, ModelSpec
from runtime.terminal import err, printable, say
from runtime.threads import in_order

Say = Callable[[str], None]

COLUMNS = (
    "photo",
    "label",
    "probability",
    "sure",
    "answer",
    "served_by",
    "milliseconds",
)  # of CSV; JSON has all probabilities


def add_to(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the subparsers of `python -m runtime`; its parser, for what can classify elsewhere as well."""
    verb: argparse.ArgumentParser = verbs.add_parser("classify", help="say what photos show, one row each")
    photos = (
        f"picture files of up to {MAX_PIXELS // 10**6} megapixels, folders of any size, or - to read such names from "
        "standard input, one a line"
    )
    verb.add_argument("photos", nargs="+", metavar="PHOTO|FOLDER|-", help=photos)
    model = "a deployment.json, a model folder or an .onnx file (default: %(default)s)"
    verb.add_argument("--model", type=Path, default=Path("artifacts/deployment.json"), help=model)
    forms = verb.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="one JSON object a line, with all probabilities")
    forms.add_argument("--csv", action="store_true", help="comma-separated values, with a header")
    output = (
        "append the rows to this file, as CSV if it ends with .csv, else as JSON lines; photos that it already holds "
        "are skipped, so the same command goes on after a stop; a file that another model wrote is refused"
    )
    verb.add_argument("--output", metavar="FILE", help=output)
    add_gpu(verb)
    add_require_signature(verb)
    verb.set_defaults(run=run)
    return verb


def run(arguments: argparse.Namespace) -> None:
    """Classify as the command line asks for."""
    form = "json" if arguments.json else "csv" if arguments.csv else ""
    classify(arguments.photos, arguments.model, form, Path(arguments.output) if arguments.output else None)


def classify(places: list[str], model: Path, form: str = "", output: Path | None = None) -> None:
    """Classify the photos of `places` (see `Photos`) and print a row each, or append it to `output`.

    `form` is "json", "csv", or "" for what suits where the rows go. Photos that `output` already holds are skipped; if
    another model wrote them, nothing is appended.
    What cannot be read is reported on stderr and skipped; in the end that raises GateFailed. One photo gets all cores;
    of several each core takes one at a time, from bytes to label, which serves more of them (docs/benchmark.md).
    """
    if output:
        form = form or ("csv" if output.suffix.lower() == ".csv" else "json")
    counter, rows, unread = Counter(sys.stderr.isatty() and bool(output or not sys.stdout.isatty())), 0, 0
    several = len(places) > 1 or places == ["-"] or Path(places[0]).is_dir()
    threads, streams = (1, usable_cores()) if several else (0, 1)
    with ExitStack() as opened:
        classifier = opened.enter_context(load(model, threads=threads, streams=streams))
        file = opened.enter_context(RowFile(output, form, COLUMNS, classifier.served_by))
        counter.say(introduction(classifier))
        write, photos = _writer(form, classifier.spec, file), Photos(places, counter.say, file)
        # Closed before the engine is, which its threads may still be using
        for photo, answer in opened.enter_context(closing(answers(classifier, photos))):
            if isinstance(answer, SajiError):
                unread += 1
                counter.say(f"saji: {printable(photo)}: {printable(str(answer))}")
            else:
                rows += 1
                write(photo, answer)
            counter.show(rows, unread)
    conclude(counter, photos, rows, unread, output)


def introduction(classifier: Classifier) -> str:
    """What serves, why it was chosen, and who vouches for it."""
    signed = f", signed by {classifier.signer}" if classifier.signer else ""
    return f"{classifier.candidate.name}: {classifier.reason}{signed}"


def conclude(
    counter: "Counter", photos: "Photos", rows: int, unread: int, output: object, ending: str = " and were skipped"
) -> None:
    """Say what was done; raises GateFailed where something could not be read, which ends in what became of it."""
    counter.clear()
    facts = [f"{rows} photos classified"]
    if photos.known:
        facts.append(f"{photos.known} already in {output}")
    if photos.left_alone:
        facts.append(f"{photos.left_alone} files left alone that are no photos by suffix")
    if output or len(facts) > 1:
        counter.say(f"saji: {'; '.join(facts)}")
    skipped = [f"{unread} of {rows + unread} photos"] if unread else []
    if photos.closed:
        skipped.append(f"{photos.closed} folders")
    if skipped:
        raise GateFailed(f"{' and '.join(skipped)} could not be read{ending}")


class Photos:
    """Paths of the photos in `places`: files, folders, and for "-" the files and folders that stdin lists, one a line.

    They are found while iterating, folder by folder and sorted within each, so that a folder may hold any number. Links
    are followed. In folders only regular files with a photo's suffix count, and links to nothing, which are to be told
    as broken; hidden ones are ignored, `left_alone` counts the others, `closed` the folders that may not be read, and
    `known` the photos that are passed over because `done` has them. Raises SajiError at the end of a folder without any
    photo.
    """

    def __init__(self, places: list[str], say: Say, done: Container[Any] = ()) -> None:
        self.places, self.say, self.done = places, say, done
        self.left_alone = self.closed = self.known = 0

    def __iter__(self) -> Iterator[str]:
        for place in self.places:
            for photo in self._listed() if place == "-" else self._in(place):
                if photo in self.done:
                    self.known += 1
                else:
                    yield photo

    def _listed(self) -> Iterator[str]:
        with open(0, "rb", closefd=False) as lines:  # not sys.stdin: names are bytes, in whatever encoding
            for line in lines:
                if name := os.fsdecode(line.rstrip(b"\r\n")):
                    yield from self._in(name)

    def _in(self, place: str) -> Iterator[str]:
        if not Path(place).is_dir():
            yield place  # whatever its suffix: it was named
            return
        photos, others, closed = 0, self.left_alone, self.closed
        read = set(Path(place).resolve().parents)
        for _, files in walk_once(Path(place), read, _of_programs, self._again, self._closed):
            for path in files:
                if _of_programs(path):
                    continue
                # Not a pipe, which would never end; a link to nothing may have been a photo, or a folder of them. By
                # os.path, which never raises
                is_photo = path.suffix.lower() in SUFFIXES and os.path.isfile(path)  # noqa: PTH113
                if is_photo or not os.path.exists(path):  # noqa: PTH110
                    photos += 1
                    yield str(path)
                else:
                    self.left_alone += 1
        if not photos and self.closed == closed:
            others = self.left_alone - others
            raise SajiError(f"{place} holds no photo, {others} other files; photos end with .jpg, .png, .webp, .heic …")

    def _again(self, link: Path) -> None:
        self.say(f"saji: {printable(str(link))} is a link to a folder that is read already, and is ignored")

    def _closed(self, error: OSError) -> None:
        self.closed += 1
        self.say(f"saji: {printable(str(error.filename))}: {error.strerror}, so this folder is skipped")


def _of_programs(path: Path) -> bool:
    return left_by_programs(path.name)


def answers(classifier: Classifier, photos: Iterable[str]) -> Generator[tuple[str, Prediction | SajiError]]:
    """Each photo with what it shows, or with why it has no answer: in order, as many at a time as there are cores.

    Open the classifier with a thread for each of as many streams as cores: its calls come side by side.
    """

    def answer(photo: str) -> tuple[str, Prediction | SajiError]:
        try:
            return photo, classifier(photo)
        except (BadPhoto, NoAnswer) as error:
            return photo, error
        except SajiError as error:
            error.add_note(f"this was at {printable(photo)}")
            raise

    return in_order(answer, photos)


def _writer(form: str, spec: ModelSpec, file: RowFile) -> Callable[[str, Prediction], None]:
    """What writes a photo's row: to the file, or to stdout in the form that suits it."""
    if form:
        to_row = {"csv": csv_row, "json": json_row}[form]
        if file.path:
            return lambda photo, answer: file.append(to_row(photo, answer, file.served_by))
        if form == "csv":
            print(csv_line(COLUMNS), end="", flush=True)
        return lambda photo, answer: print(to_row(photo, answer, file.served_by), end="", flush=True)
    if not sys.stdout.isatty():
        return lambda photo, answer: print("\t".join(_cells(photo, answer)), flush=True)
    # The photo stands last: nobody knows how long the longest name of a folder will be
    width = max(len(_label(label, UNKNOWN if spec.rejection else NAMED)) for label in spec.classes)
    print(f"{'label':{width}}  probability        time  photo")

    def line(photo: str, answer: Prediction) -> None:
        name, label, probability, milliseconds = _cells(photo, answer)
        print(f"{label:{width}}  {probability:>11}  {milliseconds:>10}  {name}", flush=True)

    return line


def _label(label: str, answer: str) -> str:
    return f"not sure (perhaps {label})" if answer == UNKNOWN else label


def _cells(photo: str, answer: Prediction) -> tuple[str, str, str, str]:
    milliseconds = f"{sum(answer.milliseconds.values()):.1f} ms"
    return printable(photo), _label(answer.label, answer.answer), f"{answer.probability:.3f}", milliseconds


def json_row(photo: str, answer: Prediction, served_by: str) -> str:
    """A line of JSON in ASCII, which holds every file name, also one that is no text."""
    return json.dumps({"photo": photo, **fields(answer), "served_by": served_by}) + "\n"


def fields(answer: Prediction) -> dict[str, Any]:
    """What a row of JSON or Parquet says of an answer."""
    return {"label": answer.label, "sure": answer.sure, **asdict(answer)}


def csv_row(photo: str, answer: Prediction, served_by: str) -> str:
    """A row of COLUMNS; a name with quotes, commas or line ends is quoted, one that is a formula made harmless."""
    milliseconds, sure = f"{sum(answer.milliseconds.values()):.3f}", str(answer.sure).lower()
    return csv_line((photo, answer.label, round(answer.probability, 6), sure, answer.answer, served_by, milliseconds))


class Counter:
    """A line on stderr that counts, rewritten in place; nothing unless `live`, but `say` always speaks."""

    def __init__(self, live: bool) -> None:
        self.live, self.line, self.start, self.next = live, "", time.monotonic(), 0.0

    def show(self, rows: int, unread: int) -> None:
        """Count so many rows and unreadable photos, at most five times a second."""
        seconds = time.monotonic() - self.start
        if self.live and seconds > self.next:
            self.clear()
            self.next = seconds + 0.2
            self.line = f"{rows} photos, {rows / seconds:.0f}/s{f', {unread} unreadable' if unread else ''}"
            print(self.line, end="", file=err(), flush=True)

    def clear(self) -> None:
        """Take the line off the terminal."""
        if self.line:
            print(f"\r{' ' * len(self.line)}\r", end="", file=err(), flush=True)
        self.line = ""

    def say(self, sentence: str) -> None:
        """Print a sentence on a line of its own."""
        self.clear()
        say(sentence)
