"""Run a saji model: `load` a classifier, ask it about photos. Needs numpy, pillow, psutil and one engine library."""

from contextlib import suppress
from pkgutil import extend_path

import runtime.telemetry  # noqa: F401  # before any library that reports its use
from runtime.backends import available_backends
from runtime.classifier import Classifier, Prediction, load
from runtime.errors import SajiError
from runtime.spec import ModelSpec

# Somebody's own folder of this name is found as well; the other three packages have no __init__ and need no word for it
with suppress(FileNotFoundError):  # the current folder is gone
    __path__ = extend_path(__path__, __name__)

__all__ = ["Classifier", "ModelSpec", "Prediction", "SajiError", "available_backends", "load"]
