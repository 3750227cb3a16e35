"""Threads for what must not run on the event loop: preprocessing of images, templates, tokens."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Pools:
    """One pool for images and one for text: a short question does not wait behind thirty photos."""

    def __init__(self, num_image_threads: int) -> None:
        self._images = ThreadPoolExecutor(num_image_threads, "lookm-images")
        self._text = ThreadPoolExecutor(1, "lookm-text")

    async def image(self, work: Callable[[], T]) -> T:
        """The result of `work` on an image."""
        return await _in_pool(self._images, work)

    async def text(self, work: Callable[[], T]) -> T:
        """The result of `work` on text."""
        return await _in_pool(self._text, work)

    def shutdown(self) -> None:
        """Let the threads end; nothing waits for what is under way."""
        for pool in (self._images, self._text):
            pool.shutdown(wait=False, cancel_futures=True)


async def _in_pool(pool: Executor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
