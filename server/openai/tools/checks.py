"""What a request says about tools: whether the model can do it, and whether it fits together.

Knows the request's fields and the model's dialect. What passes here is rendered by `translate`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lookm.types import Structure
from server.api_errors import ApiError
from server.openai.schemas.requests import (
    AssistantMessage,
    ChatRequest,
    Message,
    TextFormat,
    ToolMessage,
)
from server.openai.schemas.tools import NamedChoice, Tool, ToolCall
from server.openai.tools.choice import NO_ARGUMENTS, allowed, tool_form
from server.openai.tools.reader import CallReader
from server.openai.tools.template_support import Dialect, ToolSupport


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request, which the model may call; and the form of the answer, if any."""

    tools: tuple[dict[str, Any], ...] = ()
    structure: Structure | None = None


def tool_use(body: ChatRequest, support: ToolSupport) -> ToolUse:
    """What a request with such tools (`check_tools`) says of them. Raises `ApiError`."""
    tools, choice = allowed(body.tools or (), body.tool_choice)
    names = [tool.function.name for tool in tools]
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        message = f"'tool_choice' names {choice.function.name!r}, which is not among 'tools'."
        raise ApiError("invalid_value", message, param="tool_choice.function.name")
    if choice == "required" and not tools:
        raise _clash("tool_choice", "'tool_choice': \"required\" needs 'tools'.")
    if not tools or choice == "none":
        return ToolUse()
    if body.response_format is not None and not isinstance(body.response_format, TextFormat):
        message = "An answer cannot be both a tool call and of a given format: give one of 'tools' "
        raise _clash("response_format", message + "(or 'tool_choice': \"none\") and this.")
    assert support.dialect is not None, "check_tools refuses this"
    parallel = body.parallel_tool_calls is not False
    return ToolUse(
        tools=shown(tools),
        structure=tool_form(support.dialect.form, tools, choice, parallel=parallel),
    )


def call_reader(body: ChatRequest, support: ToolSupport) -> CallReader | None:
    """A reader for one answer; None where the answer is only text."""
    if support.dialect is None or not body.tools or body.tool_choice == "none":
        return None
    tools, _ = allowed(body.tools, body.tool_choice)
    return CallReader(support.dialect.form, [tool.function.name for tool in tools])


def check_tools(tools: Sequence[Tool], support: ToolSupport) -> None:
    """Refuse tools that the model cannot be shown, and what is no list of functions."""
    if tools and support.dialect is None:
        raise _unsupported("tools", support)
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        where, function = f"tools[{number}].function", tool.function
        if function.name in seen:
            message = f"Two tools are named {function.name!r}."
            raise ApiError("invalid_value", message, param=f"{where}.name")
        seen.add(function.name)
        if function.parameters and function.parameters.get("type") != "object":
            message = 'Give a JSON schema of an object: {"type": "object", ...}.'
            raise ApiError("invalid_value", message, param=f"{where}.parameters")


def check_turns(messages: Sequence[Message], support: ToolSupport) -> None:
    """Refuse calls that the model cannot be shown, and answers to calls that there were not."""
    called: set[str] = set()
    for m, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            if message.tool_calls and support.dialect is None:
                raise _unsupported(f"messages[{m}].tool_calls", support)
            called.update(call.id for call in message.tool_calls or ())
        if isinstance(message, ToolMessage):
            if support.dialect is None:
                raise _unsupported(f"messages[{m}].role", support)
            if message.tool_call_id not in called:
                text = "It answers no 'tool_calls' of an earlier turn."
                raise ApiError("invalid_value", text, param=f"messages[{m}].tool_call_id")


def shown(tools: Sequence[Tool]) -> tuple[dict[str, Any], ...]:
    """The tools as chat templates take them."""
    return tuple(
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                "description": tool.function.description or "",
                "parameters": tool.function.parameters or NO_ARGUMENTS,
            },
        }
        for tool in tools
    )


def template_calls(calls: Sequence[ToolCall], dialect: Dialect) -> Iterator[Any]:
    """Calls as chat templates take them: their arguments are objects.

    What the model wrote and is none (it was cut, or is no JSON) goes back to it as text.
    """
    for call in calls:
        try:
            arguments = json.loads(call.function.arguments)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            arguments = call.function.arguments
        function = {"name": call.function.name, "arguments": arguments}
        yield {"id": dialect.call_id(call.id), "type": "function", "function": function}


def _unsupported(param: str, support: ToolSupport) -> ApiError:
    message = f"'{param}' is not supported here. Tools cannot be used: {support.reason}"
    return ApiError("unsupported_parameter", message, param=param)


def _clash(param: str, message: str) -> ApiError:
    return ApiError("invalid_value", message, param=param)
