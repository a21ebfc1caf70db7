"""What a stranger's request may cost, and what the service tells of itself."""

import base64
import io
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import PATIENCE
from PIL import Image
from strangers import CALL, JSON, META, Service, answer_of_page, command, raw, status_of, the_function
from test_demo import RED
from test_service import photo

linux_only = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory as Linux tells it")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("costs")
    with command(folder, "--max-upload", "3000000", "--max-uploads", "6000000", TMPDIR=str(folder)) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.address, timeout=PATIENCE) as client:
        yield client


def classified(client: httpx.Client, body: bytes, kind: str = "image/jpeg") -> httpx.Response:
    return client.post("/v1/classify", content=body, headers={"content-type": kind})


def progressive(scans: int, side: int) -> bytes:
    """A grey JPEG of `side` × `side` pixels whose empty `scans` each make the decoder walk all blocks."""

    def segment(marker: int, body: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body

    def scan(start: int, end: int) -> bytes:
        return segment(0xDA, bytes([1, 1, 0, start, end, 0]))

    def table(kind: int, symbol: int) -> bytes:
        return segment(0xC4, bytes([kind, 1, *[0] * 15, symbol]))

    blocks = (side // 8) ** 2
    bits = ("0" + "1" * 14) * (-(-blocks // 32767))
    bits += "1" * (-len(bits) % 8)
    empty = scan(1, 63) + int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    head = segment(0xDB, bytes(1) + bytes([1] * 64))
    head += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    return (
        b"\xff\xd8"
        + head
        + table(0, 0)
        + table(0x10, 0xE0)
        + scan(0, 0)
        + bytes(blocks // 8)
        + empty * scans
        + b"\xff\xd9"
    )


def test_a_jpeg_of_hundreds_of_scans_is_refused_before_it_is_decoded(client: httpx.Client) -> None:
    answer = classified(client, progressive(scans=300, side=800))
    assert 400 <= answer.status_code < 500, answer.text


@linux_only
def test_a_small_file_takes_little_memory(service: Service, client: httpx.Client) -> None:
    encoded = io.BytesIO()
    Image.new("RGBA", (5000, 5000), (1, 2, 3, 128)).save(encoded, "PNG", compress_level=1)
    classified(client, photo())
    peak = Path(f"/proc/{service.process.pid}/clear_refs")
    peak.write_text("5")  # the peak starts anew
    classified(client, encoded.getvalue(), "image/png")
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    most = int(status.split("VmHWM:")[1].split()[0]) / 1024
    assert most - service.megabytes() < 150, most


def test_uploads_are_bounded_in_total(client: httpx.Client) -> None:
    statuses = []
    for number in range(8):
        sent = client.post("/gradio_api/upload", files={"files": (f"{number}.png", bytes([number]) * 1_000_000)})
        statuses.append(sent.status_code)
    assert 413 in statuses or 429 in statuses, statuses


@linux_only
def test_sessions_that_nobody_listens_to_take_no_memory(service: Service, client: httpx.Client) -> None:
    function = the_function(client, "heat map").index
    before = 0.0
    for number in range(240):
        if number == 80:  # as many as are kept
            before = service.megabytes()
        body = {"data": [{"orig_name": "a" * 200_000}], "fn_index": function, "session_hash": f"s{number}"}
        client.post("/gradio_api/queue/join", content=json.dumps(body), headers=JSON)
    time.sleep(2)
    assert service.megabytes() - before < 5


def test_every_line_of_the_log_is_json(service: Service, client: httpx.Client) -> None:
    uploaded = client.post("/gradio_api/upload", files={"files": ("a.png", photo(RED, "PNG"))}).json()[0]
    function = the_function(client, "heat map").index
    answer_of_page(client, function, [{"path": uploaded, "meta": META}])
    answer_of_page(client, function, ["no photo", "and one too many"])
    lines = service.logged(client)
    assert all(line.startswith("{") for line in lines), [line for line in lines if line[:1] != "{"][:3]


def test_nobody_writes_a_line_into_the_log(service: Service, client: httpx.Client) -> None:
    forged = json.dumps({"level": "info", "event": "request", "request_id": "forged"})
    for path in (f"/x\n{forged}\n\x1b[31m", f"/gradio_api/custom_component/a%0a{forged}"):
        client.post(CALL, content=json.dumps({"data": [{"path": path, "meta": META}]}), headers=JSON)
        client.get(f"/gradio_api/custom_component/{path.encode().hex()}%0aFORGED%1b[31m/client/a/b")
    time.sleep(0.3)
    assert not [line for line in service.said if line == forged or "FORGED" in line or "\x1b" in line]


def test_the_configuration_of_the_page_names_no_folder_of_the_machine(client: httpx.Client) -> None:
    told = client.get("/config").text
    assert str(Path(__file__).resolve().parent.parent) not in told and str(Path.home()) + "/" not in told


# Ways to send a photo


@pytest.mark.parametrize("more", [0, 2**21], ids=["small", "more than a field may have"])
def test_a_part_without_a_file_name_is_a_photo_or_said_to_have_none(more: int, client: httpx.Client) -> None:
    """As some clients and devices send it."""
    head = b'--x\r\nContent-Disposition: form-data; name="photo"\r\nContent-Type: image/png\r\n\r\n'
    answer = classified(
        client,
        head + photo(RED, "PNG", size=(900, 800)) + bytes(more) + b"\r\n--x--\r\n",
        "multipart/form-data; boundary=x",
    )
    assert answer.status_code == 200 or "filename" in answer.text or "file name" in answer.text, answer.text


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "image/jpg", "image/heic", "text/plain", ""])
def test_a_photo_under_another_type_is_named_or_its_type_is_told(client: httpx.Client, kind: str) -> None:
    """fastapi/fastapi#1653: curl --data-binary sends application/x-www-form-urlencoded."""
    answer = classified(client, photo(), kind)
    assert answer.status_code == 200 or (answer.status_code == 415 and "image/jpeg" in answer.text)


def test_a_photo_in_json_is_told_which_type_to_send(client: httpx.Client) -> None:
    body = json.dumps({"image": base64.b64encode(photo()).decode()}).encode()
    answer = classified(client, body, "application/json")
    assert answer.status_code == 415 and "image/jpeg" in answer.json()["detail"]


# What is no HTTP, and forms that are none


SMUGGLED = {
    "length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "a length below nothing": b"Content-Length: -1\r\n\r\n",
    "a signed length": b"Content-Length: +5\r\n\r\nabcde",
    "an endless length": b"Content-Length: 99999999999999999999999\r\n\r\n",
    "chunks by another name": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "an endless chunk": b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF1\r\n",
    "a space before the colon": b"Content-Length : 0\r\n\r\n",
    "a zero in a header": b"X: a\0b\r\n\r\n",
}


@pytest.mark.parametrize("what", SMUGGLED)
def test_what_two_servers_might_read_in_two_ways_is_refused(client: httpx.Client, what: str) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
    answer = raw(client, head + SMUGGLED[what], 2)
    assert answer.count(b"HTTP/1.1 ") <= 1 and b"saji_requests_total" not in answer
    assert status_of(answer) in (0, 400, 408, 413, 422), answer[:300]


FORMS = {
    "1001 fields": b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 1001 + b"--b--\r\n",
    "17 files": b'--b\r\nContent-Disposition: form-data; name="a"; filename="x"\r\n\r\n1\r\n' * 17 + b"--b--\r\n",
    "a large head of a part": b'--b\r\nContent-Disposition: form-data; name="a"; x="'
    + b"y" * 2_000_000
    + b'"\r\n\r\n1\r\n--b--\r\n',
    "many heads of a part": b"--b\r\n" + b"a: b\r\n" * 200_000 + b"\r\n1\r\n--b--\r\n",
    "empty lines": b"\r\n" * 2_000_000,
    "almost the boundary": b'--b\r\nContent-Disposition: form-data; name="a"; filename="x"\r\n\r\n'
    + b"\r\n--c" * 500_000
    + b"\r\n--b--\r\n",
}


@pytest.mark.parametrize("what", FORMS)
def test_a_form_that_is_none_is_refused_soon(client: httpx.Client, what: str) -> None:
    began = time.monotonic()
    answer = classified(client, FORMS[what], "multipart/form-data; boundary=b")
    assert 400 <= answer.status_code < 500 and "\n" not in answer.json()["detail"]
    assert time.monotonic() - began < 5
    assert classified(client, photo()).status_code == 200


@pytest.mark.parametrize("top", ["9" * 21, "9" * 5000, "-1", "0", "1e3", "1&top=x", "%00"])
def test_an_odd_parameter_fails_nothing(client: httpx.Client, top: str) -> None:
    assert client.post(
        f"/v1/classify?top={top}", content=photo(), headers={"content-type": "image/jpeg"}
    ).status_code in (200, 422)
