"""Who vouches for a model folder: a signature (Ed25519) of its receipt, which has the sha256 of every file.

A key is made by openssl (docs/export.md), and no service is asked. Cryptography is imported where it is needed: who
neither signs nor checks can do without it.
"""

import base64
import binascii
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from runtime.errors import BadModel, SajiError, missing_extra
from runtime.files import DAMAGE, exists, read_json, write_json

FILE = "model.json.sig"
# The key that is required, so that processes that this one starts require it, too
REQUIRED = "SAJI_REQUIRE_SIGNATURE"
PURPOSE = b"saji receipt\0"  # so that a signature that the same key gave for something else is none of a receipt
KEY_BYTES, SIGNATURE_BYTES = 32, 64
_required: ContextVar[bytes] = ContextVar("required")


class Untrusted(BadModel):
    """A model folder that the required key does not vouch for. Nothing is opened in its place."""


@contextmanager
def requiring(key: Path | str) -> Iterator[None]:
    """Meanwhile only what the key in this file signed is opened; "" asks for what the environment asks for."""
    token = _required.set(public_key(Path(key))) if key else None
    try:
        yield
    finally:
        if token:
            _required.reset(token)


def require(key: Path) -> None:
    """From now on, also in processes that this one starts, open only what the key in this file signed."""
    os.environ[REQUIRED] = base64.b64encode(public_key(key)).decode()


def required() -> bytes:
    """The key that has to have signed what is opened, 32 bytes; none where there is none. Raises SajiError."""
    if key := _required.get(b""):
        return key
    try:
        key = base64.b64decode(os.environ.get(REQUIRED, ""), validate=True)
    except binascii.Error:
        key = b"?"
    if key and len(key) != KEY_BYTES:
        raise SajiError(f"{REQUIRED} holds no public key; leave it to --require-signature")
    return key


def name_of(key: bytes) -> str:
    """How people tell a public key from another: the beginning of its sha256."""
    return hashlib.sha256(key).hexdigest()[:16]


def public_key(path: Path) -> bytes:
    """The 32 bytes of the public key in a PEM file. Raises SajiError for what is none."""
    key = _read(path, "load_pem_public_key", "Ed25519PublicKey", "public key")
    return bytes(key.public_bytes_raw())


def private_key(path: Path) -> Any:
    """The private key in a PEM file, not encrypted. Raises SajiError for what is none."""
    return _read(path, "load_pem_private_key", "Ed25519PrivateKey", "private key", password=None)


def _read(path: Path, how: str, kind: str, what: str, **options: Any) -> Any:
    ed25519, serialization = _libraries()
    try:
        key = getattr(serialization, how)(path.read_bytes(), **options)
    except (OSError, ValueError, TypeError) as error:
        raise SajiError(f"{path} holds no {what} that can be read ({error}); see docs/export.md") from None
    if not isinstance(key, getattr(ed25519, kind)):
        raise SajiError(f"{path} holds no {what} of Ed25519; make one with: openssl genpkey -algorithm ed25519")
    return key


def _libraries() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise missing_extra("cryptography", "demo") from None
    return ed25519, serialization


def sign(receipt: Path, key: Path) -> str:
    """Sign the file `receipt` of a model folder, in a file beside it; the name of the key that vouches for it."""
    private = private_key(key)
    public = private.public_key().public_bytes_raw()
    values = {"public_key": public, "signature": private.sign(PURPOSE + receipt.read_bytes())}
    write_json(receipt.with_name(FILE), {name: base64.b64encode(value).decode() for name, value in values.items()})
    return name_of(public)


def signer_of(receipt: Path, content: bytes) -> str:
    """The name of the key that signed a receipt with this content; empty where it is not signed.

    Empty also where cryptography is missing and no key is required. Raises Untrusted where another key is required, or
    the signature is not of this receipt.
    """
    wanted, file = required(), receipt.with_name(FILE)
    if not exists(file):
        if wanted:
            raise Untrusted(f"{receipt.parent} is not signed, by {name_of(wanted)} as required; ask its maker")
        return ""
    if not wanted and not importlib.util.find_spec("cryptography"):
        return ""
    try:
        values = {name: base64.b64decode(value, validate=True) for name, value in read_json(file).items()}
        key, signature = values["public_key"], values["signature"]
        right = len(key) == KEY_BYTES and len(signature) == SIGNATURE_BYTES and _fits(key, signature, content)
    except (OSError, *DAMAGE):
        right = False
    if not right:
        raise Untrusted(f"{file} is no signature of {receipt.name} as it is; one of them was changed, ask its maker")
    if wanted and key != wanted:
        raise Untrusted(f"{receipt.parent} is signed by {name_of(key)}, not by {name_of(wanted)}; ask its maker")
    return name_of(key)


def _fits(key: bytes, signature: bytes, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    ed25519, _ = _libraries()
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, PURPOSE + content)
    except InvalidSignature:
        return False
    return True
