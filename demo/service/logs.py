"""Log lines as JSON on stderr, one object a line: nothing of a photo is in them, neither content nor name."""

import json
import logging
import sys
from datetime import UTC, datetime


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
