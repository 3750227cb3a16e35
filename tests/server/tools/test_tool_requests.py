"""What clients send about tools and get back, over HTTP with a real chat template."""

import json
from typing import Any

import pytest

from server.openai.tools.dialects import tool_support
from tests.server.asking import events
from tests.server.tools.calling import CLOCK, TOOLS, WEATHER, ToolProcessor, ask, calling, tag
from tests.server.tools.templates import (
    LLAMA,
    LLAMA_TAGGED,
    MISTRAL,
    MISTRAL_ARGS,
    QWEN,
    UNKNOWN,
    UNKNOWN_BARE,
    WITHOUT,
)

pytestmark = pytest.mark.anyio

CALL = {"id": "call_1", "type": "function",
        "function": {"name": "get_weather", "arguments": '{"town": "Oslo"}'}}  # fmt: skip
TURNS = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "Dry."},
]


@pytest.mark.parametrize(
    ("template", "form", "in_parts"),
    [
        (QWEN, "hermes", True),
        (MISTRAL, "mistral", False),
        (MISTRAL_ARGS, "mistral-args", False),
        (LLAMA, "llama", False),
        (LLAMA_TAGGED, "llama", False),
    ],
)
def test_how_a_model_writes_calls_is_read_off_its_template(
    template: str, form: str, in_parts: bool
) -> None:
    dialect = tool_support(ToolProcessor(template)).dialect
    assert dialect is not None
    assert (dialect.form.name, dialect.in_parts) == (form, in_parts)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (WITHOUT, "does not show tools"),
        (UNKNOWN, "unknown form"),
        (UNKNOWN_BARE, "unknown form"),
    ],
)
async def test_tools_that_a_template_cannot_use_are_refused_with_the_reason(
    template: str, reason: str
) -> None:
    async with calling("hi", processor=ToolProcessor(template)) as (client, *_):
        error = (await ask(client, 400))["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "tools")
        assert reason in error["message"]
        assert (await ask(client, tools=[], tool_choice="none"))["choices"]


async def test_a_call_is_a_call_and_not_content() -> None:
    async with calling(tag(town="Oslo")) as (client, *_):
        choice = (await ask(client))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["type"] == "function"
    assert call["function"] == {"name": "get_weather", "arguments": '{"town": "Oslo"}'}
    assert "index" not in call


async def test_an_answer_without_calls_is_as_ever() -> None:
    async with calling("Dry <tool") as (client, *_):
        choice = (await ask(client))["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Dry <tool", "refusal": None}
    assert choice["finish_reason"] == "stop"


async def test_a_stream_tells_text_then_the_name_then_the_arguments() -> None:
    text = f"Let me see.\n{tag(town='Oslo')}\n{tag('get_time')}"
    pieces = [text[at : at + 3] for at in range(0, len(text), 3)]
    async with calling(*pieces) as (client, *_):
        chunks = events(await ask(client, stream=True))
    choices = [chunk["choices"][0] for chunk in chunks]
    deltas = [choice["delta"] for choice in choices]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    first, *written, second, none = calls
    assert first.pop("id") != second.pop("id")
    named = {"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    assert first == named
    assert len(written) > 4
    assert all(call.keys() == {"index", "function"} for call in written)
    assert all(call["index"] == 0 and call["function"].keys() == {"arguments"} for call in written)
    assert "".join(call["function"]["arguments"] for call in written) == '{"town": "Oslo"}'
    assert second["index"] == 1
    assert none == {"index": 1, "function": {"arguments": "{}"}}
    assert choices[-1]["finish_reason"] == "tool_calls"


def joined(chunks: list[Any]) -> tuple[str, list[list[str]], str]:
    """What a client makes of a stream: content, name and arguments of each call, how it ended."""
    content, calls, finish = "", [], ""
    for choice in (chunk["choices"][0] for chunk in chunks):
        content += choice["delta"].get("content") or ""
        finish = choice["finish_reason"] or finish
        for call in choice["delta"].get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls)
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    return content, calls, finish


CUT = tag(town="Oslo").partition("slo")[0]


@pytest.mark.parametrize(
    ("text", "finish", "content", "calls", "told"),
    [
        (f"I look.\n{CUT}", "length", "I look.", [["get_weather", '{"town": "O']], "length"),
        (CUT, "stop", "", [["get_weather", '{"town": "O']], "tool_calls"),
        (f"{tag('get_time')}\n{CUT[:20]}", "length", CUT[:20], [["get_time", "{}"]], "length"),
        (CUT[:20], "length", CUT[:20], [], "length"),
        (tag("nobody"), "stop", tag("nobody"), [], "stop"),
        (f"{tag('get_time')} {tag('nobody')}", "stop", tag("nobody"), [["get_time", "{}"]],
         "tool_calls"),
        (tag(town="Oslo").replace('"}}', '"]}}'), "stop", "}\n</tool_call>",
         [["get_weather", '{"town": "Oslo"]']], "tool_calls"),
    ],
)  # fmt: skip
async def test_cut_and_malformed_calls_are_told_the_same_whole_and_streamed(
    text: str, finish: Any, content: str, calls: list[list[str]], told: str
) -> None:
    async with calling(*text, finish=finish) as (client, *_):
        whole = (await ask(client))["choices"][0]
        chunks = events(await ask(client, stream=True))
    message = whole["message"]
    functions = [call["function"] for call in message.get("tool_calls", ())]
    assert [[each["name"], each["arguments"]] for each in functions] == calls
    assert (message["content"] or "", whole["finish_reason"]) == (content, told)
    assert joined(chunks) == (content, calls, told)


async def test_each_of_n_choices_has_its_own_calls_whole_and_streamed() -> None:
    async with calling("<tool_", "call>\n", *tag(town="Rom")[12:]) as (client, *_):
        whole = await ask(client, n=3)
        chunks = events(await ask(client, n=3, stream=True))
    assert len({c["message"]["tool_calls"][0]["id"] for c in whole["choices"]}) == 3
    arguments = ["", "", ""]
    for choice in [choice for chunk in chunks for choice in chunk["choices"]]:
        for call in choice["delta"].get("tool_calls", ()):
            arguments[choice["index"]] += call["function"]["arguments"]
    assert arguments == ['{"town": "Rom"}'] * 3


async def test_tool_choice_none_hides_the_tools_and_reads_no_calls() -> None:
    processor = ToolProcessor()
    async with calling(tag(town="Oslo"), processor=processor) as (client, *_):
        choice = (await ask(client, tool_choice="none"))["choices"][0]
        assert "get_weather" not in processor.prompts[-1]
        await ask(client)
        assert "get_weather" in processor.prompts[-1]
    assert choice["message"]["content"] == tag(town="Oslo")
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("template", [QWEN, MISTRAL, MISTRAL_ARGS, LLAMA])
async def test_calls_and_results_of_earlier_turns_are_shown_to_the_model(template: str) -> None:
    processor = ToolProcessor(template)
    turns = [*TURNS, {"role": "assistant", "content": [{"type": "text", "text": "Dry it is."}]}]
    turns.append({"role": "user", "content": [{"type": "text", "text": "And now?"}]})
    async with calling("Dry.", processor=processor) as (client, *_):
        await ask(client, messages=turns)
    prompt = processor.prompts[-1]
    places = [prompt.index(x) for x in ("Rain?", '"Oslo"', "Dry.", "Dry it is.", "And now?")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("fields", "optional", "most", "num_tools"),
    [
        ({"tool_choice": "required"}, False, 16, 2),
        ({"tool_choice": "required", "parallel_tool_calls": False}, False, 1, 2),
        ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, False, 1, 1),
        ({"parallel_tool_calls": False}, True, 1, 2),
        ({"tools": [{**CLOCK, "function": {"name": "x", "strict": True}}]}, True, 16, 1),
    ],
)
async def test_a_choice_that_binds_is_a_form_for_the_engine(
    fields: dict[str, Any], optional: bool, most: int, num_tools: int
) -> None:
    async with calling("x") as (client, engine, _):
        await ask(client, **fields)
    structure = engine.requests[0].sampling.structure
    pieces = json.loads(structure.source)
    assert (structure.kind, structure.param) == ("json_pieces", "tools")
    assert (pieces["optional"], pieces["most"], len(pieces["alternatives"])) == (
        optional, most, num_tools,
    )  # fmt: skip


