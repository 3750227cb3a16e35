"""`tool_choice` of type `allowed_tools`: as if only these of the tools had been sent.

The others are not shown to the model, which so cannot choose one of them; calls of them in earlier
turns stay. Knows the fields; `checks` and `forms` go on with what is left.
"""

from collections.abc import Sequence

from server.errors import ApiError
from server.openai.tool_schemas import AllowedChoice, NamedChoice, Tool

Choice = str | NamedChoice | None


def allowed(tools: Sequence[Tool], choice: Choice | AllowedChoice) -> tuple[Sequence[Tool], Choice]:
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
