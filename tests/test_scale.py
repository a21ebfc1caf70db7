"""A fleet: what its command line refuses, what a replica refuses to serve, and the metrics of several as one."""

import importlib.util
import os
import pickle
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from demo.scale import __main__ as scale
from demo.scale import rollout
from demo.scale.settings import Settings, open_here, options
from demo.service.limits import Limits
from runtime import cluster
from runtime.errors import SajiError, Unavailable

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra scale)")


def typed(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.scale", *flags])


def test_without_ray_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    typed(monkeypatch)
    with pytest.raises(Unavailable, match=r"ray is not installed; install it with: pip install '.*\[scale\]'"):
        scale.main()


@pytest.mark.parametrize(("address", "token"), [("", "token"), ("10.0.0.1:6379", None)])
def test_what_is_started_here_has_a_token_and_nothing_is_reported(
    address: str, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    ray = SimpleNamespace(init=lambda address, **words: asked.update(words, address=address))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(os, "environ", {})
    cluster.join(address, {"num_cpus": 2})
    assert os.environ.get("RAY_AUTH_MODE") == token and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert asked["address"] == (address or "local") and asked.get("num_cpus") == (None if address else 2)
    assert asked.get("_node_ip_address") == (None if address else "127.0.0.1")


@needs_ray
@pytest.mark.parametrize("replicas", [["0"], ["3", "2"], ["1", "2", "3"]])
def test_numbers_of_replicas_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, replicas: list[str]) -> None:
    typed(monkeypatch, "--replicas", *replicas)
    with pytest.raises(SajiError, match="--replicas takes how many, or the fewest and the most"):
        scale.main()


@needs_ray
@pytest.mark.parametrize("flag", ["--host", "--allow-host"])
def test_a_name_that_no_browser_sends_is_refused_before_a_fleet_starts(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, flag, "café.example")
    with pytest.raises(SajiError, match=f"{flag} café.example is no name as browsers send it"):
        scale.main()


@needs_ray
@pytest.mark.parametrize("share", [("--cpus", "0"), ("--cpus", "1.5"), ("--gpus=-1",), ("--gpus", "1.5")])
def test_shares_of_a_node_that_ray_does_not_give_are_refused(
    monkeypatch: pytest.MonkeyPatch, share: tuple[str, ...]
) -> None:
    typed(monkeypatch, *share)
    with pytest.raises(SajiError, match="--cpus and --gpus take a share of one"):
        scale.main()


@needs_ray
def test_a_replica_serves_the_very_choice_or_says_why_not(model: Path, tmp_path: Path) -> None:
    from runtime.deployment import Deployment, Measured
    from runtime.machine import machine
    from runtime.receipt import Receipt

    receipt = Receipt.read(model)
    chosen = next(each for each in receipt.candidates if (each.backend, each.precision) == ("ort-cpu", "fp32"))
    place = Measured(chosen, str(model), receipt.files[chosen.file].sha256, 1, 1.0)
    here = Deployment(place, "the only one", (), (), {}, machine(), {})
    path = tmp_path / "deployment.json"
    settings = Settings(str(path))
    here.write(path)
    with open_here(path, settings) as classifier:
        assert classifier.candidate.key() == chosen.key()
    with pytest.raises(SajiError, match=r"allows no less than 2\.000; choose another"):
        open_here(path, replace(settings, floor=2.0))
    replace(here, machine=replace(machine(), cpu_features=("sve",))).write(path)
    with pytest.raises(SajiError, match="judge and choose once on each kind of node with: python -m runtime bench"):
        open_here(path, settings)
    replace(here, choice=replace(place, sha256="0" * 64), fallbacks=(place,)).write(path)
    with pytest.raises(SajiError, match="exported again after it was chosen"):  # though the next in line would do
        open_here(path, settings)


def test_a_classifier_is_told_of_to_another_process_as_it_is() -> None:
    from test_demo import colour_classifier

    from demo.scale.remote_classifier import elsewhere, told

    ours = colour_classifier()
    there = elsewhere(pickle.loads(pickle.dumps(told(ours))))
    assert told(there) == told(ours) and there.served_by == ours.served_by
    there.close()


@needs_ray
def test_the_page_of_a_fleet_opens_no_engine_and_names_by_those_of_the_fleet(tmp_path: Path) -> None:
    """The fleet's deployment has no model that could be opened, and its engines open what is not in there."""
    import httpx
    from fleet import fleet
    from gradio_client import Client, handle_file
    from test_demo import CANDIDATE, RED, picture

    with fleet(tmp_path, Limits(), replicas=(1,)) as address:
        client = Client(address, verbose=False)
        answer = client.predict(handle_file(picture(tmp_path / "a.png", RED)), api_name="/classify")
        assert answer["label"] == "red_rendang" and answer["served_by"] == CANDIDATE.name
        assert httpx.get(f"{address}/readyz").status_code == 200


@needs_ray
def test_metrics_of_replicas_are_kept_apart_so_that_no_counter_falls() -> None:
    from demo.scale.metrics import gathered

    def text(count: int) -> bytes:
        head = "# HELP saji_requests_total Requests\n# TYPE saji_requests_total counter\n"
        return f'{head}saji_requests_total{{status="200"}} {count}\nprocess_open_fds 7\n'.encode()

    first, second = (
        'saji_requests_total{replica="a",status="200"} 2.0',
        'saji_requests_total{replica="b",status="200"} 3.0',
    )
    both = gathered([("a", text(2)), ("b", text(3))]).decode()
    assert [line for line in both.splitlines() if line[0] != "#"] == [first, second]
    assert both.count("# TYPE") == 1 and "process" not in both
    ended = gathered([("b", text(3))]).decode()
    assert [line for line in ended.splitlines() if line[0] != "#"] == [second]


def test_a_port_that_is_taken_is_told_before_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "join", lambda *_, **__: pytest.fail("Ray is started"))
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SajiError, match=r"cannot listen on 127\.0\.0\.1 port .*choose with --port"),
        rollout.fleet(asdict(Settings("deployment.json")), taken.getsockname()[1]),
    ):
        pass


