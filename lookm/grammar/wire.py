"""What the engine, the grammar process and its children say to each other, as bytes.

Between two processes of one machine and one version: fixed structs, no negotiation. Knows nothing
about who says it when.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum


class Order(IntEnum):
    """Engine to grammar process, with the number of a grammar."""

    START = 0  # with two files: the child's end of its socket, and the structure as JSON
    DROP = 1  # nobody needs it any more: end its process, whatever that does


class Ask(IntEnum):
    """Engine to a grammar's process, about one answer."""

    OPEN = 0
    ADVANCE = 1  # by a token
    CLOSE = 2


class Tell(IntEnum):
    """A grammar's process to the engine: what came of an `OPEN` or `ADVANCE`; or of compiling."""

    MASK = 0  # followed by which tokens may come next (`Answer.allowed`)
    COMPLETE = 1  # the same, but nothing needs to come
    FAILED = 2  # the rest: followed by the reason
    REFUSED = 3
    COSTLY = 4  # its process exceeded a limit
    BUSY = 5


ORDER = struct.Struct("<BI")
ASK = struct.Struct("<BIi")  # what, which answer, token
TELL = struct.Struct("<BIII")  # what, which answer, microseconds it took, bytes that follow


def tell(what: Tell, answer: int = 0, took_us: int = 0, payload: bytes = b"") -> bytes:
    """A whole message of a child."""
    return TELL.pack(what, answer, min(took_us, 2**32 - 1), len(payload)) + payload


def take_asks(buffer: bytearray) -> Iterator[tuple[Ask, int, int]]:
    """The whole messages at the beginning of a buffer, taken out of it."""
    while len(buffer) >= ASK.size:
        what, answer, token = ASK.unpack_from(buffer)
        del buffer[: ASK.size]
        yield Ask(what), answer, token


def take_tells(buffer: bytearray) -> Iterator[tuple[Tell, int, int, bytes]]:
    """The whole messages at the beginning of a buffer, taken out of it."""
    while len(buffer) >= TELL.size:
        what, answer, took_us, size = TELL.unpack_from(buffer)
        end = TELL.size + size
        if len(buffer) < end:
            return
        payload = bytes(buffer[TELL.size : end])
        del buffer[:end]
        yield Tell(what), answer, took_us, payload
