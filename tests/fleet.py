"""A fleet on Ray Serve whose replicas name colours, for the tests of the single service; skipped without Ray."""

import importlib.util
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from demo.scale.settings import Settings
from demo.service.limits import Limits

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra scale)")


def colours(path: Path) -> Any:
    """What a replica opens, whatever was chosen."""
    from test_demo import colour_classifier

    return colour_classifier()


@contextmanager
def fleet(folder: Path, limits: Limits, **more: Any) -> Iterator[str]:
    """The address of two replicas and a page of a deployment in `folder`; `more` are of Settings."""
    from test_demo import deployment

    from demo.scale import rollout

    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as free:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"))))
        port = free.getsockname()[1]
        free.close()
        deployment().write(folder / "deployment.json")
        settings = Settings(str(folder / "deployment.json"), limits=asdict(limits), **more)
        with rollout.fleet(asdict(settings), port, opener=colours):
            yield f"http://127.0.0.1:{port}"
