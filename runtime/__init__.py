"""Run a saji model: `load` a classifier, ask it about photos. Needs numpy, pillow and one engine library."""

import runtime.telemetry  # noqa: F401  # before any library that reports its use
from runtime.backends import available_backends
from runtime.classifier import Classifier, Prediction, load
from runtime.errors import SajiError
from runtime.spec import ModelSpec

__all__ = ["Classifier", "ModelSpec", "Prediction", "SajiError", "available_backends", "load"]
