"""What happens to every request before a route sees it: its id, its line in the log, its key.

Pure ASGI: nothing is buffered, a client's leaving reaches the routes. Outermost first: `Journal`,
CORS (Starlette's, only where configured), `Keys`, `HeadAsGet`, then `server.bodies`; before all of
them `server.paths`. The log line
holds what the route says about itself in `request.state.summary`; never a prompt, a key or a URL.
"""

import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api_errors import ApiError, to_api_error
from server.keys.account import Account
from server.keys.book import KeyBook
from server.keys.limits import UNNAMED
from server.logs import fields
from server.paths import own_path
from server.stages import listening
from server.traces import RequestTrace, Traces, trace_id
from server.turns import owned_by

log = logging.getLogger("lookm.access")

HEALTH_PATHS = frozenset({"/healthz", "/health", "/ping", "/readyz"})
QUIET = HEALTH_PATHS | {"/metrics"}  # asked all the time
# Without a key: pages on which one is entered, and what they load.
PAGES = frozenset({"/", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
PAGES_ASSETS = ("/playground/", "/static-offline-docs/")
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def error_response(error: ApiError, scope: Scope) -> JSONResponse:
    """The envelope, with its status. Leaves the code for the log line and the metrics."""
    scope.setdefault("state", {})["error_code"] = error.code
    return JSONResponse(error.envelope(), error.status, error.headers)


class Journal:
    """Gives the request its id, writes its line, and turns what nobody caught into a plain 500.

    A client's own `x-request-id` is kept, and its `x-session-id` sent back: up to 64 letters,
    digits and `._-`, for ids are written into logs. Where there are `traces` it is one of them;
    what a client's `traceparent` names is in the line in any case.
    """

    def __init__(
        self,
        app: ASGIApp,
        on_rejected: Callable[[str], None],
        traces: Traces | None = None,
        replica: str | None = None,
    ) -> None:
        self._app = app
        self._replica = replica
        self._on_rejected = on_rejected
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._traces is None or _is_quiet(scope):
            return await self._journaled(scope, receive, send, None)
        trace = self._traces.begin(Headers(scope=scope), time.perf_counter())
        with listening() as stages:
            try:
                return await self._journaled(scope, receive, send, trace)
            finally:
                trace.end(scope["state"]["journaled"], stages)

    async def _journaled(
        self, scope: Scope, receive: Receive, send: Send, trace: RequestTrace | None
    ) -> None:
        headers = Headers(scope=scope)
        request_id = _sane(headers, "x-request-id") or f"req-{uuid.uuid4().hex}"
        session_id = _sane(headers, "x-session-id")
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, arrived_s=time.perf_counter())
        state["trace"] = trace_id(headers.get("traceparent", ""))
        status = 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = request_id
                if session_id:
                    answered["x-session-id"] = session_id
                if self._replica:
                    answered["x-lookm-replica"] = self._replica
                if trace is not None:
                    answered["traceresponse"] = trace.header
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
        return

    def _write(self, scope: Scope, status: int) -> None:
        state = scope["state"]
        code = state.get("error_code")
        if code and scope["method"] == "POST":
            self._on_rejected(code)
        route = getattr(scope.get("route"), "path", "(no route)")
        took_ms = round((time.perf_counter() - state["arrived_s"]) * 1000)
        facts = state.get("summary", {}) | {"code": code, "key": state.get("key_name") or None}
        facts["trace"] = state["trace"]
        facts = {name: value for name, value in facts.items() if value is not None}
        details = " ".join(f"{name}={value}" for name, value in facts.items())
        if left := bool(state.get("left")):
            details = f"{details} client left".strip()
        head = {"request_id": state["request_id"], "http_method": scope["method"], "route": route}
        head |= {"status": status or 499}
        state["journaled"] = head | facts
        line = " ".join(map(str, head.values()))
        level = logging.DEBUG if route in QUIET else logging.INFO
        told = fields(**head, ms=took_ms, **facts, left=left or None, replica=self._replica)
        log.log(level, "%s %dms %s", line, took_ms, details, extra=told)


class Keys:
    """Asks for one of the API keys, on every route but probes and pages. No keys: asks for nothing.

    What follows is done for this request and this key (`server.turns`), if its limits have room for
    it; every answer to a POST says what is left of them.
    """

    def __init__(self, app: ASGIApp, book: KeyBook) -> None:
        self._app = app
        self._book = book

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._book.asks or _is_open(scope):
            with owned_by(""):
                return await self._app(scope, receive, send)
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        account = self._book.find(key.strip())
        if account is None or scheme.lower() != "bearer":
            message = "Send one of this server's API keys as 'Authorization: Bearer KEY'."
            error = ApiError("invalid_api_key", message)
            error.headers["www-authenticate"] = "Bearer"
            return await error_response(error, scope)(scope, receive, send)
        digest = account.digest.hex()
        name = "" if account.name == UNNAMED else account.name
        scope.setdefault("state", {}).update(key_digest=digest, key_name=name)
        with owned_by(digest):
            if scope["method"] != "POST":
                return await self._app(scope, receive, send)
            return await self._limited(account, scope, receive, send)

    async def _limited(self, account: Account, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(account.headers())
            await send(message)

        try:
            account.arrive()
        except ApiError as error:
            return await error_response(error, scope)(scope, receive, told)
        return await self._app(scope, receive, told)


class HeadAsGet:
    """A HEAD is answered as a GET; the server leaves the body away."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "HEAD":
            return await self._app(scope, receive, send)
        asked = {**scope, "method": "GET"}
        try:
            return await self._app(asked, receive, send)
        finally:
            scope["route"] = asked.get("route")  # for the log


def _sane(headers: Headers, name: str) -> str | None:
    """The id that the client gives, if it is one."""
    given = headers.get(name, "")
    return given if _SANE_ID.fullmatch(given) else None


def _is_quiet(scope: Scope) -> bool:
    return own_path(scope["path"], scope.get("root_path", "")) in QUIET


def _is_open(scope: Scope) -> bool:
    path = own_path(scope["path"], scope.get("root_path", ""))
    return path in HEALTH_PATHS or path in PAGES or path.startswith(PAGES_ASSETS)
