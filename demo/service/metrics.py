"""What `/metrics` tells. Names follow Prometheus: base units, `_total` for counters."""

from prometheus_client import Counter, Gauge, Histogram, Info

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
