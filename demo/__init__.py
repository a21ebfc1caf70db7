"""The demo: a page in the browser and an HTTP service, answered by the choice."""

import runtime  # noqa: F401  # before Gradio, which it tells to report nothing
