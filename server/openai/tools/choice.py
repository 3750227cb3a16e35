"""`tool_choice`: which tools may be called, and the form the answer must have.

`allowed_tools`: as if only these of the tools had been sent. The others are not shown to the model,
which so cannot choose one of them; calls of them in earlier turns stay.

`required` and a named tool: a call, whatever the model would have said. `auto`: free text, unless a
tool is `strict` or `parallel_tool_calls` is false: then any call there is keeps to them.
"""

import json
from collections.abc import Sequence
from typing import Any

from lookm.types import Structure
from server.api_errors import ApiError
from server.openai.schemas.tools import AllowedChoice, NamedChoice, Tool, ToolChoice
from server.openai.tools.formats import CallFormat

MAX_PARALLEL_CALLS = 16
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}

ChoiceAmong = str | NamedChoice | None  # what is left of `ToolChoice` where all tools are allowed


def allowed(tools: Sequence[Tool], choice: ToolChoice | None) -> tuple[Sequence[Tool], ChoiceAmong]:
    """The tools that may be called, and the choice among them. Raises `ApiError`."""
    if not isinstance(choice, AllowedChoice):
        return tools, choice
    names = {tool.function.name for tool in tools}
    listed = [each.function.name for each in choice.allowed_tools.tools]
    for number, name in enumerate(listed):
        if name not in names:
            raise ApiError(
                "invalid_value",
                f"'tool_choice' allows {name!r}, which is not among 'tools'.",
                param=f"tool_choice.allowed_tools.tools[{number}].function.name",
            )
    return [tool for tool in tools if tool.function.name in listed], choice.allowed_tools.mode


def tool_form(
    form: CallFormat, tools: Sequence[Tool], choice: ChoiceAmong, *, parallel: bool
) -> Structure | None:
    """The structure of the answer; None where any text is allowed."""
    if isinstance(choice, NamedChoice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        parallel = False
    optional = choice in ("auto", None)
    if optional and parallel and not any(tool.function.strict for tool in tools):
        return None
    max_calls = MAX_PARALLEL_CALLS if parallel and not form.bare else 1
    pieces = {**_markers(form), "alternatives": [_piece(form, tool) for tool in tools]}
    source = json.dumps(pieces | {"most": max_calls, "optional": optional})
    return Structure("json_pieces", source, param="tools")


def _markers(form: CallFormat) -> dict[str, list[str]]:
    """What stands before, between and after calls (`lookm.grammar.source.Pieces`)."""
    if form.bare:
        return {"opened": [""], "between": [], "closed": []}
    if form.named_before:
        return {"opened": [form.marker], "between": [form.marker], "closed": []}
    if form.json_opener == "[":
        return {"opened": [form.marker, "["], "between": [", "], "closed": ["]"]}
    return {
        "opened": [form.marker, "\n"],
        "between": ["\n", form.closing, "\n", form.marker, "\n"],
        "closed": ["\n", form.closing],
    }


def _piece(form: CallFormat, tool: Tool) -> tuple[list[str], dict[str, Any], list[str]]:
    """One tool's call. Its schema stays a whole one: references in it begin at its root."""
    function = tool.function
    schema = function.parameters or NO_ARGUMENTS
    if form.named_before:
        return [function.name, form.named_before], schema, []
    begin = f'{{"name": {json.dumps(function.name)}, "{form.arguments}": '
    return [begin], schema, ["}"]
