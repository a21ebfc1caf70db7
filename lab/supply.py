"""What serving installs: by hashes into a fresh environment, with a bill of materials, licences and known weaknesses.

`requirements-serve.txt` has every version with the sha256 of its wheel, for Linux on x86-64 and CPython 3.11; --lock
writes it anew by what `constraints.txt` and `pyproject.toml` say now. What is found lies in artifacts/supply/.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.benchmark.rows import Row
from runtime.errors import SajiError, Unavailable
from runtime.files import read_json, replacing
from runtime.terminal import say

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements-serve.txt"
FOLDER = ROOT / "artifacts" / "supply"
EXTRAS = "cpu,openvino,demo"
HEAD = """\
# What serving needs on Linux x86-64 with CPython 3.11, by exact versions and the sha256 of each wheel (docs/serve.md).
# Written by: make supply ARGS=--lock
"""
TOOLS = ("cyclonedx_py", "piplicenses", "pip_audit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether the versions are chosen anew."""
    parser.add_argument("--lock", action="store_true", help="write requirements-serve.txt anew, and do nothing else")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row about the environment that the hashes give; none with --lock."""
    if arguments.lock:
        return lock()
    if missing := [tool for tool in TOOLS if not importlib.util.find_spec(tool)]:
        raise Unavailable(f"{', '.join(missing)} is not installed; type: .venv/bin/pip install -e '.[supply]'")
    yield {"experiment": "supply", **described(installed(FOLDER / "venv"))}


def lock() -> None:
    """Write requirements-serve.txt. Raises SajiError where pip cannot choose, or chooses what is no wheel."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--report", str(report), "-c", str(ROOT / "constraints.txt")]
        pip(sys.executable, *options, *build, f"{ROOT}[{EXTRAS}]")
        lines = [line for line in map(locked, read_json(report)["install"]) if line]
    with replacing(LOCK) as temporary:
        temporary.write_text(HEAD + "".join(sorted(lines, key=str.lower)), encoding="utf-8")
    say(f"{LOCK.name}: {len(lines)} packages")


def locked(package: Any) -> str:
    """The lines of a package of pip's report; empty for saji itself."""
    name, version = package["metadata"]["name"], package["metadata"]["version"]
    download = package["download_info"]
    if "archive_info" not in download:
        return ""
    if not download["url"].endswith(".whl"):
        raise SajiError(f"{name} {version} has no wheel for this machine, and what is built has no hash; pin another")
    return f"{name}=={version} \\\n    --hash=sha256:{download['archive_info']['hashes']['sha256']}\n"


def installed(folder: Path) -> Path:
    """The Python of a fresh environment with what requirements-serve.txt says and saji, and nothing else."""
    say(f"installing {LOCK.name} into {folder.relative_to(ROOT)}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip(str(python), "--require-hashes", "-r", str(LOCK))
    pip(str(python), "--no-deps", "--no-build-isolation", str(ROOT))
    return python


def pip(python: str, *arguments: str) -> None:
    """`pip install`. Raises SajiError with the last line of what it says."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SajiError(f"pip could not install: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")


def described(python: Path) -> Row:
    """How many packages an environment has, under which licences, and with which known weaknesses."""
    bill = FOLDER / "sbom.json"
    run("cyclonedx_py", "environment", str(python), "--output-reproducible", "--output-format", "JSON", "-o", str(bill))
    licences = json.loads(run("piplicenses", f"--python={python}", "--format=json", "--with-urls"))
    (FOLDER / "licences.json").write_text(json.dumps(licences, indent=1) + "\n", encoding="utf-8")
    counts = Counter(one["License"] for one in licences)
    say(f"{len(licences)} packages under {len(counts)} licences; the bill of materials: {bill.relative_to(ROOT)}")
    return {"packages": len(licences), "licences": dict(counts.most_common()), **audited()}


def run(tool: str, *arguments: str) -> str:
    """What a tool prints. Raises SajiError with the last line of its complaint."""
    done = subprocess.run([sys.executable, "-m", tool, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SajiError(f"{tool} failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return done.stdout


def audited() -> Row:
    """Known weaknesses of what is locked."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--require-hashes", "--disable-pip"]
    done = subprocess.run([*command, "--format=json", "--progress-spinner=off"], capture_output=True, text=True)
    return audit_of(done.stdout, done.stderr)


def audit_of(out: str, err: str) -> Row:
    """How many packages were audited and how many not, by what pip-audit printed.

    Where it could ask nobody about a package it says that nothing is known of it, and ends with status 0.
    """
    try:
        packages = json.loads(out)["dependencies"]
    except ValueError:
        packages = [{"skip_reason": (err.strip().splitlines() or ["it said nothing"])[-1]}]
    why, asked = "", [one for one in packages if "vulns" in one]
    if len(asked) < len(packages):
        why = next(one["skip_reason"] for one in packages if "vulns" not in one)
        why = re.sub(r"https?://\S+|host='[^']*'", "its database", why)[:160]
        say(f"not audited: {len(packages) - len(asked)} of {len(packages)} packages ({why})")
    known = {f"{one['name']} {one['version']}": [each["id"] for each in one["vulns"]] for one in asked if one["vulns"]}
    if asked:
        say(f"audited: {len(asked)} packages; with known weaknesses: {', '.join(known) or 'none'}")
    return {"audited": len(asked), "not_audited": len(packages) - len(asked), "why_not": why, "weaknesses": known}
