"""`reasoning_content`: what is thought and what is answered, however the text is cut."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from server.fake.processor import FakeProcessor
from server.openai.reasoning import TAGS, Thinking, ThinkingReader, split, thinking
from server.settings import Settings
from tests.server.requests import CHAT, chat, events, serving
from tests.server.tools.scripted_model import TOOLS, ToolProcessor, tag, writes
from tests.server.tools.templates import QWEN

pytestmark = pytest.mark.anyio

OPTIONAL = Thinking("<think>", "</think>")
BEGUN = Thinking("<think>", "</think>", begun=True)
STRIPS = "{%- if '</think>' in '' %}{% endif -%}"  # as Qwen3's, which leaves earlier thoughts out

CASES = [
    (OPTIONAL, "<think>\nHm. 1 < 2\n</think>\n\nYes.", "Hm. 1 < 2", "Yes."),
    (OPTIONAL, "\n<think>Hm.</think>Yes.", "Hm.", "Yes."),
    (OPTIONAL, "<think>\n\n</think>\n\nYes.", "", "Yes."),
    (OPTIONAL, " Yes, <think>no</think> really.", "", " Yes, <think>no</think> really."),
    (OPTIONAL, "<thin", "", "<thin"),
    (OPTIONAL, "<think>Hm. </thi", "Hm. </thi", ""),
    (OPTIONAL, "<think>a</think>b</think> c", "a", "b</think> c"),
    (OPTIONAL, "", "", ""),
    (BEGUN, "\nHm.\n\nSo.\n</think>\n\nYes.\n", "Hm.\n\nSo.", "Yes.\n"),
    (BEGUN, "<think>Hm.</think>Yes.", "Hm.", "Yes."),
    (BEGUN, "It was never closed. ", "It was never closed.", ""),
    (BEGUN, "</think>Yes.", "", "Yes."),
    (BEGUN, " \n", "", ""),
    (Thinking("[THINK]", "[/THINK]"), "[THINK]Hm.[/THINK]Yes. [x]", "Hm.", "Yes. [x]"),
]


@pytest.mark.parametrize(("model", "text", "thought", "answer"), CASES)
def test_every_cut_gives_the_same(model: Thinking, text: str, thought: str, answer: str) -> None:
    cuts = [[text], list(text)]
    cuts += [[text[:i], text[i:j], text[j:]] for i in range(len(text)) for j in range(i, len(text))]
    for pieces in cuts:
        assert split(pieces, ThinkingReader(model)) == (thought, answer), pieces


def test_what_is_certain_is_not_held_back() -> None:
    reader = ThinkingReader(BEGUN)
    assert [reader.push(each) for each in ("Hm", " so", " </", "b> ", "</think>", "\n", "Yes")] == [
        ("Hm", ""), (" so", ""), ("", ""), (" </b>", ""), ("", ""), ("", ""), ("", "Yes"),
    ]  # fmt: skip


class Templated(FakeProcessor):
    def __init__(self, template: str, prompt: str = "") -> None:
        self.template = template
        self._prompt = prompt

    def rendered(self, messages: Any, tools: Any = ()) -> str:
        return self._prompt


def test_the_template_says_whether_and_how_a_model_thinks() -> None:
    assert thinking(FakeProcessor()) is None
    for opening, closing in TAGS:
        source = f"...split('{closing}')..."
        assert thinking(Templated(source, "user: ?")) == Thinking(opening, closing)
        begun = thinking(Templated(source, f"user: ?\n{opening}\n"))
        assert begun == Thinking(opening, closing, begun=True)
        ended = thinking(Templated(source, f"{opening}\n\n{closing}\n\n"))
        assert ended == Thinking(opening, closing)


@asynccontextmanager
async def model_says(
    *pieces: str, begun: bool = True, **kwargs: Any
) -> AsyncIterator[httpx.AsyncClient]:
    processor = ToolProcessor(QWEN + ("<think>\n" if begun else ""))
    processor.template = STRIPS
    script = writes(*pieces, **kwargs)
    settings = Settings(model="fake")
    async with serving(settings, script, load_processor=lambda: processor) as (client, *_):
        yield client


def deltas(text: str, field: str) -> str:
    choices = [chunk["choices"][0] for chunk in events(text)]
    return "".join(choice["delta"].get(field) or "" for choice in choices)


@pytest.mark.parametrize("begun", [True, False])
async def test_it_is_split_off_whole_and_in_a_stream(begun: bool) -> None:
    opening = "" if begun else "<think>"
    pieces = (opening, "Hm", ".\n</th", "ink", ">\n", "\nYes", ".")
    async with model_says(*pieces, begun=begun) as client:
        (choice,) = (await client.post(CHAT, json=chat())).json()["choices"]
        streamed = (await client.post(CHAT, json=chat(stream=True, n=2))).text
    assert choice["message"]["reasoning_content"] == "Hm."
    assert choice["message"]["content"] == "Yes."
    for index in (0, 1):
        of_choice = [
            chunk["choices"][0]["delta"]
            for chunk in events(streamed)
            if chunk["choices"][0]["index"] == index
        ]
        assert "".join(each.get("reasoning_content") or "" for each in of_choice) == "Hm."
        assert "".join(each.get("content") or "" for each in of_choice) == "Yes."


async def test_an_answer_cut_while_it_thinks_has_no_content() -> None:
    async with model_says("Let me", " see", finish="length") as client:
        (choice,) = (await client.post(CHAT, json=chat())).json()["choices"]
        streamed = (await client.post(CHAT, json=chat(stream=True))).text
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"] == "Let me see"
    assert deltas(streamed, "reasoning_content") == "Let me see"
    assert deltas(streamed, "content") == ""


async def test_tools_are_called_after_thinking_about_them() -> None:
    thought = f"I could write {tag(town='Rome')}"
    async with model_says(thought, "</think>", tag(town="Oslo")) as client:
        body = chat(tools=TOOLS)
        (choice,) = (await client.post(CHAT, json=body)).json()["choices"]
        streamed = (await client.post(CHAT, json=body | {"stream": True})).text
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"town": "Oslo"}'
    assert choice["message"]["reasoning_content"] == thought
    assert deltas(streamed, "reasoning_content") == thought


async def test_an_enforced_form_is_the_answer_from_its_first_token_on() -> None:
    async with model_says('{"a": 1}') as client:
        body = chat(response_format={"type": "json_object"})
        (choice,) = (await client.post(CHAT, json=body)).json()["choices"]
    assert choice["message"]["content"] == '{"a": 1}'
    assert "reasoning_content" not in choice["message"]


async def test_models_without_a_thinking_part_are_left_alone() -> None:
    async with serving(Settings(model="fake"), writes("<think>a</think>", "b")) as (client, *_):
        (choice,) = (await client.post(CHAT, json=chat())).json()["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": "<think>a</think>b", "refusal": None,
    }  # fmt: skip


async def test_an_answer_can_be_sent_back_as_the_official_client_has_it() -> None:
    async with model_says("Hm.", "</think>", "Yes.") as http:
        client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="any", http_client=http)
        question: Any = {"role": "user", "content": "Rain?"}
        first = await client.chat.completions.create(model="fake", messages=[question])
        message: Any = first.choices[0].message
        assert message.reasoning_content == "Hm."
        turns: Any = [question, message.model_dump(), question]
        again = await client.chat.completions.create(model="fake", messages=turns)
        assert again.choices[0].message.content == "Yes."
