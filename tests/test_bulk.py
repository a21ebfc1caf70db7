"""`python -m runtime classify --ray`: the answers of `classify`, each photo's once, whatever dies on the way."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import PATIENCE, ROOT
from PIL import Image

from runtime.bulk import command as bulk
from runtime.bulk import places, sources
from runtime.bulk import worker as workers
from runtime.classify import classify
from runtime.command_line import Parser
from runtime.errors import BadPhoto, GateFailed, SajiError

SCALE = "needs the extra scale: pip install '.[scale]'"
COMMAND = [sys.executable, "-m", "runtime", "classify"]
ODD = ["a'b.png", "new\nline.png", "per%20cent #1?.png", "é🍜.png", os.fsdecode(b"caf\xe9.png")]


def test_without_the_extra_a_sentence_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        _typed("--ray", "photos", "--output", "rows")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert "ray is not installed; install it with: pip install" in said and "[scale]'" in said


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", r"be started \(The .* timed out during startup.*second try"),
        ("10.0.0.1:6379", r"be reached at 10\.0\.0\.1:6379 \(The .* timed out .*ray status"),
    ],
)
def test_a_ray_that_does_not_start_is_one_sentence(address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=late))
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # to be as it was afterwards
    with pytest.raises(SajiError, match=says), bulk._ray(address):
        pass


@pytest.mark.parametrize(
    ("gpu", "nodes", "says"),
    [
        (True, [{"CPU": 4.0}, {"CPU": 4.0}], "needs a GPU of a node, and Ray counts 8 CPU and 0 GPU on 2 nodes; start"),
        (True, [{"CPU": 4.0, "GPU": 0.5}] * 2, "and Ray counts 8 CPU and 1 GPU on 2 nodes"),
        (False, [{"GPU": 1.0}], "needs a CPU of a node, and Ray counts 0 CPU and 1 GPU on 1 node; start"),
    ],
)
def test_a_cluster_without_what_an_engine_needs_is_not_waited_for(
    gpu: bool, nodes: list[dict[str, float]], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason=SCALE)
    lost = {"Alive": False, "Resources": {"CPU": 4.0, "GPU": 4.0}}
    alive = [{"Alive": True, "Resources": each} for each in nodes]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: [lost, *alive]))
    job = bulk.Job("model", "an engine", "rows", "/", gpu)
    with pytest.raises(SajiError, match=says):
        next(bulk._done(iter([b"piece"]), job, sources.Names(), 1))


@pytest.mark.parametrize("more", [[], ["--output", "rows", "--json"], ["--output", "rows", "--shard", "0"]])
def test_what_cannot_be_asked_for_is_said(more: list[str]) -> None:
    with pytest.raises(SajiError, match="type: --ray --output FOLDER"):
        _typed("--ray", "photos", *more)


def test_the_address_stands_behind_an_equals_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(bulk, "classify_on_ray", lambda *words: asked.append(words))
    monkeypatch.setattr(bulk, "require_extra", lambda *_: None)
    _typed("--ray", "photos", "--output", "s3://bucket/rows")
    _typed("photos", "more", "--output", "rows", "--ray=10.0.0.1:6379")
    assert [(words[0], words[2], words[3]) for words in asked] == [
        (["photos"], "s3://bucket/rows", ""),
        (["photos", "more"], "rows", "10.0.0.1:6379"),
    ]


def test_ray_is_imported_for_nothing_else() -> None:
    check = "import sys, runtime.__main__; print({'ray', 'pyarrow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", check], cwd=ROOT, text=True) == "set()\n"


def _typed(*words: str) -> None:
    parser = Parser()
    bulk.add_to(parser.add_subparsers())
    arguments = parser.parse_args(["classify", *words])
    arguments.run(arguments)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two nodes with a core each, as processes here."""
    pytest.importorskip("ray", reason=SCALE)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with odd names, one in a folder below, a text named as a photo, and an empty one."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for i, name in enumerate([*ODD, "below/last.PNG"]):
        Image.effect_noise((40 + i, 40), 90).convert("RGB").save(folder / name, "PNG")
    (folder / "broken.jpg").write_text("no picture")
    (folder / "empty.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def local(photos: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `classify` says of them, by name."""
    output = tmp_path_factory.mktemp("local") / "rows.jsonl"
    with pytest.raises(GateFailed, match="2 of 8"):
        classify([str(photos)], model, output=output)
    return {row["photo"].removeprefix(f"{photos}/"): row for row in map(json.loads, output.read_text().splitlines())}


def rows_of(output: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return [row for file in sorted(output.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def require_same(rows: list[dict[str, Any]], local: dict[str, Any], prefix: str) -> None:
    """Each photo once, answered as `classify` does to the last bit."""
    assert len({row["photo"] for row in rows}) == len(rows) == len(local) + 2
    ours = {row["photo"].removeprefix(prefix): row for row in rows}
    for name, expected in local.items():
        row = ours[name.encode(errors="backslashreplace").decode()]
        assert list(row["probabilities"]) == list(expected["probabilities"].items())
        assert {key: row[key] for key in ("label", "sure", "answer", "served_by", "error")} == {
            **{key: expected[key] for key in ("label", "sure", "answer", "served_by")},
            "error": None,
        }
        assert {part for part, _ in row["milliseconds"]} == {"decode", "geometry", "inference"}
    for name in ("broken.jpg", "empty.jpg"):
        assert ours[name]["label"] is None and ours[name]["error"].startswith(f"{name} is no picture")


def test_a_folder_has_the_same_answers_bit_for_bit_and_is_gone_on_with(
    cluster: Any, photos: Path, model: Path, local: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows"
    with pytest.raises(GateFailed, match="2 of 8 photos could not be read; their rows say why"):
        bulk.classify_on_ray([str(photos)], model, str(output), cluster.address, shard=3)
    require_same(rows_of(output), local, f"{photos}/")
    assert sorted(path.name for path in output.iterdir()) == [f"part-0000{i}.parquet" for i in range(3)]
    (output / "part-00001.parquet").unlink()
    with pytest.raises(GateFailed):
        bulk.classify_on_ray([str(photos)], model, str(output), cluster.address, shard=2)
    require_same(rows_of(output), local, f"{photos}/")
    bulk.classify_on_ray([str(photos)], model, str(output), "nowhere:1")  # nothing is left to ask it for
    assert f"0 photos classified; 8 already in {output}" in capsys.readouterr().err
    with pytest.raises(SajiError, match=r"holds answers of .*, which this model \(.*pytorch.*\) would go on with"):
        bulk.classify_on_ray([str(photos)], model / "model.pt2", str(output))


def test_what_a_worker_refuses_is_one_sentence(
    cluster: Any, photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bulk.Job
    monkeypatch.setattr(bulk, "Job", lambda model, served_by, *more: real(model, "another engine", *more))
    with pytest.raises(SajiError, match=r"a node would answer by resnet18 .*, others by another engine, and answers"):
        bulk.classify_on_ray([str(photos)], model, str(tmp_path / "rows"), cluster.address)
    assert list((tmp_path / "rows").iterdir()) == []


@pytest.mark.parametrize("address", ["{}", "{}/", "file://{}", "local://{}/"])
def test_of_two_commands_with_one_output_on_a_disk_the_second_is_refused(address: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason=SCALE)
    one, two = (
        bulk.Shards(bulk.Job("model", "an engine", output, "/", False))
        for output in (str(tmp_path), address.format(tmp_path))
    )
    with one, pytest.raises(SajiError, match="another process is writing rows into"), two:
        pass
    with two:  # as soon as the first has ended
        assert (tmp_path / ".pending").is_dir()


def test_photos_that_kill_their_process_are_named(tmp_path: Path, model: Path) -> None:
    """The marks of those that died stay, so that one too many gives up; who comes through removes them."""
    pytest.importorskip("pyarrow", reason=SCALE)
    (tmp_path / ".pending").mkdir()
    worker = workers.Worker.__new__(bulk.Worker)
    worker.files, worker.pending = places.located(str(tmp_path / ".pending"))
    for _ in range(workers.TRIES):
        worker._tries("a.jpg")
    worker._tries("b.jpg")
    with pytest.raises(SajiError, match=r"5 processes died at the photos from a\.jpg on"):
        worker._tries("a.jpg")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"name": ["a"]}, r"has name \(string\); it needs the photos' names as text in path"),
        ({"path": [1]}, r"has path \(int64\); it needs"),
        ({"path": ["a", None]}, "has a row without a name in path"),
        ({"path": ["a", "a"], "bytes": [b"1", b"2"]}, "a second photo is called a, as one in a table"),
    ],
)
def test_a_table_is_told_what_it_lacks(columns: dict[str, list], said: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason=SCALE)
    import pyarrow as pa

    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(SajiError, match=said):
        list(sources.Everywhere([str(tmp_path / "a.parquet")], print, sources.Names()))
    (tmp_path / "b.parquet").write_text("no table")
    with pytest.raises(SajiError, match="is no file of Parquet that can be read"):
        sources.Everywhere([str(tmp_path / "b.parquet")], print, sources.Names())


class Closed:
    """A file system that pyarrow has no error of Python's for, as of Azure for who is not let in."""

    type_name = "abfs"

    def __getattr__(self, name: str) -> Any:
        import pyarrow as pa

        def refuse(*_: object, **__: object) -> None:
            raise pa.ArrowException("Unknown error: no token\nSee there")

        return refuse


def test_a_store_that_lets_nobody_in_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason=SCALE)
    monkeypatch.setattr(places, "_file_system", lambda *_: (Closed(), "/"))
    job = bulk.Job("model", "an engine", "abfs://box/rows", "/", False)
    asked = {
        "photos cannot be read": lambda: list(sources.Everywhere(["abfs://box/photos"], print, sources.Names())),
        "no rows can be written into abfs://box/rows": bulk.Shards(job).__enter__,
        "abfs://box/rows does not take rows any more": lambda: bulk.Shards(job).keep("file"),
    }
    for said, ask in asked.items():
        with pytest.raises(SajiError, match=rf"{said} \(Unknown error: no token\); "):
            ask()
    worker = workers.Worker.__new__(bulk.Worker)
    worker.job = job
    _, photo = worker._read(("abfs://box/photos/a.jpg", None))
    assert isinstance(photo, BadPhoto) and str(photo) == "a.jpg cannot be opened: Unknown error: no token"


def test_a_folder_of_a_store_is_walked_as_one_of_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason=SCALE)
    others = ("c/note.txt", ".git/4.png", "@eaDir/5.jpg")
    for name in ("b.png", "a/deep/2.jpg", "a/1.JPG", "c/3.webp", "d.png/6.png", *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    here, there = (sources.Everywhere([f"{way}{tmp_path}"], print, sources.Names()) for way in ("", "local://"))
    found = [Path(name.removeprefix("local://")).relative_to(tmp_path).as_posix() for name in there]
    assert found == ["b.png", "a/1.JPG", "a/deep/2.jpg", "c/3.webp", "d.png/6.png"]
    assert [str(tmp_path / name) for name in found] == list(here) and there.left_alone == here.left_alone == 1


@pytest.mark.parametrize("other", ["folder", "photo", "names", "list"])
def test_a_photo_called_as_one_in_a_table_is_refused(
    other: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason=SCALE)
    import pyarrow as pa

    name = str(photos / "broken.jpg")
    parquet.write_table(pa.table({"path": [name], "bytes": [b"1"]}), tmp_path / "photos.parquet")
    parquet.write_table(pa.table({"path": [name]}), tmp_path / "names.parquet")
    (tmp_path / "list").write_text(name)
    place = {"folder": str(photos), "photo": name, "names": str(tmp_path / "names.parquet"), "list": "-"}[other]
    done = sources.Names()
    done.noted(name)  # also where the command is typed again
    found = sources.Everywhere([place, str(tmp_path / "photos.parquet")], print, done)
    with open(tmp_path / "list") as lines:
        monkeypatch.setattr("builtins.open", lambda *_, **__: lines.buffer)
        with pytest.raises(SajiError, match=r"a second photo is called .*broken\.jpg, as one in a table"):
            list(found)


def test_tables_and_uris(cluster: Any, photos: Path, model: Path, local: dict[str, Any], tmp_path: Path) -> None:
    """Of names, and of the photos themselves; relative names begin where the command was typed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    named = {path.relative_to(photos).as_posix(): path for path in sorted(photos.rglob("*.*"))}
    named = {name: path for name, path in named.items() if "\udce9" not in name}  # which a table cannot hold
    expected = {name: row for name, row in local.items() if name in named}
    pq.write_table(pa.table({"path": [str(path) for path in named.values()]}), tmp_path / "names.parquet")
    contents = [path.read_bytes() for path in named.values()]
    pq.write_table(pa.table({"path": list(named), "bytes": contents}), tmp_path / "photos.parquet", row_group_size=3)
    for source, prefix in (("names.parquet", f"{photos}/"), ("photos.parquet", "")):
        output = tmp_path / source.removesuffix(".parquet")
        for _ in range(2):
            with contextlib.suppress(GateFailed):  # the second time only where its photos are the broken ones
                bulk.classify_on_ray([str(tmp_path / source)], model, f"file://{output}", cluster.address, shard=3)
            require_same(rows_of(output), expected, prefix)
            min(output.glob("*.parquet")).unlink()
    uri = f"file://{photos}"  # a folder, one of whose names is no text
    with pytest.raises(GateFailed, match="2 of 8"):
        bulk.classify_on_ray([uri, f"{uri}/below"], model, str(tmp_path / "uris"), cluster.address)


def test_photos_in_a_bucket(photos: Path, model: Path, local: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From S3 into S3, gone on with, and by a Ray that is started for it."""
    pytest.importorskip("ray", reason=SCALE)
    moto = pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[s3,server]'")
    import boto3
    import pyarrow.parquet as pq
    from pyarrow.fs import FileSystem

    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "ENDPOINT_URL": f"http://{host}:{port}",
            "ACCESS_KEY_ID": "a",
            "SECRET_ACCESS_KEY": "b",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = boto3.client("s3")
        store.create_bucket(Bucket="food")
        named = {path.relative_to(photos).as_posix(): path for path in photos.rglob("*.*")}
        odd = {name for name in named if "\udce9" in name or "\n" in name}  # which S3, or moto, cannot hold
        named = {name: path for name, path in named.items() if name not in odd}
        for name, path in named.items():
            store.put_object(Bucket="food", Key=f"photos/{name}", Body=path.read_bytes())
        line = [*COMMAND, "--ray", "s3://food/photos", "--output", "s3://food/rows", "--shard", "4", "--model", model]
        for said in ("2 of 6 photos could not be read", "0 photos classified; 6 already in s3://food/rows"):
            done = subprocess.run(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
            assert said in done.stderr
            files, root = FileSystem.from_uri("s3://food/rows")
            rows = pq.read_table(root, filesystem=files).to_pylist()
            require_same(rows, {name: row for name, row in local.items() if name in named}, "s3://food/photos/")
    finally:
        server.stop()


def many(folder: Path, count: int) -> Path:
    folder.mkdir()
    Image.effect_noise((1500, 1500), 90).convert("RGB").save(folder / "0.png")
    for i in range(1, count):
        os.link(folder / "0.png", folder / f"{i}.png")
    return folder


def worker() -> psutil.Process:
    """A process of Ray's that has opened an engine and is at work."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for process in psutil.process_iter():
            try:
                if process.name().startswith("ray::MapWorker") and process.cpu_times().user > 1:
                    return process
            except psutil.Error:
                continue
        time.sleep(0.02)
    pytest.fail("no process works")


def test_a_worker_a_node_and_the_command_are_killed(cluster: Any, model: Path, tmp_path: Path) -> None:
    """Kill -9 of a worker or node is not noticed; of the command, the next one goes on. Nothing twice, nothing lost."""
    photos, output, lost = many(tmp_path / "photos", 200), tmp_path / "rows", cluster.add_node(num_cpus=1)
    line = [*COMMAND, photos, f"--ray={cluster.address}", "--output", output, "--shard", "5", "--model", model]
    first = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def further(files: int) -> None:
        known = len(list(output.glob("*.parquet")))
        until(lambda: len(list(output.glob("*.parquet"))) >= known + files)

    further(3)
    worker().kill()
    further(4)
    cluster.remove_node(lost, allow_graceful=False)
    further(4)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    left = {row["photo"] for row in rows_of(output)}
    assert 20 < len(left) < 200
    done = subprocess.run(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert f"{200 - len(left)} photos classified; {len(left)} already in" in done.stderr and done.returncode == 0
    names = [row["photo"] for row in rows_of(output)]
    assert sorted(names) == sorted(str(path) for path in photos.iterdir())
    assert not (output / ".pending").exists()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
