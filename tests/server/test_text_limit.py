"""Text that no context holds is refused before anything is made of it, whatever field has it."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookm.errors import PromptTooLongError
from lookm.grammar.source import MAX_SOURCE_CHARACTERS
from server.api_errors import MAX_SHOWN_CHARACTERS, ApiError
from server.fake.processor import FakeProcessor
from server.openai.request import text_limit
from server.openai.request.parse import parse
from server.openai.request.text_limit import (
    MAX_HIDDEN_CHARACTERS,
    MAX_SCHEMA_CHARACTERS,
    TextLimit,
    count_characters,
)
from server.openai.schemas.requests import ChatRequest
from server.settings import Settings
from tests.server.requests import CHAT, chat, says, serving

pytestmark = pytest.mark.anyio

LONG = "a b " * 2_500_000  # 10 MB; the fake engine's context holds 8192 tokens
LIMIT = TextLimit(context_tokens=100, token_characters=10)


class NothingTokenized(FakeProcessor):
    """Text is refused before it comes here."""

    def text(self, text: str) -> tuple[int, ...]:
        assert len(text) < 100, "tokenized before it was refused"
        return super().text(text)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, arguments: str = "{}") -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f"} | function}


FIELDS: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, chat(LONG), "messages"),
    (CHAT, chat(stream=True, messages=[user(LONG)]), "messages"),
    (CHAT, chat(messages=[user("x"), {"role": "system", "content": LONG}]), "messages"),
    (CHAT, chat(messages=[answer(LONG), user("x")]), "messages"),
    (CHAT, chat(messages=[answer("x", LONG), user("x")]), "messages"),
    (CHAT, chat(messages=[answer("x"), {"role": "tool", "tool_call_id": "a", "content": LONG}]),
     "messages"),
    (CHAT, chat(tools=[tool(description=LONG)]), "tools"),
    (CHAT, chat(tools=[tool(parameters={"type": "object", "x": {LONG: 1}})]), "tools"),
    ("/v1/completions", {"model": "fake", "prompt": LONG}, "prompt"),
    ("/v1/completions", {"model": "fake", "prompt": [LONG]}, "prompt"),
    ("/tokenize", {"model": "fake", "messages": [user([{"type": "text", "text": LONG}])]},
     "messages"),
    ("/tokenize", {"model": "fake", "messages": [user("x")], "tools": [tool(description=LONG)]},
     "tools"),
]  # fmt: skip


async def test_too_much_text_is_refused_wherever_it_is() -> None:
    parts = {"load_processor": NothingTokenized}
    async with serving(Settings(model="fake"), says, **parts) as (client, engine, _):
        for path, body, param in FIELDS:
            response = await client.post(path, json=body)
            assert response.status_code == 400, (path, param, response.text)
            error = response.json()["error"]
            assert (error["code"], error["param"]) == ("context_length_exceeded", param)
            numbers = [int(word) for word in error["message"].split() if word.isdigit()]
            assert numbers == [numbers[0], 8192, 8192 * 1024]
            assert numbers[0] >= 9_999_999
        assert not engine.requests
        assert (await client.post(CHAT, json=chat("hi"))).status_code == 200


def checked(**fields: Any) -> None:
    body = parse(ChatRequest, json.dumps(chat(**fields)).encode())
    LIMIT.check_chat(body.messages, body.tools or ())


def test_what_may_fit_is_not_refused() -> None:
    checked(messages=[user("x" * 1000)])
    checked(messages=[user("x" * 500), user([{"type": "text", "text": "x" * 500}])])
    checked(messages=[user(" " * 10**6 + "x" * 1000 + "\n" * 10**6)])  # templates trim
    checked(messages=[answer("x" * MAX_HIDDEN_CHARACTERS, ""), user("x")])  # or leave out
    checked(tools=[tool(description="x" * 10**6)])
    with pytest.raises(PromptTooLongError, match="1001 characters"):
        checked(messages=[user("x" * 500), user("x" * 501)])


def test_counting_ends_where_there_is_enough() -> None:
    value = {"a": [1, None, "four"], "bc": {"d": ""}}
    assert count_characters(value, 100) <= len(json.dumps(value))
    assert count_characters("x" * 50, 10) == 50
    assert count_characters([[]] * 1000, 10) == 11
    assert count_characters([{}] * 1000, 10) == 11
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert count_characters(nested, 10**6) == 100_001


def test_schemas_have_the_compilers_limit() -> None:
    assert MAX_SCHEMA_CHARACTERS == MAX_SOURCE_CHARACTERS


async def test_no_error_repeats_megabytes(client: httpx.AsyncClient) -> None:
    for fields in ({"z" * 10**6: 1}, {"kv_cache": LONG}, {"metadata": {"z" * 10**6: "x"}}):
        response = await client.post(CHAT, json=chat(**fields))
        assert response.status_code == 400
        assert len(response.content) < 3 * MAX_SHOWN_CHARACTERS
    error = ApiError("invalid_value", "y" * 10**6, param="z" * 10**6)
    assert error.message == str(error) == "y" * MAX_SHOWN_CHARACTERS + "..."


@given(st.text(alphabet=" \n\tab\u2003", max_size=40))
def test_trimmed_text_is_measured_without_a_copy(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_limit, "PIECE_CHARACTERS", 4)
        assert text_limit._trimmed_length(text) == len(text.strip())
