"""`python demo/app.py`: the page in a browser and the HTTP API, served by what `deployment.json` chose."""

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if not __package__:  # run as a plain path: Python put demo/ first, where our names would shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from demo.service.libraries import require_libraries
from demo.service.limits import PHOTO_FORMATS, Limits, bounds, flag_of
from demo.service.network import Way, addresses, everywhere, hosts_of, invite, new_token
from demo.service.proxies import LOOPBACK, Network, networks_of, require_path
from demo.starter import to_serve
from runtime.candidate import AT_ONCE
from runtime.classifier import Classifier, load
from runtime.command_line import Parser, add_gpu, add_require_signature, exit_with_one_sentence
from runtime.errors import SajiError
from runtime.terminal import say

if TYPE_CHECKING:
    from demo.service.queue import Serving

STOPPED = 143  # the status of who ends by SIGTERM
LEAVE_SECONDS = 5.0  # for engine and decoders to end, once all requests are answered or given up
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


def main() -> None:
    """Read the command line, open and warm the model, serve page and API until Ctrl-C."""
    # The first process of a container gets no signal that it does not handle, and what comes now takes seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    arguments = _arguments()
    for name, least in (("top", 1), ("batch", 1), ("workers", 0), ("threads", 0)):
        if getattr(arguments, name) < least:
            raise SajiError(f"--{name} {getattr(arguments, name)} is too few; give {least} or more")
    require_path(arguments.root_path)
    numbers = {bound.name: getattr(arguments, f"max_{bound.name}") for bound in bounds()}
    limits = Limits(**numbers, all_formats=arguments.all_formats)
    proxies = networks_of(arguments.trusted_proxy or LOOPBACK)
    require_libraries()
    from demo.service.guard import Hosts
    from demo.service.queue import Serving
    from demo.service.tokens import Token

    # What is wrong with them should be said at once
    Token(arguments.token)
    host = _host(arguments)
    Hosts(host, arguments.allow_host)

    def chosen() -> Path:
        return arguments.deployment or to_serve(arguments.out, arguments.serve)

    def open_classifier(path: Path, **others: Any) -> Classifier:
        return load(path, **{"threads": arguments.threads, "streams": max(1, arguments.workers), **others})

    workers = arguments.workers or bool(arguments.threads)  # who gives each call its threads means them
    with (
        listen(host, arguments.port) as listener,  # first: a port that is taken is told before anything takes time
        Serving(chosen(), open_classifier, limits, workers, arguments.batch) as serving,
        tempfile.TemporaryDirectory(prefix="saji-demo-", ignore_cleanup_errors=True) as uploads,
    ):
        # Uploads are somebody's photos: they go with this process, and no other user's demo shares the folder
        os.environ["GRADIO_TEMP_DIR"] = uploads
        serve(serving, listener, host, arguments, proxies)


def _host(arguments: argparse.Namespace) -> str:
    """The address to listen on. Raises SajiError where --lan cannot be had."""
    if not arguments.lan:
        return arguments.host or "127.0.0.1"
    from demo.service.guard import Hosts

    if arguments.host and Hosts(arguments.host).loopback_only:
        raise SajiError(f"--lan lets the network in, and --host {arguments.host} this machine only; leave one out")
    if not addresses():
        raise SajiError("this machine is in no network that a phone could reach; join a Wi-Fi, or leave --lan out")
    return arguments.host or everywhere()


def _in_full(host: str) -> str:
    """An address of IPv4, which may be written in short, as 0 or 127.1; a name as it is."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return host


def serve(
    serving: "Serving", listener: socket.socket, host: str, arguments: argparse.Namespace, proxies: Sequence[Network]
) -> None:
    """Serve page and API on `listener` until a signal stops it."""
    # Only now: it takes seconds, and what is wrong before should be said at once
    from demo.page.frame import build
    from demo.page.mount import mount
    from demo.service.api import Server, build_api
    from demo.service.guard import Hosts
    from demo.service.monitoring import log_as_json

    engine, hosts = serving.engine, Hosts(host, arguments.allow_host)
    way = _way(host, listener.getsockname()[1], arguments)
    certificate = _certificate(way, serving.path.parent / "https") if arguments.https else None
    examples = pictures_in(arguments.examples) if arguments.examples else serving.examples()
    app = build_api(serving, arguments.top, arguments.root_path)
    page = build(serving, arguments.top, examples, way.link if arguments.lan else "")
    mount(page, app, serving.limits, arguments.root_path)
    signal.signal(signal.SIGTERM, _leave)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        if _may_close() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which it is under nohup
            signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        else:
            signal.signal(signal.SIGHUP, lambda *_: serving.look_again())
    if not way.token and not hosts.loopback_only:
        say("saji: whoever reaches this address may use it; ask for a token with SAJI_TOKEN")
    signed = f", signed by {engine.classifier.signer}," if engine.classifier.signer else ""
    say(f"serving {engine.classifier.candidate.name}{signed} on {way.address}")
    if arguments.lan:
        invite(way, secret=bool(arguments.token))
    with log_as_json():
        Server(app, serving.limits, way.token, hosts, certificate, proxies, _give_up_after).run(sockets=[listener])


def _may_close() -> bool:
    """Whether this process has a terminal, which says by SIGHUP that it is closed: no page should stay open then."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _leave(*_: object) -> NoReturn:
    """The way a container is stopped: leave through the `with`s, so that nothing of the uploads stays."""
    _give_up_after(0)
    sys.exit(STOPPED)


