"""A request's events, collected into one answer or written to the client as they come.

A client that leaves ends the work for it, streaming or not: closing the events aborts the request
and frees its pages. Knows ASGI and that a stream is of server-sent events; what their bytes are is
the writer's.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api_errors import to_api_error
from server.openai.abort import abort_on_disconnect
from server.openai.response.choices import ChoiceEvent, ChoiceEvents
from server.openai.response.writers import Collected, Collecting, Writer

COMMENT = b": keep-alive\n\n"  # to a reader of server-sent events it is nothing


async def collect(events: ChoiceEvents, num_choices: int) -> list[Collected]:
    """The whole answer of each choice."""
    choices = [Collecting() for _ in range(num_choices)]
    async with contextlib.aclosing(events):
        async for item in events:
            choices[item.choice].add(item)
    return [each.collected() for each in choices]


async def written(
    first: Awaitable[Sequence[ChoiceEvent]], rest: ChoiceEvents, writer: Writer, num_choices: int
) -> AsyncGenerator[bytes]:
    """The stream of one request. A failure from here on is written, too, and a clean end."""
    try:
        begun = await first
        yield writer.begin(num_choices)
        for item in begun:
            yield writer.add(item)
        async for item in rest:
            yield writer.add(item)
        yield writer.end()
    except Exception as error:  # noqa: BLE001 - the HTTP edge: the status is already sent
        yield writer.fail(to_api_error(error))


class EventStream(Response):
    """Sends chunks as they come, and closes `events` when they end or the client leaves.

    `first` is under way with them: it ends before they are closed. Where nothing is sent for
    `keep_alive_s` a comment is, so that nobody between here and the client takes it for dead.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        first: asyncio.Task[Any],
        events: AsyncGenerator[object],
        headers: Mapping[str, str],
        keep_alive_s: float = 0.0,
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
        )
        del self.headers["content-length"]
        self._chunks = chunks
        self._first = first
        self._events = events
        self._keep_alive_s = keep_alive_s
        self._sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        # Not left to `chunks`: closing a generator that was never begun closes nothing it holds.
        async with contextlib.aclosing(self._events), contextlib.aclosing(self._chunks):
            try:
                with contextlib.suppress(ClientDisconnect):
                    await abort_on_disconnect(receive, self._send_all(send))
            finally:
                await ended(self._first)

    async def _send_all(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        loop = asyncio.get_running_loop()
        self._sent_s = loop.time()
        comments = asyncio.create_task(self._keep_alive(send))
        try:
            async for chunk in self._chunks:
                if chunk:  # an event whose text is held back may write nothing
                    self._sent_s = loop.time()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            comments.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        """One timer a stream, not one a chunk."""
        loop = asyncio.get_running_loop()
        while self._keep_alive_s:
            left_s = self._sent_s + self._keep_alive_s - loop.time()
            if left_s <= 0:
                self._sent_s = loop.time()
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            else:
                await asyncio.sleep(left_s)


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end, whatever that is."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
