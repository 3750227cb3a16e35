"""`tool_choice`: which tools the model is shown, and what form its answer must have."""

import json
from typing import Any

import pytest

from tests.server.requests import events
from tests.server.tools.scripted_model import CLOCK, ToolProcessor, ask, calling, joined, only, tag
from tests.server.tools.templates import LLAMA

pytestmark = pytest.mark.anyio


async def test_tool_choice_none_hides_the_tools_and_reads_no_calls() -> None:
    processor = ToolProcessor()
    async with calling(tag(town="Oslo"), processor=processor) as (client, *_):
        choice = (await ask(client, tool_choice="none"))["choices"][0]
        assert "get_weather" not in processor.prompts[-1]
        await ask(client)
        assert "get_weather" in processor.prompts[-1]
    assert choice["message"]["content"] == tag(town="Oslo")
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "optional", "max_calls", "num_tools"),
    [
        ({"tool_choice": "required"}, False, 16, 2),
        ({"tool_choice": "required", "parallel_tool_calls": False}, False, 1, 2),
        ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, False, 1, 1),
        ({"parallel_tool_calls": False}, True, 1, 2),
        ({"tools": [{**CLOCK, "function": {"name": "x", "strict": True}}]}, True, 16, 1),
    ],
)
async def test_a_choice_that_binds_is_a_form_for_the_engine(
    fields: dict[str, Any], optional: bool, max_calls: int, num_tools: int
) -> None:
    async with calling("x") as (client, engine, _):
        await ask(client, **fields)
    structure = engine.requests[0].sampling.structure
    pieces = json.loads(structure.source)
    assert (structure.kind, structure.param) == ("json_pieces", "tools")
    assert (pieces["optional"], pieces["most"], len(pieces["alternatives"])) == (
        optional, max_calls, num_tools,
    )  # fmt: skip


async def test_a_choice_that_does_not_bind_leaves_the_text_free() -> None:
    async with calling("x") as (client, engine, _):
        await ask(client)
        await ask(client, tool_choice="auto", parallel_tool_calls=True)
    assert [request.sampling.structure for request in engine.requests] == [None, None]


async def test_tools_that_are_not_allowed_are_neither_shown_nor_called() -> None:
    processor = ToolProcessor()
    async with calling(tag(town="Oslo"), processor=processor) as (client, engine, _):
        hidden = (await ask(client, tool_choice=only("get_time")))["choices"][0]
        both = (await ask(client, tool_choice=only("get_time", "get_weather")))["choices"][0]
        streamed = events(await ask(client, tool_choice=only("get_time"), stream=True))
    assert [name in processor.prompts[0] for name in ("get_time", "get_weather")] == [True, False]
    assert (hidden["message"]["content"], hidden["finish_reason"]) == (tag(town="Oslo"), "stop")
    assert joined(streamed) == (tag(town="Oslo"), [], "stop")
    assert both["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert [request.sampling.structure for request in engine.requests] == [None] * 3


async def test_one_of_the_allowed_tools_can_be_required() -> None:
    async with calling("x") as (client, engine, _):
        await ask(client, tool_choice=only("get_time", mode="required"))
    pieces = json.loads(engine.requests[0].sampling.structure.source)
    assert not pieces["optional"]
    ((begin, *_),) = pieces["alternatives"]
    assert begin == ['{"name": "get_time", "arguments": ']


async def test_bare_calls_are_one_a_turn_and_name_their_parameters() -> None:
    async with calling("x", processor=ToolProcessor(LLAMA)) as (client, engine, _):
        await ask(client, tool_choice="required")
    pieces = json.loads(engine.requests[0].sampling.structure.source)
    assert (pieces["opened"], pieces["most"], pieces["closed"]) == ([""], 1, [])
    assert pieces["alternatives"][0][0] == ['{"name": "get_weather", "parameters": ']
