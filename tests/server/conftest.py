"""One fake worker for all in-process tests, one real server process for those that need sockets."""

import dataclasses
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import FastAPI

from server.app import Parts, create_app, real_parts
from server.settings import Settings
from server.worker.client import EngineClient
from server.worker.restart import RestartPolicy
from tests.server.process import ServerProcess, serving_process
from tests.server.requests import in_process


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
async def app(anyio_backend: str) -> AsyncIterator[FastAPI]:
    """The app on the fake worker, which is replaced at once however often tests kill it."""

    def parts(settings: Settings) -> Parts:
        restart = RestartPolicy(first_delay_s=0.01, healthy_s=0.0)
        engine = EngineClient(settings.engine_config(), restart_policy=restart)
        return dataclasses.replace(real_parts(settings), engine=engine)

    app = create_app(Settings(model="fake", threads=1), parts)
    async with app.router.lifespan_context(app):
        await app.state.services.booting
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    await app.state.services.engine.wait_ready(30)
    async with in_process(app) as client:
        yield client


@pytest.fixture(scope="session")
def fake_server() -> Iterator[ServerProcess]:
    """A server process with the fake engine; each step takes 2 ms."""
    flags = ("--model", "fake:step_s=0.002", "--threads", "1", "--max-body", "8MiB")
    with serving_process(*flags) as server:
        yield server
