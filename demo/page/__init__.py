"""The page in front of the service."""

import demo.service  # noqa: F401  # before Gradio, which it keeps from others' settings
