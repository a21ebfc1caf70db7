"""`python tests/twin/record_names.py` writes the names and numbers of the installed TensorRT-RTX anew."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import tensorrt_names

FILE = Path(__file__).parent / "site" / "saji_twin" / "rtx_names.json"


def recorded(trt: Any) -> dict[str, Any]:
    """By the module's version: names by class, and the numbers of its enumerations."""
    names = tensorrt_names.names_of(trt)
    kinds = {name: getattr(trt, name) for name in names[""]} | {"Severity": trt.ILogger.Severity}
    numbers = {
        name: {member: int(value) for member, value in kind.__members__.items()}
        for name, kind in kinds.items()
        if name[0].isupper() and hasattr(kind, "__members__")
    }
    return {trt.__version__: {"names": names, "enums": numbers}}


if __name__ == "__main__":
    import tensorrt_rtx

    lines = json.dumps(recorded(tensorrt_rtx), indent=1).replace("\n    ", " ").replace("\n   ]", "]")
    FILE.write_text(lines.replace("\n   }", "}") + "\n", encoding="utf-8")
