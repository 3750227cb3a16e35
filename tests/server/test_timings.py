"""`usage.timings`: only where it is asked for, and stages that are apart from each other."""

import httpx
import pytest

from lookm.types import Timing
from server.openai.response.timings import timings_usage
from tests.server.process import ServerProcess
from tests.server.requests import CHAT, chat, events, image
from tests.server.test_errors import check_error

pytestmark = pytest.mark.anyio

STAGES = {"queue", "media", "vision", "prefill", "look", "decode"}
ASKED = {"timings": True}
ROUNDED_S = 1e-5  # seven numbers of six digits


def check(timings: dict[str, float]) -> None:
    assert timings.keys() == STAGES | {"total"}
    assert all(seconds >= 0 for seconds in timings.values())
    assert sum(timings[stage] for stage in STAGES) <= timings["total"] + ROUNDED_S


def test_the_look_is_a_part_of_the_prefill_and_counted_once() -> None:
    timings = timings_usage(Timing(1, 2, 3, 0.5, 4), media_s=5, total_s=20).model_dump()
    assert timings == {
        "queue": 1, "media": 5, "vision": 2, "prefill": 2.5, "look": 0.5, "decode": 4, "total": 20,
    }  # fmt: skip
    check(timings)


async def test_they_are_there_where_they_are_asked_for(client: httpx.AsyncClient) -> None:
    parts = (image(), "what is this")
    whole = (await client.post(CHAT, json=chat(*parts, usage_options=ASKED))).json()
    check(whole["usage"]["timings"])
    assert whole["usage"]["timings"]["media"] > 0
    several = (await client.post(CHAT, json=chat(*parts, usage_options=ASKED, n=3))).json()
    check(several["usage"]["timings"])
    body = {"model": "fake", "prompt": "one two", "max_tokens": 2, "usage_options": ASKED}
    check((await client.post("/v1/completions", json=body)).json()["usage"]["timings"])
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = events((await client.post(CHAT, json=chat(usage_options=ASKED, **options))).text)
    check(streamed[-1]["usage"]["timings"])
    for asked in ({}, {"usage_options": None}, {"usage_options": {"timings": False}}):
        silent = await client.post(CHAT, json=chat(**asked))
        assert "timings" not in silent.json()["usage"]


async def test_where_there_is_no_usage_they_are_refused(client: httpx.AsyncClient) -> None:
    for options in ({}, {"stream_options": {"include_usage": False}}):
        body = chat(stream=True, usage_options=ASKED, **options)
        check_error(
            await client.post(CHAT, json=body), 400, "invalid_value", "usage_options.timings"
        )
    odd = await client.post(CHAT, json=chat(usage_options={"timing": True}))
    check_error(odd, 400, "unknown_parameter", "usage_options.timing")


def test_steps_that_take_time_are_in_it(fake_server: ServerProcess) -> None:
    answer = httpx.post(
        fake_server.url + CHAT, json=chat(max_tokens=50, usage_options=ASKED), timeout=60
    )
    timings = answer.json()["usage"]["timings"]
    check(timings)
    assert timings["decode"] >= 50 * 0.002
