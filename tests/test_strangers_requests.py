"""A stranger at the service: what the page does not use is not there, and nobody keeps others from being served."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import CHROMIUM, CHROMIUM_FLAGS, PATIENCE
from strangers import CALL, JSON, Service, asked, command, functions_of, joining, parts_of, raw, rest_of, status_of
from strangers import answer_of_api as called
from strangers import answer_of_page as answered
from strangers import the_function as function_of
from strangers import told as as_told
from test_service import photo

from demo import app
from demo.service.guard import Hosts
from runtime.errors import SajiError

PROBLEM = "application/problem+json"
FEW_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
HEAD_SECONDS = 2
linux_only = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory as Linux tells it")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that may open 256 files, and has little patience with headers."""
    folder = tmp_path_factory.mktemp("requests")
    with command(folder, "--max-header-seconds", str(HEAD_SECONDS), before=FEW_FILES) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.address, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client, without its token, of a service on IPv6 that has a name, a token and no home."""
    folder = tmp_path_factory.mktemp("guarded")
    flags = ("--host", "::1", "--allow-host", "saji.lan", "other.lan", "--all-formats")
    with (
        command(folder, *flags, SAJI_TOKEN="geheim\n", HOME="/nonexistent") as service,
        httpx.Client(base_url=service.address, timeout=PATIENCE) as client,
    ):
        yield client


def named(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.get("/v1/model", headers=headers)


def cause_of(answer: httpx.Response) -> str:
    """The word for programs of a refusal, which has to be a problem document of one sentence."""
    assert answer.headers["content-type"] == PROBLEM, answer.text
    assert "\n" not in answer.json()["detail"]
    return answer.json()["cause"]


def is_served(client: httpx.Client) -> bool:
    return client.post("/v1/classify", content=photo(), headers={"content-type": "image/jpeg"}).status_code == 200


# Names and origins


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "saji.lan:7860",
        "127.0.0.1.evil.example",
        "localhost.evil.example:7860",
        "10.0.0.5",
        "0.0.0.0",
        "[::1",
        "[evil]",
        "127.0.0.1@evil.example",
        "evil.example:80@127.0.0.1",
        "localhost:x",
        "x" * 4000,
    ],
)
def test_a_foreign_name_is_refused(client: httpx.Client, host: str) -> None:
    """By DNS rebinding a page of that name would read our answers in a visitor's browser."""
    for path in ("/", "/config", "/v1/model", "/metrics", "/gradio_api/info"):
        answer = client.get(path, headers={"host": host})
        assert (answer.status_code, cause_of(answer)) == (421, "foreign-host")
    assert client.get("/healthz", headers={"host": host}).status_code == 200  # a load balancer asks by any name


@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "LocalHost:7860", "127.8.9.1", "[::1]:7860", "localhost", "localhost.:80"]
)
def test_every_loopback_name_is_served(client: httpx.Client, host: str) -> None:
    assert named(client, host=host).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://", ""]
)
def test_a_page_of_another_site_is_refused(client: httpx.Client, origin: str) -> None:
    answer = named(client, origin=origin)
    assert (answer.status_code, cause_of(answer)) == (403, "foreign-origin")
    body = {"content": b'{"data": []}', "headers": {**JSON, "origin": origin}}
    assert client.post(CALL, **body).status_code == 403  # type: ignore[arg-type]


def test_the_own_page_is_served_and_no_other_may_read(client: httpx.Client) -> None:
    own = str(client.base_url).rstrip("/")
    answers = [named(client, origin=own), named(client), named(client, origin="https://evil.example")]
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    for origin in (own, "https://evil.example", "null"):
        answers.append(client.options("/gradio_api/queue/join", headers={"origin": origin, **wanted}))
    assert [answer.status_code for answer in answers[:3]] == [200, 200, 403]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_given_names_are_served_under_any_scheme_and_port(guarded: httpx.Client) -> None:
    """As behind a proxy that ends TLS."""
    for host in ("saji.lan", "Other.lan:443", "[::1]:1"):
        assert named(guarded, host=host, authorization="Bearer geheim").status_code == 200
    proxied = {"host": "127.0.0.1:7860", "origin": "https://saji.lan:8443", "authorization": "Bearer geheim"}
    assert named(guarded, **proxied).status_code == 200
    assert named(guarded, **{**proxied, "origin": "https://saji.lan.evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("food.example:8443", "food.example"),
        ("Food.Example", "food.example:1"),
        ("[2001:db8::1]", "[2001:db8::1]:7860"),
        ("2001:DB8:0::1", "[2001:db8::1]"),
    ],
)
def test_a_name_is_allowed_however_it_is_spelled(name: str, host: str) -> None:
    hosts = Hosts(names=[name])
    assert hosts.serves(host) and hosts.trusts(f"https://{host}", "127.0.0.1") and not hosts.serves("other.example")


