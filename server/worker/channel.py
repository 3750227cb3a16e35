"""The two ends of the pipe between the API process and one worker.

PAIR sockets over `ipc://`: exactly two ends, messages in order, no routing and no reconnecting.
Every worker gets a fresh channel, so nothing a dead worker left behind can reach the next one
(DEALER would reconnect and replay). The socket lies in a directory only this user can enter, and is
unlinked once the worker is connected, so that a killed server leaves nothing on disk.

Knows frames and messages; knows nothing about requests or who is alive.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path

import zmq
import zmq.asyncio

from server.worker import wire

MAX_QUEUED_MESSAGES = 10_000
SOCKET_NAME = "worker"


class ApiChannel:
    """The API's end: binds, and never blocks the event loop."""

    def __init__(self) -> None:
        self._folder = _private_folder()
        self.address = f"ipc://{self._folder / SOCKET_NAME}"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        _configure(self._socket)
        self._socket.bind(self.address)

    async def send(self, frames: list[wire.Frame]) -> None:
        """Hand an encoded message to the socket; large frames are not copied."""
        await self._socket.send_multipart(frames, copy=False)

    async def receive(self) -> wire.Down:
        """The worker's next message. Raises `WireError`.

        Others have their turn first: awaiting what is there already does not give it to them.
        """
        await asyncio.sleep(0)
        return wire.decode_down(await self._socket.recv_multipart())

    async def poll(self, timeout_s: float) -> bool:
        """Whether a message is there within `timeout_s`."""
        return bool(await self._socket.poll(round(timeout_s * 1000)))

    def unlink(self) -> None:
        """Remove the socket from the file system; an open connection stays. Idempotent."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Drop the connection and everything unsent. Idempotent."""
        self._context.destroy(linger=0)
        self.unlink()


class WorkerChannel:
    """The worker's end: connects, and may block."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        _configure(self._socket)
        self._socket.connect(address)

    def receive(self) -> wire.Up:
        """The next message, waiting for it. Raises `WireError`."""
        frames = self._socket.recv_multipart(copy=False)
        return wire.decode_up([frame.buffer for frame in frames])

    def waiting(self) -> bool:
        """Whether `receive` would return at once."""
        return bool(self._socket.poll(0))

    def send(self, message: wire.Down) -> None:
        """Send; waits only where the API has not read for `MAX_QUEUED_MESSAGES` messages."""
        self._socket.send_multipart(wire.encode(message))

    def close(self, linger_s: float = 1.0) -> None:
        """Close, after at most `linger_s` for what is unsent to leave."""
        self._socket.close(linger=round(linger_s * 1000))
        self._context.term()


def _private_folder() -> Path:
    """A new directory of mode 0700, in /tmp where $TMPDIR is too long for a socket's address."""
    folder = Path(tempfile.mkdtemp(prefix="lookm-"))
    if len(str(folder / SOCKET_NAME)) <= zmq.IPC_PATH_MAX_LEN:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="lookm-", dir="/tmp"))


def _configure(socket: zmq.Socket[bytes] | zmq.asyncio.Socket) -> None:
    socket.set_hwm(MAX_QUEUED_MESSAGES)
    socket.linger = 0
