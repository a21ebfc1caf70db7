"""The way in for a phone: this machine's addresses in its network, and a link as a QR code."""

import io
import ipaddress
import secrets
import socket
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import psutil

from runtime.terminal import say

# Addresses for documentation (RFC 5737, RFC 3849): connecting a UDP socket chooses the way there, and sends nothing
FAR = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
BYTES = 16  # of chance in a token of ours, 128 bits: nobody guesses it, and its QR code stays small

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Way:
    """How browsers come in: by addresses of this machine, the best first, and with the token, if there is one."""

    hosts: tuple[str, ...]
    port: int
    token: str = ""
    scheme: str = "http"

    @property
    def address(self) -> str:
        """Of the page, without a path."""
        host = self.hosts[0]
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def link(self) -> str:
        """What lets in whoever opens it."""
        return f"{self.address}/?token={quote(self.token, safe='')}"


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(BYTES)


def invite(way: Way, secret: bool) -> None:
    """Say on stderr how a phone comes in, and show the link as a QR code on a terminal.

    With `secret` the token is the operator's own, who knows it: where stderr is no terminal, it stays out of the log.
    """
    shown = sys.stderr.isatty()
    say(f"on a phone in this network, scan the code or open: {way.address if secret and not shown else way.link}")
    if shown and (sys.stderr.encoding or "").lower().startswith("utf"):
        print(in_blocks(way.link), file=sys.stderr, flush=True)
    if others := way.hosts[1:]:
        say(f"the same link works with {', '.join(others)} in place of {way.hosts[0]}")
    if (address := address_of(way.hosts[0])) and address.is_global:
        say(f"saji: {way.hosts[0]} is a public address: whoever gets the link may come in from anywhere")
    if way.scheme == "http":
        say("saji: without --https this network can read what is sent, and a phone's live camera stays off")


def address_of(host: str) -> Address | None:
    """The address that a host is written as; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def hosts_of(listening: str) -> tuple[str, ...]:
    """What browsers reach it by who listens there: on all addresses (0.0.0.0 or ::) by each of this machine's."""
    address = address_of(listening)
    return (*addresses(), "127.0.0.1") if address and address.is_unspecified else (listening,)


def everywhere() -> str:
    """The address to listen on for all of this machine's: IPv4 and IPv6 where both are there."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def addresses() -> list[str]:
    """This machine's addresses in its networks, that of the way out first; IPv6 ones only where there is no other.

    There is none without a network.
    """
    own, ways_out = _own(), {_way_out(family) for family in FAR}
    version = min((address.version for address in own), default=4)
    found = [address for address in own if address.version == version]
    return [str(a) for a in sorted(found, key=lambda a: (str(a) not in ways_out, a.is_link_local, int(a)))]


def _own() -> set[Address]:
    """The addresses of interfaces that are up, without loopback, and IPv6's own of a link, which no browser opens."""
    up = {name for name, facts in psutil.net_if_stats().items() if facts.isup}
    texts = [a.address for name, all_ in psutil.net_if_addrs().items() if name in up for a in all_ if a.family in FAR]
    found = {ipaddress.ip_address(text.partition("%")[0]) for text in texts}
    return {a for a in found if not (a.is_loopback or (a.version == 6 and a.is_link_local))}


def _way_out(family: socket.AddressFamily) -> str:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((FAR[family], 9))
            return probe.getsockname()[0]
    except OSError:
        return ""


def in_blocks(link: str) -> str:
    """The link as a QR code of half blocks, white on black whatever the terminal's colours."""
    text = io.StringIO()
    _qr(link).terminal(text, border=2, compact=True)
    return "\n".join(f"\033[97;40m{line}\033[0m" for line in text.getvalue().splitlines())


def in_svg(link: str) -> str:
    """The link as a QR code in SVG, black on white whatever the colours around it."""
    return _qr(link).svg_inline(scale=5, border=3, light="white")


def _qr(link: str) -> Any:
    import segno  # of the extra `demo`, whose absence the command line tells

    return segno.make(link, error="l", micro=False)
