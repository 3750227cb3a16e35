"""Clients that drip their bytes are cut off; those that only have much to send are not."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.bodies import BodyClock
from server.settings import Settings
from tests.server.process import ServerProcess, serving_process
from tests.server.requests import CHAT, chat, image, says, serving

TIMEOUT_S = 0.5
PATIENCE_S = 15  # a test waits so long where nothing was said: machines are busy
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ("--receive-timeout-s", str(TIMEOUT_S), "--max-body", "1MiB")
    with serving_process("--model", "fake", "--threads", "1", *flags) as server:
        yield server


def drip(server: ServerProcess, first: bytes, drop: bytes = b"a") -> tuple[bytes, float]:
    """Send `first`, then drop after drop until the server hangs up; what it said, and after what
    time."""
    url, said, begun_s = httpx.URL(server.url), b"", time.monotonic()
    with socket.create_connection((url.host, url.port or 80), timeout=0.05) as connection:
        connection.sendall(first)
        while time.monotonic() - begun_s < 2 * PATIENCE_S:
            try:
                connection.sendall(drop)
                piece = connection.recv(65536)
                said += piece
                if not piece:
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return said, time.monotonic() - begun_s


def test_a_body_that_drips_is_answered_with_408_and_hung_up(server: ServerProcess) -> None:
    said, took_s = drip(server, HEAD + b"\r\n{")
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "request_timeout"
    assert TIMEOUT_S <= took_s < PATIENCE_S


def test_a_chunked_body_that_drips_is_cut_off(server: ServerProcess) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    said, took_s = drip(server, head, b"1\r\n{\r\n")
    assert said.startswith(b"HTTP/1.1 408 ")
    assert took_s < PATIENCE_S


@pytest.mark.parametrize("first", [b"", b"GET /healthz HT", HEAD + b"x-slow: "])
def test_headers_that_drip_are_hung_up_on(server: ServerProcess, first: bytes) -> None:
    said, took_s = drip(server, first)
    assert said == b""
    assert TIMEOUT_S <= took_s < PATIENCE_S


def test_headers_that_drip_after_an_answer_are_hung_up_on(server: ServerProcess) -> None:
    said, took_s = drip(server, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /heal")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert took_s < PATIENCE_S


@pytest.mark.parametrize(
    "head",
    [
        b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
        HEAD.replace(b"1000", b"9999999") + b"\r\n",
    ],
)
def test_a_body_that_nobody_reads_does_not_hold_the_connection(
    server: ServerProcess, head: bytes
) -> None:
    said, took_s = drip(server, head)
    assert said.startswith(b"HTTP/1.1 ")
    assert took_s < PATIENCE_S


def test_a_silent_client_is_hung_up_on_and_a_prompt_one_is_not(server: ServerProcess) -> None:
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=5) as silent:
        with httpx.Client(base_url=server.url) as prompt:
            begun_s = time.monotonic()
            while time.monotonic() - begun_s < 2 * TIMEOUT_S:
                assert prompt.post(CHAT, json=chat(image())).status_code == 200
        assert silent.recv(1) == b""


def test_a_slow_answer_is_not_cut_off(server: ServerProcess) -> None:
    body = chat("fake:slow", max_tokens=30)
    answer = httpx.post(server.url + CHAT, json=body, timeout=30)
    assert answer.json()["usage"]["completion_tokens"] == 30
    assert answer.elapsed.total_seconds() > 2 * TIMEOUT_S


@pytest.mark.anyio
async def test_a_large_body_may_take_longer_at_a_fair_rate() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    pieces = iter([64 * 2**10] * 4 + [0])

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.03)
        size = next(pieces)
        return {"type": "http.request", "body": b"a" * size, "more_body": size > 0}

    clock = BodyClock(app, timeout_s=0.04)
    await clock({"type": "http"}, receive, None)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_what_timed_out_holds_no_memory_of_the_bodies_together() -> None:
    settings = Settings(model="fake", receive_timeout_s=0.05, max_body_total=3000)
    body = json.dumps(chat()).encode()

    async def slow() -> Any:
        yield body[:-1] + b" " * 2000
        await asyncio.sleep(1)
        yield b"}"

    async with serving(settings, says) as (client, *_):
        for _ in range(3):
            response = await client.post(CHAT, content=slow())
            assert response.status_code == 408
        assert (await client.post(CHAT, content=body)).status_code == 200


def test_a_client_that_does_not_read_is_cut_off_and_its_request_aborted(
    server: ServerProcess,
) -> None:
    url = httpx.URL(server.url)
    body = json.dumps(chat("a", stream=True, n=16, max_tokens=4000, ignore_eos=True)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((url.host, url.port or 80))
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        until_s = time.monotonic() + 60
        metrics = ""
        while 'lookm_request_success_total{finish_reason="abort"} 16.0' not in metrics:
            assert time.monotonic() < until_s, metrics
            time.sleep(0.05)
            metrics = httpx.get(f"{server.url}/metrics").text


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nlong: " + b"a" * 10**6,
        b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    ],
    ids=["tls", "header", "chunk", "length"],
)
def test_what_is_no_http_gets_the_envelope(server: ServerProcess, sent: bytes) -> None:
    url, said = httpx.URL(server.url), b""
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        connection.sendall(sent)
        while piece := connection.recv(65536):
            said += piece
    top, _, envelope = said.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 400 ")
    assert json.loads(envelope)["error"]["code"] == "invalid_value"


def test_a_body_of_very_many_tiny_chunks_is_refused(server: ServerProcess) -> None:
    url = httpx.URL(server.url)
    head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    said = b""
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        with contextlib.suppress(OSError):  # it has hung up before all was sent
            connection.sendall(head + b"1\r\n \r\n" * 500_000)
        while piece := connection.recv(65536):
            said += piece
    top, _, envelope = said.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 400 ")
    assert json.loads(envelope)["error"]["code"] == "invalid_value"
    body = json.dumps(chat("a")).encode()
    chunks = (body[n : n + 1] for n in range(len(body)))
    answered = httpx.post(f"{server.url}/tokenize", content=chunks)
    assert answered.status_code in (200, 400)
    assert answered.headers["content-type"] == "application/json"
