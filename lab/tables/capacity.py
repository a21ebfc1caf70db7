"""The tables of docs/capacity.md: what one core was measured to serve, and what follows for more of them."""

from collections.abc import Callable, Sequence
from statistics import mean, median

from lab.tables.markdown import machine, markdown, versions
from runtime.benchmark.rows import Row
from runtime.candidate import Candidate

FLEET = 1000  # photos a second
ONE_CORE = (1, 1)  # threads of a call, calls side by side
Key = tuple[str, str, int, int, int]  # candidate, scenario, batch, threads, streams


class Measured:
    """Rows by what was run. `cores` are the machine's, `names` the fastest candidate of each network and backend."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {_key(row): row for row in rows if "images_per_second" in row}
        self.cores: int = rows[-1]["machine_cores"]
        self.batches = sorted({batch for _, scenario, batch, *_ in self.rows if scenario == "end-to-end"})
        fastest: dict[tuple[str, str], tuple[float, str]] = {}
        for (name, scenario, _, *settings), row in self.rows.items():
            if scenario == "end-to-end" and tuple(settings) == ONE_CORE:
                of = row["architecture"], row["backend"]
                fastest[of] = max(fastest.get(of, (0.0, "")), (row["images_per_second"], name))
        self.names = [name for _, name in sorted(fastest.values(), reverse=True)]

    def row(self, name: str, scenario: str, batch: int, threads: int = 1, streams: int = 1) -> Row | None:
        """The row of these settings, of several the last; None where it was not measured."""
        return self.rows.get((name, scenario, batch, threads, streams))

    def best(self, name: str) -> Row:
        """The bytes-to-label row on one core, at the batch that serves most photos a second."""
        rows = [row for key, row in self.rows.items() if (key[0], key[1], key[3:]) == (name, "end-to-end", ONE_CORE)]
        return max(rows, key=lambda row: float(row["images_per_second"]))


def _key(row: Row) -> Key:
    named = Candidate(row["architecture"], row["file"], row["backend"], row["precision"], row["variant"]).name
    threads = row["threads"] if isinstance(row["threads"], int) else 0  # 0: the engine's own
    return named, row["scenario"], row["batch"], threads, row["streams"]


def table(rows: list[Row]) -> str:
    """Bytes to label: one core as measured, this machine and a fleet of it as predicted from that."""
    measured = Measured(rows)
    n = measured.cores
    head: tuple[str, ...] = ("candidate", "batch", "one core, photos/s", f"predicted: {n} cores, photos/s")
    head += (f"MiB, {n} streams, batches up to {measured.batches[-1]}",)
    head += ("machine-hours per million photos", f"machines for {FLEET:,} photos/s")
    lines = []
    for name in measured.names:
        row = measured.best(name)
        machine = n * row["images_per_second"]
        busy = measured.row(name, "offline", row["batch"], 1, n)
        memory = f"{busy['peak_memory_mib']:.0f}" if busy and busy["peak_memory_mib"] else "not measured"
        rates = f"{row['images_per_second']:.0f}", f"{machine:.0f}"
        fleet = f"{1e6 / machine / 3600:.2f}", f"{FLEET / machine:.1f}"
        lines.append((name, str(row["batch"]), *rates, memory, *fleet))
    return f"{markdown(head, lines)}\n\n{_conditions(rows)}"


def bottleneck(rows: list[Row]) -> str:
    """Where one core's time goes, and how far more threads of a call can help while one thread decodes."""
    measured = Measured(rows)
    head: tuple[str, ...] = ("candidate", "batch", "decode, ms a photo", "geometry", "inference", "most of it")
    head += ("cores of inference that a core of decode and geometry feeds", "photos/s at most from one decoding thread")
    lines = []
    for name in measured.names:
        for batch in sorted({measured.batches[0], measured.batches[-1]}):
            if row := measured.row(name, "end-to-end", batch):
                parts = row["parts"]
                most = max(parts, key=lambda part: float(parts[part]))
                before = parts["decode"] + parts["geometry"]
                times = (f"{parts[part]:.2f}" for part in ("decode", "geometry", "inference"))
                share = f"{most}, {100 * parts[most] / sum(parts.values()):.0f} %"
                lines.append(
                    (name, str(batch), *times, share, f"{parts['inference'] / before:.1f}", f"{1000 / before:.0f}")
                )
    return f"{markdown(head, lines)}\n\n{_conditions(rows)}"


