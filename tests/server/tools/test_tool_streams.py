"""Calls in streams: sent as they are written, and the same as in a whole answer."""

from typing import Any

import pytest

from tests.server.requests import events
from tests.server.tools.scripted_model import ask, calling, joined, tag

pytestmark = pytest.mark.anyio


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


CUT = tag(town="Oslo").partition("slo")[0]


@pytest.mark.parametrize(
    ("text", "finish", "content", "calls", "reason"),
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
async def test_cut_and_malformed_calls_are_read_the_same_whole_and_streamed(
    text: str, finish: Any, content: str, calls: list[list[str]], reason: str
) -> None:
    async with calling(*text, finish=finish) as (client, *_):
        whole = (await ask(client))["choices"][0]
        chunks = events(await ask(client, stream=True))
    message = whole["message"]
    functions = [call["function"] for call in message.get("tool_calls", ())]
    assert [[each["name"], each["arguments"]] for each in functions] == calls
    assert (message["content"] or "", whole["finish_reason"]) == (content, reason)
    assert joined(chunks) == (content, calls, reason)


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
