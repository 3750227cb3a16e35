"""Requests of `/v1/responses` that are refused: in OpenAI's envelope, naming the field at fault."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import response_create_params as params

from server.api_errors import ApiError
from server.openai.request.parse import parse
from server.openai.request.responses import asked
from server.openai.schemas.fields import Refused
from server.openai.schemas.responses import ResponsesRequest
from server.settings import Settings
from tests.server.requests import data_url, says, serving
from tests.server.responses.exchange import (
    RESPONSES,
    TERMINAL,
    WEATHER,
    asking,
    checked,
    user,
    whole,
)
from tests.server.tools.scripted_model import calling

pytestmark = pytest.mark.anyio

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "x"}
IMAGE = {"type": "input_image", "image_url": data_url()}
STRICT = {"type": "json_schema", "name": "a", "strict": True,
          "schema": {"type": "string", "format": "odd"}}  # fmt: skip

BAD: list[tuple[dict[str, Any], str, str | None]] = [
    ({"input": None}, "invalid_type", "input"),
    ({"input": 3}, "invalid_type", "input"),
    ({"input": []}, "invalid_value", "input"),
    ({"input": ["hi"]}, "invalid_type", "input[0]"),
    ({"input": [{}]}, "missing_required_parameter", "input[0].id"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "invalid_value", "input[0].type"),
    ({"input": [{"type": "computer_call_output"}]}, "invalid_value", "input[0].type"),
    ({"input": [{"role": "robot", "content": "x"}]}, "invalid_value", "input[0].role"),
    ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content"),
    ({"input": [{"role": "user", "content": []}]}, "invalid_value", "input[0].content"),
    ({"input": [user({"type": "text", "text": "x"})]}, "invalid_value", "input[0].content[0].type"),
    ({"input": [user({"type": "input_audio"})]}, "invalid_value", "input[0].content[0].type"),
    ({"input": [user({"type": "output_text", "text": "x"})]}, "invalid_value",
     "input[0].content[0].type"),
    ({"input": [{"role": "assistant", "content": [IMAGE]}]}, "invalid_value",
     "input[0].content[0].type"),
    ({"input": [user("x", {"type": "input_image"})]}, "missing_required_parameter",
     "input[0].content[1].image_url"),
    ({"input": [user("x", IMAGE | {"image_url": ""})]}, "invalid_value",
     "input[0].content[1].image_url"),
    ({"input": [user("x", IMAGE | {"image_url": "ftp://x"})]}, "invalid_image_url",
     "input[0].content[1].image_url"),
    ({"input": [user("x", "data:image/png;base64,aGVsbG8="), user("y")]}, "unsupported_image",
     "input[0].content[1].image_url"),
    ({"input": [user(IMAGE | {"file_id": "f"})]}, "invalid_value", "input[0].content[0].file_id"),
    ({"input": [user({"type": "input_image", "file_id": "f"})]}, "file_not_found",
     "input[0].content[0].file_id"),
    ({"input": [user(IMAGE | {"max_tokens_per_image": 1})]}, "invalid_value",
     "input[0].content[0].max_tokens_per_image"),
    ({"input": [user({"type": "input_file", "file_id": "f", "pages": "x"})]}, "invalid_value",
     "input[0].content[0].pages"),
    ({"input": [user(IMAGE | {"detail": "huge"})]}, "invalid_value", "input[0].content[0].detail"),
    ({"input": [user({"type": "input_file", "file_url": 3})]}, "invalid_type",
     "input[0].content[0].file_url"),
    ({"input": [CALL]}, "unsupported_parameter", "input[0]"),
    ({"input": [user("x"), OUTPUT]}, "unsupported_parameter", "input[1]"),
    ({"input": [OUTPUT | {"output": 3}]}, "invalid_type", "input[0].output"),
    ({"input": [OUTPUT | {"output": [IMAGE]}]}, "unsupported_parameter", "input[0].output[0]"),
    ({"input": [CALL | {"call_id": ""}]}, "invalid_value", "input[0].call_id"),
    ({"input": [CALL | {"name": "a b"}]}, "invalid_value", "input[0].name"),
    ({"input": "x " * 9000}, "context_length_exceeded", "input"),
    ({"instructions": "x " * 9000}, "context_length_exceeded", "input"),
    ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
    ({"max_output_tokens": 10**6}, "context_length_exceeded", "max_output_tokens"),
    ({"temperature": 3}, "invalid_value", "temperature"),
    ({"kv_cache": "zip"}, "invalid_kv_cache", "kv_cache"),
    ({"model": "gpt-6"}, "model_not_found", "model"),
    ({"previous_response_id": "resp_x"}, "response_not_found", "previous_response_id"),
    ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "unsupported_parameter", "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
    ({"tools": [WEATHER]}, "unsupported_parameter", "tools"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"tool_choice": {"type": "web_search"}}, "invalid_value", "tool_choice.type"),
    ({"text": {"format": {"type": "xml"}}}, "invalid_value", "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "missing_required_parameter",
     "text.format.schema"),
    ({"text": {"format": STRICT}}, "invalid_value", "text.format"),
    ({"text": {"verbosity": "low"}}, "unsupported_parameter", "text.verbosity"),
    ({"include": ["file_search_call.results"]}, "unsupported_parameter", "include[0]"),
    ({"reasoning": {"effort": "high"}}, "unsupported_parameter", "reasoning.effort"),
    ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
    ({"max_tokens": 5}, "unsupported_parameter", "max_tokens"),
    ({"messages": []}, "unknown_parameter", "messages"),
    ({"top_logprobs": 21}, "invalid_value", "top_logprobs"),
]  # fmt: skip

TOOLS_BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
    ({"tools": [WEATHER | {"parameters": {"type": "array"}}]}, "tools[0].parameters"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "mode": "auto",
      "tools": [{"type": "function", "name": "g"}]}}, "tool_choice.tools[0].name"),
    ({"tools": [WEATHER], "text": {"format": {"type": "json_object"}}}, "text.format"),
    ({"input": [user("x"), OUTPUT]}, "input[1].call_id"),
    ({"input": [user("x"), *[CALL] * 129]}, "input[1]"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "code", "param"), BAD, ids=[str(bad[0])[:60] for bad in BAD])
async def test_bad_requests_name_the_field_whole_and_streamed(
    client: httpx.AsyncClient, fields: dict[str, Any], code: str, param: str | None
) -> None:
    for stream in (False, True):
        response = await client.post(RESPONSES, json=asking(stream=stream) | fields)
        error = response.json()["error"]
        assert (error["code"], error["param"]) == (code, param), error["message"]
        assert 400 <= response.status_code < 500
        for word in ("messages[", "'messages'", "response_format", "max_completion_tokens"):
            assert word not in error["message"] or code == "unknown_parameter"


@pytest.mark.parametrize(("fields", "param"), TOOLS_BAD)
async def test_what_the_chat_refuses_of_tools_is_named_as_responses_do(
    fields: dict[str, Any], param: str
) -> None:
    async with calling("x") as (client, *_):
        error = await whole(client, asking() | fields, status=400)
    assert (error["code"], error["param"]) == ("invalid_value", param), error["message"]
    assert ".function" not in error["message"]


def test_every_documented_field_is_known() -> None:
    documented = set(params.ResponseCreateParamsBase.__annotations__) | {"stream"}
    assert documented <= ResponsesRequest.model_fields.keys()


REFUSED = [
    (name, marker)
    for name, info in ResponsesRequest.model_fields.items()
    for marker in info.metadata
    if isinstance(marker, Refused)
]


@pytest.mark.parametrize(("name", "marker"), REFUSED, ids=[name for name, _ in REFUSED])
def test_refused_fields_name_themselves_and_pass_when_they_ask_nothing(
    name: str, marker: Refused
) -> None:
    for value in (None, *marker.neutral):
        asked(parse(ResponsesRequest, json.dumps(asking() | {name: value}).encode()))
    for value in (17, True, "something", [1], {"a": 1}):
        with pytest.raises(ApiError) as caught:
            parse(ResponsesRequest, json.dumps(asking() | {name: value}).encode())
        assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


PART = st.one_of(
    st.builds(lambda text: {"type": "input_text", "text": text}, st.text(max_size=8)),
    st.sampled_from([IMAGE, {"type": "input_image"}, {"type": "input_file", "file_id": "f"},
                     {"type": "output_text", "text": "x"}, {"type": "refusal", "refusal": "no"},
                     {"type": "input_text"}, {"type": 3}, None]),
)  # fmt: skip
ROLES = st.sampled_from(["user", "assistant", "system", "developer", "tool"])
CONTENT = st.one_of(st.text(max_size=8), st.lists(PART, max_size=3), st.none())
ITEM = st.one_of(
    st.builds(lambda role, content: {"role": role, "content": content}, ROLES, CONTENT),
    st.sampled_from([CALL, OUTPUT, CALL | {"arguments": "["}, {"id": "x"}, {},
                     OUTPUT | {"call_id": "d"}, OUTPUT | {"output": [IMAGE]},
                     {"type": "reasoning", "id": "r", "summary": [{"a": 1}]}, 3]),
)  # fmt: skip
FIELDS = st.fixed_dictionaries(
    {"input": st.one_of(st.text(max_size=8), st.lists(ITEM, min_size=1, max_size=5))},
    optional={
        "instructions": st.sampled_from(["", "Be brief.", None]),
        "tools": st.sampled_from([[WEATHER], [], None, [{"type": "web_search"}]]),
        "tool_choice": st.sampled_from(["auto", "required", {"type": "function", "name": "f"}]),
        "text": st.sampled_from([{"format": {"type": "json_object"}}, {}, {"format": None}, 1]),
        "store": st.booleans(),
        "top_logprobs": st.integers(-1, 21),
        "kv_cache": st.sampled_from(["look-m@0.2", {"reuse": "none"}, {}]),
        "previous_response_id": st.sampled_from(["resp_x", "", None]),
        "stream": st.booleans(),
    },
)  # fmt: skip


async def test_whatever_is_sent_is_answered_once_or_refused_by_a_name_that_is_there() -> None:
    async with serving(Settings(model="fake"), says) as (client, _, app):

        async def one(fields: dict[str, Any]) -> None:
            response = await client.post(RESPONSES, json=asking() | fields)
            if response.status_code == 200:
                if fields.get("stream"):
                    assert checked(response.text)[-1]["type"] in TERMINAL
                else:
                    assert response.json()["status"] == "completed"
                return
            assert response.status_code in (400, 404), response.text
            param = response.json()["error"]["param"] or ""
            name = param.partition("[")[0].partition(".")[0]
            assert name in ResponsesRequest.model_fields, response.text

        cases: list[dict[str, Any]] = []
        quick = settings(
            max_examples=150, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip

        @quick
        @given(FIELDS)
        def collect(fields: dict[str, Any]) -> None:
            cases.append(fields)

        collect()
        for fields in cases:
            await one(fields)
        assert len(cases) >= 100
        store = app.state.services.responses
        assert store.held_bytes > 0
        for stored in [one for shelf in store._shelves.values() for one in shelf.values()]:
            store.delete(stored.id, "")
        assert store.held_bytes == 0  # nothing is held for what was refused
