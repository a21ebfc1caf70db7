"""A file is opened only if it was uploaded: whatever path a stranger names, the answer tells nothing of the machine."""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from strangers import CALL, META, answer_of_api, answer_of_page, command, the_function
from test_demo import BLUE, GREEN, RED, picture
from test_service import photo

WAYS = ("api", "classify tab", "heat map", "compare", "batch")
PROMPT = 10  # seconds; what is not opened is refused in milliseconds, even on a busy machine
linux_only = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="device files as Linux names them")
Ask = Callable[[Any], str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[httpx.Client]:
    """A client of a service in a process of its own, which can be killed with a thread that never ends."""
    (place / "tmp").mkdir()
    with (
        command(place, before="import strangers; strangers.show_heat()", TMPDIR=str(place / "tmp")) as service,
        httpx.Client(base_url=service.address, timeout=PROMPT) as client,
    ):
        yield client


def asking(client: httpx.Client, way: str) -> Ask:
    """Names one file, Gradio's dict, to one of the page's functions; gives the answer as text."""
    if way == "api":
        return lambda file: answer_of_api(client, [file])
    function = the_function(client, way).index
    return lambda file: answer_of_page(client, function, [[file] if way == "batch" else file])


def uploaded(client: httpx.Client, content: bytes = b"", name: str = "a.png") -> Path:
    """Where a photo that a visitor sent lies."""
    sent = client.post("/gradio_api/upload", files={"files": (name, content or photo(RED, "PNG"))})
    return Path(sent.json()[0])


def named(path: Any, meta: bool) -> dict[str, Any]:
    return {"path": path, "orig_name": "photo.png"} | ({"meta": META} if meta else {})


def spoken(ask: Ask, path: str, meta: bool) -> str:
    """The answer to a path, with the path itself blotted out."""
    began = time.monotonic()
    answer = ask(named(path, meta))
    assert time.monotonic() - began < PROMPT, path
    answer = re.sub("input_value=.*, input_type", "PATH", answer)  # where pydantic repeats it, cut to a length
    for said in (json.dumps(path)[1:-1], path, Path(path).name):
        answer = answer.replace(said, "PATH") if len(said) > 3 else answer
    return answer


def gives_away(answer: str) -> bool:
    """Whether an answer holds a picture, a dish or a word from the inside."""
    told = ("data:image", "rendang", "green", "nasi", "Traceback", "Errno", "No such", "directory", "bytes")
    return not answer or any(word in answer for word in told)


@pytest.fixture(scope="module")
def there(client: httpx.Client, place: Path) -> dict[str, str]:
    """What is on the machine, and was not uploaded."""
    sent = uploaded(client)
    private = picture(place / "private" / "secret.png", BLUE)
    (place / "private" / "text.txt").write_text("secret")
    with (place / "private" / "huge.png").open("wb") as huge:
        huge.truncate(2**33)  # of holes: it takes no space
    for name, target in {"link.png": private, "linked": private.parent, "loop.png": sent.parent / "loop.png"}.items():
        (sent.parent / name).symlink_to(target)
    up = "/".join([".."] * 40)
    return {
        "a picture": str(private),
        "a text": str(place / "private" / "text.txt"),
        "a huge file": str(place / "private" / "huge.png"),
        "a folder": str(place / "private"),
        "the folder of uploads": str(sent.parent.parent),
        "the folder of an upload": str(sent.parent),
        "a link below the uploads": str(sent.parent / "link.png"),
        "a linked folder below the uploads": str(sent.parent / "linked" / "secret.png"),
        "a link to itself": str(sent.parent / "loop.png"),
        "out of the uploads by ..": f"{sent.parent}/{up}{private}",
        "from where it runs by ..": f"{up}{private}",
        "an example": str(place / "models" / "resnet34" / "examples" / "000_green.png"),
        "beside where it runs": "deployment.json",
        "the root": "/",
        "here": ".",
        "accounts": "/etc/passwd",
        "two slashes": "//etc/passwd",
        "as an address": f"file://{private}",
    }


@pytest.fixture(scope="module")
def missing(client: httpx.Client, place: Path) -> str:
    return str(place / "private" / "nothing.png")


@pytest.mark.parametrize("meta", [True, False], ids=["as clients send it", "bare"])
@pytest.mark.parametrize("way", WAYS)
def test_what_was_not_uploaded_is_refused_as_if_it_were_not_there(
    client: httpx.Client, there: dict[str, str], missing: str, way: str, meta: bool
) -> None:
    """The heat map of `{"path": "/any.png"}` once showed that picture, and a sentence told a folder from a file."""
    ask = asking(client, way)
    nothing = spoken(ask, missing, meta)
    assert not gives_away(nothing)
    answers = {what: spoken(ask, path, meta) for what, path in there.items()}
    assert {what: answer for what, answer in answers.items() if answer != nothing} == {}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_uploaded_is_opened(client: httpx.Client, way: str) -> None:
    """So that the refusals beside this mean something."""
    answer = asking(client, way)(named(str(uploaded(client, photo(GREEN, "PNG"))), meta=True))
    said = "data:image/jpeg" if way == "heat map" else "green" if way != "compare" else "<tr>"
    assert said in answer and "alert" not in answer, answer


@pytest.mark.parametrize(
    "path",
    [
        "a\0b.png",
        "/etc/passwd\0.png",
        "x" * 5000,
        "/" * 5000,
        "\ud800",
        "",
        " ",
        "~",
        "~root/.bashrc",
        "%2fetc%2fpasswd",
        *[
            "C:\\Windows\\win.ini",
            "\\\\127.0.0.1\\share\\a.png",
            "/x\n{}",
            7,
            -1,
            0,
            1e300,
            True,
            None,
            [],
            {},
            ["/etc"],
        ],
    ],
    ids=lambda path: repr(path)[:20],
)
def test_a_path_that_is_none_is_refused_without_a_word_from_the_inside(client: httpx.Client, path: Any) -> None:
    for way in ("api", "heat map"):
        for meta in (True, False):
            answer = asking(client, way)(named(path, meta))
            assert not gives_away(answer) and not answer.startswith("5"), (way, meta, answer)
            assert len(answer) < 1500, "the path comes back at full length"
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "file", [None, 5, "a.png", "/etc/passwd", [], {}, {"p": 1}, [{"path": "/etc/passwd"}]], ids=repr
)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_file_at_all_fails_nothing(client: httpx.Client, way: str, file: Any) -> None:
    answer = asking(client, way)(file)
    assert not answer.startswith("5") and "Traceback" not in answer and "Errno" not in answer
    assert not any(error in answer for error in ("TypeError", "KeyError", "AttributeError", "object has no", "indices"))


