"""The twin's cuda.bindings: `runtime` is a double, other modules are the real ones where they are installed."""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
__version__ = "13.5.0"
