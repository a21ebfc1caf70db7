"""The service: photos in, labels out; what is refused is refused in one sentence, and the next request is served."""

import asyncio
import base64
import gzip
import io
import itertools
import json
import os
import re
import socket
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import PATIENCE, SHARED, needs_shared
from fleet import fleet, needs_ray
from PIL import Image
from test_demo import CANDIDATE, GREEN, RED, ROOT, colour_classifier, deployment, picture, running, serving_of

from demo import app
from demo.service.api import Server, build_api
from demo.service.decoders import Decoders
from demo.service.limits import Limits, bounds, flag_of
from demo.service.queue import Serving
from runtime.classifier import Classifier
from runtime.deployment import Deployment
from runtime.errors import SajiError
from runtime.files import sha256_file
from runtime.spec import Geometry

SMALL = Limits(bytes=200_000, pixels=1_000_000, photos=3, queue=4, seconds=20)
TOKEN = "sesam öffne"
PROBLEM = "application/problem+json"


def photo(
    colour: tuple[int, int, int] = RED, kind: str = "JPEG", size: tuple[int, int] = (90, 60), **how: Any
) -> bytes:
    encoded = io.BytesIO()
    Image.new(how.pop("mode", "RGB"), size, colour).save(encoded, kind, **how)
    return encoded.getvalue()


@contextmanager
def alone(folder: Path, limits: Limits) -> Iterator[str]:
    """The address of the single service."""
    with serving_of(colour_classifier(), folder, limits) as serving, running(serving) as address:
        yield address


@pytest.fixture(
    scope="module", params=[pytest.param(alone, id="alone"), pytest.param(fleet, id="fleet", marks=needs_ray)]
)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a running service with small limits: the single one, and replicas on Ray Serve."""
    with (
        request.param(tmp_path_factory.mktemp("service"), SMALL) as address,
        httpx.Client(base_url=address, timeout=PATIENCE) as client,
    ):
        yield client


not_of_a_fleet = pytest.mark.parametrize("service", [alone], ids=["alone"], indirect=True)


def send(client: httpx.Client, body: bytes, kind: str = "image/jpeg", **how: Any) -> httpx.Response:
    return client.post("/v1/classify", content=body, headers={"content-type": kind}, **how)


def refused(answer: httpx.Response, status: int, cause: str) -> str:
    """The one sentence of a refusal, which has to be this one."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
    document = answer.json()
    assert (document["status"], document["cause"]) == (status, cause), document
    assert document["request_id"] == answer.headers["x-request-id"]
    sentence: str = document["detail"]
    assert "\n" not in sentence and "Traceback" not in sentence and sentence
    return sentence


# Answers


def test_a_photo_as_the_body_is_named(service: httpx.Client) -> None:
    answer = send(service, photo()).json()
    first = answer["answers"][0]
    assert (first["label"], first["sure"], answer["served_by"]) == ("red_rendang", True, CANDIDATE.name)
    assert list(first["milliseconds"]) == ["decode", "geometry", "inference"]
    assert sum(first["probabilities"].values()) == pytest.approx(1)


def test_photos_of_a_form_are_named_in_their_order(service: httpx.Client) -> None:
    files = [("photo", ("../../etc/passwd", photo())), ("x", ("b.png", photo(GREEN, "PNG")))]
    answer = service.post("/v1/classify", files=files, params={"top": 1}).json()
    assert [a["label"] for a in answer["answers"]] == ["red_rendang", "green_lalap"]
    assert [list(a["probabilities"]) for a in answer["answers"]] == [["red_rendang"], ["green_lalap"]]


def test_an_answer_does_not_wait_for_its_headers_to_be_acknowledged() -> None:
    with app.listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_model_tells_what_serves_and_within_which_limits(service: httpx.Client) -> None:
    told = service.get("/v1/model").json()
    assert (told["served_by"], told["verdict"], told["accuracy"]) == (CANDIDATE.name, "pass", 0.9712)
    assert told["classes"][0] == "red_rendang" and told["limits"]["bytes"] == SMALL.bytes


