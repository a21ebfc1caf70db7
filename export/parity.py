"""Check every file that was just written, on this machine, through the very backends that serve it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from export.own_process import OwnProcess
from runtime.backends import BuildFacts
from runtime.candidate import Candidate, candidates_in
from runtime.evaluation import ValidationSet
from runtime.gate import MIN_PHOTOS, Gate, GateResult, growth
from runtime.markdown import plain, plain_table
from runtime.spec import ModelSpec
from runtime.terminal import show_table

_HEADER = (
    "candidate",
    "verdict",
    "accuracy (difference, 95 % interval)",
    "agreement",
    "flipped",
    "decisions changed",
    "logit shift",
    "computed in",
    "why",
)


def check_folder(
    spec: ModelSpec,
    folder: Path,
    validation: ValidationSet,
    say: Callable[[str], None],
    facts: Mapping[str, BuildFacts],
    gates: Mapping[str, Gate],
    int8_faults: tuple[str, ...] = (),
) -> list[Candidate]:
    """Every candidate and file check in a model folder with its verdict, said one by one; `facts` are by file.

    `int8_faults`, of `export.layers.faults_of`, are those of every INT8 file, all of which are made of one.
    """
    from export.layers import with_layer

    results = []
    with OwnProcess(folder, validation, spec) as process:
        for candidate in candidates_in(spec.architecture, folder, facts):
            faults = int8_faults if candidate.precision == "int8" else ()
            candidate = process.check(replace(candidate, gate=candidate.gate_of(gates), faults=faults))
            results.append(with_layer(candidate, folder, validation.images))
            if results[-1].verdict != "unchecked":  # which are told once each, by reason
                say(line(results[-1]))
    return results


def with_result(candidate: Candidate, result: GateResult) -> Candidate:
    """The candidate with its gate's verdict, reasons and figures."""
    return replace(candidate, verdict=result.verdict, reasons=result.reasons, figures=result.figures)


def line(candidate: Candidate) -> str:
    """A candidate's verdict and the reasons for it, as progress tells them."""
    return "; ".join([f"{candidate.name}: {candidate.verdict}", *candidate.reasons])


def failures(candidates: list[Candidate]) -> list[Candidate]:
    """Those whose verdict is a failure of the gate."""
    return [candidate for candidate in candidates if candidate.verdict == "fail"]


def refusals(candidates: list[Candidate], asked: tuple[str, ...]) -> tuple[list[Candidate], list[Candidate]]:
    """Those that fail an export in which the precisions `asked` for had to pass, and those it only does not serve.

    Of a precision that was asked for, the inconclusive ones fail it, too, where none passes; but not for want of
    photos, which is no fault of a file's.
    """
    failed, refused = list[Candidate](), list[Candidate]()
    passed = {candidate.precision for candidate in candidates if candidate.verdict == "pass" and candidate.servable}
    for each in candidates:
        wanted, few = each.precision in asked, each.figures is not None and each.figures.photos < MIN_PHOTOS
        if each.verdict == "fail":
            (failed if wanted or is_measure(each) else refused).append(each)
        elif each.verdict == "inconclusive" and wanted and each.precision not in passed:
            (refused if few else failed).append(each)
    return failed, refused


def is_measure(candidate: Candidate) -> bool:
    """Whether this engine's verdict tells if an FP32 file is right at all; that of another is its own affair."""
    measures = {"model.onnx": "ort-cpu", "model.pt2": "pytorch"}
    return candidate.precision == "fp32" and candidate.backend == measures.get(candidate.file)


def table(candidates: list[Candidate]) -> str:
    """The verdicts as a Markdown table."""
    return plain_table(_HEADER, map(_row, candidates), "l", padded=True)


