"""A request's events, collected into one answer or written to the client as they come.

A client that leaves ends the work for it, streaming or not: closing the events aborts the request
and frees its pages. Knows ASGI and that a stream is of server-sent events; what their bytes are is
the writer's.
"""

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lookm.types import TokenEvent
from server.api_errors import to_api_error
from server.openai.abort import abort_on_disconnect
from server.openai.response.choices import ChoiceEvent, ChoiceEvents
from server.openai.response.writers import Collected, Writer


async def collect(events: ChoiceEvents, num_choices: int) -> list[Collected]:
    """The whole answer of each choice."""
    events_of: list[list[TokenEvent]] = [[] for _ in range(num_choices)]
    async with contextlib.aclosing(events):
        async for item in events:
            events_of[item.choice].append(item.event)
    return [Collected.of(each) for each in events_of]


async def written(
    first: Sequence[ChoiceEvent], rest: ChoiceEvents, writer: Writer, num_choices: int
) -> AsyncGenerator[bytes]:
    """The stream of one request. A failure from here on is written, too, and a clean end."""
    yield writer.begin(num_choices)
    try:
        for item in first:
            yield writer.add(item)
        async for item in rest:
            yield writer.add(item)
        yield writer.end()
    except Exception as error:  # noqa: BLE001 - the HTTP edge: the status is already sent
        yield writer.fail(to_api_error(error))


class EventStream(Response):
    """Sends chunks as they come, and closes `events` when they end or the client leaves."""

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        events: AsyncGenerator[object],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
        )
        del self.headers["content-length"]
        self._chunks = chunks
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        # Not left to `chunks`: closing a generator that was never begun closes nothing it holds.
        async with contextlib.aclosing(self._events), contextlib.aclosing(self._chunks):
            with contextlib.suppress(ClientDisconnect):
                await abort_on_disconnect(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        async for chunk in self._chunks:
            if chunk:  # an event whose text is held back may write nothing
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
