"""What serving installs is known by its hashes, and an audit that asked nobody is none."""

import json
import re
import tomllib

import pytest
from conftest import ROOT

from lab import supply

LINES = supply.LOCK.read_text(encoding="utf-8").splitlines()


def test_every_package_is_exact_and_has_a_hash_and_no_address() -> None:
    entries = [line for line in LINES if not line.startswith("#")]
    assert len(entries) > 60 and len(entries) % 2 == 0
    for name, sha256 in zip(entries[::2], entries[1::2], strict=True):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[\w.!+]+ \\", name), name
        assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", sha256), sha256
    assert "://" not in "".join(LINES)


def test_what_serves_and_what_builds_is_locked_and_pytorch_is_not() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    locked = {line.split("==")[0].lower().replace("_", "-") for line in LINES if "==" in line}
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *(one for name in supply.EXTRAS.split(",") for one in extras[name])]
    assert {re.split(r"[^\w-]", one)[0] for one in wanted} <= locked and "torch" not in locked
    [build] = project["build-system"]["requires"]
    assert re.fullmatch(r"hatchling==[\d.]+", build) and any(line.startswith(f"{build} ") for line in LINES)


def test_the_locked_versions_are_those_that_the_results_were_measured_with() -> None:
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    measured = {name.lower().replace("_", "-"): version for name, version in pinned}
    for line in LINES:
        if match := re.match(r"([\w.-]+)==(\S+)", line):
            assert measured.get(match[1].lower().replace("_", "-"), match[2]) == match[2]


@pytest.mark.parametrize(
    ("out", "asked", "left"),
    [
        (
            '{"dependencies": [{"name": "a", "skip_reason": "not found"}, {"name": "b", "skip_reason": "not found"}]}',
            0,
            2,
        ),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "no"}]}', 1, 1),
        ("", 0, 1),
    ],
)
def test_an_audit_that_asked_nobody_is_none(
    out: str, asked: int, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    row = supply.audit_of(out, "ConnectionError: HTTPSConnectionPool(host='example.org')")
    assert (row["audited"], row["not_audited"]) == (asked, left) and row["why_not"]
    said = capsys.readouterr().err
    assert "not audited" in said and "example.org" not in said + json.dumps(row)


def test_a_known_weakness_is_told() -> None:
    row = supply.audit_of('{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1"}]}]}', "")
    assert row == {"audited": 1, "not_audited": 0, "why_not": "", "weaknesses": {"a 1": ["PYSEC-1"]}}
