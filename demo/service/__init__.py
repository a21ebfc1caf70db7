"""The service: page and API share its queue, its limits and its engine.

Gradio and prometheus_client take settings from the environment, whoever they were meant for. What saji does not set
itself is taken out of it here, before either is imported.
"""

import os

# Where uploads go, see `demo.app`, and who is told of their use, see `runtime.telemetry`
_OURS = ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")
_FOREIGN = ("GRADIO_", "PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")

for _name in [name for name in os.environ if name.startswith(_FOREIGN) and name not in _OURS]:
    del os.environ[_name]
