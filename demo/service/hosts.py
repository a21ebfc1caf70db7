"""Which names the service answers to, and which pages may ask it: a browser of our visitor runs other people's pages.

Such a page cannot read our answers as long as it is of another origin; by DNS rebinding, a name of its own that comes
to mean our address, it would be of ours.
"""

import ipaddress
import re
from collections.abc import Iterable

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")
ANY = "*"


class Hosts:
    """The loopback names, the address that is listened on, and the `names` that were given; ANY lets every one in.

    Who listens on all addresses (0.0.0.0 or ::) has many, and answers to each that is written in numbers: those cannot
    be rebound.
    """

    def __init__(self, listening: str = "127.0.0.1", names: Iterable[str] = ()) -> None:
        self._names = {name.lower() for name in names}
        self._given = self._names | {listening.lower(), "localhost"}
        address = _address(listening)
        self._numbers = address is not None and address.is_unspecified
        self.loopback_only = listening == "localhost" or (address is not None and address.is_loopback)

    def serves(self, host: str) -> bool:
        """Whether a Host header, in any case and with any port, names this service."""
        name = _name_of(host)
        address = _address(name)
        mine = name in self._given or ANY in self._names
        return bool(name) and (mine or (address is not None and (address.is_loopback or self._numbers)))

    def trusts(self, origin: str, host: str) -> bool:
        """Whether an Origin header is that of our own page: served under `host`, or under a name that was given."""
        site = origin.lower().partition("://")[2]
        return bool(site) and (site == host.lower() or _name_of(site) in self._names)


def _name_of(host: str) -> str:
    found = _HOST.fullmatch(host.lower())
    return found[1].strip("[]") if found else ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