def check(rows: list[Row]) -> str:
    """Predictions for all cores, from rows of one core, beside what was measured there."""
    measured = Measured(rows)
    head = ("candidate", "on all cores", *(f"batch {batch}" for batch in measured.batches))
    lines = []
    errors: dict[str, list[float]] = {what: [] for what in _WAYS}
    for name in measured.names:
        for what, (scenario, threads, streams, predict) in _WAYS.items():
            cells = []
            for batch in measured.batches:
                one = measured.row(name, scenario, batch)
                all_cores = measured.row(name, scenario, batch, threads or measured.cores, streams or measured.cores)
                cells.append("not measured")
                if one and all_cores:
                    predicted, found = predict(one, measured.cores), all_cores["images_per_second"]
                    errors[what].append(predicted / found - 1)
                    cells[-1] = f"{predicted:.0f} / {found:.0f} ({100 * errors[what][-1]:+.0f} %)"
            lines.append((name, what, *cells))
    summary = [
        f"{what}: {100 * mean(map(abs, shares)):.0f} % off on average, {100 * max(shares, key=abs):+.0f} % at worst"
        for what, shares in errors.items()
        if shares
    ]
    return f"{markdown(head, lines)}\n\nPredicted / measured photos/s. {'; '.join(summary)}.\n\n{_conditions(rows)}"


def _times_cores(row: Row, cores: int) -> float:
    return float(cores * row["images_per_second"])


def _only_inference_faster(row: Row, cores: int) -> float:
    """Amdahl's law: decode and geometry stay on the calling thread."""
    saved = row["parts"]["inference"] * (1 - 1 / cores)
    return float(1000 / (1000 / row["images_per_second"] - saved))


# Scenario, threads of a call, calls side by side (0: as many as cores), photos a second by the row of one core
_WAYS: dict[str, tuple[str, int, int, Callable[[Row, int], float]]] = {
    "inference, a stream a core": ("offline", 1, 0, _times_cores),
    "inference, a call on all cores": ("single-stream", 0, 1, _times_cores),
    "bytes to label, a call on all cores": ("end-to-end", 0, 1, _only_inference_faster),
}


def _conditions(rows: Sequence[Row]) -> str:
    row = rows[-1]
    sizes = ", ".join(sorted({f"{row['image_size']} px" for row in rows}))
    where = f"{row['machine_cores']} cores of {row['machine_cpu']}"
    libraries = versions(row, "torch", "onnxruntime", "openvino")
    unstable = sum(row["unstable"] for row in rows if "unstable" in row)
    return f"{sizes}; {where}; {unstable} of {len(rows)} rows unstable; {libraries}; commit {row['commit']}."


def bulk(rows: list[Row]) -> str:
    """`classify` and `classify --ray`: seconds and memory for each number of photos, steady rate and start."""
    rows = [row for row in rows if (row["size"], row["commit"]) == (rows[-1]["size"], rows[-1]["commit"])]
    seconds: dict[str, dict[int, float]] = {}
    memory: dict[str, dict[int, int]] = {}
    for how, count in sorted({(row["how"], row["photos"]) for row in rows}):
        same = [row for row in rows if (row["how"], row["photos"]) == (how, count)]
        seconds.setdefault(how, {})[count] = median(row["seconds"] for row in same)
        memory.setdefault(how, {})[count] = max(row["peak_memory_mib"] for row in same)
    rates, lines = {}, []
    for how, took in seconds.items():
        few, many = min(took), max(took)
        rates[how] = (many - few) / (took[many] - took[few]) if many > few else few / took[few]
        start = f"{took[few] - few / rates[how]:.1f}" if many > few else "not told apart"
        for count in took:
            first = (f"{rates[how]:.1f}", start) if count == many else ("", "")
            lines.append((how, f"{count:,}", f"{took[count]:.0f}", *first, f"{memory[how][count]:,}"))
    head = "classify", "photos", "seconds", "photos/s, steady", "start, s", "peak memory, MiB"
    row, told = rows[-1], ""
    if len(rates) == 2:
        right = "the same answers to the last bit" if all(each["same"] for each in rows) else "other answers"
        told = f"Ray serves {rates['ray'] / rates['local']:.2f} of what the local command does, with {right}.\n\n"
    where = f"{row['served_by']}; photos of {row['size']} px; {machine(row)}; Ray {row['ray']}; commit {row['commit']}."
    return f"{markdown(head, lines)}\n\n{told}{where}"
