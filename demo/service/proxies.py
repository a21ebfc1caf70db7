"""Proxies that are believed about whom they ask for, by their addresses, and the path that they take away."""

import ipaddress
import re
from collections.abc import Iterable, Sequence

from runtime.errors import SajiError

LOOPBACK = ("127.0.0.1", "::1")
_ROOT_PATH = re.compile(r"(/[\w.~-]+)+", re.ASCII)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def require_path(root_path: str) -> None:
    """Raise SajiError for what is no path that visitors can come below."""
    if root_path and not _ROOT_PATH.fullmatch(root_path):
        raise SajiError(f"--root-path {root_path} is no path; give one like /saji, without a / behind")


def networks_of(proxies: Iterable[str]) -> list[Network]:
    """The networks of addresses such as 10.0.0.2 and 10.0.0.0/8, also as a socket of IPv6 sees those of IPv4.

    Raises SajiError for what is no address.
    """
    networks: list[Network] = []
    for text in proxies:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise SajiError(f"--trusted-proxy {text} is no address; give one like 10.0.0.2 or 10.0.0.0/8") from None
        networks.append(network)
        if isinstance(network, ipaddress.IPv4Network):
            mapped = f"::ffff:{network.network_address}/{96 + network.prefixlen}"
            networks.append(ipaddress.ip_network(mapped))
    return networks


def is_in(networks: Iterable[Network], client: Sequence | None) -> bool:
    """Whether a client, its address and port where they are known, is of one of the networks."""
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return False
    return any(address in network for network in networks)
