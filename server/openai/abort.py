"""What ends a request early: its client leaves, or its deadline comes.

Ending it means cancelling the work for it. Whatever of the work is open is closed on the way: the
generators of `response.choices` and `response.stream`, and in the end `EngineClient.submit`, which
tells the worker (ARCHITECTURE.md draws the whole way). Knows ASGI's `receive` and the event loop's
clock; nothing about what the work is.
"""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.api_errors import ApiError

T = TypeVar("T")

DEADLINE = "The request took longer than this server allows (--request-timeout-s)."


async def abort_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Cancelled, with `ClientDisconnect`, if the client leaves first."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_client_left(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def abort_at(deadline_s: float | None, work: Awaitable[T]) -> T:
    """The result of `work`. Raises `ApiError` at the deadline, a time of the event loop's clock."""
    try:
        async with asyncio.timeout_at(deadline_s):
            return await work
    except TimeoutError:
        raise ApiError("deadline_exceeded", DEADLINE) from None


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
