"""What one request may cost."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from runtime.errors import SajiError
from runtime.machine import usable_cores
from runtime.preprocess import FORMATS, Bounds

PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF")  # what cameras, phones and the web make


DAY = 86_400  # seconds


# The most is what neither a timer, a signal nor the system's bounds of a process are too small for
def _bound(default: int, what: str, flag: str = "", most: int = 2**40) -> Any:
    return dataclasses.field(default=default, metadata={"what": what, "flag": flag, "most": most})


@dataclass(frozen=True)
class Limits:
    """The bounds of a request; each is a flag of `python -m demo`, see `flag_of`. Raises SajiError out of range."""

    bytes: int = _bound(32 * 2**20, "bytes of a request's body")  # a 43-megapixel JPEG has up to 30 MB
    pixels: int = _bound(64_000_000, "pixels of a photo, width times height")
    photos: int = _bound(16, "photos of a request")
    batch: int = _bound(200, "photos of a batch on the page")
    upload: int = _bound(256 * 2**20, "bytes of an upload to the page: a photo, a batch or a zip")
    uploads: int = _bound(2**30, "bytes of all uploads that the page keeps, each for an hour")
    json: int = _bound(256 * 2**10, "bytes of the JSON that the page sends with a click")
    held: int = _bound(256 * 2**20, "bytes of all the bodies that are held in memory at a time")
    decoders: int = _bound(usable_cores(), "photos that are decoded at a time", most=1_000)
    decode_seconds: int = _bound(10, "seconds that decoding a photo may take", most=DAY)
    decode_memory: int = _bound(512, "MiB of memory that decoding a photo may take")
    queue: int = _bound(64, "requests that wait or are answered at a time")
    seconds: int = _bound(30, "seconds to send a request, and as many to wait for its answer", most=DAY)
    header_seconds: int = _bound(10, "seconds to send the headers of a request", most=DAY)
    rate: int = _bound(1_000, "bytes a second that a body comes with at least, after its first 5 s", "--min-rate")
    connections: int = _bound(256, "connections at a time; above it the one that waits longest is closed")
    share: int = _bound(50, "percent of places, connections, bodies and uploads that one address may hold")
    all_formats: bool = False  # photos in every format that saji reads, not in those of PHOTO_FORMATS alone

    def __post_init__(self) -> None:
        for field in bounds():
            value, most = getattr(self, field.name), field.metadata["most"]
            if value < 1:
                raise SajiError(f"{flag_of(field)} {value} lets nothing through; give 1 or more")
            if value > most:
                raise SajiError(f"{flag_of(field)} {value} is too large; give {most} or less")

    def share_of(self, most: int, least: int = 1) -> int:
        """What one visitor may hold of `most` that all have together; `least` is what one request may be."""
        return max(least, -(-most * self.share // 100))

    @property
    def photo(self) -> Bounds:
        """What a photo may be."""
        return Bounds(self.pixels, FORMATS if self.all_formats else PHOTO_FORMATS)

    @property
    def upload_seconds(self) -> int:
        """Seconds to send an upload to the page: no slower than a photo may come."""
        return max(self.seconds, self.seconds * self.upload // self.bytes)


def bounds() -> list[dataclasses.Field]:
    """The fields of Limits that are numbers."""
    return [field for field in dataclasses.fields(Limits) if field.metadata]


def flag_of(field: dataclasses.Field) -> str:
    """The flag of a bound: `--max-header-seconds` of `header_seconds`."""
    return field.metadata["flag"] or f"--max-{field.name.replace('_', '-')}"
