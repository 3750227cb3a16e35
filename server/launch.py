"""From settings to a running process: socket, uvicorn, signals, the banner, the exit status.

Exit status: 0 after a signal, 1 where the engine or the port fails, 2 where a setting is wrong. All
of these say why in one line. Knows uvicorn; nothing about routes. How serving ends is `stopping`'s.
"""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
from functools import partial

import uvicorn
from fastapi import FastAPI

from lookm.errors import LookmError
from lookm.policy import least, most, to_string
from lookm.sizing import CacheShape, conversations_line
from lookm.types import CachePolicy, ModelInfo
from server import logs, signals, traces
from server.app import create_app, is_fake, key_book
from server.connections import (
    ACCEPTED_AT_ONCE,
    QUEUED,
    Connections,
    most_connections,
    raise_descriptor_limit,
    timed_protocol,
)
from server.example_request import POLICY, example_curl
from server.logs import LogFormat
from server.media import silence_decoders
from server.openai.request import policies
from server.openai.request.model_names import ModelNames
from server.services import Services
from server.settings import Settings, unknown_variables
from server.sizes import format_size
from server.stopping import Stop, StoppingServer
from server.version import version
from server.worker.worker_errors import WorkerError

log = logging.getLogger("lookm.server")

CONVERSATION_TOKENS = 2048
KEEP_ALIVE_S = 65  # longer than the pools of common clients and proxies
FAILED, MISUSED = 1, 2


