"""`POST /v1/responses` on a scripted engine: shapes; streams say what whole answers do."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from lookm.types import Request, TokenEvent, TokenLogprob, TopLogprob
from server.settings import Settings
from tests.server.requests import CHAT, chat, data_url, image, png, says, serving, word_events
from tests.server.responses.exchange import (
    CLOCK,
    RESPONSES,
    WEATHER,
    asking,
    checked,
    kinds,
    streamed,
    user,
    whole,
    without_ids,
)
from tests.server.test_logprobs import tells
from tests.server.test_reasoning import model_says
from tests.server.tools.scripted_model import ToolProcessor, calling, tag

pytestmark = pytest.mark.anyio

MESSAGE = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done",
           "content_part.done", "output_item.done"]  # fmt: skip
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done"]  # fmt: skip
THOUGHT = ["output_item.added", "content_part.added", "reasoning_text.delta",
           "reasoning_text.done", "content_part.done", "output_item.done"]  # fmt: skip
BEGIN, END = ["created", "in_progress"], ["completed"]


async def test_a_text_is_answered_with_a_message() -> None:
    async with serving(Settings(model="fake"), says) as (client, *_):
        answer = await whole(client, asking(metadata={"a": "b"}, instructions="Be brief."))
    (message,) = answer["output"]
    assert message["content"] == [
        {"type": "output_text", "text": "one two three", "annotations": [], "logprobs": []}
    ]
    assert (message["role"], message["status"], answer["status"]) == (
        "assistant", "completed", "completed",
    )  # fmt: skip
    assert answer["metadata"] == {"a": "b"}
    assert answer["instructions"] == "Be brief."
    usage = answer["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]
    assert usage["kv_cache"]["method"] == "full"


async def test_a_stream_tells_the_same_as_a_whole_answer() -> None:
    async with serving(Settings(model="fake"), says) as (client, *_):
        told = await streamed(client, asking())
        answer = await whole(client, asking())
    assert kinds(told) == BEGIN + MESSAGE + END
    assert without_ids(told[-1]["response"]) == without_ids(answer)
    assert told[0]["response"]["usage"] is None
    assert len({event["response"]["id"] for event in told if "response" in event}) == 1


async def test_a_response_is_prepared_as_the_chat_that_it_is() -> None:
    """The same ids, sampling and policy, whichever way it came."""
    parts = [image(), "Which one?", image(data_url(png("blue")))]
    sampled = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"], "min_p": 0.1}
    policy = {"kv_cache": "look-m@0.5", "cache_salt": "s", "priority": 2}
    answered = {"role": "assistant", "content": "A dot."}
    turns = [
        {"role": "system", "content": "Be brief."},
        *chat("Hi.")["messages"],
        answered,
        *chat(*parts)["messages"],
    ]
    items = [
        user("Hi."),
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "A dot.", "annotations": []}]},
        user(data_url(), "Which one?", data_url(png("blue"))),
    ]  # fmt: skip
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        await client.post(CHAT, json=chat(messages=turns) | sampled | policy)
        await whole(client, asking(items, instructions="Be brief.") | sampled | policy)
        asked, same = engine.requests
    assert same.prompt_ids == asked.prompt_ids
    assert (same.sampling, same.policy, same.salt, same.priority) == (
        asked.sampling, asked.policy, asked.salt, asked.priority,
    )  # fmt: skip
    assert [each.digest for each in same.images] == [each.digest for each in asked.images]


async def test_what_was_kept_is_in_usage_and_in_a_header() -> None:
    async with serving(Settings(model="fake"), says) as (client, *_):
        body = asking([user(data_url(), "What?")], kv_cache="look-m@0.2")
        body["usage_options"] = {"timings": True}
        response = await client.post(RESPONSES, json=body)
        told = await streamed(client, body)
    usage = response.json()["usage"]
    assert usage["kv_cache"]["kept_tokens"] < usage["kv_cache"]["prompt_tokens"]
    assert usage["input_tokens_details"]["image_tokens"] == 64
    assert float(response.headers["x-lookm-kept-ratio"]) < 0.5
    assert told[-1]["response"]["usage"]["kv_cache"] == usage["kv_cache"]


async def test_an_answer_that_is_cut_is_incomplete_whole_and_streamed() -> None:
    async with calling("one", " two", finish="length") as (client, *_):
        told = await streamed(client, asking())
        answer = await whole(client, asking())
    assert told[-1]["type"] == "response.incomplete"
    for each in (told[-1]["response"], answer):
        assert each["status"] == "incomplete"
        assert each["incomplete_details"] == {"reason": "max_output_tokens"}
        assert each["output"][0]["status"] == "incomplete"


async def test_an_answer_of_nothing_is_an_empty_message() -> None:
    async with calling("") as (client, *_):
        told = await streamed(client, asking())
        answer = await whole(client, asking())
    assert without_ids(told[-1]["response"]) == without_ids(answer)
    assert [item["content"][0]["text"] for item in answer["output"]] == [""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (tag(town="Oslo"), [CALL]),
        (f"Let me see.\n{tag(town='Oslo')}\n{tag('get_time')}", [MESSAGE, CALL, CALL]),
        (f"{tag('get_time')}\nSo much.", [CALL, MESSAGE]),
        ("Dry.", [MESSAGE]),
    ],
)
async def test_calls_are_items_of_their_own(text: str, expected: list[list[str]]) -> None:
    pieces = [text[at : at + 3] for at in range(0, len(text), 3)]
    async with calling(*pieces) as (client, *_):
        body = asking(tools=[WEATHER, CLOCK])
        told = await streamed(client, body)
        answer = await whole(client, body)
    assert kinds(told) == BEGIN + [kind for item in expected for kind in item] + END
    assert without_ids(told[-1]["response"]) == without_ids(answer)
    calls = [item for item in answer["output"] if item["type"] == "function_call"]
    for call in calls:
        assert call["call_id"].startswith("call_")
        assert call["id"] != call["call_id"]
        assert json.loads(call["arguments"]) == (
            {"town": "Oslo"} if "weather" in call["name"] else {}
        )


async def test_the_choice_of_a_tool_is_the_chats() -> None:
    async with calling(tag(town="Oslo")) as (client, engine, _):
        named = {"type": "function", "name": "get_weather"}
        allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
        for choice in (named, allowed, "required"):
            tools = [WEATHER] if choice == "required" else [WEATHER, CLOCK]
            answer = await whole(client, asking(tools=tools, tool_choice=choice))
            assert answer["tool_choice"] == choice
            assert [tool["name"] for tool in answer["tools"]] == [tool["name"] for tool in tools]
        forms = {request.sampling.structure.source for request in engine.requests}
    assert all("get_weather" in form and "get_time" not in form for form in forms)


async def test_turns_with_calls_are_shown_to_the_model_as_a_chats() -> None:
    processor = ToolProcessor()
    noon = [{"type": "input_text", "text": "Noon."}]
    called = {"type": "function_call", "call_id": "c1", "name": "get_weather"}
    items = [
        user("Rain?"),
        {"type": "reasoning", "id": "rs_1", "summary": []},
        called | {"arguments": '{"town": "Oslo"}'},
        called | {"call_id": "c2", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Dry."},
        {"type": "function_call_output", "call_id": "c2", "output": noon},
        {"type": "message", "role": "assistant", "content": "Dry it is."},
        {"role": "user", "content": "And now?"},
    ]
    async with calling("Dry.", processor=processor) as (client, *_):
        await whole(client, asking(items, tools=[WEATHER, CLOCK]))
    prompt = processor.prompts[-1]
    shown = ("Rain?", '"Oslo"', '"get_time", "arg', "Dry.", "Noon.", "Dry it is.", "And now?")
    places = [prompt.index(each) for each in shown]
    assert places == sorted(places)
    assert prompt.count("<|im_start|>assistant") == 3  # the calls are one turn


async def test_thoughts_are_an_item_and_are_counted() -> None:
    async with model_says("<think>", "Hm.", " So.", "</think>", "Dry", ".") as client:
        body = asking(max_output_tokens=99)
        told = await streamed(client, body)
        answer = await whole(client, body)
    assert kinds(told) == BEGIN + THOUGHT + MESSAGE + END
    assert without_ids(told[-1]["response"]) == without_ids(answer)
    thought, message = answer["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm. So."}]
    assert message["content"][0]["text"] == "Dry."
    assert 0 < answer["usage"]["output_tokens_details"]["reasoning_tokens"] < 6


@pytest.mark.parametrize("form", ["json_object", "json_schema", "text"])
async def test_the_form_of_the_text_is_the_chats_response_format(form: str) -> None:
    schema = {"type": "object", "properties": {"a": {"const": None}}}
    given: dict[str, Any] = {"type": form}
    if form == "json_schema":
        given |= {"name": "answer", "schema": schema, "strict": True}
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        answer = await whole(client, asking(text={"format": given}))
        (request,) = engine.requests
    structure = request.sampling.structure
    assert (structure and structure.kind) == (None if form == "text" else form)
    if form == "json_schema":
        assert json.loads(structure.source) == schema
    assert answer["text"]["format"]["type"] == form


async def test_logprobs_are_in_deltas_and_add_up() -> None:
    """Those of a token whose text is held back come with the text."""
    async with serving(Settings(model="fake"), tells) as (client, *_):
        answer = await whole(client, asking(top_logprobs=2))
        told = await streamed(client, asking(top_logprobs=2))
        only = await whole(client, asking(include=["message.output_text.logprobs"]))
        without = await whole(client, asking())
    entries = logprobs_of(answer)
    assert [entry["token"] for entry in entries] == ["one", " two"]
    assert [top["token"] for top in entries[0]["top_logprobs"]] == ["one", "x"]
    (delta,) = [event for event in told if event["type"].endswith("output_text.delta")]
    assert delta["logprobs"] == entries == logprobs_of(told[-1]["response"])
    assert [entry["top_logprobs"] for entry in logprobs_of(only)] == [[], []]
    assert logprobs_of(without) == []


async def test_logprobs_are_of_what_is_said_and_not_of_thoughts_or_calls() -> None:
    pieces = ["<think>", "Hm.", "</think>", "Dry", ".", "<tool_call>", tag("get_time")[11:]]

    async def script(request: Request) -> AsyncIterator[TokenEvent]:
        for event in word_events(request, pieces):
            yield replace(event, logprobs=TokenLogprob(7, event.text, event.text.encode(), -0.5))

    processor = ToolProcessor()
    processor.template = "</think>"
    load = {"load_processor": lambda: processor}
    async with serving(Settings(model="fake"), script, **load) as (client, *_):
        body = asking(top_logprobs=1, tools=[CLOCK])
        answer = await whole(client, body)
        told = await streamed(client, body)
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call"]
    assert without_ids(told[-1]["response"]) == without_ids(answer)
    assert [entry["token"] for entry in answer["output"][1]["content"][0]["logprobs"]] == [
        "Dry",
        ".",
    ]


async def test_a_large_answer_with_logprobs_is_whole() -> None:
    """It is written in a thread; chats of that size are written in parts."""
    async with serving(Settings(model="fake"), words(400)) as (client, *_):
        answer = await whole(client, asking(top_logprobs=20))
        stored = (await client.get(f"{RESPONSES}/{answer['id']}")).json()
    assert len(logprobs_of(answer)) == 400
    assert stored == answer


def words(num_words: int) -> Any:
    async def script(request: Request) -> AsyncIterator[TokenEvent]:
        top = tuple(TopLogprob(n, "x", b"x", -1.0) for n in range(20))
        for event in word_events(request, ["word "] * num_words):
            yield replace(event, logprobs=TokenLogprob(7, "word ", b"word ", -0.5, top))

    return script


def logprobs_of(answer: Any) -> Any:
    return answer["output"][0]["content"][0]["logprobs"]


async def test_a_failure_in_the_stream_is_its_one_terminal_event(client: httpx.AsyncClient) -> None:
    response = await client.post(RESPONSES, json=asking("fake:error", stream=True))
    told = checked(response.text)
    failed = told[-1]["response"]
    assert told[-1]["type"] == "response.failed"
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert failed["output"][0]["status"] == "incomplete"
    assert failed["output"][0]["content"][0]["text"] == "word0 word1"
    gone = await client.get(f"{RESPONSES}/{failed['id']}")
    assert gone.status_code == 404
    assert failed["store"] is False
