"""Attacks on a server's life: what they do, and what they measured. `test_life` says what is right.

Each takes a server of its own (`ServerProcess`), uses loopback only, and ends in bounded time.
"""

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.faults.watch import Figures, watched
from tests.server.process import ServerProcess
from tests.server.raw_http import RawClient
from tests.server.requests import CHAT, chat

FOREVER = {"max_tokens": 1500, "ignore_eos": True}


def stop_under_fire(server: ServerProcess, model: str, signals: Sequence[int]) -> Figures:
    """Signals, 0.2 s apart, while every kind of client is at it."""
    figures = Figures()
    clients = [RawClient(server.url) for _ in range(30)]
    unread = [RawClient(server.url, receive_buffer=4096) for _ in range(3)]
    streams, whole, half = clients[:10], clients[10:15], clients[15:20]
    for client in streams:
        client.ask(chat("Tell me.", model=model, stream=True, **FOREVER))
    for client in unread:
        client.ask(chat("Tell me.", model=model, stream=True, n=4, **FOREVER))
    for client in whole:
        client.ask(chat("Tell me.", model=model, **FOREVER))
    for client in half:
        client.ask(chat("Tell me.", model=model), upto=0.5)
    for client in clients[20:25]:
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost:")
    for client in clients[25:]:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        client.read_until(b"ok")
    for client in streams:
        client.read_until(b"data: ")
    worker = server.worker_pid
    begun_s = time.monotonic()
    with ThreadPoolExecutor(len(clients)) as readers:
        reading = [readers.submit(client.read_to_end) for client in clients]
        for number in signals:
            server.process.send_signal(number)
            time.sleep(0.2)
        figures.status = server.process.wait(120)
        figures.took_s = time.monotonic() - begun_s
        for each in reading:
            each.result(30)
    for client in streams:
        figures.check(client, stream=True)
    for client in (*whole, *half):
        figures.check(client, stream=False)
    for client in unread:
        client.socket.close()
    time.sleep(0.2)
    if Path(f"/proc/{worker}").exists():
        figures.wrong.append("the worker outlives the server")
    return figures


def stop_under_floods(server: ServerProcess, count: int) -> Figures:
    """SIGTERM beside 80 choices of 8,000 tokens that nobody reads, and one stream that is read."""
    figures = Figures()
    unread = [RawClient(server.url, receive_buffer=4096) for _ in range(5)]
    for client in unread:
        client.ask(chat(stream=True, n=16, max_tokens=8000))
    reader = RawClient(server.url)
    reader.ask(chat(stream=True, max_tokens=8000))
    reader.read_until(b"word0")
    time.sleep(5)
    begun_s = time.monotonic()
    for _ in range(count):
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    reader.read_to_end()
    figures.status = server.process.wait(120)
    figures.took_s = time.monotonic() - begun_s
    figures.check(reader, stream=True)
    for client in unread:
        client.socket.close()
    return figures


def hurt_worker(server: ServerProcess, model: str, number: int) -> Figures:
    """A signal to the worker under twenty requests: how they end, and when it is ready again."""
    worker = server.worker_pid
    clients = [RawClient(server.url) for _ in range(20)]
    for n, client in enumerate(clients):
        client.ask(chat("Tell me.", model=model, stream=n % 2 == 0, **FOREVER))
    clients[0].read_until(b"data: ")
    attack = f"{signal.Signals(number).name} to the worker under 20 requests"
    with (
        watched(server, attack, model=model, lasts=False) as figures,
        ThreadPoolExecutor(len(clients)) as readers,
    ):
        os.kill(worker, number)
        reading = [readers.submit(client.read_to_end) for client in clients]
        for each in reading:
            each.result(120)
        deadline_s = time.monotonic() + 120
        while httpx.get(f"{server.url}/readyz").status_code != 200:
            assert time.monotonic() < deadline_s, "no worker came"
            time.sleep(0.05)
        for n, client in enumerate(clients):
            figures.check(client, stream=n % 2 == 0)
    return figures


def poison(server: ServerProcess, word: str, times: int) -> list[int]:
    """The same prompt again and again, each time when there is a worker: the statuses."""
    statuses = []
    for _ in range(times):
        answer = httpx.post(server.url + CHAT, json=chat(word, "poison"), timeout=60)
        statuses.append(answer.status_code)
        while httpx.get(f"{server.url}/readyz").status_code != 200:
            time.sleep(0.05)
    return statuses


STOPS = ((signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM,) * 4)