class StartError(Exception):
    """The server cannot start; the message is the whole explanation."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def launch(settings: Settings) -> int:
    """Serve until a signal; returns the exit status."""
    configure_logging(settings.log_level, settings.log_format)
    try:
        check(settings)
        for name, meant in unknown_variables(os.environ).items():
            hint = f": {meant} is" if meant else ", see lookm serve --help"
            log.warning("the variable %s is no setting%s", name, hint)
        with contextlib.closing(bind(settings.host, settings.port)) as listener:
            return asyncio.run(_serve(settings, listener))
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status


def check(settings: Settings) -> None:
    """Refuse what can be known to be wrong before anything is started. Raises `StartError`."""
    try:
        key_book(settings)
        if settings.otlp_endpoint is not None:
            traces.check(settings.otlp_endpoint)
        name = "fake"
        if not is_fake(settings.model):
            from lookm.models.loading import resolve_path, served_name

            resolve_path(settings.model)
            name = served_name(settings.model)
        ModelNames.of(settings.served_model_name or name, settings.model_alias)
    except (LookmError, OSError, ValueError) as error:
        raise StartError(str(error), MISUSED) from None


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Raises `StartError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol: else asyncio leaves Nagle's algorithm on, and every answer on a kept
        # connection, every token of a stream, waits 40 ms for an acknowledgement.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on {host!r}: {error.strerror}", MISUSED) from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        message = f"cannot listen on {host} port {port}: {error.strerror}. Choose another --port"
        raise StartError(message, FAILED) from None
    return listener


def configure_logging(level: str, form: LogFormat = "text") -> None:
    """One line an event, on standard error. Libraries that log URLs are kept quiet."""
    logs.configure(level.upper(), form)
    for library in ("httpx", "httpx2", "httpcore", "uvicorn", "asyncio", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)
    silence_decoders()


async def _serve(settings: Settings, listener: socket.socket) -> int:
    loop, stop = asyncio.get_running_loop(), Stop(settings.drain_timeout_s)
    app = create_app(settings)
    reread = partial(_reread_keys, app) if settings.key_limits else None
    with signals.handled(
        lambda: loop.call_soon_threadsafe(stop.ask),
        reread and (lambda: loop.call_soon_threadsafe(reread)),
    ):
        status = await _serve_until(stop, settings, app, listener)
    stop.over()
    return status


def _reread_keys(app: FastAPI) -> None:
    """Once the app has started: before that it reads them anyway."""
    if (live := getattr(app.state, "services", None)) is not None:
        live.reread_soon()


async def _serve_until(
    stop: Stop, settings: Settings, app: FastAPI, listener: socket.socket
) -> int:
    connections = _connections(settings, app)

    def end_running() -> None:
        app.state.services.end_running()

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        http=timed_protocol(settings.receive_timeout_s, connections),
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = StoppingServer(config, stop, end_running)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    status = FAILED
    if server.started:
        listener.listen(QUEUED)
        live: Services = app.state.services
        live.metrics.read("lookm_connections", lambda: len(connections))
        status = await _greet(settings, live, listener, serving)
        if status == 0 and not stop.begun.is_set():
            status = await _wait_failed(live, serving)
        if status != 0:
            stop.end_now(status)
    await serving
    return status


def _connections(settings: Settings, app: FastAPI) -> Connections:
    """As many as are asked for, where the system lets us; what is refused is counted."""

    def on_refused() -> None:
        app.state.services.metrics.increase("lookm_connections_refused_total")

    num_requests = settings.max_running + settings.max_waiting
    num_downloads = num_requests + settings.media_config().max_fetches
    descriptors = raise_descriptor_limit()
    most = most_connections(settings.max_connections, descriptors, num_downloads)
    connections = Connections(most, on_refused)
    asyncio.get_running_loop().set_exception_handler(connections.on_loop_error)
    return connections


async def _greet(
    settings: Settings, live: Services, listener: socket.socket, serving: asyncio.Task[None]
) -> int:
    """Wait for the model; print the banner, or what went wrong."""
    assert live.booting is not None
    log.info("loading %s", settings.model)
    await asyncio.wait((live.booting, serving), return_when=asyncio.FIRST_COMPLETED)
    if not live.booting.done() or live.booting.cancelled():
        return 0  # stopped while loading
    error = live.booting.exception()
    if error is None:
        assert live.engine.info is not None
        _leave_start_up_alone()
        print(banner(settings, live.model, live.engine.info, base_url(listener)), flush=True)
        return 0
    if not isinstance(error, (LookmError, WorkerError, TimeoutError)):
        log.error("the model did not load", exc_info=error)
    message = str(error) or "the model did not load in time: raise --start-timeout-s"
    print(f"error: {message}", file=sys.stderr, flush=True)
    return FAILED


async def _wait_failed(live: Services, serving: asyncio.Task[None]) -> int:
    """Until serving ends, or the engine for good (`--exit-on-worker-failure`)."""
    failed = asyncio.create_task(live.engine.wait_failed())
    await asyncio.wait((failed, serving), return_when=asyncio.FIRST_COMPLETED)
    failed.cancel()
    if serving.done() or not failed.done():
        return 0
    print(f"error: {failed.result()}", file=sys.stderr, flush=True)
    return FAILED


def _leave_start_up_alone() -> None:
    """Keep what was loaded at start, which stays, out of every later garbage collection.

    A full one over it would stop the event loop for 200 ms, at any moment.
    """
    gc.collect()
    gc.freeze()


def base_url(listener: socket.socket) -> str:
    """Where clients reach the socket; from this machine, where it listens everywhere."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def banner(settings: Settings, model: str, info: ModelInfo, url: str) -> str:
    """What an operator wants to know first, and a request to try it with."""
    shape = CacheShape.of(info)
    num_pages = info.capacity_bytes // max(1, shape.page_bytes)
    tokens = CONVERSATION_TOKENS
    kept = _kept_by_default(policies.read(settings.kv_cache), tokens)
    promise = conversations_line(shape, num_pages, tokens, settings.max_running, kept)
    weights = "" if settings.quantization == "none" else f", weights {settings.quantization}"
    page = f"{url}/   " if settings.playground else ""
    kind = "" if info.kv_cache_dtype == "auto" else f" of {info.kv_cache_dtype}"
    curl = example_curl(url, model, with_key=settings.asks_for_key)
    return (
        f"\nlookm-server {version()} is ready: {url}\n\n"
        f"  model     {model} ({info.dtype}{weights}, {info.device}), "
        f"{info.max_context_tokens:,} tokens of context, default cache {settings.kv_cache}\n"
        f"  KV pool   {format_size(info.capacity_bytes)}{kind}: conversations of "
        f"{tokens:,} tokens: {promise}\n"
        f"  see also  {page}{url}/docs   {url}/metrics\n\n"
        f"Two images and a question, ready to paste:\n\n{curl}\n"
    )


def _kept_by_default(default: CachePolicy, tokens: int) -> dict[str, int]:
    """Rows of so many tokens under the default policy, an elastic one's most and least; where it
    is `full`, under the example's."""
    ends = [each for each in (most(default), least(default)) if each.method != "full"]
    return {
        to_string(each): min(tokens, each.keep_tokens or max(1, int(tokens * (each.keep or 1))))
        for each in ends or [policies.read(POLICY)]
    }
