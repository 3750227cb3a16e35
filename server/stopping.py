"""How the server ends: it drains, ends what is left, cuts what still hangs on, all in bounded time.

    signal         no new connections; idle ones are closed; what runs goes on for the drain's time
    its end, or    every request that is open gets its error: a stream as its last event before
    a 2nd signal   `[DONE]`, an answer that has not begun as an envelope (503)
    WRITE_S later  what nobody reads is cut off, the worker is ended
    LEAVE_S later  the process leaves, whatever still hangs

Knows uvicorn and ASGI; what running requests are is `server.services`'.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Callable

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api_errors import ApiError, to_api_error
from server.middleware import error_response
from server.worker.worker_errors import StoppingError

WRITE_S = 0.7  # for errors to be written, and read where the client had stopped reading
CUT_S = 0.1  # for requests to notice that their connection was cut
LEAVE_S = 1.6  # after the drain: promised are 2
TICK_S = 0.05


class Stop:
    """How far stopping is. `begun`: nothing new; `ending`: the drain is over."""

    def __init__(self, drain_s: float, leave: Callable[[int], object] = os._exit) -> None:
        self.begun = asyncio.Event()
        self.ending = asyncio.Event()
        self._drain_s = drain_s
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._last_resort: threading.Timer | None = None

    def ask(self) -> None:
        """A signal has come. The first begins the drain, the second ends it, others are known."""
        if self.begun.is_set():
            return self.end_now()
        self.begun.set()
        self._loop.call_later(self._drain_s, self.ending.set)
        return self._leave_within(self._drain_s + LEAVE_S, status=0)

    def end_now(self, status: int = 0) -> None:
        """End without a drain."""
        if not self.ending.is_set():
            self.begun.set()
            self.ending.set()
            self._leave_within(LEAVE_S, status)

    def over(self) -> None:
        """All is ended: there is nothing to wait for."""
        if self._last_resort is not None:
            self._last_resort.cancel()

    def _leave_within(self, seconds: float, status: int) -> None:
        """From another thread: the event loop may be what hangs."""
        self.over()
        self._last_resort = threading.Timer(seconds, self._leave, (status,))
        self._last_resort.daemon = True
        self._last_resort.start()


class StoppingServer(uvicorn.Server):
    """uvicorn with this way to end, and no signal handlers of its own."""

    def __init__(self, config: uvicorn.Config, stop: Stop, end_running: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop
        self._end_running = end_running

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the stop begins, and end."""
        watch = asyncio.create_task(self._exit_when_asked())
        try:
            await self._serve(sockets)
        finally:
            watch.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """From the end of accepting to the end of the app."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        idle = asyncio.create_task(self._idle())
        ending = asyncio.create_task(self._stop.ending.wait())
        await asyncio.wait({idle, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done():
            self._end_running()
            await asyncio.sleep(TICK_S)  # errors first overtake what waits for slow readers
            for connection in self.server_state.connections:
                assert isinstance(connection, H11Protocol), "server.launch chooses it"
                connection.flow.resume_writing()  # what waits for a slow reader is queued instead
            await asyncio.wait({idle}, timeout=WRITE_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.wait({idle}, timeout=CUT_S)
        for task in (idle, ending, *self.server_state.tasks):
            task.cancel()
        await self.lifespan.shutdown()

    async def _exit_when_asked(self) -> None:
        await self._stop.begun.wait()
        self.should_exit = True

    async def _idle(self) -> None:
        """Return when no connection is left; those that carry no request are closed."""
        while self.server_state.connections or self.server_state.tasks:
            for connection in list(self.server_state.connections):
                if not connection.transport.is_closing():
                    try:
                        connection.shutdown()
                    except h11.LocalProtocolError:  # what it said was no HTTP
                        connection.transport.close()
            await asyncio.sleep(TICK_S)


class Unanswered:
    """The requests whose response has not begun. ASGI middleware: `Answering`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._ended: set[asyncio.Task[object]] = set()

    def end(self) -> None:
        """Answer each of them with an error now, wherever its body or its images are."""
        self._ended |= self._tasks
        for task in self._tasks:
            task.cancel()

    async def answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app; in its place, if it is ended before it answers, answer."""
        task = asyncio.current_task()
        assert task is not None, "every request has a task of its own"

        async def begun(message: Message) -> None:
            self._tasks.discard(task)
            await send(message)

        self._tasks.add(task)
        try:
            await app(scope, receive, begun)
        except asyncio.CancelledError:
            if task not in self._ended or task.uncancel():
                raise
            scope["state"]["left"] = False
            await error_response(_stopping(), scope)(scope, receive, send)
        finally:
            self._tasks.discard(task)
            self._ended.discard(task)


class Answering:
    """See `Unanswered`; `live` finds it once the app has started."""

    def __init__(self, app: ASGIApp, live: Callable[[], Unanswered]) -> None:
        self._app = app
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        return await self._live().answer(self._app, scope, receive, send)


def _stopping() -> ApiError:
    error = to_api_error(StoppingError())
    error.headers["connection"] = "close"
    return error
