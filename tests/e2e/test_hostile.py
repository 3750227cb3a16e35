"""A hostile user against a real server: addresses, files, floods, and leaving at every moment.

`make e2e` runs it; `make test` has the same checks on the parts.
"""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.hostile import BAD, BEHAVIOURS, GOOD, REDIRECTS, HostileServer
from tests.server.process import ServerProcess, serving_process, wait_until
from tests.server.requests import CHAT, chat, image

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(30)]

MAX_RUNNING, MAX_WAITING = 2, 4
FAKE = ("--model", "fake:step_s=0.01", "--threads", "1", "--media-fetch-timeout-s", "1")
INSIDE = [
    "http://127.0.0.1", "http://localhost", "http://[::1]", "http://2130706433", "http://0x7f000001",
    "http://0177.0.0.1", "http://017700000001", "http://127.1", "http://0", "http://0.0.0.0",
    "http://[::]", "http://[::ffff:127.0.0.1]", "http://[::ffff:7f00:1]", "http://[64:ff9b::7f00:1]",
    "http://127.0.0.1.", "http://user:pass@127.0.0.1", "http://169.254.169.254", "http://10.1.2.3",
    "http://192.168.0.1", "http://172.16.0.1", "http://100.64.0.1", "http://[fe80::1]",
    "http://[fd00::1]", "http://①②⑦.⓪.⓪.①", "http://127。0。0。1", "http://LOCALHOST.",
]  # fmt: skip


@pytest.fixture(scope="module")
def closed() -> Iterator[ServerProcess]:
    """As it comes: no private addresses; with little room."""
    room = ("--max-running", str(MAX_RUNNING), "--max-waiting", str(MAX_WAITING))
    with serving_process(*FAKE, *room) as server:
        yield server


@pytest.fixture(scope="module")
def opened() -> Iterator[ServerProcess]:
    """Lets images come from private addresses, so that the hostile server is reached."""
    with serving_process(*FAKE, "--media-allow-private") as server:
        yield server


def post(server: ServerProcess, *parts: Any, **fields: Any) -> httpx.Response:
    return httpx.post(server.url + CHAT, json=chat(*parts, **fields), timeout=30)


@pytest.mark.parametrize("host", INSIDE)
def test_no_way_of_writing_an_address_reaches_the_inside(closed: ServerProcess, host: str) -> None:
    port = httpx.URL(closed.url).port
    for url in (f"{host}:{port}/healthz", f"{host}/a.png"):
        error = post(closed, image(url)).json()["error"]
        assert error["code"] in ("invalid_image_url", "image_fetch_failed"), url
        assert error["param"] == "messages[0].content[0].image_url.url"
        assert "ok" not in error["message"]


def test_a_hostile_web_server_costs_its_own_request_only(opened: ServerProcess) -> None:
    with HostileServer() as hostile:
        for path in GOOD:
            assert post(opened, image(f"{hostile.url}/{path}")).status_code == 200, path
        for path, (_, code) in BAD.items():
            assert post(opened, image(f"{hostile.url}/{path}")).json()["error"]["code"] == code, (
                path
            )
        for path in REDIRECTS:
            response = post(opened, image(f"{hostile.url}/{path}"))
            assert response.status_code == 400, path
            assert "root:" not in response.text
        begun_s = time.monotonic()
        with ThreadPoolExecutor(len(BEHAVIOURS)) as clients:
            urls = [image(f"{hostile.url}/{path}") for path in BEHAVIOURS]
            answers = list(clients.map(lambda part: post(opened, part), urls))
        assert [answer.status_code for answer in answers] == [400] * len(BEHAVIOURS)
        assert time.monotonic() - begun_s < 8
    assert post(opened, image()).status_code == 200


def test_a_flood_beyond_the_queue_is_told_when_to_come_back(closed: ServerProcess) -> None:
    body = chat("fake:slow", max_tokens=20)
    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda _: post(closed, **body), range(40)))
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(served) >= MAX_WAITING
    assert refused
    for answer in refused:
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
    check_nothing_is_left(closed)


def check_nothing_is_left(server: ServerProcess) -> None:
    """No page, no request, no place in the queue is held any more."""
    wait_until(lambda: server.series("lookm_kv_cache_used_bytes") == 0)
    wait_until(lambda: server.series("lookm_requests_waiting") == 0)
    assert server.series("lookm_requests_running") == 0
    with ThreadPoolExecutor(MAX_WAITING) as clients:
        places = range(MAX_WAITING)
        answers = list(clients.map(lambda _: post(server, "hello", max_tokens=3), places))
    assert [answer.status_code for answer in answers] == [200] * len(places)


class Client:
    """A raw connection: sends what it is told to, and leaves when it is told to."""

    def __init__(self, server: ServerProcess, **fields: Any) -> None:
        url = httpx.URL(server.url)
        self._socket = socket.create_connection((url.host, url.port or 80), timeout=10)
        self._body = json.dumps(chat(**fields)).encode()

    def send(self, part: float = 1.0) -> None:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(self._body)}\r\n\r\n"
        self._socket.sendall(head.encode() + self._body[: int(len(self._body) * part)])

    def wait_for(self, text: bytes) -> None:
        seen = b""
        while text not in seen:
            piece = self._socket.recv(4096)
            assert piece, seen
            seen += piece

    def leave(self) -> None:
        self._socket.close()


SLOW = {"messages": [{"role": "user", "content": "fake:slow"}], "max_tokens": 2000}


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_leaving_during_the_upload_leaves_nothing(closed: ServerProcess, part: float) -> None:
    for _ in range(20):
        client = Client(closed, **SLOW)
        client.send(part)
        client.leave()
    check_nothing_is_left(closed)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_right_after_the_request_leaves_nothing(
    closed: ServerProcess, stream: bool
) -> None:
    for _ in range(20):
        client = Client(closed, **SLOW, stream=stream)
        client.send()
        client.leave()
    check_nothing_is_left(closed)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_the_queue_and_the_decoding_leaves_nothing(
    closed: ServerProcess, stream: bool
) -> None:
    clients = [Client(closed, **SLOW, stream=stream) for _ in range(MAX_RUNNING + MAX_WAITING)]
    for client in clients[:MAX_RUNNING]:
        client.send()
    wait_until(lambda: closed.series("lookm_requests_running") == MAX_RUNNING)
    for client in clients[MAX_RUNNING:]:
        client.send()
    wait_until(lambda: closed.series("lookm_requests_waiting") == MAX_WAITING)
    for client in reversed(clients):  # those in the queue first
        client.leave()
    check_nothing_is_left(closed)


def test_leaving_in_the_middle_of_a_stream_leaves_nothing(closed: ServerProcess) -> None:
    for n in (1, 2):
        client = Client(closed, **SLOW, stream=True, n=n)
        client.send()
        client.wait_for(b"word2")
        client.leave()
        check_nothing_is_left(closed)