def show(candidates: list[Candidate], report: Path) -> None:
    """Those that may be served, and file checks that did not pass, as a terminal has room for; `report` has all."""
    chosen = [candidate for candidate in candidates if candidate.servable or candidate.verdict != "pass"]
    show_table(_HEADER, map(_row, chosen), "l", ("verdict", "accuracy", "flipped", "logit shift"), report)


def _row(candidate: Candidate) -> tuple[str, ...]:
    figures = candidate.figures
    name = candidate.name if candidate.servable else f"{candidate.name} (file check)"
    reasons = "; ".join(candidate.reasons)
    if not figures:
        return name, candidate.verdict, "", "", "", "", "", "", reasons
    share = ", ".join(f"{100 * part:.0f} % {precision}" for precision, part in candidate.precision_share.items())
    flipped = f"{len(figures.flipped)} of {figures.photos}"
    shift = f"{figures.shift:.2g} (worst {figures.worst_shift:.2g})"
    low, high = figures.accuracy_difference_interval
    accuracy = f"{figures.accuracy:.3f} ({figures.accuracy_difference:+.3f}, {low:+.3f} to {high:+.3f})"
    agreement = f"{100 * figures.agreement:.1f} %"
    decisions = str(figures.decisions_changed)
    return name, candidate.verdict, accuracy, agreement, flipped, decisions, shift, share, reasons


def _accuracy(spec: ModelSpec) -> str:
    if not spec.published:
        return f"accuracy {spec.validation['accuracy']:.3f}"
    return (
        f"whose accuracy was not measured here ({spec.published['accuracy']} on {spec.published['of']} by "
        f"{spec.published['source']}): nobody labelled these pictures, and accuracy is agreement with its own answers"
    )


def report(
    spec: ModelSpec,
    reference: str,
    candidates: list[Candidate],
    validation: ValidationSet,
    skipped: list[str],
    gates: Mapping[str, Gate],
) -> str:
    """`parity.md`: the table, the gates, every flipped photo, what was skipped and what the sample can show.

    `reference` says in words what the candidates are held against.
    """
    n = len(validation.labels)
    lines = [
        f"# Parity of {plain(spec.name)}",
        "",
        f"Reference: {plain(f'{reference}, {_accuracy(spec)}')} on {n} "
        "validation photos. Each candidate is the file loaded from disk through its backend, one photo at a time.",
        f"A candidate without a flip on {n} photos may still flip up to {100 * 3 / max(n, 1):.1f} % of photos "
        "(95 % bound, rule of three).",
        "",
        table(candidates),
        "",
        "| gate | logit shift | worst photo | margin of a flip | accuracy drop | its room is for |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {gate.shift:g} | {gate.worst_shift:g} | {gate.flip_margin:g} | {gate.accuracy_drop:g} "
            f"| {gate.source} |"
            for name, gate in gates.items()
        ),
        "",
        "Shift: RMS of the change of the centred logits over the RMS of the reference's, of the class that moves most; "
        "worst photo: the same of the photo that moves most, "
        f"{growth(n):.2f} times as much may be for the worst of {n}; margin: the reference's lead of first over second "
        "class on the same scale. A changed decision is another class, or sure where the checkpoint is not, or the "
        "other way round.",
        "",
    ]
    for candidate in candidates:
        kept = candidate.facts.kept
        if kept:
            share = f"{100 * sum(kept.values()):.0f} % of the multiply-adds"
            named = plain(", ".join(kept))
            lines.append(f"- {candidate.name} keeps {len(kept)} layers above INT8 ({share}): {named}")
        if candidate.figures and not candidate.figures.keeps_99_percent:
            lines.append(f"- {candidate.name} has less than 99 % of the FP32 accuracy (MLPerf's rule; not a gate here)")
        for flip in candidate.figures.flipped if candidate.figures else ():
            lines.append(f"- {candidate.name} flips {plain(validation.names[flip.photo])}, margin {flip.margin:.3f}")
    lines += [f"- {plain(reason)}" for reason in skipped]
    return "\n".join(lines).rstrip() + "\n"
