"""Attacks with images, bodies and connections, while another client measures. Loopback only.

Each holds: no other client waits for long, no status but those promised, and the memory of the API
process is bounded and comes back.
"""

import contextlib
import gzip
import http.server
import io
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.faults.watch import MAX_CHAT_S, Figures, watched
from tests.server.process import ServerProcess, serving_process
from tests.server.requests import CHAT, chat, data_url, image, png

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

PROMISED = {200, 400, 413, 415, 429, 503}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving_process("--model", "llava-demo", "--media-allow-private") as server:
        for _ in range(3):
            ask(server, chat(image(), model="llava-demo", max_tokens=4))
        yield server


def ask(server: ServerProcess, body: Any, timeout_s: float = 300) -> httpx.Response:
    response = httpx.post(server.url + CHAT, json=body, timeout=timeout_s)
    assert response.status_code in PROMISED, response.text
    return response


def asks(*parts: Any) -> dict[str, Any]:
    return chat(*parts, model="llava-demo", max_tokens=4)


def webp(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8191, 8191), (shade, 2, 3)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def test_twenty_four_pictures_of_67_megapixels_in_one_request(server: ServerProcess) -> None:
    pictures = [webp(shade) for shade in range(24)]
    with watched(server, "24 WebPs of 67 megapixels in one request"):
        body = asks(*[image(data_url(each)) for each in pictures])
        assert ask(server, body).status_code == 200


def test_thirty_requests_with_such_a_picture(server: ServerProcess) -> None:
    body = asks(image(data_url(webp(7))))
    with watched(server, "30 requests with such a picture"), ThreadPoolExecutor(30) as pool:
        statuses = [r.status_code for r in pool.map(lambda _: ask(server, body), range(30))]
    assert set(statuses) == {200}


def test_twelve_large_bodies_at_once(server: ServerProcess, tmp_path: Path) -> None:
    parts = [image(data_url(png(size=(n + 8, 8)) + random.randbytes(16 * 10**6))) for n in range(6)]
    file = tmp_path / "body"
    file.write_text(json.dumps(asks(*parts)))
    command = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", "-H", "Expect:",
               "-H", "content-type: application/json", "--data-binary", f"@{file}",
               server.url + CHAT]  # fmt: skip
    with watched(server, "12 bodies of 128 MB at once"):
        uploads = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(12)]
        statuses = [upload.communicate()[0].decode() for upload in uploads]
    assert set(statuses) <= {"200", "429"}
    assert statuses.count("200") >= 7


def test_the_largest_body_there_may_be(server: ServerProcess) -> None:
    parts = [image(data_url(bytes([n]) * 19 * 10**6)) for n in range(6)]
    with watched(server, "a body of 152 MB"):
        assert ask(server, asks(*parts)).status_code == 400


def test_a_gzip_bomb(server: ServerProcess) -> None:
    bomb = gzip.compress(bytes(10**9), 9)
    with watched(server, "a gzip bomb of 1 GB"):
        headers = {"content-encoding": "gzip", "content-type": "application/json"}
        answer = httpx.post(server.url + CHAT, content=bomb, headers=headers, timeout=60)
        assert answer.status_code == 413


class Dripping(http.server.BaseHTTPRequestHandler):
    """`/good` is a picture; all else comes a byte at a time."""

    def do_GET(self) -> None:
        good = self.path.startswith("/good")
        self.send_response(200)
        self.send_header("content-length", str(len(png()) if good else 10**6))
        self.end_headers()
        with contextlib.suppress(OSError):
            if good:
                self.wfile.write(png())
            while not good:
                self.wfile.write(b"x")
                time.sleep(0.2)

    def log_message(self, *_: object) -> None:
        pass


def test_dripping_image_hosts_hold_up_nobody(server: ServerProcess) -> None:
    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    host.daemon_threads = True
    threading.Thread(target=host.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{host.server_port}"
    with (
        watched(server, "6 requests of 64 URLs each on a host that drips"),
        ThreadPoolExecutor(6) as pool,
    ):
        attacks = [
            pool.submit(ask, server, asks(*[image(f"{url}/{n}-{i}") for i in range(64)]))
            for n in range(6)
        ]
        time.sleep(2)
        begun_s = time.monotonic()
        assert ask(server, asks(image(f"{url}/good"))).status_code == 200
        assert time.monotonic() - begun_s < MAX_CHAT_S / 2
        assert {each.result().status_code for each in attacks} == {400}
    host.shutdown()
    host.server_close()


def test_more_idle_connections_than_descriptors(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = f"ulimit -n 1024; exec {sys.executable} -m server serve --port 0 --model fake"
    with log.open("w") as written:
        process = subprocess.Popen(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=written, text=True
        )
    assert process.stdout is not None
    line = next(line for line in process.stdout if "is ready: " in line)
    url = httpx.URL(line.split("is ready: ")[1].strip())
    with contextlib.ExitStack() as opened:
        opened.callback(process.communicate)
        opened.callback(process.terminate)
        for _ in range(1150):
            connection = socket.create_connection((url.host, url.port or 80), timeout=10)
            opened.enter_context(connection)
        figures = Figures(took_s=10.0, worst_healthz_s=0.0)
        until_s = time.monotonic() + figures.took_s
        while time.monotonic() < until_s:
            for path in ("/healthz", "/metrics"):
                begun_s = time.monotonic()
                figures.answered(httpx.get(url.join(path), timeout=60))
                took_s = time.monotonic() - begun_s
                figures.worst_healthz_s = max(figures.worst_healthz_s or 0, took_s)
    figures.record("1,150 idle connections, 1,024 descriptors")
    figures.hold()
    assert set(figures.statuses) == {200}
    assert log.stat().st_size < 20_000


def test_a_jpeg_padded_with_a_megabyte(server: ServerProcess) -> None:
    """A search whose time grew with the square of the padding held the interpreter for hours."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    padded = buffer.getvalue()[:-2] + b"\xff" * 10**6 + b"\0"
    with watched(server, "a JPEG with a megabyte of padding in its scan"):
        assert ask(server, asks(image(data_url(padded)))).status_code in (200, 400)
