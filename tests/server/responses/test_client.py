"""`/v1/responses` through the official client: its calls, its helpers, and what it sends back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel

from server.settings import Settings
from tests.server.media.pdfs import Page, pdf
from tests.server.process import ServerProcess
from tests.server.requests import begins, data_url, png, serving
from tests.server.responses.exchange import WEATHER, user
from tests.server.test_reasoning import model_says
from tests.server.tools.scripted_model import ToolProcessor, tag, writes

pytestmark = pytest.mark.anyio

STRICT: Any = WEATHER | {"strict": True}


class Answer(BaseModel):
    """What is asked for."""

    colour: str
    number: int


def official(http: Any) -> openai.AsyncOpenAI:
    """The client, which shows every failure."""
    return openai.AsyncOpenAI(
        base_url="http://test/v1", api_key="any", http_client=http, max_retries=0
    )


@asynccontextmanager
async def talking_to(*pieces: str) -> AsyncIterator[tuple[openai.AsyncOpenAI, Any, ToolProcessor]]:
    """The client, of a server whose model says `pieces`."""
    processor = ToolProcessor()
    async with serving(
        Settings(model="fake"), writes(*pieces), load_processor=lambda: processor
    ) as (http, engine, _):
        yield official(http), engine, processor


def test_create_stream_and_retrieve_over_a_socket(fake_server: ServerProcess) -> None:
    client = fake_server.client
    fields: Any = {"model": "fake", "max_output_tokens": 3, "input": [user(data_url(), "Which?")]}
    answer = client.responses.create(**fields, extra_body={"kv_cache": "look-m@0.2"})
    assert answer.output_text == "word0 word1 word2"
    assert answer.status == "incomplete"
    assert answer.usage.model_extra["kv_cache"]["kept_tokens"] < answer.usage.input_tokens
    told = list(client.responses.create(**fields, stream=True))
    text = "".join(event.delta for event in told if event.type == "response.output_text.delta")
    assert text == answer.output_text
    assert [event.sequence_number for event in told] == list(range(len(told)))
    then = client.responses.create(
        model="fake", input="And?", max_output_tokens=2, previous_response_id=answer.id
    )
    assert then.usage.input_tokens > answer.usage.input_tokens
    assert client.responses.retrieve(then.id).output_text == then.output_text
    assert len(client.responses.input_items.list(then.id).data) == 3
    client.responses.delete(then.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="fake", input="x", previous_response_id=then.id)
    assert caught.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError, match="web_search") as refused:
        client.responses.create(model="fake", input="x", tools=[{"type": "web_search"}])
    assert refused.value.param == "tools[0].type"


async def test_the_streaming_helper_sees_the_text_grow() -> None:
    async with (
        talking_to("one", " two", " three") as (client, *_),
        client.responses.stream(model="fake", input="hi") as stream,
    ):
        told = [event async for event in stream]
        final = await stream.get_final_response()
    grown = [event.snapshot for event in told if event.type == "response.output_text.delta"]
    assert grown == ["one", "one two", "one two three"]
    assert told[-1].type == "response.completed"
    assert final.output_text == "one two three"


async def test_parse_gives_an_object_whole_and_streamed() -> None:
    async with talking_to('{"colour": "red", ', '"number": 3}') as (client, engine, _):
        parsed = await client.responses.parse(model="fake", input="hi", text_format=Answer)
        assert parsed.output_parsed == Answer(colour="red", number=3)
        async with client.responses.stream(model="fake", input="hi", text_format=Answer) as stream:
            final = await stream.get_final_response()
        assert final.output_parsed == parsed.output_parsed
        assert {request.sampling.structure.kind for request in engine.requests} == {"json_schema"}


async def test_tools_over_two_turns_with_and_without_the_servers_memory() -> None:
    """The client's own objects go back as they are, or the response's id does."""
    text = f"Let me see.\n{tag(town='Oslo')}"
    async with talking_to(*[text[at : at + 4] for at in range(0, len(text), 4)]) as (
        client, _, processor,
    ):  # fmt: skip
        question: Any = [user("Rain?")]
        tools: Any = [STRICT]
        answer = await client.responses.create(model="fake", input=question, tools=tools)
        message, call = answer.output
        assert (message.type, call.type, call.name) == ("message", "function_call", "get_weather")
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Dry."}
        await client.responses.create(
            model="fake", input=[*question, *answer.output, result], tools=tools
        )
        await client.responses.create(
            model="fake", input=[result], tools=tools, previous_response_id=answer.id
        )
        assert processor.prompts[-1] == processor.prompts[-2]
        assert "Dry." in processor.prompts[-1]
        async with client.responses.stream(model="fake", input=question, tools=tools) as stream:
            grown = [
                event.snapshot
                async for event in stream
                if event.type == "response.function_call_arguments.delta"
            ]
            final = await stream.get_final_response()
        assert grown[-1] == '{"town": "Oslo"}'
        assert final.output[1].parsed_arguments == {"town": "Oslo"}
        again = [*question, *final.output, result | {"call_id": final.output[1].call_id}]
        await client.responses.create(model="fake", input=again, tools=tools)
        assert processor.prompts[-1] == processor.prompts[1]


async def test_a_tool_made_of_a_model_is_parsed_into_it() -> None:
    class GetWeather(BaseModel):
        town: str

    flat = pydantic_function_tool(GetWeather)["function"]
    tool: Any = {"type": "function", **flat}
    async with talking_to(tag("GetWeather", town="Oslo")) as (client, *_):
        parsed = await client.responses.parse(
            model="fake", input="Rain?", tools=[tool], tool_choice="required"
        )
        (call,) = parsed.output
        assert call.parsed_arguments == {"town": "Oslo"}


async def test_thoughts_go_back_as_the_client_has_them() -> None:
    async with model_says("Hm.", "</think>", "Dry.") as http:
        client = official(http)
        first = await client.responses.create(
            model="fake", input="Rain?", include=["reasoning.encrypted_content"], store=False
        )
        assert [item.type for item in first.output] == ["reasoning", "message"]
        assert first.output[0].content[0].text == "Hm."
        again: Any = [{"role": "user", "content": "Rain?"}, *first.output, user("Sure?")]
        assert (await client.responses.create(model="fake", input=again)).output_text == "Dry."


async def test_a_failure_is_an_event_of_the_client() -> None:
    settings = Settings(model="fake", request_timeout_s=0.5)
    async with serving(settings, begins) as (http, *_):
        stream = await official(http).responses.create(model="fake", input="x", stream=True)
        told = [event async for event in stream]
    assert told[-1].type == "response.failed"
    assert told[-1].response.error.code == "server_error"
    assert "--request-timeout-s" in told[-1].response.error.message


@pytest.mark.extras
async def test_a_file_goes_on_as_a_chats_by_its_bytes_and_by_its_id() -> None:
    document = pdf([Page((60, 80))] * 2)
    data: Any = {"type": "input_file", "filename": "a.pdf", "file_data": data_url(document)}
    async with talking_to("Two.") as (client, engine, _):
        uploaded = await client.files.create(file=("a.pdf", document), purpose="user_data")
        by_id: Any = {"type": "input_file", "file_id": uploaded.id, "detail": "low"}
        seen = await client.files.create(file=("a.png", png()), purpose="vision")
        picture: Any = {"type": "input_image", "file_id": seen.id, "detail": "high"}
        for part, num_images in ((data, 2), (by_id, 2), (picture, 1)):
            asked: Any = {"model": "fake", "input": [user(part, "How many pages?")]}
            answer = await client.responses.create(**asked)
            assert answer.output_text == "Two."
            assert len(engine.requests[-1].images) == num_images
            assert answer.usage is not None
            details = answer.usage.input_tokens_details.model_extra or {}
            assert details["tokens_per_image"] == [64] * num_images
            stream = await client.responses.create(**asked, stream=True)
            *_, last = [event async for event in stream]
            assert last.type == "response.completed"
            assert last.response.usage == answer.usage
        then = await client.responses.create(
            model="fake", input="And then?", previous_response_id=answer.id
        )
        assert then.usage is not None
        assert len(engine.requests[-1].images) == 1
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.create(
                model="fake", input=[user({"type": "input_file", "file_id": "file-x"})]
            )
        assert caught.value.param == "input[0].content[0].file_id"
