"""What a person sees: nothing wider than the terminal, nothing of what libraries say, plain text in a pipe."""

import importlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import house
import pytest
from conftest import ROOT

from runtime import markdown, terminal
from runtime.benchmark.command import _last_screen
from runtime.benchmark.run import BenchmarkRun, Options
from runtime.candidate import not_run_here
from runtime.command_line import Parser, exit_with_one_sentence
from runtime.deployment import Deployment
from runtime.errors import SajiError
from runtime.receipt import Receipt

CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
HEAD = ("candidate", "verdict", "accuracy (95 % interval)", "photos/s", "a note of no great weight", "tail")
LINES = [
    (f"se_resnet34 · {name}", "pass", "0.950 (0.90–0.98)", "1234", "as wide as three others together", "p99 1.00")
    for name in ("openvino · int8", "ort-cpu · fp32 · cam")
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Screen = Callable[..., io.StringIO]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    """stdout and stderr become a terminal, or a pipe, of so many columns."""

    def opened(columns: int = 80, *, tty: bool = True) -> io.StringIO:
        stream = Terminal() if tty else io.StringIO()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        return stream

    yield opened


def seen(stream: io.StringIO) -> list[str]:
    return CODES.sub("", stream.getvalue()).splitlines()


# --- tables


@pytest.mark.parametrize("tty", [True, False], ids=["terminal", "pipe"])
@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_table_fits_and_names_the_columns_that_it_left_out(columns: int, tty: bool, screen: Screen) -> None:
    stream = screen(columns, tty=tty)
    terminal.show_table(HEAD, LINES, "llrrlr", ("verdict", "accuracy"), Path("artifacts/bench.md"))
    table, _, note = "\n".join(seen(stream)).rpartition("not shown: ")
    note = " ".join(note.split())
    head = next(line for line in table.splitlines() if "candidate" in line)
    assert max(map(len, seen(stream) if tty else table.splitlines())) <= min(columns, 100)
    assert note.endswith("; all of it: artifacts/bench.md") and "se_resnet34 · openvino · int8" in table
    assert "verdict" in head and ("photos/s" in head) == (columns >= 80)
    for name in (name.partition(" (")[0] for name in HEAD[1:]):
        assert (name in head) != (name in note.partition(";")[0].split(", "))


def test_columns_of_a_table_are_as_wide_as_markdown_asks() -> None:
    head, dashes, line = markdown.markdown(["a", "b"], [["1", "2"]]).splitlines()
    assert (head, dashes, line) == ("| a | b |", "| --- | ---: |", "| 1 | 2 |")
    assert markdown.plain_table(["a", "b"], [["1", "2"]]) == "\n".join((head, dashes, line))
    head, dashes, line = markdown.markdown(["a", "long"], [["1", "2"]], padded=True).splitlines()
    assert (head, dashes, line) == ("| a   | long |", "| --- | ---: |", "| 1   |    2 |")


def test_what_comes_first_is_shown_before_what_is_narrow(screen: Screen) -> None:
    stream = screen(60)
    terminal.show_table(HEAD, LINES, "llrrlr", ("accuracy", "photos/s"), None)
    head = next(line for line in seen(stream) if "candidate" in line)
    assert "accuracy" in head and "photos/s" in head and "verdict" not in head


def test_a_pipe_gets_plain_text_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    said = house.python("-c", SHOWS, environment={"PYTHONIOENCODING": "ascii:backslashreplace", "COLUMNS": "80"})
    assert said.status == 0 and (said.out + said.err).isascii() and "\x1b" not in said.out + said.err
    assert said.out.startswith("| candidate") and said.err.startswith("\n== A heading\n")


def test_a_pipe_gets_a_table_before_the_command_ends() -> None:
    shows = SHOWS.partition('heading("')[0] + "show_table(HEAD, LINES, 'lr', (), None)\nsys.stdin.read()\n"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", shows], cwd=ROOT, text=True, **pipes) as child:
        assert child.stdin and child.stdout
        threading.Timer(60, child.kill).start()
        assert child.stdout.readline().startswith("| candidate")
        assert child.poll() is None
        child.stdin.close()


SHOWS = """
import sys
sys.path.insert(0, "tests")
from test_terminal import HEAD, LINES
from runtime.terminal import heading, show_table, track
heading("A heading")
show_table(HEAD, LINES, "lr", (), None)
assert list(track(range(3), "working", 3)) == [0, 1, 2] and "rich" not in sys.modules
"""


# --- sentences and progress


def test_a_sentence_is_wrapped_on_a_terminal_and_whole_in_a_pipe(screen: Screen) -> None:
    sentence = f"a sentence {'that goes on ' * 9}and ends in a path: /{'very/' * 16}long"
    stream = screen(60)
    terminal.say(sentence)
    assert all(len(line) <= 60 or line.strip().startswith("/very") for line in seen(stream)) and len(seen(stream)) == 4
    stream = screen(60, tty=False)
    terminal.tell(sentence)
    assert stream.getvalue() == f"{sentence}\n"


def test_progress_shows_the_time_that_is_left(screen: Screen) -> None:
    stream = screen(80)
    with terminal.progress("exporting", 3) as advance:
        for _ in range(2):
            advance()
            terminal.say("a sentence in between")
        terminal.doing(f"building an engine {'of a long name ' * 9}")
        terminal._live.refresh()
    text = CODES.sub("", stream.getvalue())
    assert max(len(line) for line in re.split("[\r\n]", text)) <= 80 and re.search("engine of .*… .* 67% .* left", text)
    assert "exporting" in text and " left" in text and text.count("a sentence in between") == 2


def test_in_a_pipe_progress_is_a_line_now_and_then(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = screen(tty=False)
    assert list(terminal.track(range(4), "decoding", 4)) == [0, 1, 2, 3] and stream.getvalue() == ""
    monkeypatch.setattr(terminal, "NOW_AND_THEN", 0)
    assert list(terminal.track(range(2), "decoding", 2)) == [0, 1]
    assert re.fullmatch(r"decoding: 50 %, about \d+ s left\ndecoding: 100 %, about 0 s left\n", stream.getvalue())


# --- libraries

NOISY = """
import logging, os, subprocess, sys, warnings
from pathlib import Path
from runtime.command_line import exit_with_one_sentence
from runtime.errors import SajiError
from runtime.terminal import say, stage, tell, tell_programs

def work():
    with stage("export", "Export", Path(sys.argv[1])):
        print("PRINTED")
        warnings.warn("WARNED")
        logging.getLogger("nncf").warning("LOGGED")
        os.write(2, b"FROM C\\n")
        subprocess.run([sys.executable, "-c", "print('BY A CHILD')"])
        say("progress")
        tell("result")
        tell_programs({"made": 1})
        if len(sys.argv) > 2:
            raise SajiError("it went wrong") if sys.argv[2] == "ours" else ZeroDivisionError("theirs")
    print("after")
exit_with_one_sentence(work)
"""
NOISE = ("PRINTED", "WARNED", "LOGGED", "FROM C", "BY A CHILD")


def test_what_libraries_say_goes_to_a_log_and_what_we_say_to_the_user(tmp_path: Path) -> None:
    said = house.python("-c", NOISY, tmp_path)
    assert said.status == 0 and said.out == 'result\n{"made": 1}\nafter\n' and said.err == "\n== Export\nprogress\n"
    log = (tmp_path / "logs" / "export.log").read_text(encoding="utf-8")
    assert all(noise in log for noise in NOISE) and "progress" not in log


@pytest.mark.parametrize(("whose", "status"), [("ours", 2), ("theirs", 1)])
def test_the_log_is_named_when_something_fails(whose: str, status: int, tmp_path: Path) -> None:
    said = house.python("-c", NOISY, tmp_path, whose)
    log = tmp_path / "logs" / "export.log"
    assert said.status == status and f"what the libraries said is in {log}" in said.last, said
    assert not any(noise in said.out + said.err for noise in NOISE if noise in ("FROM C", "BY A CHILD"))
    if whose == "ours":
        assert said.last == f"saji: it went wrong; what the libraries said is in {log}"


def test_programs_are_told_json_whatever_the_figures_are(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.tell_programs({"a": float("nan"), "b": [float("inf"), -float("inf"), 1.5], "NaN": "NaN"})
    told = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told == {"a": None, "b": [None, None, 1.5], "NaN": "NaN"}


def test_where_libraries_say_nothing_no_log_is_left(tmp_path: Path) -> None:
    with terminal.stage("train", "Training", tmp_path), terminal.quiet():
        terminal.say("ours")
    assert list(tmp_path.iterdir()) == []


def test_the_streams_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with terminal.quiet():
            print("theirs")
            terminal.tell("ours")
        print("ours again")
    assert capsys.readouterr().out == 2 * "ours\nours again\n" and terminal.library_output() == subprocess.DEVNULL


WITHOUT_STREAMS = """
import subprocess, sys
from runtime import terminal
from runtime.command_line import exit_with_one_sentence
from runtime.errors import SajiError

def work():
    terminal.heading("a stage")
    terminal.tell("a result")
    terminal.tell_programs({})
    with terminal.quiet(), terminal.progress("work", 1):
        print("theirs")
    child = [sys.executable, "-c", "import sys; sys.exit(None in (sys.stdin, sys.stdout, sys.stderr))"]
    subprocess.run(child, check=True)
    with open(sys.argv[1], "w") as file:
        # Where libffi keeps a file of its own in the place of a closed stream, the shell cannot write there
        subprocess.run("echo noise; echo noise >&2; true", shell=True, check=True)
        file.write("done")
    raise SajiError("one sentence")

exit_with_one_sentence(work)
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_job_without_streams_works(closed: str, tmp_path: Path) -> None:
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", WITHOUT_STREAMS, tmp_path / "file"]
    assert subprocess.run(line, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 2
    assert (tmp_path / "file").read_text() == "done"


# --- what make ends with


def test_what_needs_a_gpu_takes_one_line() -> None:
    reasons = [
        ("a · ort-cuda · fp16", "no provider"),
        ("b · tensorrt · int8", "no GPU"), ("a · tensorrt-rtx · int8", "no GPU"),
        ("a · openvino · bf16", "no bf16"), ("b · openvino · bf16", "no bf16"),
    ]  # fmt: skip
    gpu, cpu = not_run_here(reasons)
    assert gpu.startswith("not run here: ort-cuda fp16, tensorrt int8, tensorrt-rtx int8: ") and "doctor" in gpu
    assert cpu == "not run here: openvino bf16: no bf16"
    assert not_run_here(reasons[1:3]) == ["not run here: tensorrt int8, tensorrt-rtx int8: no GPU"]


def test_the_last_screen_tells_what_was_made_the_choice_and_three_lines_to_type(model: Path, tmp_path: Path) -> None:
    deployment = Deployment.read(house.write_deployment(model, tmp_path / "deployment.json", "ort-cpu"))
    run = BenchmarkRun(Options(out=Path("my models")), {"resnet18": Receipt.read(model)})
    made, choice, reason, *_, last = _last_screen(deployment, run).strip().splitlines()
    assert made.startswith("made: resnet18 in my models/models") and choice == f"choice: {deployment.choice.name}"
    assert reason == f"reason: {deployment.reason}" and last.startswith("      ")
    lines = [line for line in _last_screen(deployment, run).splitlines() if re.match(r"  \S", line)]
    assert len(lines) == 3 and all("'my models" in line for line in lines)
    own = replace(Receipt.read(model).spec, data={})
    run = replace(run, receipts={"resnet18": replace(Receipt.read(model), spec=own)})
    assert "DATA=photos" not in _last_screen(deployment, run)


def test_make_help_fits_80_columns() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert max(map(len, done.stdout.splitlines())) <= 80 and "make train " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 80, 100])
def test_a_stage_on_a_terminal_is_as_wide_as_that(columns: int, model: Path, tmp_path: Path) -> None:
    """Parity and benchmark under a pseudo-terminal: no line is wider, none is a library's."""
    judged = house.linked(model, tmp_path / "models" / "resnet18")
    for line in (["runtime/bench.py", "--out", str(judged.parents[1]), "--seconds", "1"], ["-m", "runtime", "doctor"]):
        text = on_a_terminal([sys.executable, *line], columns)
        wide = [line for line in text.splitlines() if len(line) > columns and "/" not in line]
        assert not wide and "Warning" not in text, text


def on_a_terminal(line: list[str], columns: int) -> str:
    """What a command leaves on a terminal of so many columns, without codes; of a redrawn bar its last state."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        try:
            while part := os.read(ours, 65536):
                written += part
        except OSError:  # the other end is closed
            pass
        assert process.wait() == 0, written.decode(errors="replace")[-2000:]
    os.close(ours)
    lines = CODES.sub("", written.decode(errors="replace")).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rpartition("\r")[2] for line in lines)


def test_behind_two_hyphens_stand_names_as_they_are_typed() -> None:
    parser = Parser(prog="saji")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--open", nargs="?")
    parser.add_argument("photos", nargs="*")
    flags = ["--image_size=8", "--open", "a_b.jpg", "--"]
    names = ["--a_b.jpg", "--image_size", "--open"]
    typed = parser.parse_args(flags + names)
    assert (typed.image_size, typed.open, typed.photos) == (8, "", ["a_b.jpg", *names])
    with pytest.raises(SajiError, match="--no_such=1"):
        parser.parse_args(["--no_such=1"])


@pytest.mark.parametrize("letter", ["\u200c", "\u200d", "\u00a0", "\u202f", "é", "飯", "\ue000"])
def test_what_is_a_part_of_a_word_is_shown_as_it_is(letter: str) -> None:
    assert markdown.is_printable(f"a{letter}b") and terminal.printable(f"a{letter}b") == f"a{letter}b"


@pytest.mark.parametrize(
    "letter", ["\n", "\x1b", "\x85", "\u2028", "\u2029", "\u202e", "\u2066", "\u200f", "\ud800", "\u0378"]
)
def test_what_steers_a_terminal_or_is_no_letter_is_escaped(letter: str) -> None:
    assert not markdown.is_printable(f"a{letter}b")
    assert terminal.printable(f"a{letter}b").isprintable()


def test_a_library_that_is_installed_and_cannot_be_loaded_is_a_sentence_and_a_fault_of_ours_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `import torch` is where the memory is limited: libtorch_cpu.so: failed to map segment from shared object."""
    (tmp_path / "saji_wraps.py").write_text(
        "try:\n import saji_cut\nexcept ImportError as e:\n raise ImportError from e\n"
    )
    (tmp_path / "saji_cut").mkdir()
    (tmp_path / "saji_cut" / "__init__.py").write_text("from saji_cut._C import *\n")
    (tmp_path / "saji_cut" / f"_C{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF")
    (tmp_path / "saji_ours.py").write_text("from runtime.spec import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("saji_cut", "saji_wraps"):
        with pytest.raises(SystemExit, match="2"):
            exit_with_one_sentence(partial(importlib.import_module, name))
        said = capsys.readouterr().err
        assert said.startswith("saji: saji_cut is installed and cannot be loaded (") and said.count("\n") == 1
    with pytest.raises(ImportError, match="no_such_name"):
        exit_with_one_sentence(lambda: importlib.import_module("saji_ours"))
    with pytest.raises(ModuleNotFoundError):
        exit_with_one_sentence(lambda: importlib.import_module("saji_nowhere"))


STOPPED = """
import signal
from runtime import command_line
signal.signal(signal.SIGHUP, signal.SIG_IGN)
command_line.stop_by_signals()
assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
try:
    signal.raise_signal(signal.SIGTERM)
except KeyboardInterrupt:
    print("stopped")
"""


def test_a_signal_that_is_ignored_stays_so_and_others_stop_as_ctrl_c_does() -> None:
    """As under nohup, which ignores SIGHUP; in a process of its own, which a signal that is not caught would end."""
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "stopped\n", done
