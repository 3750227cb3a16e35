"""From the engine's events to bytes: collected into one answer, or as server-sent events.

A client that leaves ends the work for it, streaming or not: closing the engine's generator aborts
the request and frees its pages. Knows ASGI and SSE; nothing about what is in an answer.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lookm.types import TokenEvent
from server.api_errors import ApiError, to_api_error
from server.openai.response.choices import Choices, Events, Told
from server.openai.response.writers import Collected, Writer
from server.request_metrics import Meter

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
DEADLINE = "The request took longer than this server allows (--request-timeout-s)."


async def metered(events: Events, meter: Meter, deadline_s: float | None) -> Events:
    """`events`, accounted for. Raises `ApiError` for a failed event, or at the deadline.

    `deadline_s` is a time of the event loop's clock.
    """
    try:
        async with contextlib.aclosing(events):
            async for event in _until(events, deadline_s):
                meter.event(event)
                _raise_failure(event)
                yield event
    except Exception:
        meter.failed()
        raise
    finally:
        meter.close()


async def collect(events: Choices, num_choices: int) -> list[Collected]:
    """The whole answer of each choice."""
    seen: list[list[TokenEvent]] = [[] for _ in range(num_choices)]
    async with contextlib.aclosing(events):
        async for told in events:
            seen[told.choice].append(told.event)
    return [_collected(each) for each in seen]


async def server_sent(
    first: Sequence[Told], rest: Choices, writer: Writer, num_choices: int
) -> AsyncGenerator[bytes]:
    """The stream of one request. A failure from here on is an `error` event and a clean end."""
    ends: list[TokenEvent] = []
    async with contextlib.aclosing(rest):
        for choice in range(num_choices):
            if (head := writer.head(choice)) is not None:
                yield _data(head.to_json())
        try:
            async for told in _chain(first, rest):
                event = told.event
                for chunk in writer.told(told.choice, event):
                    yield _data(chunk.to_json())
                if event.finish is not None:
                    ends.append(event)
                    yield _data(writer.end(told.choice, event).to_json())
            if (usage := writer.usage(ends)) is not None:
                yield _data(usage.to_json())
        except Exception as error:  # noqa: BLE001 - the HTTP edge: the status is already sent
            failure = to_api_error(error)
            yield b"event: error\n" + _data(json.dumps(failure.envelope()))
        yield DONE


class EventStream(Response):
    """Sends chunks as they come, and closes their source when they end or the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
        )
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        async with contextlib.aclosing(self._chunks):
            with contextlib.suppress(ClientDisconnect):
                await unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
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


async def within(deadline_s: float | None, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises `ApiError` at the deadline, a time of the event loop's clock."""
    try:
        async with asyncio.timeout_at(deadline_s):
            return await work
    except TimeoutError:
        raise ApiError("deadline_exceeded", DEADLINE) from None


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until(events: Events, deadline_s: float | None) -> AsyncIterator[TokenEvent]:
    while True:
        try:
            event = await within(deadline_s, anext(events))
        except StopAsyncIteration:
            return
        yield event


async def _chain(first: Sequence[Told], rest: Choices) -> AsyncIterator[Told]:
    for told in first:
        yield told
    async for told in rest:
        yield told


def _collected(seen: Sequence[TokenEvent]) -> Collected:
    text = "".join(event.text for event in seen)
    told = tuple(event.logprobs for event in seen if event.logprobs is not None)
    return Collected(text, told, seen[-1])


def _raise_failure(event: TokenEvent) -> None:
    if event.finish == "error":
        raise ApiError("engine_failed", event.error or "The engine could not answer this request.")
    if event.finish == "abort":
        raise ApiError("engine_unavailable", "The server is stopping. Send the request again.")


def _data(line: str) -> bytes:
    return f"data: {line}\n\n".encode()
