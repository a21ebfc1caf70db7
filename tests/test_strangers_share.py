"""One stranger takes no more than a share, whatever he sends, and each refusal is counted."""

import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from conftest import PATIENCE
from strangers import CALL, JSON, META, answer_of_page, raw, rest_of, status_of, the_function
from test_demo import RED, colour_classifier, picture, running, serving_of
from test_service import SMALL, held_service, photo, refused, wait_until

from demo import app
from demo.page.uploads import Room
from demo.page.work import Turns
from demo.service.problem import Problem, without_folders
from demo.service.proxies import networks_of
from demo.service.shares import OWN, UNKNOWN, visitor_of
from runtime.errors import SajiError

ONE, OTHER = "203.0.113.1", "203.0.113.2"
FOUR = replace(SMALL, queue=4, share=50)


def ask(address: str, *forwarded: str) -> httpx.Response:
    headers = [("content-type", "image/jpeg"), *(("x-forwarded-for", line) for line in forwarded)]
    return httpx.post(f"{address}/v1/classify", content=photo(), headers=headers, timeout=PATIENCE)


def counted(address: str, cause: str) -> float:
    """How many refusals of this cause `/metrics` tells of."""
    line = re.search(
        rf'^saji_errors_total{{cause="{cause}"}} (\S+)$',
        httpx.get(f"{address}/metrics", timeout=PATIENCE).text,
        re.MULTILINE,
    )
    return float(line[1]) if line else 0.0


# Who asks


