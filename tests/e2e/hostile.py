"""A web server that means no good: one behaviour for each path."""

import io
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

from PIL import Image

from tests.server.bad_requests import huge_png
from tests.server.requests import png

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
STEP_S = 0.05


def encoded(mode: str, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, form, **options)
    return buffer.getvalue()


def animated() -> bytes:
    frames = [Image.new("L", (40, 30), shade) for shade in (0, 255)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


GOOD = {
    "cmyk.jpg": encoded("CMYK", "JPEG"),
    "palette.gif": encoded("P", "GIF"),
    "picture.webp": encoded("RGB", "WEBP"),
    "sixteen.png": encoded("I;16", "PNG"),
    "picture.bmp": encoded("RGB", "BMP"),
}
BAD = {
    "sixteen.tiff": (encoded("I;16", "TIFF"), "unsupported_image"),
    "drawing.svg": (SVG, "unsupported_image"),
    "bomb.png": (huge_png(), "image_too_large"),
    "animated.gif": (animated(), "unsupported_image"),
    "truncated.png": (png(size=(64, 64))[:-40], "invalid_image"),
    "empty": (b"", "invalid_image"),
    "page.html": (b"<!doctype html><p>not here", "unsupported_image"),
}
REDIRECTS = {
    "to-metadata": "http://169.254.169.254/latest/meta-data/",
    "to-file": "file:///etc/passwd",
    "to-itself": "/to-itself",
    "to-gopher": "gopher://127.0.0.1/",
    "to-data": "data:image/png;base64,AAAA",
}


class HostileServer:
    """Serves on 127.0.0.1 until the `with` block ends."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                path = connection.recv(65536).split(b" ")[1].decode().removeprefix("/")
                behave = BEHAVIOURS.get(path)
                if behave is not None:
                    behave(connection)
                elif path in REDIRECTS:
                    _head(connection, 302, f"location: {REDIRECTS[path]}\r\ncontent-length: 0\r\n")
                else:
                    data = GOOD[path] if path in GOOD else BAD[path][0]
                    _head(connection, 200, f"content-length: {len(data)}\r\n")
                    connection.sendall(data)
            except OSError:
                pass  # the client had enough


def _head(connection: socket.socket, status: int, headers: str) -> None:
    connection.sendall(f"HTTP/1.1 {status} X\r\nconnection: close\r\n{headers}\r\n".encode())


def _endless(connection: socket.socket) -> None:
    """Ten gigabytes and more, with no word about its length."""
    _head(connection, 200, "")
    while True:
        connection.sendall(b"\x89PNG\r\n\x1a\n" + bytes(2**20))


def _claims_ten_gigabytes(connection: socket.socket) -> None:
    _head(connection, 200, f"content-length: {10 * 2**30}\r\n")
    time.sleep(5)


def _drips_body(connection: socket.socket) -> None:
    _head(connection, 200, "content-length: 100000\r\n")
    while True:
        connection.sendall(b"a")
        time.sleep(STEP_S)


def _drips_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 X\r\nx-slow: ")
    while True:
        connection.sendall(b"a")
        time.sleep(STEP_S)


def _silent(connection: socket.socket) -> None:
    connection.recv(1)


def _inflates(connection: socket.socket) -> None:
    _head(connection, 200, "content-encoding: gzip\r\ncontent-length: 4\r\n")
    connection.sendall(b"\x1f\x8b\x08\x00")


BEHAVIOURS: dict[str, Callable[[socket.socket], None]] = {
    "endless": _endless,
    "ten-gigabytes": _claims_ten_gigabytes,
    "drips-body": _drips_body,
    "drips-head": _drips_head,
    "silent": _silent,
    "inflates": _inflates,
}
