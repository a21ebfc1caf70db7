"""HTTPS without an authority: a certificate that this machine makes for its own addresses, and keeps."""

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime.errors import SajiError
from runtime.files import replacing

VALID = datetime.timedelta(days=365)  # Apple's systems refuse more than 825 (support.apple.com/103769)
LEFT = datetime.timedelta(days=14)  # with less than that it is made anew
ALWAYS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Certificate:
    """A file in PEM with key and certificate, and its SHA-256 fingerprint as browsers show it."""

    file: Path
    fingerprint: str


def certificate_for(hosts: Sequence[str], folder: Path) -> Certificate:
    """The certificate in `folder` for `hosts`, addresses or names of this machine, of which the first matters most.

    It is made anew when it does not name the first host, has less than LEFT to run, or cannot be read. Nobody else of
    this machine can read its key. Raises SajiError when it cannot be kept.
    """
    file = folder / "key_and_certificate.pem"
    try:
        if not (kept := _kept(file)) or hosts[0] not in _hosts_of(kept) or _now() > kept.not_valid_after_utc - LEFT:
            _write(file, *_made(hosts))
            kept = x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise SajiError(f"{file} cannot be kept ({error.strerror}); free the folder, or leave --https out") from None
    return Certificate(file, kept.fingerprint(hashes.SHA256()).hex(":").upper())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _kept(file: Path) -> x509.Certificate | None:
    try:
        file.chmod(0o600)  # before it is used: a copy of the folder may have forgotten
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file)
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (FileNotFoundError, ssl.SSLError, ValueError):
        return None


def _hosts_of(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _made(hosts: Sequence[str]) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "saji on this machine")])
    names = x509.SubjectAlternativeName([_name(host) for host in dict.fromkeys([*hosts, *ALWAYS])])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
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
