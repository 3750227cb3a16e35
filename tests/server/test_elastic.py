"""Elastic budgets over HTTP: how they are written, what comes back, who is coming."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from lookm.policy import parse
from server.launch import check
from server.openai.request import policies
from server.openai.schemas.kv_cache import KeepRange, KvCache
from server.services import Gate, Services
from server.settings import Settings
from tests.server.requests import CHAT, chat, image

pytestmark = pytest.mark.anyio

OBJECT = {"method": "look-m-plus", "keep": {"min": 0.1, "max": 0.5}}


async def metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize(
    "fields",
    [
        {"kv_cache": "look-m-plus@0.1-0.5"},
        {"kv_cache": OBJECT},
        {"model": "fake:look-m-plus@0.1-0.5"},
        {"model": "fake:look-m-plus@0.1-0.5", "kv_cache": OBJECT},
        {"model": "fake:look-m-plus@0.1-0.5", "kv_cache": {"reuse": "none"}},
    ],
)
async def test_usage_says_what_was_asked_and_what_was_taken(
    client: httpx.AsyncClient, fields: Any
) -> None:
    before = await metric(client, 'lookm_elastic_requests_total{taken="most"}')
    response = await client.post(CHAT, json=chat(image(), "hi", **fields))
    usage = response.json()["usage"]["kv_cache"]
    assert (usage["method"], usage["keep"]) == ("look-m-plus", 0.5)
    assert usage["keep_range"] == {"min": 0.1, "max": 0.5}
    assert await metric(client, 'lookm_elastic_requests_total{taken="most"}') == before + 1
    counted = 'lookm_elastic_keep_ratio_count{method="look-m-plus"}'
    assert await metric(client, counted) >= 1


async def test_who_asks_for_a_fraction_is_told_of_no_range(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat(image(), "hi", kv_cache="look-m@0.5"))
    assert "keep_range" not in response.json()["usage"]["kv_cache"]


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ("look-m@0.5-0.1", "invalid_kv_cache", "kv_cache"),
        ("look-m@0-0.1", "invalid_kv_cache", "kv_cache"),
        ("look-m@0.1-", "invalid_kv_cache", "kv_cache"),
        ("full@0.1-0.5", "invalid_kv_cache", "kv_cache"),
        (OBJECT | {"keep": {"min": 0.5, "max": 0.1}}, "invalid_kv_cache", "kv_cache"),
        (OBJECT | {"keep": {"min": 0.1, "max": 1.5}}, "invalid_kv_cache", "kv_cache"),
        (OBJECT | {"keep_tokens": 64}, "invalid_kv_cache", "kv_cache"),
        (OBJECT | {"keep": {"min": 0.1}}, "missing_required_parameter", "kv_cache.keep.max"),
        (OBJECT | {"keep": {"min": "0.1", "max": 1}}, "invalid_type", "kv_cache.keep.min"),
        (
            OBJECT | {"keep": {"min": 0.1, "max": 1, "mean": 0.3}},
            "unknown_parameter",
            "kv_cache.keep.mean",
        ),
        (OBJECT | {"keep": "0.1-0.5"}, "invalid_type", "kv_cache.keep"),
        (OBJECT | {"keep": [0.1, 0.5]}, "invalid_type", "kv_cache.keep"),
    ],
)
async def test_a_range_that_is_none_is_refused_by_name(
    client: httpx.AsyncClient, given: Any, code: str, param: str
) -> None:
    response = await client.post(CHAT, json=chat("hi", kv_cache=given))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error


async def test_tokenize_counts_both_ends(client: httpx.AsyncClient) -> None:
    body = chat(image(), image(), "two words", kv_cache="look-m@0.1-0.5")
    del body["max_tokens"]
    counted = (await client.post("/tokenize", json=body)).json()["kv_cache"]
    by_name = {each["policy"]: each for each in counted}
    elastic = by_name["look-m@0.1-0.5"]
    assert elastic == counted[0]
    assert elastic["min_kept_tokens"] < elastic["kept_tokens"]
    assert elastic["min_bytes"] <= by_name["look-m@0.2"]["bytes"] <= elastic["bytes"]
    assert "min_bytes" not in by_name["look-m@0.2"]


def test_both_forms_are_the_same_policy() -> None:
    given = KvCache(method="look-m", keep=KeepRange(min=0.1, max=0.5))
    assert policies.read(given) == policies.read("look-m@0.1-0.5")
    assert policies.read(given) == policies.completed(parse("look-m@0.1-0.5"))


def test_it_may_be_the_default_of_the_server() -> None:
    check(Settings(model="fake", kv_cache="look-m-plus@0.1-0.5"))


async def test_choices_are_one_group(client: httpx.AsyncClient, app: FastAPI) -> None:
    engine, seen = app.state.services.engine, []
    submit = engine.submit

    def watched(request: Any, *more: Any) -> Any:
        seen.append(request)
        return submit(request, *more)

    engine.submit = watched
    try:
        await client.post(CHAT, json=chat("hi", n=3, kv_cache="look-m@0.1-0.5"))
        await client.post(CHAT, json=chat("hi", kv_cache="look-m@0.1-0.5"))
    finally:
        del engine.submit
    *choices, alone = seen
    assert len({request.group for request in choices}) == 1
    assert choices[0].group
    assert alone.group == ""
    assert {request.num_coming for request in seen} == {0}


def test_who_is_prepared_is_coming() -> None:
    live = SimpleNamespace(gate=Gate(100, lambda key: None), engine=SimpleNamespace(num_open=3))
    with live.gate.entered(10), live.gate.entered(2):
        assert Services.num_coming(cast(Any, live), 2) == 12 - 3 - 2
    assert Services.num_coming(cast(Any, live), 1) == 0


async def test_a_burst_knows_of_itself(client: httpx.AsyncClient, app: FastAPI) -> None:
    engine, coming = app.state.services.engine, []
    submit = engine.submit

    def watched(request: Any, *more: Any) -> Any:
        coming.append(request.num_coming)
        return submit(request, *more)

    engine.submit = watched
    try:
        bodies = [chat(image(), f"question {n}", kv_cache="look-m@0.1-0.5") for n in range(12)]
        await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
    finally:
        del engine.submit
    assert max(coming) > 6
    assert min(coming) <= 2  # the last ones may be counted at once
