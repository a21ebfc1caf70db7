"""`python -m export`: checkpoints, or a classifier of another project → files that passed the gate, with a receipt.

`python -m export diagnose MODEL [FILE]` says why a file answers otherwise than its checkpoint.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from export import parity
from export.settings import Foreign, Settings
from export.side_by_side import exported
from export.triton_repository import write_models
from runtime import signature
from runtime.backends import BACKENDS, unavailable_because
from runtime.candidate import VERDICTS, Candidate, not_run_here
from runtime.command_line import Parser, add_flags, add_gpu, exit_with_one_sentence, from_flags, require_extra
from runtime.errors import GateFailed, SajiError
from runtime.receipt import Receipt
from runtime.terminal import Advance, progress, say, stage, tell, tell_programs


@dataclass(frozen=True)
class Command:
    """Export trained checkpoints; every file is checked against its checkpoint on the validation photos."""

    run: str = ""
    """The training run; may be left out when there is only one."""
    archs: tuple[str, ...] = ()
    """Architectures of the run; all by default."""
    triton: Path | None = None
    """Also write what passed as a Triton model repository into this folder."""
    out: Path = Path("artifacts")
    """Folder of all artefacts."""
    force: bool = False
    """Export again even when nothing has changed."""
    sign: Path | None = None
    """Sign each receipt, and by it every file, with this private key: a PEM file of Ed25519, not encrypted."""


def main() -> None:
    """Read the command line; export each architecture or import a file, or say with `diagnose` why one failed."""
    require_extra("export", "torch", "torchvision", "onnx", "onnxscript")
    if sys.argv[1:2] == ["diagnose"]:
        from export import diagnose

        return diagnose.main(sys.argv[2:])
    parser = Parser(prog="python -m export", description=Command.__doc__)
    add_flags(parser, Command())
    add_flags(parser, Settings())
    add_flags(parser.add_argument_group("import", Foreign.__doc__), Foreign())
    add_gpu(parser)
    typed = parser.parse_args()
    command, settings, foreign = (
        from_flags(Command(), typed),
        from_flags(Settings(), typed),
        from_flags(Foreign(), typed),
    )
    if command.sign:
        signature.private_key(command.sign)  # what is wrong with it is told before minutes of work
        if (command.out / "models").resolve() in command.sign.resolve().parents:
            raise SajiError(f"{command.sign} is where models are replaced; keep the key in another folder")
    if foreign.onnx:
        with stage("import", f"Import {foreign.onnx}: check it against itself", command.out):
            from export.foreign.source import import_foreign

            return _conclude("", [import_foreign(foreign, command.out, say, settings)], command, settings)
    run = _run_folder(command.out / "runs", command.run)
    archs = tuple(name.replace("/", "-") for name in command.archs) or tuple(
        sorted(path.parent.name for path in run.glob("*/checkpoint.pt"))
    )
    if not archs:
        raise SajiError(f"{run} holds no checkpoint; train first with: make train")
    with stage("export", f"Export of {run.name}: write the files, check each against its checkpoint", command.out):
        steps = _steps(settings)
        with progress("exporting", len(archs) * steps) as advance:
            made = _export([run / name for name in archs], command, settings, advance, steps)
            _conclude(run.name, made, command, settings)


def _steps(settings: Settings) -> int:
    """About how many lines tell of a network's export: a file that is written or a candidate that is checked each."""
    here = [row for name, row in BACKENDS.items() if not unavailable_because(name)]
    offers = [offer for row in here for offer in row.offers if offer.precision in ("fp32", *settings.wanted)]
    return len(offers) + 6


def _export(
    runs: Sequence[Path], command: Command, settings: Settings, advance: Advance, steps: int
) -> Iterator[Receipt]:
    """The receipt of each checkpoint's export, which is made unless there is one that is up to date."""
    from export.model import Checkpoint, up_to_date

    there = dict[Path, Receipt]()
    for run in () if command.force else runs:
        folder = command.out / "models" / run.name
        if earlier := up_to_date(folder, Checkpoint(run), settings):
            say(f"{run.name}: up to date in {folder}, --force to redo")
            advance(steps)
            there[run] = earlier
    missing = [run for run in runs if run not in there]
    made = exported(missing, command.out, settings, lambda line: advance(now=line))
    yield from (there.get(run) or next(made) for run in runs)


def _conclude(run: str, receipts: Iterable[Receipt], command: Command, settings: Settings) -> None:
    """Print the verdicts of each model folder as soon as it is made; raise GateFailed where one had to pass and failed.

    In a pipe the last line of stdout is JSON, with what failed and what was only refused.
    """
    archs: list[str] = []
    failed: list[Candidate] = []
    refused: list[Candidate] = []
    for receipt in receipts:
        name, candidates = receipt.spec.architecture, list(receipt.candidates)
        archs.append(name)
        if command.sign:
            signer = signature.sign(command.out / "models" / name / "model.json", command.sign)
            say(f"{name}: signed by {signer}")
        if command.triton:
            write_models(command.out / "models" / name, receipt, command.triton, say)
        checked = [candidate for candidate in candidates if candidate.verdict != "unchecked"]
        counts = {verdict: sum(c.verdict == verdict for c in candidates) for verdict in VERDICTS}
        tell(f"\n{receipt.spec.name}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items() if n)}")
        if checked:
            parity.show(checked, command.out / "models" / name / "parity.md")
        others = ((c.name, "; ".join(c.reasons)) for c in candidates if c.verdict == "unchecked")
        tell("\n".join(not_run_here(others)))
        broken, doubted = parity.refusals(candidates, settings.precisions)
        failed += broken
        refused += doubted
        if checked and not any(c.verdict == "pass" and c.servable for c in candidates):
            measure = next(filter(parity.is_measure, checked), checked[0])
            tell(f"nothing of {receipt.spec.name} may be served: {'; '.join(measure.reasons)}")
    for candidate in (*failed, *refused):
        what = "refused, never to be served" if candidate.verdict == "fail" else "not sure, so not served"
        tell(f"{what}: {candidate.name}: {'; '.join(candidate.reasons)}")
    names = {"failed": [candidate.name for candidate in failed], "refused": [candidate.name for candidate in refused]}
    tell_programs({"run": run, "archs": archs, **names})
    if failed:
        raise GateFailed(
            f"parity did not pass for {', '.join(names['failed'])}; the others keep their verdicts, "
            "look into parity.md, or leave the failing precision out with --precisions"
        )


def _run_folder(runs: Path, name: str) -> Path:
    names = sorted({path.parent.parent.name for path in runs.glob("*/*/checkpoint.pt")})  # without what was refused
    if name and not (runs / name).is_dir():
        raise SajiError(
            f"there is no run {name!r} in {runs}; it has {', '.join(names) or 'none'}; train with: make train"
        )
    if not name and len(names) != 1:
        raise SajiError(f"{runs} has {len(names)} runs ({', '.join(names) or 'none'}); choose one with --run, or train")
    return runs / (name or names[0])


if __name__ == "__main__":
    exit_with_one_sentence(main)
