"""The way onto a phone: a link with the token, its QR code, this machine's addresses and its own certificate."""

import datetime
import ipaddress
import socket
import ssl
import stat
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from conftest import PATIENCE
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from strangers import command
from test_demo import colour_classifier, running, serving_of

from demo import app
from demo.service import certificate, network
from demo.service.certificate import certificate_for
from demo.service.limits import Limits
from runtime.errors import SajiError

TOKEN = "se sam;öffne+dich"  # whatever an operator types
SPELLED = "se%20sam%3B%C3%B6ffne%2Bdich"


# The token


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with (
        serving_of(colour_classifier(), tmp_path_factory.mktemp("lan")) as serving,
        running(serving, token=TOKEN) as address,
    ):
        yield address


def test_the_link_becomes_a_cookie_and_an_address_without_the_token(
    guarded: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with httpx.Client(base_url=guarded) as phone:
        assert phone.get("/v1/model").status_code == 401
        answer = phone.get(f"/?token={SPELLED}")
        assert (answer.status_code, answer.headers["refresh"], answer.content) == (200, "0; url=./", b"")
        kept = answer.headers["set-cookie"].lower()
        assert "httponly" in kept and "samesite=strict" in kept and "secure" not in kept and "sam;" not in kept
        assert answer.headers["referrer-policy"] == "no-referrer" and answer.headers["cache-control"] == "no-store"
        assert phone.get("/v1/model").status_code == 200
    told = " ".join(str(vars(record)) for record in caplog.records if record.name.startswith(("saji", "uvicorn")))
    assert "request" in told and SPELLED not in told and TOKEN not in told


@pytest.mark.parametrize("path", ["/?token=", "/?token=wrong", f"/?token={SPELLED}x", f"/?token={SPELLED}&token=x"])
def test_another_links_token_is_refused_without_asking_for_a_password(guarded: str, path: str) -> None:
    answer = httpx.get(guarded + path)
    assert (answer.status_code, answer.json()["cause"]) == (401, "old-link")
    assert "www-authenticate" not in answer.headers and "set-cookie" not in answer.headers


@pytest.mark.parametrize("cookie", ["", "wrong", "\xe9", TOKEN.replace("ö", "o"), '"', "x" * 5000])
def test_no_cookie_but_the_right_one_lets_in(guarded: str, cookie: str) -> None:
    name = f"saji_{guarded.rpartition(':')[2]}"
    for sent in (f"{name}={cookie}", f"{name}", f"{name}={cookie}; {name}={cookie}", f"=; {name}={cookie}"):
        assert httpx.get(f"{guarded}/v1/model", headers={"cookie": sent.encode("latin-1")}).status_code == 401


OTHERS = [
    'prefs={"a":1}',
    "name=\xc3\xa9",
    "flag",
    "x[1]=1",
    "path=/",
    "expires=1",
    "a=b=c",
    "=",
    "",
    '"',
    "{name}=old",
]


@pytest.mark.parametrize("other", OTHERS)
def test_the_cookies_of_other_programs_lock_nobody_out(guarded: str, other: str) -> None:
    """A browser sends those of every port of a host, and an earlier one of ours, in one header."""
    kept = httpx.get(f"{guarded}/?token={SPELLED}").headers["set-cookie"].partition(";")[0]
    other = other.replace("{name}", kept.partition("=")[0])
    for sent in (f"{other}; {kept}", f"{kept};{other}"):
        assert httpx.get(f"{guarded}/v1/model", headers={"cookie": sent.encode("latin-1")}).status_code == 200, sent


@pytest.mark.parametrize("token", ["voilà", "sesam öffne à", "token"])
def test_a_token_is_taken_to_its_last_byte(token: str, tmp_path: Path) -> None:
    """The last one of "à" in UTF-8 is a space that does not break, in another encoding."""
    with serving_of(colour_classifier(), tmp_path) as serving, running(serving, token=token) as address:
        for authorization in (f"Bearer {token}", f"bearer  {token}"):
            answer = httpx.get(f"{address}/v1/model", headers={"authorization": authorization.encode()})
            assert answer.status_code == 200


def test_a_token_that_is_no_text_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["demo", "--token", "caf\udce9"])
    with pytest.raises(SajiError, match="no text in UTF-8; give SAJI_TOKEN"):
        app.main()


def test_the_link_opens_nothing_but_the_page(guarded: str) -> None:
    assert httpx.get(f"{guarded}/v1/model?token={SPELLED}").status_code == 401
    assert httpx.post(f"{guarded}/?token={SPELLED}").status_code == 401


# Addresses


def machine_with(monkeypatch: pytest.MonkeyPatch, way_out: str, **interfaces: str | None) -> None:
    """A machine whose interfaces have these addresses, with commas between; None stands for one that is down."""
    version = {True: socket.AF_INET6, False: socket.AF_INET}
    addresses = {
        name: [SimpleNamespace(family=version[":" in a], address=a) for a in (texts or "10.9.9.9").split(",")]
        for name, texts in interfaces.items()
    }
    up = {name: SimpleNamespace(isup=texts is not None) for name, texts in interfaces.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: up)
    monkeypatch.setattr(network, "_way_out", lambda family: way_out)


