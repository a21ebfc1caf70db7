"""Long work on the page: one visitor at a time, a few behind, and a clear word to whoever comes then."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from demo.service.problem import busy

PLACES = 5  # whoever came after them would wait for minutes


class Turns:
    """Whose turn it is with one kind of work, such as "comparisons"; `there` have come and are not done."""

    def __init__(self, what: str) -> None:
        self.what, self.there = what, 0
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Raises Problem 429 when PLACES have come before."""
        if self.there >= PLACES:
            raise busy(429, "busy", f"{self.there} {self.what} are under way or waiting; try again in a minute")
        self.there += 1
        try:
            async with self._lock:
                yield
        finally:
            self.there -= 1
