"""What an operator sees: the numbers of `/metrics`, and log lines as JSON on stderr.

Nothing of a photo is in them, neither content nor name.
"""

import json
import logging
import sys
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge, Histogram, Info

# Names follow Prometheus: base units, `_total` for counters
_LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# Routes are templates (/v1/classify), never paths as sent: those are without bound and hold names of files
REQUESTS = Counter("saji_requests_total", "Requests by route and status", ["route", "status"])
ERRORS = Counter("saji_errors_total", "Refused and failed requests by cause", ["cause"])
REQUEST_SECONDS = Histogram("saji_request_seconds", "From request line to last byte", ["route"], buckets=_LATENCIES)
PART_SECONDS = Histogram("saji_part_seconds", "Parts of an answer, per photo", ["part"], buckets=_LATENCIES)
QUEUE_DEPTH = Gauge("saji_queue_depth", "Requests that are read, wait or are answered")
BATCH_SIZE = Histogram("saji_batch_size", "Photos that went through the engine together", buckets=(1, 2, 4, 8, 16, 32))
ENGINE = Info("saji_engine", "What serves now")
RELOADS = Counter("saji_reloads_total", "Deployments that were looked at again", ["outcome"])


# By hand: python-json-logger needs a subclass as long as this one for our keys, their order and the traceback
class JsonLine(logging.Formatter):
    """A record as one JSON object; `extra={"facts": {...}}` adds keys."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, also of an exception with its traceback."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_as_json() -> None:
    """Send our own log and warnings of every library to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("saji").setLevel(logging.INFO)
