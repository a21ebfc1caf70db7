"""A model folder is trusted for whose key signed it, and for nothing that was changed since."""

import base64
import dataclasses
import json
import os
import shutil
from pathlib import Path

import house
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import runtime
from runtime import signature, verdicts
from runtime.candidate import Candidate
from runtime.errors import BadModel, SajiError
from runtime.receipt import Receipt, file_facts
from runtime.signature import FILE, REQUIRED, Untrusted
from runtime.spec import Geometry, ModelSpec

FILES = ("model.onnx", "golden.json", "golden.png", "validation.npz", "engines/model.sm89.engine", "examples/000_a.png")
FORM, PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()

Keys = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The files of the private and the public key of the maker and of a stranger."""
    folder, made = tmp_path_factory.mktemp("keys"), {}
    for name in ("maker", "stranger"):
        key, made[name] = ed25519.Ed25519PrivateKey.generate(), (folder / f"{name}.pem", folder / f"{name}.pub")
        made[name][0].write_bytes(key.private_bytes(FORM, serialization.PrivateFormat.PKCS8, PLAIN))
        public = key.public_key().public_bytes(FORM, serialization.PublicFormat.SubjectPublicKeyInfo)
        made[name][1].write_bytes(public)
    return made


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    """A folder of files that are none of a model, with a receipt that its maker signed."""
    folder = tmp_path / "models" / "tiny"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    spec = ModelSpec("tiny", "tiny", ("a", "b"), Geometry.for_size(32))
    candidates = (Candidate("tiny", "model.onnx", "ort-cpu", "fp32", verdict="pass"),)
    Receipt(spec, file_facts(folder, list(FILES)), candidates, "0" * 64, {}).write(folder)
    signature.sign(folder / "model.json", keys["maker"][0])
    return folder


@pytest.fixture
def demanding(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that opens only what the maker signed."""
    monkeypatch.setenv(REQUIRED, "")  # so that it is as it was afterwards
    signature.require(keys["maker"][1])


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def maker(keys: Keys) -> str:
    return signature.name_of(signature.public_key(keys["maker"][1]))


def test_who_signed_is_told_by_the_key(folder: Path, keys: Keys) -> None:
    receipt, signer = Receipt.read_signed(folder)
    assert signer == maker(keys) and len(signer) == 16
    assert receipt == Receipt.read(folder)
    (folder / FILE).unlink()
    assert Receipt.read_signed(folder) == (receipt, "")


@pytest.mark.usefixtures("demanding")
def test_what_the_maker_signed_is_opened(folder: Path) -> None:
    Receipt.read(folder).verify_whole(folder)


@pytest.mark.usefixtures("demanding")
@pytest.mark.parametrize("file", [*FILES, "model.json", FILE])
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_whatever_is_changed_or_missing_is_refused_in_one_sentence(how: str, file: str, folder: Path) -> None:
    changed(folder / file) if how == "changed" else (folder / file).unlink()
    with pytest.raises(BadModel) as refused:
        Receipt.read(folder).verify_whole(folder)
    assert isinstance(refused.value, Untrusted) or (how, file) == ("missing", "model.json")
    assert "\n" not in str(refused.value) and ";" in str(refused.value)


@pytest.mark.usefixtures("demanding")
@pytest.mark.parametrize(
    "file", ["model.onnx.data", "examples/001_b.png", "engines/model.sm89.engine.cache", ".hidden"]
)
def test_what_the_receipt_does_not_list_is_refused(file: str, folder: Path) -> None:
    (folder / file).write_bytes(b"not there when it was signed")
    with pytest.raises(Untrusted, match=f"holds {file}, which its signed receipt does not list; delete it"):
        Receipt.read(folder).verify_whole(folder)


@pytest.mark.usefixtures("demanding")
def test_an_unsigned_folder_and_another_key_are_refused(folder: Path, keys: Keys) -> None:
    (folder / FILE).unlink()
    with pytest.raises(Untrusted, match=r"is not signed, by [0-9a-f]{16} as required"):
        Receipt.read(folder)
    signature.sign(folder / "model.json", keys["stranger"][0])
    with pytest.raises(Untrusted, match=r"is signed by [0-9a-f]{16}, not by [0-9a-f]{16}"):
        Receipt.read(folder)


def test_a_signature_of_another_receipt_is_refused_though_none_is_required(folder: Path) -> None:
    dataclasses.replace(Receipt.read(folder), checkpoint_sha256="1" * 64).write(folder)
    with pytest.raises(Untrusted, match=r"is no signature of model\.json as it is"):
        Receipt.read(folder)


def test_a_key_that_signed_something_else_did_not_sign_a_receipt(folder: Path, keys: Keys) -> None:
    signed = signature.private_key(keys["maker"][0]).sign((folder / "model.json").read_bytes())
    with house.changing(folder / FILE) as told:
        told["signature"] = base64.b64encode(signed).decode()
    with pytest.raises(Untrusted):
        Receipt.read(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"public_key": "", "signature": ""}', b'{"public_key": 1}', b"\xff"]
)
def test_a_signature_that_is_none_is_refused_in_one_sentence(content: bytes, folder: Path) -> None:
    (folder / FILE).write_bytes(content)
    with pytest.raises(Untrusted, match="one of them was changed"):
        Receipt.read(folder)


