"""Other people's machines: a processor, a container, a folder or a setting that is not as where saji was written."""

import errno
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import house
import pytest
from conftest import PATIENCE, ROOT
from house import Said

import runtime
from export.foreign.opening import require_file
from runtime.deployment import Deployment
from runtime.errors import SajiError
from runtime.files import read_json
from runtime.receipt import Receipt
from runtime.show import describe
from training.network.classifier import load_checkpoint
from training.photos.photo_set import read_photo_set
from training.recipe import load_recipe

# --- a verdict holds on the machine that gave it

ANOTHER = {"cpu": "Some Other CPU", "cpu_features": []}


def judged_elsewhere(value: Any) -> None:
    """Every record of a machine in a JSON value becomes that of another one."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "machine" and inner:
                inner.update(ANOTHER)
            else:
                judged_elsewhere(inner)
    elif isinstance(value, list):
        for inner in value:
            judged_elsewhere(inner)


@pytest.fixture
def moved(model: Path, tmp_path: Path) -> Path:
    """A served model whose every verdict was given by another machine."""
    folder = house.linked(model, tmp_path / "models" / "resnet18")
    house.write_deployment(folder, tmp_path / "deployment.json", "ort-cpu", "int8")
    for file in (tmp_path / "deployment.json", folder / "model.json"):
        with house.changing(file) as content:
            judged_elsewhere(content)
    return tmp_path


def served_here(path: Path, **asked: str) -> bool:
    """Whether it is served with a verdict that is known to be of this machine, or refused in one sentence."""
    try:
        with runtime.load(path, **asked) as classifier:
            machine = classifier.candidate.machine
            return machine is not None and machine.cpu != ANOTHER["cpu"]
    except runtime.SajiError as error:
        return "machine" in str(error) or "choices" in str(error)


def test_a_deployment_of_another_machine_is_judged_anew_or_refused(moved: Path) -> None:
    assert served_here(moved / "deployment.json")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_model_folder_of_another_machine_is_judged_anew_or_refused(precision: str, moved: Path) -> None:
    assert served_here(moved / "models" / "resnet18", backend="ort-cpu", precision=precision)


def test_what_another_machine_judged_is_not_called_judged_here(moved: Path) -> None:
    said = house.here("runtime", "classify", moved / "models/resnet18/golden.png", "--model", moved / "deployment.json")
    assert "passed parity on this machine" not in said.err, said


def test_a_verdict_that_names_no_machine_is_not_served_as_this_ones(moved: Path) -> None:
    folder = moved / "models" / "resnet18"
    with house.changing(folder / "model.json") as receipt:
        for candidate in receipt["candidates"]:
            candidate["machine"] = {}
    assert served_here(folder, backend="ort-cpu", precision="int8")


# --- "up to date" is what nothing has changed for


@pytest.fixture
def exported(run: Path, model: Path, tmp_path: Path) -> Path:
    """OUT with a run that is exported."""
    folder = tmp_path / "runs" / "tiny" / "resnet18"
    folder.mkdir(parents=True)
    for file in (run / "checkpoint.pt", *run.glob("*.npz")):
        shutil.copy(file, folder)
    model = house.linked(model, tmp_path / "models" / "resnet18")
    with house.changing(model / "model.json") as receipt:  # the sums of all files take a while
        receipt["files"] = {name: receipt["files"][name] for name in ("golden.json", "golden.png")}
    return tmp_path


def export_again(out: Path) -> Said:
    return house.here("export", "--run", "tiny", "--out", out, "--no-recover")


def older_libraries(receipt: dict[str, Any]) -> None:
    receipt["versions"] |= {"onnxruntime": "1.0", "torch": "1.0"}


def no_openvino_then(receipt: dict[str, Any]) -> None:
    receipt["versions"].pop("openvino")
    receipt["candidates"] = [c for c in receipt["candidates"] if c["backend"] != "openvino"]


def test_an_export_that_nothing_has_changed_for_is_up_to_date(exported: Path) -> None:
    said = export_again(exported)
    assert said.status == 0 and "up to date" in said.err, said


@pytest.mark.parametrize("change", [judged_elsewhere, older_libraries, no_openvino_then])
def test_an_export_of_another_machine_or_with_other_libraries_is_made_anew(
    change: Any, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who installs what the doctor advises and exports again gets what was missing."""

    def write_model(source: Any, folder: Path, *_: Any) -> None:
        raise house.SajiError(f"{folder.name} is made anew")

    monkeypatch.setattr("export.model.write_model", write_model)
    with house.changing(exported / "models" / "resnet18" / "model.json") as receipt:
        change(receipt)
    assert export_again(exported).last == "saji: resnet18 is made anew"


