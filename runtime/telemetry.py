"""Libraries that report their use to their makers are kept from it, before the first of them is imported.

Every package of saji imports `runtime` first, and `runtime` imports this first.
"""

import os
import sys

# What each library reads on import; https://consoledonottrack.com is read by several
_SWITCHES = {
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime's wheels send events to their maker, on Linux too since 1.31
}


def switch_off() -> None:
    """Switch off the reporting of every library that we use, in this process and in those that it starts.

    OpenVINO and NNCF write an id into the home folder and send it to an analytics service with each use. They obey no
    variable, but do without the package that reports where it cannot be imported.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as the import system documents it


switch_off()
