"""A worker that lives and does nothing is replaced; one that only takes its time is not."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from lookm.config import EngineConfig
from lookm.types import Request
from server.worker.client import EngineClient
from server.worker.restart import RestartPolicy
from server.worker.worker_errors import WorkerDiedError

Make = Callable[..., Request]

pytestmark = pytest.mark.anyio

LIMIT_S = 0.4


async def started(model: str) -> EngineClient:
    restart = RestartPolicy(first_delay_s=0.01)
    config = EngineConfig(model=model, threads=1)
    client = EngineClient(config, restart_policy=restart, step_timeout_s=LIMIT_S)
    await client.start()
    await client.wait_ready(30)
    return client


async def test_a_worker_that_hangs_fails_its_requests_and_is_replaced(make_request: Make) -> None:
    client = await started("fake")
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(WorkerDiedError):
        await asyncio.wait_for(anext(client.submit(make_request("a"))), 10)
    await client.wait_ready(30)
    assert client.pid != pid
    assert client.restarts == 1
    assert [event async for event in client.submit(make_request("b"))]
    await client.stop()


async def test_a_step_that_never_ends_is_found_after_the_client_has_left(
    make_request: Make,
) -> None:
    client = await started("fake:step_s=60")
    pid = client.pid
    events = client.submit(make_request("a"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(events)
    await events.aclose()
    async with asyncio.timeout(10):
        while client.pid == pid:
            await asyncio.sleep(0.02)
    await client.stop()


async def test_long_steps_and_long_silence_without_work_are_no_alarm(make_request: Make) -> None:
    client = await started(f"fake:step_s={LIMIT_S / 4}")
    pid = client.pid
    await asyncio.sleep(2 * LIMIT_S)
    events = [event async for event in client.submit(make_request("a", max_tokens=8))]
    assert len(events) == 8
    await asyncio.sleep(2 * LIMIT_S)
    assert [event async for event in client.submit(make_request("b", max_tokens=1))]
    assert (client.pid, client.restarts) == (pid, 0)
    await client.stop()
