"""Nobody has more than a share of what all visitors have together: whose request it is, and what he holds.

A visitor is an address, of IPv6 its network of 64 bits, which is what one household or machine is given.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from demo.service.problem import Problem, busy

OWN = ""  # the programs of this machine, which no share holds back: they could stop the service altogether
UNKNOWN = "unknown"  # one visitor for all whose address a proxy does not tell
NETWORK_BITS = 64


def visitor_of(client: Sequence | None) -> str:
    """Who asks: `client` is the address and port of a request or a connection, where they are known."""
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0] if client else "")
    except ValueError:
        return UNKNOWN
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            own = address.is_loopback
            return OWN if own else str(ipaddress.ip_network((address, NETWORK_BITS), strict=False))
        address = address.ipv4_mapped
    return OWN if address.is_loopback else str(address)


class Holdings:
    """What each visitor holds of something that all have together, such as "places of the queue"; `all` is their sum.

    Who would hold more than `share` is refused, but for OWN.
    """

    def __init__(self, what: str, share: int) -> None:
        self.all = 0
        self._what, self._share, self._of = what, share, Counter[str]()

    def add(self, visitor: str, amount: int) -> None:
        """He holds so much more, or less where it is below 0."""
        self.all += amount
        self._of[visitor] += amount
        if not self._of[visitor]:
            del self._of[visitor]

    def refusal(self, visitor: str, more: int = 0) -> Problem | None:
        """Why a visitor may not hold what he holds, or so much `more`; None where he may."""
        if visitor == OWN or self._of[visitor] + more <= self._share:
            return None
        return busy(429, "your-share", f"one address may hold {self._share:,} {self._what} at a time; try again soon")

    @contextmanager
    def held(self, visitor: str, amount: int = 1) -> Iterator[None]:
        """Hold so much for a while. Raises Problem 429 where that is more than a share."""
        if problem := self.refusal(visitor, amount):
            raise problem
        self.add(visitor, amount)
        try:
            yield
        finally:
            self.add(visitor, -amount)