@pytest.fixture
def machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What would be deployed on Ray, here or in a cluster, where a node has 3 cores and a GPU."""
    import ray
    from ray import serve

    deployed: list[str] = []
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0}}])
    monkeypatch.setattr(rollout, "deploy", lambda values, *_: deployed.append(values["deployment"]))
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # to be as it was afterwards
    for owner, names in ((rollout, ["join"]), (ray, ["shutdown"]), (serve, ["start", "shutdown"])):
        for name in names:
            monkeypatch.setattr(owner, name, lambda *_, **__: None)
    yield deployed


@needs_ray
@pytest.mark.parametrize(
    ("replicas", "more", "room"), [(2, {"gpus": 1.0}, 1), (3, {"gpus": 0.4}, 2), (2, {"cpus": 2}, 1)]
)
def test_engines_that_do_not_fit_are_refused_here_and_waited_for_in_a_cluster(
    replicas: int, more: dict, room: int, machine_with_a_gpu: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    values = asdict(Settings("one.json", replicas=(replicas,), **more))
    said = f"there is room for {room}: Ray counts 3 CPU and 1 GPU on 1 node; "
    with pytest.raises(Unavailable, match=f"{said}give fewer --replicas"), rollout.fleet(values, 0):
        pass
    assert machine_with_a_gpu == []
    with rollout.fleet(values | {"replicas": [room]}, 0):
        assert machine_with_a_gpu == ["one.json"] and not capsys.readouterr().err
    with rollout.fleet(values, 0, "auto"):
        assert machine_with_a_gpu == ["one.json"] * 2 and f"{said}waiting for nodes" in capsys.readouterr().err


@needs_ray
def test_an_update_needs_room_for_one_engine_more(
    machine_with_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "running", lambda: (Settings("one.json", replicas=(1,), gpus=1.0), 0.9))
    typed(monkeypatch, "--update", "another.json")
    with pytest.raises(Unavailable, match="2 engines of 1 CPU and 1 GPU each are needed, and there is room for 1"):
        scale.main()
    assert machine_with_a_gpu == []


@needs_ray
def test_a_proxy_that_does_not_come_up_is_one_sentence(
    machine_with_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(**_: object) -> None:
        raise RuntimeError("ray::ProxyActor\n  File x\nRuntimeError: Failed to bind to address '127.0.0.1:8000'.")

    monkeypatch.setattr("ray.serve.start", taken)
    with (
        pytest.raises(Unavailable, match=r"cannot be started \(RuntimeError: Failed to bind .*is port 8000 free"),
        rollout.fleet(asdict(Settings("one.json")), 8000, "auto"),
    ):
        pass


@needs_ray
def test_what_a_replica_refused_is_the_sentence_that_is_said() -> None:
    said = "Deploying app failed:\n  File x\nruntime.errors.BadModel: m is damaged; export it again\n"
    assert rollout._refusal(said) == "m is damaged; export it again"


@needs_ray
def test_the_config_file_is_what_serve_deploy_takes_and_tells_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml
    from ray.serve.schema import ServeDeploySchema

    (tmp_path / "deployment.json").write_text("{}")
    file = tmp_path / "serve.yaml"
    typed(monkeypatch, "--out", str(tmp_path), "--write-config", str(file), "--replicas", "2", "8", "--token", "secret")
    scale.main()
    read = ServeDeploySchema.parse_obj(yaml.safe_load(file.read_text()))
    assert [each.route_prefix for each in read.applications] == ["/v1", "/"]
    assert read.applications[0].args["replicas"] == [2, 8] and "secret" not in file.read_text()


@needs_ray
@pytest.mark.parametrize("replicas", [[2], [2, 8]])
def test_a_manifest_for_kuberay_has_the_same_fleet_in_pods_and_no_token(
    replicas: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    (tmp_path / "deployment.json").write_text("{}")
    file = tmp_path / "fleet.yaml"
    asked = ("--replicas", *map(str, replicas), "--gpus", "0.5", "--token", "secret", "--kuberay", "registry/saji:1")
    typed(monkeypatch, "--out", str(tmp_path), "--write-config", str(file), *asked)
    scale.main()
    spec = yaml.safe_load(file.read_text())["spec"]
    assert yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"]["replicas"] == replicas
    engines = spec["rayClusterConfig"]["workerGroupSpecs"][0]
    container = engines["template"]["spec"]["containers"][0]
    assert (engines["minReplicas"], engines["maxReplicas"]) == (2, replicas[-1] + 1)
    # Which brings one more while another deployment comes
    assert spec["rayClusterConfig"]["enableInTreeAutoscaling"]
    assert container["image"] == "registry/saji:1" and container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["volumeMounts"][0]["mountPath"] == str(tmp_path) and "secret\n" not in file.read_text()


@needs_ray
def test_a_replica_takes_no_more_than_its_engine_answers_in_time(tmp_path: Path) -> None:
    from test_demo import deployment

    slow = deployment()
    for milliseconds, queue in ((1.0, 64), (1000.0, 30), (90_000.0, 1)):
        replace(slow, choice=replace(slow.choice, milliseconds=milliseconds)).write(tmp_path / "deployment.json")
        settings = Settings(str(tmp_path / "deployment.json"))
        assert settings.bounds.queue == queue and options(settings)["max_ongoing_requests"] == 2 * queue
