import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported, which otherwise looks up remote hosts
