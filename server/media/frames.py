"""Messages between the API and a decoding process: JSON facts, then bytes. No pickle.

8 bytes, big-endian: length of the facts, length of the data; the facts; the data
"""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

LENGTHS = struct.Struct(">IQ")


def send(connection: socket.socket, facts: Mapping[str, Any], data: bytes | bytearray) -> None:
    """Write one message. Raises `OSError`."""
    text = json.dumps(facts).encode()
    connection.sendall(LENGTHS.pack(len(text), len(data)) + text)
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytearray] | None:
    """The next message; None where there is no whole one any more. Raises `OSError`."""
    head = _read(connection, LENGTHS.size)
    if head is None:
        return None
    text_bytes, data_bytes = LENGTHS.unpack(head)
    text, data = _read(connection, text_bytes), _read(connection, data_bytes)
    return None if text is None or data is None else (json.loads(text), data)


def _read(connection: socket.socket, num_bytes: int) -> bytearray | None:
    data = bytearray(num_bytes)
    left = memoryview(data)
    while left:
        if not (received := connection.recv_into(left)):
            return None
        left = left[received:]
    return data
