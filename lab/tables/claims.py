"""The tables of the first page, of claims about speed, of ideas that were tried, and of what an export takes."""

from collections.abc import Callable

from lab.tables.markdown import NAMES, Columns, by_columns, machine, markdown, versions
from runtime.backends import distributions
from runtime.benchmark.rows import Row
from runtime.benchmark.table import pytorch_beside, without_network
from runtime.evaluation import with_interval


def lead(rows: list[Row]) -> str:
    """Three rows for the first page: the fastest file that passed, its network in FP32 on an engine, and in PyTorch.

    All three on one device: the last is the PyTorch that the others are compared with.
    """
    passed = sorted((row for row in rows if row["verdict"] == "pass"), key=lambda row: float(row["milliseconds"]))
    network = [row for row in passed if row["architecture"] == passed[0]["architecture"]]
    there = [row for row in network if pytorch_beside(row) == pytorch_beside(passed[0])]
    torch = next(row for row in there if row["backend"] == pytorch_beside(row))
    fp32 = next(row for row in there if row["precision"] == "fp32" and row["backend"] != torch["backend"])
    columns: Columns = {
        "file": "{candidate}",
        "ms a photo": "{milliseconds:.1f}",
        f"against {without_network(torch)}": lambda row: f"{torch['milliseconds'] / row['milliseconds']:.1f}×",
        "accuracy (95 % interval)": lambda row: with_interval(row["accuracy"], row["accuracy_interval"]),
        "file MB": lambda row: f"{row['file_bytes'] / 1e6:.1f}",
    }
    row = passed[0]
    shown = [row, fp32, torch]
    libraries = [name for name in distributions(*(each["backend"] for each in shown)) if name in row["versions"]]
    conditions = f"One photo after another on {machine(row)}; {versions(row, *libraries)}; commit {row['commit']}."
    return f"{by_columns(shown, columns)}\n\n{conditions}"


def claims(rows: list[Row]) -> str:
    """Ratios of `lab.claims.comparison`: what was claimed, what was measured."""
    columns: Columns = {
        "work": "{claim}",
        "to reach": lambda row: f"{row['target']:.3g}×" if row["target"] else "",
        "measured (lowest–highest pair)": _measured,
        "rounds": "{rounds}",
        "measured on": machine,
    }
    return by_columns(rows, columns)


def _measured(row: Row) -> str:
    digits = 2 if row["ratio"] < 2 else 1
    low, high = (f"{row[name]:.{digits}f}" for name in ("ratio_low", "ratio_high"))
    verdicts = {theirs["result"] for _, theirs in row.get("said", []) if "result" in theirs}  # LoadGen's own
    return ", ".join([f"{row['ratio']:.{digits}f}× ({low}–{high})", *sorted(verdicts)])


def tried(rows: list[Row]) -> str:
    """Each idea: how fast with it against without it, and what became of it.

    `lab.claims.speed` still measures those that are kept. The others' code is in the commit that the rows name.
    """
    columns: Columns = {
        "idea": "{claim}",
        "as fast with it as without (lowest–highest pair)": "{ratio:.2f}× ({ratio_low:.2f}–{ratio_high:.2f})",
        "kept": lambda row: f"no: {row['why_not']}" if row["why_not"] else "yes",
    }
    row = rows[-1]
    conditions = f"{row['rounds']} pairs of runs each; {machine(row)}; "
    conditions += f"{versions(row, 'onnxruntime', 'openvino', 'pillow')}; commit {row['commit']}."
    return f"{by_columns(rows, columns)}\n\n{conditions}"


def first_use(rows: list[Row]) -> str:
    """How long each of the README's commands takes, by its last row."""
    last = {row["step"]: row for row in rows}
    columns: Columns = {
        "typed": "{step}",
        "seconds": "{seconds:.0f}",
    }
    row = rows[-1]
    return f"{by_columns(last.values(), columns)}\n\n{machine(row)}; {versions(row, 'torch')}; commit {row['commit']}."


def torture(rows: list[Row]) -> str:
    """What came of the attempts of each campaign's last run."""
    last = {row["campaign"]: row for row in rows}
    columns: Columns = {
        "campaign": "{campaign}",
        "attempts": "{attempts:,}",
        "what came of them": lambda row: (
            ", ".join(f"{word} {count:,}" for word, count in row["came"].items())
            + (
                ", honest p99 {p99_ms} ms, in the calm {calm_p99_ms} ms".format(**row["honest"])
                if "honest" in row
                else ""
            )
        ),
        "found": lambda row: str(len(row["found"])),
        "seconds": "{seconds:.0f}",
    }
    where = "; ".join(f"{name} of commit {row['commit']}, {row['time'][:10]}" for name, row in last.items())
    return f"{by_columns(last.values(), columns)}\n\n{machine(rows[-1])}; {where}."