# --- a server that forks: microsoft/onnxruntime#9800, #31961; pytorch/pytorch#49555; benoitc/gunicorn#2478

FORKED = """
import multiprocessing, os, runtime, signal, sys
from pathlib import Path
from runtime.preprocess import pixels
from runtime.heatmap import Heatmap
classifier, heatmap = runtime.load(sys.argv[1], sys.argv[2]), Heatmap.of_model(Path(sys.argv[1]))
image = pixels(sys.argv[3], classifier.spec.geometry)
classifier(sys.argv[3]), heatmap.of(image)
def work(answers):
    for ask in (lambda: classifier(sys.argv[3]), lambda: heatmap.of(image), classifier.backend.precision_share):
        try:
            answers.put(f"answered {ask()}")
        except runtime.SajiError as error:
            answers.put(f"refused: {error}")
    classifier.close()
    answers.put("closed")
fork = multiprocessing.get_context("fork")
answers = fork.SimpleQueue()
worker = fork.Process(target=work, args=(answers,))
worker.start()
worker.join(float(sys.argv[4]))
while not answers.empty():
    print(answers.get(), flush=True)  # or the fork below says it again
worker.kill()
if not (child := os.fork()):
    signal.alarm(int(sys.argv[4]))
    sys.exit()
print(worker.exitcode, os.waitpid(child, 0)[1], classifier(sys.argv[3]).label)
"""


@pytest.mark.parametrize("backend", ["ort-cpu", "openvino", "pytorch"])
@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_that_is_forked_after_the_model_was_opened_answers_or_says_what_to_do(
    backend: str, busy: bool, model: Path
) -> None:
    """As gunicorn --preload does it; a worker that waits for threads that it has not got never answers."""
    amid = "classifier.backend.calls.add(1); heatmap._engine.calls.add(1)\nfork =" if busy else "fork ="
    said = house.python("-c", FORKED.replace("fork =", amid), model, backend, model / "golden.png", 20)
    refused = "refused: an opened model cannot be used in a fork of its process; open it there with runtime.load"
    *told, last = said.out.splitlines()
    expected = [refused if busy or (backend == "pytorch" and place != 1) else "answered" for place in range(3)]
    assert [line if line == refused else line.split()[0] for line in told] == [*expected, "closed"], said
    assert last.startswith("0 0 "), said  # also at its end


# --- since Python 3.14 pathlib takes what may not be looked at for missing: python/cpython#118263


READERS = {
    "a model": runtime.load,
    "whatever saji writes": describe,
    "a deployment": Deployment.read,
    "a receipt": Receipt.read,
    "a record": read_json,
    "a checkpoint": load_checkpoint,
    "photos": read_photo_set,
    "a recipe": lambda path: load_recipe(f"{path}.toml"),
    "a foreign model": lambda path: require_file(path, "a model"),
}


