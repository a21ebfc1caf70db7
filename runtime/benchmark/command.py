"""`python -m runtime bench`: measure every candidate, print the table, choose what is served (`deployment.json`)."""

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime import environment
from runtime.benchmark.rows import Row, append_rows, read_rows, require_appendable
from runtime.benchmark.run import BenchmarkRun, Options, measured, receipts_in
from runtime.benchmark.scenarios import SCENARIOS
from runtime.benchmark.table import comparison, draw, show, table
from runtime.choice import Policy, choose
from runtime.command_line import Parser, add_flags, add_gpu, from_flags
from runtime.deployment import Deployment
from runtime.errors import BadModel, SajiError, Unavailable
from runtime.files import DAMAGE, is_file, write_text
from runtime.preprocess import decode
from runtime.terminal import say, stage, tell, tell_programs

_DESCRIPTION = (
    "Measure every candidate that passed parity, each in its own process, and choose what is served. "
    f"The scenarios are {', '.join(SCENARIOS)}."
)


def add_to(verbs: Any) -> None:
    """Add the verb to the subparsers of `python -m runtime`."""
    _add_flags(
        verbs.add_parser("bench", help="measure all candidates, choose what is served", description=_DESCRIPTION)
    )


def main() -> None:
    """The command line `python runtime/bench.py`."""
    parser = Parser(prog="python runtime/bench.py", description=_DESCRIPTION)
    _add_flags(parser)
    run(parser.parse_args())


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, Options())
    add_flags(parser, Policy(), skip=["batch"])
    for scenario in SCENARIOS.values():
        if scenario.flags:
            add_flags(parser, scenario.flags)
    add_gpu(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, write rows and the choice; in a pipe the last line of stdout is JSON."""
    options = from_flags(Options(), arguments)
    policy = from_flags(Policy(batch=min(options.batch)), arguments, skip=["batch"])
    flags = {name: asdict(from_flags(s.flags, arguments)) for name, s in SCENARIOS.items() if s.flags}
    if options.compare:
        _compare(*options.compare)
        return
    if options.photo:
        decode(options.photo)  # a photo that cannot be read is said now, not by every candidate
    if options.rows:
        require_appendable(options.rows)
    receipts = receipts_in(options.out / "models", [name.replace("/", "-") for name in options.archs])
    with stage("bench", "Benchmark: time all candidates, choose what is served", options.out):
        _choose(BenchmarkRun(options, receipts, flags), policy)


def _choose(benchmark: BenchmarkRun, policy: Policy) -> None:
    options, path, inputs = benchmark.options, benchmark.options.out / "deployment.json", benchmark.inputs()
    anew = options.force or options.rows  # rows in a file of their own are what is asked for
    deployment, served = None if anew else Deployment.up_to_date(path, policy.values(), inputs), ""
    if deployment:
        say(f"up to date in {path}, --force to redo")
    else:
        outcome = benchmark.run(say)
        _publish(outcome.rows, options)
        places = [measured(c, benchmark.receipts[c.folder.name], policy) for c in outcome.measured]
        labelled = not any(receipt.spec.published for receipt in benchmark.receipts.values())
        deployment = choose(places, outcome.others, policy, environment.machine(), inputs, labelled)
        if not (served := _chosen_among_more(path, inputs)):
            deployment.write(path)
    choice = deployment.choice
    tell(deployment.not_passed())
    tell(f"fastest of these: {choice.name}\n{served}" if served else _last_screen(deployment, benchmark))
    to = None if served else str(path)
    tell_programs({"choice": choice.name, "milliseconds": choice.milliseconds, "deployment": to})


def _last_screen(deployment: Deployment, benchmark: BenchmarkRun) -> str:
    """What was made, what is served and why, and what to type next."""
    out, receipts = benchmark.options.out, benchmark.receipts
    data = next(iter(receipts.values())).spec.data
    of = f"{len(deployment.fallbacks) + 1} ways to run {len(receipts)} model{'s' if len(receipts) > 1 else ''}"
    there = "" if out == Path("artifacts") else f" OUT={shlex.quote(str(out))}"
    own = "train export bench" if data.get("drawn") else "bench BENCH_SECONDS=180"
    then = "learn photos of your own, a folder for each class" if data.get("drawn") else "measure longer, for sure"
    own += " DATA=photos RECIPE=transfer" if data.get("drawn") else ""
    return f"""
made: {", ".join(receipts)} in {out / "models"}, {of} that may be served
choice: {deployment.choice.name}
reason: {deployment.reason}

next:
  make demo{there}
      open the page that serves the choice
  make {own}{there}
      {then}
  .venv/bin/python -m runtime classify PHOTO --model {shlex.quote(str(out / "deployment.json"))}
      classify photos, or a folder of them"""


def _chosen_among_more(path: Path, inputs: dict[str, Any]) -> str:
    """That what is served stays so, where it was chosen among more than take part now; empty where it was not."""
    try:
        earlier = Deployment.read(path)
    except BadModel:
        return ""
    before, models = earlier.inputs.get("settings", {}).get("candidates", []), earlier.inputs.get("receipts", {})
    some = [*inputs["settings"]["candidates"]]
    if (some and some != before) or set(inputs["receipts"]) < set(models):
        more = f"{path} still serves {earlier.choice.name}, which was chosen among more"
        return f"{more}; to choose among these alone: rm {path}, and again"
    return ""


def _publish(rows: list[Row], options: Options) -> None:
    """Write the rows, print their table and draw them."""
    if not rows:
        return
    append_rows(options.rows or options.out / "bench.jsonl", rows)
    page, picture = options.out / "bench.md", options.out / "bench.svg"
    write_text(page, table(rows) + "\n")
    show(rows, page)
    try:
        draw(rows, picture)
        say(f"accuracy against latency: {picture}")
    except Unavailable as error:
        say(f"no picture of the benchmark: {error}")


def _compare(before: Path, after: Path) -> None:
    for path in (before, after):
        if not is_file(path):
            raise SajiError(f"{path} does not exist; --compare takes two files of rows, such as artifacts/bench.jsonl")
    rows = side_by_side(before, after)
    tell(rows)
    tell_programs({"before": str(before), "after": str(after), "compared": len(rows.splitlines()) - 2})


def side_by_side(before: Path, after: Path) -> str:
    """Two files of rows as a table. Raises SajiError where one holds something else."""
    try:
        return comparison(read_rows(before), read_rows(after))
    except DAMAGE as error:
        raise SajiError(f"{before} or {after} has rows that no benchmark wrote ({error!r}); name other files") from None
