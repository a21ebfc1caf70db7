"""What one request may cost."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from runtime.errors import SajiError


def _bound(default: int, what: str) -> Any:
    return dataclasses.field(default=default, metadata={"what": what})


@dataclass(frozen=True)
class Limits:
    """The bounds of a request; each is a flag `--max-NAME` of `python -m demo`. Raises SajiError below 1."""

    bytes: int = _bound(32 * 2**20, "bytes of a request's body")  # a 43-megapixel JPEG has up to 30 MB
    pixels: int = _bound(64_000_000, "pixels of a photo, width times height")
    photos: int = _bound(16, "photos of a request")
    batch: int = _bound(200, "photos of a batch on the page")
    upload: int = _bound(256 * 2**20, "bytes of an upload to the page: a photo, a batch or a zip")
    queue: int = _bound(64, "requests that are read, wait or are answered at a time")
    seconds: int = _bound(30, "seconds to send a request, and as many to wait for its answer")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise SajiError(f"--max-{field.name} {getattr(self, field.name)} lets nothing through; give 1 or more")

    @property
    def upload_seconds(self) -> int:
        """Seconds to send an upload to the page: no slower than a photo may come."""
        return max(self.seconds, self.seconds * self.upload // self.bytes)
