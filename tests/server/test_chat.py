"""`POST /v1/chat/completions` on the fake worker: shapes, sampling, policies, order of parts."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from lookm.policy import resolve
from lookm.types import CachePolicy, Request, TokenEvent
from server.settings import Settings
from tests.server.requests import CHAT, INFO, chat, data_url, events, image, png, says, serving

pytestmark = pytest.mark.anyio

KV_CACHE_FIELDS = {
    *("method", "keep", "prompt_tokens", "image_tokens", "kept_tokens", "merged_tokens"),
    *("bytes", "full_bytes"),
}


async def test_answer_has_openais_shape_and_says_what_was_kept(client: httpx.AsyncClient) -> None:
    body = chat(image(), image(data_url(png("blue"))), "two words", kv_cache="look-m@0.2")
    response = await client.post(CHAT, json=body)
    assert response.status_code == 200
    answer = ChatCompletion.model_validate(response.json(), strict=True)
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == "word0 word1 word2 word3"
    assert answer.choices[0].finish_reason == "length"
    usage = response.json()["usage"]
    assert usage["prompt_tokens"] == 130
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == 134
    assert usage["kv_cache"].keys() >= KV_CACHE_FIELDS
    assert usage["kv_cache"]["method"] == "look-m"
    assert usage["kv_cache"]["keep"] == 0.2
    assert usage["kv_cache"]["kept_tokens"] == 26
    assert usage["kv_cache"]["bytes"] < usage["kv_cache"]["full_bytes"]
    assert response.headers["x-lookm-kept-ratio"] == "0.2000"
    assert response.headers["x-request-id"].startswith("req-")


async def test_stream_carries_role_then_text_then_reason_then_done(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post(CHAT, json=chat(image(), "hi", stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-lookm-kept-ratio"] == "1.0000"
    chunks = [ChatCompletionChunk.model_validate(e, strict=True) for e in events(response.text)]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "word0 word1 word2 word3"
    assert len({c.id for c in chunks}) == 1
    assert not any("usage" in event for event in events(response.text))


async def test_usage_comes_in_a_last_chunk_only_if_it_is_wanted(client: httpx.AsyncClient) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, "kv_cache": "h2o@0.5"}
    *chunks, last = events((await client.post(CHAT, json=chat(image(), **options))).text)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert last["usage"]["kv_cache"]["method"] == "h2o"


@pytest.mark.parametrize("stop", ["word2", ["nothing", "word2"]])
async def test_stop_strings_end_the_answer_and_are_not_shown(
    client: httpx.AsyncClient, stop: Any
) -> None:
    for stream in (False, True):
        body = chat("hi", stop=stop, max_tokens=50, stream=stream)
        response = await client.post(CHAT, json=body)
        if stream:
            chunks = events(response.text)
            shown = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
            assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        else:
            shown = response.json()["choices"][0]["message"]["content"]
            assert response.json()["choices"][0]["finish_reason"] == "stop"
        assert shown == "word0 word1 "


async def test_text_completions_continue_a_prompt(client: httpx.AsyncClient) -> None:
    body = {"model": "fake:look-m@0.5", "prompt": "a b c d", "max_tokens": 2}
    response = await client.post("/v1/completions", json=body)
    assert response.json()["choices"][0]["text"] == "word0 word1"
    assert response.json()["model"] == "fake:look-m@0.5"
    streamed = await client.post("/v1/completions", json=body | {"stream": True})
    assert "".join(e["choices"][0]["text"] for e in events(streamed.text)) == "word0 word1"
    listed = await client.post("/v1/completions", json=body | {"prompt": ["a b c d"]})
    assert listed.json()["choices"] == response.json()["choices"]
    two = await client.post("/v1/completions", json=body | {"prompt": ["a", "b"]})
    assert two.json()["error"]["param"] == "prompt"
    empty = await client.post("/v1/completions", json=body | {"prompt": ""})
    assert empty.json()["error"]["param"] == "prompt"


async def test_defaults_are_openais_and_the_rest_of_the_context() -> None:
    async with serving(Settings(model="fake", kv_cache="snapkv@0.3"), says) as (client, engine, _):
        body = chat("one two three")
        del body["max_tokens"]
        assert (await client.post(CHAT, json=body)).status_code == 200
        request = engine.requests[0]
    assert request.sampling.temperature == 1.0
    assert request.sampling.top_p == 1.0
    assert request.sampling.max_tokens == 8192 - 3
    assert request.policy.method == "snapkv"
    assert request.policy.keep == 0.3


@pytest.mark.parametrize(("num_words", "room"), [(2040, 8), (1900, 148), (2047, 1)])
async def test_an_answer_may_be_as_long_as_a_pool_of_one_conversation_holds(
    num_words: int, room: int
) -> None:
    info = replace(INFO, max_context_tokens=2048, capacity_bytes=2048 * INFO.kv_bytes_per_token)
    body = chat(" ".join(["word"] * num_words))
    del body["max_tokens"]
    async with serving(Settings(model="fake"), says, info=info) as (client, engine, _):
        assert (await client.post(CHAT, json=body)).status_code == 200
        assert engine.requests[0].sampling.max_tokens == room


async def test_a_prompt_that_fills_the_pool_is_refused_with_the_reason() -> None:
    info = replace(INFO, capacity_bytes=1024 * INFO.kv_bytes_per_token)
    body = chat(" ".join(["word"] * 1024))
    del body["max_tokens"]
    async with serving(Settings(model="fake"), says, info=info) as (client, _, _):
        answer = await client.post(CHAT, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert "fills the server's KV cache" in answer.json()["error"]["message"]
        kept = await client.post(CHAT, json=body | {"kv_cache": "streaming@0.2"})
        assert kept.status_code == 200


async def test_every_sampling_field_reaches_the_engine() -> None:
    fields = {"temperature": 0, "top_p": 0.9, "top_k": 7, "seed": -3, "stop": "x"}
    more = {"ignore_eos": True, "max_completion_tokens": 9, "max_tokens": None}
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        assert (await client.post(CHAT, json=chat(**fields, **more))).status_code == 200
        sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.9, 7)
    assert (sampling.seed, sampling.stop, sampling.ignore_eos) == (-3, ("x",), True)
    assert sampling.max_tokens == 9


OBJECT = {"method": "look-m", "keep": 0.4, "recent": 0.25, "merge": "average", "text": "prior"}


@pytest.mark.parametrize(
    ("fields", "policy"),
    [
        ({}, CachePolicy("full")),
        ({"kv_cache": "look-m@0.2"}, CachePolicy("look-m", keep=0.2)),
        ({"kv_cache": "look-m@512"}, CachePolicy("look-m", keep_tokens=512)),
        ({"model": "fake:h2o@0.5"}, CachePolicy("h2o", keep=0.5)),
        ({"model": "fake:h2o@0.5", "kv_cache": "h2o@0.50"}, CachePolicy("h2o", keep=0.5)),
        ({"kv_cache": {"method": "roco"}}, CachePolicy("roco", keep=0.2)),
        ({"kv_cache": OBJECT}, CachePolicy("look-m", 0.4, None, 0.25, "average", "prior")),
        ({"kv_cache": None}, CachePolicy("full")),
    ],
)
async def test_policy_is_read_from_body_or_model_name(
    fields: dict[str, Any], policy: CachePolicy
) -> None:
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        assert (await client.post(CHAT, json=chat(**fields))).status_code == 200
        assert engine.requests[0].policy == resolve(policy).policy


async def test_empty_answers_are_answers() -> None:
    async def nothing(request: Request) -> AsyncIterator[TokenEvent]:
        async for event in says(request):
            if event.finish:
                yield TokenEvent(request.id, 2, "", 1, finish="stop", cache=event.cache)

    async with serving(Settings(model="fake"), nothing) as (client, _, _app):
        whole = (await client.post(CHAT, json=chat())).json()
        assert whole["choices"][0]["message"]["content"] == ""
        chunks = events((await client.post(CHAT, json=chat(stream=True))).text)
        assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, "stop"]


async def test_models_lists_the_base_and_its_cache_variants(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    names = [model["id"] for model in listed]
    assert names[0] == "fake"
    assert "fake:look-m@0.2" in names
    for name in [*names, "fake:look-m@0.35"]:
        response = await client.get(f"/v1/models/{name}")
        assert response.status_code == 200
        assert response.json()["id"] == name