@pytest.mark.parametrize(
    ("address", "visitor"),
    [
        ("203.0.113.1", "203.0.113.1"),
        ("::ffff:203.0.113.1", "203.0.113.1"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff::2", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::1", "2001:db8:0:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", OWN),
        ("127.9.9.9", OWN),
        ("::1", OWN),
        ("::ffff:127.0.0.1", OWN),
        ("_hidden", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_a_visitor_is_an_address_or_a_network_of_ipv6(address: str, visitor: str) -> None:
    assert visitor_of((address, 80)) == visitor


def test_who_is_not_known_is_one_visitor() -> None:
    assert visitor_of(None) == UNKNOWN


@pytest.mark.parametrize("proxy", ["*", "proxy.lan", "10.0.0.0/33", "10.0.0.1:80", ""])
def test_a_proxy_that_is_no_address_is_refused(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A star would believe whoever asks, and a name is nothing that a connection comes from."""
    monkeypatch.setattr(sys, "argv", ["demo", "--trusted-proxy", "10.0.0.2", proxy])
    with pytest.raises(SajiError, match="no address; give one like"):
        app.main()


# Places


def test_one_visitor_holds_half_of_the_places(tmp_path: Path) -> None:
    with held_service(tmp_path, FOUR) as (backend, serving, address), ThreadPoolExecutor() as pool:
        before = counted(address, "your-share")
        his = [pool.submit(ask, address, ONE) for _ in range(2)]
        wait_until(lambda: serving._places.all == 2)
        answer = ask(address, ONE)
        refused(answer, 429, "your-share")
        assert int(answer.headers["retry-after"]) >= 1 and counted(address, "your-share") == before + 1
        others = [pool.submit(ask, address, OTHER), pool.submit(ask, address)]
        wait_until(lambda: serving._places.all == 4)
        backend.free.set()
        assert {future.result().status_code for future in (*his, *others)} == {200}
        assert ask(address, ONE).status_code == 200


def test_the_programs_of_this_machine_may_take_all_places(tmp_path: Path) -> None:
    with held_service(tmp_path, FOUR) as (backend, serving, address), ThreadPoolExecutor() as pool:
        own = [pool.submit(ask, address) for _ in range(4)]
        wait_until(lambda: serving._places.all == 4)
        refused(ask(address), 429, "queue-full")
        backend.free.set()
        assert {future.result().status_code for future in own} == {200}


PROXIES = {
    "the last that is no proxy counts": (["127.0.0.1", "192.0.2.0/24"], f"9.9.9.9, {ONE}, 192.0.2.7", True),
    "what a stranger wrote before does not": (["127.0.0.1"], f"{ONE}, {OTHER}", False),
    "a port is no part of it": (["127.0.0.1"], f"{ONE}:4711", True),
    "of nobody else is it believed": (["192.0.2.1"], ONE, False),
}


@pytest.mark.parametrize(("proxies", "forwarded", "his"), PROXIES.values(), ids=PROXIES.keys())
def test_proxies_alone_are_believed_about_who_asks(
    proxies: list[str], forwarded: str, his: bool, tmp_path: Path
) -> None:
    limits, server = replace(FOUR, share=25), {"proxies": networks_of(proxies)}
    with held_service(tmp_path, limits, server) as (backend, serving, address), ThreadPoolExecutor() as pool:
        with serving.place(ONE):
            asked = pool.submit(ask, address, *forwarded.split("|"))
            if his:
                refused(asked.result(), 429, "your-share")
            else:
                wait_until(lambda: serving._places.all == 2)
        backend.free.set()
        asked.result()


def test_the_headers_of_several_proxies_are_read_as_one(tmp_path: Path) -> None:
    limits = replace(FOUR, share=25)
    with (
        serving_of(colour_classifier(), tmp_path, limits) as serving,
        running(serving) as address,
        serving.place(ONE),
    ):
        refused(ask(address, OTHER, ONE), 429, "your-share")
        assert ask(address, ONE, OTHER).status_code == 200


# Bodies and connections


def sending(address: str, visitor: str, size: int) -> socket.socket:
    """A connection on which so many bytes of a larger body have come."""
    connection = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=PATIENCE)
    head = f"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: {visitor}\r\n"
    connection.sendall(f"{head}Content-Type: image/jpeg\r\nContent-Length: {size + 1}\r\n\r\n".encode() + bytes(size))
    return connection


def test_one_visitor_holds_half_of_the_bytes(tmp_path: Path) -> None:
    limits = replace(SMALL, held=600_000, share=50)
    with serving_of(colour_classifier(), tmp_path, limits) as serving, running(serving) as address:
        with sending(address, ONE, 190_000), sending(address, ONE, 190_000) as second:
            answer = rest_of(second)
            assert status_of(answer) == 429 and b'"your-share"' in answer and b"retry-after: 1" in answer
            assert ask(address, OTHER).status_code == 200
            with sending(address, "127.0.0.1", 190_000) as own:
                own.sendall(b"\0")
                assert status_of(own.recv(65536)) == 422  # no picture, and no share
        wait_until(lambda: serving._places.all == 0)
        assert ask(address, ONE).status_code == 200


def test_one_body_is_never_more_than_a_share(tmp_path: Path) -> None:
    limits = replace(SMALL, held=SMALL.bytes + 1, share=1)
    with serving_of(colour_classifier(), tmp_path, limits) as serving, running(serving) as address:
        body = photo() + bytes(SMALL.bytes - len(photo()))
        sent = httpx.post(f"{address}/v1/classify", content=body, headers={"x-forwarded-for": ONE}, timeout=PATIENCE)
        assert sent.status_code == 200


@pytest.fixture
def strangers_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loopback address of a connection is a stranger's."""
    monkeypatch.setattr("demo.service.connections.visitor_of", lambda client: client[0])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has all of 127.0.0.0/8")
@pytest.mark.usefixtures("strangers_on_loopback")
def test_one_visitor_holds_a_share_of_the_connections(tmp_path: Path) -> None:
    limits, server = replace(SMALL, connections=16, share=25), {"proxies": networks_of(["127.0.0.9"])}
    with (
        serving_of(colour_classifier(), tmp_path, limits) as serving,
        running(serving, **server) as address,
        ExitStack() as stack,
    ):
        there = ("127.0.0.1", int(address.rpartition(":")[2]))

        def connected(source: str) -> socket.socket:
            connection = socket.create_connection(there, timeout=PATIENCE, source_address=(source, 0))
            return stack.enter_context(connection)

        his = []
        for _ in range(6):
            his.append(connected("127.0.0.2"))
            time.sleep(0.02)  # so that it is known who waits longest
        answers = [rest_of(connection) for connection in his[:2]]
        assert [status_of(answer) for answer in answers] == [429, 429] and b'"your-share"' in answers[0]
        assert b"retry-after: 1" in answers[0]
        by_proxy = [connected("127.0.0.9") for _ in range(6)]
        for connection in (connected("127.0.0.3"), *his[2:], *by_proxy):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert status_of(rest_of(connection)) == 200


# The page


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, object]]:
    """A client of a service with a page, and its queue."""
    from demo.page.frame import build

    folder = tmp_path_factory.mktemp("paged")
    limits = replace(FOUR, upload=100_000, uploads=400_000)
    with pytest.MonkeyPatch.context() as patch, serving_of(colour_classifier(), folder, limits) as serving:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        with running(serving, build(serving)) as address, httpx.Client(base_url=address, timeout=PATIENCE) as client:
            yield client, serving


def uploaded(client: httpx.Client, size: int = 0, visitor: str = "") -> httpx.Response:
    headers = {"x-forwarded-for": visitor} if visitor else {}
    files = {"files": ("a.png", photo(RED, "PNG") + bytes(size))}
    return client.post("/gradio_api/upload", files=files, headers=headers)


def test_the_page_takes_its_places_from_the_visitors_share(paged: tuple[httpx.Client, object]) -> None:
    client, serving = paged
    upload = {"path": uploaded(client).json()[0], "meta": META}
    before = counted(str(client.base_url), "your-share")
    told = []
    for visitor in (ONE, OTHER):
        client.headers["x-forwarded-for"] = visitor
        with serving.place(ONE), serving.place(ONE):  # type: ignore[attr-defined]
            told.append(answer_of_page(client, the_function(client, "classify tab").index, [upload]))
            told.append(answer_of_page(client, the_function(client, "heat map").index, [upload]))
            told.append(client.post("/live", content=photo()).text)
            event = client.post(CALL, content=json.dumps({"data": [upload]}), headers=JSON).json()["event_id"]
            told.append(client.get(f"{CALL}/{event}").text)
    client.headers.pop("x-forwarded-for")
    assert all("one address may hold 2 places" in text for text in told[:4]), told[:4]
    assert not [text for text in told[4:] if "one address may hold" in text]
    assert counted(str(client.base_url), "your-share") == before + 4


def test_one_visitor_uploads_half_of_what_is_kept(paged: tuple[httpx.Client, object]) -> None:
    client, _ = paged
    statuses = [uploaded(client, 80_000 + number, ONE).status_code for number in range(3)]
    assert statuses == [200, 200, 429]
    refused(uploaded(client, 80_000, ONE), 429, "your-share")
    assert uploaded(client, 80_010, OTHER).status_code == 200


def test_uploads_are_forgotten_with_their_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("demo.page.uploads.KEPT_SECONDS", 0.05)

    async def send() -> None:
        room = Room(replace(SMALL, upload=10, uploads=100, share=10))
        with pytest.raises(ZeroDivisionError), room.taken(10, ONE):
            raise ZeroDivisionError  # it broke off
        with room.taken(10, ONE):
            pass
        with pytest.raises(Problem, match="one address"), room.taken(1, ONE):
            pass
        await asyncio.sleep(0.1)
        with room.taken(10, ONE):
            pass

    asyncio.run(send())


def test_an_upload_says_how_long_it_is(paged: tuple[httpx.Client, object]) -> None:
    client, _ = paged
    head = {"content-type": "multipart/form-data; boundary=x"}
    refused(client.post("/gradio_api/upload", content=iter([b"--x--\r\n"]), headers=head), 411, "no-length")


def test_one_visitor_takes_half_of_the_turns() -> None:
    async def crowd() -> None:
        turns = Turns("comparisons", replace(SMALL, share=30))
        async with turns.take(ONE):
            waiting = asyncio.ensure_future(turns.take(ONE).__aenter__())
            await asyncio.sleep(0)
            with pytest.raises(Problem, match="one address may hold 2 comparisons"):
                await turns.take(ONE).__aenter__()
            other = asyncio.ensure_future(turns.take(OTHER).__aenter__())
            await asyncio.sleep(0)
            assert turns.came.all == 3
        await waiting
        other.cancel()

    asyncio.run(crowd())


# What is refused is counted


def test_each_refusal_is_counted_once_by_its_cause(paged: tuple[httpx.Client, object], tmp_path: Path) -> None:
    client, _ = paged
    address = str(client.base_url)
    classify_tab, compare = (the_function(client, way).index for way in ("classify tab", "compare"))
    missing = {"path": str(picture(tmp_path / "a.png", RED)), "meta": META}
    text = {"path": client.post("/gradio_api/upload", files={"files": ("a.txt", b"no picture")}).json()[0]}
    ways = {
        "no-http": lambda: raw(client, b"NO HTTP\r\n\r\n"),
        "not-a-picture": lambda: client.post("/live", content=b"no picture"),
        "not-uploaded": lambda: client.post(CALL, content=json.dumps({"data": [missing]}), headers=JSON),
        "forbidden": lambda: client.get(f"/gradio_api/file={missing['path']}"),
        "not-found": lambda: client.get("/x", headers={"connection": "upgrade", "upgrade": "websocket"}),
    }
    for cause, way in ways.items():
        before = counted(address, cause)
        way()
        wait_until(lambda cause=cause, before=before: counted(address, cause) > before)  # type: ignore[misc]
        assert counted(address, cause) == before + 1, cause
    for function in (classify_tab, compare):
        before = counted(address, "not-a-picture")
        answer_of_page(client, function, [text | {"meta": META}])
        assert counted(address, "not-a-picture") == before + 1


def test_what_is_no_http_is_answered_like_every_refusal(paged: tuple[httpx.Client, object]) -> None:
    answer = raw(paged[0], b"NO HTTP\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b"application/problem+json" in answer
    assert answer.count(b"HTTP/1.1") == 1


# No path


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("/srv/my models/resnet/model.onnx is missing", "model.onnx is missing"),
        ("it failed (/usr/lib/libx.so: no such file)", "it failed (libx.so: no such file)"),
        (r"C:\models\resnet\model.onnx is missing", "model.onnx is missing"),
        ("5 of 7 and/or none, 1/2", "5 of 7 and/or none, 1/2"),
    ],
)
def test_a_reason_for_visitors_names_no_folder(reason: str, told: str) -> None:
    assert without_folders(reason) == told


def test_why_a_better_choice_does_not_serve_is_told_without_its_folder(tmp_path: Path) -> None:
    from demo.page.tabs.classify import why_of

    classifier = colour_classifier()
    classifier.passed_over = (f"resnet34: {tmp_path}/models/resnet34/model.onnx is missing",)
    with serving_of(classifier, tmp_path) as serving, running(serving) as address:
        told = httpx.get(f"{address}/v1/model").text + why_of(classifier, serving.engine.deployment, "en")
    assert "model.onnx is missing" in told and str(tmp_path) not in told
