"""What clients send about tools and get back, over HTTP with a real chat template."""

import json
import threading
from typing import Any

import pytest

from server.openai.request import translate
from server.openai.tools.template_support import tool_support
from tests.server.tools.scripted_model import TOOLS, WEATHER, ToolProcessor, ask, calling, only, tag
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


async def test_many_tools_and_turns_are_checked_where_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """128 tools of 100 properties held the event loop for 60 ms."""
    threads = []
    for name in ("check_tools", "check_turns", "check_schema", "tool_use", "template_messages"):
        checked = getattr(translate, name)

        def noted(*given: Any, checked: Any = checked) -> Any:
            threads.append(threading.current_thread())
            return checked(*given)

        monkeypatch.setattr(translate, name, noted)
    async with calling("hi") as (client, *_):
        await ask(client)
        body = {"model": "fake", "messages": TURNS, "tools": TOOLS}
        assert (await client.post("/tokenize", json=body)).status_code == 200
    assert len(threads) == 8
    assert threading.main_thread() not in threads


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


@pytest.mark.parametrize("arguments", ['{"town": "Os', "[1]", "", '{"a": ' * 2000])
async def test_arguments_that_are_no_object_go_back_to_the_model_as_text(arguments: str) -> None:
    processor = ToolProcessor()
    wrong = CALL | {"function": {"name": "get_weather", "arguments": arguments}}
    turns = [TURNS[0], {"role": "assistant", "tool_calls": [wrong]}, TURNS[2]]
    async with calling("Dry.", processor=processor) as (client, *_):
        await ask(client, messages=turns)
    assert f'"arguments": {json.dumps(arguments)}' in processor.prompts[-1]


async def test_a_custom_tool_is_refused_in_words() -> None:
    tools = [*TOOLS, {"type": "custom", "custom": {"name": "a"}}]
    async with calling("x") as (client, *_):
        error = (await ask(client, 400, tools=tools))["error"]
        chosen = (await ask(client, 400, tool_choice={"type": "custom"}))["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "tools[2].type")
    assert "Custom tools are not: give tools of type 'function'" in error["message"]
    assert (chosen["code"], chosen["param"]) == ("invalid_value", "tool_choice.type")
    assert "supported are 'function', 'allowed_tools'" in chosen["message"]


NAMED = {"type": "function", "function": {"name": "nobody"}}
ALLOWED = "tool_choice.allowed_tools"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": NAMED}, "tool_choice.function.name"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tool_choice": {}}, "tool_choice.type"),
    ({"tool_choice": []}, "tool_choice"),
    ({"tool_choice": NAMED | {"x": 1}}, "tool_choice.x"),
    ({"tool_choice": only("get_time", "nobody")}, f"{ALLOWED}.tools[1].function.name"),
    ({"tool_choice": only()}, f"{ALLOWED}.tools"),
    ({"tool_choice": only("get_time", mode="none")}, f"{ALLOWED}.mode"),
    ({"tool_choice": {"type": "allowed_tools"}}, ALLOWED),
    ({"tools": [], "tool_choice": only("get_time")}, f"{ALLOWED}.tools[0].function.name"),
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
