"""What happens to every request before a route sees it: id, log line, key, time and size of body.

Pure ASGI: nothing is buffered, a client's leaving reaches the routes. Outermost first: `Journal`,
CORS (Starlette's, only where configured), `Keys`, `BodyClock`, `BodyLimit`. The log line holds what
the route says about itself in `request.state.summary`; never a prompt, a key or a URL.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api_errors import ApiError, to_api_error
from server.turns import owned_by

log = logging.getLogger("lookm.access")

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
MIN_BODY_BYTES_PER_S = 64 * 2**10
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def error_response(error: ApiError, scope: Scope) -> JSONResponse:
    """The envelope, with its status. Leaves the code for the log line and the metrics."""
    scope.setdefault("state", {})["error_code"] = error.code
    return JSONResponse(error.envelope(), error.status, error.headers)


class Journal:
    """Gives the request its id, writes its line, and turns what nobody caught into a plain 500."""

    def __init__(self, app: ASGIApp, on_rejected: Callable[[str], None]) -> None:
        self._app = app
        self._on_rejected = on_rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = _request_id(Headers(scope=scope))
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, arrived_s=time.perf_counter())
        status = 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, stamped)
        except Exception as error:  # noqa: BLE001 - the HTTP edge
            # Frames only: the message of an unknown exception may quote the request.
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s %s\n%s", request_id, type(error).__name__, frames)
            if not status:
                response = error_response(to_api_error(RuntimeError()), scope)
                await response(scope, receive, stamped)
        finally:
            self._write(scope, status)
        return None

    def _write(self, scope: Scope, status: int) -> None:
        state = scope["state"]
        code = state.get("error_code")
        if code and scope["method"] == "POST":
            self._on_rejected(code)
        route = getattr(scope.get("route"), "path", "(no route)")
        took_ms = (time.perf_counter() - state["arrived_s"]) * 1000
        left = "client left" if state.get("left") else None
        details = " ".join(filter(None, (state.get("summary"), code and f"code={code}", left)))
        line = f"{state['request_id']} {scope['method']} {route} {status or 499} {took_ms:.0f}ms"
        quiet = route in OPEN_PATHS or route == "/metrics"
        log.log(logging.DEBUG if quiet else logging.INFO, "%s %s", line, details)


class Keys:
    """Asks for one of the API keys, on every route but the probes. No keys: asks for nothing.

    What follows is done for this request and this key (`server.turns`).
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or not self._digests:
            with owned_by(""):
                return await self._app(scope, receive, send)
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = _digest(key.strip())
        # Every key is compared, in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() == "bearer" and any(matches):
            scope.setdefault("state", {})["key_digest"] = given.hex()
            with owned_by(given.hex()):
                return await self._app(scope, receive, send)
        message = "Send one of this server's API keys as 'Authorization: Bearer KEY'."
        error = ApiError("invalid_api_key", message)
        error.headers["www-authenticate"] = "Bearer"
        return await error_response(error, scope)(scope, receive, send)


class BodyClock:
    """Refuses bodies that drip: one may take `timeout_s`, and what its bytes take at 64 KiB/s.

    (The time for headers is the connection's affair: `server.header_timeout`.)
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


class BodyLimit:
    """Refuses bodies of more than `max_bytes`, and holds at most `max_total_bytes` of them at once.

    A body counts from its first byte until the response begins: by then its images are tensors.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_total_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > self._max_bytes:
            if "100-continue" not in headers.get("expect", "").lower():
                await self._discard(receive)
            return await error_response(self._too_large(), scope)(scope, receive, send)
        return await self._count(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        held_bytes = 0

        async def counted() -> Message:
            nonlocal held_bytes
            message = await receive()
            held_bytes += len(message.get("body", b""))
            self._held_bytes += len(message.get("body", b""))
            if held_bytes > self._max_bytes:
                await self._discard(receive)
                raise self._too_large()
            if self._held_bytes > self._max_total_bytes:
                await self._discard(receive)
                raise ApiError("queue_full", "Too much is being uploaded. Try again later.")
            return message

        async def released(message: Message) -> None:
            release()
            await send(message)

        def release() -> None:
            nonlocal held_bytes
            self._held_bytes -= held_bytes
            held_bytes = 0

        try:
            await self._app(scope, counted, released)
        finally:
            release()

    async def _discard(self, receive: Receive) -> None:
        """Read on, within the limit, so that a client that only writes gets to read the answer."""
        left_bytes, more = self._max_bytes, True
        with contextlib.suppress(ApiError):  # too slow: answered without waiting for the rest
            while more and left_bytes > 0:
                message = await receive()
                left_bytes -= len(message.get("body", b""))
                more = message.get("more_body", False)

    def _too_large(self) -> ApiError:
        limit = f"{self._max_bytes} bytes"
        return ApiError(
            "body_too_large", f"The body is larger than {limit}: send fewer or smaller images."
        )


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