def test_the_address_of_the_way_out_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    wifi = "192.168.1.23,fe80::1%wlan0,2001:db8::23"
    machine_with(monkeypatch, "192.168.1.23", lo="127.0.0.1,::1", docker0="172.17.0.1", off=None, wlan0=wifi)
    assert network.addresses() == ["192.168.1.23", "172.17.0.1"]


def test_ipv6_alone_is_spelled_so_that_a_browser_opens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, "fd00::2", lo="127.0.0.1", eth0="fe80::1%eth0,fd00::2")
    [address] = network.addresses()
    assert network.Way((address,), 7860, "a b").link == "http://[fd00::2]:7860/?token=a%20b"


def asked(monkeypatch: pytest.MonkeyPatch, *flags: str) -> str:
    monkeypatch.setattr("sys.argv", ["demo", *flags])
    return app._host(app._arguments())


def test_lan_without_a_network_or_on_loopback_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        with pytest.raises(SajiError, match="leave one out"):
            asked(monkeypatch, "--lan", "--host", host)
    machine_with(monkeypatch, "", lo="127.0.0.1,::1", eth0="fe80::1%eth0")
    with pytest.raises(SajiError, match="in no network"):
        asked(monkeypatch, "--lan")
    assert asked(monkeypatch) == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "address"), [("0", "0.0.0.0"), ("127.1", "127.0.0.1"), ("::", "::"), ("my.lan", "my.lan")]
)
def test_an_address_in_short_is_known_for_what_it_is(host: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It listened on all addresses, and answered to the name 0."""
    assert asked(monkeypatch, "--host", host) == address


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_one_socket_takes_ipv4_and_ipv6_and_a_taken_port_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch, "10.0.0.5", eth0="10.0.0.5")
    with app.listen(asked(monkeypatch, "--lan"), 0) as listener:
        for loopback in ("127.0.0.1", "::1"):
            socket.create_connection((loopback, listener.getsockname()[1])).close()
    with socket.create_server(("0.0.0.0", 0)) as taken, pytest.raises(SajiError, match="--port"):
        app.listen("::", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("", "10.0.0.5"),
        ("0", "10.0.0.5"),
        ("::", "10.0.0.5"),
        ("10.0.0.5", "10.0.0.5"),
        ("my.lan", "my.lan"),
        ("fd00::2", "[fd00::2]"),
    ],
)
def test_the_link_of_lan_is_one_that_a_phone_opens(
    host: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an address that means all of this machine's as of none, and of a name; no other is told that is not open."""
    machine_with(monkeypatch, "10.0.0.5", eth0="10.0.0.5", docker0="172.17.0.1")
    monkeypatch.setattr("sys.argv", ["demo", "--lan", "--host", host])
    arguments = app._arguments()
    network.invite(app._way(app._host(arguments), 7860, arguments), secret=False)
    said = " ".join(capsys.readouterr().err.split())
    assert f"open: http://{told}:7860/?token=" in said
    assert ("works with 172.17.0.1, 127.0.0.1 in place" in said) == (host in ("", "0", "::"))


# The certificate


def test_the_certificate_is_kept_for_its_owner_alone_and_made_anew_when_it_no_longer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ["192.168.1.23", "172.17.0.1"]
    first = certificate_for(here, tmp_path / "https")
    assert stat.S_IMODE(first.file.stat().st_mode) == 0o600 and stat.S_IMODE(first.file.parent.stat().st_mode) == 0o700
    first.file.chmod(0o644)  # as a copy of the folder may leave it
    assert certificate_for(here[:1], first.file.parent) == first
    assert stat.S_IMODE(first.file.stat().st_mode) == 0o600
    moved = certificate_for(["192.168.7.7"], first.file.parent)
    assert moved.fingerprint != first.fingerprint
    monkeypatch.setattr(certificate, "_now", lambda: datetime.datetime.now(datetime.UTC) + certificate.VALID)
    late = certificate_for(["192.168.7.7"], first.file.parent)
    assert late.fingerprint != moved.fingerprint
    monkeypatch.undo()  # the clock was ahead when it was made: it is not valid yet
    early = certificate_for(["192.168.7.7"], first.file.parent)
    assert early.fingerprint != late.fingerprint
    early.file.write_text("damaged")
    assert certificate_for(["192.168.7.7"], first.file.parent).fingerprint != early.fingerprint


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("my_own.lan.", "my_own.lan"),
        ("xn--caf-dma.lan", "xn--caf-dma.lan"),
        ("FD00:0::2", "fd00::2"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_a_certificate_names_a_host_as_browsers_look_for_it(host: str, named: str, tmp_path: Path) -> None:
    made = certificate_for([host], tmp_path)
    read = x509.load_pem_x509_certificate(made.file.read_bytes())
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert next(str(name.value) for name in names) == named
    assert certificate_for([host], tmp_path) == made, "its fingerprint is another at each start"


def test_a_certificate_that_cannot_be_kept_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "https").write_text("a file is in the way")
    with pytest.raises(SajiError, match="--https"):
        certificate_for(["10.0.0.5"], tmp_path / "https")


def somebodys(folder: Path, host: str, password: str = "") -> Path:
    """A key and a certificate that saji did not make; without a host it names none."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "food.example")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + certificate.VALID)
    if host:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        builder = builder.add_extension(names, critical=False)
    locked = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    file = folder / "key_and_certificate.pem"
    file.write_bytes(secret + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return file


@pytest.mark.parametrize(("host", "password"), [("10.0.0.9", ""), ("", ""), ("10.0.0.5", "geheim")])
def test_a_certificate_that_saji_did_not_make_is_left_as_it_is(host: str, password: str, tmp_path: Path) -> None:
    """It names another host, or none, or its key is locked, about which nobody is asked on a terminal."""
    file = somebodys(tmp_path, host, password)
    before = file.read_bytes()
    with pytest.raises(SajiError, match=r"is not saji's.*move it away"):
        certificate_for(["10.0.0.5"], tmp_path)
    assert file.read_bytes() == before


def test_a_certificate_of_ones_own_is_served_where_it_does(tmp_path: Path) -> None:
    file = somebodys(tmp_path, "10.0.0.5")
    before = file.read_bytes()
    assert certificate_for(["10.0.0.5"], tmp_path).file.read_bytes() == before


def test_who_stalls_at_tls_is_let_go(tmp_path: Path) -> None:
    pem = certificate_for(["127.0.0.1"], tmp_path / "https").file
    from demo.service.api import Server, build_api

    limits = Limits(header_seconds=1)
    with serving_of(colour_classifier(), tmp_path, limits) as serving, app.listen("127.0.0.1", 0) as listener:
        server = Server(build_api(serving), limits, pem=pem)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        with socket.create_connection(listener.getsockname(), PATIENCE) as stalled:
            assert stalled.recv(1) == b""
        server.should_exit = True
        thread.join()


# The command line


@pytest.mark.skipif(not network.addresses(), reason="this machine is in no network")
def test_lan_with_https_serves_who_has_the_link_and_logs_no_token(tmp_path: Path) -> None:
    with command(tmp_path, "--lan", "--https") as service:
        trusted = ssl.create_default_context(cafile=tmp_path / "https" / "key_and_certificate.pem")
        with httpx.Client(base_url=service.address, verify=trusted, timeout=PATIENCE) as phone:
            assert phone.get("/healthz").status_code == 200
            assert phone.get("/").status_code == 401
            while not (link := next((line.split()[-1] for line in service.said if "?token=" in line), "")):
                pass
            assert link.startswith(service.address + "/?token=")
            kept = phone.get(link).headers["set-cookie"]
            assert "Secure" in kept
            page = phone.get("/").text
            assert "Which dish is this?" in page and link in page
            address = service.address.replace("https://", "").rpartition(":")[0]
            with httpx.Client(verify=trusted) as here:
                assert here.get(service.address.replace(address, "127.0.0.1") + "/healthz").status_code == 200
            logged = [line for line in service.logged(phone) if line.startswith("{")]
    token = link.partition("token=")[2]
    assert len(logged) >= 5 and not any(token in line for line in logged)
    assert " ".join(" ".join(service.said).split()).count("no authority vouches for it; go on where it shows") == 1


def test_an_operators_own_token_is_not_written_into_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    network.invite(network.Way(("192.168.1.23",), 7860, "geheim"), secret=True)
    assert "geheim" not in capsys.readouterr().err
    network.invite(network.Way(("192.168.1.23",), 7860, "made-up"), secret=False)
    assert "http://192.168.1.23:7860/?token=made-up" in capsys.readouterr().err


def test_the_codes_are_the_link(tmp_path: Path) -> None:
    """Read back from the half blocks of a terminal, as a phone's camera would."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    import numpy as np

    link = network.Way(("192.168.1.23",), 7860, network.new_token(), "https").link
    rows = [line.removeprefix("\033[97;40m").removesuffix("\033[0m") for line in network.in_blocks(link).splitlines()]
    assert max(map(len, rows)) <= 80
    halves = {" ": (0, 0), "\u2580": (255, 0), "\u2584": (0, 255), "\u2588": (255, 255)}
    cells = [[halves[sign][half] for sign in row] for row in rows for half in (0, 1)]
    picture = np.kron(np.array(cells, np.uint8), np.ones((8, 8), np.uint8))
    assert cv2.QRCodeDetectorAruco().detectAndDecode(picture)[0] == link  # the older one misses 1 code in 75
    assert network.in_svg(link).startswith("<svg")
