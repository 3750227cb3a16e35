"""What the body of a request may cost before a route has it: time, bytes, bytes of all together.

Pure ASGI, outermost first: `OneLength`, `BodyClock`, `Inflate`, `BodyLimit`. What is refused is
answered without being read on: uvicorn drops what still comes on that connection, and closes it
after a while. Knows nothing about what is in a body.
"""

import asyncio
import zlib
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api_errors import ApiError
from server.middleware import error_response

MIN_BODY_BYTES_PER_S = 64 * 2**10
INFLATED_BYTES = 256 * 2**10  # at once


class OneLength:
    """Refuses bodies that say in two ways where they end, and chunks in HTTP/1.0, which has none.

    A proxy before us may read the other way, and take for an answer to one client's request what
    answers another's (RFC 9112, 6.1: request smuggling). The connection is closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        chunked, old = "transfer-encoding" in headers, scope["http_version"] == "1.0"
        if not chunked or not (old or "content-length" in headers):
            return await self._app(scope, receive, send)
        message = "The body's length is given in two ways. Send Content-Length or chunks, not both."
        if old:
            message = "HTTP/1.0 has no chunks. Send Content-Length."
        error = ApiError("invalid_value", message)
        error.headers["connection"] = "close"
        return await error_response(error, scope)(scope, receive, send)


class BodyClock:
    """Refuses bodies that drip: one may take `timeout_s`, and what its bytes take at 64 KiB/s.

    (The time for headers is the connection's affair: `server.connections`.)
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        arriving = True

        async def timed() -> Message:
            nonlocal deadline_s, arriving
            if not arriving:  # waits for the client to leave
                return await receive()
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            deadline_s += len(message.get("body", b"")) / MIN_BODY_BYTES_PER_S
            arriving = message.get("more_body", False)
            return message

        return await self._app(scope, timed, send)

    def _too_slow(self) -> ApiError:
        message = f"The body did not arrive within {self._timeout_s:g} s. Send it faster."
        error = ApiError("request_timeout", message)
        error.headers["connection"] = "close"
        return error


class Inflate:
    """Hands on gzip bodies as they were before; others than gzip are refused by name.

    A piece at a time, so that `BodyLimit` counts what comes out before there is more of it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        encoding = Headers(scope=scope).get("content-encoding", "").strip().lower()
        if encoding in ("", "identity"):
            return await self._app(scope, receive, send)
        if encoding not in ("gzip", "x-gzip"):
            message = "The header 'Content-Encoding' may be gzip, or be left out."
            error = ApiError("unsupported_media_type", message)
            return await error_response(error, scope)(scope, receive, send)
        return await self._app(scope, _Inflated(receive).receive, send)


class _Inflated:
    """The messages of a gzip body (one member or more), inflated."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._inflater = zlib.decompressobj(wbits=31)
        self._packed = b""
        self._more = True

    async def receive(self) -> Message:
        """The next piece of at most `INFLATED_BYTES`. Raises `ApiError`."""
        while True:
            if self._packed:
                await asyncio.sleep(0)  # a small body may unpack for long
            elif self._more:
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._packed, self._more = message.get("body", b""), message.get("more_body", False)
            else:
                return await self._receive()
            body = self._inflate()
            more = bool(self._packed) or self._more
            if not more and not self._inflater.eof:
                raise self._damaged()
            if body or not more:
                return {"type": "http.request", "body": body, "more_body": more}

    def _inflate(self) -> bytes:
        if self._inflater.eof and self._packed:
            self._inflater = zlib.decompressobj(wbits=31)
        try:
            body = self._inflater.decompress(self._packed, INFLATED_BYTES)
        except zlib.error:
            raise self._damaged() from None
        self._packed = self._inflater.unconsumed_tail or self._inflater.unused_data
        return body

    def _damaged(self) -> ApiError:
        return ApiError("invalid_value", "The body is not the gzip that its header says it is.")


@dataclass(slots=True, eq=False)
class _Body:
    """One that is held; `waiting` while more of it is awaited."""

    held_bytes: int = 0
    arriving: bool = True
    waiting: asyncio.Timeout | None = field(default=None, repr=False)
    refused: bool = False


class Bodies:
    """All bodies of an app that are being received or prepared: at most `max_bytes` together.

    Where one byte more arrives, the body that holds the most of those still arriving goes: it is
    released at once, and who sends little is not refused because others send much.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[_Body, None] = {}
        self.held_bytes = 0

    def add(self, body: _Body, num_bytes: int) -> None:
        """Count bytes that have arrived; `body.refused` where it was the largest."""
        self._held[body] = None
        body.held_bytes += num_bytes
        self.held_bytes += num_bytes
        while self.held_bytes > self._max_bytes and not body.refused:
            arriving = [each for each in self._held if each.arriving]
            largest = max(reversed(arriving), key=lambda each: each.held_bytes, default=body)
            largest.refused = True
            self.release(largest)
            if largest.waiting is not None:
                largest.waiting.reschedule(0)

    def fits(self, num_bytes: int) -> bool:
        """Whether so much could be held now."""
        return self.held_bytes + num_bytes <= self._max_bytes

    def release(self, body: _Body) -> None:
        """It is gone, or became something else. Idempotent."""
        self.held_bytes -= body.held_bytes
        body.held_bytes = 0
        body.arriving = False
        self._held.pop(body, None)


class BodyLimit:
    """Refuses bodies of more than `max_bytes`, and what does not fit into `bodies`.

    By its Content-Length before anything is read of it, where there is one. A body counts from its
    first byte until the response begins: by then its images are tensors.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, bodies: Bodies) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "")
        num_bytes = int(declared[:18]) if declared.isascii() and declared.isdigit() else 0
        if num_bytes > self._max_bytes:
            return await error_response(self._too_large(), scope)(scope, receive, send)
        if num_bytes and not self._bodies.fits(num_bytes):
            return await error_response(_too_many(), scope)(scope, receive, send)
        return await self._count(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body()

        async def counted() -> Message:
            if body.refused:
                raise _too_many()
            if not body.arriving:
                return await receive()
            try:
                async with asyncio.timeout(None) as body.waiting:
                    message = await receive()
            except TimeoutError:
                if not body.refused:
                    raise
                raise _too_many() from None
            finally:
                body.waiting = None
            self._bodies.add(body, len(message.get("body", b"")))
            if body.refused:
                raise _too_many()
            if body.held_bytes > self._max_bytes:
                self._bodies.release(body)
                raise self._too_large()
            body.arriving = message.get("more_body", False)
            return message

        async def released(message: Message) -> None:
            self._bodies.release(body)
            await send(message)

        try:
            await self._app(scope, counted, released)
        finally:
            self._bodies.release(body)

    def _too_large(self) -> ApiError:
        limit = f"{self._max_bytes} bytes"
        return ApiError(
            "body_too_large", f"The body is larger than {limit}: send fewer or smaller images."
        )


def _too_many() -> ApiError:
    return ApiError("queue_full", "Too much is being uploaded. Try again later.")
