"""The connections of clients: how many there may be, and how long one may keep us waiting.

A connection takes a file descriptor and memory, and uvicorn bounds neither; nor has it a time limit
but between requests. Here:

    descriptors  the system's soft limit is raised to the hard one at start
    number       at most `max_connections`, and fewer than descriptors; where there are more, the
                 one that has waited longest for its client's next request is closed
    no room      where none waits, probes are still answered on `PROBES` more, all else is a 503
    time         a client that does not get to the point is hung up on: headers that drip, or never
                 come, a body that nobody reads any more (while the app reads it, it is
                 `server.bodies.BodyClock`'s), an answer that its client does not read

Knows uvicorn's h11 protocol and nothing above it but which paths are probes.
"""

import asyncio
import errno
import json
import logging
import re
import resource
from collections.abc import Callable
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api_errors import ApiError
from server.middleware import HEALTH_PATHS, error_response

log = logging.getLogger("lookm.server")

PROBES = 16
PROBE_PATHS = HEALTH_PATHS | {"/metrics"}
OTHER_DESCRIPTORS = 128  # of the engine's channel, decoders, libraries, files
MOST_DESCRIPTORS = 2**16
ACCEPTED_AT_ONCE = 64  # in one turn of the event loop, before any can be closed
QUEUED = 2048  # in the kernel
LOG_EVERY_S = 1.0
MAX_CRUMBS = 2**13
CRUMB = re.compile(rb"\r\n0*[0-9a-fA-F]\r\n")  # the line before a chunk of at most 15 bytes
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files as far as the system lets us; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def most_connections(wanted: int, descriptors: int, num_downloads: int) -> int:
    """What fits into the descriptors, beside everything else that takes some."""
    left = descriptors - OTHER_DESCRIPTORS - ACCEPTED_AT_ONCE - PROBES - num_downloads
    if left < wanted:
        log.warning(
            "%d connections at most, not %d: the system's limit of open files is %d",
            max(PROBES, left), wanted, descriptors,
        )  # fmt: skip
    return min(wanted, max(PROBES, left))


class Connections:
    """All that are open. `on_refused` is called for each that is refused, or closed for another."""

    def __init__(self, max_connections: int, on_refused: Callable[[], None]) -> None:
        self._max_connections = max_connections
        self._on_refused = on_refused
        self._open: set[H11Protocol] = set()
        self._idle: dict[H11Protocol, None] = {}  # who has waited longest first
        self._log = Seldom(LOG_EVERY_S)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: H11Protocol) -> None:
        """A new one; what it is allowed depends on the others."""
        self._open.add(connection)
        excess = len(self._open) - self._max_connections
        if excess <= 0:
            return
        self.refused("too many connections: the longest idle is closed, or the newest refused")
        if self._idle:
            longest = next(iter(self._idle))
            self.remove(longest)
            longest.transport.abort()
        elif excess <= PROBES:
            connection.app = _only_probes(connection.app)
        else:
            connection.transport.abort()

    def remove(self, connection: H11Protocol) -> None:
        """It is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def idle(self, connection: H11Protocol, is_idle: bool) -> None:
        """Whether it waits for its client's next request."""
        if not is_idle:
            self._idle.pop(connection, None)
        elif connection in self._open:
            self._idle.setdefault(connection)

    def refused(self, why: str) -> None:
        """Count one that could not be had, and say so at most once a second."""
        self._on_refused()
        self._log.warning(why)

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler: a failed accept is one line, not a thousand tracebacks."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            self.refused(f"a connection could not be accepted: {error.strerror}")
        else:
            loop.default_exception_handler(context)


class Seldom:
    """Writes a line at most every so often, with how many it left out."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._written_s = -every_s
        self._left_out = 0

    def warning(self, line: str) -> None:
        """Write it, or count it."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._written_s < self._every_s:
            self._left_out += 1
            return
        more = f" ({self._left_out} more since the last line)" if self._left_out else ""
        log.warning("%s%s", line, more)
        self._written_s, self._left_out = now_s, 0


def timed_protocol(timeout_s: float, connections: Connections) -> type[H11Protocol]:
    """A uvicorn protocol that waits at most `timeout_s` for the headers of a request, and as long
    for a client to read on.
    """

    class TimedProtocol(H11Protocol):
        """Closes the connection where its client did not send what it waits for."""

        _closing: asyncio.TimerHandle | None = None
        _cutting: asyncio.TimerHandle | None = None
        _num_crumbs = 0
        _refused = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            connections.add(self)
            self._watch()

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return  # closing now would reset the connection before the answer is read
            if self._has_crumbs(data):
                self._refuse(ApiError("invalid_value", "The body comes in too many tiny chunks."))
                return
            super().data_received(data)
            self._watch()

        def _has_crumbs(self, data: bytes) -> bool:
            """Whether a chunked body comes in more chunks of a few bytes than one request may.

            Each costs as much as a large one, and is parsed where everybody waits.
            """
            if self.conn.their_state is h11.IDLE:
                self._num_crumbs = 0
            self._num_crumbs += len(CRUMB.findall(data))
            return self._num_crumbs > MAX_CRUMBS

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP gets the envelope, too."""
            self._refuse(ApiError("invalid_value", msg))

        def _refuse(self, error: ApiError) -> None:
            """Answer in the app's place, drop what still comes, and close after a while."""
            self._refused = True
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.close()  # in the middle of an answer
                return
            body = json.dumps(error.envelope()).encode()
            head = f"HTTP/1.1 {error.status} Bad Request\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
            self.transport.write_eof()
            self._stop()
            self._closing = self.loop.call_later(timeout_s, self.transport.close)

        def pause_writing(self) -> None:
            """64 KiB wait for the client to read. Closing would wait for them: this cuts it off."""
            super().pause_writing()
            self._cutting = self.loop.call_later(timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_cutting()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            connections.idle(self, self._awaits_client())

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            self._stop_cutting()
            connections.remove(self)
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Run the clock while headers are awaited, or a body that nobody reads any more."""
            awaits = self._awaits_client()
            connections.idle(self, awaits)
            if not awaits:
                self._stop()
            elif self._closing is None:
                self._closing = self.loop.call_later(timeout_s, self.transport.close)

        def _awaits_client(self) -> bool:
            theirs = self.conn.their_state
            unread = theirs is h11.SEND_BODY and self.conn.our_state is h11.DONE
            return theirs is h11.IDLE or unread

        def _stop_cutting(self) -> None:
            if self._cutting is not None:
                self._cutting.cancel()
            self._cutting = None

        def _stop(self) -> None:
            if self._closing is not None:
                self._closing.cancel()
            self._closing = None

    return TimedProtocol


def _only_probes(app: Any) -> ASGIApp:
    """The app for a connection that is one too many: everything but a probe is a 503."""

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBE_PATHS:
            await app(scope, receive, send)
            return
        error = ApiError("engine_unavailable", "Too many connections. Try again later.")
        error.headers["connection"] = "close"
        await error_response(error, scope)(scope, receive, send)

    return refusing
