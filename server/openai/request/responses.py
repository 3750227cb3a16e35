"""From a request of `/v1/responses` to a chat, which is then prepared as any other.

Fields are renamed and handed to the chat's own models, so what is valid, and what it does, is
said once. Errors speak of the chat; `Asked.explained` renames what they name. Knows both formats;
nothing about stores or HTTP.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from server.api_errors import ApiError
from server.openai.request.input_items import Placed, Translated, translated
from server.openai.request.parse import explain
from server.openai.schemas.requests import ChatRequest, Generation, Message
from server.openai.schemas.responses import (
    LOGPROBS,
    AllowedTools,
    ChosenTool,
    FunctionTool,
    JsonSchemaText,
    ResponsesRequest,
)

MESSAGES = TypeAdapter(list[Message])
MAX_MESSAGES = 4096
TOOL_FIELDS = ("name", "description", "parameters", "strict")
PLACEHOLDER = {"role": "user", "content": ""}  # until the input is translated, in a thread

# The fields that both requests have, under the same names and with the same meaning.
OWN = {"n", "max_tokens", "stream_options"}
SAME = (*(name for name in Generation.model_fields if name not in OWN), "parallel_tool_calls")

# A chat's fields in errors, and what they are called here.
RENAMED = (
    (re.compile(r"max_completion_tokens|max_tokens"), "max_output_tokens"),
    (re.compile(r"response_format(\.json_schema)?"), "text.format"),
    (re.compile(r"(tools\[\d+\])\.function"), r"\1"),
    (re.compile(r"tool_choice\.function"), "tool_choice"),
    (re.compile(r"tool_choice\.allowed_tools\.tools(\[\d+\])\.function"), r"tool_choice.tools\1"),
    (re.compile(r"tool_choice\.allowed_tools"), "tool_choice"),
)
IN_WORDS = (
    ("'max_completion_tokens'", "'max_output_tokens'"),
    ("'response_format'", "'text.format'"),
    ("'messages'", "'input'"),
    ("'tool_calls'", "'function_call'"),
)


@dataclass(slots=True)
class Asked:
    """A response's request as a chat; `items` are placed once `place` was called."""

    chat: ChatRequest
    places: Translated = field(default_factory=Translated)

    def place(self, instructions: str | None, items: Sequence[Placed]) -> None:
        """Give the chat its messages. Raises `ApiError`. For a thread: there may be thousands."""
        self.places = translated(instructions, items)
        if len(self.places.messages) > MAX_MESSAGES:
            message = f"With what came before it the input has more than {MAX_MESSAGES} messages."
            raise ApiError("invalid_value", message, param="input")
        try:
            messages = MESSAGES.validate_python(self.places.messages)
        except ValidationError as error:
            raise self.explained(_explained(error, "messages")) from None
        finally:
            self.places.messages.clear()
        self.chat.messages[:] = messages

    def explained(self, error: ApiError) -> ApiError:
        """A chat's error with what its fields are called here."""
        param = self.places.param(error.param)
        for pattern, name in RENAMED:
            if param and (found := pattern.match(param)):
                param = found.expand(name) + param[found.end() :]
                break
        message = error.message
        if error.param and param != error.param:
            message = message.replace(f"'{error.param}'", f"'{param}'")
        for theirs, ours in IN_WORDS:
            message = message.replace(theirs, ours)
        renamed = ApiError(error.code, message, param=param)
        renamed.headers.update(error.headers)
        return renamed


def asked(body: ResponsesRequest) -> Asked:
    """The chat that a response is, still without its messages. Raises `ApiError`."""
    fields = {name: getattr(body, name) for name in SAME}
    fields |= {
        "messages": [PLACEHOLDER],
        "max_completion_tokens": body.max_output_tokens,
        "stream_options": {"include_usage": True} if body.stream else None,
        "tools": None if body.tools is None else [_tool(tool) for tool in body.tools],
        "tool_choice": _choice(body.tool_choice),
        "response_format": _form(body),
    }
    if wants_logprobs(body):
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    try:
        return Asked(ChatRequest.model_validate(fields))
    except ValidationError as error:
        raise Asked(ChatRequest.model_construct()).explained(_explained(error)) from None


def wants_logprobs(body: ResponsesRequest) -> bool:
    """Whether log-probabilities are sent."""
    return bool(body.top_logprobs) or LOGPROBS in (body.include or ())


def _explained(error: ValidationError, below: str | None = None) -> ApiError:
    found = error.errors(include_url=False, include_context=True, include_input=False)
    prefix = () if below is None else (below,)
    return explain([{**item, "loc": (*prefix, *item["loc"])} for item in found])


def _tool(tool: FunctionTool | ChosenTool) -> dict[str, Any]:
    return {"type": "function", "function": _given(tool, TOOL_FIELDS)}


def _given(model: BaseModel, names: Sequence[str]) -> dict[str, Any]:
    """Those of the fields that are there and not null, as they are: a schema's nulls stay."""
    found = {name: getattr(model, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _choice(choice: str | ChosenTool | AllowedTools | None) -> object:
    if isinstance(choice, ChosenTool):
        return _tool(choice)
    if isinstance(choice, AllowedTools):
        listed = [_tool(each) for each in choice.tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": listed}}
    return choice


def _form(body: ResponsesRequest) -> object:
    form = body.text.format if body.text else None
    if isinstance(form, JsonSchemaText):
        given = _given(form, ("name", "description", "strict"))
        return {"type": "json_schema", "json_schema": given | {"schema": form.schema_}}
    return form
