"""`model.json`, the receipt of an export: what is in the folder, where it comes from, and every verdict."""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.candidate import VERDICTS, Candidate
from runtime.errors import BadModel
from runtime.evaluation import GATES
from runtime.files import read_json, sha256_file, write_json
from runtime.spec import ModelSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Receipt:
    """The content of `model.json`. `files` maps a relative name to `{"sha256": …, "bytes": …}`."""

    spec: ModelSpec
    files: dict[str, dict[str, Any]]
    candidates: tuple[Candidate, ...]
    checkpoint_sha256: str
    request: dict[str, Any]
    graph: dict[str, Any] = field(default_factory=dict)
    engines: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `model.json` atomically; call it last, when every file is complete."""
        write_json(folder / "model.json", {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> "Receipt":
        """Read a model folder's receipt. Raises BadModel when it is missing, damaged or from another schema."""
        path = folder / "model.json"
        if not path.is_file():
            raise BadModel(f"{folder} has no model.json; write it with: make export")
        try:
            content = read_json(path)
            version = content.pop("schema_version")
            if version == SCHEMA_VERSION:
                content["spec"] = ModelSpec.from_json(json.dumps(content["spec"]), str(path))
                content["candidates"] = tuple(candidate_from(values) for values in content["candidates"])
                content["skipped"] = tuple(content["skipped"])
                return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadModel(f"{path} is damaged ({error!r}); export the model again") from None
        raise BadModel(f"{path} has version {version}, this saji reads {SCHEMA_VERSION}; export the model again")

    def verify(self, folder: Path, file: str) -> None:
        """Raise BadModel unless `file` is exactly what the receipt describes. Engines are code: check first."""
        path = folder / file
        if file not in self.files:
            raise BadModel(f"{path} is not in its receipt model.json and is not opened; export the model again")
        if not path.is_file():
            raise BadModel(f"{path} is missing though its receipt lists it; export the model again")
        if sha256_file(path) != self.files[file]["sha256"]:
            raise BadModel(f"{path} is not the file that was judged (its sha256 differs); export the model again")


def candidate_from(values: dict[str, Any]) -> Candidate:
    """A Candidate from its JSON form. Raises ValueError, KeyError or TypeError when it is none."""
    candidate = Candidate(**{**values, "reasons": tuple(values["reasons"])})
    if candidate.verdict == "unjudged":  # what version 0.1 called it
        candidate = replace(candidate, verdict="unchecked")
    if not all(isinstance(part, str) for part in candidate.key()):
        raise ValueError("a candidate is not named by text")
    if candidate.verdict not in VERDICTS or candidate.precision not in GATES:
        raise ValueError(f"there is no verdict {candidate.verdict!r}, or no precision {candidate.precision!r}")
    return candidate


def file_facts(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """sha256 and size in bytes of files in a folder, for `Receipt.files`."""
    return {n: {"sha256": sha256_file(folder / n), "bytes": (folder / n).stat().st_size} for n in names}
