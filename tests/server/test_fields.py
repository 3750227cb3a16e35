"""The table of fields is complete: against OpenAI's client, and against what really happens."""

import json
from typing import Any

import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import (
    chat_completion_assistant_message_param as assistant,
)
from openai.types.chat import (
    chat_completion_content_part_image_param as image_part,
)
from openai.types.chat import chat_completion_content_part_param as part
from openai.types.chat import (
    chat_completion_stream_options_param as stream_options,
)
from openai.types.chat import chat_completion_tool_message_param as tool
from openai.types.chat import chat_completion_user_message_param as user
from openai.types.chat import completion_create_params as chat_params
from openai.types.shared_params import function_definition

from docs.generate import fields
from lookm import CachePolicy
from server.api_errors import ApiError
from server.openai.request import policies
from server.openai.request.parse import parse
from server.openai.schemas import files, images, kv_cache, requests, tools
from server.openai.schemas.fields import Refused, field_table, markdown_table

DOCUMENTED = [
    (chat_params.CompletionCreateParamsBase, requests.ChatRequest),
    (text_params.CompletionCreateParamsBase, requests.CompletionRequest),
    (assistant.ChatCompletionAssistantMessageParam, requests.AssistantMessage),
    (user.ChatCompletionUserMessageParam, requests.UserMessage),
    (tool.ChatCompletionToolMessageParam, requests.ToolMessage),
    (function_definition.FunctionDefinition, tools.FunctionDefinition),
    (image_part.ChatCompletionContentPartImageParam, images.ImagePart),
    (image_part.ImageURL, images.ImageUrl),
    (part.File, files.FilePart),
    (part.FileFile, files.FileContent),
    (stream_options.ChatCompletionStreamOptionsParam, requests.StreamOptions),
]
EXTENSIONS = {
    "usage_options",
    "cache_salt",
    "priority",
    *("kv_cache", "top_k", "ignore_eos", "min_p", "repetition_penalty", "min_tokens"),
    "stop_token_ids",
}
BASE = {
    requests.ChatRequest: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    requests.CompletionRequest: {"model": "m", "prompt": "x"},
}
REFUSED = [
    (model, name, marker)
    for model in BASE
    for name, info in model.model_fields.items()
    for marker in info.metadata
    if isinstance(marker, Refused)
]


@pytest.mark.parametrize(("documented", "model"), DOCUMENTED)
def test_every_documented_field_is_in_the_table(documented: Any, model: Any) -> None:
    rows = {row.name for row in field_table(model)}
    assert set(documented.__annotations__) <= rows | {"stream"}


def test_our_extensions_are_the_only_other_fields() -> None:
    rows = {row.name for row in field_table(requests.ChatRequest)}
    documented = set(chat_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert rows - documented == EXTENSIONS


def test_every_accepted_or_refused_field_says_why() -> None:
    for model in (
        *BASE,
        requests.AssistantMessage,
        images.ImageUrl,
        requests.TextPart,
        files.FileContent,
    ):
        for row in field_table(model):
            assert row.treatment == "honoured" or row.note
    assert "| `audio` | refused | Answers are text" in markdown_table(requests.ChatRequest)


def test_the_reference_is_what_the_models_say() -> None:
    written = fields.PATH.read_text(encoding="utf-8")
    assert written == fields.reference(), "run make docs"


@pytest.mark.parametrize(("model", "name", "marker"), REFUSED)
def test_refused_fields_name_themselves_and_pass_when_they_ask_nothing(
    model: Any, name: str, marker: Refused
) -> None:
    for value in (None, *marker.neutral):
        parse(model, json.dumps(BASE[model] | {name: value}).encode())
    for value in (17, True, "something", [1], {"a": 1}):
        with pytest.raises(ApiError) as caught:
            parse(model, json.dumps(BASE[model] | {name: value}).encode())
        assert caught.value.param == name
        assert caught.value.code == "unsupported_parameter"


ACCEPTED: dict[str, Any] = {
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "prompt_cache_options": {"mode": "explicit"},
    "prediction": {"type": "content", "content": "x"},
}


def test_accepted_fields_are_accepted() -> None:
    for row in field_table(requests.ChatRequest):
        if row.treatment == "accepted":
            value = ACCEPTED.get(row.name, "text")
            parse(
                requests.ChatRequest,
                json.dumps(BASE[requests.ChatRequest] | {row.name: value}).encode(),
            )


@pytest.mark.parametrize(
    "given", [{}, {"reuse": None}, {"method": None, "keep": None, "positions": None}]
)
def test_nothing_and_nulls_are_the_default(given: Any) -> None:
    asked, default = kv_cache.KvCache(**given), CachePolicy("snapkv", keep=0.5)
    assert policies.choose(asked, None, default) == default
    in_model = CachePolicy("look-m", keep=0.2)
    assert policies.choose(asked, in_model, default) == in_model
    assert policies.reuse(asked, "exact") == "exact"


@pytest.mark.parametrize(
    ("given", "in_model", "method"),
    [
        ({"reuse": "kept"}, None, "snapkv"),
        ({"reuse": "none"}, CachePolicy("look-m", keep=0.2), "look-m"),
        ({"method": "h2o", "reuse": "kept"}, None, "h2o"),
    ],
)
def test_what_is_reused_may_be_said_alone(given: Any, in_model: Any, method: str) -> None:
    asked, default = kv_cache.KvCache(**given), CachePolicy("snapkv", keep=0.5)
    assert policies.choose(asked, in_model, default).method == method
    assert policies.reuse(asked, "exact") == given["reuse"]
    for half in ({"keep": 0.2}, {"keep": 0.2, "reuse": "kept"}):
        with pytest.raises(ApiError, match=r"kv_cache\.method"):
            policies.choose(kv_cache.KvCache(**half), None, default)
