"""Threads for what must not run on the event loop: preprocessing of images, templates, tokens.

Whose work is next is `server.turns`' to say: no request waits behind all that another has to do.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from server.turns import Turns

T = TypeVar("T")


class Pools:
    """One pool for images and one for text: a short question does not wait behind thirty photos."""

    def __init__(self, num_image_threads: int) -> None:
        self._images = _Pool(num_image_threads, "lookm-images")
        self._text = _Pool(1, "lookm-text")

    async def image(self, work: Callable[[], T]) -> T:
        """The result of `work` on an image."""
        return await self._images.run(work)

    async def text(self, work: Callable[[], T]) -> T:
        """The result of `work` on text."""
        return await self._text.run(work)

    def shutdown(self) -> None:
        """Let the threads end; nothing waits for what is under way."""
        for pool in (self._images, self._text):
            pool.threads.shutdown(wait=False, cancel_futures=True)


class _Pool:
    """Threads, as many turns, and nothing waiting between the two."""

    def __init__(self, num_threads: int, name: str) -> None:
        self.threads = ThreadPoolExecutor(num_threads, name)
        self._turns = Turns(num_threads)

    async def run(self, work: Callable[[], T]) -> T:
        async with self._turns.turn():
            return await asyncio.get_running_loop().run_in_executor(self.threads, work)