def test_openapi_describes_the_answers_with_examples(service: httpx.Client) -> None:
    described = service.get("/openapi.json").json()
    body = described["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "image/jpeg"} <= set(body)
    assert described["components"]["schemas"]["Answers"]["example"]["answers"][0]["label"]
    assert PROBLEM in described["paths"]["/v1/classify"]["post"]["responses"]["413"]["content"]


def test_metrics_count_requests_errors_and_parts(service: httpx.Client) -> None:
    def counted(line: str) -> float:
        text = re.sub(r',replica="[^"]*"|{replica="[^"]*"}|(?<={)replica="[^"]*",', "", service.get("/metrics").text)
        return sum(float(row.split()[-1]) for row in text.splitlines() if row.startswith(line))

    lines = [
        'saji_requests_total{route="/v1/classify",status="200"}',
        'saji_errors_total{cause="not-a-picture"}',
        'saji_part_seconds_count{part="inference"}',
        "saji_batch_size_count",
    ]
    before = [counted(line) for line in lines]
    send(service, photo())
    send(service, b"no picture")
    assert [counted(line) for line in lines] == [value + 1 for value in before]
    assert counted("saji_queue_depth") == 0
    assert 'backend="openvino"' in service.get("/metrics").text


# Refusals


def bomb() -> bytes:
    """The head of a PNG that unpacks to 900 megapixels."""
    size = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size)) + b"\0\0\0\1IDAT"


def part(content: bytes) -> bytes:
    """A file of a form whose boundary is x."""
    return b'--x\r\nContent-Disposition: form-data; name="p"; filename="a.jpg"\r\n\r\n' + content + b"\r\n"