def test_no_address_is_fetched(client: httpx.Client) -> None:
    """Whatever spelling a request gives it: nobody knocks at the door that it names."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.3)
        url = f"http://127.0.0.1:{door.getsockname()[1]}/x.png"
        for file in (
            {"path": url},
            {"path": url, "meta": META},
            {"path": None, "url": url},
            {"path": None, "url": url, "meta": META},
            {"path": "", "url": url, "meta": META},
            {"path": url.upper(), "meta": META},
            {"url": url},
        ):
            for way in ("api", "heat map", "batch"):
                answer = asking(client, way)(file)
                assert not gives_away(answer) and not answer.startswith("5"), (way, file)
        with pytest.raises(TimeoutError):
            door.accept()


# Last, for where they are opened the service does not live on


@linux_only
@pytest.mark.parametrize(
    "path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "/dev/zero", "/dev/null", "/dev/random"]
)
def test_a_device_is_refused_as_if_it_were_not_there(client: httpx.Client, missing: str, path: str) -> None:
    for way in ("api", "batch"):
        ask = asking(client, way)
        assert spoken(ask, path, meta=False) == spoken(ask, missing, meta=False)


@linux_only
@pytest.mark.parametrize("way", WAYS)
def test_a_device_whose_reading_never_ends_holds_nobody_up(client: httpx.Client, place: Path, way: str) -> None:
    """Three requests of 60 bytes once took every thread of the service, for ever."""
    pipe = place / f"pipe_{way}".replace(" ", "_")
    os.mkfifo(pipe)
    for path in ("/dev/ptmx", str(pipe), str(uploaded_pipe(client)), "/dev/ptmx"):
        if way == "api":
            assert client.post(CALL, json={"data": [{"path": path}]}).status_code < 500
            continue
        body = {"data": [[{"path": path}] if way == "batch" else {"path": path}], "session_hash": "never"}
        body["fn_index"] = the_function(client, way).index
        assert client.post("/gradio_api/queue/join", json=body).status_code < 500
    time.sleep(0.2)
    for _ in range(3):
        answer = client.post("/v1/classify", content=photo(), headers={"content-type": "image/jpeg"}, timeout=PROMPT)
        assert answer.status_code == 200


def uploaded_pipe(client: httpx.Client) -> Path:
    """A pipe that lies where uploads do."""
    pipe = uploaded(client).parent / "pipe.png"
    if not pipe.exists():
        os.mkfifo(pipe)
    return pipe
