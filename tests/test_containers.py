"""The files of demo/containers say what docs/containers.md promises; process 1 of a container ends on time."""

import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import house
import pytest
from conftest import ROOT

from runtime.errors import SajiError, Unavailable

FOLDER = ROOT / "demo" / "containers"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
PARENTS = {name: parent for parent, name in re.findall(r"^FROM (\S+) AS (\S+)", DOCKERFILE, re.MULTILINE)}
# Process 1 gets no signal that it does not handle, and opening a model takes seconds
OPENING = """
import time
from demo import app

app.to_serve = lambda *_: (print("opening", flush=True), time.sleep(60))
app.main()
"""


@pytest.fixture
def compose() -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))


def test_sigterm_ends_it_while_it_opens_a_model() -> None:
    with subprocess.Popen([sys.executable, "-c", OPENING], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout and process.stdout.readline() == "opening\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143


def test_every_base_is_one_of_ours_or_named_by_its_digest() -> None:
    assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)
    assert {parent for parent in PARENTS.values() if parent not in PARENTS} == {"${BASE}"}


@pytest.mark.parametrize("target", ["serve-cpu", "serve-gpu", "train"])
def test_nothing_runs_as_root(target: str) -> None:
    stages = [target]
    while stages[-1] in PARENTS:
        stages.append(PARENTS[stages[-1]])
    users = [user for stage in stages for user in re.findall(r"^USER (\S+)", STAGES.get(stage, ""), re.MULTILINE)]
    assert users[0] == "10001"


def test_what_serves_is_installed_by_hashes() -> None:
    installs = re.findall(r"^RUN pip install (.*)", STAGES["cpu"], re.MULTILINE)
    assert installs == ["--require-hashes -r requirements-serve.txt", "--no-deps --no-build-isolation ."]


def test_compose_takes_from_each_container_what_it_does_not_need(compose: Any) -> None:
    for service in compose["services"].values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["mem_limit"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_compose_gives_flags_that_there_are(compose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from demo.app import _arguments

    monkeypatch.setattr(sys, "argv", ["demo", *compose["services"]["saji"]["command"]])
    assert _arguments().allow_host == ["saji"]


@pytest.mark.parametrize("path", ["saji", "/saji/", "/", "http://food.example/saji", "/a b"])
def test_what_is_no_root_path_is_refused_in_one_sentence(path: str) -> None:
    said = house.here("demo", "--root-path", path)
    assert said.refused and said.last.endswith(
        f"--root-path {path} is no path; give one like /saji, without a / behind"
    )


def test_the_lab_says_what_is_missing(tmp_path: Path) -> None:
    from lab.containers import measure

    with pytest.raises(Unavailable, match="no-such-engine is not here; name another engine with --engine"):
        list(measure(Namespace(engine="no-such-engine", out=tmp_path)))
    with pytest.raises(SajiError, match=r"has no deployment\.json to serve; give another folder with --out"):
        list(measure(Namespace(engine=sys.executable, out=tmp_path)))
