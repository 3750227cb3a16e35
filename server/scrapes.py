"""`/metrics` for whoever asks: written at most ten times a second, whoever asks how often.

Writing all series takes 15 ms of the event loop, and asking for them nothing. Who asks while others
wait gets the same bytes, which are written after all of them have asked: nobody reads old figures.
"""

import asyncio
from collections.abc import Callable

EVERY_S = 0.1


class Scrapes:
    """The exposition that `expose` writes, for all who wait for it. One event loop."""

    def __init__(self, expose: Callable[[], bytes]) -> None:
        self._expose = expose
        self._due_s = 0.0
        self._next: asyncio.Task[bytes] | None = None

    async def read(self) -> bytes:
        """The series as they are now or a moment later."""
        if self._next is None:
            self._next = asyncio.create_task(self._write())
        return await asyncio.shield(self._next)  # one who leaves does not take the others along

    async def _write(self) -> bytes:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._due_s - loop.time())
        self._due_s, self._next = loop.time() + EVERY_S, None
        return self._expose()