@pytest.mark.parametrize("name", ["https://a.example/", "größe.example", "a b", ""])
def test_a_name_that_no_browser_sends_is_refused_at_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["demo", "--allow-host", name])
    with pytest.raises(SajiError, match="--allow-host"):
        app.main()


@pytest.mark.parametrize("name", ["https://a.example/", "größe.example", "a b", "caf\udce9.lan"])
def test_neither_is_one_listened_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose visitors would all be refused, and for which no certificate can be made."""
    monkeypatch.setattr("sys.argv", ["demo", "--https", "--host", name])
    with pytest.raises(SajiError, match=r"--host .* is no name as browsers send it"):
        app.main()


def test_an_address_is_listened_on_however_it_is_spelled() -> None:
    assert Hosts("FD00:0::2").serves("[fd00::2]:7860") and Hosts("My.Lan").serves("my.lan:7860")


def test_where_any_name_is_let_in_a_page_of_another_one_is_not() -> None:
    """Though a proxy may leave out the port, and a client of HTTP/1.0 the name."""
    hosts = Hosts(names=["*"])
    assert hosts.serves("food.example") and hosts.serves("")
    assert hosts.trusts("https://food.example:8443", "food.example")
    for origin in ("https://evil.example", "https://food.example.evil.example", "null", "", "https://"):
        assert not hosts.trusts(origin, "food.example") and not hosts.trusts(origin, "")


def test_a_supervisor_may_ask_without_a_body_and_a_slash_too_many_leads_nowhere_else(client: httpx.Client) -> None:
    for path in ("/healthz", "/readyz"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    answer = client.post("/v1/classify/", content=photo(), headers={"content-type": "image/jpeg"})
    assert (answer.status_code, cause_of(answer)) == (404, "not-found")


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here; install it, or name it with CHROMIUM=PATH")
def test_a_rebound_name_reads_nothing_in_a_browser(client: httpx.Client) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    rules = "--host-resolver-rules=MAP evil.test 127.0.0.1"
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=[*CHROMIUM_FLAGS, rules])
        page = browser.new_page()
        page.goto(f"http://evil.test:{parts_of(client)[1]}/healthz")
        assert page.evaluate("async () => (await fetch('/config')).status") == 421
        browser.close()


# Routes and functions


NOT_THERE = {
    "GET /": "monitoring monitoring/summary docs redoc login logout robots.txt pwa_icon pwa_icon/64 CONFIG /config "
    "config// assets/ x/../config",
    "GET /gradio_api/": "user token token/ app_id login_check dev/reload runs openapi.json vibe-code queue/status "
    "deep_link profiling/summary custom_component/a/client/b/c stream/a/b/1/playlist.m3u8 proxy=http://127.0.0.1/ "
    "file=http://127.0.0.1/ file=HTTPS:/x file/etc/passwd",
    "POST /gradio_api/": "process_recording component_server vibe-edit undo-vibe-edit/ vibe-code vibe-starter-queries "
    "stream/a stream/a/close login call/v2/classify call/show call/load_example run/show api/classify",
    "POST /": "config login",
    "PUT /gradio_api/": "upload queue/join",
    "DELETE /gradio_api/": "upload",
    "TRACE /gradio_api/": "upload",
    "HEAD /": "config",
}


@pytest.mark.parametrize("request_", [f"{start}{end}" for start, ends in NOT_THERE.items() for end in ends.split()])
def test_what_the_page_does_not_use_is_not_there(client: httpx.Client, request_: str) -> None:
    method, path = request_.split()
    answer = asked(client, path, method=method)
    assert status_of(answer) == 404, answer[:200]
    assert method == "HEAD" or PROBLEM.encode() in answer


@pytest.mark.parametrize("function", [-1, 10**9, 10**30, True, "0", 1.0, None, [], {}], ids=repr)
def test_a_function_that_the_page_does_not_have_is_refused(client: httpx.Client, function: Any) -> None:
    assert joining(client, {"data": [], "fn_index": function, "session_hash": "a"}).status_code in (400, 404)
    body = json.dumps({"data": [0], "fn_index": function})
    assert client.post("/gradio_api/run/predict", content=body, headers=JSON).status_code in (400, 404)


@pytest.mark.parametrize("index", [-1, 1, 10**9, "0", None, [], {"path": "/etc/passwd"}], ids=repr)
def test_an_example_that_is_none_is_refused(client: httpx.Client, index: Any) -> None:
    body = json.dumps({"data": [index], "fn_index": function_of(client, "example").index, "session_hash": "a"})
    answer = client.post("/gradio_api/run/predict", content=body, headers=JSON)
    assert 400 <= answer.status_code < 500 and cause_of(answer)


ODD_DATA = [[], [1, 2, 3], ["SECRET"], [5], [True], [[]], [["SECRET"]], [[{}, "SECRET"]], [{"SECRET": 1}], [None]]
ODD_DATA += [[{"path": None}], [{"orig_name": 5}], [{"name": ["SECRET"]}], ["0"], [-1], [10**9]]


@pytest.mark.parametrize("data", ODD_DATA, ids=ascii)
def test_data_of_another_kind_fails_no_function_of_the_page(service: Service, client: httpx.Client, data: Any) -> None:
    """Case gradio: each ended in a traceback in the log, with what the visitor had sent."""
    before = len(service.logged(client))
    answers = [answered(client, function.index, data) for function in functions_of(client)]
    answers.append(called(client, data))
    answers.append(as_told(client.post("/gradio_api/run/predict", json={"data": data, "fn_index": 0})))
    logged = service.logged(client)[before:]
    assert not [line for line in logged if json.loads(line)["event"] != "request"], logged
    assert "SECRET" not in "".join(logged) and "object at 0x" not in " ".join(answers)
    assert not [answer for answer in answers if answer.startswith("500")]


ODD_JSON = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"data":' * 30_000,
    "deep data": b'{"data":' + b"[" * 500 + b"]" * 500 + b',"fn_index":0,"session_hash":"a"}',
    "no number": b'{"data":[NaN],"fn_index":0,"session_hash":"a"}',
    "endless number": b'{"data":[' + b"9" * 10_000 + b'],"fn_index":0}',
    "nothing": b"",
    "no object": b"[]",
    "no data": b"{}",
    "data is text": b'{"data":"x","fn_index":0,"session_hash":"a"}',
    "zeros": b"\0" * 100,
    "not UTF-8": b'{"data":["\xff"]}',
    "half a character": b'{"data":["\\ud800"],"fn_index":0,"session_hash":"a"}',
    "an odd session": b'{"data":[],"fn_index":0,"session_hash":"../a\\u0000"}',
    "a long session": b'{"data":[],"fn_index":0,"session_hash":"' + b"a" * 5000 + b'"}',
}


@pytest.mark.parametrize("what", ODD_JSON)
def test_odd_json_is_refused_in_one_sentence(client: httpx.Client, what: str) -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
        answer = client.post(path, content=ODD_JSON[what], headers=JSON)
        assert 400 <= answer.status_code < 500 and cause_of(answer)


def test_the_json_of_the_page_is_small(client: httpx.Client) -> None:
    body = b'{"data":[' + b"[]," * 90_000 + b"1]}"
    for path in ("/gradio_api/queue/join", CALL, "/gradio_api/cancel", "/gradio_api/reset"):
        answer = client.post(path, content=body, headers=JSON)
        assert (answer.status_code, cause_of(answer)) == (413, "too-large")


# The token


ODD_TOKENS = [b"Basic \xe9\xe9", b"Bearer caf\xe9", b"Basic Og==", b"Basic", b"Bearer", b"Bearer ", b"bearer x"]
ODD_TOKENS += [b"Bearer " + b"x" * 9000, b"Basic /zr/", b"Digest geheim", b"geheim", b"Bearer geheim2", b"Bearer \xff"]


@pytest.mark.parametrize("value", ODD_TOKENS, ids=lambda value: ascii(value)[:24])
def test_no_authorization_fails_the_service(guarded: httpx.Client, value: bytes) -> None:
    """Case fastapi: a byte above 0x7f was a 500 with a traceback."""
    assert status_of(asked(guarded, "/config", "Authorization: " + value.decode("latin-1"))) == 401


def test_the_right_token_lets_in_though_its_variable_ends_with_a_newline(guarded: httpx.Client) -> None:
    assert guarded.get("/config", auth=("anybody", "geheim")).status_code == 200
    assert guarded.get("/", headers={"authorization": "Bearer geheim"}).status_code == 200


def test_nothing_is_there_for_who_has_no_token(guarded: httpx.Client) -> None:
    paths = ["config", "gradio_api/info", "v1/model", "metrics", "openapi.json", "gradio_api/queue/join", "assets/x.js"]
    paths += [
        "gradio_api/upload",
        "monitoring",
        "healthz/../config",
        "healthz%2f..%2fconfig",
        "healthz;/config",
        "%63onfig",
    ]
    for path in paths:
        for spelled in (f"/{path}", f"/{path}/", f"//{path}", f"/{path.upper()}", f"/{path}?token=geheim"):
            for method in ("GET", "POST", "OPTIONS"):
                assert status_of(asked(guarded, spelled, method=method)) == 401, (method, spelled)


def test_an_ipv6_address_is_printed_so_that_it_opens(guarded: httpx.Client) -> None:
    assert str(guarded.base_url).startswith("http://[::1]:")
    assert guarded.get("/healthz").status_code == 200


# Time and room


def trickling(client: httpx.Client) -> socket.socket:
    """A connection whose body never comes to its end."""
    connection = socket.create_connection(parts_of(client))
    host = f"Host: {parts_of(client)[0]}:{parts_of(client)[1]}\r\n"
    head = f"POST /v1/classify HTTP/1.1\r\n{host}Content-Type: image/jpeg\r\nContent-Length: 30000000\r\n\r\n"
    connection.sendall(head.encode() + b"\xff")
    return connection


def test_slow_senders_take_no_place_from_others(client: httpx.Client) -> None:
    with ExitStack() as stack:
        for _ in range(70):  # the queue has 64 places
            stack.enter_context(trickling(client))
        time.sleep(0.3)
        assert is_served(client)


@pytest.mark.slow
def test_a_body_that_comes_byte_by_byte_is_cut(client: httpx.Client) -> None:
    with trickling(client) as connection:
        connection.settimeout(15)
        began = time.monotonic()
        for _ in range(20):
            time.sleep(0.5)
            try:
                connection.sendall(b"a")
            except OSError:
                break
        answer = rest_of(connection)
    assert status_of(answer) == 408 and b"upload-too-slow" in answer and time.monotonic() - began < 14


# As Java's HttpClient and `curl --http2` send over http by themselves, and as a page asks for a websocket
OFFERS = {
    "HTTP/2": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n",
    "a websocket": b"Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\nSec-WebSocket-Version: 13\r\n",
}


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("sent", ["at once", "the body later", "byte by byte", "in chunks"])
def test_a_request_that_offers_another_protocol_is_answered_in_this_one(
    client: httpx.Client, offer: str, sent: str
) -> None:
    size, body = b"Content-Length: %d\r\n" % len(photo()), photo()
    if sent == "in chunks":
        size, body = b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    named = b"Host: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
    head = b"POST /v1/classify?top=1 HTTP/1.1\r\n" + OFFERS[offer] + named + size + b"\r\n"
    after = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"  # on the same connection
    with socket.create_connection(parts_of(client), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pieces = [head, body] if sent == "the body later" else [head + body]
        for piece in [bytes([byte]) for byte in head] + [body] if sent == "byte by byte" else pieces:
            connection.sendall(piece)
            time.sleep(0.02 if sent == "the body later" else 0)
        connection.sendall(after)
        answers = rest_of(connection)
    assert answers.count(b"HTTP/1.1 200") == 2 and b'"label":"red_rendang"' in answers and b'"ok"' in answers


def test_offers_in_a_row_and_tunnels_end_no_service(client: httpx.Client) -> None:
    offers = b"".join(b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + OFFERS["HTTP/2"] + b"\r\n" for _ in range(400))
    last = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert status_of(raw(client, offers + last)) == 200
    assert status_of(raw(client, b"CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example\r\n\r\n")) in range(400, 500)
    assert is_served(client)


HEADS = {
    "an address": b"GET /" + b"a" * 2**20,
    "a header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 2**20,
    "headers": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * 200_000,
    "a header's name": b"GET / HTTP/1.1\r\n" + b"a" * 2**20,
    "a method": b"G" * 2**20,
}


@pytest.mark.parametrize("what", HEADS)
def test_a_head_without_end_is_cut(client: httpx.Client, what: str) -> None:
    assert status_of(raw(client, HEADS[what])) in (0, 400, 431)


@linux_only
def test_heads_without_end_take_no_memory(service: Service, client: httpx.Client) -> None:
    before = service.megabytes()
    with ExitStack() as stack:
        for _ in range(8):
            connection = stack.enter_context(socket.create_connection(parts_of(client)))
            connection.settimeout(2)
            try:
                for _ in range(96):
                    connection.sendall(b"a: b\r\n" * 10_923 if _ else b"GET / HTTP/1.1\r\n")
            except OSError:
                continue
        assert service.megabytes() - before < 20


def test_who_sends_half_a_head_is_sent_away(client: httpx.Client) -> None:
    began = time.monotonic()
    with ExitStack() as stack:
        halves = [b"", b"G", b"GET / HTTP/1.1\r\nX-A: ", b"\r\n"]
        connections = [stack.enter_context(socket.create_connection(parts_of(client), timeout=10)) for _ in halves]
        for connection, half in zip(connections, halves, strict=True):
            connection.sendall(half)
        answers = [status_of(rest_of(connection)) for connection in connections]
    assert answers == [408] * len(halves) and HEAD_SECONDS - 0.5 < time.monotonic() - began < HEAD_SECONDS + 3


def one_answer(connection: socket.socket) -> bytes:
    """The answer to /healthz, whose body may come after its headers; the connection is kept."""
    came = b""
    while not came.endswith(b"}"):
        came += connection.recv(65536)
    return came


def test_a_kept_connection_is_not_held_by_empty_lines(client: httpx.Client) -> None:
    with socket.create_connection(parts_of(client), timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert status_of(one_answer(connection)) == 200
        connection.sendall(b"\r\n")
        assert b"408" in rest_of(connection)


def test_a_kept_connection_that_gives_way_is_told_nothing(client: httpx.Client) -> None:
    """What came unasked would be taken for the answer to the next request."""
    with ExitStack() as stack:
        kept = stack.enter_context(socket.create_connection(parts_of(client), timeout=10))
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert status_of(one_answer(kept)) == 200
        for _ in range(140):  # half of 256 files may be connections
            stack.enter_context(socket.create_connection(parts_of(client), timeout=5))
        assert rest_of(kept) == b""


def test_a_refused_head_is_answered_like_every_refusal(client: httpx.Client) -> None:
    answer = raw(client, b"GET / HTTP/1.1\r\nX: ", HEAD_SECONDS + 8)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and PROBLEM.encode() in answer


def test_a_visitor_gets_in_beside_more_idle_connections_than_files_may_be_open(client: httpx.Client) -> None:
    # A connection that `client` has kept may be closed for them in the moment in which it is used again
    with ExitStack() as stack, httpx.Client(base_url=client.base_url, timeout=PATIENCE) as visitor:
        for _ in range(300):
            connection = stack.enter_context(socket.create_connection(parts_of(client), timeout=5))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ")
        assert is_served(visitor)
    assert is_served(client)


# Photos


@pytest.mark.parametrize("kind", ["JPEG2000", "TIFF", "BMP", "GIF", "PPM", "TGA", "ICO", "DIB", "PCX", "SGI"])
def test_only_what_cameras_and_the_web_make_is_decoded(client: httpx.Client, kind: str) -> None:
    """829 bytes of JPEG 2000 held the interpreter for seconds."""
    answer = client.post("/v1/classify", content=photo(kind=kind), headers={"content-type": "image/png"})
    assert (answer.status_code, cause_of(answer)) == (422, "not-a-picture")
    assert "JPEG, PNG or WEBP" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "MPO"])
def test_photos_as_they_are_taken_are_named(client: httpx.Client, kind: str) -> None:
    answer = client.post("/v1/classify", content=photo(kind=kind), headers={"content-type": "image/jpeg"})
    assert answer.status_code == 200 and answer.json()["answers"][0]["label"] == "red_rendang"


def test_every_format_is_let_in_when_asked(guarded: httpx.Client) -> None:
    for kind in ("JPEG2000", "TIFF", "BMP", "GIF", "PPM", "TGA"):
        headers = {"content-type": "image/png", "authorization": "Bearer geheim"}
        assert guarded.post("/v1/classify", content=photo(kind=kind), headers=headers).status_code == 200, kind


def test_the_page_lists_each_function_that_it_lets_in(client: httpx.Client) -> None:
    """So that the allow-list cannot lock the page out."""
    assert len(functions_of(client)) > 8
