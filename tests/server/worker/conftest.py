"""Real workers with the fake engine, and the requests they answer."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from lookm.config import EngineConfig
from lookm.types import Request, Sampling
from server.worker.client import EngineClient
from server.worker.hung import Patience
from server.worker.restart import RestartPolicy

Running = Callable[..., AbstractAsyncContextManager[EngineClient]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make_request() -> Callable[..., Request]:
    def make(id: str = "a", *, ids: tuple[int, ...] = (1, 2, 3), **sampling: Any) -> Request:
        return Request(id, ids, sampling=Sampling(**({"max_tokens": 4} | sampling)))

    return make


@pytest.fixture
def running() -> Running:
    """`async with running("fake:step_s=0.01") as client`: a client with a ready worker."""

    @asynccontextmanager
    async def run(
        model: str = "fake",
        *,
        patience: Patience = Patience(),  # noqa: B008 frozen
        **policy: Any,
    ) -> AsyncIterator[EngineClient]:
        restart = RestartPolicy(**({"first_delay_s": 0.01} | policy))
        config = EngineConfig(model=model, threads=1)
        client = EngineClient(config, restart_policy=restart, patience=patience)
        await client.start()
        try:
            await client.wait_ready(30)
            yield client
        finally:
            await client.stop()

    return run
