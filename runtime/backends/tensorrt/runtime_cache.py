"""TensorRT-RTX compiles its kernels where they run. What it compiled is kept beside the engine for the next start.

Documented in "Working with runtime cache" of TensorRT-RTX: a cache is validated against version, GPU and driver before
it is taken, and refused where they differ.
"""

import contextlib
from pathlib import Path
from typing import Any

from runtime import signature
from runtime.files import replacing


class RuntimeCache:
    """The compiled kernels of one engine, in a file that is its path and ".cache"."""

    def __init__(self, plan: Path, settings: Any) -> None:
        """Give the cache of an earlier start, if there is one that fits, to a runtime configuration."""
        self.file, self.size = plan.with_name(f"{plan.name}.cache"), 0
        self.cache = settings.create_runtime_cache()
        self.allowed = not signature.required()  # nobody signed it, and it is code
        with contextlib.suppress(OSError):
            kept = self.file.read_bytes() if self.allowed else b""
            if kept and self.cache.deserialize(kept):
                self.size = len(kept)
        settings.set_runtime_cache(self.cache)

    def keep(self) -> None:
        """Write the file anew where kernels were added, and where the folder can be written to."""
        content = memoryview(self.cache.serialize())
        if self.allowed and content.nbytes > self.size:
            with contextlib.suppress(OSError), replacing(self.file) as temporary:
                temporary.write_bytes(content)
                self.size = content.nbytes
