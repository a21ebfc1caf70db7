"""About: to come."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from demo.serving import Serving


def build(serving: Serving, opened: Callable[..., Any]) -> None:
    """Rendered when the tab is opened."""
    gr.HTML()
