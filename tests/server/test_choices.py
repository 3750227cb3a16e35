"""`n`: several answers to one request. They come together, fail together and end together."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from lookm.errors import QueueFullError
from lookm.types import Request, TokenEvent
from server.settings import Settings
from server.worker.channel import ApiChannel
from tests.server.asgi_client import Visit
from tests.server.requests import (
    CHAT,
    begins,
    chat,
    data_url,
    events,
    image,
    png,
    says,
    says_after,
    serving,
    until,
    word_events,
)

pytestmark = pytest.mark.anyio

TEXT = "/v1/completions"
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


async def test_every_choice_is_answered_and_the_prompt_counts_once(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post(CHAT, json=chat(image(), "hi", n=3, kv_cache="look-m@0.2"))
    answer = ChatCompletion.model_validate(response.json(), strict=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"word0 word1 word2 word3"}
    usage = response.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (65, 12)
    assert usage["total_tokens"] == 77
    assert usage["kv_cache"]["kept_tokens"] == 13
    assert response.headers["x-lookm-kept-ratio"] == "0.2000"


async def test_a_stream_tells_of_each_choice_and_ends_each_once(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("hi", n=3, **USAGE))
    every = [ChatCompletionChunk.model_validate(e, strict=True) for e in events(response.text)]
    *chunks, last = every
    for index in range(3):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == "word0 word1 word2 word3"
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + ["length"]
    assert len({chunk.id for chunk in every}) == 1
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (1, 12)


async def test_text_completions_have_choices_too(client: httpx.AsyncClient) -> None:
    body = {"model": "fake", "prompt": "a b c", "max_tokens": 2, "n": 2}
    whole = (await client.post(TEXT, json=body)).json()
    assert [(c["index"], c["text"]) for c in whole["choices"]] == [
        (0, "word0 word1"),
        (1, "word0 word1"),
    ]
    assert whole["usage"]["completion_tokens"] == 4
    chunks = events((await client.post(TEXT, json=body | {"stream": True})).text)
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(c["text"] for c in mine) == "word0 word1"
        assert mine[-1]["finish_reason"] == "length"


@pytest.mark.parametrize(("seed", "seeds"), [(7, [7, 8, 9]), (2**63 - 2, None), (None, [None] * 3)])
async def test_choices_share_the_prompt_and_count_up_from_the_seed(
    seed: int | None, seeds: list[int | None] | None
) -> None:
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        response = await client.post(CHAT, json=chat(image(), n=3, seed=seed))
        requests = engine.requests
    assert [r.id for r in requests] == [f"{response.json()['id']}-{n}" for n in range(3)]
    assert [r.sampling.seed for r in requests] == (seeds or [2**63 - 2, 2**63 - 1, -(2**63)])
    assert all(r.images is requests[0].images for r in requests)
    assert all(r.prompt_ids is requests[0].prompt_ids for r in requests)


@pytest.mark.parametrize("n", [1, None])
async def test_one_choice_is_one_request_under_its_own_id(n: int | None) -> None:
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        response = await client.post(CHAT, json=chat(n=n))
        assert [r.id for r in engine.requests] == [response.json()["id"]]


async def refuses_the_last(request: Request) -> AsyncIterator[TokenEvent]:
    """The third choice finds the queue full; the others have begun by then."""
    if request.id.endswith("-2"):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise QueueFullError("2 requests are waiting. Try again later.")
    async for event in begins(request):
        yield event


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_for_a_later_choice_refuses_all_and_aborts_the_earlier(
    stream: bool,
) -> None:
    async with serving(Settings(model="fake"), refuses_the_last) as (client, engine, _):
        response = await client.post(CHAT, json=chat(n=3, stream=stream))
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
        assert len(engine.requests) == 3
        assert engine.open == 0


async def test_each_choice_takes_a_place_and_gives_it_back() -> None:
    release = asyncio.Event()
    settings = Settings(model="fake", max_running=1, max_waiting=2)
    async with serving(settings, says_after(release)) as (client, engine, _):
        held = asyncio.create_task(client.post(CHAT, json=chat(n=2)))
        await until(lambda: engine.open == 2)
        assert (await client.post(CHAT, json=chat(n=2))).status_code == 429
        release.set()
        assert (await held).status_code == 200
        assert (await client.post(CHAT, json=chat(n=2))).status_code == 200
        refused = await client.post(CHAT, json=chat(n=4))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


def one_fails_at(place: int) -> Any:
    """A script: choice 1 fails at its event number `place`, the others speak and then wait."""

    async def script(request: Request) -> AsyncIterator[TokenEvent]:
        words = word_events(request, ["a", "b", "c", "d"])[:3]
        for number, event in enumerate(words):
            if request.id.endswith("-1") and number == place:
                yield TokenEvent(request.id, None, "", number, finish="error", error="broken")
                return
            await asyncio.sleep(0)
            yield event
        await asyncio.Event().wait()

    return script


async def test_one_choice_that_fails_ends_the_request_with_one_error() -> None:
    async with serving(Settings(model="fake"), one_fails_at(2)) as (client, engine, _):
        whole = await client.post(CHAT, json=chat(n=3))
        assert (whole.status_code, whole.json()["error"]["code"]) == (503, "engine_failed")
        assert engine.open == 0
        streamed = await client.post(CHAT, json=chat(n=3, **USAGE))
        assert streamed.status_code == 200
        *chunks, last = events(streamed.text)
        assert last["error"]["code"] == "engine_failed"
        assert streamed.text.count("event: error") == 1
        assert not any(chunk["choices"][0]["finish_reason"] for chunk in chunks)
        assert engine.open == 0
        metrics = (await client.get("/metrics")).text
    assert 'lookm_request_success_total{finish_reason="error"} 2.0' in metrics
    assert 'lookm_request_success_total{finish_reason="abort"} 4.0' in metrics


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_closes_every_choice(stream: bool) -> None:
    async with serving(Settings(model="fake"), begins) as (_, engine, app):
        visit = Visit(app, chat(n=4, stream=stream))
        await until(lambda: engine.open == 4)
        if stream:
            await visit.first_byte.wait()
        await visit.leave()
        assert engine.open == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_further_choices_leave_half_of_the_places_to_others(stream: bool) -> None:
    """Sixteen choices that nobody reads are not before a newcomer's only one."""
    settings = Settings(model="fake", max_running=4, max_waiting=60)
    async with serving(settings, begins, accepts=True) as (_, engine, app):
        visits = [Visit(app, chat(n=16, stream=stream)) for _ in range(2)]
        await until(lambda: engine.open == 2 + 2)  # their first ones, and two of thirty others
        if stream:  # nothing can be refused any more
            for visit in visits:
                await visit.first_byte.wait()
        newcomer = Visit(app, chat(n=16, stream=stream))
        await until(lambda: engine.open == 5)
        await visits[0].leave()
        await until(lambda: engine.open == 4)  # the newcomer's turn is before the others' next
        assert engine.requests[-1].id.rpartition("-")[0] != engine.requests[0].id.rpartition("-")[0]
        for visit in (visits[1], newcomer):
            await visit.leave()
        assert engine.open == 0


