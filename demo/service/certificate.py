"""HTTPS without an authority: a certificate that this machine makes for its own addresses, and keeps."""

import datetime
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from demo.service.network import address_of
from runtime.errors import SajiError
from runtime.files import replacing

VALID = datetime.timedelta(days=365)  # Apple's systems refuse more than 825 (support.apple.com/103769)
LEFT = datetime.timedelta(days=14)  # with less than that it is made anew
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "saji on this machine")])
ALWAYS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Certificate:
    """A file in PEM with key and certificate, and its SHA-256 fingerprint as browsers show it."""

    file: Path
    fingerprint: str


def certificate_for(hosts: Sequence[str], folder: Path) -> Certificate:
    """The certificate in `folder` for `hosts`, addresses or names of this machine, of which the first matters most.

    It is made anew when it does not name the first host, is not valid yet, has less than LEFT to run, or cannot be
    read. Nobody else of this machine can read its key. Raises SajiError when it cannot be kept, or another one is in
    its place.
    """
    file = folder / "key_and_certificate.pem"
    try:
        kept = _kept(file)
        if not kept or not _does(file, kept, hosts[0]):
            if kept and kept.subject != NAME:
                what = f"{file} is not saji's, and cannot be opened, is not valid now or does not name {hosts[0]}"
                raise SajiError(f"{what}; move it away, or leave --https out")
            _write(file, *_made(hosts))
            kept = x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise SajiError(f"{file} cannot be kept ({error.strerror}); free the folder, or leave --https out") from None
    return Certificate(file, kept.fingerprint(hashes.SHA256()).hex(":").upper())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _kept(file: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _does(file: Path, kept: x509.Certificate, host: str) -> bool:
    """Whether it can be used as it is, for one host and for a while."""
    file.chmod(0o600)  # before it is used: a copy of the folder may have forgotten
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, password="")  # or it would ask on the terminal
        names = kept.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ssl.SSLError, ValueError, x509.ExtensionNotFound):
        return False
    return _name(host) in names and kept.not_valid_before_utc <= _now() <= kept.not_valid_after_utc - LEFT


def _name(host: str) -> x509.GeneralName:
    """As browsers look for it: without the zone of an address, and without the dot that may end a name."""
    address = address_of(host.partition("%")[0])
    return x509.IPAddress(address) if address else x509.DNSName(host.removesuffix("."))


def _made(hosts: Sequence[str]) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_name(host) for host in dict.fromkeys([*hosts, *ALWAYS])])
    certificate = (
        x509.CertificateBuilder(NAME, NAME, key.public_key(), x509.random_serial_number())
        .not_valid_before(_now() - datetime.timedelta(days=1))  # a phone's clock may be behind
        .not_valid_after(_now() + VALID)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return key, certificate.sign(key, hashes.SHA256())


def _write(file: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.touch(0o600)
        temporary.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
