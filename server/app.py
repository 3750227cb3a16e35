"""Puts the server together: routes, middleware, error handling, and what is behind them.

`create_app` is the one place that knows the real parts; tests hand it others.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from lookm.errors import LookmError
from lookm.models.generation import GenerationDefaults, generation_defaults
from server import health
from server.api_errors import ApiError, to_api_error
from server.bodies import Bodies, BodyClock, BodyLimit, Inflate, OneLength
from server.docs_pages import DocsPolicy
from server.keys.book import KeyBook
from server.media import MediaError, MediaLoader
from server.middleware import HeadAsGet, Journal, Keys, error_response
from server.openai import files, openapi, responses, routes, stored_responses, tokenize
from server.openai.protocols import ChatProcessor, ImageLoader
from server.openai.request import policies
from server.paths import Paths
from server.playground import route as playground
from server.services import ManagedEngine, Services
from server.settings import Settings
from server.stopping import Answering
from server.traces import Traces
from server.version import version
from server.worker.client import EngineClient
from server.worker.hung import Patience
from server.worker.restart import RestartPolicy
from server.worker.worker_errors import WorkerError

log = logging.getLogger("lookm.server")

RATE_HEADERS = [
    f"x-ratelimit-{figure}-{what}"
    for what in ("requests", "tokens")
    for figure in ("limit", "remaining", "reset")
]
HANDLED = (ApiError, LookmError, MediaError, WorkerError, HTTPException)


@dataclass(frozen=True, slots=True)
class Parts:
    """What is behind the routes. Made inside the event loop, once for each start of the app.

    `prepare` comes before the engine starts: it refuses what can be known to fail.
    """

    engine: ManagedEngine
    media: ImageLoader
    load_processor: Callable[[], ChatProcessor]
    prepare: Callable[[], GenerationDefaults] = GenerationDefaults


def real_parts(settings: Settings) -> Parts:
    """A worker process, a media loader, and the model's own processor."""
    media = MediaLoader(settings.media_config())
    media.warm_up()
    return Parts(
        engine=EngineClient(
            settings.engine_config(),
            restart_policy=RestartPolicy(never=settings.exit_on_worker_failure),
            patience=Patience(settings.step_timeout_s, settings.start_timeout_s),
            known_image_bytes=settings.image_input_memory,
        ),
        media=media,
        load_processor=lambda: load_processor(settings.model),
        prepare=lambda: prepare(settings),
    )


def prepare(settings: Settings) -> GenerationDefaults:
    """Find or download the checkpoint, and judge its files, before a worker loads them: what it
    says of sampling. Raises `ModelError`."""
    if is_fake(settings.model):
        return GenerationDefaults()
    from lookm.models.loading import fetch

    file = fetch(settings.model).generation_config
    if settings.generation_config == "none":
        return GenerationDefaults()
    return generation_defaults(file, settings.model)


def load_processor(model: str) -> ChatProcessor:
    """The model's processor. Raises `ModelError`; also for parts that do not fit each other.

    They are judged here, beside the worker that is still importing: a good checkpoint starts no
    later for it, and for a bad one nobody waits until the worker is that far.
    """
    if is_fake(model):
        from server.fake.processor import FakeProcessor

        return FakeProcessor()
    from lookm.models.judged import judged_processor
    from lookm.models.loading import find, served_name

    processor = judged_processor(find(model), name=served_name(model))
    if not processor.has_template:
        log.warning("%s; put one as chat_template.jinja into its folder", processor.no_template)
    return processor


def is_fake(model: str) -> bool:
    """Whether the model is the fake engine, which needs no checkpoint."""
    return model == "fake" or model.startswith("fake:")


def key_book(settings: Settings) -> KeyBook:
    """The API keys, with their limits. Raises `ValueError` or `PolicyError`."""
    return KeyBook(settings.keys(), settings.key_limits, policies.read(settings.kv_cache))


def create_app(
    settings: Settings,
    make_parts: Callable[[Settings], Parts] = real_parts,
    traces: Traces | None = None,
) -> FastAPI:
    """The ASGI app. Its lifespan starts the engine and returns before the model is loaded.

    It owns its `traces`: those of the settings, unless others are given.
    """

    if traces is None and settings.otlp_endpoint is not None:
        traces = Traces.to(settings.otlp_endpoint, settings.replica)
    bodies = Bodies(settings.max_body_total)
    keys = key_book(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        parts = make_parts(settings)
        live = Services(
            settings, parts.engine, parts.media, parts.load_processor, parts.prepare, keys
        )
        live.metrics.read("lookm_bodies_held_bytes", lambda: bodies.held_bytes)
        app.state.services = live
        live.start()
        try:
            yield
        finally:
            await live.stop()
            if traces is not None:
                await asyncio.to_thread(traces.close)

    app = FastAPIOffline(  # its pages load nothing from elsewhere
        title="lookm-server",
        summary="Multi-image chats with a compressed KV cache, chosen per request.",
        version=version(),
        lifespan=lifespan,
        middleware=_middleware(settings, bodies, keys, traces, lambda: app.state.services),
        redirect_slashes=False,  # `Paths` drops them
        swagger_ui_parameters={"tryItOutEnabled": True},
    )
    for kind in HANDLED:
        app.add_exception_handler(kind, _error_response)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.include_router(health.router)
    app.include_router(routes.router)
    app.include_router(tokenize.router)
    app.include_router(files.router)
    app.include_router(responses.router)
    app.include_router(stored_responses.router)
    if settings.playground:
        app.include_router(playground.router)
    app.openapi = openapi.describe(  # type: ignore[method-assign]
        app, lambda: app.state.services.model, with_key=settings.asks_for_key
    )
    return app


def _middleware(
    settings: Settings,
    bodies: Bodies,
    keys: KeyBook,
    traces: Traces | None,
    live: Callable[[], Services],
) -> list[Middleware]:
    """Outermost first."""

    def on_rejected(code: str) -> None:
        live().metrics.increase("lookm_requests_rejected_total", reason=code)

    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(settings.cors_origins),
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        allow_headers=["*"],
        allow_private_network=True,  # a page may ask for a server on its user's machine
        expose_headers=[
            *("x-request-id", "x-session-id", "x-lookm-kept-ratio", "x-lookm-replica"),
            *RATE_HEADERS,
        ],
    )
    return [
        Middleware(Paths, root_path=settings.root_path),
        Middleware(Journal, on_rejected=on_rejected, traces=traces, replica=settings.replica),
        *([cors] if settings.cors_origins else []),
        Middleware(Answering, live=lambda: live().unanswered),
        Middleware(Keys, book=keys),
        Middleware(HeadAsGet),
        Middleware(DocsPolicy),
        Middleware(OneLength),
        Middleware(BodyClock, timeout_s=settings.receive_timeout_s),
        Middleware(Inflate),
        Middleware(BodyLimit, max_bytes=settings.max_body, bodies=bodies),
    ]


async def _error_response(request: Request, error: Exception) -> Response:
    return error_response(to_api_error(error), request.scope)


async def _client_left(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the log does
