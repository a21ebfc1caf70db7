"""Tables and cells in Markdown."""

from runtime.markdown import markdown

__all__ = ["NAMES", "markdown"]

NAMES = {"plain34": "Plain-34", "resnet34": "ResNet-34", "se_resnet34": "SE-ResNet-34"}  # those of the studies
