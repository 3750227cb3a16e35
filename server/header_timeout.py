"""A connection whose client does not get to the point is closed: headers that drip, or never come.

uvicorn has a time limit only between requests. Knows uvicorn's h11 protocol and nothing above it;
bodies are `server.middleware.BodyClock`'s, while the app reads them.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def timed_protocol(timeout_s: float) -> type[H11Protocol]:
    """A uvicorn protocol that waits at most `timeout_s` for the headers of a request."""

    class TimedProtocol(H11Protocol):
        """Closes the connection where its client did not send what it waits for."""

        _closing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Run the clock while headers are awaited, or a body that nobody reads any more."""
            theirs = self.conn.their_state
            unread = theirs is h11.SEND_BODY and self.conn.our_state is h11.DONE
            if not (theirs is h11.IDLE or unread):
                self._stop()
            elif self._closing is None:
                self._closing = self.loop.call_later(timeout_s, self.transport.close)

        def _stop(self) -> None:
            if self._closing is not None:
                self._closing.cancel()
            self._closing = None

    return TimedProtocol
