"""The open requests of one client: who waits for which events. Every one of them ends exactly once.

Knows nothing about sockets or processes; all of it happens on one event loop, without awaiting.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from lookm.types import TokenEvent
from server.worker.worker_errors import StoppingError

Item = TokenEvent | Exception


class Streams:
    """Each is open until its terminal event or error, or aborted until that event arrives."""

    def __init__(self) -> None:
        self._open: dict[str, asyncio.Queue[Item]] = {}
        self._held: dict[str, bytes] = {}  # digests; of aborted ones, too
        self._none_open = asyncio.Event()
        self._none_open.set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def held(self) -> set[bytes]:
        """Digests of what the worker works on, aborted requests included."""
        return set(self._held.values())

    def digest_of(self, request_id: str) -> bytes | None:
        """What `open` was given, while the worker owes an event of it."""
        return self._held.get(request_id)

    @property
    def ids(self) -> tuple[str, ...]:
        """The open requests."""
        return tuple(self._open)

    def open(self, request_id: str, digest: bytes) -> asyncio.Queue[Item]:
        """Begin a request. Its id must be new: nothing else tells answers apart."""
        if request_id in self._held:
            raise ValueError("a request with this id is already running")
        queue: asyncio.Queue[Item] = asyncio.Queue()
        self._open[request_id] = queue
        self._held[request_id] = digest
        self._none_open.clear()
        return queue

    def abort(self, request_id: str) -> bool:
        """Nobody reads it any more. True where the engine works on it and needs `wire.Abort`."""
        if request_id not in self._open:
            return False
        self._leave(request_id)
        return True

    def deliver(self, events: Iterable[TokenEvent]) -> None:
        """Hand events to whoever waits for them; drop those of aborted requests."""
        for event in events:
            queue = self._open.get(event.request_id)
            if queue is not None:
                queue.put_nowait(event)
            if event.finish is not None:
                self._close(event.request_id)

    def fail(self, request_id: str, error: Exception) -> None:
        """End one request with an error."""
        queue = self._open.get(request_id)
        if queue is not None:
            queue.put_nowait(error)
        self._close(request_id)

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """End every request with an error of its own (an exception holds one traceback)."""
        for request_id in self.ids:
            self.fail(request_id, error())
        self._held.clear()

    def stop_all(self) -> None:
        """End every request with `StoppingError`; what nobody has taken yet is dropped."""
        for queue in self._open.values():
            clear(queue)
        self.fail_all(StoppingError)

    async def wait_none_open(self) -> None:
        """Return when no request is open."""
        await self._none_open.wait()

    def _close(self, request_id: str) -> None:
        self._held.pop(request_id, None)
        self._leave(request_id)

    def _leave(self, request_id: str) -> None:
        """Nobody reads it any more."""
        self._open.pop(request_id, None)
        if not self._open:
            self._none_open.set()


def clear(queue: "asyncio.Queue[Any]") -> None:
    """Drop what waits."""
    while not queue.empty():
        queue.get_nowait()