async def test_a_choice_that_does_not_bind_leaves_the_text_free() -> None:
    async with calling("x") as (client, engine, _):
        await ask(client)
        await ask(client, tool_choice="auto", parallel_tool_calls=True)
    assert [request.sampling.structure for request in engine.requests] == [None, None]


NAMED = {"type": "function", "function": {"name": "nobody"}}
BAD_ARGUMENTS = CALL | {"function": {"name": "f", "arguments": "[]"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": NAMED}, "tool_choice.function.name"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
     "tools[0].function.parameters"),
    ({"tools": TOOLS * 100}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"messages": [*TURNS[:2], TURNS[2] | {"tool_call_id": "x"}]}, "messages[2].tool_call_id"),
    ({"messages": [TURNS[0], {"role": "assistant", "content": None}]}, "messages[1].content"),
    ({"messages": [TURNS[0], {"role": "assistant", "tool_calls": [BAD_ARGUMENTS]}]},
     "messages[1].tool_calls[0].function.arguments"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED)
async def test_what_does_not_fit_together_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    async with calling("x") as (client, engine, _):
        error = (await ask(client, 400, **fields))["error"]
    assert error["param"] == param, error
    assert engine.requests == []


async def test_tokenize_counts_the_tools() -> None:
    body = {"model": "fake", "messages": TURNS[:1]}
    async with calling("x") as (client, *_):
        bare = (await client.post("/tokenize", json=body)).json()["count"]
        counted = (await client.post("/tokenize", json=body | {"tools": TOOLS})).json()["count"]
    assert counted > bare + 10
