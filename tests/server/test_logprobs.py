"""Log-probabilities in OpenAI's shapes, whole and streamed; penalties, biases and structures."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from lookm.types import Request, Structure, TokenEvent, TokenLogprob, TopLogprob
from server.settings import Settings
from tests.server.requests import CHAT, chat, events, says, serving, word_events

pytestmark = pytest.mark.anyio

TEXT = {"model": "fake", "prompt": "hello", "max_tokens": 4}


async def tells(request: Request) -> AsyncIterator[TokenEvent]:
    """Two words with log-probabilities; the first word is held back, its telling is not."""
    for event, word in zip(word_events(request, ["", "one two"]), ("one", " two"), strict=True):
        top = (TopLogprob(7, word, word.encode(), -0.5), TopLogprob(8, "x", b"x", -1.0))
        logprob = TokenLogprob(7, word, word.encode(), -0.5, top[: request.sampling.logprobs])
        yield replace(event, logprobs=None if request.sampling.logprobs is None else logprob)


@pytest.fixture
async def teller() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(Settings(model="fake"), tells) as (client, _, _app):
        yield client


async def test_chat_logprobs_whole_and_streamed_are_the_same(teller: httpx.AsyncClient) -> None:
    body = chat(logprobs=True, top_logprobs=2)
    response = await teller.post(CHAT, json=body)
    whole = ChatCompletion.model_validate(response.json(), strict=True)
    assert whole.choices[0].logprobs is not None
    logprobs = whole.choices[0].logprobs.content or []
    assert [entry.token for entry in logprobs] == ["one", " two"]
    assert [entry.logprob for entry in logprobs] == [-0.5, -0.5]
    assert [top.token for top in logprobs[0].top_logprobs] == ["one", "x"]
    assert logprobs[1].bytes == list(b" two")
    streamed = await teller.post(CHAT, json=body | {"stream": True})
    chunks = [ChatCompletionChunk.model_validate(e, strict=True) for e in events(streamed.text)]
    entries = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert entries == logprobs


async def test_without_top_logprobs_only_the_token_is_given(teller: httpx.AsyncClient) -> None:
    answer = (await teller.post(CHAT, json=chat(logprobs=True))).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    answer = (await teller.post(CHAT, json=chat(logprobs=False))).json()
    assert answer["choices"][0]["logprobs"] is None


async def test_text_logprobs_are_columns_with_offsets(teller: httpx.AsyncClient) -> None:
    body = TEXT | {"logprobs": 1}
    whole = Completion.model_validate((await teller.post("/v1/completions", json=body)).json())
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["one", " two"]
    assert logprobs.text_offset == [0, 3]
    assert logprobs.top_logprobs == [{"one": -0.5}, {" two": -0.5}]
    streamed = await teller.post("/v1/completions", json=body | {"stream": True})
    columns = [event["choices"][0]["logprobs"] for event in events(streamed.text)]
    assert [each["text_offset"] for each in columns if each] == [[0], [3]]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMATS: list[tuple[dict[str, Any] | None, Structure | None]] = [
    (None, None),
    ({"type": "text"}, None),
    ({"type": "json_object"}, Structure("json_object")),
    (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        Structure("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}}'),
    ),
]


@pytest.mark.parametrize(("form", "structure"), FORMATS)
async def test_response_formats_become_structures(
    form: dict[str, Any] | None, structure: Structure | None
) -> None:
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        assert (await client.post(CHAT, json=chat(response_format=form))).status_code == 200
        assert engine.requests[0].sampling.structure == structure


@pytest.mark.parametrize("name", ["password", "path", "uri"])
async def test_a_strict_schema_has_only_formats_that_openai_knows(name: str) -> None:
    schema = {"type": "object", "$defs": {"a": {"anyOf": [{"type": "string", "format": name}]}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    async with serving(Settings(model="fake"), says) as (client, *_):
        refused = await client.post(CHAT, json=chat(response_format=form))
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "response_format"
        assert repr(name) in refused.json()["error"]["message"]
        form["json_schema"]["strict"] = False
        assert (await client.post(CHAT, json=chat(response_format=form))).status_code == 200
        form["json_schema"] |= {"strict": True, "schema": {"properties": {"format": {"const": 1}}}}
        assert (await client.post(CHAT, json=chat(response_format=form))).status_code == 200


async def test_penalties_and_biases_reach_the_engine() -> None:
    fields = {"presence_penalty": 0.5, "frequency_penalty": -1, "logit_bias": {"17": -100}}
    more = {"min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "stop_token_ids": [5]}
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        assert (await client.post(CHAT, json=chat(**fields, **more))).status_code == 200
        sampling = engine.requests[0].sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -1)
    assert sampling.logit_bias == ((17, -100.0),)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.2)
    assert (sampling.min_tokens, sampling.stop_token_ids) == (2, (5,))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"logit_bias": {"17": 101}}, "logit_bias.17"),
        ({"logit_bias": {"word": 1}}, "logit_bias.word"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
    ],
)
async def test_what_cannot_be_given_or_followed_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    response = await client.post(CHAT, json=chat(**fields))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
