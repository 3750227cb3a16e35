"""Clients that a library would not let one write: they stop half-way, do not read, read slowly."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from tests.server.requests import CHAT


class RawClient:
    """One connection to a server, used by hand."""

    def __init__(self, url: str, *, receive_buffer: int | None = None) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self.received = b""
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(30)
        self.socket.connect((address.hostname, address.port))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, body: dict[str, Any], *, upto: float = 1.0) -> None:
        """Send a chat, the connection's last request, or its first part: `upto` of its body."""
        data = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        head += "Connection: close\r\n"
        self.send(f"{head}Content-Length: {len(data)}\r\n\r\n".encode())
        self.send(data[: round(len(data) * upto)])

    def read_until(self, mark: bytes) -> None:
        """Read on until `mark` has arrived."""
        while mark not in self.received:
            data = self.socket.recv(65536)
            assert data, f"closed before {mark!r}: {self.received[-300:]!r}"
            self.received += data

    def read_to_end_of_stream(self) -> None:
        """A stream to its end; then we leave."""
        with self.socket:
            self.read_until(b"data: [DONE]\n\n")

    def read_to_end(self) -> bytes:
        """All there is until the server closes the connection, or cuts it; then we do."""
        with self.socket, contextlib.suppress(ConnectionResetError):
            while data := self.socket.recv(65536):
                self.received += data
        return self.received

    @property
    def status(self) -> int:
        """The status of the answer, 0 where there is none."""
        return int(self.received.split(b" ", 2)[1]) if self.received else 0

    @property
    def ended_well(self) -> bool:
        """A stream's end: `[DONE]`, and the last chunk of HTTP."""
        return self.received.endswith(b"0\r\n\r\n") and b"data: [DONE]\n\n" in self.received

    @property
    def failed(self) -> bool:
        """Whether an error in OpenAI's envelope was sent."""
        return (
            b'{"error": {"message": ' in self.received or b'{"error":{"message":' in self.received
        )


@contextlib.contextmanager
def timed(at_most_s: float) -> Iterator[None]:
    """The body takes no longer."""
    begun_s = time.monotonic()
    yield
    took_s = time.monotonic() - begun_s
    assert took_s < at_most_s, f"{took_s:.1f} s, promised are {at_most_s:.1f} s"
