"""Run by every Python at its start. Without SAJI_TWIN it does nothing."""

import os

if os.environ.get("SAJI_TWIN"):
    try:
        import saji_twin.start

        saji_twin.start.begin()
    except BaseException:  # Python would go on without the twin
        import traceback

        traceback.print_exc()
        os._exit(70)
