"""The table of networks that were tried: what each engine's verdict is, and what was refused."""

from collections.abc import Callable

from lab.tables.markdown import Columns, by_columns, machine, versions
from runtime.benchmark.rows import Row

ENGINES = {"ONNX Runtime": "ort-cpu", "OpenVINO": "openvino"}


def networks(rows: list[Row]) -> str:
    """A line for each network, by its last row, with the verdicts of the engines that could be asked."""
    last = {row["architecture"]: row for row in rows}
    columns: Columns = {
        "network": "{architecture}",
        "smallest size": lambda row: f"{row['image_size']} px" if row["image_size"] else "none",
        "million parameters": lambda row: f"{row['parameters'] / 1e6:.1f}",
        **{precision.upper(): _passed(precision) for precision in ("fp32", "fp16", "int8")},
        "TensorRT-RTX builds": lambda row: "yes" if row["engines"] else "no",
        "seconds": "{seconds:.0f}",
        "refused": lambda row: row["refused"].replace("|", "\\|")[:160],
    }
    machines: dict[str, list[str]] = {}
    for name in sorted(last):
        machines.setdefault(machine(last[name]), []).append(name)
    where = [f"{machine}: {', '.join(names)}" for machine, names in machines.items()] if len(machines) > 1 else machines
    count = f"{len(last)} networks were tried so far, each at the smallest size that it takes"
    libraries = versions(rows[-1], "torch", "torchvision", "onnxruntime", "openvino")
    condition = f"{count}; {libraries}; {'; '.join(where)}."
    return f"{by_columns((last[name] for name in sorted(last)), columns)}\n\n{condition}"


def _passed(precision: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        verdicts = {name: row["verdicts"].get(f"{backend} {precision}") for name, backend in ENGINES.items()}
        told = [f"{name}: {verdict}" for name, verdict in verdicts.items() if verdict and verdict != "unchecked"]
        return ", ".join(told) or "–"

    return cell