def _give_up_after(seconds: float) -> None:
    """End the process LEAVE_SECONDS after these: who is at work is waited for, but what hangs would be for ever."""

    def give_up() -> None:
        shutil.rmtree(os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
        os._exit(STOPPED)

    late = threading.Timer(seconds + LEAVE_SECONDS, give_up)
    late.daemon = True
    late.start()


def _way(host: str, port: int, arguments: argparse.Namespace) -> Way:
    hosts = hosts_of(host) if arguments.lan else (host,)
    token = arguments.token.strip() or (new_token() if arguments.lan else "")
    return Way(hosts, port, token, "https" if arguments.https else "http")


def _certificate(way: Way, folder: Path) -> Path:
    """The file of the certificate for this way in, whose browser will warn of it."""
    from demo.service.certificate import certificate_for

    certificate = certificate_for([*way.hosts, *addresses()], folder)
    warning = (
        "saji: the browser will warn once that it does not know this certificate, because this machine made it for "
        "itself and no authority vouches for it; go on where it shows the SHA-256 fingerprint "
        f"{certificate.fingerprint[:23]}…"
    )
    say(warning)
    return certificate.file


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one, and "::" takes IPv4, too. Raises SajiError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, dualstack_ipv6=host == everywhere() == "::")
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise SajiError(f"cannot listen on {host} port {port}: {reason}; choose with --port or --host") from None
    # Connections inherit it. asyncio sets it only where the socket was made with its protocol's number, and without it
    # an answer's body waits 40 ms for the client to acknowledge its headers
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def pictures_in(folder: Path) -> list[Path]:
    """The pictures directly in a folder. Raises SajiError when there is none."""
    pictures = sorted(file for file in folder.glob("*") if file.suffix.lower() in PICTURES)
    if not pictures:
        raise SajiError(
            f"{folder} holds no example picture ({', '.join(sorted(PICTURES))}); give another with --examples"
        )
    return pictures


def _arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m demo", description="Serve the chosen model: a page in the browser, and an HTTP API."
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")
    add("--deployment", type=Path, help="the choice to serve, looked at again each second (OUT/deployment.json)")
    what = (
        "your own choice, the starter, or auto as make demo: the starter while there is none of your own photos (own)"
    )
    add("--serve", choices=["own", "starter", "auto"], default="own", help=what)
    add("--host", type=_in_full, help="address to listen on; :: or 0.0.0.0 lets the network in (127.0.0.1)")
    add("--port", type=int, default=7860, help="port to listen on; 0 takes a free one (7860)")
    add("--lan", action="store_true", help="let phones of this network in, by a link with a token, also as a QR code")
    add("--https", action="store_true", help="encrypt with a certificate of this machine's own; live cameras need it")
    add("--examples", type=Path, help="folder of example pictures (those that export wrote)")
    add("--top", type=int, default=5, help="classes that an answer shows (5)")
    token = os.environ.get("SAJI_TOKEN", "")
    add("--token", default=token, help="only who sends it comes in; better in the variable SAJI_TOKEN, unseen by ps")
    add_gpu(parser)
    add_require_signature(parser)
    add("--threads", type=int, default=0, help="threads of the engine (0: all cores)")
    what = "photos that the engine works on at a time (0: one with all cores, or with one core each while others wait)"
    add("--workers", type=int, default=0, help=what)
    what = f"waiting photos that go through together; the gate checks 1 and {AT_ONCE} (1)"
    add("--batch", type=int, default=1, help=what)
    for bound in bounds():
        what = f"{bound.metadata['what']} ({bound.default:,})"
        add(flag_of(bound), dest=f"max_{bound.name}", type=int, default=bound.default, help=what)
    formats = ", ".join(PHOTO_FORMATS)
    add("--all-formats", action="store_true", help=f"take every format that saji reads; else {formats}")
    add(
        "--allow-host",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="names that browsers reach the service by, beside the loopback names and --host; * for any",
    )
    what = (
        f"addresses or networks of proxies that are believed about whom they ask for ({' '.join(LOOPBACK)}): of "
        "X-Forwarded-For the last that is no proxy is the visitor; of all others the header is ignored"
    )
    add("--trusted-proxy", nargs="+", action="extend", metavar="ADDRESS", help=what)
    what = "path such as /saji that visitors come below, where a proxy takes it away before it asks here"
    add("--root-path", default="", metavar="PATH", help=what)
    return parser.parse_args()


if __name__ == "__main__":
    exit_with_one_sentence(main)
