"""`model.json`, the receipt of an export: what is in the folder, where it comes from, and every verdict."""

import hashlib
import mmap
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime import signature
from runtime.candidate import Candidate
from runtime.errors import BadModel, SajiError
from runtime.evaluation import EARLIER, PHOTOS, ValidationSet
from runtime.files import file_lost, is_file, read_record, sha256_file, write_record
from runtime.spec import ModelSpec

SCHEMA_VERSION = 1
VERDICTS = "verdicts"  # the folder in which `runtime.verdicts` keeps what other machines found


@dataclass(frozen=True)
class FileFacts:
    """A file's hexadecimal SHA-256 and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Receipt:
    """The content of `model.json`; the keys of `files` are names relative to its folder."""

    spec: ModelSpec
    files: dict[str, FileFacts]
    candidates: tuple[Candidate, ...]
    checkpoint_sha256: str
    request: dict[str, Any]
    graph: dict[str, Any] = field(default_factory=dict)
    engines: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    spec_sha256: str = field(default="", compare=False)  # of its JSON: nothing else tells of another class name

    def write(self, folder: Path) -> None:
        """Write `model.json` atomically; call it last, when every file is complete."""
        write_record(folder / "model.json", replace(self, spec_sha256=_digest(self.spec)), SCHEMA_VERSION)

    @classmethod
    def read(cls, folder: Path) -> "Receipt":
        """Read a model folder's receipt. Raises BadModel when it is missing, damaged or from another schema."""
        return cls.read_signed(folder)[0]

    @classmethod
    def read_signed(cls, folder: Path) -> "tuple[Receipt, str]":
        """The receipt, and the name of the key that signed it, see `runtime.signature`; empty where none did."""
        path = folder / "model.json"
        if not is_file(path):
            raise BadModel(f"{folder} has no model.json; write it with: make export")
        content = path.read_bytes()
        signer = signature.signer_of(path, content)
        receipt = read_record(path, cls, SCHEMA_VERSION, "export the model again", content)
        if receipt.spec_sha256 not in ("", _digest(receipt.spec)):  # earlier versions wrote none
            raise BadModel(f"{path} has another spec than the one that was exported; export the model again")
        return receipt, signer

    def verify_whole(self, folder: Path) -> None:
        """Raise Untrusted unless the folder holds what the receipt lists, unchanged, and nothing else.

        For who requires a signature: also pictures and photos decide what is served. What this machine found itself
        (`verdicts/`) is then not read.
        """
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        own = {"model.json", signature.FILE}
        if others := sorted(name for name in found - own - set(self.files) if not name.startswith(f"{VERDICTS}/")):
            raise signature.Untrusted(f"{folder} holds {others[0]}, which its signed receipt does not list; delete it")
        for name in self.files:
            try:
                self.verify(folder, name)
            except BadModel as error:
                raise signature.Untrusted(str(error)) from None

    def photos(self, folder: Path) -> ValidationSet:
        """The validation photos that verdicts are given by. Raises BadModel unless they are those of the export."""
        file = EARLIER if EARLIER in self.files else PHOTOS
        self.verify(folder, file)
        return ValidationSet.load(folder / file)

    def require_same(self, folder: Path, file: str, sha256: str) -> None:
        """Raise SajiError unless `file` is of this `sha256`: else all that is in the folder is another network's."""
        if file not in self.files or self.files[file].sha256 != sha256:
            raise SajiError(f"{folder.name} was exported again after it was chosen; choose again with: make bench")

    def verify(self, folder: Path, file: str) -> None:
        """Raise BadModel unless `file` is exactly what the receipt describes.

        Before anything that decides is read: engines are code, and pictures and photos tell right engines from wrong.
        """
        path = folder / file
        if file not in self.files:
            raise BadModel(f"{path} is not in its receipt model.json and is not opened; export the model again")
        if not is_file(path):
            raise BadModel(f"{path} is missing though its receipt lists it; export the model again")
        if sha256_file(path) != self.files[file].sha256:
            if why := file_lost(path, self.files[file].bytes):
                raise BadModel(f"{path} {why}")
            raise BadModel(f"{path} is not the file that was checked (its sha256 differs); export the model again")
        if path.suffix == ".onnx" and _names_other_files(path):
            raise BadModel(f"{path} keeps weights in files that no receipt tells of; export the model again")


def _digest(spec: ModelSpec) -> str:
    return hashlib.sha256(spec.to_json().encode()).hexdigest()


def _names_other_files(path: Path) -> bool:
    """Whether an ONNX file keeps weights outside of itself: an entry "location" of a tensor's `external_data`."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"\x0a\x08location\x12") >= 0  # as protobuf writes field 1 of a StringStringEntryProto


def file_facts(folder: Path, names: list[str]) -> dict[str, FileFacts]:
    """The facts of files in a folder, for `Receipt.files`."""
    return {name: FileFacts(sha256_file(folder / name), (folder / name).stat().st_size) for name in names}
