"""A double of TensorRT-RTX's Python module."""

import sys

from saji_twin import machine
from saji_twin.shapes import fill

fill(sys.modules[__name__], next(v for name, v in machine().installed.items() if name.startswith("tensorrt-rtx-cu")))
