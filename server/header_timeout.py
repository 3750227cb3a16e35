"""A connection whose client does not get to the point is closed: headers that drip, or never come,
an answer that nobody reads.

uvicorn has a time limit only between requests. Knows uvicorn's h11 protocol and nothing above it;
bodies are `server.middleware.BodyClock`'s, while the app reads them.
"""

import asyncio
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CRUMBS = 2**13
CRUMB = re.compile(rb"\r\n0*[0-9a-fA-F]\r\n")  # the line before a chunk of at most 15 bytes


def timed_protocol(timeout_s: float) -> type[H11Protocol]:
    """A uvicorn protocol that waits at most `timeout_s` for the headers of a request, and as long
    for a client to read on.
    """

    class TimedProtocol(H11Protocol):
        """Closes the connection where its client did not send what it waits for."""

        _closing: asyncio.TimerHandle | None = None
        _cutting: asyncio.TimerHandle | None = None
        _num_crumbs = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            if self._has_crumbs(data):
                if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    self.send_400_response("The body comes in too many tiny chunks.")
                self.transport.close()
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

        def pause_writing(self) -> None:
            """64 KiB wait for the client to read. Closing would wait for them: this cuts it off."""
            super().pause_writing()
            self._cutting = self.loop.call_later(timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_cutting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            self._stop_cutting()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Run the clock while headers are awaited, or a body that nobody reads any more."""
            theirs = self.conn.their_state
            unread = theirs is h11.SEND_BODY and self.conn.our_state is h11.DONE
            if not (theirs is h11.IDLE or unread):
                self._stop()
            elif self._closing is None:
                self._closing = self.loop.call_later(timeout_s, self.transport.close)

        def _stop_cutting(self) -> None:
            if self._cutting is not None:
                self._cutting.cancel()
            self._cutting = None

        def _stop(self) -> None:
            if self._closing is not None:
                self._closing.cancel()
            self._closing = None

    return TimedProtocol
