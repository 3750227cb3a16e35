"""Stopping: whatever clients do, whenever signals come, everybody is told, in bounded time."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from server import signals
from tests.server.process import ServerProcess, wait_until
from tests.server.raw_http import RawClient, timed
from tests.server.requests import chat

DRAIN_S = 1.0
PROMISED_S = 2.0  # after the drain, or after the second signal
FLAGS = ("--model", "fake:step_s=0.005", "--threads", "1", "--drain-timeout-s", str(DRAIN_S))
TERM, INT = signal.SIGTERM, signal.SIGINT
QUIT_GROUP = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT]  # two that mean nothing, and a stop
LONG = {"max_tokens": 8000}


@contextlib.contextmanager
def server_to_stop(*flags: str) -> Iterator[ServerProcess]:
    """A ready server; whatever happens, it and its worker are gone afterwards."""
    server = ServerProcess(*FLAGS, *flags)
    try:
        server.wait_ready()
        worker = server.worker_pid
        yield server
        assert server.process.wait(30) == 0
        wait_until(lambda: not Path(f"/proc/{worker}").exists())
    finally:
        server.process.kill()
        server.process.communicate()


def streaming(server: ServerProcess, count: int) -> list[RawClient]:
    """Clients whose streams have begun."""
    clients = [RawClient(server.url) for _ in range(count)]
    for client in clients:
        client.ask(chat(stream=True, **LONG))
    for client in clients:
        client.read_until(b"word1")
    return clients


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def read_all(clients: list[RawClient]) -> None:
    with ThreadPoolExecutor(len(clients)) as readers:
        list(readers.map(RawClient.read_to_end, clients))


@pytest.mark.parametrize(
    "numbers",
    [[TERM], [INT, TERM], [TERM, TERM, INT, TERM], [signal.SIGHUP], QUIT_GROUP],
    ids=["one", "two", "four", "hangup", "quit"],
)
def test_every_stream_gets_its_error_and_its_end(numbers: list[int]) -> None:
    with server_to_stop() as server:
        worker, streams = server.worker_pid, streaming(server, 5)
        whole = RawClient(server.url)
        whole.ask(chat(**LONG))
        with timed(PROMISED_S + (DRAIN_S if len(numbers) == 1 else 0)):
            for number in numbers:
                server.process.send_signal(number)
                with contextlib.suppress(ProcessLookupError):  # after some it is gone already
                    os.kill(worker, number)  # as a terminal does, and a supervisor of the group
                time.sleep(0.05)
            read_all([*streams, whole])
            assert server.process.wait(30) == 0
    assert all(stream.ended_well and stream.failed for stream in streams)
    assert (whole.status, whole.failed) == (503, True)


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled(lambda: None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_does_not_wait_for_clients_that_do_not_get_on() -> None:
    with server_to_stop() as server:
        unread = RawClient(server.url, receive_buffer=4096)
        unread.ask(chat(stream=True, n=32, **LONG))
        half_head, half_body, no_body, idle = (RawClient(server.url) for _ in range(4))
        half_head.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n")
        half_body.ask(chat("x" * 1000), upto=0.5)
        no_body.ask(chat(), upto=0)
        idle.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        idle.read_until(b"ok")
        streams = streaming(server, 2)
        with timed(DRAIN_S + PROMISED_S):
            server.process.send_signal(TERM)
            read_all([*streams, half_head, half_body, no_body, idle])
            assert server.process.wait(30) == 0
        unread.socket.close()
    assert all(stream.ended_well and stream.failed for stream in streams)
    assert [(each.status, each.failed) for each in (half_body, no_body)] == [(503, True)] * 2
    assert half_head.received == b""


def test_a_stop_does_not_wait_for_a_worker_that_hangs() -> None:
    with server_to_stop() as server:
        streams = streaming(server, 3)
        os.kill(server.worker_pid, signal.SIGSTOP)
        with timed(DRAIN_S + PROMISED_S):
            server.process.send_signal(TERM)
            read_all(streams)
            assert server.process.wait(30) == 0
    assert all(stream.ended_well and stream.failed for stream in streams)


def test_a_stop_while_there_is_no_worker() -> None:
    with server_to_stop() as server:
        os.kill(server.worker_pid, signal.SIGKILL)
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        with timed(PROMISED_S):
            server.process.send_signal(TERM)
            assert server.process.wait(30) == 0


def test_a_worker_that_hangs_does_not_outlive_a_server_that_is_killed() -> None:
    server = ServerProcess(*FLAGS)
    server.wait_ready()
    worker = server.worker_pid
    os.kill(worker, signal.SIGSTOP)
    server.process.kill()
    server.process.communicate()
    wait_until(lambda: not Path(f"/proc/{worker}").exists())


def test_a_server_that_is_not_to_restart_its_worker_ends_its_streams_and_exits_with_1() -> None:
    server = ServerProcess(*FLAGS, "--exit-on-worker-failure")
    try:
        server.wait_ready()
        streams = streaming(server, 3)
        with timed(PROMISED_S):
            os.kill(server.worker_pid, signal.SIGKILL)
            read_all(streams)
            assert server.process.wait(30) == 1
        assert all(stream.ended_well and stream.failed for stream in streams)
    finally:
        server.process.kill()
        server.process.communicate()


@pytest.mark.parametrize(("after_s", "number"), [(0, TERM), (0.2, INT), (0.6, TERM), (1.5, INT)])
def test_a_signal_at_any_moment_of_the_start_ends_it_with_status_0(
    after_s: float, number: int
) -> None:
    command = (sys.executable, "-m", "server", "serve", "--port", "0")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: handles(process.pid, TERM))  # Python itself has begun
        time.sleep(after_s)
        with timed(PROMISED_S):
            process.send_signal(number)
            output = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in output[1]
    finally:
        process.kill()
