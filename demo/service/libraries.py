"""What page and API cannot do without, of the extra `demo`."""

import importlib.util

from runtime.errors import missing_extra

LIBRARIES = ("gradio", "prometheus_client", "segno", "cryptography")


def require_libraries() -> None:
    """Nothing is imported. Raises Unavailable for the first that is not installed."""
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise missing_extra(library, "demo")