def hopeless() -> dict[str, tuple[bytes, str, int, str]]:
    """Bodies that nobody can name, with the type they claim to have, and how each is refused."""
    form, cut = "multipart/form-data; boundary=x", part(photo()) + part(photo(GREEN))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    return {
        "html as image": (b"<!doctype html><script>alert(1)</script>", "image/jpeg", 422, "not-a-picture"),
        "svg with script": (svg, "image/svg+xml", 422, "not-a-picture"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/eps", 422, "not-a-picture"),
        "a format of no camera": (photo(kind="PCX"), "image/x-pcx", 422, "not-a-picture"),
        "truncated": (photo(kind="PNG", size=(500, 500))[:400], "image/png", 422, "not-a-picture"),
        "bomb": (bomb(), "image/png", 413, "too-many-pixels"),
        "many pixels": (photo(size=(1200, 1200)), "image/jpeg", 413, "too-many-pixels"),
        "nothing": (b"", "image/jpeg", 400, "no-photo"),
        "nan in json": (b'{"photo": NaN}', "application/json", 415, "content-type"),
        "too large": (bytes(SMALL.bytes + 1), "image/jpeg", 413, "too-large"),
        "form without boundary": (b"--x", "multipart/form-data", 400, "form"),
        "form that is none": (b"hello", form, 400, "form"),
        "form cut in its last photo": (cut[:-99], form, 400, "form"),
        "form without its last line": (cut, form, 400, "form"),
        "form in a charset that is none": (cut + b"--x--\r\n", f"{form}; charset=undefined", 400, "form"),
        "form without file": (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
            form,
            400,
            "no-photo",
        ),
    }


@pytest.mark.parametrize(("body", "kind", "status", "cause"), hopeless().values(), ids=list(hopeless()))
def test_bad_input_is_refused_in_one_sentence_and_the_next_is_served(
    service: httpx.Client, body: bytes, kind: str, status: int, cause: str
) -> None:
    refused(send(service, body, kind), status, cause)
    assert send(service, photo()).status_code == 200


def test_a_form_that_is_cut_is_not_taken_for_a_shorter_one(guarded: str) -> None:
    """Whether it comes with its length or in chunks, to the API or to the page."""
    whole, kind = part(photo()) + part(photo(GREEN)) + b"--x--", {"content-type": "multipart/form-data; boundary=x"}

    def asked(path: str, body: Any) -> int:
        return httpx.post(guarded + path, content=body, headers=kind, auth=("", TOKEN), timeout=PATIENCE).status_code

    for cut, status in ((0, 200), (2, 400), (40, 400)):
        body = whole[: len(whole) - cut]
        assert asked("/v1/classify", body) == asked("/v1/classify", iter([body])) == status
        assert asked("/gradio_api/upload", body.replace(b'"p"', b'"files"')) == status


def test_a_field_that_is_too_large_is_told_as_that(tmp_path: Path) -> None:
    files = {"photo": ("a.jpg", photo()), "note": (None, "x" * 2**21)}
    with serving_of(colour_classifier(), tmp_path) as serving, running(serving) as address:
        answer = httpx.post(f"{address}/v1/classify", files=files, timeout=PATIENCE)
    assert "1 MB in a part without a file name" in refused(answer, 413, "field-too-large")


def test_a_cmyk_jpeg_is_a_photo(service: httpx.Client) -> None:
    assert send(service, photo((0, 200, 200, 0), mode="CMYK")).json()["answers"][0]["label"] == "red_rendang"


@needs_shared
def test_every_odd_file_is_answered_or_refused_in_one_sentence(tmp_path: Path) -> None:
    folder, statuses = SHARED / "odd_files", {}
    with serving_of(colour_classifier(), tmp_path) as serving, running(serving) as address:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            sent = {"photo": (file.name, file.read_bytes())}
            answer = httpx.post(f"{address}/v1/classify", files=sent, timeout=PATIENCE)
            if answer.status_code != 200:
                refused(answer, 422, "not-a-picture")
            statuses[file.relative_to(folder).as_posix()] = answer.status_code
    assert statuses["format/huge_8021x5348_progressive.jpg"] == statuses["format/webp_named.jpg"] == 200
    assert statuses["format/git_lfs_pointer.png"] == statuses["csv/README_utf16.md"] == 422


EMPTY = (
    b'--x\r\nContent-Disposition: form-data; name="p"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n'
)


@pytest.mark.parametrize(
    "second",
    [
        "; filename*=UTF-8''caf%C3%A9.jpg\r\n",  # as older requests and urllib3 send what is not ASCII
        "\r\nContent-Type: Image/JPEG\r\n",
        "\r\nContent-Type: application/octet-stream\r\n",
    ],
)
def test_every_photo_of_a_form_is_answered_whether_it_has_a_file_name_or_not(
    service: httpx.Client, second: str
) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="p"{second}\r\n'.encode()
    field = b'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\na word\r\n'
    nothing = EMPTY + b"\r\n"  # as a browser sends where none was chosen
    body = field + head + photo(GREEN) + b"\r\n" + nothing + part(photo()) + b"--x--\r\n"
    answer = send(service, body, "multipart/form-data; boundary=x").json()
    assert [each["label"] for each in answer["answers"]] == ["green_lalap", "red_rendang"]


def test_a_form_of_which_a_photo_would_go_unanswered_is_refused(service: httpx.Client) -> None:
    unnamed = b'--x\r\nContent-Disposition: form-data; name="p"\r\n\r\n' + photo(GREEN) + b"\r\n"
    whole = unnamed + part(photo())
    for parts, said in ((unnamed, "no part of the form has a"), (whole, "a photo in the form has no")):
        answer = send(service, parts + b"--x--\r\n", "multipart/form-data; boundary=x")
        assert refused(answer, 400, "no-photo").startswith(f"{said} file name; send")
    nothing = EMPTY + b"\r\n--x--\r\n"
    assert "has no photo" in refused(send(service, nothing, "multipart/form-data; boundary=x"), 400, "no-photo")


@pytest.mark.parametrize("form", [False, True])
def test_a_body_that_is_compressed_is_told_as_that(service: httpx.Client, form: bool) -> None:
    body, kind = (part(photo()) + b"--x--\r\n", "multipart/form-data; boundary=x") if form else (photo(), "image/jpeg")
    headers = {"content-type": kind, "content-encoding": "gzip"}
    answer = service.post("/v1/classify", content=gzip.compress(body), headers=headers)
    assert "without Content-Encoding" in refused(answer, 415, "content-encoding")
    if not form:  # some name the encoding of what is none
        plain = {**headers, "content-encoding": "binary"}
        assert service.post("/v1/classify", content=photo(), headers=plain).status_code == 200


def test_a_form_says_which_photo_is_none_and_takes_only_so_many(service: httpx.Client) -> None:
    files = [("photo", ("a.jpg", photo())), ("photo", ("b.jpg", b"text"))]
    assert refused(service.post("/v1/classify", files=files), 422, "not-a-picture").startswith("photo 2 of 2: ")
    four = [("photo", ("a.jpg", photo()))] * 4
    assert "photos than 3" in refused(service.post("/v1/classify", files=four), 413, "too-many-photos")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/classify", 405),
        ("POST", "/healthz", 405),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/classify?top=0", 422),
        ("POST", "/v1/classify?top=NaN", 422),
    ],
)
def test_a_wrong_address_method_or_parameter_is_a_problem_too(
    service: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = service.request(method, path, content=photo(), headers={"content-type": "image/jpeg"})
    assert "openapi.json" in refused(
        answer, status, {404: "not-found", 405: "method-not-allowed"}.get(status, "parameter")
    )


def test_a_failure_is_a_problem_too_whoever_was_to_answer(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("demo.service.queue.Serving.place", fail)
    monkeypatch.setattr("gradio.queueing.Queue.push", fail)
    sent = httpx.post(f"{guarded}/gradio_api/upload", files={"files": ("a.png", photo())}, auth=("", TOKEN)).json()
    call = json.dumps({"data": [{"path": sent[0], "meta": {"_type": "gradio.FileData"}}]})
    for path, body in (("/v1/classify", photo()), ("/live", photo()), ("/gradio_api/call/classify", call)):
        kind = {"content-type": "application/json" if isinstance(body, str) else "image/jpeg"}
        answer = httpx.post(guarded + path, content=body, headers=kind, auth=("", TOKEN))
        assert "its log says why" in refused(answer, 500, "failed"), path


def test_the_live_camera_sends_one_photo_at_a_time(guarded: str) -> None:
    files = [("photo", ("a.jpg", photo()))]
    assert httpx.post(f"{guarded}/live", files=files, auth=("", TOKEN)).status_code == 200
    assert httpx.post(f"{guarded}/live", files=files * 2, auth=("", TOKEN)).status_code == 413


def test_an_upload_touches_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a form of more than the megabyte at which Starlette would take a temporary file."""
    made: list[Any] = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda file: made.append(file))
    body = photo() + bytes(3_000_000)  # what follows the end of a JPEG does not matter
    large = replace(SMALL, bytes=8_000_000)
    with serving_of(colour_classifier(), tmp_path, large) as serving, running(serving) as address:
        answer = httpx.post(f"{address}/v1/classify", files={"photo": ("a.jpg", body)}, timeout=PATIENCE)
    assert answer.status_code == 200 and not made


# Uploads that misbehave, by hand: no client library sends them


@contextmanager
def connection(client: httpx.Client, *headers: str) -> Iterator[socket.socket]:
    """A connection that has sent the headers of an upload."""
    host, port = client.base_url.host, client.base_url.port
    with socket.create_connection((host, port), timeout=PATIENCE) as raw:
        lines = ["POST /v1/classify HTTP/1.1", f"Host: {host}", "Content-Type: image/jpeg", *headers]
        raw.sendall("\r\n".join([*lines, "", ""]).encode())
        yield raw


def head_of_answer(raw: socket.socket) -> str:
    return raw.recv(65536).decode()


def test_two_gigabytes_are_refused_before_a_byte_is_sent(service: httpx.Client) -> None:
    with connection(service, "Content-Length: 2147483648") as raw:
        assert " 413 " in head_of_answer(raw).splitlines()[0]


def test_a_stream_of_unknown_length_is_cut_at_the_limit(service: httpx.Client) -> None:
    """A client that sends on for a moment, as most do, hears why, instead of finding its connection broken."""
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with connection(service, "Transfer-Encoding: chunked") as raw:
        raw.sendall(4 * chunk)
        answer = head_of_answer(raw)
        time.sleep(0.1)
        raw.sendall(chunk)
        raw.sendall(b"0\r\n\r\n")
        while raw.recv(65536):
            pass
    assert " 413 " in answer.splitlines()[0] and "connection: close" in answer.lower()


@not_of_a_fleet  # whose proxy does not tell that a client has gone
def test_a_client_that_goes_in_the_middle_leaves_nothing(service: httpx.Client) -> None:
    with connection(service, "Content-Length: 100000") as raw:
        raw.sendall(bytes(5000))
    assert send(service, photo()).status_code == 200
    wait_until(lambda: '{route="/v1/classify",status="499"}' in service.get("/metrics").text)
    assert "\nsaji_queue_depth 0.0" in service.get("/metrics").text


def test_a_slow_upload_is_cut(tmp_path: Path) -> None:
    with (
        serving_of(colour_classifier(), tmp_path, replace(SMALL, seconds=1)) as serving,
        running(serving) as address,
        httpx.Client(base_url=address) as client,
        connection(client, "Content-Length: 100000") as raw,
    ):
        raw.sendall(bytes(5000))
        assert " 408 " in head_of_answer(raw).splitlines()[0]


# The queue


class Held:
    """A backend that answers when it is let go, but gives no numbers for white photos."""

    def __init__(self) -> None:
        self.free, self.begun, self.batches = threading.Event(), threading.Semaphore(0), list[int]()
        self.factor = np.float32(1)

    def run(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        self.begun.release()
        assert self.free.wait(PATIENCE)
        outputs = self.factor * images.mean(axis=(1, 2), dtype=np.float32)
        outputs[outputs.min(axis=1) > 250] = np.nan
        return outputs

    def close(self) -> None:
        self.batches.append(-1)


@contextmanager
def held_service(
    folder: Path, limits: Limits, server: dict[str, Any] | None = None, **options: Any
) -> Iterator[tuple[Held, Any, str]]:
    backend = Held()
    backend.free.set()  # for the warm-up
    classifier = colour_classifier()
    classifier.backend = backend  # type: ignore[assignment]
    with serving_of(classifier, folder, limits, **options) as serving, running(serving, **server or {}) as address:
        backend.batches.clear()
        backend.begun = threading.Semaphore(0)
        backend.free.clear()
        try:
            yield backend, serving, address
        finally:
            backend.free.set()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def post(address: str, colour: tuple[int, int, int] = RED) -> httpx.Response:
    return httpx.post(
        f"{address}/v1/classify", content=photo(colour), headers={"content-type": "image/jpeg"}, timeout=PATIENCE
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that looks for another deployment all the time."""
    monkeypatch.setattr("demo.service.queue.POLL_SECONDS", 0.02)


def test_a_full_queue_is_said_at_once_and_who_waits_is_answered(tmp_path: Path) -> None:
    with held_service(tmp_path, replace(SMALL, queue=2)) as (backend, _, address), ThreadPoolExecutor() as pool:
        waiting = [pool.submit(post, address) for _ in range(2)]
        wait_until(lambda: "\nsaji_queue_depth 2.0" in httpx.get(f"{address}/metrics", timeout=PATIENCE).text)
        answer = post(address)
        refused(answer, 429, "queue-full")
        assert int(answer.headers["retry-after"]) >= 1
        backend.free.set()
        assert [future.result().status_code for future in waiting] == [200, 200]


def test_a_request_that_waits_too_long_is_told_to_come_again(tmp_path: Path) -> None:
    with held_service(tmp_path, replace(SMALL, seconds=1)) as (backend, _, address):
        answer = post(address)
        refused(answer, 503, "too-slow")
        assert "retry-after" in answer.headers
        backend.free.set()
        assert post(address).status_code == 200


def test_a_service_whose_engine_answers_nobody_is_not_ready_until_it_does(tmp_path: Path) -> None:
    def ready() -> int:
        return httpx.get(f"{address}/readyz", timeout=PATIENCE).status_code

    with held_service(tmp_path, replace(SMALL, seconds=1)) as (backend, _, address):
        assert ready() == 200
        refused(post(address), 503, "too-slow")
        wait_until(lambda: ready() == 503)
        refused(httpx.get(f"{address}/readyz"), 503, "stuck")
        backend.free.set()
        wait_until(lambda: ready() == 200)


def test_a_service_whose_engine_gives_no_numbers_answers_nobody_until_it_does(tmp_path: Path) -> None:
    with held_service(tmp_path, SMALL) as (backend, _, address):
        backend.free.set()
        backend.factor = np.float32(np.nan)
        refused(post(address), 500, "no-answer")
        refused(httpx.get(f"{address}/readyz", timeout=PATIENCE), 503, "stuck")
        backend.factor = np.float32(1)
        wait_until(lambda: httpx.get(f"{address}/readyz", timeout=PATIENCE).status_code == 200)
        assert post(address).status_code == 200


@pytest.mark.parametrize("batch", [1, 4])
def test_a_photo_without_an_answer_costs_no_other_its_own(tmp_path: Path, batch: int) -> None:
    with held_service(tmp_path, SMALL, batch=batch) as (backend, serving, address), ThreadPoolExecutor() as pool:
        first = pool.submit(post, address)
        assert backend.begun.acquire(timeout=PATIENCE)
        others = [pool.submit(post, address, colour) for colour in ((255, 255, 255), GREEN)]
        wait_until(lambda: len(serving.engine._waiting) == 2)
        backend.free.set()
        assert [future.result().status_code for future in (first, *others)] == [200, 500, 200]
        assert "the model has no answer to this photo" in refused(others[0].result(), 500, "no-answer")
        assert httpx.get(f"{address}/readyz", timeout=PATIENCE).status_code == 200


@pytest.mark.usefixtures("impatient")
def test_a_service_that_can_decode_nothing_is_not_ready_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out before the first photo comes."""
    monkeypatch.setattr("demo.service.decoding.__name__", "demo.nothing")
    with serving_of(colour_classifier(), tmp_path, SMALL) as serving, running(serving) as address:
        wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 503)
        refused(post(address), 503, "no-decoder")
        monkeypatch.undo()
        wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200)
        assert post(address).status_code == 200


@pytest.mark.parametrize(("batch", "batches"), [(1, [1, 1, 1]), (4, [1, 2])])
def test_only_what_waited_goes_through_together(tmp_path: Path, batch: int, batches: list[int]) -> None:
    with held_service(tmp_path, SMALL, batch=batch) as (backend, serving, address), ThreadPoolExecutor() as pool:
        first = pool.submit(post, address)
        assert backend.begun.acquire(timeout=PATIENCE)
        others = [pool.submit(post, address) for _ in range(2)]
        wait_until(lambda: len(serving.engine._waiting) == 2)
        backend.free.set()
        assert {future.result().status_code for future in (first, *others)} == {200}
        assert backend.batches == batches


# Another deployment, and the end


def test_what_was_accepted_is_answered_before_the_service_stops(tmp_path: Path) -> None:
    """Although a page is open, whose connection would last for as long as it is."""
    from demo.page.frame import build

    backend, classifier = Held(), colour_classifier()
    backend.free.set()
    classifier.backend = backend  # type: ignore[assignment]
    with ThreadPoolExecutor() as pool, serving_of(classifier, tmp_path, replace(SMALL, seconds=60)) as serving:
        with running(serving, build(serving)) as address:
            opened = pool.submit(httpx.get, f"{address}/gradio_api/heartbeat/x", timeout=PATIENCE)
            backend.free.clear()
            backend.begun = threading.Semaphore(0)
            accepted = pool.submit(post, address)
            assert backend.begun.acquire(timeout=PATIENCE)
            threading.Timer(0.5, backend.free.set).start()
            stopping = time.monotonic()
        assert time.monotonic() - stopping < 60
        assert accepted.result().status_code == 200 and "ALIVE" in opened.result().text


@pytest.mark.usefixtures("impatient")
def test_a_new_deployment_is_served_without_dropping_a_request(tmp_path: Path) -> None:
    opened = [colour_classifier() for _ in range(2)]
    opened[1].candidate = replace(CANDIDATE, precision="fp32")
    with held_service(tmp_path, SMALL) as (backend, serving, address), ThreadPoolExecutor() as pool:
        old = serving.engine.sha256
        serving._open_classifier = lambda path: opened[1]
        accepted = pool.submit(post, address)
        assert backend.begun.acquire(timeout=PATIENCE)
        replace(deployment(), reason="chosen again").write(serving.path)
        wait_until(lambda: httpx.get(f"{address}/v1/model").json()["precision"] == "fp32")
        assert post(address).json()["served_by"] == opened[1].candidate.name
        assert httpx.get(f"{address}/v1/model").json()["deployment_sha256"] != old
        assert -1 not in backend.batches, "the old engine was closed under a request"
        backend.free.set()
        assert accepted.result().json()["served_by"] == CANDIDATE.name
        wait_until(lambda: -1 in backend.batches)


@pytest.mark.usefixtures("impatient")
def test_another_deployment_is_served_whatever_hangs_in_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice, for the second one was never looked at; and though each thread of the first engine hangs."""
    with held_service(tmp_path, replace(SMALL, seconds=1, queue=64)) as (backend, serving, address):
        with ThreadPoolExecutor(16) as pool:
            assert {answer.status_code for answer in pool.map(post, 16 * [address])} == {503}
        serving._open_classifier = lambda path: colour_classifier()
        for number in range(2):
            replace(deployment(), reason=f"chosen again {number}").write(serving.path)
            served = sha256_file(serving.path)
            wait_until(lambda: httpx.get(f"{address}/v1/model").json()["deployment_sha256"] == served)  # noqa: B023
            assert post(address).status_code == 200
        wait_until(lambda: "an engine hangs" in caplog.text)
        assert -1 not in backend.batches
        backend.free.set()
        wait_until(lambda: -1 in backend.batches)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("content", ["{", "null", '{"schema_version": 99}', '{"schema_version": 1, "choice": NaN}'])
def test_a_broken_deployment_is_refused_and_the_old_one_serves(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_of(colour_classifier(), tmp_path, SMALL) as serving, running(serving) as address:
        serving.path.write_text(content)
        wait_until(lambda: "deployment refused" in caplog.text)
        assert post(address).status_code == 200
        assert httpx.get(f"{address}/v1/model").json()["served_by"] == CANDIDATE.name


def test_of_a_deployment_that_is_refused_nothing_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of its two engines, where the second has no answer."""
    opened = []

    def open_one(path: Path, **options: Any) -> Classifier:
        opened.append(colour_classifier())
        if len(opened) % 2 == 0:
            monkeypatch.setattr(opened[-1], "outputs", lambda images: images / None)
        return opened[-1]

    monkeypatch.setattr("demo.service.engine.usable_cores", lambda: 2)
    deployment().write(tmp_path / "deployment.json")
    with pytest.raises(TypeError):
        Serving(tmp_path / "deployment.json", open_one, SMALL, workers=0)
    assert [classifier._closed for classifier in opened] == [True, True]


def test_a_deployment_that_is_replaced_while_it_is_opened_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, fresh = Deployment.read, replace(deployment(), reason="chosen again")

    def read_and_replace(path: Path) -> Deployment:
        try:
            return read(path)
        finally:
            fresh.write(path)

    monkeypatch.setattr(Deployment, "read", read_and_replace)
    with serving_of(colour_classifier(), tmp_path, SMALL) as serving:
        serving._open_classifier = lambda path: colour_classifier()
        assert serving.engine.deployment != fresh
        asyncio.run(serving.reload())
        assert serving.engine.deployment == fresh


@pytest.mark.usefixtures("impatient")
def test_a_deployment_is_opened_anew_when_asked(tmp_path: Path) -> None:
    """Though its file is the same: SIGHUP, for what it names may have been exported again."""
    opened = []
    with serving_of(colour_classifier(), tmp_path, SMALL) as serving, running(serving):
        serving._open_classifier = lambda path: opened.append(path) or colour_classifier()
        serving.look_again()
        wait_until(lambda: opened == [serving.path])


def test_a_second_ctrl_c_leaves_no_traceback_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving_of(colour_classifier(), tmp_path, SMALL) as serving, app.listen("127.0.0.1", 0) as listener:
        server = Server(build_api(serving), SMALL)
        server.should_exit = server.force_exit = True
        server.run([listener])
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# Who comes in, and what is told


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with a page, behind a token."""
    from demo.page.frame import build

    folder = tmp_path_factory.mktemp("guarded")
    with (
        pytest.MonkeyPatch.context() as patch,
        serving_of(colour_classifier(), folder, SMALL) as serving,
    ):
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        with running(serving, build(serving), TOKEN) as address:
            yield address


def test_only_who_knows_the_token_comes_in(guarded: str) -> None:
    for path in ("/", "/v1/model", "/metrics", "/openapi.json", "/config", "/gradio_api/info", "/healthz/"):
        answer = httpx.get(guarded + path)
        refused(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Basic")
    assert {httpx.get(guarded + path).status_code for path in ("/healthz", "/readyz")} == {200}
    bearer = {"authorization": f"Bearer {TOKEN}".encode()}
    assert httpx.get(f"{guarded}/v1/model", headers=bearer).status_code == 200
    assert httpx.get(guarded, auth=("anyone", TOKEN)).status_code == 200
    for wrong in ("Bearer sesam", "Basic !", "Basic c2VzYW0=", "Bearer", "Digest x"):
        assert httpx.get(guarded, headers={"authorization": wrong}).status_code == 401


def test_the_named_endpoint_of_the_page_works_with_a_token(guarded: str, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    with pytest.raises(Exception, match="credentials"):
        Client(guarded, verbose=False)
    basic = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
    client = Client(guarded, verbose=False, headers={"Authorization": f"Basic {basic}"})
    answer = client.predict(handle_file(picture(tmp_path / "a.png", RED)), api_name="/classify")
    assert answer["label"] == "red_rendang"


def test_uploads_to_the_page_that_broke_off_are_forgotten(guarded: str) -> None:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    left, running_now = folder / "tmp_left", folder / "tmp_now"
    for file in (left, running_now):
        file.write_bytes(b"half a photo")
    os.utime(left, (0, 0))
    sent = httpx.post(f"{guarded}/gradio_api/upload", files={"files": ("a.png", photo())}, auth=("", TOKEN))
    assert sent.status_code == 200 and Path(sent.json()[0]).is_file()
    wait_until(lambda: not left.exists())
    assert running_now.exists()


def test_the_page_opens_no_file_of_the_machine_and_no_other_address(guarded: str, tmp_path: Path) -> None:
    private = picture(tmp_path / "private.png", RED)
    for path in (str(private), "/etc/passwd", f"{ROOT}/pyproject.toml", f"{guarded}/healthz", "https://example.org/"):
        for way in ("file=", "file/", "proxy="):
            answer = httpx.get(f"{guarded}/gradio_api/{way}{path}", auth=("", TOKEN))
            assert answer.status_code in (400, 403, 404), (way, path)


def test_an_unknown_address_of_the_api_is_a_problem_beside_a_page_too(guarded: str) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/classify", 405), ("POST", "/readyz", 405)):
        answer = httpx.request(method, guarded + path, auth=("", TOKEN))
        refused(answer, status, "not-found" if status == 404 else "method-not-allowed")


@not_of_a_fleet  # whose lines are in files of Ray's
def test_requests_are_logged_as_json_without_content_or_name(
    service: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    from demo.service.monitoring import JsonLine

    def by_id() -> dict[str, dict[str, Any]]:  # a line of the test before may come late
        lines = [json.loads(JsonLine().format(record)) for record in caplog.records if record.message == "request"]
        return {line["request_id"]: line for line in lines}

    with caplog.at_level("INFO", "saji"):
        answer = service.post(
            "/v1/classify?secret=1", files={"photo": ("my-face.jpg", photo())}, headers={"x-request-id": "abc-1"}
        )
        other = service.get("/my-face.jpg", headers={"x-request-id": "not\\one/of ours"}).headers["x-request-id"]
        wait_until(lambda: {"abc-1", other} <= by_id().keys())  # an answer leaves before its line is written
    lines = by_id()
    assert answer.headers["x-request-id"] == "abc-1"
    assert (lines["abc-1"]["route"], lines["abc-1"]["status"]) == ("/v1/classify", 200)
    assert len(other) == 32 and lines[other]["status"] == 404
    assert "my-face" not in str(lines) and "secret" not in str(lines)


def test_headers_keep_browsers_from_guessing_framing_and_telling(service: httpx.Client) -> None:
    for path in ("/healthz", "/v1/nothing"):
        headers = service.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


# The property: whatever is sent, the service neither fails nor answers other than it describes


def checked_by_schemathesis(client: httpx.Client, examples: int) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    for found, mode in itertools.product(schema.get_all_operations(), schemathesis.GenerationMode):
        operation = found.ok()
        if mode.is_negative and operation.path != "/v1/classify":
            continue  # takes nothing that could be wrong

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def keeps_its_promise(case: Any) -> None:
            # Bytes that are no photo are right by the schema, and are refused
            case.call_and_validate(timeout=PATIENCE, excluded_checks=[positive_data_acceptance])

        keeps_its_promise()
    assert send(client, photo()).status_code == 200


def test_no_generated_request_fails_the_service(service: httpx.Client) -> None:
    checked_by_schemathesis(service, examples=8)


@pytest.mark.slow
def test_no_generated_request_fails_the_service_at_length(service: httpx.Client) -> None:
    checked_by_schemathesis(service, examples=1000)


# The command line


@pytest.mark.parametrize("flag", ["--max-bytes", "--max-seconds", "--batch", "--top", "--workers", "--threads"])
def test_a_limit_of_nothing_is_refused_by_its_flag(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    least = 0 if flag in ("--workers", "--threads") else 1  # by which the engine decides
    monkeypatch.setattr(sys, "argv", ["demo", flag, str(least - 1)])
    with pytest.raises(SajiError, match=f"{flag} {least - 1}.*give {least} or more"):
        app.main()


@pytest.mark.parametrize("bound", bounds(), ids=lambda bound: bound.name)
def test_a_limit_that_a_timer_or_the_system_cannot_hold_is_refused_by_its_flag(bound: Any) -> None:
    """One of ten million MiB let no decoder start."""
    with pytest.raises(SajiError, match=f"{flag_of(bound)} .* is too large; give .* or less"):
        Limits(**{bound.name: 10**13})


def test_the_largest_limits_of_a_decoder_let_photos_through() -> None:
    largest = {bound.name: bound.metadata["most"] for bound in bounds() if bound.name.startswith("decode_")}
    decoders = Decoders(Limits(**largest, decoders=1))
    assert decoders.pixels(photo(), Geometry.for_size(32))[0].any()
    decoders.close()
