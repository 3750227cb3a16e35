"""A burst onto an idle server: what could run at once is not refused because it came at once."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from tests.server.process import ServerProcess, serving_process
from tests.server.requests import CHAT, chat

pytestmark = pytest.mark.anyio

RUNNING, WAITING = 8, 2
BOUNDS = ("--max-running", str(RUNNING), "--max-waiting", str(WAITING), "--threads", "1")
MODELS = {
    "fake": ("--model", "fake:step_s=0.02"),
    "engine": ("--model", "llava-demo", "--attention", "reference"),
}


@pytest.fixture(params=MODELS)
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with serving_process(*MODELS[request.param], *BOUNDS) as server:
        yield server


async def burst(server: ServerProcess, num_requests: int, **fields: int) -> list[httpx.Response]:
    """So many requests, all sent before the first is answered."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        body = chat(model=model, **fields)
        return await asyncio.gather(*(client.post(CHAT, json=body) for _ in range(num_requests)))


async def test_an_idle_server_answers_as_many_as_run_and_wait(server: ServerProcess) -> None:
    """The first makes the engine step; the others reach it while it does, as one burst."""
    answers = await burst(server, RUNNING + WAITING)
    assert [answer.status_code for answer in answers] == [200] * (RUNNING + WAITING)
    choices = (await burst(server, 1, n=RUNNING + WAITING))[0]
    assert len(choices.json()["choices"]) == RUNNING + WAITING