def as_since_python_3_14(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("exists", "is_file", "is_dir"):
        answer = getattr(os.path, method.replace("_", ""))
        monkeypatch.setattr(Path, method, lambda path, answer=answer: answer(path))
    monkeypatch.setattr(Path, "is_symlink", os.path.islink)


@pytest.mark.parametrize("what", READERS)
def test_what_may_not_be_looked_at_is_not_told_as_missing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_since_python_3_14(monkeypatch)
    with pytest.raises((OSError, SajiError), match="File name too long"):
        READERS[what](Path("a" * 5000))


def test_a_class_that_may_not_be_searched_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        house.drawn(1).save(tmp_path / "photos" / name / "1.png")
    stat = os.stat

    def denied(path: Any, *more: Any, **how: Any) -> os.stat_result:
        if Path(str(path)).parts[-2:] == ("b", "1.png"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, *more, **how)

    monkeypatch.setattr(os, "stat", denied)
    as_since_python_3_14(monkeypatch)
    with pytest.raises(OSError, match="Permission denied"):
        read_photo_set(tmp_path / "photos")


# --- PYTHONOPTIMIZE takes asserts away: pytorch/pytorch#2120, opendp/opendp#1930

LEAN = {"PYTHONOPTIMIZE": "1"}
BROKEN = {
    "ort-cpu": "import numpy, onnxruntime\nonnxruntime.InferenceSession.run = lambda *a, **k: [numpy.float32([9])]\n",
    "openvino": "import numpy, openvino\nopenvino.CompiledModel.__call__ = lambda *a, **k: {0: numpy.float32([9])}\n",
    "pytorch": "import torch\ntorch.relu = lambda x: torch.tensor([9.0])\n",
}
# what an engine of the three is not examined for is hidden, because it takes seconds to import
MODULES = {"ort-cpu": "onnxruntime", "openvino": "openvino", "pytorch": "torch"}


def ready(folder: Path, engine: str, broken: str, lean: dict[str, str]) -> bool:
    """Whether the doctor calls an engine ready where `broken` is run as Python starts."""
    # OpenVINO reports its use from a process of its own, which from Python 3.14 on starts as this one does, without end
    others = [module for name, module in MODULES.items() if name != engine] + ["openvino_telemetry"]
    hidden = "".join(f"sys.modules[{module!r}] = None\n" for module in others)
    (folder / "sitecustomize.py").write_text(f"import sys\n{hidden}{broken}")
    said = house.process("runtime", "doctor", "--json", environment={"PYTHONPATH": str(folder), **lean})
    return engine in json.loads(said.out)["ready"]


ENGINES = ["ort-cpu", "openvino", pytest.param("pytorch", marks=pytest.mark.slow)]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_doctor_finds_an_engine_that_computes_wrongly_without_asserts(engine: str, tmp_path: Path) -> None:
    assert not ready(tmp_path, engine, BROKEN[engine], LEAN)


@pytest.mark.slow
@pytest.mark.parametrize("engine", BROKEN)
def test_the_doctor_finds_an_engine_that_computes_wrongly(engine: str, tmp_path: Path) -> None:
    assert ready(tmp_path, engine, "", {}) and ready(tmp_path, engine, "", LEAN)
    assert not ready(tmp_path, engine, BROKEN[engine], {})


@pytest.mark.slow
def test_every_verb_works_without_asserts(model: Path, tmp_path: Path) -> None:
    path = house.write_deployment(model, tmp_path / "deployment.json", "ort-cpu")
    classify = ("classify", model / "golden.png", "--json", "--output", tmp_path / "rows.jsonl", "--model", path)
    for line in (("selftest", model), classify, ("show", path)):
        said = house.process("runtime", *line, environment=LEAN)
        assert said.status == 0, said
    assert json.loads((tmp_path / "rows.jsonl").read_text())["label"]


# --- a user's own folders and names


# SysCV/sam-pt#6, facebookresearch/detectron2#1960
@pytest.mark.parametrize("name", ["training", "export", "demo", "runtime"])
def test_a_users_own_package_is_found_beside_an_installed_saji(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.py").write_text("print('mine')")
    said = house.python("-m", f"{name}.mine", cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    assert said.out == "mine\n", said


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the folder that a process is in")
def test_it_is_imported_where_the_current_folder_is_gone() -> None:
    gone = "import os, tempfile; os.chdir(folder := tempfile.mkdtemp()); os.rmdir(folder); import runtime.verdicts"
    said = house.python("-c", gone, environment={"PYTHONPATH": str(ROOT)})
    assert said.status == 0, said


# MIT-LCP/mimic-code#481, sio/Makefile.venv#5, espeak-ng/espeak-ng#1015
RECORD = f"{shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def made(*settings: str) -> list[str]:
    """The arguments that `make train` starts Python with; nothing is installed and nothing is trained."""
    line = ["make", "--no-print-directory", "-s", "-o", ".venv/installed", "-C", str(ROOT), "train", f"PY={RECORD}"]
    done = subprocess.run([*line, *settings], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    arguments: list[str] = json.loads(done.stdout)
    return arguments


@needs_make
@pytest.mark.parametrize("name", ["my photos", "photos (1)", "Ani's photos", 'a "b" $HOME', "[fish] & chips;", "café"])
def test_make_takes_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    data, out = str(tmp_path / name), str(tmp_path / f"out of {name}")
    arguments = made(f"DATA={data}", f"OUT={out}")
    given = {flag: arguments[arguments.index(flag) + 1] for flag in ("--data", "--run", "--out")}
    assert given == {"--data": data, "--run": name, "--out": out}
    arguments = made(f"DATA={data}", f"RUN={name} 2")
    assert arguments[arguments.index("--run") + 1] == f"{name} 2"


@needs_make
@pytest.mark.parametrize("data", [".", "./", ".."])
def test_make_names_the_run_of_the_folder_that_one_stands_in(data: str) -> None:
    arguments = made(f"DATA={data}")
    assert arguments[arguments.index("--run") + 1] == (ROOT / data).resolve().name


@needs_make
def test_make_takes_a_folder_of_a_plain_name(tmp_path: Path) -> None:
    arguments = made(f"DATA={tmp_path}/photos")
    assert arguments[arguments.index("--data") + 1] == f"{tmp_path}/photos"
    assert arguments[arguments.index("--run") + 1] == "photos"


# --- nobody is told: openvinotoolkit/openvino#23832, #20290; blakeblackshear/frigate#18015


@contextmanager
def proxy(home: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """An environment in which every request of a library arrives here, and what was asked for so far."""
    asked: list[str] = []
    home.mkdir()

    def serve() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:  # closed
                return
            with link:
                link.settimeout(5)
                asked.append(link.recv(300).split(b"\r\n")[0].decode(errors="replace"))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=serve, daemon=True).start()
        names = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy")
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        switches = ("NO_PROXY", "no_proxy", "CI", "TF_BUILD", "JENKINS_URL", "DO_NOT_TRACK", "NNCF_CI")
        yield {**dict.fromkeys(switches, ""), **dict.fromkeys(names, address), "HOME": str(home)}, asked
        listener.shutdown(socket.SHUT_RDWR)


LEAVES_NO_ID = "import sys, time, pathlib\n{}\ntime.sleep(1)\n"
OPENS = """
import runtime
with runtime.load(sys.argv[1], sys.argv[2]) as classifier:
    print(classifier(sys.argv[3]).label)"""
CALIBRATES = """
from export.precision import quantise
from runtime.receipt import Receipt
import numpy
model = pathlib.Path(sys.argv[1])
photos = numpy.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), numpy.uint8)
quantise(model / "model.onnx", photos, Receipt.read(model).spec, pathlib.Path(sys.argv[2]), recover=False)
print("calibrated")"""
EXAMINES = """
sys.modules["torch"] = None  # takes seconds to import
import runtime
print(runtime.available_backends()["openvino"])"""


def told_nobody(said: Said, asked: list[str], home: Path) -> None:
    assert said.status == 0 and said.out.strip(), said
    left = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    assert asked == [] and not any("openvino" in name or "intel" in name or "nncf" in name for name in left), (
        asked,
        left,
    )


def test_serving_with_openvino_asks_no_other_host_and_leaves_no_id(model: Path, tmp_path: Path) -> None:
    with proxy(tmp_path / "home") as (environment, asked):
        code = LEAVES_NO_ID.format(OPENS)
        said = house.python("-c", code, model, "openvino", model / "golden.png", environment=environment)
        told_nobody(said, asked, tmp_path / "home")


def test_looking_which_engines_there_are_asks_no_other_host_and_leaves_no_id(tmp_path: Path) -> None:
    with proxy(tmp_path / "home") as (environment, asked):
        said = house.python("-c", LEAVES_NO_ID.format(EXAMINES), environment=environment)
        told_nobody(said, asked, tmp_path / "home")


@pytest.mark.slow
def test_the_command_asks_no_other_host_and_leaves_no_id(model: Path, tmp_path: Path) -> None:
    path = house.write_deployment(model, tmp_path / "deployment.json", "openvino")
    with proxy(tmp_path / "home") as (environment, asked):
        said = house.process("runtime", "classify", model / "golden.png", "--model", path, environment=environment)
        time.sleep(1)
        told_nobody(said, asked, tmp_path / "home")


def verbs(model: Path, sample: Path, out: Path) -> dict[str, tuple[object, ...]]:
    """Each command of a user's day, on the tiny model."""
    golden, deployment = model / "golden.png", house.write_deployment(model, out / "deployment.json", "openvino")
    judged = house.linked(model, out / "judged" / "models" / "resnet18")
    training = ("--data", sample, "--archs", "resnet18", "--epochs", 1, "--image-size", 32, "--run", "r")
    return {
        "classify": ("-m", "runtime", "classify", golden, "--model", deployment),
        "show": ("-m", "runtime", "show", model),
        "doctor": ("-m", "runtime", "doctor"),
        "selftest": ("-m", "runtime", "selftest", model),
        "train": ("-m", "training", *training, "--out", out),
        "export": ("-m", "export", "--run", "r", "--out", out, "--no-recover"),
        "bench": (ROOT / "runtime" / "bench.py", "--out", judged.parents[1], "--seconds", 2),
    }


@pytest.mark.slow
@pytest.mark.parametrize("home", ["empty", "not writable", "none"])
def test_no_verb_asks_another_host_whatever_the_home(home: str, model: Path, sample: Path, tmp_path: Path) -> None:
    """With the real engines, behind a proxy that would hear of it."""
    start = "import os, runpy, sys\nif sys.argv[1] == 'none':\n    del os.environ['HOME']\ndel sys.argv[:2]\n"
    start += "name = sys.argv.pop(0) if sys.argv[0] == '-m' else ''\n"
    start += "run = runpy.run_module if name else runpy.run_path\nrun(sys.argv[0], run_name='__main__')"
    with proxy(tmp_path / "home") as (environment, asked):
        if home == "not writable":
            environment["HOME"] = "/dev/null/home"  # not even for root
        for verb, line in verbs(model, sample, tmp_path / "out").items():
            said = house.python("-c", start, home, *line, environment=environment)
            assert said.status == 0 and asked == [], (verb, said, asked)
    assert not [path for path in (tmp_path / "home").rglob("*") if "openvino" in path.name or "intel" in path.name]


@pytest.mark.slow
def test_calibrating_for_int8_asks_no_other_host_and_leaves_no_id(model: Path, tmp_path: Path) -> None:
    with proxy(tmp_path / "home") as (environment, asked):
        code, out = LEAVES_NO_ID.format(CALIBRATES), tmp_path / "model.int8.onnx"
        told_nobody(house.python("-c", code, model, out, environment=environment), asked, tmp_path / "home")


# --- a container with a read-only disk: gradio-app/gradio#3693, DCAN-Labs/BIBSnet#43


def may_mount() -> bool:
    """Whether this user may have mounts of its own."""
    try:
        line = ["unshare", "--mount", "mount", "--bind", "/tmp", "/tmp"]
        return subprocess.run(line, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


needs_mounts = pytest.mark.skipif(
    not may_mount(), reason="unshare --mount, which makes disks read-only, is not allowed"
)
TEMPORARY = (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")


def closed(folders: list[str], line: list[str]) -> list[str]:
    """A command line that runs another where these folders cannot be written to."""
    mounts = "".join(
        f"mount --bind {f} {f} && mount -o remount,ro,bind {f} || exit 9; " for f in map(shlex.quote, folders)
    )
    return ["unshare", "--mount", "sh", "-c", f"{mounts} exec {shlex.join(line)}"]


@pytest.fixture
def deployed(model: Path, tmp_path: Path) -> Path:
    return house.write_deployment(model, tmp_path / "deployment.json", "ort-cpu")


def shut_away(line: list[str], temporary: bool) -> subprocess.Popen[str]:
    """Start a command where checkout, home and system cannot be written to; `temporary`: nor any temporary folder."""
    folders = [*(TEMPORARY if temporary else ()), str(ROOT), str(Path.home()), "/var", "/etc"]
    there = [folder for folder in dict.fromkeys(folders) if Path(folder).is_dir()]
    environment = {"PATH": os.environ["PATH"], "HOME": str(Path.home()), "LC_ALL": "C"}
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(closed(there, line), cwd=ROOT, env=environment, text=True, **pipes)


@needs_mounts
@pytest.mark.parametrize("temporary", [False, True], ids=["but for temporary folders", "altogether"])
def test_photos_are_classified_where_nothing_can_be_written(temporary: bool, deployed: Path, model: Path) -> None:
    line = [sys.executable, "-m", "runtime", "classify", str(model / "golden.png"), "--model", str(deployed)]
    out, err = shut_away(line, temporary).communicate(timeout=120)
    assert len(out.splitlines()) == 1 and "Traceback" not in err, (out, err)


@needs_mounts
@pytest.mark.slow
def test_page_and_service_run_where_only_temporary_folders_can_be_written(deployed: Path, model: Path) -> None:
    line = [sys.executable, "-m", "demo", "--port", "0", "--deployment", str(deployed)]
    with shut_away(line, temporary=False) as process:
        try:
            assert process.stderr
            said = ""
            while " on http" not in said:
                said = process.stderr.readline()
                assert said, "it ended before it served"
            address = said.split()[-1]
            photo, kind = (model / "golden.png").read_bytes(), {"content-type": "image/png"}
            asked = urllib.request.Request(f"{address}/v1/classify", photo, kind)
            for request in (urllib.request.Request(f"{address}/"), asked):
                with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                    assert answer.status == 200
        finally:
            process.terminate()
            process.communicate(timeout=60)


@needs_mounts
def test_the_demo_says_in_one_sentence_that_it_needs_a_temporary_folder(deployed: Path) -> None:
    line = [sys.executable, "-m", "demo", "--port", "0", "--deployment", str(deployed)]
    _, err = shut_away(line, temporary=True).communicate(timeout=120)
    last = (err.strip().splitlines() or [""])[-1]
    assert last.startswith("saji: ") and "Traceback" not in err, err


def test_no_library_reports_who_uses_it_and_what_somebody_set_stays() -> None:
    told = "*(os.environ.get(name) for name in sys.argv[1:]), 'openvino_telemetry' in sys.modules"
    code = f"import os, sys, runtime; print({told})"
    names = ("DO_NOT_TRACK", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    line = [sys.executable, "-c", code, *names]
    for own, expected in (({}, "1 False 1 1 True"), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "1 False 0 1 True")):
        done = subprocess.run(line, env=clean | own, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.split() == expected.split(), done.stderr