def test_what_is_no_key_is_refused_in_one_sentence(tmp_path: Path, keys: Keys) -> None:
    other, form = tmp_path / "other.pem", serialization.PrivateFormat.PKCS8
    secret = serialization.BestAvailableEncryption(b"secret")
    for content in (
        None,
        b"no key",
        ec.generate_private_key(ec.SECP256R1()).private_bytes(FORM, form, PLAIN),
        ed25519.Ed25519PrivateKey.generate().private_bytes(FORM, form, secret),
        keys["maker"][1].read_bytes(),
    ):
        other.unlink(missing_ok=True)
        if content is not None:
            other.write_bytes(content)
        with pytest.raises(SajiError, match="holds no private key"):
            signature.private_key(other)
    with pytest.raises(SajiError, match="holds no public key"):
        signature.public_key(keys["maker"][0])
    said = house.here("export", "--sign", other, "--out", tmp_path)
    assert said.refused and "holds no private key" in said.last


@pytest.mark.parametrize("text", ["AAAA", "no base64", " "])
def test_a_required_key_that_is_damaged_lets_nothing_in(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REQUIRED, text)
    with pytest.raises(SajiError, match="holds no public key"):
        Receipt.read(folder)


def test_without_cryptography_a_signed_folder_opens_unless_a_key_is_required(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signature.importlib.util, "find_spec", lambda name: None)
    assert Receipt.read_signed(folder)[1] == ""


def test_export_signs_what_it_made_or_found_up_to_date(
    folder: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    export = pytest.importorskip("export.__main__", reason="the extra export is not installed")
    (folder / FILE).unlink()
    receipt = dataclasses.replace(Receipt.read(folder), candidates=())
    command = export.Command(out=folder.parents[1], sign=keys["maker"][0])
    export._conclude("run", [receipt], command, export.Settings())
    assert Receipt.read_signed(folder)[1] == maker(keys) and f"tiny: signed by {maker(keys)}" in capsys.readouterr().err


# A whole model


@pytest.fixture(scope="module")
def signed(model: Path, tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Path:
    """A model folder that its maker signed, below a deployment that chooses it."""
    out = tmp_path_factory.mktemp("signed")
    folder = Path(shutil.copytree(model, out / "models" / model.name, ignore=shutil.ignore_patterns("verdicts")))
    signature.sign(folder / "model.json", keys["maker"][0])
    house.write_deployment(folder, out / "deployment.json", "ort-cpu")
    return folder


def test_load_opens_what_is_signed_and_nothing_else(signed: Path, keys: Keys) -> None:
    for path in (signed, signed.parents[1] / "deployment.json"):
        with runtime.load(path, require_signature=keys["maker"][1]) as classifier:
            assert classifier.signer == maker(keys)
        with pytest.raises(Untrusted, match="is signed by"):
            runtime.load(path, require_signature=keys["stranger"][1])
    with pytest.raises(Untrusted, match="alone has no receipt"):
        runtime.load(signed / "model.onnx", require_signature=keys["maker"][1])
    assert REQUIRED not in os.environ


@pytest.mark.parametrize("way", ["another folder", "a candidate of its own"])
def test_a_deployment_points_around_no_signature(way: str, signed: Path, keys: Keys, tmp_path: Path) -> None:
    """Nobody signed it; and where its choice is refused, no fallback serves instead."""
    unsigned = house.linked(signed, tmp_path / "unsigned")
    (unsigned / FILE).unlink()
    path = Path(shutil.copy(signed.parents[1] / "deployment.json", tmp_path))
    with house.changing(path) as told:
        told["choice"]["folder"] = os.path.relpath(signed, tmp_path)
        told["fallbacks"] = [json.loads(json.dumps(told["choice"]))]
        if way == "another folder":
            told["choice"]["folder"] = "unsigned"
        else:
            told["choice"]["candidate"]["variant"] = "fast"
    with pytest.raises(Untrusted):
        runtime.load(path, require_signature=keys["maker"][1])


def test_verdicts_that_nobody_signed_are_not_believed(signed: Path, keys: Keys, tmp_path: Path) -> None:
    folder = house.linked(signed, tmp_path / "model")
    receipt = Receipt.read(folder)
    candidate = next(each for each in receipt.candidates if each.verdict == "pass")
    verdicts.keep(folder, receipt, [dataclasses.replace(candidate, verdict="fail", reasons=("forged",))])
    assert verdicts.of_here(folder, receipt)[candidate.key()].verdict == "fail"
    with signature.requiring(keys["maker"][1]):
        assert verdicts.of_here(folder, receipt)[candidate.key()].verdict == "pass"


def test_commands_say_who_signed_and_refuse_another_key(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (("show", signed), ("classify", signed / "golden.png", "--model", signed)):
        for flags in ((), ("--require-signature", keys["maker"][1])):
            monkeypatch.setenv(REQUIRED, "")
            said = house.here("runtime", *command, *flags)
            assert said.status == 0 and f"signed by {maker(keys)}" in said.out + said.err, said
        said = house.here("runtime", *command, "--require-signature", keys["stranger"][1])
        assert said.refused and f"is signed by {maker(keys)}, not by" in said.last