async def test_a_stream_begins_while_later_choices_still_wait_for_their_turn() -> None:
    async def first_only(request: Request) -> AsyncIterator[TokenEvent]:
        if not request.id.endswith("-0"):
            await asyncio.Event().wait()
        for event in word_events(request, ["a", "b", "c"])[:2]:
            yield event
        await asyncio.Event().wait()

    async with serving(Settings(model="fake"), first_only) as (_, _engine, app):
        visit = Visit(app, chat(n=2, stream=True))
        await visit.first_byte.wait()
        await visit.leave()


async def test_a_real_worker_frees_every_choice_of_a_client_that_left(app: FastAPI) -> None:
    engine = app.state.services.engine
    await engine.wait_ready(30)
    visit = Visit(app, chat("fake:slow", stream=True, max_tokens=5000, n=5))
    await visit.first_byte.wait()
    assert engine.totals.running == 5
    await visit.leave()
    async with asyncio.timeout(5):
        while engine.totals.running:
            await asyncio.sleep(0.01)


async def test_the_images_of_all_choices_go_to_the_worker_once(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = ApiChannel.send

    async def spied(channel: ApiChannel, frames: Any) -> None:
        sent.append(len(frames) - 1)
        await send(channel, frames)

    monkeypatch.setattr(ApiChannel, "send", spied)
    response = await client.post(CHAT, json=chat(image(), image(data_url(png("blue"))), n=8))
    assert len(response.json()["choices"]) == 8
    assert [num_arrays for num_arrays in sent if num_arrays] == [2]
