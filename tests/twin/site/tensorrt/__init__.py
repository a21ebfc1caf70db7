"""A double of TensorRT's Python module, in the shape of the release that the machine is to have."""

import sys

from saji_twin import machine
from saji_twin.shapes import fill

fill(sys.modules[__name__], next(v for name, v in machine().installed.items() if name.startswith("tensorrt-cu")))