def export_cost(rows: list[Row]) -> str:
    """What an export takes."""
    columns: Columns = {
        "export of": lambda row: NAMES[row["architecture"]],
        "size": "{image_size} px",
        "files": "{files}",
        "candidates checked": "{judged}",
        "validation photos": "{photos}",
        "seconds": "{seconds:.0f}",
        "peak memory, MiB": "{peak_memory_mib:,}",
    }
    conditions = "{machine_cores} cores of {machine_cpu}, with recovery and engines for all targets; commit {commit}."
    return f"{by_columns(rows, columns)}\n\n{conditions.format(**rows[-1])}"


def containers(rows: list[Row]) -> str:
    """The images' sizes, and the last try of the service in one."""
    images = {row["target"]: row for row in rows if row["what"] == "image"}
    sizes = by_columns(images.values(), {"target": "`{target}`", "GB": lambda row: f"{row['bytes'] / 1e9:.2f}"})
    row = next(row for row in reversed(rows) if row["what"] == "service")
    photos, left = sum(row["statuses"].values()), row["left_unreaped"]
    answers = ", ".join(s if n == photos else f"{s} ({n})" for s, n in row["statuses"].items())
    zombies = f"{left} zombie{'s' if left > 1 else ''}" if left else "no zombie"
    ends = "; ".join(
        f"stopped while it {what} it ended after {row[key]['seconds']:.1f} s with status {row[key]['status']}"
        for what, key in (("served", "stop_serving"), ("opened the model", "stop_starting"))
    )
    text = (
        "In {memory_limit_mib} MiB with {cores_limit} core it was ready after {ready_seconds:.1f} s. {photos} photos, "
        "some of 20 MB, were answered with status {answers}; the server's processes took at most {peak_memory_mib:.0f} "
        "MiB together and left {zombies}. {ends}."
    ).format(**{**row, "photos": photos, "answers": answers, "zombies": zombies, "ends": ends[0].upper() + ends[1:]})
    return f"{sizes}\n\n{text}\n\n{machine(row)}; commit {row['commit']}."


def engine_sizes(rows: list[Row]) -> str:
    """Megabytes by precision and whether a second build is the same file."""
    head = "network", "FP32 MB", "FP16 MB", "INT8 MB", "ratio", "second build"
    lines = []
    for row in rows:
        sizes = (f"{row['bytes'][precision] / 1e6:.1f}" for precision in ("fp32", "fp16", "int8"))
        again = "the same bytes" if row["identical"] else "other bytes"
        lines.append((row["architecture"], *sizes, row["ratio"], again))
    row = rows[0]
    where = f"for {', '.join(row['targets'])}, {row['image_size']} px, untrained"
    version = row["versions"]["tensorrt-rtx-cu13"]
    return (
        f"{markdown(head, lines)}\n\nTensorRT-RTX {version}, built {where}; commit {row['commit']}, {row['time'][:10]}."
    )


def soak(rows: list[Row]) -> str:
    """What grows while the service is asked, and while engines are opened and closed."""

    def grown(figure: str) -> Callable[[Row], str]:
        return lambda row: "{1:+.3f} ({0:+.3f} to {2:+.3f})".format(*row[figure]["growth"])

    columns: Columns = {
        "what": "{what}",
        "of it": lambda row: f"{row['loads']} loads" if "loads" in row else f"{row['seconds'] / 60:.0f} min",
        "answers": lambda row: f"{row['came']['200']:,}" if "came" in row else "",
        "first, MiB": "{memory_mib[first]}",
        "last, MiB": "{memory_mib[last]}",
        "MiB a load, or an hour": grown("memory_mib"),
        "threads": grown("threads"),
        "open files": grown("descriptors"),
    }
    return f"{by_columns(rows, columns)}\n\n{machine(rows[-1])}; commit {rows[-1]['commit']}."


def scale(rows: list[Row]) -> str:
    """What requests met while parts of a fleet failed."""
    columns: Columns = {
        "fault": "{fault}",
        "times": "{times}",
        "requests": "{requests:,}",
        "not answered at first": lambda row: str(row["requests"] - row["first_tries"].get("200", 0)),
        "lost after one retry": "{lost_after_one_retry}",
        "wrong answers": "{wrong}",
        "all engines again after, s": lambda row: "–".join(
            sorted({f"{end(row['seconds_to_full_capacity']):.0f}" for end in (min, max)}, key=int)
        ),
    }
    row = rows[-1]
    calm = next(each for each in rows if each["fault"] == "none")
    passed = (
        f"Without a fault {calm['requests_per_second']:.0f} requests/s of a tiny network, clients and all nodes on the "
        f"same cores; Ray's proxy took {calm['proxy_milliseconds']:.1f} ms of a core for each, so one passes "
        f"{1000 / calm['proxy_milliseconds']:.0f} a second at most."
    )
    started = f"{row['engines']} engines, each on a node of its own, up in {row['seconds_to_start']:.0f} s"
    where = f"Ray {row['ray']} on {machine(row)}; commit {row['commit']}."
    return f"{by_columns(rows, columns)}\n\n{passed}\n\n{started}; {where}"
