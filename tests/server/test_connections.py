"""Connections: bounded below the descriptors, idle ones make room, probes are always answered."""

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from server import connections
from server.connections import PROBES, Connections, most_connections, raise_descriptor_limit
from tests.server.process import ServerProcess, serving_process
from tests.server.requests import CHAT, chat

MOST = 8


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ("--model", "fake", "--threads", "1", "--max-connections", str(MOST))
    with serving_process(*flags) as server:
        yield server


def connect(server: ServerProcess, first: bytes = b"") -> socket.socket:
    url = httpx.URL(server.url)
    connection = socket.create_connection((url.host, url.port or 80), timeout=10)
    connection.sendall(first)
    return connection


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_idle_connections_make_room_for_new_ones(server: ServerProcess) -> None:
    with ExitStack() as opened:
        idle = [opened.enter_context(connect(server)) for _ in range(3 * MOST)]
        with httpx.Client(base_url=server.url) as client:
            for path in ("/healthz", "/metrics", "/v1/models"):
                assert client.get(path).status_code == 200
            assert client.post(CHAT, json=chat()).status_code == 200
        assert all(is_closed(connection) for connection in idle[:MOST])
    assert server.series("lookm_connections_refused_total") >= 2 * MOST


def test_where_none_is_idle_probes_are_answered_and_others_are_told(
    server: ServerProcess,
) -> None:
    unfinished = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
    with ExitStack() as opened:
        for _ in range(MOST):
            opened.enter_context(connect(server, unfinished))
        for path in ("/healthz", "/readyz", "/metrics"):
            assert httpx.get(server.url + path).status_code == 200
        refused = httpx.post(server.url + CHAT, json=chat())
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert refused.headers["connection"] == "close"
    while server.series("lookm_connections") > 1:
        pass
    assert httpx.post(server.url + CHAT, json=chat()).status_code == 200


def test_connections_fit_into_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_connections(4096, 2**16, 352) == 4096
    few = most_connections(4096, 1024, 352)
    assert PROBES <= few < 1024 - 352
    assert most_connections(4096, 256, 352) == PROBES
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert raise_descriptor_limit() == 4096
    assert asked == [(4096, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**20, 2**20))
    assert raise_descriptor_limit() == 2**20
    assert len(asked) == 1


@pytest.mark.anyio
async def test_failures_to_accept_write_a_line_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0

    def on_refused() -> None:
        nonlocal refused
        refused += 1

    handler = Connections(1, on_refused).on_loop_error
    loop = asyncio.get_running_loop()
    for _ in range(5000):
        handler(loop, {"message": "x", "exception": OSError(errno.EMFILE, "too many open files")})
    assert refused == 5000
    assert len(caplog.records) == 1
    monkeypatch.setattr(connections, "LOG_EVERY_S", 0)
    with caplog.at_level(logging.ERROR, logger="asyncio"):
        handler(loop, {"message": "another", "exception": ValueError()})
    assert "another" in caplog.text
